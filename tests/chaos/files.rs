//! One gateway on a store in a file, which is killed again and again.

use std::sync::Mutex;
use std::time::Duration;

use crate::client::Street;
use crate::collected::Collected;
use crate::dice::Dice;
use crate::harness::until;
use crate::receiver::Receiver;
use crate::suite::{SETTLING, finals, launch_on};
use crate::upstream::Upstream;
use crate::{now, pause, seed};

/// Key histories of the run.
const KEYS: usize = 60;
/// How often the gateway is killed.
const KILLS: usize = 3;
/// The time in which the clients begin to pay.
const BEGINNING_MS: u64 = 3500;

#[test]
fn a_store_in_a_file_keeps_every_event_though_its_gateway_is_killed() {
    let dice = Dice::new(seed()).of("file");
    let (upstream, receiver) = (Upstream::start(), Receiver::start(dice.of("receiver")));
    upstream.throw(dice.of("upstream"));
    let folder = tempfile::tempdir().unwrap();
    let store = format!("file:{}", folder.path().join("data").display());
    let mut gateway = launch_on(&store, upstream.port, receiver.port, "");
    until("the gateway to be ready", || gateway.is_ready());
    let street = Street::new([gateway.port; 2]);
    let names: Vec<String> = (0..KEYS).map(|key| format!("f-k{key}")).collect();
    let last_kill = Mutex::new(Duration::MAX);
    let mut kills = Vec::new();
    let until = || last_kill.lock().unwrap().saturating_add(SETTLING);
    std::thread::scope(|scope| {
        for (key, name) in names.iter().enumerate() {
            let (mut dice, street, until) = (dice.of(name), &street, &until);
            scope.spawn(move || {
                pause(dice.within(0..BEGINNING_MS));
                street.pay(key, name, &mut dice, until);
            });
        }
        let mut dice = dice.of("kills");
        for _ in 0..KILLS {
            pause(dice.within(400..1500));
            gateway.kill();
            kills.push(now());
            gateway.start_again();
        }
        *last_kill.lock().unwrap() = now();
    });
    let tries = street.tries.lock().unwrap().clone();
    let found = Collected::from(&gateway, &receiver, finals(&tries, &names), true);
    let found = found.with_kills(kills);
    eprintln!("file: {}", found.summary());
    found.check(&format!("file, seed {}", seed()));
}
