//! Operations as a table. On a narrow screen, it looks like a list of cards. The roles make screen
//! readers treat it as a table in both cases.

use maud::{Markup, html};

use super::layout::{moment_of, number, state};
use crate::admin::view::OperationView;

/// Renders a table of operations.
pub(super) fn operations(caption: &str, operations: &[OperationView], now_unix_ms: u64) -> Markup {
    html! {
        table.cards role="table" {
            caption { (caption) }
            (head(&["Operation", "State", "Route", "Opened", "Duplicates"]))
            tbody role="rowgroup" {
                @for operation in operations {
                    tr role="row" {
                        (first(operation))
                        td role="cell" data-label="State" {
                            span.standing {
                                (state(&operation.state))
                                @if let Some(status) = operation.status { " " (status) }
                            }
                        }
                        td role="cell" data-label="Route" { (operation.route) }
                        td role="cell" data-label="Opened" {
                            span { (moment_of(&operation.opened_at, now_unix_ms)) }
                        }
                        td role="cell" data-label="Duplicates" {
                            (operation.duplicates.map_or("–".to_owned(), number))
                        }
                    }
                }
            }
        }
    }
}

/// Renders the names of the columns.
pub(super) fn head(names: &[&str]) -> Markup {
    html! {
        thead role="rowgroup" {
            tr role="row" { @for name in names { th scope="col" role="columnheader" { (name) } } }
        }
    }
}

/// Renders the first cell of a row: the reference, and the chosen fields, by which people recognize
/// the operation.
pub(super) fn first(operation: &OperationView) -> Markup {
    html! {
        th scope="row" role="rowheader" {
            div {
                a.ref id=(operation.operation)
                    href=(format!("/operations/{}", operation.operation)) {
                    (operation.operation)
                }
                (fields(operation))
                @if let Some(cause) = &operation.cause { span.detail { (cause) } }
            }
        }
    }
}

/// Renders the chosen fields.
pub(super) fn fields(operation: &OperationView) -> Markup {
    html! {
        @if !operation.fields.is_empty() {
            dl.fields {
                @for (name, value) in &operation.fields { div { dt { (name) } dd { (value) } } }
            }
        }
    }
}
