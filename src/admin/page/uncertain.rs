//! What waits for a decision: the queue of uncertain operations, oldest first, with the possible
//! decisions about each, and the stuck sagas.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};

use super::actions::in_words;
use super::error::PageError;
use super::layout::{MenuEntry, live, moment, number, shown};
use super::sagas::{StuckSagas, path as sagas_path, stuck_summary};
use super::table::{first, head};
use super::visitor::Visitor;
use crate::admin::queries::views_of;
use crate::admin::state::Admin;
use crate::admin::view::{OperationView, SagaView};
use crate::key::Slot;
use crate::record::{Held, State as RecordState};
use crate::store::{ListError, Listing};

/// The maximum of unsettled records that are scanned for one page. This takes a fraction of a
/// second of the store's work.
const SCANNED_MAX: usize = 5000;

/// Records per call to the store.
const SCAN: usize = 500;

/// Rows of the page. Nobody settles more by hand before reloading the page.
const ROWS_MAX: usize = 100;

/// The uncertain operations of a store.
pub(super) struct UncertainQueue {
    /// Oldest first.
    pub operations: Vec<(Slot, Held)>,
    /// Whether the scan stopped before it had read all unsettled records.
    pub is_cut: bool,
}

impl UncertainQueue {
    /// Reads the queue from the store.
    pub(super) async fn read(admin: &Admin) -> Result<UncertainQueue, ListError> {
        let (mut operations, mut scanned, mut cursor) = (Vec::new(), 0, None);
        loop {
            let page = admin
                .gate
                .store()
                .records
                .list(Listing::Unsettled, cursor.as_deref(), SCAN)
                .await?;
            scanned += page.records.len();
            let uncertain = |(_, held): &(Slot, Held)| {
                matches!(held.record.state, RecordState::Uncertain { .. })
            };
            operations.extend(page.records.into_iter().filter(uncertain));
            cursor = page.cursor;
            if cursor.is_none() || scanned >= SCANNED_MAX {
                break;
            }
        }
        operations.sort_by_key(|(slot, held)| (held.written_ms, *slot));
        // A record that changes during the scan may be listed twice.
        operations.dedup_by_key(|(slot, _)| *slot);
        Ok(UncertainQueue { operations, is_cut: cursor.is_some() })
    }
}

pub(super) async fn show(
    State(admin): State<Arc<Admin>>,
    visitor: Visitor,
) -> Result<Response, PageError> {
    let queue = UncertainQueue::read(&admin).await?;
    let references =
        queue.operations.iter().take(ROWS_MAX).map(|(slot, _)| slot.to_string()).collect();
    let projected = views_of(&admin, references).await;
    let stuck = StuckSagas::read(&admin).await?;
    let held_by = stuck.by_held_operation();
    let content = live(
        "/uncertain",
        &announcement(queue.operations.len() as u64, &stuck),
        html! {
                div.head {
                    h1 { "Uncertain outcomes" }
                    p.fresh { "from the store, as it is now" }
                }
                p.dim {
                    "It is unknown whether the upstream executed these operations. Onceward sends \
                     nothing for them, and refuses their duplicates, "
                    "until you decide. Look up each one at the upstream, then settle it."
                }
                section.panel.flush aria-label="Queue" {
                    (table(&admin, &queue, &projected, &held_by))
                }
                @if !admin.sagas.is_empty() || stuck.count() > 0 {
                    section.panel.flush aria-labelledby="stuck" {
                        h2 #stuck { "Stuck sagas" }
                        (stuck.table(admin.clock.unix_ms()))
                    }
                }
        },
    );
    Ok(shown(&visitor, MenuEntry::Uncertain, "Uncertain", content))
}

/// Returns the number of uncertain outcomes as text, also for screen readers.
pub(super) fn summary(count: u64) -> String {
    match count {
        0 => "No uncertain outcomes".to_owned(),
        1 => "1 uncertain outcome".to_owned(),
        count => format!("{count} uncertain outcomes"),
    }
}

/// Returns all that waits as text, for screen readers.
fn announcement(uncertain: u64, stuck: &StuckSagas) -> String {
    match stuck.count() {
        0 => summary(uncertain),
        count => format!("{}, {}", summary(uncertain), stuck_summary(count)),
    }
}

fn table(
    admin: &Admin,
    queue: &UncertainQueue,
    projected: &BTreeMap<String, OperationView>,
    held_by: &BTreeMap<&str, &SagaView>,
) -> Markup {
    let (count, rows) = (queue.operations.len(), queue.operations.iter().take(ROWS_MAX));
    if count == 0 {
        return html! {
            p.empty { "None. Every operation has a known outcome or is still in flight." }
        };
    }
    html! {
        table.cards role="table" {
            caption {
                (summary(count as u64)) ", oldest first"
                @if count > ROWS_MAX { ": the first " (ROWS_MAX) }
                @if queue.is_cut {
                    ", of those found among " (number(SCANNED_MAX as u64))
                    " unsettled operations: there are more"
                }
            }
            (head(&["Operation", "Since", "Route", "What can be done"]))
            tbody role="rowgroup" {
                @for (slot, held) in rows { (row(admin, slot, held, projected, held_by)) }
            }
        }
    }
}

fn row(
    admin: &Admin,
    slot: &Slot,
    held: &Held,
    projected: &BTreeMap<String, OperationView>,
    held_by: &BTreeMap<&str, &SagaView>,
) -> Markup {
    let mut view = OperationView::new(slot, held);
    view.fields = projected
        .get(&view.operation)
        .map(|projected| projected.fields.clone())
        .unwrap_or_default();
    html! {
        tr role="row" {
            (first(&view))
            td role="cell" data-label="Since" { span { (moment(held.written_ms, held.now_ms)) } }
            td role="cell" data-label="Route" {
                div {
                    (held.record.route)
                    @if let Some(saga) = held_by.get(view.operation.as_str()) {
                        span.detail {
                            "a step of a "
                            a id=(format!("saga-of-{}", view.operation))
                                href=(sagas_path(&saga.id)) { "stuck saga" }
                        }
                    }
                }
            }
            td role="cell" data-label="Can be done" {
                span { (in_words(held, admin.policy(&held.record.route))) }
            }
        }
    }
}
