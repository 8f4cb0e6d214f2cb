//! The invariants, and the state of each key that they need.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use http::header::SET_COOKIE;
use http::{HeaderMap, StatusCode};
use onceward::engine::OnUncertain;
use onceward::gate::IDEMPOTENT_REPLAYED;
use onceward::record::{Fence, Held, Record, State};
use onceward::store::{Listing, Records};

use super::history::Occurrence;
use super::process::{Process, Stand};
use super::world::{ASKERS, World};

pub const ONCE: &str = "an operation is executed at most once";
pub const SENT_ONCE: &str =
    "an operation that is held, and that nobody decides about, is sent once";
pub const ONE_ANSWER: &str = "all results that clients see are the same";
pub const STAYS: &str = "what was answered is replayed in the end";
pub const NO_STRANGER: &str = "a result goes to nobody but those who asked for it";
pub const SETTLES: &str = "nothing stays in flight";
pub const UNSENT_IS_FREE: &str = "what was never sent by a living gateway is not left uncertain";
pub const IN_TIME: &str = "every request is answered in time";
pub const ENDS: &str = "no task, place or byte is held in the end";

#[derive(Debug, Clone)]
pub struct Violation {
    pub at_ms: u64,
    pub invariant: &'static str,
    pub key: Option<usize>,
    pub text: String,
}

/// The state of a key.
#[derive(Default)]
pub struct Operation {
    /// Requests that wrote at least one byte to the upstream.
    pub orders: Vec<Order>,
    /// Requests on their way to a connection, including those that were given up on the way: their
    /// fate is unknown.
    pub on_their_way: usize,
    /// Since the key was last free a byte was written, or an attempt took over from uncertain. If
    /// such an attempt is not executed, the operation is as uncertain as before, whatever the first
    /// attempt finds out.
    sent: bool,
    /// The number of executions.
    pub charges: usize,
    /// The upstream's state of each asker's operation.
    pub known: [Known; ASKERS.len()],
    /// The first result that a client got.
    answered: Option<ResultCopy>,
    /// The askers that got a result, or the answer that it was not kept.
    pub informed: BTreeSet<usize>,
    /// The status of a result that was too large to be kept.
    not_stored: Option<StatusCode>,
    /// An operator or a probe decided that it may run again.
    pub decided: bool,
    /// The processes that claimed it, or tried to.
    claimants: Vec<Arc<Process>>,
    /// The time of the last claim, by the store's clock, and its fence.
    pub last_claim: Option<(u64, Fence)>,
    /// The slot's record before its last change.
    pub before: Option<Held>,
    /// The writes that a gateway knows to be stored.
    pub acknowledged: Vec<Record>,
}

pub struct Order {
    pub number: u64,
    /// The upstream did not execute it, and its gateway knows.
    pub was_not_executed: bool,
}

/// The upstream's state of an operation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Known {
    #[default]
    Nothing,
    Acts,
    Acted(u16),
}

/// A result as a client gets it.
#[derive(Debug, PartialEq)]
struct ResultCopy {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl World {
    /// A process sends a claim.
    pub fn claims(&self, key: usize, process: &Arc<Process>, fence: Fence) {
        let now_ms = self.store_ms();
        self.claims_with(key, process, fence);
        let operation = &mut self.book().operations[key];
        operation.last_claim = Some((now_ms, fence));
        let claimants = &mut operation.claimants;
        if !claimants.iter().any(|one| Arc::ptr_eq(one, process)) {
            claimants.push(process.clone());
        }
    }

    /// A request starts towards the upstream, or returns unsent.
    pub fn on_its_way(&self, key: usize, is_it: bool) {
        let on_their_way = &mut self.book().operations[key].on_their_way;
        *on_their_way = if is_it { *on_their_way + 1 } else { *on_their_way - 1 };
    }

    /// The first byte of a request reaches the upstream. Returns its number.
    pub fn sends(&self, key: usize, process: &Process) -> u64 {
        let number = self.number();
        self.note(Some(process.gateway), Some(key), Occurrence::Sent { order: number });
        let again = {
            let operation = &mut self.book().operations[key];
            let again =
                operation.orders.iter().any(|order| !order.was_not_executed) && !operation.decided;
            operation.orders.push(Order { number, was_not_executed: false });
            operation.on_their_way -= 1;
            operation.sent = true;
            again
        };
        if again && matches!(self.plan.policy.on_uncertain, OnUncertain::Hold) {
            self.violated(SENT_ONCE, Some(key), format!("order {number} was sent after another"));
        }
        number
    }

    /// The upstream executes the operation.
    pub fn charges(&self, key: usize, order: u64, asker: usize) {
        self.note(None, Some(key), Occurrence::Charged { order, who: ASKERS[asker].name });
        let charges = {
            let operation = &mut self.book().operations[key];
            operation.charges += 1;
            operation.charges
        };
        if charges > 1 {
            self.violated(ONCE, Some(key), format!("order {order} was execution number {charges}"));
        }
    }

    /// The key is free again.
    pub fn is_released(&self, key: usize) {
        self.book().operations[key].sent = false;
    }

    /// An attempt began from uncertain.
    pub fn is_taken_over(&self, key: usize) {
        self.book().operations[key].sent = true;
    }

    /// The upstream did not execute the request, and its gateway knows.
    pub fn was_not_executed(&self, key: usize, order: u64) {
        for one in self.book().operations[key].orders.iter_mut().filter(|one| one.number == order) {
            one.was_not_executed = true;
        }
    }

    /// A client gets a result. `body` is `None` where it was too large to be kept.
    pub fn sees(
        &self,
        key: usize,
        asker: usize,
        replayed: bool,
        status: StatusCode,
        mut headers: HeaderMap,
        body: Option<Bytes>,
    ) {
        let mark = headers.remove(IDEMPOTENT_REPLAYED);
        if (mark.is_some_and(|mark| mark == "true")) != replayed {
            self.violated(ONE_ANSWER, Some(key), "the replay mark is on the wrong answer".into());
        }
        if self.plan.policy.drop_headers.contains(&SET_COOKIE) {
            let dropped = headers.remove(SET_COOKIE);
            if replayed && dropped.is_some() {
                self.violated(ONE_ANSWER, Some(key), "a field that is dropped was replayed".into());
            }
        }
        let owner =
            body.as_ref().and_then(|body| body.first()).map(|digit| usize::from(digit - b'0'));
        if owner.is_some_and(|owner| owner != asker) {
            self.violated(
                NO_STRANGER,
                Some(key),
                format!("{} got what belongs to another", ASKERS[asker].name),
            );
        }
        let found = {
            let operation = &mut self.book().operations[key];
            operation.informed.insert(asker);
            match (body, operation.not_stored) {
                (None, other) => {
                    let again =
                        other.is_some_and(|other| other != status) || operation.answered.is_some();
                    operation.not_stored = Some(status);
                    again.then(|| format!("{status} with a large body came after another"))
                }
                (Some(_), Some(other)) => {
                    Some(format!("{status} came after {other} with a large body"))
                }
                (Some(body), None) => {
                    let seen = ResultCopy { status, headers, body };
                    match &operation.answered {
                        None => {
                            operation.answered = Some(seen);
                            None
                        }
                        Some(first) if *first == seen => None,
                        Some(first) => Some(format!("{seen:?} came after {first:?}")),
                    }
                }
            }
        };
        if let Some(text) = found {
            self.violated(ONE_ANSWER, Some(key), text);
        }
    }

    /// A client gets the answer that a result was not kept.
    pub fn sees_not_stored(&self, key: usize, asker: usize, status: u16) {
        let (answered, not_stored) = {
            let operation = &mut self.book().operations[key];
            operation.informed.insert(asker);
            (operation.answered.is_some(), operation.not_stored)
        };
        if answered || not_stored.is_some_and(|first| first.as_u16() != status) {
            self.violated(
                ONE_ANSWER,
                Some(key),
                format!("{status} was not kept, and something else was answered before"),
            );
        }
    }

    /// Returns the askers that got a result, or the answer that it was not kept.
    pub fn informed(&self, key: usize) -> BTreeSet<usize> {
        self.book().operations[key].informed.clone()
    }

    /// Checks the state long after the last fault: nothing is in flight, and every uncertain
    /// operation was sent.
    pub async fn check_records(&self) {
        let page = self.store.list(Listing::Unsettled, None, 100).await.unwrap();
        for (slot, held) in page.records {
            let key = self.key_of(&slot);
            let Some(number) = key else { continue };
            match held.record.state {
                State::InFlight { .. } => {
                    self.violated(SETTLES, key, format!("in flight since {}", held.written_ms))
                }
                State::Uncertain { cause, .. } => {
                    let may_be = {
                        let operation = &self.book().operations[number];
                        operation.sent
                            || operation.on_their_way > 0
                            || operation
                                .claimants
                                .iter()
                                .any(|process| process.stand() == Stand::Dead)
                    };
                    if !may_be {
                        self.violated(
                            UNSENT_IS_FREE,
                            key,
                            format!("uncertain: {}", cause.describe()),
                        );
                    }
                }
                _ => {}
            }
        }
    }
}
