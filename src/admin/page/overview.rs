//! The overview page: the health of the gateway, and operations that need a decision.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};

use super::chart::traffic;
use super::layout::{MenuEntry, behind, live, number, shown};
use super::table;
use super::uncertain::{UncertainQueue, summary};
use super::visitor::Visitor;
use crate::admin::problem::{AdminRefusal, describe_read_error};
use crate::admin::queries::{ask, search};
use crate::admin::saga_search::SagaScan;
use crate::admin::state::Admin;
use crate::admin::view::{OperationView, OverviewView};
use crate::read_model::{Filter, ReadModel};
use crate::store::StoreError;

/// Operations that the overview lists.
const NEWEST: usize = 8;

pub(super) async fn show(State(admin): State<Arc<Admin>>, visitor: Visitor) -> Response {
    let store = StoreHealth::ask(&admin).await;
    let projected = Projected::read(&admin).await;
    let waiting = match &projected {
        Ok(projected) if projected.overview.uncertain > 0 => Some(projected.overview.uncertain),
        // Only the store can answer that no operation is uncertain, because an uncertain operation
        // may be older than the log.
        _ => UncertainQueue::read(&admin).await.ok().map(|queue| queue.operations.len() as u64),
    };
    let announcement = if store.fault.is_some() {
        "The store does not answer".to_owned()
    } else {
        summary(waiting.unwrap_or_default())
    };
    let stuck = stuck_sagas(&admin).await;
    let figures = figures(&admin, &store, projected.as_ref().ok(), waiting, stuck);
    let content = live(
        "/",
        &announcement,
        html! {
            div.head {
                h1 { "Overview" }
                @if let Ok(projected) = &projected { (behind(projected.overview.lag_ms)) }
            }
            (figures)
            @match &projected {
                Ok(projected) => { (projected.show(&admin)) }
                Err(refusal) => { (without(refusal)) }
            }
        },
    );
    shown(&visitor, MenuEntry::Overview, "Overview", content)
}

/// The parts of the overview that come from the read model.
struct Projected {
    overview: OverviewView,
    newest: Vec<OperationView>,
}

impl Projected {
    async fn read(admin: &Admin) -> Result<Projected, AdminRefusal> {
        let overview = OverviewView::from(&ask(admin, ReadModel::overview).await?);
        let (newest, _) = search(admin, Filter::default(), None, NEWEST).await?;
        Ok(Projected { overview, newest })
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
                    (table::operations("Newest operations", &self.newest, admin.clock.unix_ms()))
                    p.more { a #all href="/operations" { "All operations, and search" } }
                }
            }
        }
    }
}

/// Renders advice if there is no read model.
fn without(refusal: &AdminRefusal) -> Markup {
    html! {
        section.panel aria-labelledby="off" {
            h2 #off { "Traffic and search" }
            @match refusal {
                AdminRefusal::ReadModelOff => {
                    p {
                        "Traffic and history need the event log, which is off. With the event log \
                         on, every change of an operation is recorded, and this page shows traffic \
                         and timelines, and finds operations by order, amount or time:"
                    }
                    pre { code { "[log]\nenabled = true" } }
                    p.dim {
                        "The operations in the store are under "
                        a #listed href="/operations" { "Operations" } "."
                    }
                }
                other => { p { (other.to_string()) "." } }
            }
        }
    }
}

fn figures(
    admin: &Admin,
    store: &StoreHealth,
    projected: Option<&Projected>,
    waiting: Option<u64>,
    stuck: Option<u64>,
) -> Markup {
    html! {
        dl.figures {
            @if let Some(Projected { overview, .. }) = projected {
                @let (hour, day) = (&overview.hour, &overview.day);
                @let requests = format!("{} in 24 h", number(day.requests));
                @let prevented = format!("{} in 24 h", number(day.duplicates_prevented));
                (figure("Requests, last hour", &number(hour.requests), &requests, ""))
                (figure("Duplicates prevented", &number(hour.duplicates_prevented), &prevented, ""))
                (figure("In flight", &number(overview.in_flight), "on all gateways", ""))
            } @else {
                (figure("In flight", &number(in_flight(admin)), "attempts on this gateway", ""))
            }
            (uncertain(waiting))
            @if let Some(count) = stuck { (stuck_figure(count)) }
            (store.figure())
        }
    }
}

fn in_flight(admin: &Admin) -> u64 {
    u64::try_from(admin.gate.meter().in_flight.get()).unwrap_or_default()
}

/// Renders a figure with its name and a note.
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
        return figure("Uncertain", "?", "the store does not answer", "bad");
    };
    html! {
        div class=[(count > 0).then_some("warn")] {
            dt { "Uncertain" }
            dd { (number(count)) }
            dd.note {
                @if count > 0 {
                    a #waiting href="/uncertain" { "waiting for a decision" }
                } @else { "nothing to decide" }
            }
        }
    }
}

/// Returns the number of stuck sagas; `None` for a gateway without sagas, or without a store.
async fn stuck_sagas(admin: &Admin) -> Option<u64> {
    if admin.sagas.is_empty() {
        return None;
    }
    let scan = SagaScan::read(admin).await.ok()?;
    u64::try_from(scan.stuck().count()).ok()
}

fn stuck_figure(count: u64) -> Markup {
    html! {
        div class=[(count > 0).then_some("warn")] {
            dt { "Stuck sagas" }
            dd { (number(count)) }
            dd.note {
                @if count > 0 {
                    a #stuck href="/uncertain#stuck" { "waiting for a decision" }
                } @else { "nothing to decide" }
            }
        }
    }
}

/// Whether the store answers, and how fast.
struct StoreHealth {
    took: Duration,
    fault: Option<StoreError>,
}

impl StoreHealth {
    async fn ask(admin: &Admin) -> StoreHealth {
        let began = tokio::time::Instant::now();
        let fault = admin.gate.store().records.ping().await.err();
        StoreHealth { took: began.elapsed(), fault }
    }

    fn figure(&self) -> Markup {
        match &self.fault {
            None => figure(
                "Store",
                "answers",
                &format!("in {:.1} ms", self.took.as_secs_f64() * 1000.0),
                "",
            ),
            Some(error) => figure("Store", "no answer", &describe_read_error(error), "bad"),
        }
    }
}
