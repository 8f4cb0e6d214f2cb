//! The reconciler: probes upstreams about uncertain operations without waiting for a duplicate.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use http::Request;
use tokio::time::{Instant, sleep, timeout};

use crate::engine::{Finding, OnUncertain, Probe, believe_in_background};
use crate::event::Context;
use crate::gate::claim::probe::probe_request;
use crate::gate::payload::Payload;
use crate::gate::state::{Gate, ProtectedRoute};
use crate::gate::upstream_service::UpstreamService;
use crate::key::Slot;
use crate::record::{Fence, Held, State};
use crate::store::{ListError, Listing, Swap};

/// Time between two reads of the unsettled operations, jittered, because several gateways read the
/// same list.
const PERIOD: Duration = Duration::from_secs(1);

/// Operations on a page of the list.
const PAGE: usize = 256;

/// Maximum probes at the same time. An upstream that has just lost answers must not get a flood of
/// probes.
const PROBES_MAX: usize = 4;

/// First and longest pause between two probes of one operation.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(600);

/// Maximum probes of one operation. All of them take about two and a half hours. After that an
/// operator has to settle the operation.
const PROBES_PER_OPERATION: u32 = 24;

/// Maximum operations with a probe schedule. Further operations wait until one of these is settled.
const SCHEDULES_MAX: usize = 10_000;

/// The probes of one operation.
struct ProbeSchedule {
    sent: u32,
    next: Instant,
}

/// The operation's key does not fit into the probe's path. The operation is counted and logged
/// once, and never probed.
struct NeverProbed;

/// Probes uncertain operations for ever. `prepare` adds to each probe the extensions that the
/// service needs to find the upstream.
pub async fn reconcile<S, B>(
    gate: Arc<Gate>,
    routes: Vec<Arc<ProtectedRoute>>,
    prepare: impl Fn(&ProtectedRoute, &mut Request<Payload<B>>),
    service: S,
) where
    S: UpstreamService<B> + Clone,
{
    let mut routes: HashMap<Arc<str>, Arc<ProtectedRoute>> =
        routes.into_iter().map(|guarded| (guarded.route.policy.route.clone(), guarded)).collect();
    routes.retain(|_, guarded| probe_of(guarded).is_some());
    if routes.is_empty() {
        return std::future::pending().await;
    }
    let mut schedules: HashMap<Slot, ProbeSchedule> = HashMap::new();
    loop {
        sleep(gate.entropy.jitter(PERIOD)).await;
        let due = match gate.due_probes(&routes, &mut schedules).await {
            Ok(due) => due,
            Err(error) => {
                tracing::debug!(%error, "unsettled operations not read");
                continue;
            }
        };
        let probes = due.into_iter().map(|(slot, route)| {
            let (gate, prepare, mut service) = (&gate, &prepare, service.clone());
            async move {
                gate.probe_in_background(&slot, &route, prepare, &mut service)
                    .await
                    .map_err(|NeverProbed| slot)
            }
        });
        let ended: Vec<Result<(), Slot>> =
            futures_util::stream::iter(probes).buffer_unordered(PROBES_MAX).collect().await;
        for slot in ended.into_iter().filter_map(Result::err) {
            schedules.entry(slot).and_modify(|schedule| schedule.sent = PROBES_PER_OPERATION);
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
    /// Returns the uncertain operations that are due for a probe.
    async fn due_probes(
        &self,
        routes: &HashMap<Arc<str>, Arc<ProtectedRoute>>,
        schedules: &mut HashMap<Slot, ProbeSchedule>,
    ) -> Result<Vec<(Slot, Arc<ProtectedRoute>)>, ListError> {
        let (mut due, mut next_schedules, mut cursor) =
            (Vec::new(), HashMap::new(), None::<String>);
        loop {
            let page = self.store.records.list(Listing::Unsettled, cursor.as_deref(), PAGE).await?;
            for (slot, held) in page.records {
                let Some(guarded) = routes.get(&held.record.route).filter(|_| is_undecided(&held))
                else {
                    continue;
                };
                let now = Instant::now();
                let mut schedule = match schedules.remove(&slot) {
                    Some(schedule) => schedule,
                    None if next_schedules.len() < SCHEDULES_MAX => {
                        ProbeSchedule { sent: 0, next: now }
                    }
                    None => continue,
                };
                let is_due = schedule.next <= now && schedule.sent < PROBES_PER_OPERATION;
                if is_due {
                    let pause = PAUSE_MIN.saturating_mul(1 << schedule.sent.min(16)).min(PAUSE_MAX);
                    schedule.sent += 1;
                    schedule.next = now + self.entropy.jitter(pause);
                }
                next_schedules.insert(slot, schedule);
                if is_due {
                    due.push((slot, guarded.clone()));
                }
            }
            cursor = page.cursor;
            if cursor.is_none() {
                // The schedules of operations that are settled by now are dropped.
                *schedules = next_schedules;
                return Ok(due);
            }
        }
    }

    async fn probe_in_background<S, B>(
        &self,
        slot: &Slot,
        guarded: &ProtectedRoute,
        prepare: impl Fn(&ProtectedRoute, &mut Request<Payload<B>>),
        service: &mut S,
    ) -> Result<(), NeverProbed>
    where
        S: UpstreamService<B>,
    {
        // Without a free permit the probe is skipped, because clients' requests come first.
        let (Some(_permit), Some(probe)) = (self.in_flight.protected(None), probe_of(guarded))
        else {
            return Ok(());
        };
        let Ok(Some(held)) = self.store.records.load(slot).await else { return Ok(()) };
        let key = held.record.kept.as_ref().and_then(|kept| std::str::from_utf8(kept).ok());
        let Some(key) = key.filter(|_| is_undecided(&held)) else { return Ok(()) };
        let Some(mut request) = probe_request(probe, key) else {
            self.count_withheld_probe(&guarded.route.policy, slot);
            return Err(NeverProbed);
        };
        request.headers_mut().extend(probe.headers.clone());
        prepare(guarded, &mut request);
        let mut hold = self.budget.hold();
        let policy = &guarded.route.policy;
        let sending = self.send_probe(policy, probe, request, service, &mut hold);
        let finding = timeout(guarded.response_timeout, sending).await.unwrap_or(Finding::Unclear);
        self.count_finding(&finding);
        let Some(next) = believe_in_background(&held, finding, Fence(self.entropy.next()), policy)
        else {
            return Ok(());
        };
        let expected = Some(held.record.version);
        let context = Context::default;
        match self.write(slot, expected, (&next).into(), policy, context).await {
            Ok(Swap::Stored) => {
                tracing::info!(
                    route = %policy.route,
                    operation = %slot,
                    state = next.record.state.name(),
                    "probe settled an uncertain operation"
                );
            }
            Ok(Swap::Stale(_) | Swap::Large(_)) => {}
            Err(error) => {
                tracing::debug!(operation = %slot, %error, "result of a probe not stored")
            }
        }
        Ok(())
    }
}

/// Returns whether an operation is uncertain and no operator has decided to retry it.
fn is_undecided(held: &Held) -> bool {
    matches!(held.record.state, State::Uncertain { retry: None, .. })
}
