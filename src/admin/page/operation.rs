//! The page of one operation: its current state, its history, and the possible decisions.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Redirect, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use maud::{Markup, html};
use serde::Deserialize;

use super::actions::{self, Action, EnteredForm};
use super::error::PageError;
use super::guard::Signed;
use super::layout::{
    MenuEntry, document, moment, moment_of, number, shown, span, state, state_word,
};
use super::visitor::Visitor;
use super::{sagas, table, timeline, undelivered};
use crate::admin::decision::{OperatorChange, Reason, entered_reply, find};
use crate::admin::problem::AdminRefusal;
use crate::admin::queries::timeline_of;
use crate::admin::saga_search::{StepOfSaga, step_of_saga};
use crate::admin::sagas::is_saga;
use crate::admin::state::Admin;
use crate::admin::view::{OperationView, ResolveRequest, TimelineView};
use crate::engine::Decision;
use crate::gate::OperatorError;
use crate::key::Slot;
use crate::record::{Held, ReplyBody, Settler, State as RecordState, Version};

#[derive(Deserialize)]
pub(super) struct OperationQuery {
    done: Option<String>,
}

/// The fields of a form. A missing field is empty.
#[derive(Deserialize)]
pub(super) struct ActionForm {
    version: String,
    reason: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    body: String,
}

pub(super) async fn show(
    State(admin): State<Arc<Admin>>,
    visitor: Visitor,
    Path(reference): Path<String>,
    Query(query): Query<OperationQuery>,
) -> Result<Response, PageError> {
    let (slot, held) = match find(&admin, reference.trim()).await {
        Ok(found) => found,
        // The store has answered that it has no record. If the store does not answer, nothing is
        // known about the operation.
        Err(AdminRefusal::Operator(OperatorError::Unknown)) => {
            return gone(&admin, &visitor, reference.trim()).await;
        }
        Err(refusal) => return Err(refusal.into()),
    };
    let done = query.done.as_deref().and_then(Action::parse);
    let notice =
        html! { @if let Some(done) = done { p.notice.good role="status" { (done.done()) } } };
    Ok(shown(
        &visitor,
        MenuEntry::Operations,
        "Operation",
        page(&admin, &visitor, &slot, &held, notice, None).await,
    ))
}

pub(super) async fn act(
    State(admin): State<Arc<Admin>>,
    visitor: Visitor,
    Path((reference, segment)): Path<(String, String)>,
    Signed(sent): Signed<ActionForm>,
) -> Result<Response, PageError> {
    let action = Action::parse(&segment).ok_or(AdminRefusal::NotFound)?;
    match carry_out(&admin, &visitor, &reference, action, &sent).await {
        Ok(()) => Ok(Redirect::to(&format!("/operations/{reference}?done={}", action.segment()))
            .into_response()),
        Err(refusal) => refused(&admin, &visitor, &reference, action, sent, refusal).await,
    }
}

async fn carry_out(
    admin: &Admin,
    visitor: &Visitor,
    reference: &str,
    action: Action,
    sent: &ActionForm,
) -> Result<(), AdminRefusal> {
    let operator = visitor.operator_of_change()?;
    let version = sent.version.parse().map(Version).map_err(|_| AdminRefusal::VersionInvalid)?;
    let change = OperatorChange::at(admin, reference, version).await?;
    let decision = match action {
        Action::Resolve => {
            Decision::Resolve(Arc::new(entered_reply(admin.clock.unix_ms(), &sent.resolution()?)?))
        }
        Action::Retry => Decision::Retry,
        Action::Release => Decision::Release,
        Action::Expire => Decision::Expire,
    };
    change.apply(admin, operator, decision, Reason::parse(Some(&sent.reason))?).await.map(|_| ())
}

/// Renders the current state of the operation, the refusal, and the form with the entered values.
async fn refused(
    admin: &Admin,
    visitor: &Visitor,
    reference: &str,
    action: Action,
    sent: ActionForm,
    refusal: AdminRefusal,
) -> Result<Response, PageError> {
    let Ok((slot, held)) = find(admin, reference).await else { return Err(refusal.into()) };
    let moved = matches!(refusal, AdminRefusal::Operator(OperatorError::Moved));
    let notice = html! {
        div.notice.bad role="alert" {
            p { strong { "Nothing was changed." } " " (refusal.to_string()) "." }
            @if moved {
                p {
                    "It is " (state_word(held.record.state.name()))
                    " now, as shown below. It was changed in the meantime."
                }
            }
        }
    };
    let typed = EnteredForm {
        status: sent.status,
        media_type: sent.media_type,
        body: sent.body,
        reason: sent.reason,
    };
    let content = page(admin, visitor, &slot, &held, notice, Some((action, &typed))).await;
    Ok((
        refusal.status(),
        document(Some(visitor), MenuEntry::Operations, "Nothing was changed", content),
    )
        .into_response())
}

impl ActionForm {
    fn resolution(&self) -> Result<ResolveRequest, AdminRefusal> {
        let status = self.status.trim().parse();
        let status = status.map_err(|_| {
            AdminRefusal::Invalid("status must be a final HTTP status: 200 to 599".to_owned())
        })?;
        let mut headers = BTreeMap::new();
        if !self.media_type.trim().is_empty() && !self.body.is_empty() {
            headers.insert("content-type".to_owned(), self.media_type.trim().to_owned());
        }
        // Browsers send all line breaks of a text area as CR LF, even if the entered text has LF.
        let body = self.body.replace("\r\n", "\n");
        Ok(ResolveRequest { status, headers, body_base64: BASE64.encode(body), reason: None })
    }
}

async fn page(
    admin: &Admin,
    visitor: &Visitor,
    slot: &Slot,
    held: &Held,
    notice: Markup,
    tried: Option<(Action, &EnteredForm)>,
) -> Markup {
    let reference = slot.to_string();
    let policy = admin.policy(&held.record.route);
    let timeline = timeline_of(admin, slot).await;
    let projected =
        timeline.as_ref().ok().and_then(Option::as_ref).map(|timeline| &timeline.operation);
    let step = step_of_saga(admin, slot, &held.record).await.ok().flatten();
    html! {
        (notice)
        div.head {
            h1 { "Operation " (state(held.record.state.name())) }
            p.fresh { "from the store, as it is now" }
        }
        section.panel aria-label="Facts" {
            p.named { span.ref { (reference) } }
            @if let Some(projected) = projected { (table::fields(projected)) }
            (saga_link(admin, slot, held, step.as_ref()))
            (facts(held, admin.calling_sink(&held.record), projected))
        }
        (actions::forms(visitor, &reference, held, policy, tried))
        (timeline::section(&timeline, admin.clock.unix_ms()))
        (undelivered::section(admin, slot).await)
    }
}

/// Renders an operation that has no record in the store, or only a tombstone.
async fn gone(admin: &Admin, visitor: &Visitor, reference: &str) -> Result<Response, PageError> {
    let slot = Slot::from_reference(reference).map_err(AdminRefusal::from)?;
    let timeline = timeline_of(admin, &slot).await;
    let Ok(Some(TimelineView { operation, .. })) = &timeline else {
        return Err(AdminRefusal::from(OperatorError::Unknown).into());
    };
    let now = admin.clock.unix_ms();
    let (state_now, left) = match admin.gate.store().records.remains(&slot).await? {
        Some(_) => (
            "expired",
            "The result is gone. A tombstone blocks the key: duplicates get 409, and nothing runs \
             under it.",
        ),
        None => ("gone", "The store has nothing under this reference any more: the key is free."),
    };
    let content = html! {
        div.head {
            h1 { "Operation " (state(state_now)) }
            p.fresh { "from the event log" }
        }
        section.panel aria-label="Facts" {
            p.named { span.ref { (operation.operation) } }
            (table::fields(operation))
            p.dim { (left) " The history below is from the event log." }
            dl.facts {
                div { dt { "Route" } dd { (operation.route) } }
                div { dt { "Opened" } dd { (moment_of(&operation.opened_at, now)) } }
                div { dt { "Last change" } dd { (moment_of(&operation.changed_at, now)) } }
            }
        }
        (timeline::section(&timeline, now))
        (undelivered::section(admin, &slot).await)
    };
    Ok(shown(visitor, MenuEntry::Operations, "Operation", content))
}

/// Renders the link from the operation of a saga, or of one of its steps, to the saga.
fn saga_link(admin: &Admin, slot: &Slot, held: &Held, step: Option<&StepOfSaga>) -> Markup {
    html! {
        @if let Some(StepOfSaga { saga, step, id }) = step {
            p {
                "The step " strong { (step) } " of "
                @match id {
                    Some(id) => { a #saga href=(sagas::path(id)) { "a saga " (saga) } "." }
                    None => { "a saga " strong { (saga) } ", which is not in the list any more." }
                }
            }
            @if matches!(held.record.state, RecordState::Uncertain { .. }) {
                p.dim {
                    "Resolve it if it was executed: the saga goes on, and later steps can use the \
                     response that you enter. Release it if it was not executed: the saga sends it \
                     again under the same key, or goes back without it."
                }
            }
        } @else if is_saga(admin, &held.record) {
            p { a #saga href=(sagas::path(slot)) { "The steps of this saga" } "." }
        }
    }
}

fn facts(held: &Held, sink: Option<String>, projected: Option<&OperationView>) -> Markup {
    let record = &held.record;
    let now = held.now_ms;
    html! {
        dl.facts {
            div { dt { "Route" } dd { (record.route) } }
            @if let Some(sink) = sink { div { dt { "Called by the sink" } dd { (sink) } } }
            div { dt { "Opened" } dd { (moment(record.opened_unix_ms, now)) } }
            div { dt { "Last change" } dd { (moment(held.written_ms, now)) } }
            (state_facts(held, now))
            @if let Some(projected) = projected { (from_read_model(projected)) }
            div { dt { "Version" } dd { span.ref { (record.version.0) } } }
        }
    }
}

fn state_facts(held: &Held, now: u64) -> Markup {
    html! {
        @match &held.record.state {
            RecordState::InFlight { .. } => {
                div {
                    dt { "Lease" }
                    dd {
                        @if held.lease_is_over() {
                            "expired: the operation becomes uncertain"
                        } @else { "ends " (moment(held.due_ms, now)) " unless renewed" }
                    }
                }
            }
            RecordState::Uncertain { cause, retry, .. } => {
                div { dt { "Why uncertain" } dd { (cause.describe()) } }
                @if retry.is_some() { div { dt { "Decided" } dd { "the next duplicate runs" } } }
            }
            RecordState::Completed { reply, by } => {
                div {
                    dt { "Result" }
                    dd {
                        (reply.status.as_u16()) " "
                        (reply.status.canonical_reason().unwrap_or_default())
                    }
                }
                div {
                    dt { "Body" }
                    dd {
                        @match &reply.body {
                            ReplyBody::Whole(body) => {
                                (number(body.len() as u64)) " bytes, stored"
                            }
                            ReplyBody::NotStored => { "not stored: duplicates are refused" }
                            ReplyBody::Sealed(_) => {
                                "encrypted with a key that this gateway does not have"
                            }
                        }
                    }
                }
                div { dt { "Settled by" } dd { (settler(*by)) } }
            }
            RecordState::Saga { phase, .. } => {
                div { dt { "Saga" } dd { (phase.name()) } }
                div {
                    dt { "Lease" }
                    dd {
                        @if held.lease_is_over() {
                            "expired: another gateway takes the saga over"
                        } @else { "ends " (moment(held.due_ms, now)) " unless renewed" }
                    }
                }
            }
            RecordState::Released
            | RecordState::Expired
            | RecordState::Barred
            | RecordState::Lock(_)
            | RecordState::Review { .. }
            | RecordState::Versions { .. } => {}
        }
    }
}

/// Renders the data that only the read model has.
fn from_read_model(view: &OperationView) -> Markup {
    html! {
        @if let Some(scope) = &view.scope {
            div {
                dt { "Scope" }
                dd { a.ref href=(format!("/operations?scope={scope}")) { (scope) } }
            }
        }
        @if let Some(duplicates) = view.duplicates {
            div { dt { "Duplicates" } dd { (number(duplicates)) } }
        }
        @if let Some(ms) = view.upstream_ms { div { dt { "Upstream time" } dd { (span(ms)) } } }
        @if let Some(trace) = &view.trace { div { dt { "Trace" } dd { span.ref { (trace) } } } }
    }
}

fn settler(by: Settler) -> &'static str {
    match by {
        Settler::Upstream => "the upstream's response",
        Settler::Operator => "an operator",
        Settler::Probe => "a probe of the upstream",
    }
}
