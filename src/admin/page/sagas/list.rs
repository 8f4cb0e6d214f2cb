//! The list of sagas that have not ended.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::response::Response;
use maud::{Markup, html};

use super::one::path;
use super::query::{PHASES, SagaListPageQuery};
use super::words::{action_status, compensation_words, state};
use crate::admin::page::error::PageError;
use crate::admin::page::layout::{MenuEntry, live, moment_of, number, shown};
use crate::admin::page::table::{fields, head};
use crate::admin::page::visitor::Visitor;
use crate::admin::queries::views_of;
use crate::admin::saga_search::{ListedSaga, SCANNED_MAX, SagaScan, open};
use crate::admin::state::Admin;
use crate::admin::view::{OperationView, SagaStepView, SagaView};

/// Sagas of a page.
const ROWS: usize = 50;

/// The data of a page of the list.
struct SagaListPage {
    query: SagaListPageQuery,
    /// The number of all sagas that match the filter.
    count: usize,
    is_cut: bool,
    /// The names for the filter.
    names: BTreeSet<String>,
    sagas: Vec<SagaView>,
    /// The read model's views of the operations, by reference.
    operations: BTreeMap<String, OperationView>,
    next: Option<String>,
    now_ms: u64,
}

impl SagaListPage {
    async fn read(admin: &Admin, query: SagaListPageQuery) -> Result<SagaListPage, PageError> {
        let selection = query.selection()?;
        let scan = SagaScan::read(admin).await?;
        let mut names: BTreeSet<String> =
            scan.sagas.iter().map(|saga| saga.name.to_string()).collect();
        names.extend(admin.sagas.iter().cloned());
        names.extend(selection.name.clone());
        let matching: Vec<&ListedSaga> =
            scan.sagas.iter().filter(|saga| selection.matches(saga)).collect();
        let mut rest = matching.iter().filter(|saga| !selection.is_before(saga));
        let rows: Vec<&ListedSaga> = rest.by_ref().take(ROWS).copied().collect();
        let last = rows.last().filter(|_| rest.next().is_some());
        let next = last.map(|last| query.next(last));
        let opened = open(admin, rows.iter().map(|saga| saga.slot)).await?;
        let sagas: Vec<SagaView> = opened.iter().map(|opened| opened.view(admin)).collect();
        let references = sagas.iter().map(|saga| saga.id.clone()).collect();
        Ok(SagaListPage {
            count: matching.len(),
            is_cut: scan.is_cut,
            names,
            operations: views_of(admin, references).await,
            next,
            now_ms: admin.clock.unix_ms(),
            sagas,
            query,
        })
    }

    fn is_filtered(&self) -> bool {
        !self.query.status.is_empty() || !self.query.name.is_empty()
    }
}

/// Shows the list.
pub(in crate::admin::page) async fn show(
    State(admin): State<Arc<Admin>>,
    visitor: Visitor,
    Query(query): Query<SagaListPageQuery>,
) -> Result<Response, PageError> {
    let page = SagaListPage::read(&admin, query).await?;
    let content = html! {
        @if page.query.cursor.is_empty() { (live(&page.query.path(), "", content(&page))) }
        @else { (content(&page)) }
    };
    Ok(shown(&visitor, MenuEntry::Sagas, "Sagas", content))
}

fn content(page: &SagaListPage) -> Markup {
    html! {
        div.head {
            h1 { "Sagas" }
            p.fresh { "from the store, as it is now" }
        }
        p.dim {
            "A saga runs several steps, which are completed or undone as a whole. These have not \
             ended. A saga that has ended is a completed operation of its route, under "
            a #ended href="/operations" { "Operations" } "."
        }
        section.panel.flush aria-label="Sagas" {
            (filters(page))
            @if page.sagas.is_empty() { p.empty { (empty_text(page)) } }
            @else { (table(page)) }
            @if let Some(next) = &page.next {
                p.more { a #further href=(next) rel="next" { "Next page" } }
            }
        }
    }
}

fn empty_text(page: &SagaListPage) -> &'static str {
    match (page.query.cursor.is_empty(), page.is_filtered()) {
        (false, _) => "None on this page.",
        (true, true) => "None of this status and name.",
        (true, false) => {
            "None. A saga is here from the moment at which its request arrives until its end."
        }
    }
}

/// Renders the filters as links, because a refresh would reset the fields of a form.
fn filters(page: &SagaListPage) -> Markup {
    let query = &page.query;
    let statuses = PHASES.iter().map(|phase| phase.name());
    let names = page.names.iter().map(String::as_str);
    html! {
        div.filters.above {
            (filter("Status", &query.status, statuses, |status| {
                SagaListPageQuery::of(status, &query.name)
            }))
            @if page.names.len() > 1 {
                (filter("Saga", &query.name, names, |name| {
                    SagaListPageQuery::of(&query.status, name)
                }))
            }
        }
    }
}

fn filter<'a>(
    label: &str,
    chosen: &str,
    values: impl Iterator<Item = &'a str>,
    query: impl Fn(&str) -> SagaListPageQuery,
) -> Markup {
    html! {
        nav aria-label=(label) {
            span.dim aria-hidden="true" { (label) }
            ul {
                @for value in std::iter::once("").chain(values) {
                    li {
                        a id=(format!("{}-is-{value}", label.to_lowercase()))
                            href=(query(value).path())
                            aria-current=[(value == chosen).then_some("true")] {
                            @if value.is_empty() { "any" } @else { (value) }
                        }
                    }
                }
            }
        }
    }
}

fn table(page: &SagaListPage) -> Markup {
    html! {
        table.cards role="table" {
            caption {
                (number(page.count as u64)) @if page.count == 1 { " saga" } @else { " sagas" }
                ", newest first"
                @if page.is_cut {
                    ", of those found among " (number(SCANNED_MAX as u64)) ": there are more"
                }
            }
            (head(&["Saga", "Status", "Started", "At the step"]))
            tbody role="rowgroup" { @for saga in &page.sagas { (row(page, saga)) } }
        }
    }
}

fn row(page: &SagaListPage, saga: &SagaView) -> Markup {
    html! {
        tr role="row" {
            th scope="row" role="rowheader" { (first(saga, page.operations.get(&saga.id))) }
            td role="cell" data-label="Status" { span.standing { (state(&saga.status)) } }
            td role="cell" data-label="Started" {
                span { (moment_of(&saga.started_at, page.now_ms)) }
            }
            td role="cell" data-label="At the step" { span { (at_step(saga)) } }
        }
    }
}

/// Renders the name, the chosen fields and the id of a saga.
pub(in crate::admin::page) fn first(saga: &SagaView, projected: Option<&OperationView>) -> Markup {
    html! {
        div {
            a id=(saga.id) href=(path(&saga.id)) { strong { (saga.name) } }
            @if let Some(projected) = projected { (fields(projected)) }
            span.detail { span.ref.short { (saga.id) } }
        }
    }
}

/// Returns the steps at which a saga is.
fn at_step(saga: &SagaView) -> String {
    if let Some(why) = &saga.unreadable {
        return why.clone();
    }
    let is_stuck = |step: &SagaStepView| saga.stuck.iter().any(|stuck| stuck.step == step.name);
    let steps = saga.steps.iter().filter_map(|step| {
        let words = match step.status.as_str() {
            "running" | "retrying" => action_status(step),
            "uncertain" | "undoing" | "refused" => match &step.compensation {
                Some(compensation) if compensation.status != "pending" => {
                    compensation_words(saga, step, compensation)
                }
                _ => action_status(step),
            },
            _ if is_stuck(step) => action_status(step),
            _ => return None,
        };
        Some(format!("{}: {words}", step.name))
    });
    let steps: Vec<String> = steps.collect();
    if steps.is_empty() { "–".to_owned() } else { steps.join(", ") }
}
