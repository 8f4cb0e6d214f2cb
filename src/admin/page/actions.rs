//! The decisions that an operator can make about an operation, each with its effect. The page
//! offers only decisions that the rules of the engine allow in the operation's state.

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

/// A decision that a form of the page can send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Resolve,
    Retry,
    Release,
    Expire,
}

/// The values of a refused form, so that the operator need not enter them again.
#[derive(Debug, Default)]
pub(super) struct EnteredForm {
    pub status: String,
    pub media_type: String,
    pub body: String,
    pub reason: String,
}

impl Action {
    pub(super) const ALL: [Action; 4] =
        [Action::Resolve, Action::Retry, Action::Release, Action::Expire];

    /// Returns the action's segment of the path.
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

    /// Returns the text that is shown after the action was applied.
    pub(super) fn done(self) -> &'static str {
        match self {
            Action::Resolve => "Resolved: duplicates now get the response that you entered.",
            Action::Retry => "Decided: only the next duplicate runs.",
            Action::Release => "Released: the key is free, and the next request under it runs.",
            Action::Expire => "Expired: the result is gone, and its duplicates are refused.",
        }
    }

    fn explanation(self) -> &'static str {
        match self {
            Action::Resolve => {
                "Use it if you found that the operation was executed. Nothing is sent; duplicates \
                 get the response that you enter here until its retention ends."
            }
            Action::Retry => {
                "Use it if you found that the operation was not executed. The same request by the \
                 same caller is sent when it comes again; any other is refused."
            }
            Action::Release => {
                "Use it if you found that the operation was not executed and the request is no \
                 longer wanted. The key is free for any request."
            }
            Action::Expire => {
                "Deletes the stored response before the end of its retention. Duplicates get 409 \
                 and never run until the key would have been new again."
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

/// Returns the actions for the operation's state, each with the time until it is possible. `None`
/// means that it is possible now.
pub(super) fn possible(held: &Held, policy: &Policy) -> Vec<(Action, Option<Duration>)> {
    let judge = |action: Action| match decide(held, action.decision(), Fence(0), policy) {
        Ok(_) => Some((action, None)),
        Err(DecisionDenied::TooEarly { wait }) => Some((action, Some(wait))),
        Err(
            DecisionDenied::InFlight
            | DecisionDenied::Saga
            | DecisionDenied::Settled(_)
            | DecisionDenied::NoResult(_),
        ) => None,
    };
    // After an operator has decided on a retry, the page does not offer it again.
    let open = |action: &Action| *action != Action::Retry || !is_let_run(held);
    Action::ALL.into_iter().filter(open).filter_map(judge).collect()
}

/// Returns whether an operator has decided that the next duplicate runs, and no duplicate has
/// arrived since.
fn is_let_run(held: &Held) -> bool {
    matches!(held.record.state, State::Uncertain { retry: Some(_), .. })
}

/// Returns the possible actions as a short text.
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

/// Returns the forms of all possible actions. `tried` is a form that was refused.
pub(super) fn forms(
    visitor: &Visitor,
    reference: &str,
    held: &Held,
    policy: &Policy,
    tried: Option<(Action, &EnteredForm)>,
) -> Markup {
    let possible = possible(held, policy);
    html! {
        section.panel aria-labelledby="actions" {
            h2 #actions { "What you can do" }
            @if possible.is_empty() {
                p.dim { (nothing(held)) }
            } @else if !visitor.may_operate {
                p.dim {
                    "Your token may read, but not change anything. An operator with the role "
                    code { "operate" } " can: " (in_words(held, policy)) "."
                }
            } @else {
                @if is_let_run(held) {
                    p {
                        "An operator has decided that the next duplicate runs. Until it comes, the \
                         decision can be changed."
                    }
                } @else if matches!(held.record.state, State::Uncertain { .. }) {
                    p {
                        "First look up the payment at the upstream. If you can't find out what \
                         happened, leave the operation as it is: nothing runs while it is held."
                    }
                }
                @for (action, wait) in &possible {
                    @let typed = tried.and_then(|(of, typed)| (of == *action).then_some(typed));
                    (form(visitor, reference, held, *action, *wait, typed))
                }
            }
        }
    }
}

fn nothing(held: &Held) -> &'static str {
    match held.record.state {
        State::InFlight { .. } => {
            "Nothing while the operation is in flight: it settles by itself, or becomes uncertain \
             when its lease ends."
        }
        State::Released => {
            "Nothing: the attempt was not executed, and the next request under this key runs."
        }
        State::Saga { .. } => {
            "Nothing here: decide on the page of the saga, which is linked above."
        }
        State::Barred => "Nothing: the saga of this step has gone back, and the step may not run.",
        _ => "Nothing: the result is gone, and duplicates are refused.",
    }
}

fn form(
    visitor: &Visitor,
    reference: &str,
    held: &Held,
    action: Action,
    wait: Option<Duration>,
    typed: Option<&EnteredForm>,
) -> Markup {
    let id = action.segment();
    let reason = format!("{id}-reason");
    html! {
        details.action.barred[wait.is_some()] open[typed.is_some()] {
            summary {
                strong { (action.title()) }
                @if let Some(wait) = wait { span.state { "in " (wait.as_secs() + 1) " s" } }
                span.dim { (action.explanation()) }
            }
            @if let Some(wait) = wait {
                p.hint {
                    "Possible in " (wait.as_secs() + 1)
                    " s. Until then the lost request may still wait in a queue, and would run \
                     beside the new one. "
                    "A look-up made before then proves nothing either."
                }
            } @else {
                form method="post" action=(format!("/operations/{reference}/{id}")) {
                    (proof(visitor))
                    input type="hidden" name="version" value=(held.record.version.0);
                    @if action == Action::Resolve { (reply_fields(typed)) }
                    div.field {
                        label for=(reason) { "Reason" }
                        input id=(reason) name="reason" required maxlength=(REASON_BYTES_MAX)
                            autocomplete="off"
                            value=(typed.map_or("", |typed| &typed.reason))
                            aria-describedby=(format!("{reason}-hint"));
                        p.hint id=(format!("{reason}-hint")) {
                            "Where you looked, or the ticket. It is stored with your name in the \
                             event log."
                        }
                    }
                    button type="submit" { (action.title()) }
                }
            }
        }
    }
}

/// Returns the fields of the response that duplicates will get.
fn reply_fields(typed: Option<&EnteredForm>) -> Markup {
    let typed = |pick: fn(&EnteredForm) -> &String, usual: &'static str| {
        typed.map_or(usual.to_owned(), |typed| pick(typed).clone())
    };
    html! {
        div.row {
            div.field {
                label for="resolve-status" { "Status that duplicates get" }
                input #resolve-status name="status" type="number" inputmode="numeric"
                    min="200" max="599" required
                    value=(typed(|typed| &typed.status, ""));
            }
            div.field {
                label for="resolve-type" { "Media type" }
                input #resolve-type name="media_type" autocomplete="off"
                    value=(typed(|typed| &typed.media_type, "application/json"));
            }
        }
        div.field {
            label for="resolve-body" { "Body that duplicates get" }
            textarea #resolve-body name="body" rows="5" spellcheck="false" {
                (typed(|typed| &typed.body, ""))
            }
        }
    }
}
