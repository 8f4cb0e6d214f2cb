//! The decisions that an operator can make about a saga, each with its effect. The page offers only
//! decisions that the rules of sagas permit now.

use maud::{Markup, html};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::words::action_status;
use crate::admin::page::layout::proof;
use crate::admin::page::visitor::Visitor;
use crate::admin::sagas::DecidableSaga;
use crate::admin::view::{SagaStepView, SagaView};
use crate::event::REASON_BYTES_MAX;
use crate::hex;
use crate::saga::log::SagaDecisionKind;

/// The values of a refused form, so that the operator need not enter them again.
pub(super) struct EnteredDecision {
    pub kind: SagaDecisionKind,
    /// The step; empty for the saga, or for all stuck steps.
    pub step: String,
    pub reason: String,
}

/// A form: its decision, and the texts around it.
struct DecisionForm<'s> {
    kind: SagaDecisionKind,
    step: &'s str,
    /// The id of the form's elements.
    id: String,
    title: String,
    effect: String,
}

/// Parses the segment of a decision.
pub(super) fn parse(text: &str) -> Option<SagaDecisionKind> {
    let kinds = [SagaDecisionKind::Retry, SagaDecisionKind::Skip, SagaDecisionKind::Cancel];
    kinds.into_iter().find(|kind| kind.name() == text)
}

/// Returns the text that is shown after a decision was applied.
pub(super) fn done(kind: SagaDecisionKind) -> &'static str {
    match kind {
        SagaDecisionKind::Retry => "Decided: the step is tried again.",
        SagaDecisionKind::Skip => "Decided: the step counts as done by hand, and is not sent.",
        SagaDecisionKind::Cancel => "Cancelled: no further step begins, and the saga goes back.",
    }
}

/// Returns a digest of the state that the page shows. A decision is made on this state and not on a
/// version of the record: the owner of a saga also writes after it has looked at a held step in
/// vain.
pub(super) fn state_digest(saga: &SagaView) -> String {
    let steps = saga.steps.iter().map(|step| {
        let undo = step.compensation.as_ref().map(|undo| (&undo.status, &undo.operation));
        (&step.name, &step.status, &step.operation, undo)
    });
    let steps: Vec<_> = steps.collect();
    let stuck = saga.stuck.iter().map(|stuck| (&stuck.step, &stuck.direction, &stuck.reason));
    let stuck: Vec<_> = stuck.collect();
    let state = json!([saga.status, saga.back, steps, stuck, saga.decisions.len()]);
    hex::encode(&Sha256::digest(state.to_string())[..16])
}

/// Renders the forms of all permitted decisions. `tried` is a form that was refused.
pub(super) fn section(
    visitor: &Visitor,
    saga: &DecidableSaga,
    tried: Option<&EnteredDecision>,
) -> Markup {
    let forms = forms(saga);
    html! {
        section.panel aria-labelledby="actions" {
            h2 #actions { "What you can do" }
            (held(&saga.view))
            @if forms.is_empty() {
                @if !has_held(&saga.view) { p.dim { (nothing(&saga.view)) } }
            } @else if !visitor.may_operate {
                p.dim {
                    "Your token may read, but not change anything. An operator with the role "
                    code { "operate" } " can: " (titles(&forms)) "."
                }
            } @else {
                @for form in &forms {
                    @let tried = tried.filter(|tried| tried.kind == form.kind && tried.step == form.step);
                    (markup(visitor, &saga.view, form, tried))
                }
            }
        }
    }
}

fn titles(forms: &[DecisionForm<'_>]) -> String {
    let titles: Vec<String> = forms.iter().map(|form| form.title.to_lowercase()).collect();
    titles.join(", ")
}

fn has_held(saga: &SagaView) -> bool {
    saga.stuck.iter().any(|stuck| stuck.operation.is_some())
}

/// Renders the operations that have to be settled before the saga goes on by itself.
fn held(saga: &SagaView) -> Markup {
    let held = saga.stuck.iter().filter_map(|stuck| Some((stuck, stuck.operation.as_ref()?)));
    html! {
        @for (at, (stuck, operation)) in held.enumerate() {
            p {
                "Settle the "
                @if stuck.direction == "compensation" { "compensation" } @else { "action" }
                " of " strong { (stuck.step) } ": "
                a.ref id=(format!("held-{at}")) href=(format!("/operations/{operation}")) {
                    (operation)
                }
                ". Look up at the called system whether it was executed. The saga goes on by \
                 itself when the operation is settled."
            }
        }
    }
}

fn nothing(saga: &SagaView) -> &'static str {
    match (saga.status.as_str(), &saga.unreadable) {
        (_, Some(_)) => "Nothing here: this gateway can't read the record.",
        ("ended", None) => "Nothing: the saga has ended, and duplicates get its answer.",
        ("compensating", None) => "Nothing: the saga goes back by itself.",
        _ => "Nothing: the pivot has begun, and the saga goes on by itself.",
    }
}

fn forms(saga: &DecidableSaga) -> Vec<DecisionForm<'_>> {
    let steps = &saga.view.steps;
    let waiting: Vec<(usize, &SagaStepView)> =
        saga.permitted.steps.iter().filter_map(|step| Some((*step, steps.get(*step)?))).collect();
    let mut forms = Vec::new();
    for (at, step) in &waiting {
        let goes_back = saga.view.back.is_some();
        forms.push(retry(*at, step, goes_back));
        forms.push(skip(*at, step, goes_back));
    }
    if waiting.len() > 1 {
        let names: Vec<&str> = waiting.iter().map(|(_, step)| step.name.as_str()).collect();
        forms.push(DecisionForm {
            kind: SagaDecisionKind::Retry,
            step: "",
            id: "retry-all".to_owned(),
            title: "Retry all stuck steps".to_owned(),
            effect: format!("Tries {} again, each as its own form describes.", names.join(", ")),
        });
    }
    if saga.permitted.cancel {
        forms.push(cancel(&saga.view));
    }
    forms
}

/// Returns whether a step waits with its compensation, and the status of that operation.
fn waiting_operation(step: &SagaStepView) -> (bool, &str) {
    match &step.compensation {
        Some(undo) if undo.status != "pending" => (true, &undo.status),
        _ => (false, action_status(step)),
    }
}

fn retry(at: usize, step: &SagaStepView, goes_back: bool) -> DecisionForm<'_> {
    let name = &step.name;
    let (is_compensation, status) = waiting_operation(step);
    let request = if is_compensation { "The request that undoes the step" } else { "Its request" };
    let effect = match status {
        "failed" | "refused" => format!(
            "Use it if you have removed the cause. {request} was refused for good, so it is sent \
             under another key."
        ),
        "uncertain" if goes_back && !is_compensation => {
            "Use it if you have found that the request was not executed. The saga goes back, so it \
             is never sent again."
                .to_owned()
        }
        "uncertain" => format!(
            "Use it if you have found that the request was not executed. {request} is sent again, \
             under the same key."
        ),
        _ => format!("{request} is sent at once instead of later, under the same key."),
    };
    let title = match is_compensation {
        true => format!("Retry the compensation of {name}"),
        false => format!("Retry {name}"),
    };
    DecisionForm {
        kind: SagaDecisionKind::Retry,
        step: name,
        id: format!("retry-{at}"),
        title,
        effect,
    }
}

fn skip(at: usize, step: &SagaStepView, goes_back: bool) -> DecisionForm<'_> {
    let name = &step.name;
    let (title, effect) = match waiting_operation(step).0 {
        true => (
            format!("Skip the compensation of {name}"),
            "Use it if you have undone the step by hand. It counts as undone, and the request that \
             undoes it is never sent again.",
        ),
        false if goes_back => (
            format!("Skip {name}"),
            "Use it if you have found that the request was executed. The saga goes back, so it \
             undoes the step: do not undo it by hand.",
        ),
        false => (
            format!("Skip {name}"),
            "Use it if you have done the step by hand. It counts as done, and is never sent again. \
             A later step that uses its answer can't be sent.",
        ),
    };
    let effect = effect.to_owned();
    DecisionForm {
        kind: SagaDecisionKind::Skip,
        step: name,
        id: format!("skip-{at}"),
        title,
        effect,
    }
}

fn cancel(saga: &SagaView) -> DecisionForm<'_> {
    let is_done = |step: &&SagaStepView| action_status(step) == "done";
    let undone = saga.steps.iter().rev().filter(is_done).filter(|step| step.compensation.is_some());
    let names: Vec<&str> = undone.map(|step| step.name.as_str()).collect();
    let undone = match names.as_slice() {
        [] => "No step that can be undone is done so far.".to_owned(),
        names => format!("These steps are undone: {}.", names.join(", ")),
    };
    let stays: Vec<&str> = saga
        .steps
        .iter()
        .filter(is_done)
        .filter(|step| step.compensation.is_none())
        .map(|step| step.name.as_str())
        .collect();
    let stays = match stays.as_slice() {
        [] => String::new(),
        names => format!(" These have no compensation, and stay done: {}.", names.join(", ")),
    };
    let effect = format!(
        "No further step begins. A step that is under way is awaited, and undone if it was \
         executed and has a compensation. {undone}{stays} Then clients get the answer of a failed \
         saga."
    );
    DecisionForm {
        kind: SagaDecisionKind::Cancel,
        step: "",
        id: "cancel".to_owned(),
        title: "Cancel the saga".to_owned(),
        effect,
    }
}

fn markup(
    visitor: &Visitor,
    saga: &SagaView,
    form: &DecisionForm<'_>,
    tried: Option<&EnteredDecision>,
) -> Markup {
    let reason = format!("{}-reason", form.id);
    html! {
        details.action open[tried.is_some()] {
            summary id=(form.id) {
                strong { (form.title) }
                span.dim { (form.effect) }
            }
            form method="post" action=(format!("/sagas/{}/{}", saga.id, form.kind.name())) {
                (proof(visitor))
                input type="hidden" name="version" value=(state_digest(saga));
                input type="hidden" name="step" value=(form.step);
                div.field {
                    label for=(reason) { "Reason" }
                    input id=(reason) name="reason" required maxlength=(REASON_BYTES_MAX)
                        autocomplete="off" value=(tried.map_or("", |tried| &tried.reason))
                        aria-describedby=(format!("{reason}-hint"));
                    p.hint id=(format!("{reason}-hint")) {
                        "Where you looked, or the ticket. The saga and the event log keep it with \
                         your name."
                    }
                }
                button type="submit" { (form.title) }
            }
        }
    }
}
