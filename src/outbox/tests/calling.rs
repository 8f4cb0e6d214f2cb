//! Stories of calls over a store in memory, with a gate that answers as the test wants.

use http::{HeaderMap, Method, StatusCode};

use super::*;
use crate::gate::CallOutcome;
use crate::outbox::call::requeue::RequeueRule;
use crate::outbox::caller::{CallRouteError, OperationCaller, PreparedCall, SinkCall};
use crate::outbox::settings::CallTarget;
use crate::record::{Reply, ReplyBody};
use crate::refusal::Refusal;
use crate::store::dead_letters::Burial;
use crate::store::outbox::RelayFence;
use crate::template::{Template, TemplateKind};

/// Returns the outcome of a call, from the number of earlier calls.
type Deciding = dyn Fn(&SinkCall, usize) -> CallOutcome + Send + Sync;

/// A gate that records its calls.
pub(super) struct Calls {
    made: Mutex<Vec<SinkCall>>,
    decide: Box<Deciding>,
    work: Duration,
    /// The number of calls that run now, and the highest one so far.
    running: Mutex<(usize, usize)>,
}

#[async_trait]
impl OperationCaller for Calls {
    fn prepare(&self, _: &SinkCall) -> Result<PreparedCall, CallRouteError> {
        Ok(PreparedCall { operation: operation(), announced: Vec::new() })
    }

    async fn call(&self, call: SinkCall) -> Result<CallOutcome, CallRouteError> {
        let before = {
            let mut made = self.made.lock().unwrap();
            made.push(call.clone());
            made.len() - 1
        };
        // A look finds the outcome in the store.
        if !call.continues {
            {
                let (now, most) = &mut *self.running.lock().unwrap();
                *now += 1;
                *most = (*most).max(*now);
            }
            tokio::time::sleep(self.work).await;
            self.running.lock().unwrap().0 -= 1;
        }
        Ok((self.decide)(&call, before))
    }
}

pub(super) fn operation() -> Slot {
    slot(Space::Enforced, 99)
}

pub(super) fn answered() -> CallOutcome {
    let reply = Reply {
        status: StatusCode::CREATED,
        headers: HeaderMap::new(),
        body: ReplyBody::NotStored,
        trailers: None,
    };
    CallOutcome::Answered { operation: operation(), reply: Arc::new(reply), replayed: false }
}

impl Calls {
    pub(super) fn new(
        work: Duration,
        decide: impl Fn(&SinkCall, usize) -> CallOutcome + Send + Sync + 'static,
    ) -> Arc<Calls> {
        let (made, running) = (Mutex::default(), Mutex::default());
        Arc::new(Calls { made, decide: Box::new(decide), work, running })
    }

    /// Returns the keys of all calls, and whether each only continues.
    fn made(&self) -> Vec<(String, bool)> {
        let made = self.made.lock().unwrap();
        made.iter().map(|call| (call.key.clone(), call.continues)).collect()
    }

    /// Returns the number of calls that began an operation, and of those that continued one.
    pub(super) fn counts(&self) -> (usize, usize) {
        let made = self.made.lock().unwrap();
        let continued = made.iter().filter(|call| call.continues).count();
        (made.len() - continued, continued)
    }

    /// Runs a relay with a sink that calls, until nothing waits.
    async fn deliver(self: &Arc<Calls>, scene: &Scene) {
        let relay = self.relay(scene, calling_sink(0));
        until("nothing waits", async || scene.waiting().await == 0).await;
        relay.stop().await;
    }

    /// Starts a relay with a sink that calls.
    fn relay(self: &Arc<Calls>, scene: &Scene, sink: Arc<Sink>) -> Relay {
        self.relay_with(scene.parts(), sink)
    }

    /// Starts a relay with these parts.
    pub(super) fn relay_with(self: &Arc<Calls>, parts: RelayParts, sink: Arc<Sink>) -> Relay {
        let relay = Relay::start(parts, Arc::new(BTreeMap::from([(LEDGER.to_owned(), sink)])));
        relay.set_caller(self.clone());
        relay
    }
}

/// Returns a sink that calls, at most at this rate.
pub(super) fn calling_sink(rate: u32) -> Arc<Sink> {
    Sink::new(SinkSettings { rate, ..calling_settings() }).unwrap()
}

fn calling_settings() -> SinkSettings {
    let target = CallTarget {
        route: "shipments".into(),
        method: Method::POST,
        path: Template::new(TemplateKind::Path, "/v1/{{ data.operation }}").unwrap(),
        body: None,
        headers: HeaderMap::new(),
    };
    SinkSettings { target: SinkTarget::Call(target), ..settings() }
}

#[tokio::test]
async fn a_round_that_was_not_sent_begins_again_under_its_key_and_then_only_continues() {
    let calls = Calls::new(Duration::ZERO, |_, before| match before {
        0 => CallOutcome::StoreUnavailable { retry_after: Duration::ZERO },
        1 => CallOutcome::Draining,
        2 => CallOutcome::InFlight { operation: operation(), retry_after: Duration::ZERO },
        _ => answered(),
    });
    let scene = Scene::new();
    scene.change(1, 7, None).await;
    calls.deliver(&scene).await;
    let made = calls.made();
    let key = &made[0].0;
    assert!(made.iter().all(|(other, _)| other == key), "{made:?}");
    let continues: Vec<bool> = made.iter().map(|(_, continues)| *continues).collect();
    assert_eq!(continues, [false, false, false, true]);
    assert_eq!(scene.dead_letters().await, []);
}

#[tokio::test]
async fn a_call_that_takes_longer_than_an_attempt_is_not_made_beside_itself() {
    // An attempt has 100 ms.
    let calls = Calls::new(Duration::from_millis(400), |_, _| answered());
    let scene = Scene::new();
    scene.change(1, 7, None).await;
    calls.deliver(&scene).await;
    let continues: Vec<bool> = calls.made().iter().map(|(_, continues)| *continues).collect();
    assert_eq!(continues, [false, true], "the second one looks at the outcome of the first");
}

#[tokio::test]
async fn each_event_has_a_call_of_its_own_and_a_lost_outcome_is_no_second_call() {
    let calls = Calls::new(Duration::ZERO, |call, _| match call.continues {
        false => CallOutcome::Uncertain { operation: operation(), retry_after: None },
        true => CallOutcome::NothingToContinue { operation: operation(), was_released: false },
    });
    let scene = Scene::new();
    scene.change(1, 7, None).await;
    scene.change(2, 7, None).await;
    calls.deliver(&scene).await;
    let begun: BTreeSet<_> = calls.made().into_iter().filter(|(_, continues)| !continues).collect();
    assert_eq!((begun.len(), calls.made().len()), (2, 4));
    let letters = scene.dead_letters().await;
    assert_eq!(letters.len(), 2);
    assert!(letters.iter().all(|letter| letter.burial.kind == DeadLetterKind::Gateway));
}

#[tokio::test(start_paused = true)]
async fn looks_at_open_calls_take_nothing_from_the_rate() {
    let calls = Calls::new(Duration::ZERO, |_, _| CallOutcome::Uncertain {
        operation: operation(),
        retry_after: None,
    });
    let scene = Scene::in_tokio_time();
    let relay = calls.relay(&scene, calling_sink(2));
    for number in 1..=20 {
        scene.change(number, 7, None).await;
    }
    until("all calls are open", async || calls.counts().0 == 20).await;
    // Each open call is looked at about once a second: that is more than the rate.
    let (begun, looks) = (tokio::time::Instant::now(), calls.counts().1);
    for number in 21..=26 {
        scene.change(number, 7, None).await;
    }
    until("the new calls", async || calls.counts().0 == 26).await;
    let elapsed = begun.elapsed();
    assert!(elapsed < Duration::from_secs(4), "six calls at a rate of two: {elapsed:?}");
    assert!(elapsed > Duration::from_secs(2), "calls keep to the rate: {elapsed:?}");
    assert!(calls.counts().1 > looks + 20, "looks go on: {:?}", calls.counts());
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn calls_that_take_longer_than_an_attempt_count_in_the_concurrency() {
    // An attempt has 100 ms.
    let calls = Calls::new(Duration::from_millis(2_500), |_, _| answered());
    let scene = Scene::in_tokio_time();
    for number in 1..=6 {
        scene.change(number, 7, None).await;
    }
    let sink = Sink::new(SinkSettings { concurrency: 2, ..calling_settings() }).unwrap();
    let relay = calls.relay(&scene, sink);
    until("nothing waits", async || scene.waiting().await == 0).await;
    relay.stop().await;
    assert_eq!(*calls.running.lock().unwrap(), (0, 2), "calls at once");
    assert_eq!(calls.counts().0, 6, "each event calls once");
}

#[tokio::test]
async fn a_call_that_succeeded_after_its_burial_is_not_made_again_by_a_requeue() {
    let calls = Calls::new(Duration::ZERO, |_, _| CallOutcome::Uncertain {
        operation: operation(),
        retry_after: None,
    });
    let scene = Scene::new();
    scene.change(1, 7, None).await;
    let relay = calls.relay(&scene, calling_sink(0));
    until("the call", async || calls.counts().0 == 1).await;
    relay.stop().await;
    // The gateway could not open the event: the round stays as it is.
    let event = scene.store.waiting_of(LEDGER, &slot(Space::Enforced, 1)).await.unwrap().remove(0);
    let burial = Burial {
        kind: DeadLetterKind::Gateway,
        report: EventContent::Plain(Bytes::from_static(b"{\"count\":1}")),
    };
    let owner = scene.store.partition_owners().await.unwrap()[0];
    assert!(scene.store.own_partition(0, RelayFence(1), owner).await.unwrap());
    assert!(scene.store.bury(RelayFence(1), &event.key, 0, &burial).await.unwrap());
    let letter = scene.dead_letters().await.remove(0);
    let RequeueRule::Look(called) = RequeueRule::of(&letter) else { panic!("the round began") };
    assert_eq!(called, operation());
    // The answer arrives late.
    let (record, keep) = (completed(3), Lifetime { keep: PATIENCE, due: None, tombstone: None });
    let swap = scene.store.write(&called, None, &record, keep, Events::NONE).await.unwrap();
    assert_eq!(swap, Swap::Stored);
    let held = scene.store.remains(&called).await.unwrap();
    let rule = RequeueRule::after_look(&letter, held.as_ref().map(|held| &held.record.state));
    let RequeueRule::Begin(round) = rule else { panic!("{rule:?}") };
    let id = crate::store::dead_letters::DeadLetterId::of(&letter.key);
    assert!(scene.store.requeue(id, round).await.unwrap());
    let relay = calls.relay(&scene, calling_sink(0));
    until("nothing waits", async || scene.waiting().await == 0).await;
    relay.stop().await;
    assert_eq!((calls.counts().0, scene.dead_letters().await.len()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_round_that_was_only_refused_gives_way_to_a_new_one() {
    let too_large =
        || CallOutcome::NotSent { refusal: Refusal::BodyTooLarge { limit: 1 }, retryable: false };
    // The second story has an outage before the refusal. Then the operation decides.
    for (outages, is_new) in [(0, true), (1, false)] {
        let calls = Calls::new(Duration::ZERO, move |_, before| match before {
            before if before < outages => {
                CallOutcome::StoreUnavailable { retry_after: Duration::ZERO }
            }
            _ => too_large(),
        });
        let scene = Scene::in_tokio_time();
        scene.change(1, 7, None).await;
        calls.deliver(&scene).await;
        let letter = scene.dead_letters().await.remove(0);
        assert_eq!(letter.burial.kind, DeadLetterKind::Gateway);
        let RequeueRule::Begin(round) = RequeueRule::of(&letter) else { panic!("it is known") };
        assert_eq!(round.to > round.from, is_new, "{outages} outages");
    }
}
