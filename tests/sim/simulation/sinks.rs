//! Sinks: the rules that publish to them, the relays that deliver, their receivers, and an operator
//! who pauses sinks and decides about dead letters.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Uri};
use onceward::engine::{PublishRule, PublishRules};
use onceward::entropy::Entropy;
use onceward::gate::Gate;
use onceward::outbox::backlog::Backlogs;
use onceward::outbox::delivery::{AttemptResult, Delivery};
use onceward::outbox::relay::{Relay, RelayParts, Sinks};
use onceward::outbox::settings::{RetryRule, SinkSettings, SinkTarget, WebhookTarget};
use onceward::outbox::sink::{Sink, SinkClient};
use onceward::outbox::states::{Pause, SinkStates};
use onceward::record::{AnnouncedState, StatusClass};
use onceward::store::dead_letters::{DeadLetterFilter, DeadLetterId, RoundChange};
use onceward::store::sealed::{KEY_BYTES, Sealed, SealingKey, SealingKeys};
use onceward::store::{Outbox, Store};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::checks::ENDS;
use super::dice::Dice;
use super::events::{EventName, REACHES_SINKS};
use super::link::{Link, at_once};
use super::outbox_link::RelayLink;
use super::process::Process;
use super::world::{Gateway, World};

/// The names of the sinks. A seed has the first ones.
pub const SINKS: [&str; 3] = ["ledger", "mail", "search"];

/// The settings of all sinks of a seed.
#[derive(Debug, Clone)]
pub struct SinksPlan {
    pub count: usize,
    pub timeout: Duration,
    pub retry: RetryRule,
    pub max_backlog: u64,
    /// How often, in a thousand, a receiver does something other than take an event and answer.
    pub trouble: usize,
}

impl SinksPlan {
    pub fn draw(dice: &Dice) -> SinksPlan {
        let seconds = Duration::from_secs;
        let first = Duration::from_millis(dice.pick(&[200, 1000, 5000]));
        SinksPlan {
            count: 1 + dice.below(SINKS.len()),
            timeout: seconds(dice.pick(&[1, 3, 6])),
            retry: RetryRule {
                first,
                max: 2 * first,
                attempts: dice.pick(&[0, 1, 2, 6]),
                age: seconds(dice.pick(&[5, 30, 600])),
            },
            max_backlog: dice.pick(&[1_000_000, 1_000_000, 4]),
            trouble: dice.pick(&[0, 300, 600, 900]),
        }
    }

    /// Draws the rules of the route.
    pub fn rules(&self, dice: &Dice) -> PublishRules {
        use AnnouncedState::{Completed, Released, Uncertain};
        let rule = |on: &[AnnouncedState], statuses: &[StatusClass], kind: Option<&str>| {
            let chosen = 1 + dice.below((1 << self.count) - 1);
            let names = (0..self.count).filter(|place| chosen & 1 << place != 0);
            PublishRule {
                on: on.to_vec(),
                statuses: statuses.to_vec(),
                to: names.map(|place| SINKS[place].to_owned()).collect(),
                kind: kind.map(str::to_owned),
                members: vec![],
            }
        };
        let statuses = if dice.chance(300) { vec![StatusClass::Class(2)] } else { vec![] };
        let mut rules = vec![
            rule(&[Completed], &statuses, None),
            rule(&[Uncertain, Released], &[], None),
            rule(&[Completed, Uncertain, Released], &[], Some("audit")),
        ];
        rules.truncate(1 + dice.below(rules.len()));
        if dice.chance(300) {
            rules.remove(0);
        }
        PublishRules { source: "urn:sim".into(), event_bytes: 1 << 16, rules }
    }

    fn settings(&self, name: &str) -> SinkSettings {
        let target = WebhookTarget {
            url: Uri::from_static("http://receiver.test"),
            secrets: Vec::new(),
            headers: HeaderMap::new(),
            ca_file: None,
        };
        SinkSettings {
            timeout: self.timeout,
            retry: self.retry,
            max_backlog: self.max_backlog,
            ..SinkSettings::new(name, SinkTarget::Webhook(target))
        }
    }
}

/// The relay of a gateway.
#[derive(Clone)]
pub struct Deliveries {
    /// The store, as an operator at this gateway uses it.
    store: Store,
    link: Arc<Link>,
    gate: Arc<Gate>,
    /// The relay. `None` while it stops.
    relay: Arc<Mutex<Option<Relay>>>,
}

impl World {
    /// Starts the relay of a gateway, if there are sinks.
    pub fn start_deliveries(
        self: &Arc<World>,
        link: &Arc<Link>,
        gate: &Arc<Gate>,
    ) -> Option<Deliveries> {
        self.plan.sinks.as_ref()?;
        let (link, gate) = (link.clone(), gate.clone());
        let store = self.relay_store(&link, 0);
        let deliveries = Deliveries { store, link, gate, relay: Arc::default() };
        self.start_relay(&deliveries);
        Some(deliveries)
    }

    fn relay_store(&self, link: &Arc<Link>, relay: u64) -> Store {
        let relayed = Arc::new(RelayLink { link: link.clone(), relay });
        let store = Store {
            records: link.clone(),
            outbox: relayed.clone(),
            dead_letters: relayed.clone(),
            identities: relayed,
            ..Store::from(self.store.clone())
        };
        if !self.plan.sealed {
            return store;
        }
        let key = SealingKey::new("a", &[7; KEY_BYTES]).unwrap();
        Sealed::store(store, Arc::new(SealingKeys::new(vec![key]).unwrap()))
    }

    fn start_relay(self: &Arc<World>, deliveries: &Deliveries) {
        let (relay, process) = (self.number(), &deliveries.link.process);
        let plan = self.plan.sinks.as_ref().unwrap();
        let sink = |(place, name): (usize, &&str)| {
            let (world, process) = (self.clone(), process.clone());
            let receiver = Receiver { world, process, relay, sink: place };
            let sink = Sink::with_client(plan.settings(name), Arc::new(receiver));
            ((*name).to_owned(), sink)
        };
        let sinks = SINKS[..plan.count].iter().enumerate().map(sink);
        let sinks: Sinks = Arc::new(sinks.collect::<BTreeMap<_, _>>());
        let gate = &deliveries.gate;
        let (meter, full) = (gate.meter().outbox.clone(), gate.full_sinks().clone());
        let parts = RelayParts {
            store: self.relay_store(&deliveries.link, relay),
            clock: self.clock(process),
            entropy: Arc::new(Entropy::from_seed(self.dice.next())),
            backlogs: Backlogs::new(meter.clone(), move |names| full.replace(names)),
            meter,
            delivers: true,
        };
        *deliveries.relay.lock().unwrap() = Some(Relay::start(parts, sinks));
    }

    /// Stops the relay of a gateway in order, and starts it again.
    pub fn restart_relay(self: &Arc<World>, Gateway { process, deliveries, .. }: Gateway) {
        let Some(deliveries) = deliveries else { return };
        let Some(relay) = deliveries.relay.lock().unwrap().take() else { return };
        self.count("relay: stops in order");
        self.trouble(Some(process.gateway), "its relay stops in order", Duration::ZERO);
        let world = self.clone();
        let pause = self.dice.span(0, 15_000);
        tokio::spawn(async move {
            let restarts = async {
                relay.stop().await;
                sleep(pause).await;
                world.start_relay(&deliveries);
            };
            process.within(restarts).await
        });
    }

    /// An operator of sinks: pauses and resumes them, requeues and discards dead letters.
    pub async fn steward(self: Arc<World>) {
        while !self.is_calm() {
            sleep(self.dice.span(500, 8000)).await;
            let gateway = self.gateway(self.dice.below(self.plan.gateways));
            let Some(deliveries) = gateway.deliveries else { return };
            let count = self.plan.sinks.as_ref().map_or(1, |plan| plan.count);
            let (act, sink) = (self.dice.below(10), SINKS[self.dice.below(count)]);
            gateway.process.within(self.steer(&deliveries.store, act, sink)).await;
        }
    }

    async fn steer(&self, store: &Store, act: usize, sink: &str) {
        let now_ms = self.store_ms();
        match act {
            0 => {
                let pause = Pause { reason: "maintenance".into(), by: None, since_ms: now_ms };
                if SinkStates::pause(&*store.identities, sink, &pause).await.is_ok() {
                    self.count("operator: pauses a sink");
                }
            }
            1..4 => {
                for sink in SINKS {
                    let _ = SinkStates::resume(&*store.identities, sink, now_ms).await;
                }
            }
            _ => {
                let filter = DeadLetterFilter::default();
                let page = store.dead_letters.dead_letters(&filter, None, 20).await;
                let Ok(page) = page else { return };
                if page.letters.is_empty() {
                    return;
                }
                let letter = &page.letters[self.dice.below(page.letters.len())];
                let id = DeadLetterId::of(&letter.key);
                // A lost answer means that the operator does not know.
                let _ = match act {
                    4 => store.dead_letters.discard(id).await,
                    _ => store.dead_letters.requeue(id, RoundChange::next(letter)).await,
                };
            }
        }
    }

    /// Waits until nothing waits for a sink, and checks the events. Then stops all relays.
    pub async fn check_deliveries(&self) {
        if self.plan.sinks.is_none() {
            return;
        }
        /// Longer than the longest pause of an event, a lease, and the time between two looks at
        /// backlogs.
        const DELIVERING: Duration = Duration::from_secs(180);
        let end = Instant::now() + DELIVERING;
        loop {
            // A pause can be carried out late.
            for sink in SINKS {
                let resumed = SinkStates::resume(&*self.store, sink, self.store_ms());
                at_once(resumed).unwrap();
            }
            let backlog = at_once(self.store.backlog()).unwrap();
            if backlog.iter().all(|part| part.waiting == 0) {
                break;
            }
            if Instant::now() > end {
                self.violated(REACHES_SINKS, None, format!("in the end {backlog:?}"));
                break;
            }
            sleep(Duration::from_secs(1)).await;
        }
        self.check_events();
        for place in 0..self.plan.gateways {
            let deliveries = self.gateway(place).deliveries;
            let relay = deliveries.and_then(|deliveries| deliveries.relay.lock().unwrap().take());
            let Some(relay) = relay else { continue };
            if timeout(Duration::from_secs(60), relay.stop()).await.is_err() {
                self.violated(ENDS, None, format!("the relay of gateway {place} does not stop"));
            }
        }
    }
}

/// A sink's client, and the receiver behind it.
struct Receiver {
    world: Arc<World>,
    process: Arc<Process>,
    relay: u64,
    sink: usize,
}

/// The fate of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Takes,
    TakesSlowly,
    /// It has the event, and its answer comes after the timeout.
    AnswersTooLate,
    /// It has the event, and the connection breaks.
    TakesAndBreaks,
    /// It never gets the event.
    Breaks,
    Silent,
    Refuses(u16),
    Waits,
}

const TROUBLES: [(Fate, &str); 9] = [
    (Fate::TakesSlowly, "sink: takes slowly"),
    (Fate::AnswersTooLate, "sink: takes, answers too late"),
    (Fate::TakesAndBreaks, "sink: takes, breaks off"),
    (Fate::Breaks, "sink: can't be reached"),
    (Fate::Silent, "sink: never answers"),
    (Fate::Refuses(500), "sink: 500"),
    (Fate::Refuses(404), "sink: 404"),
    (Fate::Refuses(410), "sink: 410"),
    (Fate::Waits, "sink: 429"),
];

/// An attempt under way. Dropping it ends the attempt.
struct UnderWay<'w> {
    world: &'w World,
    number: u64,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.world.attempt_ends(self.number);
    }
}

#[async_trait]
impl SinkClient for Receiver {
    async fn attempt(&self, delivery: &Delivery, _: u64, timeout: Duration) -> AttemptResult {
        let (world, process) = (&self.world, &self.process);
        let begun = world.attempt_begins(self.relay, process, self.sink, delivery);
        let Some((number, name)) = begun else { return failed("there is no such event") };
        let _under_way = UnderWay { world, number };
        world.strike(process, Some(name.key));
        process.runs().await;
        let result = self.exchange(name, delivery.round, timeout).await;
        world.strike(process, Some(name.key));
        process.runs().await;
        result
    }
}

impl Receiver {
    async fn exchange(&self, name: EventName, round: u32, timeout: Duration) -> AttemptResult {
        let (world, dice) = (&self.world, &self.world.dice);
        let trouble = world.plan.sinks.as_ref().map_or(0, |plan| plan.trouble);
        let (fate, what) = if world.is_calm() || !dice.chance(trouble) {
            (Fate::Takes, "sink: takes")
        } else {
            dice.pick(&TROUBLES)
        };
        world.count(what);
        let limit = timeout.as_millis() as u64;
        let work = match fate {
            Fate::TakesSlowly => dice.span(limit / 2, limit - 1),
            _ => dice.span(1, limit / 4),
        };
        let ends = Instant::now() + timeout;
        if matches!(
            fate,
            Fate::Takes | Fate::TakesSlowly | Fate::AnswersTooLate | Fate::TakesAndBreaks
        ) {
            // A separate task, because the sender may be gone by then.
            let world = self.world.clone();
            tokio::spawn(async move {
                sleep(work).await;
                world.takes(name, round);
            });
        }
        if matches!(fate, Fate::AnswersTooLate | Fate::Silent) {
            sleep_until(ends).await;
            return failed("there was no answer in time");
        }
        // After the receiver has it.
        sleep(work + Duration::from_millis(1)).await;
        let refused = |status, retry_after| AttemptResult::Refused {
            status,
            answer: Bytes::from_static(b"not now"),
            retry_after,
        };
        match fate {
            Fate::Takes | Fate::TakesSlowly => AttemptResult::Delivered { status: Some(200) },
            Fate::Refuses(status) => refused(status, None),
            Fate::Waits => refused(429, Some(dice.span(100, 20_000))),
            _ => failed("the connection broke"),
        }
    }
}

fn failed(error: &str) -> AttemptResult {
    AttemptResult::Failed { error: error.to_owned() }
}
