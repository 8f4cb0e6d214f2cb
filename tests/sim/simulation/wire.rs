//! The connection between a gateway and the upstream.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use onceward::gate::{BoxError, ForwardError, Payload, SendRule};
use tokio::sync::oneshot;
use tokio::time::sleep;
use tower_service::Service;

use super::process::Process;
use super::upstream::{Order, Pieces};
use super::world::{ASKERS, World};

/// The gate's forwarder: writes requests as the proxy does, and checks the send rule before each
/// write.
#[derive(Clone)]
pub struct Wire {
    pub world: Arc<World>,
    pub process: Arc<Process>,
}

impl Service<Request<Payload<Full<Bytes>>>> for Wire {
    type Response = Response<Pieces>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Pieces>, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Payload<Full<Bytes>>>) -> Self::Future {
        let wire = self.clone();
        Box::pin(async move {
            if request.method() == Method::GET {
                let response = wire.ask(request).await;
                wire.process.runs().await;
                return Ok(response?);
            }
            let key = key_of(request.headers()["idempotency-key"].to_str().unwrap());
            wire.world.on_its_way(key, true);
            let response = wire.forward(key, request).await;
            wire.process.runs().await;
            if matches!(response, Err(ForwardError::NeverSent(_) | ForwardError::TooLate)) {
                wire.world.on_its_way(key, false);
            }
            Ok(response?)
        })
    }
}

fn broken() -> ForwardError {
    ForwardError::Broken("the connection broke".into())
}

fn key_of(name: &str) -> usize {
    name.strip_prefix('k').and_then(|number| number.parse().ok()).unwrap()
}

impl Wire {
    async fn forward(
        &self,
        key: usize,
        request: Request<Payload<Full<Bytes>>>,
    ) -> Result<Response<Pieces>, ForwardError> {
        let (world, process) = (&self.world, &self.process);
        let (dice, plan) = (&world.dice, &world.plan);
        process.runs().await;
        let troubled =
            |permille: usize| !world.is_calm() && plan.rates.upstream > 0 && dice.chance(permille);
        let lease = plan.policy.lease.as_millis() as u64;
        // A connection takes time, sometimes so long that the claim grows too old.
        sleep(if troubled(50) { dice.span(1, lease) } else { dice.span(0, 2) }).await;
        if troubled(50) {
            world.count("upstream: can't be reached");
            return Err(ForwardError::NeverSent("refused".into()));
        }
        world.strike(process, Some(key));
        process.runs().await;
        let rule = request.extensions().get::<Arc<SendRule>>().unwrap().clone();
        if !rule.allows() {
            world.count("wire: too late to send");
            return Err(ForwardError::TooLate);
        }
        let number = world.sends(key, process);
        world.strike(process, Some(key));
        let caller = request.headers()[AUTHORIZATION].to_str().unwrap().to_owned();
        // The body is written after the head.
        sleep(if troubled(30) { dice.span(1, lease) } else { dice.span(0, 1) }).await;
        process.runs().await;
        let Ok(body) = request.into_body().collect().await else {
            world.count("wire: too late for the rest");
            return Err(broken());
        };
        let body = body.to_bytes();
        let asker =
            ASKERS.iter().position(|asker| asker.caller == caller && asker.body == body).unwrap();
        let (reply, answer) = oneshot::channel();
        tokio::spawn(world.clone().take(Order { number, key, asker }, reply));
        world.strike(process, Some(key));
        let Ok(served) = answer.await else {
            sleep(dice.span(0, 5)).await;
            return Err(broken());
        };
        world.strike(process, Some(key));
        process.runs().await;
        if served.status == StatusCode::TOO_MANY_REQUESTS {
            world.was_not_executed(key, number);
            world.was_declined(key, process);
        }
        let mut response = Response::new(served.body);
        *response.status_mut() = served.status;
        *response.headers_mut() = served.headers;
        Ok(response)
    }

    /// A probe by the gate. The reconciler has no caller, and probes for any user of the key.
    async fn ask(
        &self,
        request: Request<Payload<Full<Bytes>>>,
    ) -> Result<Response<Pieces>, ForwardError> {
        self.process.runs().await;
        let key = key_of(request.uri().path().rsplit('/').next().unwrap());
        let caller = request.headers().get(AUTHORIZATION).map(|caller| caller.to_str().unwrap());
        // Credentials do not distinguish two requests of one caller.
        let asker = caller.and_then(|caller| {
            match ASKERS.iter().filter(|asker| asker.caller == caller).count() {
                1 => ASKERS.iter().position(|asker| asker.caller == caller),
                _ => None,
            }
        });
        let served = self.world.look_up(key, asker).await.ok_or_else(broken)?;
        let mut response = Response::new(served.body);
        *response.status_mut() = served.status;
        *response.headers_mut() = served.headers;
        Ok(response)
    }
}
