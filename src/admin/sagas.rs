//! Sagas: their listing, and operators' decisions about them.

use axum::http::{HeaderMap, header};

use super::auth::Operator;
use super::decision::{Reason, parse_tag};
use super::problem::AdminRefusal;
use super::queries::invalid;
use super::saga_search::{OpenedSaga, open};
use super::state::Admin;
use super::view::{SagaDecisionRequest, SagaListView, SagaView, document_of};
use crate::gate::SagaDecisionError;
use crate::key::Slot;
use crate::record::{Held, Record, State, Version};
use crate::saga::decision::{
    DeniedDecision, OperatorDecision, PermittedDecisions, decide_saga, permitted_decisions,
};
use crate::saga::log::SagaDecisionKind;
use crate::store::Listing;

/// Sagas per request: the default, and the maximum. A record can have some 300 KiB.
const PAGE: usize = 100;
const PAGE_MAX: usize = 200;

/// The statuses of sagas that have not ended.
const STATUSES: [&str; 4] = ["pending", "running", "compensating", "stuck"];

/// The sagas of a request.
#[derive(Debug, Clone, Default)]
pub(super) struct SagaQuery {
    pub status: Option<String>,
    pub name: Option<String>,
    pub limit: Option<usize>,
    pub cursor: Option<String>,
}

/// Returns a page of the sagas that have not ended.
pub(super) async fn sagas(admin: &Admin, query: SagaQuery) -> Result<SagaListView, AdminRefusal> {
    let SagaQuery { status, name, limit, cursor } = query;
    if status.as_ref().is_some_and(|status| !STATUSES.contains(&&**status)) {
        return Err(invalid(
            "status must be pending, running, compensating or stuck; a saga that has ended is a \
             completed operation of its route (GET /v1/operations)",
        ));
    }
    let limit = limit.unwrap_or(PAGE).clamp(1, PAGE_MAX);
    let records = &admin.gate.store().records;
    let page = records.list(Listing::Sagas, cursor.as_deref(), limit).await?;
    let is_named = |held: &Held| name.as_ref().is_none_or(|name| **name == *held.record.route);
    let named = page.records.into_iter().filter(|(_, held)| is_named(held));
    let opened = open(admin, named.map(|(slot, _)| slot)).await?;
    let views =
        opened.iter().map(|OpenedSaga { slot, held }| SagaView::listed(&admin.gate, slot, held));
    let is_wanted = |view: &SagaView| status.as_ref().is_none_or(|status| *status == view.status);
    let sagas = views.filter(is_wanted).collect();
    Ok(SagaListView { sagas, cursor: page.cursor })
}

/// Returns a saga, also after its end.
pub(super) async fn saga(admin: &Admin, id: &str) -> Result<SagaView, AdminRefusal> {
    let (slot, held) = find(admin, id).await?;
    Ok(SagaView::new(&admin.gate, &slot, &held))
}

/// A saga, and the decisions that its state permits.
pub(super) struct DecidableSaga {
    /// The saga.
    pub view: SagaView,
    /// Empty for a saga that has ended, or that this gateway can't read.
    pub permitted: PermittedDecisions,
    /// The store's time, in ms since 1970.
    pub now_ms: u64,
}

/// Returns a saga with the decisions that its state permits.
pub(super) async fn decidable_saga(admin: &Admin, id: &str) -> Result<DecidableSaga, AdminRefusal> {
    let (slot, held) = find(admin, id).await?;
    let document = document_of(&held).ok().flatten();
    let permitted = document.map(|document| permitted_decisions(&document, held.now_ms));
    Ok(DecidableSaga {
        view: SagaView::new(&admin.gate, &slot, &held),
        permitted: permitted.unwrap_or_default(),
        now_ms: held.now_ms,
    })
}

async fn find(admin: &Admin, id: &str) -> Result<(Slot, Held), AdminRefusal> {
    let slot = Slot::from_reference(id).map_err(|_| AdminRefusal::SagaUnknown)?;
    let held = admin.gate.store().records.load(&slot).await?;
    let is_saga = |held: &Held| is_saga(admin, &held.record);
    Ok((slot, held.filter(is_saga).ok_or(AdminRefusal::SagaUnknown)?))
}

/// Returns whether a record is that of a saga, also after the saga's end.
pub(super) fn is_saga(admin: &Admin, record: &Record) -> bool {
    match record.state {
        State::Saga { .. } => true,
        // The record of an ended saga is that of any completed operation.
        State::Completed { .. } => {
            record.extras.saga.is_some() || admin.sagas.contains(&*record.route)
        }
        _ => false,
    }
}

/// Applies a decision to a saga, with the version from `If-Match`.
pub(super) async fn decide(
    admin: &Admin,
    operator: &Operator,
    id: &str,
    kind: SagaDecisionKind,
    headers: &HeaderMap,
    request: SagaDecisionRequest,
) -> Result<SagaView, AdminRefusal> {
    let found = find(admin, id).await?;
    let tag = headers.get(header::IF_MATCH).ok_or(AdminRefusal::VersionMissing)?;
    let version = tag.to_str().ok().and_then(parse_tag).ok_or(AdminRefusal::VersionInvalid)?;
    decide_about(admin, operator, found, kind, version, request).await
}

/// Applies a decision to a saga, if its record still has this version.
pub(super) async fn decide_at(
    admin: &Admin,
    operator: &Operator,
    id: &str,
    kind: SagaDecisionKind,
    version: Version,
    request: SagaDecisionRequest,
) -> Result<SagaView, AdminRefusal> {
    let found = find(admin, id).await?;
    decide_about(admin, operator, found, kind, version, request).await
}

async fn decide_about(
    admin: &Admin,
    Operator(operator): &Operator,
    (slot, held): (Slot, Held),
    kind: SagaDecisionKind,
    version: Version,
    request: SagaDecisionRequest,
) -> Result<SagaView, AdminRefusal> {
    let reason = Reason::parse(request.reason.as_deref())?;
    match (kind, &request.step) {
        (SagaDecisionKind::Cancel, Some(_)) => {
            return Err(invalid("a cancel is for the whole saga: leave out step"));
        }
        (SagaDecisionKind::Skip, None) => {
            return Err(invalid("step is required: the step that you did by hand"));
        }
        _ => {}
    }
    let decision = OperatorDecision {
        kind,
        step: request.step,
        by: operator.clone(),
        reason: reason.text().to_owned(),
    };
    let route = &held.record.route;
    let policy = admin.policy(route);
    let decided = decide_saga(&admin.gate, &slot, version, policy, &decision).await;
    let decided = decided.map_err(refusal)?;
    if decided.record.version == version {
        return Ok(SagaView::new(&admin.gate, &slot, &decided));
    }
    tracing::info!(
        operation = %slot, saga = %route, operator, reason = reason.text(),
        step = decision.step,
        "saga {} by an operator", done(kind)
    );
    Ok(SagaView::new(&admin.gate, &slot, &decided))
}

fn done(kind: SagaDecisionKind) -> &'static str {
    match kind {
        SagaDecisionKind::Cancel => "cancelled",
        SagaDecisionKind::Retry => "retried",
        SagaDecisionKind::Skip => "step skipped",
    }
}

fn refusal(error: SagaDecisionError<DeniedDecision>) -> AdminRefusal {
    match error {
        SagaDecisionError::Unknown => AdminRefusal::SagaUnknown,
        SagaDecisionError::NotRunning => AdminRefusal::SagaEnded,
        SagaDecisionError::Moved => AdminRefusal::SagaMoved,
        SagaDecisionError::Store(error) => AdminRefusal::StoreRead(error),
        SagaDecisionError::Denied(denied @ DeniedDecision::NoSuchStep(_)) => {
            AdminRefusal::Invalid(denied.to_string())
        }
        error @ (SagaDecisionError::Sealed | SagaDecisionError::Denied(_)) => {
            AdminRefusal::SagaDecisionDenied(error.to_string())
        }
    }
}
