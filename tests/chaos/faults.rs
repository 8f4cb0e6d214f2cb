//! Faults: the choice for a run, their execution, and whether they had an effect.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::checker::{Lack, Outage, Saw};
use crate::dice::Dice;
use crate::faultproxy::{Cut, FaultProxy, Mode, Way};
use crate::stores::{FailOver, Manner};
use crate::suite::World;
use crate::{GATEWAYS, LEASE, now, pause};

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A gateway is killed, and another started in its place.
    Kill,
    /// A gateway is stopped for longer than its lease.
    Stop,
    /// Connections between a gateway and the store are cut.
    CutStore,
    /// A gateway and the store are partitioned.
    PartStore,
    /// Connections between a gateway and the upstream are cut.
    CutUpstream,
    /// A gateway and the upstream are partitioned.
    PartUpstream,
    /// The upstream refuses a gateway's connections.
    RefuseUpstream,
    /// The store forgets the scripts.
    FlushScripts,
    /// The store's primary dies.
    FailOver,
}

/// A fault, with its time and its own dice.
#[derive(Debug, Clone)]
pub struct Planned {
    pub fault: Fault,
    /// The way in which primaries lose their role in this run.
    pub manner: Manner,
    pub at: Duration,
    pub dice: Dice,
}

impl Fault {
    pub const ALL: [Fault; 9] = [
        Fault::Kill,
        Fault::FailOver,
        Fault::CutStore,
        Fault::Stop,
        Fault::CutUpstream,
        Fault::FlushScripts,
        Fault::PartStore,
        Fault::PartUpstream,
        Fault::RefuseUpstream,
    ];

    /// The name of the effect that must occur.
    pub fn bite(self) -> &'static str {
        match self {
            Fault::Kill => "gateway killed with requests under way",
            Fault::Stop => "gateway stopped with requests under way, longer than its lease",
            Fault::CutStore => "connection to the store cut with bytes under way",
            Fault::PartStore => "bytes between gateway and store held or lost",
            Fault::CutUpstream => "connection to the upstream cut with bytes under way",
            Fault::PartUpstream => "bytes between gateway and upstream lost",
            Fault::RefuseUpstream => "client refused: upstream unreachable",
            Fault::FlushScripts => "scripts flushed and asked for again",
            Fault::FailOver => "failover: another server, or another run of it",
        }
    }

    /// Chooses a run's faults. Three kinds rotate, so that a few runs cover them all; the others
    /// are random.
    pub fn plan(run: usize, mut dice: Dice) -> Vec<Planned> {
        let turns: Vec<Fault> =
            (0..3).map(|n| Fault::ALL[(run * 3 + n) % Fault::ALL.len()]).collect();
        let thrown: Vec<Fault> =
            (0..3).map(|_| Fault::ALL[dice.within(0..Fault::ALL.len() as u64) as usize]).collect();
        let plan = |(n, fault): (usize, Fault)| Planned {
            fault,
            // Every third run has failovers.
            manner: Manner::ALL[run / 3 % Manner::ALL.len()],
            at: Duration::from_millis(dice.within(300..4000)),
            dice: dice.of(&n.to_string()),
        };
        // Each failover takes seconds, and one must be over before the next.
        let mut fails_over = false;
        let once =
            |fault: &Fault| *fault != Fault::FailOver || !std::mem::replace(&mut fails_over, true);
        turns.into_iter().chain(thrown).filter(once).enumerate().map(plan).collect()
    }
}

/// Counts of the expected effects.
#[derive(Default)]
pub struct Bites(Mutex<BTreeMap<&'static str, u64>>);

impl Bites {
    pub fn count(&self, what: &'static str, times: u64) {
        *self.0.lock().unwrap().entry(what).or_default() += times;
    }

    pub fn all(&self) -> BTreeMap<&'static str, u64> {
        self.0.lock().unwrap().clone()
    }
}

impl World {
    /// Executes a fault from beginning to end, and records its outage.
    pub fn suffer(&self, planned: &Planned) {
        let (fault, dice) = (planned.fault, &mut planned.dice.clone());
        let gateway = dice.gateway();
        let bites = match fault {
            Fault::Kill => self.kill(gateway, dice),
            Fault::Stop => self.stop(gateway, dice),
            Fault::CutStore => {
                let ways: Vec<&FaultProxy> = self.store.ways(gateway).iter().collect();
                let from = now();
                let bites = cut(&ways, dice);
                self.note(gateway, from, Lack::Store);
                bites
            }
            Fault::PartStore => {
                let ways: Vec<&FaultProxy> = self.store.ways(gateway).iter().collect();
                let from = now();
                let mode = if dice.percent(50) { Mode::Held } else { Mode::Lost };
                let bites = part(&ways, mode, dice.within(800..3500));
                self.note(gateway, from, Lack::Store);
                bites
            }
            Fault::CutUpstream => cut(&[&self.to_upstream[gateway]], dice),
            // The bytes are lost and not delayed: a request that arrives after `uncertain_after` is
            // beyond the promises.
            Fault::PartUpstream => {
                part(&[&self.to_upstream[gateway]], Mode::Lost, dice.within(500..2500))
            }
            Fault::RefuseUpstream => {
                let before = self.unreachable();
                part(&[&self.to_upstream[gateway]], Mode::Refused, dice.within(500..2000));
                self.unreachable() - before
            }
            Fault::FlushScripts => self.flush_scripts(),
            Fault::FailOver => self.fail_over(planned.manner, dice),
        };
        self.bites.count(fault.bite(), bites);
    }

    fn note(&self, gateway: usize, from: Duration, lack: Lack) {
        self.outages.lock().unwrap().push(Outage { gateway, from, to: now(), lack });
    }

    /// Returns the number of active requests of a gateway, as soon as there are any.
    fn busy(&self, gateway: usize) -> u64 {
        for _ in 0..200 {
            let busy = self.street.under_way[gateway].load(Ordering::SeqCst);
            if busy > 0 {
                return busy as u64;
            }
            pause(5);
        }
        0
    }

    /// Returns how many clients got the refusal that nothing was sent because the upstream can't be
    /// reached.
    fn unreachable(&self) -> u64 {
        let tries = self.street.tries.lock().unwrap();
        tries.iter().filter(|one| one.saw == Saw::Again("upstream-unreachable".into())).count()
            as u64
    }

    fn kill(&self, gateway: usize, dice: &mut Dice) -> u64 {
        let mut process = self.gateways[gateway].lock().unwrap();
        let busy = self.busy(gateway);
        let from = now();
        process.kill();
        pause(dice.within(50..900));
        *process = self.launch(gateway);
        self.note(gateway, from, Lack::Life);
        self.street.ports[gateway].store(process.port, Ordering::SeqCst);
        busy
    }

    fn stop(&self, gateway: usize, dice: &mut Dice) -> u64 {
        let process = self.gateways[gateway].lock().unwrap();
        let busy = self.busy(gateway);
        let from = now();
        process.signal("STOP");
        pause(LEASE.as_millis() as u64 + dice.within(300..2000));
        process.signal("CONT");
        self.note(gateway, from, Lack::Life);
        busy
    }

    fn flush_scripts(&self) -> u64 {
        let before = self.store.forgotten_scripts();
        self.store.flush_scripts();
        for _ in 0..60 {
            let asked = self.store.forgotten_scripts().saturating_sub(before);
            if asked > 0 {
                return asked;
            }
            pause(50);
        }
        0
    }

    fn fail_over(&self, manner: Manner, dice: &mut Dice) -> u64 {
        let from = now();
        let FailOver { changed, forgotten } = self.store.fail_over(manner, dice);
        (0..GATEWAYS).for_each(|gateway| self.note(gateway, from, Lack::Store));
        if self.store.has_replicas() {
            let what = match manner {
                Manner::Dies => {
                    "failover: the primary died, and bytes that no replica had are forgotten"
                }
                Manner::Freezes => "failover: the primary froze, and woke up when it was replaced",
                Manner::GivesWay => "failover: the primary gave way",
            };
            self.bites
                .count(what, if manner == Manner::Dies { forgotten } else { u64::from(changed) });
        }
        u64::from(changed)
    }
}

/// Cuts some connections at their next bytes. Returns how many were cut while bytes passed.
fn cut(ways: &[&FaultProxy], dice: &mut Dice) -> u64 {
    let cuts = || ways.iter().map(|way| way.counts().cut.load(Ordering::SeqCst)).sum::<u64>();
    let before = cuts();
    for way in ways {
        for _ in 0..dice.within(1..4) {
            let direction = if dice.percent(50) { Way::There } else { Way::Back };
            way.arm(Cut { way: direction, keep: dice.next() as usize, reset: dice.percent(50) });
        }
    }
    for _ in 0..900 {
        if ways.iter().all(|way| !way.is_armed()) {
            break;
        }
        pause(5);
    }
    ways.iter().for_each(|way| way.disarm());
    cuts() - before
}

/// Partitions two sides for this number of ms. Returns how often bytes waited or were lost.
fn part(ways: &[&FaultProxy], mode: Mode, ms: u64) -> u64 {
    let stopped = || {
        let counts = ways.iter().map(|way| way.counts());
        counts
            .map(|counts| counts.held.load(Ordering::SeqCst) + counts.lost.load(Ordering::SeqCst))
            .sum::<u64>()
    };
    let before = stopped();
    ways.iter().for_each(|way| way.turn(mode));
    pause(ms);
    ways.iter().for_each(|way| way.turn(Mode::Open));
    stopped() - before
}
