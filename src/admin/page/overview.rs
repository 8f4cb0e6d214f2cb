//! The overview: whether all is well, and what waits for somebody.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};

use super::layout::{Here, number, shown};
use super::uncertain::{Queue, said};
use super::visitor::Visitor;
use crate::admin::Admin;
use crate::store::StoreError;

pub(super) async fn show(State(admin): State<Arc<Admin>>, visitor: Visitor) -> Response {
    let store = Health::ask(&admin).await;
    let queue = Queue::read(&admin).await;
    let waiting = queue.as_ref().ok().map(|queue| queue.operations.len());
    let content = html! {
        div #live hx-get="/" hx-trigger="every 3s" hx-select="#live" hx-swap="outerHTML" data-say=(aloud(&store, waiting)) {
            h1 { "Overview" }
            dl.figures {
                (figure("In flight", &number(in_flight(&admin)), "attempts of this gateway", ""))
                (uncertain(waiting))
                (store.figure())
            }
        }
    };
    shown(&visitor, Here::Overview, "Overview", content)
}

fn in_flight(admin: &Admin) -> u64 {
    u64::try_from(admin.gate.meter().in_flight.get()).unwrap_or_default()
}

fn aloud(store: &Health, waiting: Option<usize>) -> String {
    match (&store.fault, waiting) {
        (Some(_), _) => "The store does not answer".to_owned(),
        (None, waiting) => said(waiting.unwrap_or_default()),
    }
}

/// A figure with its name, and what it counts.
pub(super) fn figure(name: &str, value: &str, note: &str, class: &str) -> Markup {
    html! {
        div class=[(!class.is_empty()).then_some(class)] {
            dt { (name) }
            dd { (value) }
            dd.note { (note) }
        }
    }
}

fn uncertain(waiting: Option<usize>) -> Markup {
    let Some(count) = waiting else { return figure("Uncertain", "?", "the store does not say", "bad") };
    html! {
        div class=[(count > 0).then_some("warn")] {
            dt { "Uncertain" }
            dd { (number(count as u64)) }
            dd.note { @if count > 0 { a href="/uncertain" { "waiting for a decision" } } @else { "nothing waits for you" } }
        }
    }
}

/// Whether the store answers, and how fast.
struct Health {
    took: Duration,
    fault: Option<StoreError>,
}

impl Health {
    async fn ask(admin: &Admin) -> Health {
        let began = tokio::time::Instant::now();
        let fault = admin.gate.store().ping().await.err();
        Health { took: began.elapsed(), fault }
    }

    fn figure(&self) -> Markup {
        match &self.fault {
            None => figure("Store", "answers", &format!("in {:.1} ms", self.took.as_secs_f64() * 1000.0), ""),
            Some(error) => figure("Store", "does not answer", &error.to_string(), "bad"),
        }
    }
}
