//! A simulation from one seed: gateways, a store, an upstream, clients, an operator and the
//! weather, in simulated time.
//!
//! The gate, the engine, the sweeper, the reconciler and the store in memory (sealed in some seeds)
//! are the product's own. Some seeds have a store that loses its last writes, with the Redis
//! store's protection against that (`recent.rs`). All other sources of time and chance are
//! simulated: the way to the store (`link.rs`), the way to the upstream (`wire.rs`) and the
//! upstream itself, processes that stop and die, clocks, clients. One thread runs one seed under
//! tokio's paused time, so the same seed gives the same run.
//!
//! Some seeds have sinks: the product's relays deliver the events of operations (`sinks.rs`) over a
//! store with the same faults (`outbox_link.rs`). `events.rs` has what must hold for events.

pub mod checks;
mod client;
mod dice;
pub mod events;
mod flaw;
mod gateway;
mod history;
mod link;
mod loss;
mod many;
mod operator;
mod outbox_link;
mod plan;
mod process;
mod recent;
mod sinks;
mod upstream;
mod weather;
mod wire;
mod world;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use checks::{ENDS, IN_TIME, STAYS, Violation};
use client::ClientResult;
pub use flaw::Flaw;
use history::{Digest, Event, Occurrence};
pub use many::search;
use plan::Plan;
use world::World;

/// The result of a seed.
pub struct Report {
    pub seed: u64,
    pub violation: Option<Violation>,
    /// The number of times that each thing happened.
    pub tally: BTreeMap<&'static str, u64>,
    history: Vec<Event>,
    plan: Plan,
}

/// Runs a seed to its end.
pub fn simulate(seed: u64, flaw: Option<Flaw>) -> Report {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let world = runtime.block_on(async {
        let world = World::new(seed, flaw);
        world.live().await;
        world
    });
    // Dead processes left tasks that never end. They are dropped with the runtime.
    drop(runtime);
    let mut book = world.book();
    // The gateways refer to the world, so this cycle must be broken to free them.
    book.gateways.clear();
    let violation = book.violations.first().cloned();
    let (tally, history) = (std::mem::take(&mut book.tally), std::mem::take(&mut book.history));
    Report { seed, violation, tally, history, plan: world.plan.clone() }
}

impl World {
    async fn live(self: &Arc<World>) {
        for place in 0..self.plan.gateways {
            let started = self.start(place, 0);
            self.book().gateways.push(started);
        }
        let weather = tokio::spawn(self.clone().weather());
        let clients: Vec<_> = (0..self.plan.clients)
            .map(|number| tokio::spawn(self.clone().client(number)))
            .collect();
        let operator =
            if self.plan.operator { Some(tokio::spawn(self.clone().operator())) } else { None };
        let steward = tokio::spawn(self.clone().steward());
        let _ = weather.await;
        self.check_clients(clients).await;
        if let Some(operator) = operator {
            let _ = operator.await;
        }
        let _ = steward.await;
        // Waits until the last attempt is over, the last late command was carried out, its lease
        // has ended, and a sweeper has seen it.
        const SETTLED: Duration = Duration::from_secs(3);
        const SWEPT: Duration = Duration::from_secs(3);
        let attempts = Instant::now() + self.plan.response_timeout + SETTLED;
        let last = self.book().last.unwrap_or(attempts).max(attempts);
        sleep_until(last + self.plan.policy.lease + SWEPT).await;
        self.check_records().await;
        self.check_answers().await;
        self.check_deliveries().await;
        self.check_ends().await;
    }

    async fn check_clients(&self, clients: Vec<tokio::task::JoinHandle<()>>) {
        const PAUSE_MAX: Duration = Duration::from_secs(10);
        let longest = (self.plan.answer_max() + PAUSE_MAX) * (1 + self.plan.tries as u32);
        for client in clients {
            match timeout(longest, client).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => self.violated(IN_TIME, None, format!("a client failed: {error}")),
                Err(_) => {
                    self.violated(IN_TIME, None, "a client still waits for its answer".into())
                }
            }
        }
    }

    /// Checks that every asker with a result gets it again at every gateway, and that all others
    /// get an answer.
    async fn check_answers(self: &Arc<World>) {
        for key in 0..self.plan.keys {
            for asker in self.informed(key) {
                for place in 0..self.plan.gateways {
                    let result = self.ask(&self.gateway(place), key, asker, None).await;
                    if !matches!(result, ClientResult::Result | ClientResult::NotStored) {
                        self.violated(STAYS, Some(key), format!("in the end: {result:?}"));
                    }
                }
            }
            if self.informed(key).is_empty() {
                self.ask(&self.gateway(0), key, 0, None).await;
            }
        }
    }

    /// Drains the gateways, and checks that they hold nothing.
    async fn check_ends(&self) {
        const DRAIN: Duration = Duration::from_secs(60);
        for place in 0..self.plan.gateways {
            let gateway = self.gateway(place);
            if !gateway.gate.drain(DRAIN).await {
                self.violated(ENDS, None, format!("gateway {place} does not drain"));
            }
            let meter = gateway.gate.meter();
            let gauges = [
                &meter.in_flight,
                &meter.waiters,
                &meter.buffered_bytes,
                &meter.unsettled_in_background,
            ];
            let held = || gauges.map(|gauge| gauge.get());
            // The gateway's own probe may still be in progress, and holds the bytes that it has
            // read until it ends.
            let asking = self.plan.answer_max();
            let _ = timeout(asking, async {
                while held() != [0; 4] {
                    sleep(Duration::from_millis(10)).await;
                }
            })
            .await;
            let held = held();
            if held != [0; 4] {
                self.violated(
                    ENDS,
                    None,
                    format!("gateway {place} holds {held:?}: attempts, waiters, bytes, unsettled"),
                );
            }
        }
    }
}

impl Report {
    /// Returns a digest of the whole run: different runs have different digests.
    pub fn digest(&self) -> u64 {
        Digest::of(&self.history)
    }

    /// Describes the violation, and every event of its key.
    pub fn story(&self) -> String {
        let mut text = String::new();
        // Writing into a string can't fail.
        let _ = writeln!(text, "seed {}: {}", self.seed, self.plan);
        let key = self.violation.as_ref().and_then(|violation| violation.key);
        let concerns = |event: &&Event| {
            let is_trouble = matches!(event.what, Occurrence::Trouble { .. });
            is_trouble || event.key.is_none() || key.is_none() || event.key == key
        };
        for event in self.history.iter().filter(concerns) {
            let _ = writeln!(text, "{event}");
        }
        if let Some(Violation { at_ms, invariant, text: what, .. }) = &self.violation {
            let _ = writeln!(
                text,
                "seed {}, at {} ms: not kept: {invariant}: {what}",
                self.seed, at_ms
            );
        }
        text
    }
}
