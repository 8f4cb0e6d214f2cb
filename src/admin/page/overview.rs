//! The overview: whether all is well, and what waits for somebody.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};

use super::chart::traffic;
use super::layout::{Here, behind, live, number, shown};
use super::table;
use super::uncertain::{Queue, said};
use super::visitor::Visitor;
use crate::admin::Admin;
use crate::admin::model::{ask, search};
use crate::admin::problem::{AdminRefusal, unread};
use crate::admin::view::{OperationView, OverviewView};
use crate::read_model::{Filter, ReadModel};
use crate::store::StoreError;

/// Operations that the overview shows.
const NEWEST: usize = 8;

pub(super) async fn show(State(admin): State<Arc<Admin>>, visitor: Visitor) -> Response {
    let store = Health::ask(&admin).await;
    let told = Told::read(&admin).await;
    let waiting = match &told {
        Ok(told) if told.overview.uncertain > 0 => Some(told.overview.uncertain),
        // That nothing waits is said by nobody but the store: the log may be younger than what does.
        _ => Queue::read(&admin).await.ok().map(|queue| queue.operations.len() as u64),
    };
    let said = if store.fault.is_some() {
        "The store does not answer".to_owned()
    } else {
        said(waiting.unwrap_or_default())
    };
    let figures = figures(&admin, &store, told.as_ref().ok(), waiting);
    let content = live(
        "/",
        &said,
        html! {
            div.head {
                h1 { "Overview" }
                @if let Ok(told) = &told { (behind(told.overview.lag_ms)) }
            }
            (figures)
            @match &told {
                Ok(told) => { (told.show(&admin)) }
                Err(refusal) => { (without(refusal)) }
            }
        },
    );
    shown(&visitor, Here::Overview, "Overview", content)
}

/// What the read model tells.
struct Told {
    overview: OverviewView,
    newest: Vec<OperationView>,
}

impl Told {
    async fn read(admin: &Admin) -> Result<Told, AdminRefusal> {
        let overview = OverviewView::from(&ask(admin, ReadModel::overview).await?);
        let (newest, _) = search(admin, Filter::default(), None, NEWEST).await?;
        Ok(Told { overview, newest })
    }

    fn show(&self, admin: &Admin) -> Markup {
        html! {
            section.panel aria-labelledby="traffic" {
                h2 #traffic { "Traffic of the last hour" }
                (traffic(&self.overview.minutes))
            }
            section.panel.flush aria-labelledby="newest" {
                h2 #newest { "Newest operations" }
                @if self.newest.is_empty() {
                    p.empty { "None yet." }
                } @else {
                    (table::operations("The operations that began last", &self.newest, admin.clock.unix_ms()))
                    p.more { a #all href="/operations" { "All operations, and search" } }
                }
            }
        }
    }
}

/// What is to be done where nothing is told.
fn without(refusal: &AdminRefusal) -> Markup {
    html! {
        section.panel aria-labelledby="off" {
            h2 #off { "Traffic and search" }
            @match refusal {
                AdminRefusal::ReadModelOff => {
                    p {
                        "Nothing is recorded that could be shown here. With the event log on, every change of an operation is kept, and this "
                        "page shows traffic, timelines, and finds operations by order, amount or time:"
                    }
                    pre { code { "[log]\nenabled = true" } }
                    p.dim { "The operations that are in the store now are under " a #listed href="/operations" { "Operations" } "." }
                }
                other => { p { (other.to_string()) "." } }
            }
        }
    }
}

fn figures(admin: &Admin, store: &Health, told: Option<&Told>, waiting: Option<u64>) -> Markup {
    html! {
        dl.figures {
            @if let Some(Told { overview, .. }) = told {
                (figure("Requests, last hour", &number(overview.hour.requests), &format!("{} in 24 h", number(overview.day.requests)), ""))
                (figure("Duplicates prevented", &number(overview.hour.duplicates_prevented), &format!("{} in 24 h", number(overview.day.duplicates_prevented)), ""))
                (figure("In flight", &number(overview.in_flight), "of all gateways", ""))
            } @else {
                (figure("In flight", &number(in_flight(admin)), "attempts of this gateway", ""))
            }
            (uncertain(waiting))
            (store.figure())
        }
    }
}

fn in_flight(admin: &Admin) -> u64 {
    u64::try_from(admin.gate.meter().in_flight.get()).unwrap_or_default()
}

/// A figure with its name, and what it counts.
fn figure(name: &str, value: &str, note: &str, class: &str) -> Markup {
    html! {
        div class=[(!class.is_empty()).then_some(class)] {
            dt { (name) }
            dd { (value) }
            dd.note { (note) }
        }
    }
}

fn uncertain(waiting: Option<u64>) -> Markup {
    let Some(count) = waiting else {
        return figure("Uncertain", "?", "the store does not say", "bad");
    };
    html! {
        div class=[(count > 0).then_some("warn")] {
            dt { "Uncertain" }
            dd { (number(count)) }
            dd.note { @if count > 0 { a #waiting href="/uncertain" { "waiting for a decision" } } @else { "nothing waits for you" } }
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
        let fault = admin.gate.store().records.ping().await.err();
        Health { took: began.elapsed(), fault }
    }

    fn figure(&self) -> Markup {
        match &self.fault {
            None => figure(
                "Store",
                "answers",
                &format!("in {:.1} ms", self.took.as_secs_f64() * 1000.0),
                "",
            ),
            Some(error) => figure("Store", "no answer", &unread(error), "bad"),
        }
    }
}
