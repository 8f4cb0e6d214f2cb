//! Clients: they send requests, leave, retry at other gateways, and check their answers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use onceward::gate::{Answered, BufferedRequest, Refusal, RequestContext};
use onceward::telemetry::Answer;
use tokio::time::{Instant, sleep};

use super::checks::{ENDS, IN_TIME, NO_STRANGER};
use super::history::Occurrence;
use super::plan::ANSWER_MAX;
use super::upstream::Pieces;
use super::world::{ASKERS, Gateway, World, head};

/// The result of a request, as far as its client needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientResult {
    Result,
    NotStored,
    /// A refusal: the outcome is unknown, or the request can't run now.
    Refused(&'static str),
    /// The key belongs to another caller or request.
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
        // Several clients come at once, as impatient clients retry, also at other gateways.
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
            let result = self.ask(&gateway, key, asker, leaves).await;
            let pause = match result {
                ClientResult::KeyReused if self.dice.chance(700) => return,
                ClientResult::Result | ClientResult::NotStored if self.dice.chance(500) => return,
                ClientResult::Nothing => self.dice.span(1, 500),
                _ => self.dice.span(50, 9000),
            };
            sleep(pause).await;
        }
    }

    /// Sends one request and checks its answer.
    pub async fn ask(
        self: &Arc<World>,
        gateway: &Gateway,
        key: usize,
        asker: usize,
        leaves: Option<Duration>,
    ) -> ClientResult {
        let request = self.number();
        let process = &gateway.process;
        let at = Some(process.gateway);
        self.note(at, Some(key), Occurrence::ClaimRequest { request, who: ASKERS[asker].name });
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
                answer = handled => Some(answer),
                () = sleep(leaves.unwrap_or(Duration::MAX)), if leaves.is_some() => None,
            }
        });
        let answer = match handled.await {
            None => Err("its gateway dies"),
            Some(None) => Err("it leaves"),
            Some(Some(answer)) => Ok(answer),
        };
        // Delays by the simulation itself do not count against the gate.
        let held_up = (process.stopped_for() - begin.1) + (self.stalled_for() - begin.2);
        let took = begin.0.elapsed().saturating_sub(held_up);
        if took > self.plan.answer_max() {
            self.violated(
                IN_TIME,
                Some(key),
                format!("request {request} took {} ms", took.as_millis()),
            );
        }
        match answer {
            Err(why) => {
                self.count(if why == "it leaves" {
                    "client: leaves"
                } else {
                    "client: loses its gateway"
                });
                self.note(at, Some(key), Occurrence::Left { request, why });
                ClientResult::Nothing
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
    ) -> ClientResult {
        let (why, result) = match problem {
            Refusal::InFlight { .. } => ("answer: in-flight", ClientResult::Refused("in-flight")),
            Refusal::OutcomeUncertain { .. } => {
                ("answer: outcome-uncertain", ClientResult::Refused("outcome-uncertain"))
            }
            Refusal::KeyReused { .. } => ("answer: key-reused", ClientResult::KeyReused),
            Refusal::ResponseNotStored { .. } => {
                ("answer: response-not-stored", ClientResult::NotStored)
            }
            Refusal::NotSent { .. } => ("answer: not-sent", ClientResult::Refused("not-sent")),
            Refusal::UpstreamUnreachable { .. } => {
                ("answer: upstream-unreachable", ClientResult::Refused("upstream-unreachable"))
            }
            Refusal::StoreUnavailable { .. } => {
                ("answer: store-unavailable", ClientResult::Refused("store-unavailable"))
            }
            Refusal::OutboxFull { .. } => {
                ("answer: outbox-full", ClientResult::Refused("outbox-full"))
            }
            Refusal::Overloaded => ("answer: overloaded", ClientResult::Refused("overloaded")),
            _ => ("answer: something else", ClientResult::Refused("something else")),
        };
        self.count(why);
        self.note(at, Some(key), Occurrence::Refused { request, why });
        if let Refusal::ResponseNotStored { status, .. } = problem {
            self.sees_not_stored(key, asker, *status);
        }
        if result == ClientResult::Refused("something else") {
            self.violated(
                ENDS,
                Some(key),
                format!("request {request} was refused in an unexpected way: {problem}"),
            );
        }
        result
    }

    async fn answered(
        &self,
        at: Option<usize>,
        key: usize,
        asker: usize,
        request: u64,
        answered: Answered<Pieces>,
    ) -> ClientResult {
        let Answered { response, answer } = answered;
        let (head, body) = response.into_parts();
        // A copy, because the gateway counts its own bytes as used while a reference exists.
        let body = body.collect().await.map(|body| Bytes::copy_from_slice(&body.to_bytes())).ok();
        let kept = body.filter(|body| body.len() <= ANSWER_MAX);
        let status = head.status.as_u16();
        let copy = head.headers.get("x-copy").and_then(|copy| copy.to_str().ok()?.parse().ok());
        let how = answer.name();
        self.note(at, Some(key), Occurrence::Result { request, how, status, copy });
        match answer {
            Answer::Executed | Answer::Replayed => {
                self.count(if answer == Answer::Executed {
                    "answer: executed"
                } else {
                    "answer: replayed"
                });
                self.sees(key, asker, answer == Answer::Replayed, head.status, head.headers, kept);
                ClientResult::Result
            }
            Answer::Released => {
                self.count("answer: released");
                ClientResult::Refused("released")
            }
            other => {
                self.violated(
                    NO_STRANGER,
                    Some(key),
                    format!("request {request} went through as {}", other.name()),
                );
                ClientResult::Refused("unprotected")
            }
        }
    }
}
