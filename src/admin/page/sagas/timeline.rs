//! The timeline of a saga, from the log in its record.

use maud::{Markup, html};

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
    }
    entries.extend(saga.back_at.as_ref().map(|at| entry(at, "warn", &back(saga))));
    for step in &saga.steps {
        if let Some(compensation) = &step.compensation {
            of_compensation(step, compensation, &mut entries);
        }
    }
    entries.extend(saga.stuck_since.as_ref().map(|at| TimelineEntry {
        details: saga.stuck.iter().map(stuck_words).collect(),
        ..entry(at, "warn", "The saga is stuck")
    }));
    entries.extend(saga.decisions.iter().map(of_decision));
    entries.extend(end(saga));
    // Times in RFC 3339 with the same offset sort as text. Entries of one time keep the order in
    // which they are here, which is that of the causes.
    entries.sort_by_key(|entry| entry.at);
    entries
}

fn entry<'v>(at: &'v str, class: &'static str, what: &str) -> TimelineEntry<'v> {
    let what = what.to_owned();
    TimelineEntry { at, class, what, details: Vec::new(), quote: None }
}

fn of_action<'v>(step: &'v SagaStepView, entries: &mut Vec<TimelineEntry<'v>>) {
    let SagaStepView { name, began_at, ended_at, why, .. } = step;
    let status = action_status(step);
    if let Some(began) = began_at.as_ref().filter(|_| step.attempts > 0) {
        let details = still(status, step.attempts);
        entries.push(TimelineEntry { details, ..entry(began, "busy", &format!("{name} began")) });
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
    entries.push(TimelineEntry { details, ..entry(ended, class, &what) });
}

fn of_compensation<'v>(
    step: &'v SagaStepView,
    compensation: &'v SagaCompensationView,
    entries: &mut Vec<TimelineEntry<'v>>,
) {
    let SagaCompensationView { status, began_at, ended_at, why, .. } = compensation;
    let name = &step.name;
    if let Some(began) = began_at.as_ref().filter(|_| compensation.attempts > 0) {
        entries.push(TimelineEntry {
            details: still(status, compensation.attempts),
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
    entries.push(TimelineEntry { details, ..entry(ended, class, &what) });
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
        "compensation" => format!("{}, compensation – {}", stuck.step, stuck.reason),
        _ => format!("{} – {}", stuck.step, stuck.reason),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u32) -> String {
        format!("2026-11-25T03:07:{second:02}.000Z")
    }

    /// A saga that a step and then an operator made go back, and that is undone by hand.
    fn saga() -> SagaView {
        let undo = SagaCompensationView {
            status: "undone".into(),
            attempts: 2,
            began_at: Some(at(4)),
            ended_at: Some(at(9)),
            ..SagaCompensationView::default()
        };
        let reserve = SagaStepView {
            name: "reserve".into(),
            status: "undone".into(),
            attempts: 1,
            began_at: Some(at(0)),
            ended_at: Some(at(2)),
            compensation: Some(undo),
            ..SagaStepView::default()
        };
        let charge = SagaStepView {
            name: "charge".into(),
            status: "failed".into(),
            attempts: 3,
            began_at: Some(at(2)),
            ended_at: Some(at(4)),
            why: Some("refused with the status 422".into()),
            ..SagaStepView::default()
        };
        let gift = SagaStepView {
            name: "gift".into(),
            status: "skipped".into(),
            ended_at: Some(at(1)),
            ..SagaStepView::default()
        };
        SagaView {
            started_at: at(0),
            back: Some("step charge".into()),
            back_at: Some(at(4)),
            steps: vec![reserve, charge, gift],
            decisions: vec![SagaDecisionView {
                at: at(8),
                decision: "retry".into(),
                step: Some("reserve".into()),
                by: Some("<eve>".into()),
                reason: "it's <b>up</b>".into(),
            }],
            ..SagaView::default()
        }
    }

    #[test]
    fn the_timeline_has_causes_before_effects_even_at_the_same_moment() {
        let saga = saga();
        let what: Vec<String> = entries(&saga).into_iter().map(|entry| entry.what).collect();
        let expected = [
            "The saga began",
            "reserve began",
            "gift was skipped: its condition was false",
            "reserve is done",
            "charge began",
            "charge failed",
            "The saga goes back: charge failed",
            "The compensation of reserve began",
            "<eve> retried reserve",
            "reserve is undone",
        ];
        assert_eq!(what, expected);
    }

    #[test]
    fn the_words_of_operators_are_text_and_attempts_are_counted() {
        let text = timeline(&saga(), 1_795_575_600_000).into_string();
        assert!(text.contains("&lt;eve&gt; retried") && text.contains("&lt;b&gt;up"), "{text}");
        assert!(text.contains("refused with the status 422 · 3 attempts, took 2.0 s"), "{text}");
    }

    #[test]
    fn the_end_of_a_saga_is_the_last_entry() {
        let (outcome, answer_status) = (Some("failed".to_owned()), Some(409));
        let ended = SagaView { outcome, answer_status, changed_at: at(20), ..saga() };
        let entries = entries(&ended);
        let last = entries.last().unwrap();
        assert_eq!(last.what, "The saga failed: what was done is undone");
        assert_eq!(last.details, ["clients get the status 409"]);
    }
}
