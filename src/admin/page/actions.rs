//! What an operator can do about an operation, each with what it does: asked of the rules themselves, so that the page offers
//! nothing that would be refused.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use maud::{Markup, html};

use super::layout::proof;
use super::visitor::Visitor;
use crate::engine::{Decision, DecisionDenied, Policy, decide};
use crate::event::REASON_BYTES_MAX;
use crate::record::{Fence, Held, Reply, ReplyBody, State};

/// A decision that a page can send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Resolve,
    Retry,
    Release,
    Expire,
}

/// What was typed into a form that was not taken, so that nobody types it twice.
#[derive(Debug, Default)]
pub(super) struct Typed {
    pub status: String,
    pub media_type: String,
    pub body: String,
    pub reason: String,
}

impl Action {
    pub(super) const ALL: [Action; 4] =
        [Action::Resolve, Action::Retry, Action::Release, Action::Expire];

    /// Its segment of the path.
    pub(super) fn segment(self) -> &'static str {
        match self {
            Action::Resolve => "resolve",
            Action::Retry => "retry",
            Action::Release => "release",
            Action::Expire => "expire",
        }
    }

    pub(super) fn parse(segment: &str) -> Option<Action> {
        Action::ALL.into_iter().find(|action| action.segment() == segment)
    }

    pub(super) fn title(self) -> &'static str {
        match self {
            Action::Resolve => "Resolve",
            Action::Retry => "Let the next duplicate run",
            Action::Release => "Release the key",
            Action::Expire => "Expire the result",
        }
    }

    /// What was done, once it was.
    pub(super) fn done(self) -> &'static str {
        match self {
            Action::Resolve => "Resolved: duplicates now get the answer that you stated.",
            Action::Retry => "Decided: the next duplicate runs, and nothing else does.",
            Action::Release => "Released: the key is free, and the next request under it runs.",
            Action::Expire => "Expired: the result is gone, and its duplicates are refused.",
        }
    }

    fn explained(self) -> &'static str {
        match self {
            Action::Resolve => {
                "You looked it up: it was executed. Nothing is sent; duplicates get the answer that you state here, for as long as a result is kept."
            }
            Action::Retry => {
                "You looked it up: it was not executed. The same request by the same caller is sent when it comes again; any other is refused."
            }
            Action::Release => {
                "You looked it up: it was not executed, and this request is not wanted any more. The key is free for any request."
            }
            Action::Expire => {
                "The stored answer is thrown away before its time. Duplicates get 409 and never run until the key would have been new again."
            }
        }
    }

    fn decision(self) -> Decision {
        match self {
            Action::Resolve => Decision::Resolve(Arc::new(Reply {
                status: StatusCode::OK,
                headers: HeaderMap::new(),
                body: ReplyBody::Whole(Bytes::new()),
                trailers: None,
            })),
            Action::Retry => Decision::Retry,
            Action::Release => Decision::Release,
            Action::Expire => Decision::Expire,
        }
    }
}

/// What can be done now, and what once some time is over. The rest is not for an operation in this state.
pub(super) fn possible(held: &Held, policy: &Policy) -> Vec<(Action, Option<Duration>)> {
    let judge = |action: Action| match decide(held, action.decision(), Fence(0), policy) {
        Ok(_) => Some((action, None)),
        Err(DecisionDenied::TooEarly { wait }) => Some((action, Some(wait))),
        Err(
            DecisionDenied::InFlight | DecisionDenied::Settled(_) | DecisionDenied::NoResult(_),
        ) => None,
    };
    // What is decided already is no choice.
    let open = |action: &Action| *action != Action::Retry || !is_let_run(held);
    Action::ALL.into_iter().filter(open).filter_map(judge).collect()
}

/// Whether somebody has decided that the next duplicate runs, and none has come yet.
fn is_let_run(held: &Held) -> bool {
    matches!(held.record.state, State::Uncertain { retry: Some(_), .. })
}

/// What can be done, in a few words.
pub(super) fn in_words(held: &Held, policy: &Policy) -> String {
    let possible = possible(held, policy);
    let wait = possible.iter().find_map(|(_, wait)| *wait);
    let all = || possible.iter().map(|(action, _)| action.segment()).collect::<Vec<_>>().join(", ");
    match wait {
        _ if is_let_run(held) => format!("decided: the next duplicate runs; until then {}", all()),
        Some(wait) => format!("resolve now; retry or release in {} s", wait.as_secs() + 1),
        None => all(),
    }
}

/// The forms. `tried` is one that was not taken.
pub(super) fn forms(
    visitor: &Visitor,
    reference: &str,
    held: &Held,
    policy: &Policy,
    tried: Option<(Action, &Typed)>,
) -> Markup {
    let possible = possible(held, policy);
    html! {
        section.panel aria-labelledby="actions" {
            h2 #actions { "What you can do" }
            @if possible.is_empty() {
                p.dim { (nothing(held)) }
            } @else if !visitor.may_operate {
                p.dim { "Your token may look, not change anything. Somebody with the role " code { "operate" } " can: " (in_words(held, policy)) "." }
            } @else {
                @if is_let_run(held) {
                    p { "It was decided that the next duplicate runs. Until one comes, that can be changed." }
                } @else if matches!(held.record.state, State::Uncertain { .. }) {
                    p { "Look the payment up at the upstream first. Whoever can't tell what happened leaves it as it is: held is safe, nothing runs." }
                }
                @for (action, wait) in &possible {
                    (form(visitor, reference, held, *action, *wait, tried.and_then(|(of, typed)| (of == *action).then_some(typed))))
                }
            }
        }
    }
}

fn nothing(held: &Held) -> &'static str {
    match held.record.state {
        State::InFlight { .. } => {
            "Nothing, while it is in flight: it settles by itself, or becomes uncertain when its lease ends."
        }
        State::Released => {
            "Nothing is owed: the attempt did nothing, and the next request under this key runs."
        }
        _ => "Nothing: its result is gone, and its duplicates are refused.",
    }
}

fn form(
    visitor: &Visitor,
    reference: &str,
    held: &Held,
    action: Action,
    wait: Option<Duration>,
    typed: Option<&Typed>,
) -> Markup {
    let id = action.segment();
    let reason = format!("{id}-reason");
    html! {
        details.action.barred[wait.is_some()] open[typed.is_some()] {
            summary {
                strong { (action.title()) }
                @if let Some(wait) = wait { span.state { "in " (wait.as_secs() + 1) " s" } }
                span.dim { (action.explained()) }
            }
            @if let Some(wait) = wait {
                p.hint {
                    "Possible in " (wait.as_secs() + 1) " s: until then the lost request may still sit in a queue, and would run beside the new one. "
                    "A look-up made before then proves nothing either."
                }
            } @else {
                form method="post" action=(format!("/operations/{reference}/{id}")) {
                    (proof(visitor))
                    input type="hidden" name="version" value=(held.record.version.0);
                    @if action == Action::Resolve { (answer(typed)) }
                    div.field {
                        label for=(reason) { "Reason" }
                        input id=(reason) name="reason" required maxlength=(REASON_BYTES_MAX) autocomplete="off"
                            value=(typed.map_or("", |typed| &typed.reason)) aria-describedby=(format!("{reason}-hint"));
                        p.hint id=(format!("{reason}-hint")) { "Where you saw it, or the ticket. It is kept with your name in the event log." }
                    }
                    button type="submit" { (action.title()) }
                }
            }
        }
    }
}

/// The answer that duplicates are to get.
fn answer(typed: Option<&Typed>) -> Markup {
    let typed = |pick: fn(&Typed) -> &String, usual: &'static str| {
        typed.map_or(usual.to_owned(), |typed| pick(typed).clone())
    };
    html! {
        div.row {
            div.field {
                label for="resolve-status" { "Status that duplicates get" }
                input #resolve-status name="status" type="number" inputmode="numeric" min="200" max="599" required
                    value=(typed(|typed| &typed.status, ""));
            }
            div.field {
                label for="resolve-type" { "Media type" }
                input #resolve-type name="media_type" autocomplete="off" value=(typed(|typed| &typed.media_type, "application/json"));
            }
        }
        div.field {
            label for="resolve-body" { "Body that duplicates get" }
            textarea #resolve-body name="body" rows="5" spellcheck="false" { (typed(|typed| &typed.body, "")) }
        }
    }
}
