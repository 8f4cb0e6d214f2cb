//! An operator who decides truthfully, by the ledgers, and who sometimes cancels.

use std::collections::HashSet;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::checker::Stuck;
use super::customers::{Script, Street};
use super::plan::PLANS;
use super::services::{Matter, body};
use crate::dice::Dice;
use crate::{now, pause};

/// Time between two looks at the stuck sagas, in ms.
const LOOK_MS: u64 = 300;

impl Street<'_> {
    /// Decides about all stuck sagas until `is_over`.
    pub fn operate(&self, dice: &Dice, is_over: impl Fn() -> bool) {
        let (mut by_hand, mut round) = (HashSet::new(), 0);
        while !is_over() {
            pause(LOOK_MS);
            round += 1;
            let gateway = round % self.fleet.ports.len();
            let listed = self.fleet.admin(gateway, "/v1/sagas?status=stuck&limit=200", None);
            let Some(listed) = listed.filter(|answer| answer.status == 200) else { continue };
            for saga in listed.json()["sagas"].as_array().into_iter().flatten() {
                self.decide(gateway, saga, dice, &mut by_hand);
            }
        }
    }

    /// Decides about a stuck saga, if it is known which order it is.
    fn decide(&self, gateway: usize, saga: &Value, dice: &Dice, by_hand: &mut HashSet<Matter>) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let id = text(&saga["id"]);
        let Some(order) = self.book.order_of(&id) else { return };
        let Some(plan) = PLANS.iter().find(|plan| saga["name"] == plan.name) else { return };
        for stuck in saga["stuck"].as_array().into_iter().flatten() {
            let is_undo = stuck["direction"] == "compensation";
            let matter = Matter { order: order.clone(), step: text(&stuck["step"]), is_undo };
            let step = plan.position(&matter.step);
            let operation = stuck["operation"].as_str();
            self.book.note(&order, |notes| {
                let in_doubt = operation.is_some();
                notes.stuck.push(Stuck { at: now(), step, is_undo, in_doubt });
            });
            match operation {
                Some(operation) => self.settle(gateway, operation, step, &matter),
                None => {
                    let name = format!("{order} {} {is_undo}", matter.step);
                    let skips = dice.of(&name).percent(30);
                    if skips && by_hand.insert(matter.clone()) {
                        self.fleet.services[step].by_hand(&matter);
                    }
                    let decision = if skips { "skip" } else { "retry" };
                    let body = json!({ "reason": "by the ledger", "step": matter.step });
                    self.change(gateway, &format!("/v1/sagas/{id}"), decision, &body);
                }
            }
        }
    }

    /// Settles an operation in doubt as the service's ledger has it.
    fn settle(&self, gateway: usize, operation: &str, step: usize, matter: &Matter) {
        let Some(truth) = self.fleet.services[step].truth(matter) else { return };
        let target = format!("/v1/operations/{operation}");
        let (decision, request) = match truth {
            Some(number) => {
                let request = json!({
                    "status": 201,
                    "headers": { "content-type": "application/json" },
                    "body_base64": STANDARD.encode(body(number)),
                    "reason": "in the ledger",
                });
                ("resolve", request)
            }
            None => ("release", json!({ "reason": "not in the ledger" })),
        };
        // The decision counts before its answer.
        let decided = |is_done: bool| {
            if is_done {
                self.fleet.services[step].settled(matter, truth.is_some());
            }
        };
        decided(self.change(gateway, &target, decision, &request) == Some(200));
    }

    /// Reads something, and changes it in this version. Returns the status of the answer.
    fn change(&self, gateway: usize, target: &str, verb: &str, body: &Value) -> Option<u16> {
        let read = self.fleet.admin(gateway, target, None)?;
        let version = read.json()["version"].as_str()?.to_owned();
        let change = Some((&*version, &*body.to_string()));
        Some(self.fleet.admin(gateway, &format!("{target}/{verb}"), change)?.status)
    }

    /// Cancels a saga, as soon as its id is known and the time has come. Gives up at `until`.
    pub fn cancel(&self, script: &Script, after_ms: u64, until: &(dyn Fn() -> Duration + Sync)) {
        let mut round = 0;
        let mut pause_ms = after_ms;
        while now() < until() {
            let Some(saga) = self.book.note(&script.order, |notes| notes.saga.clone()) else {
                pause(20);
                continue;
            };
            pause(pause_ms);
            (pause_ms, round) = (200, round + 1);
            self.book.note(&script.order, |notes| notes.is_cancelled = true);
            let gateway = round % self.fleet.ports.len();
            let body = json!({ "reason": "the customer called" });
            let answer = self.change(gateway, &format!("/v1/sagas/{saga}"), "cancel", &body);
            // It has ended, or its pivot has begun, or it goes back.
            if matches!(answer, Some(200 | 404 | 409)) {
                return;
            }
        }
    }
}
