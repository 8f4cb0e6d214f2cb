//! The list of dead letters, with the decisions about each.

use maud::{Markup, html};

use super::form_fields::{hidden, reason_field};
use super::look::{DeliveryPage, dead_letters};
use super::query::DeliveryQuery;
use crate::admin::dead_letters::ShownDeadLetter;
use crate::admin::page::layout::moment_of;
use crate::admin::page::table::{fields, head};
use crate::admin::page::visitor::Visitor;
use crate::admin::view::{DeadLetterAttemptsView, DeadLetterView};

/// The kinds of the filter.
const KINDS: [&str; 2] = ["receiver", "gateway"];

/// Returns the path of a dead letter's page.
pub(in crate::admin::page) fn path(id: &str) -> String {
    format!("/delivery/dead-letters/{id}")
}

/// Returns the type of an event, as the page names it.
pub(super) fn event_type(letter: &DeadLetterView) -> String {
    letter.head().map_or("unreadable event".to_owned(), |head| head.event_type)
}

/// Returns the attempts and their last result as a short text.
pub(in crate::admin::page) fn result(attempts: &DeadLetterAttemptsView) -> String {
    let count = match attempts.count {
        0 => "no attempt".to_owned(),
        1 => "1 attempt".to_owned(),
        count => format!("{count} attempts"),
    };
    match (attempts.status, &attempts.error) {
        (Some(status), _) => format!("{count}, status {status}"),
        (None, Some(error)) => format!("{count}: {error}"),
        (None, None) => count,
    }
}

/// Renders the filter and a page of dead letters.
pub(super) fn section(page: &DeliveryPage, visitor: &Visitor) -> Markup {
    let query = &page.query;
    let is_filtered = !query.sink.is_empty() || !query.kind.is_empty();
    let has_letters = page.sinks.iter().any(|sink| dead_letters(sink) > 0);
    html! {
        @if is_filtered || has_letters { (filters(page)) }
        @if !page.letters.is_empty() { (table(page, visitor)) }
        @else if page.cursor.is_some() { p.empty { "None on this page." } }
        @else if is_filtered && has_letters { p.empty { "None of this sink and kind." } }
        @else {
            p.empty {
                "None. An event that its sink does not take in time is kept here until somebody \
                 requeues or discards it."
            }
        }
        @if let Some(cursor) = &page.cursor {
            p.more { a #further href=(query.next(cursor)) rel="next" { "Next page" } }
        }
    }
}

/// Renders the filters as links, because a refresh would reset the fields of a form.
fn filters(page: &DeliveryPage) -> Markup {
    let query = &page.query;
    let mut sinks: Vec<&str> = page
        .sinks
        .iter()
        .filter(|sink| dead_letters(sink) > 0)
        .map(|sink| sink.name.as_str())
        .collect();
    if !query.sink.is_empty() && !sinks.contains(&query.sink.as_str()) {
        sinks.push(&query.sink);
    }
    let kinds = KINDS.into_iter();
    html! {
        div.filters {
            (filter("Sink", &query.sink, sinks.into_iter(), |sink| {
                DeliveryQuery::of(sink, &query.kind)
            }))
            (filter("Kind", &query.kind, kinds, |kind| DeliveryQuery::of(&query.sink, kind)))
        }
    }
}

fn filter<'a>(
    name: &str,
    chosen: &str,
    values: impl Iterator<Item = &'a str>,
    query: impl Fn(&str) -> DeliveryQuery,
) -> Markup {
    html! {
        nav aria-label=(name) {
            span.dim aria-hidden="true" { (name) }
            ul {
                @for value in std::iter::once("").chain(values) {
                    li {
                        a id=(format!("{}-is-{value}", name.to_lowercase()))
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

fn table(page: &DeliveryPage, visitor: &Visitor) -> Markup {
    let columns = ["Event", "Operation", "Sink", "Why", "Buried", "Actions"];
    let shown = if visitor.may_operate { columns.len() } else { columns.len() - 1 };
    html! {
        table.cards role="table" {
            caption {
                "Latest first."
                @if visitor.may_operate {
                    " Requeue sends the event again, with the same id and new attempts. Discard \
                     removes it."
                } @else {
                    " Your token may read, but not change anything. An operator with the role "
                    code { "operate" } " can requeue and discard them."
                }
            }
            (head(&columns[..shown]))
            tbody role="rowgroup" {
                @for letter in &page.letters { (row(page, visitor, letter)) }
            }
        }
    }
}

fn row(page: &DeliveryPage, visitor: &Visitor, shown: &ShownDeadLetter) -> Markup {
    let letter = &shown.view;
    let operation = shown.operation.to_string();
    html! {
        tr role="row" {
            th scope="row" role="rowheader" {
                a.type id=(letter.id) href=(path(&letter.id)) { (event_type(letter)) }
            }
            td role="cell" data-label="Operation" {
                div {
                    a.ref id=(format!("of-{}", letter.id))
                        href=(format!("/operations/{operation}")) { (operation) }
                    @if let Some(view) = page.operations.get(&operation) { (fields(view)) }
                }
            }
            td role="cell" data-label="Sink" { (letter.sink) }
            td role="cell" data-label="Why" {
                div {
                    span.state { (letter.kind) }
                    span.detail { (result(&letter.attempts)) }
                }
            }
            td role="cell" data-label="Buried" {
                span { (moment_of(&letter.buried_at, page.now_ms)) }
            }
            @if visitor.may_operate {
                td.actions role="cell" data-label="Actions" { (actions(page, visitor, letter)) }
            }
        }
    }
}

fn actions(page: &DeliveryPage, visitor: &Visitor, letter: &DeadLetterView) -> Markup {
    let action = |name: &str| format!("{}/{name}", path(&letter.id));
    let id = |name: &str| format!("{name}-{}", letter.id);
    html! {
        div.buttons {
            form method="post" action=(action("requeue")) {
                (hidden(page, visitor))
                button.second.small id=(id("requeue")) type="submit" { "Requeue" }
            }
            details.inline {
                summary id=(id("discard")) { "Discard" }
                form method="post" action=(action("discard")) {
                    (hidden(page, visitor))
                    p.hint { "The event is removed, and never sent again." }
                    (reason_field(&id("discard-reason")))
                    button.small type="submit" { "Discard the event" }
                }
            }
        }
    }
}
