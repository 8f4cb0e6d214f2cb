//! The reconciler: asks upstreams about uncertain operations for which no duplicate comes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http::{Request, Response};
use http_body::Body;
use tokio::time::{Instant, sleep, timeout};
use tower_service::Service;

use crate::engine::{Finding, OnUncertain, Probe, believe_in_background};
use crate::event::Context;
use crate::gate::claim::probe::question;
use crate::gate::payload::{BoxError, Payload};
use crate::gate::{Gate, ProtectedRoute};
use crate::key::Slot;
use crate::record::{Fence, Held, State};
use crate::store::{ListError, Listing, Swap};

/// Between two looks at what is unsettled, jittered: several gateways look at the same.
const PERIOD: Duration = Duration::from_secs(1);

/// Operations on a page of the list.
const PAGE: usize = 256;

/// Questions under way at once: an upstream that has just lost answers must not be met with a flood.
const QUESTIONS_MAX: usize = 4;

/// First and longest pause before the same operation is asked for again.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(600);

/// How often one operation is asked for: for some three hours. What the upstream can't tell then, a person has to.
const QUESTIONS_PER_OPERATION: u32 = 24;

/// Operations whose questions are remembered; others wait until there is room.
const REMEMBERED_MAX: usize = 10_000;

/// What was asked about an operation.
struct Asked {
    times: u32,
    next: Instant,
}

/// An operation whose key can't be filled into the probe's path. It is counted and logged once, and left alone.
struct NeverProbed;

/// Asks for ever. `prepare` gives a question what the way to its upstream needs.
pub async fn reconcile<S, B, RB>(
    gate: Arc<Gate>,
    routes: Vec<Arc<ProtectedRoute>>,
    prepare: impl Fn(&ProtectedRoute, &mut Request<Payload<B>>),
    service: S,
) where
    S: Service<Request<Payload<B>>, Response = Response<RB>> + Clone,
    S::Error: Into<BoxError>,
    RB: Body<Data = Bytes> + Unpin,
    RB::Error: Into<BoxError>,
{
    let mut routes: HashMap<Arc<str>, Arc<ProtectedRoute>> =
        routes.into_iter().map(|guarded| (guarded.route.policy.route.clone(), guarded)).collect();
    routes.retain(|_, guarded| probe_of(guarded).is_some());
    if routes.is_empty() {
        return std::future::pending().await;
    }
    let mut asked: HashMap<Slot, Asked> = HashMap::new();
    loop {
        sleep(gate.entropy.jitter(PERIOD)).await;
        let due = match gate.to_ask(&routes, &mut asked).await {
            Ok(due) => due,
            Err(error) => {
                tracing::debug!(%error, "what is unsettled could not be read");
                continue;
            }
        };
        let questions = due.into_iter().map(|(slot, route)| {
            let (gate, prepare, mut service) = (&gate, &prepare, service.clone());
            async move {
                gate.ask_unasked(&slot, &route, prepare, &mut service)
                    .await
                    .map_err(|NeverProbed| slot)
            }
        });
        let ended: Vec<Result<(), Slot>> =
            futures_util::stream::iter(questions).buffer_unordered(QUESTIONS_MAX).collect().await;
        for slot in ended.into_iter().filter_map(Result::err) {
            asked.entry(slot).and_modify(|asked| asked.times = QUESTIONS_PER_OPERATION);
        }
    }
}

fn probe_of(guarded: &ProtectedRoute) -> Option<&Probe> {
    match &guarded.route.policy.on_uncertain {
        OnUncertain::Probe(probe) if probe.background => Some(probe),
        _ => None,
    }
}

impl Gate {
    /// The uncertain operations whose turn it is.
    async fn to_ask(
        &self,
        routes: &HashMap<Arc<str>, Arc<ProtectedRoute>>,
        asked: &mut HashMap<Slot, Asked>,
    ) -> Result<Vec<(Slot, Arc<ProtectedRoute>)>, ListError> {
        let (mut due, mut seen, mut cursor) = (Vec::new(), HashMap::new(), None::<String>);
        loop {
            let page = self.store.records.list(Listing::Unsettled, cursor.as_deref(), PAGE).await?;
            for (slot, held) in page.records {
                let Some(guarded) = routes.get(&held.record.route).filter(|_| waits(&held)) else {
                    continue;
                };
                let now = Instant::now();
                let Asked { times, next } = match asked.remove(&slot) {
                    Some(asked) => asked,
                    None if seen.len() < REMEMBERED_MAX => Asked { times: 0, next: now },
                    None => continue,
                };
                let turn = next <= now && times < QUESTIONS_PER_OPERATION;
                let pause = PAUSE_MIN.saturating_mul(1 << times.min(16)).min(PAUSE_MAX);
                let after = if turn {
                    Asked { times: times + 1, next: now + self.entropy.jitter(pause) }
                } else {
                    Asked { times, next }
                };
                seen.insert(slot, after);
                if turn {
                    due.push((slot, guarded.clone()));
                }
            }
            cursor = page.cursor;
            if cursor.is_none() {
                // What was settled meanwhile is forgotten.
                *asked = seen;
                return Ok(due);
            }
        }
    }

    async fn ask_unasked<S, B, RB>(
        &self,
        slot: &Slot,
        guarded: &ProtectedRoute,
        prepare: impl Fn(&ProtectedRoute, &mut Request<Payload<B>>),
        service: &mut S,
    ) -> Result<(), NeverProbed>
    where
        S: Service<Request<Payload<B>>, Response = Response<RB>>,
        S::Error: Into<BoxError>,
        RB: Body<Data = Bytes> + Unpin,
        RB::Error: Into<BoxError>,
    {
        // Those who have a client come first.
        let (Some(_place), Some(probe)) = (self.in_flight.protected(None), probe_of(guarded))
        else {
            return Ok(());
        };
        let Ok(Some(held)) = self.store.records.load(slot).await else { return Ok(()) };
        let key = held.record.kept.as_ref().and_then(|kept| std::str::from_utf8(kept).ok());
        let Some(key) = key.filter(|_| waits(&held)) else { return Ok(()) };
        let Some(mut request) = question(probe, key) else {
            self.count_withheld(&guarded.route.policy, slot);
            return Err(NeverProbed);
        };
        request.headers_mut().extend(probe.headers.clone());
        prepare(guarded, &mut request);
        let mut hold = self.budget.hold();
        let policy = &guarded.route.policy;
        let asking = self.put_question(policy, probe, request, service, &mut hold);
        let finding = timeout(guarded.response_timeout, asking).await.unwrap_or(Finding::Unclear);
        self.count(&finding);
        let Some(next) = believe_in_background(&held, finding, Fence(self.entropy.next()), policy)
        else {
            return Ok(());
        };
        match self
            .write(
                slot,
                Some(held.record.version),
                (&next.record, next.lifetime),
                policy,
                Context::default,
            )
            .await
        {
            Ok(Swap::Stored) => {
                tracing::info!(route = %policy.route, operation = %slot, state = next.record.state.name(), "the upstream told what became of an uncertain operation");
            }
            Ok(Swap::Stale(_) | Swap::Large(_)) => {}
            Err(error) => {
                tracing::debug!(operation = %slot, %error, "what the upstream told is not stored")
            }
        }
        Ok(())
    }
}

/// Whether an operation is uncertain, and nobody has decided about it yet.
fn waits(held: &Held) -> bool {
    matches!(held.record.state, State::Uncertain { retry: None, .. })
}
