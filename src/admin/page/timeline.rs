//! The timeline of an operation.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::layout::{behind, moment_of, number, span};
use crate::admin::problem::AdminRefusal;
use crate::admin::view::{MomentView, SagaChangeView, TimelineView};

/// Renders the timeline, or the reason why it is missing.
pub(super) fn section(
    timeline: &Result<Option<TimelineView>, AdminRefusal>,
    now_unix_ms: u64,
) -> Markup {
    html! {
        section.panel aria-labelledby="timeline" {
            div.head {
                h2 #timeline { "Timeline" }
                @if let Ok(Some(timeline)) = timeline { (behind(timeline.lag_ms)) }
            }
            @match timeline {
                Ok(Some(timeline)) => { (differences(timeline)) (moments(timeline, now_unix_ms)) }
                Ok(None) => { p.dim { "The event log has no entry of it: the operation is older \
                                       than the log, or a moment too new." } }
                Err(AdminRefusal::ReadModelOff) => {
                    p.dim {
                        "No history is recorded. With " code { "[log] enabled = true" }
                        " every change of an operation is recorded, with who decided and why."
                    }
                }
                Err(other) => { p.dim { (other.to_string()) "." } }
            }
        }
    }
}

/// Renders the places in which refused duplicates differed from the first request. It never shows
/// values.
fn differences(timeline: &TimelineView) -> Markup {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for moment in &timeline.moments {
        for difference in &moment.differing {
            *counts.entry(&difference.pointer).or_default() += requests(moment);
        }
    }
    html! {
        @if !counts.is_empty() {
            div.notice {
                "Duplicates were refused because they differed from the first request, in "
                ul.pointers {
                    @for (pointer, count) in &counts {
                        li { code { (pointer) } @if *count > 1 { " in " (number(*count)) } }
                    }
                }
            }
        }
    }
}

fn moments(timeline: &TimelineView, now_unix_ms: u64) -> Markup {
    html! {
        ol.timeline {
            @for run in timeline.moments.chunk_by(is_same) { (entry(run, now_unix_ms)) }
        }
        @if timeline.cut {
            p.dim {
                "The timeline is incomplete: the first changes or the last duplicates are left out."
            }
        }
    }
}

/// Returns whether two consecutive duplicates were answered the same way, or whether a saga changed
/// its owner twice.
fn is_same(one: &MomentView, next: &MomentView) -> bool {
    let is_handover = |moment: &MomentView| {
        moment.kind == "saga" && moment.saga.is_none() && moment.operator.is_none()
    };
    if is_handover(one) && is_handover(next) {
        return true;
    }
    let answer = |moment: &MomentView| {
        (moment.kind.clone(), moment.status, moment.problem.clone(), moment.differing.clone())
    };
    one.version.is_none() && next.version.is_none() && answer(one) == answer(next)
}

fn entry(run: &[MomentView], now_unix_ms: u64) -> Markup {
    // The batches of several gateways may overlap, so the last batch need not have the latest end.
    // Times in RFC 3339 with the same offset sort as text.
    let ends = run.iter().map(|moment| moment.until.as_ref().unwrap_or(&moment.at));
    let Some((first, last)) = run.first().zip(ends.max()) else { return html! {} };
    let (class, text) = described(first);
    let count: u64 = run.iter().map(requests).sum();
    html! {
        li class=[(!class.is_empty()).then_some(class)] {
            span.what { (text) @if count > 1 { ", " (number(count)) " times" } }
            span.when {
                (moment_of(&first.at, now_unix_ms))
                @if count > 1 { " to " (moment_of(last, now_unix_ms)) }
            }
            (details(first))
        }
    }
}

/// Returns how many requests an event describes.
fn requests(moment: &MomentView) -> u64 {
    moment.times.unwrap_or(1)
}

/// Returns the CSS class and the text of an event.
fn described(moment: &MomentView) -> (&'static str, String) {
    let status = moment.status.map(|status| format!(" {status}")).unwrap_or_default();
    let by = moment.operator.as_deref().unwrap_or("an operator");
    if let Some(saga) = &moment.saga {
        return of_saga(saga, &status);
    }
    match moment.kind.as_str() {
        "claimed" => ("busy", "An attempt began".to_owned()),
        "completed" => ("good", format!("The upstream answered{status}: that is the result")),
        "uncertain" => ("warn", "The outcome became uncertain".to_owned()),
        "released" if moment.operator.is_some() => {
            ("", format!("Released by {by}: the key is free"))
        }
        "released" => ("", "Released: nothing was executed".to_owned()),
        "resolved" => ("good", format!("Resolved by {by}: duplicates get{status}")),
        "found" => ("good", format!("Found at the upstream: duplicates get{status}")),
        "retried" => ("busy", format!("{by} lets the next duplicate run")),
        "expired" => ("", format!("The result was expired by {by}")),
        "saga" if moment.operator.is_some() => ("busy", format!("{by} decided about the saga")),
        "saga" => ("busy", "A gateway took the saga over, or gave it back".to_owned()),
        "barred" => ("", "Barred: the saga of this step has gone back".to_owned()),
        "replayed" => ("seen", format!("A duplicate got the stored response{status}")),
        "waited" => ("seen", format!("A duplicate waited, and got the stored response{status}")),
        "refused" => ("seen", format!("A duplicate was refused{status}")),
        other => ("seen", format!("{other}{status}")),
    }
}

/// Returns the CSS class and the text of a change of a saga.
fn of_saga(saga: &SagaChangeView, status: &str) -> (&'static str, String) {
    // The last event of a change decides how the saga stands after it.
    match saga.events.last().map(String::as_str) {
        Some("saga.started") => ("busy", "The saga began".to_owned()),
        Some("saga.stuck") => ("warn", "The saga is stuck".to_owned()),
        Some("saga.resumed") => ("busy", "The saga is not stuck any more".to_owned()),
        Some("saga.completed") => ("good", format!("The saga is completed: the result is{status}")),
        Some("saga.failed") => {
            ("warn", format!("The saga failed, and all is undone: the result is{status}"))
        }
        _ if saga.status == "compensating" => ("busy", "The saga goes back".to_owned()),
        _ => ("busy", "The saga went on".to_owned()),
    }
}

fn details(moment: &MomentView) -> Markup {
    let mut words: Vec<String> = Vec::new();
    words.extend(moment.saga.as_ref().map(SagaChangeView::in_words).filter(|it| !it.is_empty()));
    let decided_by = moment.operator.as_ref().filter(|_| moment.saga.is_some());
    words.extend(decided_by.map(|by| format!("decided by {by}")));
    words.extend(moment.cause.clone());
    words.extend(moment.problem.clone());
    words.extend(moment.overwrote.as_ref().map(|tag| format!("overwrote the version {tag}")));
    words.extend(moment.upstream_ms.map(|ms| format!("took {}", span(ms))));
    words.extend(moment.waited_ms.map(|ms| format!("waited {}", span(ms))));
    words.extend(moment.response_bytes.map(|bytes| format!("{} bytes", number(bytes))));
    words.extend(moment.trace.as_ref().map(|trace| format!("trace {trace}")));
    html! {
        @if !words.is_empty() { p.dim { (words.join(" · ")) } }
        @if let Some(reason) = &moment.reason { p { "“" (reason) "”" } }
        @if !moment.differing.is_empty() {
            div.places {
                "differed in "
                ul.pointers {
                    @for difference in &moment.differing { li { code { (difference.pointer) } } }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::view::{DifferenceView, OperationView};

    fn seen(kind: &str, pointer: Option<&str>) -> MomentView {
        let differing = pointer
            .into_iter()
            .map(|pointer| DifferenceView { pointer: pointer.to_owned() })
            .collect();
        MomentView {
            at: "2026-11-25T03:07:00.000Z".into(),
            kind: kind.into(),
            differing,
            ..MomentView::default()
        }
    }

    fn shown(moments: Vec<MomentView>) -> String {
        let timeline = TimelineView {
            operation: OperationView::default(),
            moments,
            cut: false,
            lag_ms: Some(100),
        };
        section(&Ok(Some(timeline)), 1_795_575_600_000).into_string()
    }

    #[test]
    fn a_storm_of_retries_is_one_line_and_changes_are_never_joined() {
        let claim = MomentView { version: Some("1".into()), ..seen("claimed", None) };
        let again = MomentView { version: Some("2".into()), ..claim.clone() };
        let text = shown(vec![
            claim,
            again,
            seen("replayed", None),
            seen("replayed", None),
            seen("refused", Some("/amount")),
        ]);
        assert_eq!(text.matches("An attempt began").count(), 2, "{text}");
        assert!(text.contains("got the stored response, 2 times"), "{text}");
        assert_eq!(
            text.matches("<code>/amount</code>").count(),
            2,
            "once above, once in its place: {text}"
        );
    }

    #[test]
    fn the_handovers_of_a_saga_are_one_line_and_a_decision_about_it_is_not() {
        let handover =
            |version: &str| MomentView { version: Some(version.into()), ..seen("saga", None) };
        let decided = MomentView {
            operator: Some("ann".into()),
            reason: Some("ticket".into()),
            ..handover("3")
        };
        let text = shown(vec![handover("1"), handover("2"), decided, handover("4")]);
        assert!(text.contains("or gave it back, 2 times"), "{text}");
        assert_eq!(text.matches("A gateway took the saga over").count(), 2, "{text}");
        assert!(text.contains("ann decided about the saga") && text.contains("ticket"), "{text}");
    }

    #[test]
    fn duplicates_that_were_noted_as_one_are_counted_and_end_with_the_last() {
        let many = |times: u64, until: &str| MomentView {
            times: Some(times),
            until: Some(until.into()),
            ..seen("refused", Some("/amount"))
        };
        let text =
            shown(vec![many(40, "2026-11-25T03:07:01.000Z"), many(2, "2026-11-25T03:09:00.000Z")]);
        assert!(
            text.contains("refused, 42 times") && text.contains("<code>/amount</code> in 42"),
            "{text}"
        );
        assert!(text.contains("03:09"), "{text}");
        let text =
            shown(vec![many(2, "2026-11-25T03:09:00.000Z"), many(2, "2026-11-25T03:08:00.000Z")]);
        assert!(
            text.contains("03:09") && !text.contains("03:08"),
            "those of two gateways overlap: {text}"
        );
    }

    #[test]
    fn what_an_operator_wrote_is_text() {
        let decided = MomentView {
            reason: Some("<b>ticket</b>".into()),
            operator: Some("<i>".into()),
            ..seen("resolved", None)
        };
        let text = shown(vec![decided]);
        for kind in ["released", "retried", "expired"] {
            let text = shown(vec![MomentView {
                operator: Some("ann".into()),
                reason: Some("r".into()),
                ..seen(kind, None)
            }]);
            assert!(text.contains("ann"), "who decided: {text}");
        }
        assert!(
            shown(vec![seen("released", None)]).contains("Released: nothing was executed"),
            "nobody decided that"
        );
        assert!(
            text.contains("&lt;b&gt;ticket") && text.contains("Resolved by &lt;i&gt;"),
            "{text}"
        );
    }
}
