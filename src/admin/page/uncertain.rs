//! The queue of uncertain outcomes, oldest first, with what can be done about each.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use maud::{Markup, html};

use super::actions::in_words;
use super::fault::Fault;
use super::layout::{Here, live, moment, number, shown};
use super::search::known;
use super::table::{first, head};
use super::visitor::Visitor;
use crate::admin::Admin;
use crate::admin::view::OperationView;
use crate::key::Slot;
use crate::record::{Held, State as Standing};
use crate::store::{ListError, Listing};

/// Unsettled records that are looked through for one page, at most: a fraction of a second's work of the store.
const SCANNED_MAX: usize = 5000;

/// Records asked for at once.
const SCAN: usize = 500;

/// Rows of a page. Nobody settles more by hand before looking again.
const ROWS_MAX: usize = 100;

/// The uncertain operations of a store.
pub(super) struct Queue {
    /// Oldest first.
    pub operations: Vec<(Slot, Held)>,
    /// Whether some were not looked at.
    pub is_cut: bool,
}

impl Queue {
    /// As it is now.
    pub(super) async fn read(admin: &Admin) -> Result<Queue, ListError> {
        let (mut operations, mut seen, mut cursor) = (Vec::new(), 0, None);
        loop {
            let page = admin
                .gate
                .store()
                .records
                .list(Listing::Unsettled, cursor.as_deref(), SCAN)
                .await?;
            seen += page.records.len();
            let uncertain =
                |(_, held): &(Slot, Held)| matches!(held.record.state, Standing::Uncertain { .. });
            operations.extend(page.records.into_iter().filter(uncertain));
            cursor = page.cursor;
            if cursor.is_none() || seen >= SCANNED_MAX {
                break;
            }
        }
        operations.sort_by_key(|(slot, held)| (held.written_ms, *slot));
        // What changes while it is listed may be met twice.
        operations.dedup_by_key(|(slot, _)| *slot);
        Ok(Queue { operations, is_cut: cursor.is_some() })
    }
}

pub(super) async fn show(
    State(admin): State<Arc<Admin>>,
    visitor: Visitor,
) -> Result<Response, Fault> {
    let queue = Queue::read(&admin).await?;
    let references =
        queue.operations.iter().take(ROWS_MAX).map(|(slot, _)| slot.to_string()).collect();
    let known = known(&admin, references).await;
    let content = live(
        "/uncertain",
        &said(queue.operations.len() as u64),
        html! {
                div.head {
                    h1 { "Uncertain outcomes" }
                    p.fresh { "from the store, as it is now" }
                }
                p.dim {
                    "Nobody knows whether the upstream acted on these. Nothing is sent for them until it is decided here, and their "
                    "duplicates are told so. Look each up at the upstream, then settle it."
                }
                section.panel.flush aria-label="Queue" { (table(&admin, &queue, &known)) }
        },
    );
    Ok(shown(&visitor, Here::Uncertain, "Uncertain", content))
}

/// How many wait, as it is said aloud.
pub(super) fn said(count: u64) -> String {
    match count {
        0 => "No uncertain outcomes".to_owned(),
        1 => "1 uncertain outcome".to_owned(),
        count => format!("{count} uncertain outcomes"),
    }
}

fn table(admin: &Admin, queue: &Queue, known: &BTreeMap<String, OperationView>) -> Markup {
    let (count, rows) = (queue.operations.len(), queue.operations.iter().take(ROWS_MAX));
    if count == 0 {
        return html! { p.empty { "None. Every operation that was begun has a known outcome or is still in flight." } };
    }
    html! {
        table.cards role="table" {
            caption {
                (said(count as u64)) ", oldest first"
                @if count > ROWS_MAX { ": the first " (ROWS_MAX) }
                @if queue.is_cut { ", of those found among " (number(SCANNED_MAX as u64)) " unsettled operations: there are more" }
            }
            (head(&["Operation", "Since", "Route", "What can be done"]))
            tbody role="rowgroup" { @for (slot, held) in rows { (row(admin, slot, held, known)) } }
        }
    }
}

fn row(admin: &Admin, slot: &Slot, held: &Held, known: &BTreeMap<String, OperationView>) -> Markup {
    let mut view = OperationView::new(slot, held);
    view.fields = known.get(&view.operation).map(|known| known.fields.clone()).unwrap_or_default();
    html! {
        tr role="row" {
            (first(&view))
            td role="cell" data-label="Since" { span { (moment(held.written_ms, held.now_ms)) } }
            td role="cell" data-label="Route" { (held.record.route) }
            td role="cell" data-label="Can be done" { span { (in_words(held, admin.policy(&held.record.route))) } }
        }
    }
}
