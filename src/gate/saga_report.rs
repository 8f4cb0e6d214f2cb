//! A saga as its client sees it: the report at its location, and the answers to requests that do
//! not wait for its end.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use http::{HeaderMap, Response, StatusCode};
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::answer::Answered;
use super::context::RequestContext;
use super::intake::Requester;
use super::payload::AnswerBody;
use super::prefer::ClientPreference;
use super::protected_route::SagaRunner;
use super::saga_summary::{SagaStepSummary, SagaSummary};
use super::state::{Gate, ProtectedRoute};
use crate::engine::saga_acceptance;
use crate::event::Context;
use crate::key::{Caller, Slot};
use crate::record::{Record, Reply, ReplyBody, State};
use crate::refusal::{Refusal, saga_location};
use crate::store::Swap;
use crate::telemetry::Answer;

/// The field that names the preferences that the gateway has followed (RFC 7240, section 3).
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// How often the acceptance of a duplicate reads a record that changes all the time.
const LOOKS_MAX: usize = 4;

/// The report about a saga.
pub struct SagaReport {
    /// The report, as JSON.
    pub body: Bytes,
    /// Whether the saga has ended: the report does not change any more.
    pub is_final: bool,
}

/// A client's request for the report about a saga.
pub struct SagaLookup<'r> {
    /// The saga.
    pub slot: Slot,
    /// The header fields of the request.
    pub headers: &'r HeaderMap,
    /// The context of the request.
    pub context: &'r RequestContext,
    /// How long the client waits for a report that it does not have yet.
    pub wait: Option<Duration>,
}

/// The client that asks for a report, in every form in which records may have it.
struct SagaReader {
    guarded: Arc<ProtectedRoute>,
    runner: Arc<dyn SagaRunner>,
    callers: Vec<Caller>,
    tenant_marks: Vec<String>,
}

#[derive(Serialize)]
struct ReportBody<'b> {
    id: String,
    status: &'b str,
    started_at: &'b str,
    steps: &'b [SagaStepSummary],
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<ReportedAnswer<'b>>,
}

#[derive(Serialize)]
struct ReportedAnswer<'b> {
    status: u16,
    body: ReportedBody<'b>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum ReportedBody<'b> {
    /// A JSON document, byte for byte: a number keeps its digits.
    Json(&'b RawValue),
    Text(&'b str),
    NotStored,
}

impl Gate {
    /// Returns the report about a saga, and the route of its request. `route_of` returns the saga's
    /// route with a name. If `is_known` returns true, the client has the report already, and waits
    /// for another one.
    ///
    /// # Errors
    /// [`Refusal::SagaNotFound`], if there is no such saga, or if the client may not see it. Other
    /// refusals: the store failed, or too many clients wait.
    pub async fn saga_report(
        &self,
        lookup: SagaLookup<'_>,
        route_of: impl FnOnce(&str) -> Option<Arc<ProtectedRoute>>,
        is_known: impl Fn(&SagaReport) -> bool,
    ) -> Result<(Arc<ProtectedRoute>, SagaReport), Refusal> {
        let SagaLookup { slot, headers, context, wait } = lookup;
        let record = self.saga_record(&slot).await?;
        let guarded = route_of(&record.route).ok_or(Refusal::SagaNotFound)?;
        let reader = self.saga_reader(guarded, headers, context)?;
        let mut report = reader.report(&slot, &record)?;
        let is_awaited = |report: &SagaReport| !report.is_final && is_known(report);
        if let Some(wait) = wait.filter(|_| is_awaited(&report)) {
            let address = context.address_share.as_ref();
            let mut waiting = self.begin_to_wait(&reader.guarded, &slot, address, Some(wait))?;
            while is_awaited(&report) && waiting.next(self).await {
                report = reader.report(&slot, &self.saga_record(&slot).await?)?;
            }
        }
        Ok((reader.guarded, report))
    }

    async fn saga_record(&self, slot: &Slot) -> Result<Record, Refusal> {
        let held = self.store.records.load(slot).await;
        let held = held.map_err(|error| self.store_failed(slot, &error))?;
        held.map(|held| held.record).ok_or(Refusal::SagaNotFound)
    }

    /// Identifies the client like the sender of a request that begins a saga.
    fn saga_reader(
        &self,
        guarded: Arc<ProtectedRoute>,
        headers: &HeaderMap,
        context: &RequestContext,
    ) -> Result<SagaReader, Refusal> {
        let runner = guarded.saga.clone().ok_or(Refusal::SagaNotFound)?;
        let verified = self.verify_scope(&guarded, headers, context);
        let requester = Requester::from_head(&guarded.route.policy, headers, verified.as_ref());
        let requester = requester.map_err(|_| Refusal::SagaNotFound)?;
        let hashing = &self.settings.hashing;
        Ok(SagaReader {
            callers: hashing.stored_callers(requester.caller()),
            tenant_marks: hashing.tenant_marks(&requester.tenant()),
            guarded,
            runner,
        })
    }

    /// Completes the answer to a request of a saga's route that was refused: adds the operation
    /// that a stuck saga waits for, and accepts a duplicate if its client does not wait for the end
    /// of a saga that runs.
    pub(in crate::gate) async fn saga_refused<B>(
        &self,
        guarded: &ProtectedRoute,
        runner: &Arc<dyn SagaRunner>,
        preference: ClientPreference,
        refusal: Refusal,
    ) -> Result<Answered<B>, Refusal> {
        match refusal {
            Refusal::InFlight { slot, retry_after, saga: true } if preference.respond_async => {
                if self.keep_from_giving_up(guarded, runner, &slot).await {
                    Ok(accepted(slot, retry_after, preference))
                } else {
                    Err(refusal)
                }
            }
            Refusal::SagaStuck { slot, held: None } => {
                // An error changes only what the client learns.
                let record = self.saga_record(&slot).await.ok();
                let held = record.as_ref().and_then(Record::saga_content);
                let held = held.and_then(|content| runner.held_operation(content));
                Err(Refusal::SagaStuck { slot, held })
            }
            refusal => Err(refusal),
        }
    }

    /// Keeps a saga from being given up, so that a duplicate can be accepted. Until the saga
    /// progresses, its record may be a claim that the store confirmed too late, and another task
    /// gives this claim up. Returns false if that may still happen.
    async fn keep_from_giving_up(
        &self,
        guarded: &ProtectedRoute,
        runner: &Arc<dyn SagaRunner>,
        slot: &Slot,
    ) -> bool {
        let policy = &guarded.route.policy;
        for _ in 0..LOOKS_MAX {
            let Ok(Some(held)) = self.store.records.load(slot).await else { return false };
            let Some(content) = held.record.saga_content() else { return false };
            if runner.has_progressed(content) {
                return true;
            }
            let next = saga_acceptance(&held, self.entropy.next(), policy);
            let expected = Some(held.record.version);
            match self.write(slot, expected, (&next).into(), policy, Context::default).await {
                Ok(Swap::Stored) => return true,
                Ok(Swap::Stale(_) | Swap::Large(_)) => {}
                Err(_) => return false,
            }
        }
        false
    }
}

impl SagaReader {
    /// Returns the report about the saga in a record.
    fn report(&self, slot: &Slot, record: &Record) -> Result<SagaReport, Refusal> {
        let note = record.extras.saga.as_ref().filter(|note| {
            let is_caller = record.caller.is_some_and(|caller| self.callers.contains(&caller));
            is_caller && self.tenant_marks.iter().any(|mark| **mark == *note.tenant_mark)
        });
        let note = note.ok_or(Refusal::SagaNotFound)?;
        let unreadable = || Refusal::RecordUnreadable { slot: *slot };
        let (summary, answer) = match &record.state {
            State::Saga { .. } => {
                (record.saga_content().and_then(|content| self.runner.summary(content)), None)
            }
            State::Completed { reply, .. } => {
                (serde_json::from_slice(&note.summary).ok(), Some(reported(reply)))
            }
            _ => return Err(Refusal::SagaNotFound),
        };
        let summary: SagaSummary = summary.ok_or_else(unreadable)?;
        let is_final = answer.is_some();
        let SagaSummary { status, started_at, steps } = &summary;
        let body = ReportBody { id: slot.to_string(), status, started_at, steps, answer };
        let body = serde_json::to_vec(&body).map_err(|_| unreadable())?;
        Ok(SagaReport { body: body.into(), is_final })
    }
}

fn reported(reply: &Reply) -> ReportedAnswer<'_> {
    let text = match &reply.body {
        ReplyBody::Whole(body) => std::str::from_utf8(body).ok(),
        ReplyBody::NotStored | ReplyBody::Sealed(_) => None,
    };
    let body = match text.map(|text| (text, serde_json::from_str(text))) {
        Some((_, Ok(document))) => ReportedBody::Json(document),
        Some((text, Err(_))) => ReportedBody::Text(text),
        None => ReportedBody::NotStored,
    };
    ReportedAnswer { status: reply.status.as_u16(), body }
}

/// Accepts the request that began a saga, if its client does not wait for the end. The store has
/// confirmed the claim, so it is not given up.
pub(in crate::gate) fn accept_begun<B>(
    begun: Result<Answered<B>, Refusal>,
    preference: ClientPreference,
) -> Result<Answered<B>, Refusal> {
    match begun {
        Err(Refusal::InFlight { slot, retry_after, saga: true }) if preference.respond_async => {
            Ok(accepted(slot, retry_after, preference))
        }
        begun => begun,
    }
}

/// Returns the answer to a client that does not wait for the end of its saga.
fn accepted<B>(slot: Slot, retry_after: Duration, preference: ClientPreference) -> Answered<B> {
    let body = Bytes::from(json!({ "id": slot.to_string() }).to_string());
    let mut response = Response::new(AnswerBody::whole(body));
    *response.status_mut() = StatusCode::ACCEPTED;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // Rounded up, like the field of a refusal.
    let seconds = retry_after.as_millis().div_ceil(1000).max(1);
    headers.insert(RETRY_AFTER, u64::try_from(seconds).unwrap_or(1).into());
    for (name, value) in
        [(LOCATION, saga_location(slot)), (PREFERENCE_APPLIED, preference.applied())]
    {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    }
    Answered { response, answer: Answer::InFlight }
}
