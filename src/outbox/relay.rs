//! The relay: starts and stops the workers of sinks, wakes them, and looks at the backlogs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, broadcast, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::backlog::{BacklogLook, Backlogs};
use super::caller::OperationCaller;
use super::membership::Membership;
use super::ownership::Ownership;
use super::shared::RelayShared;
use super::sink::Sink;
use super::states::SinkStates;
use super::test_event::{NotTestable, SinkTest, send_test};
use super::worker::{ReadyPartitions, Worker};
use crate::clock::Clock;
use crate::entropy::Entropy;
use crate::store::Store;
use crate::store::outbox::{OutboxWake, RelayFence};
use crate::telemetry::OutboxMeter;

/// Shortest lease of a relay.
const LEASE_MIN: Duration = Duration::from_secs(10);
/// Time between two looks at the backlogs while something waits, and at the states of sinks.
const LOOK: Duration = Duration::from_secs(1);
/// Time between two looks at the backlogs while nothing waits. A look also finds events that had a
/// lost wake-up.
const IDLE_LOOK: Duration = Duration::from_secs(30);

/// The sinks of a configuration, by name.
pub type Sinks = Arc<BTreeMap<String, Arc<Sink>>>;

/// The parts of a process that a relay needs.
pub struct RelayParts {
    /// The store.
    pub store: Store,
    /// The clock.
    pub clock: Clock,
    /// The randomness.
    pub entropy: Arc<Entropy>,
    /// The metrics.
    pub meter: OutboxMeter,
    /// The backlogs.
    pub backlogs: Backlogs,
    /// Whether this process delivers events. If not, it only looks at the backlogs.
    pub delivers: bool,
}

/// A running relay. Dropping it ends the relay when its attempts have ended; [`Relay::stop`] also
/// waits for that.
pub struct Relay {
    sinks: watch::Sender<Sinks>,
    stop: CancellationToken,
    looks: AbortOnDropHandle<()>,
    delivery: Option<JoinHandle<()>>,
    view: RelayView,
}

/// The state of a relay, for operators. Cheap to clone.
#[derive(Clone)]
pub struct RelayView {
    sinks: watch::Receiver<Sinks>,
    backlogs: Backlogs,
    shared: Arc<RelayShared>,
}

impl RelayView {
    /// Returns the configured sinks.
    pub fn sinks(&self) -> Sinks {
        self.sinks.borrow().clone()
    }

    /// Returns the backlogs at the last look.
    pub fn backlogs(&self) -> &Backlogs {
        &self.backlogs
    }

    /// Sends a test event to a configured sink, once, and waits for the result: at most for the
    /// sink's timeout, and at most 30 s. `source` is the event's `source`. Returns `None` if no
    /// sink has this name.
    pub async fn test(&self, sink: &str, source: &str) -> Option<Result<SinkTest, NotTestable>> {
        let sink = self.sinks().get(sink)?.clone();
        let entropy = &self.shared.entropy;
        let random = u128::from(entropy.next()) << 64 | u128::from(entropy.next());
        Some(send_test(&sink, source, random, self.shared.clock.unix_ms()).await)
    }

    /// Makes the relay look at the backlogs now, after an operator's change.
    pub fn backlogs_changed(&self) {
        self.shared.backlogs_changed.notify_one();
    }

    /// Makes the relay look at the states of sinks now, after a change.
    pub fn states_changed(&self) {
        self.shared.states_changed.notify_one();
    }
}

/// A worker, and how it is reached.
struct RunningWorker {
    sink: Arc<Sink>,
    ready: Arc<ReadyPartitions>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Relay {
    /// Starts a relay for some sinks.
    pub fn start(parts: RelayParts, sinks: Sinks) -> Relay {
        let RelayParts { store, clock, entropy, meter, backlogs, delivers } = parts;
        let lease = lease(&sinks);
        let shared = Arc::new(RelayShared {
            outbox: store.outbox,
            notes: store.identities,
            records: store.records,
            ownership: Ownership::new(clock.clone(), lease, RelayFence(entropy.next())),
            clock,
            entropy,
            meter,
            known_states: Default::default(),
            relay_left: Arc::default(),
            states_changed: Arc::default(),
            backlogs_changed: Arc::default(),
            calls: Arc::default(),
        });
        let (sender, receiver) = watch::channel(sinks);
        let view = RelayView { sinks: receiver, backlogs, shared: shared.clone() };
        let stop = CancellationToken::new();
        let ready = watch::Sender::new(BTreeMap::new());
        let gained = Arc::new(Notify::new());
        let looks = Looks::new(view.clone(), delivers, ready.subscribe(), gained.clone());
        let looks = tokio::spawn(looks.run());
        let delivery = delivers.then(|| {
            let delivery = Delivery { shared, sinks: sender.subscribe(), ready, gained };
            tokio::spawn(delivery.run(stop.clone()))
        });
        Relay { sinks: sender, stop, looks: AbortOnDropHandle::new(looks), delivery, view }
    }

    /// Sets the way of sinks that call to the gate. Until then, their events wait.
    pub fn set_caller(&self, caller: Arc<dyn OperationCaller>) {
        self.view.shared.calls.set_caller(caller);
    }

    /// Returns the state of the relay, for operators.
    pub fn view(&self) -> RelayView {
        self.view.clone()
    }

    /// Replaces the sinks, after a reload. A sink with the same settings goes on undisturbed.
    pub fn replace(&self, sinks: Sinks) {
        let before = self.sinks.borrow().clone();
        let next = |(name, sink): (&String, &Arc<Sink>)| {
            let sink = match before.get(name) {
                Some(before) if before.settings == sink.settings => before.clone(),
                Some(before) => {
                    sink.follow(before);
                    sink.clone()
                }
                None => sink.clone(),
            };
            (name.clone(), sink)
        };
        let sinks: Sinks = Arc::new(sinks.iter().map(next).collect());
        self.view.shared.ownership.set_lease(lease(&sinks));
        self.sinks.send_replace(sinks);
    }

    /// Ends the relay: begins no more attempts, waits for those under way (each has its timeout),
    /// and gives its partitions to the other relays.
    pub async fn stop(self) {
        self.stop.cancel();
        if let Some(delivery) = self.delivery {
            // An error means that the task panicked. Its lease ends.
            _ = delivery.await;
        }
        drop(self.looks);
    }
}

/// Returns the lease for these sinks: an attempt that begins with it ends before it does.
fn lease(sinks: &Sinks) -> Duration {
    let longest = sinks.values().map(|sink| sink.settings.timeout).max().unwrap_or_default();
    LEASE_MIN.max(2 * longest)
}

/// The ways to the workers, by the names of their sinks.
type Ready = BTreeMap<String, Arc<ReadyPartitions>>;

/// The part of a relay that looks at the store: at the backlogs and the states of sinks.
struct Looks {
    view: RelayView,
    /// Whether this process delivers. If not, it has no use for wake-ups: they would cost the store
    /// and this process a message for each event.
    delivers: bool,
    ready: watch::Receiver<Ready>,
    /// Set when this relay has new partitions or workers.
    gained: Arc<Notify>,
    /// The wake-ups, once there are sinks.
    wakes: Option<broadcast::Receiver<OutboxWake>>,
    /// Time of the last look after which the workers read everything.
    looked: Option<Instant>,
    is_idle: bool,
    /// The sinks with a backlog that the configuration does not name.
    missing: BTreeSet<String>,
}

impl Looks {
    fn new(
        view: RelayView,
        delivers: bool,
        ready: watch::Receiver<Ready>,
        gained: Arc<Notify>,
    ) -> Looks {
        let (wakes, missing) = (None, BTreeSet::new());
        Looks { view, delivers, ready, gained, wakes, looked: None, is_idle: false, missing }
    }

    /// Looks until the task is dropped.
    async fn run(mut self) {
        loop {
            let has_changed = self.look_at_states().await;
            if has_changed {
                // The worker of a resumed sink goes on.
                self.ready.borrow().values().for_each(|ready| ready.add([]));
            }
            let is_due = !self.is_idle || self.looked.is_none_or(|at| at.elapsed() >= IDLE_LOOK);
            // The look also shows in the metrics which sinks are paused.
            if is_due || has_changed {
                self.look_at_backlogs().await;
            }
            self.wait().await;
        }
    }

    /// Returns whether the states of sinks have changed. Without sinks there is nothing to know.
    async fn look_at_states(&mut self) -> bool {
        if self.view.sinks.borrow().is_empty() {
            return false;
        }
        let shared = &self.view.shared;
        if self.delivers {
            self.wakes.get_or_insert_with(|| shared.outbox.wakes());
        }
        let states = SinkStates::load(&*shared.notes).await;
        states.is_ok_and(|states| shared.set_states(states))
    }

    async fn look_at_backlogs(&mut self) {
        let RelayView { sinks, backlogs, shared } = &self.view;
        let (known, states) = (sinks.borrow().clone(), shared.states());
        let settings = known.values().map(|sink| &sink.settings);
        let is_paused = |sink: &str| states.of(sink).pause.is_some();
        let now_ms = shared.clock.unix_ms();
        let seen = backlogs.refresh(&*shared.outbox, settings, is_paused, now_ms).await;
        let Ok(BacklogLook { waiting, has_full }) = seen else { return };
        // Without wake-ups, only the next look finds a new event.
        let may_idle = self.delivers || known.is_empty();
        self.is_idle = may_idle && waiting.is_empty() && !has_full;
        let missing = not_configured(backlogs, &known);
        for sink in missing.difference(&self.missing) {
            tracing::warn!(sink, "events wait for a sink that is not configured");
        }
        self.missing = missing;
        if self.looked.is_none_or(|at| at.elapsed() >= IDLE_LOOK) {
            self.looked = Some(Instant::now());
            for (sink, partitions) in waiting {
                self.read(&sink, partitions);
            }
        }
    }

    /// Makes the worker of a sink read partitions.
    fn read(&self, sink: &str, partitions: impl IntoIterator<Item = u16>) {
        if let Some(ready) = self.ready.borrow().get(sink) {
            ready.add(partitions);
        }
    }

    /// Hands wake-ups on until the next look.
    async fn wait(&mut self) {
        let pause = tokio::time::sleep(LOOK);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                // A fixed order, so that a simulation can repeat a run.
                biased;
                () = &mut pause => return,
                () = self.view.shared.states_changed.notified() => return,
                () = self.view.shared.backlogs_changed.notified() => {
                    self.is_idle = false;
                    return;
                }
                () = self.gained.notified() => {
                    self.looked = None;
                    return;
                }
                Ok(()) = self.view.sinks.changed() => {
                    self.looked = None;
                    return;
                }
                woken = next_wake(&mut self.wakes) => match woken {
                    Ok(OutboxWake { partition: OutboxWake::LEFT, .. }) => {
                        self.view.shared.relay_left.notify_one();
                    }
                    Ok(OutboxWake { partition, sink }) => {
                        self.is_idle = false;
                        self.read(&sink, [partition]);
                    }
                    Err(RecvError::Lagged(_)) => self.looked = None,
                    Err(RecvError::Closed) => return (&mut pause).await,
                },
            }
        }
    }
}

async fn next_wake(
    wakes: &mut Option<broadcast::Receiver<OutboxWake>>,
) -> Result<OutboxWake, RecvError> {
    match wakes {
        Some(wakes) => wakes.recv().await,
        None => std::future::pending().await,
    }
}

/// The part of a relay that delivers.
struct Delivery {
    shared: Arc<RelayShared>,
    sinks: watch::Receiver<Sinks>,
    ready: watch::Sender<Ready>,
    gained: Arc<Notify>,
}

impl Delivery {
    async fn run(mut self, stop: CancellationToken) {
        // Without sinks there is nothing to deliver, and a relay would only cost store calls.
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            present = self.sinks.wait_for(|sinks| !sinks.is_empty()) => if present.is_err() {
                return;
            },
        }
        let membership = Arc::new(Membership {
            outbox: self.shared.outbox.clone(),
            clock: self.shared.clock.clone(),
            entropy: self.shared.entropy.clone(),
            ownership: self.shared.ownership.clone(),
            wake: self.shared.relay_left.clone(),
            gained: self.gained.clone(),
        });
        let keeping = tokio::spawn({
            let membership = membership.clone();
            async move { membership.keep().await }
        });
        let keeping = AbortOnDropHandle::new(keeping);
        let mut workers: BTreeMap<String, RunningWorker> = BTreeMap::new();
        // The workers of removed sinks, until their attempts end. A sink that comes back waits for
        // its former worker.
        let mut leaving: BTreeMap<String, RunningWorker> = BTreeMap::new();
        loop {
            let sinks = self.sinks.borrow_and_update().clone();
            leaving.retain(|_, worker| !worker.task.is_finished());
            self.follow(&mut workers, &mut leaving, &sinks);
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                changed = self.sinks.changed() => {
                    if changed.is_err() {
                        break;
                    }
                }
            }
        }
        workers.values().for_each(|worker| worker.stop.cancel());
        for worker in workers.into_values().chain(leaving.into_values()) {
            // An error means that the worker panicked. Its attempts have ended, too.
            _ = worker.task.await;
        }
        drop(keeping);
        membership.leave().await;
    }

    /// Starts, stops and replaces workers, so that they are those of the configuration.
    fn follow(
        &self,
        workers: &mut BTreeMap<String, RunningWorker>,
        leaving: &mut BTreeMap<String, RunningWorker>,
        sinks: &Sinks,
    ) {
        let mut before = std::mem::take(workers);
        for (name, sink) in &**sinks {
            let old = before.remove(name);
            let next = match old {
                Some(old) if Arc::ptr_eq(&old.sink, sink) => old,
                old => self.worker(sink, old.or_else(|| leaving.remove(name))),
            };
            workers.insert(name.clone(), next);
        }
        before.values().for_each(|gone| gone.stop.cancel());
        leaving.extend(before);
        let ready = workers.iter().map(|(name, worker)| (name.clone(), worker.ready.clone()));
        self.ready.send_replace(ready.collect());
        // The new workers read everything.
        self.gained.notify_one();
    }

    /// Starts a worker. It begins when the worker that it replaces has ended its attempts, so that
    /// an operation never has two of them.
    fn worker(&self, sink: &Arc<Sink>, before: Option<RunningWorker>) -> RunningWorker {
        let (ready, stop) = (Arc::<ReadyPartitions>::default(), CancellationToken::new());
        let worker = Worker::new(self.shared.clone(), sink.clone(), ready.clone());
        let worker_stop = stop.clone();
        let task = tokio::spawn(async move {
            if let Some(before) = before {
                worker_follows(&worker_stop, before).await;
            }
            worker.run(worker_stop).await;
        });
        RunningWorker { sink: sink.clone(), ready, stop, task }
    }
}

async fn worker_follows(stop: &CancellationToken, before: RunningWorker) {
    before.stop.cancel();
    // An error means that the worker panicked. Its attempts have ended, too.
    _ = before.task.await;
    if stop.is_cancelled() {
        tracing::debug!("a worker was replaced before it began");
    }
}

/// Returns the names of sinks for which something waits, and that the configuration does not name.
pub fn not_configured(backlogs: &Backlogs, sinks: &Sinks) -> BTreeSet<String> {
    let sums = backlogs.sums();
    sums.keys().filter(|name| !sinks.contains_key(*name)).cloned().collect()
}
