//! The words and classes of states of sagas, actions and compensations.

use maud::{Markup, html};

use crate::admin::view::{SagaCompensationView, SagaStepView, SagaView};

/// Returns the CSS class of a state: how urgent it looks. A word is always beside it.
pub(super) fn class(status: &str) -> &'static str {
    match status {
        "done" | "completed" => "good",
        "running" | "retrying" | "undoing" => "busy",
        "uncertain" | "stuck" | "compensating" => "warn",
        "failed" | "refused" => "bad",
        _ => "quiet",
    }
}

/// Renders the status of a saga or of a step as a coloured word.
pub(in crate::admin::page) fn state(status: &str) -> Markup {
    html! { span class=(format!("state {}", class(status))) { (status) } }
}

/// Returns the status of an action, whatever became of its compensation.
pub(super) fn action_status(step: &SagaStepView) -> &str {
    // Only an action that is done is undone.
    match &step.compensation {
        Some(compensation) if compensation.status != "pending" => "done",
        _ => &step.status,
    }
}

/// Returns the state of a compensation as a text.
pub(super) fn compensation_words(
    saga: &SagaView,
    step: &SagaStepView,
    compensation: &SagaCompensationView,
) -> &'static str {
    match compensation.status.as_str() {
        "undoing" => "being undone",
        "uncertain" => "undo uncertain",
        "undone" => "undone",
        "refused" => "undo refused",
        _ if matches!(action_status(step), "failed" | "skipped" | "barred") => "nothing to undo",
        _ if saga.back.is_some() && action_status(step) == "pending" => "nothing to undo",
        _ if saga.back.is_some() => "waits to be undone",
        _ if is_past_pivot(saga) => "stays done",
        _ => "can be undone",
    }
}

/// Returns whether the saga can only be completed.
fn is_past_pivot(saga: &SagaView) -> bool {
    let mut pivots = saga.steps.iter().filter(|step| step.pivot);
    pivots.any(|pivot| matches!(action_status(pivot), "done" | "skipped"))
}

/// Returns the number of attempts as a text.
pub(super) fn attempts(count: u32) -> String {
    match count {
        1 => "1 attempt".to_owned(),
        count => format!("{count} attempts"),
    }
}

/// Returns the time between two times in RFC 3339, in ms.
pub(super) fn ms_between(began: &str, ended: &str) -> Option<u64> {
    let parse = |text| humantime::parse_rfc3339(text).ok();
    let span = parse(ended)?.duration_since(parse(began)?).ok()?;
    u64::try_from(span.as_millis()).ok()
}
