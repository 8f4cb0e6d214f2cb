//! Clients: they ask, leave, ask again at another gateway, and look at what they get.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use onceward::gate::{Answered, BufferedRequest, Refusal, RequestContext};
use onceward::telemetry::Answer;
use tokio::time::{Instant, sleep};

use super::checks::{ENDS, IN_TIME, NO_STRANGER};
use super::history::What;
use super::plan::ANSWER_MAX;
use super::upstream::Pieces;
use super::world::{ASKERS, Gateway, World, head};

/// How a request went, as far as its client cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    Result,
    NotStored,
    /// Not now, or nobody knows.
    Refused(&'static str),
    /// Somebody else's key.
    KeyReused,
    /// The client left, or lost its gateway.
    Nothing,
}

impl World {
    /// A client with one operation.
    pub async fn client(self: Arc<World>, number: usize) {
        self.asks_until_it_has_enough(number).await;
        let mut book = self.book();
        book.clients -= 1;
        if book.clients == 0 {
            book.quiet_since = Some(Instant::now());
        }
    }

    async fn asks_until_it_has_enough(self: &Arc<World>, number: usize) {
        let key = self.dice.below(self.plan.keys);
        let asker = match self.dice.chance(self.plan.rates.stranger) {
            true => 1 + self.dice.below(2),
            false => 0,
        };
        // Many come at once: retries of impatient clients, and those of other gateways.
        sleep(if number.is_multiple_of(3) {
            self.dice.span(0, 8000)
        } else {
            self.dice.span(0, 100)
        })
        .await;
        for _ in 0..self.plan.tries {
            let gateway = self.gateway(self.dice.below(self.plan.gateways));
            let leaves = if !self.is_calm() && self.dice.chance(self.plan.rates.leave) {
                Some(self.dice.span(0, 3000))
            } else {
                None
            };
            let told = self.ask(&gateway, key, asker, leaves).await;
            let pause = match told {
                Told::KeyReused if self.dice.chance(700) => return,
                Told::Result | Told::NotStored if self.dice.chance(500) => return,
                Told::Nothing => self.dice.span(1, 500),
                _ => self.dice.span(50, 9000),
            };
            sleep(pause).await;
        }
    }

    /// One request, checked.
    pub async fn ask(
        self: &Arc<World>,
        gateway: &Gateway,
        key: usize,
        asker: usize,
        leaves: Option<Duration>,
    ) -> Told {
        let request = self.number();
        let process = &gateway.process;
        let at = Some(process.gateway);
        self.note(at, Some(key), What::Asked { request, who: ASKERS[asker].name });
        let begin = (Instant::now(), process.stopped_for(), self.stalled_for());
        let hold = gateway.gate.budget().hold();
        let body = Bytes::from_static(ASKERS[asker].body);
        let (parts, context) = (head(asker, key), RequestContext::default());
        let intake = gateway.gate.read_head(&gateway.guarded, &parts.headers, &context);
        let intake = intake.unwrap().unwrap();
        let buffered = BufferedRequest { parts, intake, body, hold, context };
        let handled = gateway.gate.handle(&gateway.guarded, buffered, gateway.wire.clone());
        let handled = process.within(async {
            tokio::select! {
                biased;
                told = handled => Some(told),
                () = sleep(leaves.unwrap_or(Duration::MAX)), if leaves.is_some() => None,
            }
        });
        let told = match handled.await {
            None => Err("its gateway dies"),
            Some(None) => Err("it leaves"),
            Some(Some(told)) => Ok(told),
        };
        // What the world itself held up is not the gate's.
        let held_up = (process.stopped_for() - begin.1) + (self.stalled_for() - begin.2);
        let took = begin.0.elapsed().saturating_sub(held_up);
        if took > self.plan.answer_max() {
            self.violated(
                IN_TIME,
                Some(key),
                format!("request {request} took {} ms", took.as_millis()),
            );
        }
        match told {
            Err(why) => {
                self.count(if why == "it leaves" {
                    "client: leaves"
                } else {
                    "client: loses its gateway"
                });
                self.note(at, Some(key), What::Left { request, why });
                Told::Nothing
            }
            Ok(Err(problem)) => self.refused(at, key, asker, request, &problem),
            Ok(Ok(answered)) => self.answered(at, key, asker, request, answered).await,
        }
    }

    fn refused(
        &self,
        at: Option<usize>,
        key: usize,
        asker: usize,
        request: u64,
        problem: &Refusal,
    ) -> Told {
        let (why, told) = match problem {
            Refusal::InFlight { .. } => ("answer: in-flight", Told::Refused("in-flight")),
            Refusal::OutcomeUncertain { .. } => {
                ("answer: outcome-uncertain", Told::Refused("outcome-uncertain"))
            }
            Refusal::KeyReused { .. } => ("answer: key-reused", Told::KeyReused),
            Refusal::ResponseNotStored { .. } => ("answer: response-not-stored", Told::NotStored),
            Refusal::NotSent { .. } => ("answer: not-sent", Told::Refused("not-sent")),
            Refusal::UpstreamUnreachable { .. } => {
                ("answer: upstream-unreachable", Told::Refused("upstream-unreachable"))
            }
            Refusal::StoreUnavailable { .. } => {
                ("answer: store-unavailable", Told::Refused("store-unavailable"))
            }
            Refusal::Overloaded => ("answer: overloaded", Told::Refused("overloaded")),
            _ => ("answer: something else", Told::Refused("something else")),
        };
        self.count(why);
        self.note(at, Some(key), What::Refused { request, why });
        if let Refusal::ResponseNotStored { status, .. } = problem {
            self.sees_not_stored(key, asker, *status);
        }
        if told == Told::Refused("something else") {
            self.violated(
                ENDS,
                Some(key),
                format!("request {request} was refused in an unexpected way: {problem}"),
            );
        }
        told
    }

    async fn answered(
        &self,
        at: Option<usize>,
        key: usize,
        asker: usize,
        request: u64,
        answered: Answered<Pieces>,
    ) -> Told {
        let Answered { response, answer } = answered;
        let (head, body) = response.into_parts();
        // A copy: the gateway counts its own bytes for as long as anybody has them.
        let body = body.collect().await.map(|body| Bytes::copy_from_slice(&body.to_bytes())).ok();
        let kept = body.filter(|body| body.len() <= ANSWER_MAX);
        let status = head.status.as_u16();
        let copy = head.headers.get("x-copy").and_then(|copy| copy.to_str().ok()?.parse().ok());
        let how = answer.name();
        self.note(at, Some(key), What::Result { request, how, status, copy });
        match answer {
            Answer::Executed | Answer::Replayed => {
                self.count(if answer == Answer::Executed {
                    "answer: executed"
                } else {
                    "answer: replayed"
                });
                self.sees(key, asker, answer == Answer::Replayed, head.status, head.headers, kept);
                Told::Result
            }
            Answer::Released => {
                self.count("answer: released");
                Told::Refused("released")
            }
            other => {
                self.violated(
                    NO_STRANGER,
                    Some(key),
                    format!("request {request} went through as {}", other.name()),
                );
                Told::Refused("unprotected")
            }
        }
    }
}
