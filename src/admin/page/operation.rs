//! One operation: where it stands now, what happened to it, and what can be done about it.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Redirect, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use maud::{Markup, html};
use serde::Deserialize;

use super::actions::{self, Action, Typed};
use super::fault::Fault;
use super::layout::{Here, document, moment, moment_of, number, shown, span, state, state_word};
use super::visitor::{Signed, Visitor};
use super::{table, timeline};
use crate::admin::Admin;
use crate::admin::change::{Change, Reason, find, stated};
use crate::admin::model::told;
use crate::admin::problem::AdminRefusal;
use crate::admin::view::{OperationView, ResolveRequest, TimelineView};
use crate::engine::Decision;
use crate::gate::OperatorError;
use crate::key::Slot;
use crate::record::{Held, ReplyBody, Settler, State as Standing, Version};

#[derive(Deserialize)]
pub(super) struct Told {
    done: Option<String>,
}

/// A form as it was sent; what is missing in it is empty.
#[derive(Deserialize)]
pub(super) struct Sent {
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
    Query(told): Query<Told>,
) -> Result<Response, Fault> {
    let (slot, held) = match find(&admin, reference.trim()).await {
        Ok(found) => found,
        // Only where the store has said that it has nothing: of one that does not answer nothing is known.
        Err(AdminRefusal::Operator(OperatorError::Unknown)) => {
            return gone(&admin, &visitor, reference.trim()).await;
        }
        Err(refusal) => return Err(refusal.into()),
    };
    let done = told.done.as_deref().and_then(Action::parse);
    let notice =
        html! { @if let Some(done) = done { p.notice.good role="status" { (done.done()) } } };
    Ok(shown(
        &visitor,
        Here::Operations,
        "Operation",
        page(&admin, &visitor, &slot, &held, notice, None).await,
    ))
}

pub(super) async fn act(
    State(admin): State<Arc<Admin>>,
    visitor: Visitor,
    Path((reference, segment)): Path<(String, String)>,
    Signed(sent): Signed<Sent>,
) -> Result<Response, Fault> {
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
    sent: &Sent,
) -> Result<(), AdminRefusal> {
    let operator =
        visitor.operator.as_ref().filter(|_| visitor.may_operate).ok_or(AdminRefusal::ReadOnly)?;
    let seen = sent.version.parse().map(Version).map_err(|_| AdminRefusal::VersionInvalid)?;
    let change = Change::at(admin, reference, seen).await?;
    let decision = match action {
        Action::Resolve => {
            Decision::Resolve(Arc::new(stated(admin.clock.unix_ms(), &sent.resolution()?)?))
        }
        Action::Retry => Decision::Retry,
        Action::Release => Decision::Release,
        Action::Expire => Decision::Expire,
    };
    change.make(admin, operator, decision, Reason::parse(Some(&sent.reason))?).await.map(|_| ())
}

/// The operation as it is now, with why nothing was done and what was typed.
async fn refused(
    admin: &Admin,
    visitor: &Visitor,
    reference: &str,
    action: Action,
    sent: Sent,
    refusal: AdminRefusal,
) -> Result<Response, Fault> {
    let Ok((slot, held)) = find(admin, reference).await else { return Err(refusal.into()) };
    let moved = matches!(refusal, AdminRefusal::Operator(OperatorError::Moved));
    let notice = html! {
        div.notice.bad role="alert" {
            p { strong { "Nothing was done." } " " (refusal.to_string()) "." }
            @if moved {
                p { "It is " (state_word(held.record.state.name())) " now, as shown below. Somebody or something else was faster." }
            }
        }
    };
    let typed = Typed {
        status: sent.status,
        media_type: sent.media_type,
        body: sent.body,
        reason: sent.reason,
    };
    let content = page(admin, visitor, &slot, &held, notice, Some((action, &typed))).await;
    Ok((refusal.status(), document(Some(visitor), Here::Operations, "Nothing was done", content))
        .into_response())
}

impl Sent {
    fn resolution(&self) -> Result<ResolveRequest, AdminRefusal> {
        let status = self.status.trim().parse();
        let status = status.map_err(|_| {
            AdminRefusal::Invalid("status is a final HTTP status: 200 to 599".to_owned())
        })?;
        let mut headers = BTreeMap::new();
        if !self.media_type.trim().is_empty() && !self.body.is_empty() {
            headers.insert("content-type".to_owned(), self.media_type.trim().to_owned());
        }
        // Browsers send line breaks of a text as CR LF, whatever was pasted.
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
    tried: Option<(Action, &Typed)>,
) -> Markup {
    let reference = slot.to_string();
    let policy = admin.policy(&held.record.route);
    let told = told(admin, slot).await;
    let known = told.as_ref().ok().and_then(Option::as_ref).map(|told| &told.operation);
    html! {
        (notice)
        div.head {
            h1 { "Operation " (state(held.record.state.name())) }
            p.fresh { "from the store, as it is now" }
        }
        section.panel aria-label="Facts" {
            p.named { span.ref { (reference) } }
            @if let Some(known) = known { (table::fields(known)) }
            (facts(held, known))
        }
        (actions::forms(visitor, &reference, held, policy, tried))
        (timeline::section(&told, admin.clock.unix_ms()))
    }
}

/// An operation of which the store has no record any more, a tombstone at most.
async fn gone(admin: &Admin, visitor: &Visitor, reference: &str) -> Result<Response, Fault> {
    let slot = Slot::from_reference(reference).map_err(AdminRefusal::from)?;
    let told = told(admin, &slot).await;
    let Ok(Some(TimelineView { operation, .. })) = &told else {
        return Err(AdminRefusal::from(OperatorError::Unknown).into());
    };
    let now = admin.clock.unix_ms();
    let (state_now, left) = match admin.gate.store().records.remains(&slot).await? {
        Some(_) => (
            "expired",
            "The result is gone, and a tombstone bars its key: duplicates get 409, and nothing runs under it.",
        ),
        None => ("gone", "The store has nothing under this reference any more: its key is new."),
    };
    let content = html! {
        div.head {
            h1 { "Operation " (state(state_now)) }
            p.fresh { "from the event log" }
        }
        section.panel aria-label="Facts" {
            p.named { span.ref { (operation.operation) } }
            (table::fields(operation))
            p.dim { (left) " What happened to it is told by the event log." }
            dl.facts {
                div { dt { "Route" } dd { (operation.route) } }
                div { dt { "Opened" } dd { (moment_of(&operation.opened_at, now)) } }
                div { dt { "Last change" } dd { (moment_of(&operation.changed_at, now)) } }
            }
        }
        (timeline::section(&told, now))
    };
    Ok(shown(visitor, Here::Operations, "Operation", content))
}

fn facts(held: &Held, known: Option<&OperationView>) -> Markup {
    let record = &held.record;
    let now = held.now_ms;
    html! {
        dl.facts {
            div { dt { "Route" } dd { (record.route) } }
            div { dt { "Opened" } dd { (moment(record.opened_unix_ms, now)) } }
            div { dt { "Last change" } dd { (moment(held.written_ms, now)) } }
            (standing(held, now))
            @if let Some(known) = known { (besides(known)) }
            div { dt { "Version" } dd { span.ref { (record.version.0) } } }
        }
    }
}

fn standing(held: &Held, now: u64) -> Markup {
    html! {
        @match &held.record.state {
            Standing::InFlight { .. } => {
                div {
                    dt { "Lease" }
                    dd { @if held.lease_is_over() { "over, becomes uncertain" } @else { "ends " (moment(held.due_ms, now)) " unless renewed" } }
                }
            }
            Standing::Uncertain { cause, retry, .. } => {
                div { dt { "Why uncertain" } dd { (cause.describe()) } }
                @if retry.is_some() { div { dt { "Decided" } dd { "the next duplicate runs" } } }
            }
            Standing::Completed { reply, by } => {
                div { dt { "Result" } dd { (reply.status.as_u16()) " " (reply.status.canonical_reason().unwrap_or_default()) } }
                div {
                    dt { "Its body" }
                    dd {
                        @match &reply.body {
                            ReplyBody::Whole(body) => { (number(body.len() as u64)) " bytes, kept" }
                            ReplyBody::NotStored => { "not kept: duplicates are refused" }
                            ReplyBody::Sealed(_) => { "sealed under a key that this gateway does not have" }
                        }
                    }
                }
                div { dt { "Settled by" } dd { (settler(*by)) } }
            }
            Standing::Released | Standing::Expired => {}
        }
    }
}

/// What the read model knows besides.
fn besides(known: &OperationView) -> Markup {
    html! {
        @if let Some(scope) = &known.scope { div { dt { "Scope" } dd { a.ref href=(format!("/operations?scope={scope}")) { (scope) } } } }
        @if let Some(duplicates) = known.duplicates { div { dt { "Duplicates seen" } dd { (number(duplicates)) } } }
        @if let Some(ms) = known.upstream_ms { div { dt { "The upstream took" } dd { (span(ms)) } } }
        @if let Some(trace) = &known.trace { div { dt { "Trace" } dd { span.ref { (trace) } } } }
    }
}

fn settler(by: Settler) -> &'static str {
    match by {
        Settler::Upstream => "the upstream's answer",
        Settler::Operator => "an operator",
        Settler::Probe => "the upstream, asked about it",
    }
}
