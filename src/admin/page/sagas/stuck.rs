//! The stuck sagas, as a part of the page with all that waits for a decision.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::list::first;
use super::timeline::stuck_words;
use crate::admin::page::layout::{moment_of, number};
use crate::admin::page::table::head;
use crate::admin::problem::AdminRefusal;
use crate::admin::queries::views_of;
use crate::admin::saga_search::{SCANNED_MAX, SagaScan, open};
use crate::admin::state::Admin;
use crate::admin::view::{OperationView, SagaView, StuckStepView};

/// Rows of the table. Nobody decides about more before reloading the page.
const ROWS_MAX: usize = 100;

/// The stuck sagas of a store.
pub(in crate::admin::page) struct StuckSagas {
    /// The number of all that were found.
    count: usize,
    is_cut: bool,
    /// The rows, longest stuck first.
    sagas: Vec<SagaView>,
    /// The read model's views of the operations, by reference.
    operations: BTreeMap<String, OperationView>,
}

impl StuckSagas {
    /// Reads the sagas from the store.
    pub(in crate::admin::page) async fn read(admin: &Admin) -> Result<StuckSagas, AdminRefusal> {
        let scan = SagaScan::read(admin).await?;
        let count = scan.stuck().count();
        // The oldest ones, because a saga that began earlier has been stuck longer, mostly.
        let rows = scan.stuck().skip(count.saturating_sub(ROWS_MAX));
        let opened = open(admin, rows.map(|saga| saga.slot)).await?;
        let mut sagas: Vec<SagaView> = opened.iter().map(|opened| opened.view(admin)).collect();
        sagas.sort_by(|one, other| one.stuck_since.cmp(&other.stuck_since));
        let references = sagas.iter().map(|saga| saga.id.clone()).collect();
        let operations = views_of(admin, references).await;
        Ok(StuckSagas { count, is_cut: scan.is_cut, sagas, operations })
    }

    /// Returns the number of stuck sagas.
    pub(in crate::admin::page) fn count(&self) -> usize {
        self.count
    }

    /// Returns the sagas that wait for operations, by the references of these operations.
    pub(in crate::admin::page) fn by_held_operation(&self) -> BTreeMap<&str, &SagaView> {
        let pairs = self.sagas.iter().flat_map(|saga| {
            let operations = saga.stuck.iter().filter_map(|stuck| stuck.operation.as_deref());
            operations.map(move |operation| (operation, saga))
        });
        pairs.collect()
    }

    /// Renders the table.
    pub(in crate::admin::page) fn table(&self, now_ms: u64) -> Markup {
        if self.count == 0 {
            return html! {
                p.empty {
                    "None. A saga that can neither go on nor go back by itself would be here."
                }
            };
        }
        html! {
            table.cards role="table" {
                caption {
                    (summary(self.count)) ", longest first"
                    @if self.count > ROWS_MAX { ": " (ROWS_MAX) " of them" }
                    @if self.is_cut {
                        ", of those found among " (number(SCANNED_MAX as u64))
                        " sagas: there are more"
                    }
                }
                (head(&["Saga", "Stuck since", "Why", "What can be done"]))
                tbody role="rowgroup" {
                    @for saga in &self.sagas { (self.row(saga, now_ms)) }
                }
            }
        }
    }

    fn row(&self, saga: &SagaView, now_ms: u64) -> Markup {
        html! {
            tr role="row" {
                th scope="row" role="rowheader" { (first(saga, self.operations.get(&saga.id))) }
                td role="cell" data-label="Since" {
                    span {
                        @match &saga.stuck_since {
                            Some(since) => { (moment_of(since, now_ms)) }
                            None => { "–" }
                        }
                    }
                }
                td role="cell" data-label="Why" {
                    div {
                        @for stuck in &saga.stuck { p { (stuck_words(stuck)) } }
                        @if let Some(why) = &saga.unreadable { p { (why) } }
                    }
                }
                td role="cell" data-label="Can be done" { div { (remedies(saga)) } }
            }
        }
    }
}

fn remedies(saga: &SagaView) -> Markup {
    let held: Vec<(&StuckStepView, &String)> =
        saga.stuck.iter().filter_map(|stuck| Some((stuck, stuck.operation.as_ref()?))).collect();
    html! {
        @for (stuck, operation) in &held {
            span.detail {
                "settle " (stuck.step) ": "
                a.ref.short id=(format!("held-{operation}"))
                    href=(format!("/operations/{operation}")) { (operation) }
            }
        }
        @if held.len() < saga.stuck.len() { "retry or skip" }
    }
}

/// Returns the number of stuck sagas as text.
pub(in crate::admin::page) fn summary(count: usize) -> String {
    match count {
        0 => "No stuck sagas".to_owned(),
        1 => "1 stuck saga".to_owned(),
        count => format!("{count} stuck sagas"),
    }
}
