//! The decisions of a seed before its run: the policy, the participants, and the possible faults.
//!
//! Each seed has only some kinds of faults, with its own rates. If everything failed all the time,
//! few requests would get far enough to show an error.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::header::{AUTHORIZATION, SET_COOKIE};
use http::{HeaderMap, HeaderName, Method, StatusCode};
use onceward::engine::{
    CallerRule, Dialect, FingerprintRule, KeyRule, KeySource, Mode, OnFailure, OnInFlight,
    OnMismatch, OnUncertain, Policy, Probe, ScopeRule, StatusRules,
};
use onceward::key::KeySyntax;

use super::dice::Dice;
use super::flaw::Flaw;
use super::sinks::SinksPlan;

/// The longest delay of a store command: less than the 60 s for which a released marker lives at
/// least, and more than the 20 s after which a Redis connection with unacknowledged bytes ends.
pub const COMMAND_MAX: Duration = Duration::from_secs(55);

/// The largest answer that is kept, in bytes.
pub const ANSWER_MAX: usize = 256;

/// Seeds with sinks, in a thousand of those that can have some.
const SINKS_PERMILLE: usize = 300;

const SECOND: Duration = Duration::from_secs(1);

/// Probabilities of faults, in a thousand.
#[derive(Debug, Clone, Copy)]
pub struct Rates {
    /// A store command is slow, late, doubled or lost.
    pub store: usize,
    /// A gateway stops at its current step, for a while.
    pub stop: usize,
    /// A gateway dies at its current step.
    pub die: usize,
    /// The upstream does something other than execute and answer.
    pub upstream: usize,
    /// A client leaves before its answer.
    pub leave: usize,
    /// A request is another caller's, or another request under the same key.
    pub stranger: usize,
}

#[derive(Clone)]
pub struct Plan {
    pub gateways: usize,
    pub keys: usize,
    pub clients: usize,
    /// The maximum number of requests of a client.
    pub tries: usize,
    pub policy: Policy,
    pub response_timeout: Duration,
    /// A gateway's timeout for its store. `None`: it waits without limit, as for a disk.
    pub patience: Option<Duration>,
    /// Whether results are sealed.
    pub sealed: bool,
    pub rates: Rates,
    /// Whether an operator reads uncertain operations and decides.
    pub operator: bool,
    /// Whether gateways are cut off and the store stalls, also while it is not used.
    pub weather: bool,
    /// Whether the store hangs at times and comes back without its last writes. Gateways then
    /// neither stop nor die, and are not cut off: writes that no gateway can repeat are lost, as
    /// documented.
    pub loses: bool,
    /// The time of the last fault.
    pub calm: Duration,
    /// The number of ms that the store's clock gains in a thousand seconds.
    pub drift: i64,
    /// The time that a request may wait in the upstream's queue.
    pub queue: Duration,
    /// The sinks of events, if there are any. A store that loses writes has none.
    pub sinks: Option<SinksPlan>,
}

impl Plan {
    pub fn draw(dice: &Dice, flaw: Option<Flaw>) -> Plan {
        let response_timeout = SECOND * dice.pick(&[2, 4, 8]);
        let policy = policy(dice, response_timeout, flaw);
        let patience = if dice.chance(800) { Some(dice.span(200, 1500)) } else { None };
        let loses = patience.is_some() && dice.chance(250);
        let endures = |rate| if loses { 0 } else { rate };
        let rates = Rates {
            store: dice.pick(&[0, 20, 80, 200]),
            stop: endures(dice.pick(&[0, 0, 10, 50])),
            die: endures(dice.pick(&[0, 0, 10, 30])),
            upstream: dice.pick(&[0, 200, 500, 900]),
            leave: dice.pick(&[0, 50, 300]),
            stranger: dice.pick(&[0, 0, 150, 400]),
        };
        // The documentation promises nothing for longer queues than the rest. Clocks differ a
        // little.
        let rest = match flaw {
            Some(Flaw::NoRest) => response_timeout,
            Some(Flaw::UpstreamActsLater) => policy.uncertain_after * 4,
            _ => policy.uncertain_after,
        };
        let mut plan = Plan {
            gateways: 1 + dice.below(3),
            keys: 1 + dice.below(2),
            clients: 2 + dice.below(7),
            tries: 2 + dice.below(6),
            response_timeout,
            patience,
            loses,
            sealed: dice.chance(100),
            rates,
            operator: dice.chance(700),
            weather: dice.chance(500),
            calm: SECOND * dice.pick(&[20, 45, 75]),
            drift: dice.pick(&[-5, 0, 0, 5]),
            queue: rest.mul_f64(0.98),
            sinks: None,
            policy,
        };
        plan.draw_sinks(dice, flaw.is_some_and(Flaw::needs_sinks));
        plan
    }

    fn draw_sinks(&mut self, dice: &Dice, needs_sinks: bool) {
        if needs_sinks {
            self.loses = false;
        } else if self.loses || !dice.chance(SINKS_PERMILLE) {
            return;
        }
        let sinks = SinksPlan::draw(dice);
        self.keys += dice.below(3);
        self.policy.publish = Some(Arc::new(sinks.rules(dice)));
        self.sinks = Some(sinks);
    }

    /// The longest time of a request while its gateway runs and the store answers. It waits, asks
    /// the upstream or runs (twice, if the first record that it meets changes), and its outcome is
    /// stored.
    pub fn answer_max(&self) -> Duration {
        const STORING: Duration = Duration::from_secs(10);
        const STORE_CALLS: u32 = 20;
        let store = self.patience.unwrap_or(2 * SECOND) * STORE_CALLS;
        self.policy.wait_timeout + 3 * self.response_timeout + STORING + store
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let policy = &self.policy;
        let on_uncertain = match &policy.on_uncertain {
            OnUncertain::Hold => "hold",
            OnUncertain::Forward => "forward",
            OnUncertain::Probe(probe) if probe.background => "probe, also in the background",
            OnUncertain::Probe(_) => "probe",
        };
        writeln!(f, "{} gateways, {} keys, {} clients", self.gateways, self.keys, self.clients)?;
        writeln!(f, "on_uncertain = {on_uncertain}, on_in_flight = {:?}", policy.on_in_flight)?;
        writeln!(
            f,
            "response_timeout = {:?}, uncertain_after = {:?}",
            self.response_timeout, policy.uncertain_after
        )?;
        writeln!(f, "lease = {:?}, wait_timeout = {:?}", policy.lease, policy.wait_timeout)?;
        writeln!(f, "patience with the store: {:?}, sealed: {}", self.patience, self.sealed)?;
        writeln!(f, "the store loses its last writes: {}", self.loses)?;
        writeln!(f, "{:?}, {:?}", self.sinks, policy.publish)?;
        writeln!(f, "{:?}, calm after {:?}", self.rates, self.calm)
    }
}

fn list(items: &[&str]) -> Vec<String> {
    items.iter().map(|item| (*item).to_owned()).collect()
}

/// The documented defaults, with shorter times.
fn policy(dice: &Dice, response_timeout: Duration, flaw: Option<Flaw>) -> Policy {
    let statuses = StatusRules::new(
        &list(&["2xx", "3xx", "4xx", "500", "501"]),
        &list(&["401", "403", "407", "408", "417", "425", "429", "503 retry-after"]),
        &list(&["502", "503", "504"]),
    );
    let caller = match flaw {
        Some(Flaw::OneCallerForAll) => CallerRule::Scope,
        _ => CallerRule::Headers(vec![AUTHORIZATION]),
    };
    let uncertain_after = response_timeout * dice.pick(&[1, 1, 2]);
    Policy {
        route: "payments".into(),
        mode: Mode::Enforce,
        path_case: onceward::key::path::PathCase::Sensitive,
        key: KeyRule {
            source: KeySource::Sent {
                header: Some(HeaderName::from_static("idempotency-key")),
                body: None,
                form: None,
            },
            required: true,
            min_length: 1,
            max_length: 255,
            syntax: KeySyntax::Lenient,
        },
        by_path: false,
        echo_key: false,
        upstream_key: None,
        scope: ScopeRule::Shared,
        caller,
        fingerprint: FingerprintRule::Json(vec![]),
        on_in_flight: dice.pick(&[OnInFlight::Reject, OnInFlight::Wait]),
        wait_timeout: SECOND * dice.pick(&[1, 5, 12]),
        on_mismatch: OnMismatch::Reject,
        mismatch_status: StatusCode::UNPROCESSABLE_ENTITY,
        on_uncertain: match dice.below(4) {
            0 => OnUncertain::Hold,
            1 => OnUncertain::Forward,
            which => OnUncertain::Probe(Arc::new(probe(which == 2))),
        },
        uncertain_after: if flaw == Some(Flaw::NoRest) { Duration::ZERO } else { uncertain_after },
        statuses: statuses.unwrap(),
        redact: vec![],
        drop_headers: if dice.chance(300) { vec![SET_COOKIE] } else { vec![] },
        retention: 7200 * SECOND,
        tombstone: if dice.chance(300) { 600 * SECOND } else { Duration::ZERO },
        unsettled_retention: 9000 * SECOND,
        lease: SECOND * dice.pick(&[2, 3, 6, 10]),
        on_failure: OnFailure::FailClosed,
        stripe_should_retry: false,
        errors: Dialect::Problem,
        fields: Vec::new(),
        publish: None,
        resource: None,
        explain: false,
        cors: None,
    }
}

fn probe(background: bool) -> Probe {
    Probe {
        method: Method::GET,
        path: "/by-key/{key}".into(),
        statuses: StatusRules::new(&list(&["200"]), &list(&["404"]), &[]).unwrap(),
        found_if: None,
        map_status: Some(StatusCode::CREATED),
        headers: HeaderMap::new(),
        background,
    }
}
