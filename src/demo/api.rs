//! The toy payment API: it charges for every request, as an API without idempotency keys does, and
//! keeps a ledger.
//!
//! For some orders the first charge fails as on a bad day: it is slow, or the connection breaks
//! between the charge and the response. The list of these orders is fixed, so that every run is the
//! same.

use std::collections::HashSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::task::TaskTracker;

/// The path for payments.
pub const PAYMENTS: &str = "/v1/payments";
/// The path of the ledger.
pub const LEDGER: &str = "/v1/ledger";

/// Orders with a first charge that takes longer than their client waits.
pub const SLOW: [&str; 5] = ["order-03", "order-07", "order-11", "order-14", "order-18"];
/// Orders with a first charge that succeeds, and a response that is lost.
pub const LOST: [&str; 4] = ["order-05", "order-09", "order-16", "order-20"];

/// How long a charge takes, normally and for slow orders.
const CHARGE: Duration = Duration::from_millis(200);
const CHARGE_SLOW: Duration = Duration::from_millis(1000);

/// Largest payment request.
const REQUEST_BYTES_MAX: usize = 64 << 10;

/// The body of a payment request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The order's name.
    pub order: String,
    /// The amount, in cents.
    pub amount: u64,
}

/// A charge, which is also the response to the client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Charge {
    /// The number of the charge.
    pub id: String,
    /// The order.
    pub order: String,
    /// The amount, in cents.
    pub amount: u64,
}

/// The state of an API.
#[derive(Debug, Default)]
struct ApiState {
    /// Orders that were requested.
    begun: HashSet<String>,
    /// All charges, in their order.
    charges: Vec<Charge>,
}

/// A running API. It ends when this is dropped.
pub struct Api {
    /// The address of its listener.
    pub address: SocketAddr,
    handler: PaymentHandler,
    listening: AbortHandle,
}

/// Handles payments. A charge continues when its client leaves.
#[derive(Clone, Default)]
struct PaymentHandler {
    state: Arc<Mutex<ApiState>>,
    charging: TaskTracker,
}

/// The connection is closed without a response.
#[derive(Debug, thiserror::Error)]
#[error("the connection is closed without an answer")]
struct HangUp;

impl Api {
    /// Starts on a free port of this machine.
    pub async fn start() -> io::Result<Api> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let handler = PaymentHandler::default();
        let listening = tokio::spawn(listen(listener, handler.clone())).abort_handle();
        Ok(Api { address, handler, listening })
    }

    /// Returns all charges so far, after the active ones have ended.
    pub async fn charges(&self) -> Vec<Charge> {
        self.handler.charging.close();
        self.handler.charging.wait().await;
        self.handler.state(|state| state.charges.clone())
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

async fn listen(listener: TcpListener, handler: PaymentHandler) {
    // Aborted with this task, so that no connection outlives the API.
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(connections.spawn(serve(stream, handler.clone()))),
            // Probably out of file descriptors.
            Err(_) => tokio::time::sleep(CHARGE).await,
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(stream: TcpStream, handler: PaymentHandler) {
    let service = service_fn(move |request| handler.clone().answer(request));
    // Fails if the API closes the connection on purpose, or if a client leaves: the demo has both.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

impl PaymentHandler {
    async fn answer(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, HangUp> {
        match (request.method(), request.uri().path()) {
            (&Method::POST, PAYMENTS) => self.pay(request).await,
            (&Method::GET, LEDGER) => Ok(respond(StatusCode::OK, self.ledger())),
            _ => Ok(respond(StatusCode::NOT_FOUND, message("there is nothing here"))),
        }
    }

    async fn pay(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, HangUp> {
        let body = Limited::new(request.into_body(), REQUEST_BYTES_MAX)
            .collect()
            .await
            .map_err(|_| HangUp)?
            .to_bytes();
        let order: Order = match serde_json::from_slice(&body) {
            Ok(order) => order,
            Err(error) => return Ok(respond(StatusCode::BAD_REQUEST, message(&error.to_string()))),
        };
        let first = self.state(|state| state.begun.insert(order.order.clone()));
        let is_slow = first && SLOW.contains(&order.order.as_str());
        let is_lost = first && LOST.contains(&order.order.as_str());
        let handler = self.clone();
        let charging = self.charging.spawn(async move {
            tokio::time::sleep(if is_slow { CHARGE_SLOW } else { CHARGE }).await;
            handler.charge(order)
        });
        let charge = charging.await.map_err(|_| HangUp)?;
        if is_lost { Err(HangUp) } else { Ok(respond(StatusCode::CREATED, charge.document())) }
    }

    fn charge(&self, Order { order, amount }: Order) -> Charge {
        self.state(|state| {
            let charge =
                Charge { id: format!("pay_{:04}", state.charges.len() + 1), order, amount };
            state.charges.push(charge.clone());
            charge
        })
    }

    /// Formats one line per charge, for people.
    fn ledger(&self) -> String {
        let lines: Vec<String> = self.state(|state| {
            state.charges.iter().map(|charge| format!("  {}", json!(charge))).collect()
        });
        format!("[\n{}\n]\n", lines.join(",\n"))
    }

    fn state<T>(&self, read: impl FnOnce(&mut ApiState) -> T) -> T {
        read(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Charge {
    /// Returns the response body.
    pub fn document(&self) -> String {
        format!("{}\n", json!(self))
    }
}

fn message(text: &str) -> String {
    format!("{}\n", json!({ "message": text }))
}

fn respond(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
