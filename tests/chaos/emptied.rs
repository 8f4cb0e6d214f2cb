//! A store that hangs during requests and their duplicates, and then comes back empty.
//!
//! All operations of a round begin shortly before the hang, so the gateways can write all of them
//! again: the claims of requests that run at the upstream, and the results of the last seconds.
//! Nothing may be executed again, and no answer may be lost.

use std::collections::HashSet;
use std::sync::Mutex;
use std::time::Duration;

use crate::checker::{Lack, Outage, Saw, check};
use crate::dice::Dice;
use crate::harness::until;
use crate::suite::{SETTLING, World, report};
use crate::upstream::Act;
use crate::{GATEWAYS, now, pause};

/// Key histories in a round.
pub const KEYS: usize = 48;

/// The time in which the clients begin to pay. Less than the time for which gateways keep results.
const BEGINNING_MS: u64 = 1200;

/// The time when the store begins to hang.
const HANGS_MS: u64 = 1500;

/// The upstream's time for one operation in three: longer than the gateways' lease, and than some
/// hangs.
const WORK_MS: u64 = 3200;

impl World {
    /// Runs clients, a store that hangs and comes back empty, and the checker. Panics on a
    /// violation, and if no duplicate of a running request met the hung store.
    pub fn run_emptied(&self, round: usize, seed: u64) {
        let dice = Dice::new(seed).of(&format!("emptied {round}"));
        let names: Vec<String> = (0..KEYS).map(|key| format!("e{round}-k{key}")).collect();
        self.upstream.throw(dice.of("upstream"));
        for gateway in 0..GATEWAYS {
            // After a start, as after a loss, new operations are refused for some seconds.
            let refused = Saw::Again("store-unavailable".into());
            let warm = format!("e{round}-warm{gateway}");
            until("new operations to begin", || {
                self.street.try_at(gateway, 0, &warm, None, None) != refused
            });
        }
        names.iter().step_by(3).for_each(|name| self.upstream.script(name, &[Act::Pay(WORK_MS)]));
        self.street.tries.lock().unwrap().clear();
        self.outages.lock().unwrap().clear();
        let over = Mutex::new(Duration::MAX);
        std::thread::scope(|scope| {
            for (key, name) in names.iter().enumerate() {
                for client in 0..2 {
                    let (mut dice, over) = (dice.of(&format!("{name} {client}")), &over);
                    let until = move || over.lock().unwrap().saturating_add(SETTLING);
                    scope.spawn(move || {
                        pause(dice.within(0..BEGINNING_MS));
                        self.street.pay(key, name, &mut dice, until);
                    });
                }
            }
            pause(HANGS_MS);
            let from = now();
            let changed = self.store.hang_and_empty(|| {
                self.duplicates_meet_the_hung_store(&names, from, &mut dice.of("hang"))
            });
            assert!(changed, "the store was not replaced");
            (0..GATEWAYS).for_each(|gateway| {
                self.outages.lock().unwrap().push(Outage {
                    gateway,
                    from,
                    to: now(),
                    lack: Lack::Store,
                });
            });
            *over.lock().unwrap() = now();
        });
        let until = over.into_inner().unwrap() + SETTLING;
        let history = self.history(&names, until);
        let violations = check(&history);
        let fault = "the store hung and came back empty";
        assert!(
            violations.is_empty(),
            "emptied, round {round}, seed {seed}: {}",
            report(&violations, &history, &fault)
        );
        // The next round loses these events, and the log is lost already.
        self.check_events(false);
        eprintln!(
            "emptied, round {round}: {} tries, {} unsettled",
            history.tries.len(),
            history.unsettled
        );
    }

    /// Waits for a while, and until duplicates of running requests were refused because the store
    /// hangs, and both gateways have active claims that may have been carried out.
    fn duplicates_meet_the_hung_store(&self, names: &[String], from: Duration, dice: &mut Dice) {
        let met = || {
            let executed = self.upstream.ledger();
            let tries = self.street.tries.lock().unwrap();
            let answered: HashSet<usize> = tries
                .iter()
                .filter(|t| matches!(t.saw, Saw::Final { .. }))
                .map(|t| t.key)
                .collect();
            let refused = |saw: &Saw| *saw == Saw::Again("store-unavailable".into());
            let asks = tries.iter().filter(|t| t.from >= from && refused(&t.saw)).map(|t| t.key);
            let runs = |key: &usize| !answered.contains(key) && executed.contains_key(&names[*key]);
            asks.filter(runs).collect::<HashSet<usize>>().len() as u64
        };
        until("duplicates of running requests to meet the hung store", || met() > 0);
        for gateway in &self.gateways {
            let gateway = gateway.lock().unwrap();
            until("claims to be under way", || {
                gateway.metric("onceward_unsettled_in_background") > 0.0
            });
        }
        pause(dice.within(0..3000));
        self.bites
            .count("duplicates of running requests met a hung store that came back empty", met());
    }
}
