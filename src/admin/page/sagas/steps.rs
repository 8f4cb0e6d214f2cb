//! The steps of a saga as a table: all that the graph shows, and the references to copy.

use maud::{Markup, html};

use super::graph::{operation_path, row_id};
use super::words::{action_status, attempts, class, compensation_words, state};
use crate::admin::page::layout::moment_of;
use crate::admin::page::table::head;
use crate::admin::view::{SagaCompensationView, SagaStepSummaryView, SagaStepView, SagaView};

/// Renders the table.
pub(super) fn table(saga: &SagaView, now_ms: u64) -> Markup {
    html! {
        table.cards role="table" {
            caption { "In the order of the configuration, with the operation of each request." }
            (head(&["Step", "After", "Action", "Compensation"]))
            tbody role="rowgroup" {
                @for (at, step) in saga.steps.iter().enumerate() { (row(saga, step, at, now_ms)) }
            }
        }
    }
}

fn row(saga: &SagaView, step: &SagaStepView, at: usize, now_ms: u64) -> Markup {
    html! {
        tr role="row" id=(row_id(at)) {
            th scope="row" role="rowheader" {
                div {
                    strong { (step.name) }
                    @if step.pivot { " " span.state { "pivot" } }
                }
            }
            td role="cell" data-label="After" {
                span { @if step.after.is_empty() { "–" } @else { (step.after.join(", ")) } }
            }
            td role="cell" data-label="Action" { (action(step, at, now_ms)) }
            td role="cell" data-label="Undo" {
                @match &step.compensation {
                    Some(compensation) => { (undo(compensation, compensation_words(saga, step, compensation), at, now_ms)) }
                    None => { span.dim { "none" } }
                }
            }
        }
    }
}

fn action(step: &SagaStepView, at: usize, now_ms: u64) -> Markup {
    let time = step.ended_at.as_ref().or(step.began_at.as_ref());
    html! {
        div {
            span.standing { (state(action_status(step))) }
            (facts(step.attempts, time, now_ms))
            @if let Some(why) = &step.why { span.detail { (why) } }
            (link(step.operation.as_ref(), &format!("action-{at}")))
            (key(step.key.as_ref()))
        }
    }
}

fn undo(compensation: &SagaCompensationView, words: &str, at: usize, now_ms: u64) -> Markup {
    let SagaCompensationView { status, operation, began_at, ended_at, why, .. } = compensation;
    html! {
        div {
            span.standing {
                span class=(format!("state {}", class(status))) {
                    (words)
                }
            }
            (facts(compensation.attempts, ended_at.as_ref().or(began_at.as_ref()), now_ms))
            @if let Some(why) = why { span.detail { (why) } }
            (link(operation.as_ref(), &format!("undo-{at}")))
            (key(compensation.key.as_ref()))
        }
    }
}

fn facts(count: u32, time: Option<&String>, now_ms: u64) -> Markup {
    html! {
        @if let Some(time) = time {
            span.detail {
                (moment_of(time, now_ms)) @if count > 0 { ", " (attempts(count)) }
            }
        }
    }
}

fn link(operation: Option<&String>, id: &str) -> Markup {
    html! {
        @if let Some(operation) = operation {
            span.detail { a.ref id=(id) href=(operation_path(operation)) { (operation) } }
        }
    }
}

/// Renders the key with which the called system knows an operation.
fn key(key: Option<&String>) -> Markup {
    html! { @if let Some(key) = key { span.detail { "key " code { (key) } } } }
}

/// Renders what the record of an ended saga has kept of its steps.
pub(super) fn summary(steps: &[SagaStepSummaryView]) -> Markup {
    html! {
        ol.steps-summary {
            @for step in steps { li { strong { (step.name) } " " (state(&step.status)) } }
        }
    }
}
