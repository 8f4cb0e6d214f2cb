//! Sagas: their listing, and operators' decisions about them.

use axum::http::{HeaderMap, header};
use futures_util::{StreamExt, TryStreamExt, stream};

use super::auth::Operator;
use super::decision::{Reason, parse_tag};
use super::problem::AdminRefusal;
use super::queries::invalid;
use super::state::Admin;
use super::view::{SagaDecisionRequest, SagaListView, SagaView};
use crate::gate::SagaDecisionError;
use crate::key::Slot;
use crate::record::{Held, State};
use crate::saga::decision::{DeniedDecision, OperatorDecision, decide_saga};
use crate::saga::log::SagaDecisionKind;
use crate::store::Listing;

/// Sagas per request: the default, and the maximum. A record can have some 300 KiB.
const PAGE: usize = 100;
const PAGE_MAX: usize = 200;

/// Reads at the same time. With the largest records, they need some megabytes.
const READS_AT_ONCE: usize = 16;

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
    let slots: Vec<Slot> = named.map(|(slot, _)| slot).collect();
    // A listing returns sealed contents, and a read returns them open.
    let read = |slot: Slot| async move {
        let held = records.load(&slot).await?;
        let running = held.filter(|held| matches!(held.record.state, State::Saga { .. }));
        let view = running.map(|held| SagaView::listed(&admin.gate, &slot, &held));
        Ok::<_, AdminRefusal>(view)
    };
    let reads = stream::iter(slots).map(read).buffered(READS_AT_ONCE);
    let views: Vec<Option<SagaView>> = reads.try_collect().await?;
    let is_wanted = |view: &SagaView| status.as_ref().is_none_or(|status| *status == view.status);
    let sagas = views.into_iter().flatten().filter(is_wanted).collect();
    Ok(SagaListView { sagas, cursor: page.cursor })
}

/// Returns a saga, also after its end.
pub(super) async fn saga(admin: &Admin, id: &str) -> Result<SagaView, AdminRefusal> {
    let (slot, held) = find(admin, id).await?;
    Ok(SagaView::new(&admin.gate, &slot, &held))
}

async fn find(admin: &Admin, id: &str) -> Result<(Slot, Held), AdminRefusal> {
    let slot = Slot::from_reference(id).map_err(|_| AdminRefusal::SagaUnknown)?;
    let held = admin.gate.store().records.load(&slot).await?;
    let is_saga = |held: &Held| match held.record.state {
        State::Saga { .. } => true,
        // The record of an ended saga is that of any completed operation.
        State::Completed { .. } => admin.sagas.contains(&*held.record.route),
        _ => false,
    };
    Ok((slot, held.filter(is_saga).ok_or(AdminRefusal::SagaUnknown)?))
}

/// Applies a decision to a saga, with the version from `If-Match`.
pub(super) async fn decide(
    admin: &Admin,
    Operator(operator): &Operator,
    id: &str,
    kind: SagaDecisionKind,
    headers: &HeaderMap,
    request: SagaDecisionRequest,
) -> Result<SagaView, AdminRefusal> {
    let (slot, held) = find(admin, id).await?;
    let tag = headers.get(header::IF_MATCH).ok_or(AdminRefusal::VersionMissing)?;
    let version = tag.to_str().ok().and_then(parse_tag).ok_or(AdminRefusal::VersionInvalid)?;
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
