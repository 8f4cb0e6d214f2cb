//! A suite: two gateways on one store, in front of one upstream, with runs of clients and faults.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::runtime::Runtime;

use crate::checker::{FinalAnswer, History, Outage, Saw, Try, Violation, check};
use crate::client::Street;
use crate::collected::Collected;
use crate::deliveries::AnsweredKey;
use crate::dice::Dice;
use crate::faultproxy::FaultProxy;
use crate::faults::{Bites, Fault};
use crate::harness::{Gateway, until};
use crate::receiver::Receiver;
use crate::stores::{Kind, Store};
use crate::upstream::Upstream;
use crate::{GATEWAYS, LEASE, now, pause, seed};

/// Key histories in a run.
pub const KEYS: usize = 84;

/// The time in which clients begin to pay and faults begin.
const BEGINNING_MS: u64 = 5500;

/// The time after the last fault in which all operations must settle.
pub const SETTLING: Duration = Duration::from_secs(30);

/// The longest time of a final replay, when there are no faults any more.
const REPLAYING: Duration = Duration::from_secs(15);

/// Two gateways with everything that they need.
pub struct World {
    kind: Kind,
    pub street: Street,
    pub gateways: [Mutex<Gateway>; GATEWAYS],
    pub store: Store,
    pub upstream: Upstream,
    pub receiver: Receiver,
    /// The final answers since the last check of events.
    answered: Mutex<Vec<AnsweredKey>>,
    pub to_upstream: [FaultProxy; GATEWAYS],
    pub outages: Mutex<Vec<Outage>>,
    pub bites: Bites,
    runtime: Option<Runtime>,
}

impl World {
    pub fn start(kind: Kind) -> World {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (store, upstream) = (Store::start(kind, runtime.handle()), Upstream::start());
        let receiver = Receiver::start(Dice::new(seed()).of(&format!("{kind:?} receiver")));
        let to_upstream =
            std::array::from_fn(|_| FaultProxy::listen(runtime.handle(), upstream.port));
        let gateways: [Gateway; GATEWAYS] =
            std::array::from_fn(|n| launch(kind, &store, &to_upstream, receiver.port, n));
        gateways.iter().for_each(|gateway| until("a gateway to be ready", || gateway.is_ready()));
        let street = Street::new(gateways.each_ref().map(|gateway| gateway.port));
        let gateways = gateways.map(Mutex::new);
        World {
            kind,
            street,
            gateways,
            store,
            upstream,
            receiver,
            answered: Mutex::default(),
            to_upstream,
            outages: Mutex::default(),
            bites: Bites::default(),
            runtime: Some(runtime),
        }
    }

    /// Starts a gateway in the place of a killed one; returns when it listens.
    pub fn launch(&self, n: usize) -> Gateway {
        launch(self.kind, &self.store, &self.to_upstream, self.receiver.port, n)
    }

    /// Runs clients and faults until all operations are settled or the time is over, and then the
    /// checker. Panics on a violation.
    pub fn run(&self, run: usize, seed: u64) {
        let dice = Dice::new(seed).of(&format!("{:?} {run}", self.kind));
        let names: Vec<String> = (0..KEYS).map(|key| format!("r{run}-k{key}")).collect();
        let plan = Fault::plan(run, dice.of("faults"));
        self.upstream.throw(dice.of("upstream"));
        self.street.tries.lock().unwrap().clear();
        self.outages.lock().unwrap().clear();
        let began = now();
        let last_fault = Mutex::new(Duration::MAX);
        std::thread::scope(|scope| {
            for (key, name) in names.iter().enumerate() {
                for client in 0..1 + key % 2 {
                    let (dice, last_fault) = (dice.of(&format!("{name} {client}")), &last_fault);
                    scope.spawn(move || self.pay(key, name, dice, last_fault));
                }
            }
            let faults: Vec<_> = plan
                .iter()
                .map(|planned| {
                    scope.spawn(|| {
                        pause(planned.at.as_millis() as u64);
                        self.suffer(planned);
                    })
                })
                .collect();
            let ended: Vec<_> = faults.into_iter().map(|fault| fault.join()).collect();
            // This is also set after a failed fault, because clients end with it.
            *last_fault.lock().unwrap() = now();
            ended
                .into_iter()
                .for_each(|ended| ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        });
        let until = last_fault.into_inner().unwrap() + SETTLING;
        let history = self.history(&names, until);
        let took = now() - began;
        eprintln!(
            "{:?} run {run}: {} tries, {} unsettled, {took:.1?}: {}",
            self.kind,
            history.tries.len(),
            history.unsettled,
            plan.iter()
                .map(|planned| format!("{:?}", planned.fault))
                .collect::<Vec<_>>()
                .join(", ")
        );
        let violations = check(&history);
        assert!(
            violations.is_empty(),
            "{:?} run {run}, seed {seed}: {}",
            self.kind,
            report(&violations, &history, &plan)
        );
    }

    /// Runs a client from its beginning until it has its answer or the time to settle is over.
    fn pay(&self, key: usize, name: &str, mut dice: Dice, last_fault: &Mutex<Duration>) {
        pause(dice.within(0..BEGINNING_MS));
        let until = || last_fault.lock().unwrap().saturating_add(SETTLING);
        self.street.pay(key, name, &mut dice, until);
    }

    pub fn history(&self, names: &[String], until: Duration) -> History {
        let unsettled = loop {
            let unsettled = self.unsettled();
            if unsettled == Some(0) || now() > until {
                break unsettled.unwrap_or(names.len());
            }
            pause(100);
        };
        let tries = self.street.tries.lock().unwrap().clone();
        let answered: HashSet<usize> =
            tries.iter().filter(|t| matches!(t.saw, Saw::Final { .. })).map(|t| t.key).collect();
        self.answered.lock().unwrap().extend(finals(&tries, names));
        let mut replays = Vec::new();
        for (key, name) in names.iter().enumerate().filter(|(key, _)| answered.contains(key)) {
            (0..GATEWAYS)
                .for_each(|gateway| replays.push((key, gateway, self.replay(gateway, key, name))));
        }
        let keys: HashMap<&str, usize> =
            names.iter().enumerate().map(|(key, name)| (name.as_str(), key)).collect();
        let ledger = self.upstream.ledger();
        let mut written: HashMap<usize, Duration> = HashMap::new();
        for (name, at) in self.to_upstream.iter().flat_map(FaultProxy::keys) {
            if let Some(key) = keys.get(name.as_str()) {
                let first = written.entry(*key).or_insert(at);
                *first = at.min(*first);
            }
        }
        History {
            keys: names.len(),
            tries: self.street.tries.lock().unwrap().clone(),
            executed: ledger
                .into_iter()
                .filter_map(|(name, all)| Some((*keys.get(name.as_str())?, all)))
                .collect(),
            written,
            outages: self.outages.lock().unwrap().clone(),
            replays,
            unsettled: unsettled.max(names.len() - answered.len()),
        }
    }

    /// Returns a gateway's final answer at the end of the run.
    fn replay(&self, gateway: usize, key: usize, name: &str) -> Option<FinalAnswer> {
        let end = now() + REPLAYING;
        loop {
            match self.street.try_at(gateway, key, name, None, None) {
                Saw::Final { answer, .. } => return Some(answer),
                Saw::Refused(_) => return None,
                _ if now() > end => return None,
                _ => pause(50),
            }
        }
    }

    /// Waits until the events of all runs since the last check were delivered or buried, and checks
    /// them. `log` is whether the store still has its whole event log.
    pub fn check_events(&self, log: bool) {
        let gateway = self.gateways[0].lock().unwrap();
        let answered = std::mem::take(&mut *self.answered.lock().unwrap());
        let found = Collected::from(&gateway, &self.receiver, answered, log);
        eprintln!("{:?}: {}", self.kind, found.summary());
        found.check(&format!("{:?}, seed {}", self.kind, seed()));
    }

    /// Returns the number of operations that are in flight or uncertain, by a gateway's listing.
    fn unsettled(&self) -> Option<usize> {
        let gateway = self.gateways[0].lock().unwrap();
        let of = |state: &str| {
            let answer = gateway.ask("GET", &format!("/v1/operations?state={state}&limit=1000"));
            (answer.status == 200)
                .then(|| answer.json()["operations"].as_array().map_or(0, Vec::len))
        };
        Some(of("in_flight")? + of("uncertain")?)
    }

    /// Fails if an expected kind of event never happened.
    pub fn insist_on_bites(&self) {
        let [whole, part] =
            self.street.left.each_ref().map(|left| left.load(Ordering::SeqCst) as u64);
        self.bites.count("client left before its answer", whole);
        self.bites.count("client left in the middle of its request", part);
        self.upstream.acts().into_iter().for_each(|(act, times)| self.bites.count(act, times));
        self.receiver.fates().into_iter().for_each(|(fate, times)| self.bites.count(fate, times));
        let bites = self.bites.all();
        eprintln!("{:?}: {bites:#?}", self.kind);
        let never: Vec<_> = bites.iter().filter(|(_, times)| **times == 0).collect();
        // Each kind of fault, twelve acts of clients and the upstream, six of the receiver, and
        // three ways to lose a primary.
        let kinds = Fault::ALL.len() + 12 + 6 + if self.store.has_replicas() { 3 } else { 0 };
        assert!(
            bites.len() == kinds && never.is_empty(),
            "of {kinds} kinds, never bit: {never:?} of {bites:#?}"
        );
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Returns the final answers among some tries.
pub fn finals(tries: &[Try], names: &[String]) -> Vec<AnsweredKey> {
    let answered: BTreeMap<usize, &FinalAnswer> = tries
        .iter()
        .filter_map(|one| match &one.saw {
            Saw::Final { answer, .. } => Some((one.key, answer)),
            _ => None,
        })
        .collect();
    let answered = answered.into_iter().map(|(key, answer)| AnsweredKey {
        name: names[key].clone(),
        status: answer.status.into(),
        execution: answer.execution(),
    });
    answered.collect()
}

fn launch(
    kind: Kind,
    store: &Store,
    to_upstream: &[FaultProxy; GATEWAYS],
    receiver: u16,
    n: usize,
) -> Gateway {
    let durability = if kind == Kind::Emptied { "strict" } else { "warn" };
    let store_settings = format!("ack = \"{}\"\ndurability = \"{durability}\"\n", kind.ack());
    launch_on(store.url(n), to_upstream[n].port, receiver, &store_settings)
}

/// Starts a gateway on a store, with more settings of it.
pub fn launch_on(store: &str, upstream: u16, receiver: u16, store_settings: &str) -> Gateway {
    let settings = format!(
        "[upstream]\nresponse_timeout = \"4s\"\n[store]\nformat = 2\n{store_settings}\
         [encryption]\nkeys = [{{ id = \"a\", env = \"SEAL\" }}]\n\
         [log]\nenabled = true\n[read_model]\nenabled = false\n{}",
        sinks(receiver)
    );
    let route = |path: &str, more: &str| {
        format!(
            "[[routes]]\npath = \"{path}\"\nlease = \"{}s\"\nuncertain_after = \"1s\"\n{more}\non_uncertain = \"probe\"\n\
             probe = {{ path = \"/v1/by-key/{{key}}\", headers = {{ Authorization = {{ env = \"PROBE\" }} }} }}\n{PUBLISH}",
            LEASE.as_secs()
        )
    };
    let routes = route("/v1/payments", "")
        + &route("/v1/transfers", "on_in_flight = \"wait\"\nwait_timeout = \"2s\"");
    let log = std::env::var("ONCEWARD_CHAOS_LOG").unwrap_or("onceward=warn".into());
    let url = format!("http://127.0.0.1:{upstream}");
    Gateway::launch(&url, store, &settings, &routes, |command| {
        command
            .env("SEAL", "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=")
            .env("PROBE", "Bearer gateway");
        command.env("ONCEWARD_LOG", log);
    })
}

/// The rules of each route: see [`crate::deliveries::SINKS`].
const PUBLISH: &str = r#"
[[routes.publish]]
on = ["completed", "released"]
to = ["ledger", "mail"]
data = { order = "request:/order", payment = "response:/payment" }
[[routes.publish]]
on = ["uncertain"]
to = ["ledger"]
data = { order = "request:/order" }
"#;

/// Two sinks of one receiver. Events for the second one are buried after some attempts.
fn sinks(receiver: u16) -> String {
    let sink = |name: &str, attempts: u32| {
        format!(
            "[[sinks]]\nname = \"{name}\"\ntimeout = \"{}s\"\n\
             webhook = {{ url = \"http://127.0.0.1:{receiver}/{name}\", secrets = [{{ env = \"HASHING_SECRET\" }}] }}\n\
             retry = {{ first = \"100ms\", max = \"1s\", attempts = {attempts} }}\n",
            crate::receiver::TIMEOUT.as_secs()
        )
    };
    sink("ledger", 0) + &sink("mail", 2)
}

/// Formats the violations, with the history of the first affected keys.
pub fn report(violations: &[Violation], history: &History, plan: &impl std::fmt::Debug) -> String {
    let mut text = format!("{violations:#?}\nfaults: {plan:#?}\n");
    for Outage { gateway, from, to, lack } in &history.outages {
        text += &format!("{from:.3?} to {to:.3?}: gateway {gateway} without {lack:?}\n");
    }
    for key in violations.iter().filter_map(Violation::key).take(3) {
        text += &format!(
            "key {key}, executed {:?}, written {:?}\n",
            history.executed.get(&key),
            history.written.get(&key)
        );
        for one in history.tries.iter().filter(|one| one.key == key) {
            text += &format!(
                "  {:.3?} to {:.3?} at {}: {:?}\n",
                one.from, one.to, one.gateway, one.saw
            );
        }
        text += &format!(
            "  in the end: {:?}\n",
            history.replays.iter().filter(|(of, ..)| *of == key).collect::<Vec<_>>()
        );
    }
    text
}
