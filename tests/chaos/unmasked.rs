//! Runs the same checker on a naive proxy: it must report the proxy's violations.

use std::collections::HashMap;
use std::time::Duration;

use crate::checker::{History, Saw, Violation, check};
use crate::client::Street;
use crate::deliveries::{self, Deliveries, Fault};
use crate::dice::Dice;
use crate::harness::{RedisServer, until};
use crate::naive::Naive;
use crate::receiver::Receiver;
use crate::suite::finals;
use crate::upstream::{Act, Upstream};
use crate::{now, seed};

struct Stage {
    redis: RedisServer,
    upstream: Upstream,
    proxies: [Naive; 2],
    street: Street,
}

impl Stage {
    fn set() -> Stage {
        let (redis, upstream) = (RedisServer::start(), Upstream::start());
        let proxies = [0, 1].map(|_| Naive::start(&redis, upstream.port));
        let street = Street::new(proxies.each_ref().map(|proxy| proxy.port));
        Stage { redis, upstream, proxies, street }
    }

    fn executions(&self, key: &str) -> usize {
        self.upstream.ledger().get(key).map_or(0, Vec::len)
    }

    fn is_locked(&self, key: &str) -> bool {
        self.redis.cli(&["exists", &format!("lock:{key}")]) == "1"
    }

    /// Collects the history that the checker needs to count executions and compare answers.
    fn history(&self, names: &[String]) -> History {
        let keys: HashMap<&str, usize> =
            names.iter().enumerate().map(|(key, name)| (name.as_str(), key)).collect();
        let executed = self.upstream.ledger();
        let executed = executed.into_iter().map(|(name, all)| (keys[name.as_str()], all)).collect();
        let tries = self.street.tries.lock().unwrap().clone();
        let written = (0..names.len()).map(|key| (key, Duration::ZERO)).collect();
        History { keys: names.len(), tries, executed, written, ..History::default() }
    }
}

fn is_second_execution(violation: &Violation) -> bool {
    matches!(violation, Violation::ExecutedAgain { .. })
}

#[test]
fn a_lock_that_expires_under_a_slow_upstream_is_found_out() {
    let stage = Stage::set();
    let name = "k1".to_owned();
    stage.upstream.script(&name, &[Act::Pay(1500), Act::Pay(0)]);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| stage.street.try_at(0, 0, &name, None, None));
        until("the first execution", || stage.executions(&name) == 1);
        until("the lock to expire", || !stage.is_locked(&name));
        let second = stage.street.try_at(1, 0, &name, None, None);
        assert!(
            matches!(second, Saw::Final { .. })
                && matches!(first.join().unwrap(), Saw::Final { .. })
        );
    });
    let found = check(&stage.history(&[name]));
    assert!(found.contains(&Violation::ExecutedAgain { key: 0, executions: 2 }), "{found:?}");
    assert!(found.contains(&Violation::AnswersDiffer { key: 0 }), "{found:?}");
}

#[test]
fn a_proxy_that_dies_before_it_has_kept_the_answer_is_found_out() {
    let stage = Stage::set();
    let name = "k1".to_owned();
    stage.upstream.script(&name, &[Act::Pay(300), Act::Pay(0)]);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| stage.street.try_at(0, 0, &name, None, None));
        until("the first execution", || stage.executions(&name) == 1);
        stage.proxies[0].kill();
        assert_eq!(first.join().unwrap(), Saw::Broken);
    });
    until("the lock to expire", || !stage.is_locked(&name));
    assert!(matches!(stage.street.try_at(1, 0, &name, None, None), Saw::Final { .. }));
    let found = check(&stage.history(&[name]));
    assert!(found.contains(&Violation::ExecutedAgain { key: 0, executions: 2 }), "{found:?}");
}

#[test]
fn the_same_histories_break_a_naive_proxy() {
    const CLIENTS_AND_UPSTREAM_ONLY: usize = 60;
    let stage = Stage::set();
    let dice = Dice::new(seed());
    stage.upstream.throw(dice.of("upstream"));
    let names: Vec<String> = (0..CLIENTS_AND_UPSTREAM_ONLY).map(|key| format!("k{key}")).collect();
    let until = now() + Duration::from_secs(10);
    std::thread::scope(|scope| {
        for (key, name) in names.iter().enumerate() {
            for client in 0..1 + key % 2 {
                let (street, mut dice) = (&stage.street, dice.of(&format!("{name} {client}")));
                scope.spawn(move || street.pay(key, name, &mut dice, || until));
            }
        }
    });
    let found = check(&stage.history(&names));
    let again = found.iter().filter(|violation| is_second_execution(violation)).count();
    assert!(again > 0, "a lock without a fence passed: {found:?}");
}

#[test]
fn a_proxy_that_sends_events_beside_its_store_loses_some() {
    let (redis, upstream) = (RedisServer::start(), Upstream::start());
    let receiver = Receiver::start(Dice::new(seed()).of("receiver"));
    let proxy = Naive::publishing(&redis, upstream.port, Some(receiver.port));
    let street = Street::new([proxy.port; 2]);
    let names: Vec<String> = (0..20).map(|key| format!("k{key}")).collect();
    for (key, name) in names.iter().enumerate() {
        upstream.script(name, &[Act::Pay(0)]);
        let answer = street.try_at(0, key, name, None, None);
        assert!(matches!(answer, Saw::Final { .. }), "{answer:?}");
    }
    let answered = finals(&street.tries.lock().unwrap(), &names);
    let attempts = receiver.attempts();
    let found = deliveries::check(&Deliveries { answered, attempts, ..Deliveries::default() });
    let is_lost = |fault: &&Fault| matches!(fault, Fault::NoEventOfAnswer { .. });
    let lost = found.iter().filter(is_lost).count();
    assert!((1..2 * names.len()).contains(&lost), "{lost} lost: {found:?}");
    assert_eq!(lost, found.len(), "{found:?}");
}
