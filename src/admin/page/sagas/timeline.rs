//! The timeline of a saga, from the log in its record.

use maud::{Markup, html};

use super::graph::operation_path;
use super::words::{action_status, attempts, ms_between};
use crate::admin::page::layout::{moment_of, span};
use crate::admin::view::{
    SagaCompensationView, SagaDecisionView, SagaStepView, SagaView, StuckStepView,
};

/// An entry of the timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
struct TimelineEntry<'v> {
    /// The time (RFC 3339).
    at: &'v str,
    class: &'static str,
    what: String,
    details: Vec<String>,
    /// The words of an operator.
    quote: Option<&'v str>,
    operation: Option<&'v str>,
}

/// Renders the timeline.
pub(super) fn timeline(saga: &SagaView, now_ms: u64) -> Markup {
    html! {
        ol.timeline {
            @for entry in entries(saga) {
                li class=[(!entry.class.is_empty()).then_some(entry.class)] {
                    span.what { (entry.what) }
                    span.when { (moment_of(entry.at, now_ms)) }
                    @if !entry.details.is_empty() { p.dim { (entry.details.join(" · ")) } }
                    @if let Some(quote) = entry.quote { p { "“" (quote) "”" } }
                    @if let Some(operation) = entry.operation {
                        p { a.ref.short href=(operation_path(operation)) { (operation) } }
                    }
                }
            }
        }
    }
}

/// Returns the entries, the oldest first.
fn entries(saga: &SagaView) -> Vec<TimelineEntry<'_>> {
    let mut entries = vec![entry(&saga.started_at, "busy", "The saga began")];
    for step in &saga.steps {
        of_action(step, &mut entries);
        if let Some(compensation) = &step.compensation {
            of_compensation(step, compensation, &mut entries);
        }
    }
    entries.extend(saga.back_at.as_ref().map(|at| entry(at, "warn", &back(saga))));
    entries.extend(saga.stuck_since.as_ref().map(|at| TimelineEntry {
        details: saga.stuck.iter().map(stuck_words).collect(),
        ..entry(at, "warn", "The saga is stuck")
    }));
    entries.extend(saga.decisions.iter().map(of_decision));
    entries.extend(end(saga));
    // Times in RFC 3339 with the same offset sort as text. Entries of one time keep their order.
    entries.sort_by_key(|entry| entry.at);
    entries
}

fn entry<'v>(at: &'v str, class: &'static str, what: &str) -> TimelineEntry<'v> {
    let what = what.to_owned();
    TimelineEntry { at, class, what, details: Vec::new(), quote: None, operation: None }
}

fn of_action<'v>(step: &'v SagaStepView, entries: &mut Vec<TimelineEntry<'v>>) {
    let SagaStepView { name, began_at, ended_at, operation, why, .. } = step;
    let status = action_status(step);
    let operation = operation.as_deref();
    if let Some(began) = began_at.as_ref().filter(|_| step.attempts > 0) {
        let details = still(status, step.attempts);
        entries.push(TimelineEntry {
            details,
            operation: operation.filter(|_| ended_at.is_none()),
            ..entry(began, "busy", &format!("{name} began"))
        });
    }
    let Some(ended) = ended_at else { return };
    let (class, what) = match status {
        "done" => ("good", format!("{name} is done")),
        "failed" => ("bad", format!("{name} failed")),
        "skipped" => ("", format!("{name} was skipped: its condition was false")),
        "barred" => ("", format!("{name} is barred: it was not executed, and never will be")),
        other => ("", format!("{name} is {other}")),
    };
    let mut details: Vec<String> = why.iter().cloned().collect();
    details.extend(effort(step.attempts, began_at.as_ref(), ended));
    entries.push(TimelineEntry { details, operation, ..entry(ended, class, &what) });
}

fn of_compensation<'v>(
    step: &'v SagaStepView,
    compensation: &'v SagaCompensationView,
    entries: &mut Vec<TimelineEntry<'v>>,
) {
    let SagaCompensationView { status, operation, began_at, ended_at, why, .. } = compensation;
    let (name, operation) = (&step.name, operation.as_deref());
    if let Some(began) = began_at.as_ref().filter(|_| compensation.attempts > 0) {
        entries.push(TimelineEntry {
            details: still(status, compensation.attempts),
            operation: operation.filter(|_| ended_at.is_none()),
            ..entry(began, "busy", &format!("The compensation of {name} began"))
        });
    }
    let Some(ended) = ended_at else { return };
    let (class, what) = match status.as_str() {
        "refused" => ("bad", format!("The compensation of {name} was refused")),
        _ => ("", format!("{name} is undone")),
    };
    let mut details: Vec<String> = why.iter().cloned().collect();
    details.extend(effort(compensation.attempts, began_at.as_ref(), ended));
    entries.push(TimelineEntry { details, operation, ..entry(ended, class, &what) });
}

/// Returns the details of an operation that has not ended.
fn still(status: &str, count: u32) -> Vec<String> {
    match status {
        "running" | "undoing" | "retrying" | "uncertain" => {
            vec![format!("now {status}"), format!("{} so far", attempts(count))]
        }
        _ => Vec::new(),
    }
}

fn effort(count: u32, began: Option<&String>, ended: &str) -> Option<String> {
    let took = began.and_then(|began| ms_between(began, ended));
    let took = took.filter(|_| count > 0).map(|ms| format!(", took {}", span(ms)));
    (count > 0).then(|| format!("{}{}", attempts(count), took.unwrap_or_default()))
}

fn back(saga: &SagaView) -> String {
    let why = match saga.back.as_deref().unwrap_or_default() {
        "timeout" => "it took too long".to_owned(),
        "cancel" => "an operator cancelled it".to_owned(),
        step => format!("{} failed", step.strip_prefix("step ").unwrap_or(step)),
    };
    format!("The saga goes back: {why}")
}

/// Returns why a step stops its saga.
pub(in crate::admin::page) fn stuck_words(stuck: &StuckStepView) -> String {
    match stuck.direction.as_str() {
        "compensation" => format!("compensation of {}: {}", stuck.step, stuck.reason),
        _ => format!("{}: {}", stuck.step, stuck.reason),
    }
}

fn of_decision(decision: &SagaDecisionView) -> TimelineEntry<'_> {
    let by = decision.by.as_deref().unwrap_or("An operator");
    let step = decision.step.as_deref();
    let what = match (decision.decision.as_str(), step) {
        ("retry", Some(step)) => format!("{by} retried {step}"),
        ("retry", None) => format!("{by} retried all stuck steps"),
        ("skip", step) => format!("{by} did {} by hand", step.unwrap_or("a step")),
        ("cancel", _) => format!("{by} cancelled the saga"),
        (other, _) => format!("{by}: {other}"),
    };
    TimelineEntry { quote: Some(&decision.reason), ..entry(&decision.at, "", &what) }
}

fn end(saga: &SagaView) -> Option<TimelineEntry<'_>> {
    let status = saga.answer_status?;
    let (class, what) = match saga.outcome.as_deref() {
        Some("completed") => ("good", "The saga is completed"),
        Some("failed") => ("bad", "The saga failed: what was done is undone"),
        _ => ("", "The saga ended"),
    };
    let details = vec![format!("clients get the status {status}")];
    Some(TimelineEntry { details, ..entry(&saga.changed_at, class, what) })
}
