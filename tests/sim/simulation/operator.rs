//! An operator who reads uncertain operations, asks the upstream, and decides.

use std::sync::Arc;
use std::time::Duration;

use onceward::engine::Decision;
use onceward::event::Context;
use onceward::record::State;
use tokio::time::{Instant, sleep, sleep_until};

use super::history::Occurrence;
use super::world::World;

impl World {
    /// Decides at random times, as long as there are faults.
    pub async fn operator(self: Arc<World>) {
        while !self.is_calm() {
            sleep(self.dice.span(500, 6000)).await;
            let (key, place) =
                (self.dice.below(self.plan.keys), self.dice.below(self.plan.gateways));
            let process = self.gateway(place).process;
            process.within(self.decide(key, place)).await;
        }
    }

    async fn decide(&self, key: usize, place: usize) {
        let (gateway, slot) = (self.gateway(place), &self.slots[key]);
        let asked = Instant::now();
        let Ok(Some(held)) = gateway.gate.store().records.load(slot).await else { return };
        let State::Uncertain { since_ms, .. } = held.record.state else { return };
        let Some(owner) = self.asker_of(held.record.caller, held.record.fingerprint) else {
            return;
        };
        let policy = &self.plan.policy;
        let rests =
            Duration::from_millis(held.now_ms.saturating_sub(since_ms.unwrap_or(held.written_ms)));
        let rested = rests >= policy.uncertain_after;
        // Looked up after the rest: before, the request may still be in the upstream's queue.
        let executed = self.known(key, None).is_some();
        let (what, decision) = match self.dice.below(3) {
            0 => ("resolve", self.resolve(owner)),
            _ if executed => ("resolve as executed", self.resolve(owner)),
            // The gate refuses: it is too early.
            1 if !rested => ("release too early", Decision::Release),
            _ if !rested => return,
            1 => ("release", Decision::Release),
            _ => ("retry", Decision::Retry),
        };
        if rested && matches!(decision, Decision::Release | Decision::Retry) {
            self.book().operations[key].decided = true;
        }
        self.count(match what {
            "resolve" | "resolve as executed" => "operator: resolves",
            "release" => "operator: releases",
            "retry" => "operator: retries",
            _ => "operator: is too early",
        });
        let seen = Some(held.record.version);
        // A person takes a while. A decision that is too early must be refused at once, or it no
        // longer is.
        if rested {
            sleep(self.dice.span(0, 3000)).await;
        }
        let deciding =
            gateway.gate.settle_by_hand(slot, decision, seen, policy, Context::default());
        let decided = if rested {
            deciding.await
        } else {
            tokio::select! {
                biased;
                // A lookup from before the end of the rest must not support a later decision.
                () = sleep_until(asked + (policy.uncertain_after - rests)) => return,
                decided = deciding => decided,
            }
        };
        self.note(Some(place), Some(key), Occurrence::Decided { what, done: decided.is_ok() });
    }

    /// Enters a result by hand.
    fn resolve(&self, owner: usize) -> Decision {
        let copy = self.number();
        Decision::Resolve(
            self.reply(self.dice.pick(&[201, 402, 500]), format!("{owner} by hand {copy}")),
        )
    }
}
