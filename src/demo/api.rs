//! The toy payment API: it charges for every request, as an API without idempotency keys does, and
//! keeps a ledger. All other requests are for the services of the checkout.
//!
//! For some orders the first request has a problem: the charge is slow, or the connection breaks
//! between the charge and the response. The list of these orders is fixed, so that all runs are the
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

use super::checkout::Services;

/// The path for payments.
pub const PAYMENTS: &str = "/v1/payments";
/// The path of the ledger.
pub const LEDGER: &str = "/v1/ledger";

/// Orders with a slow first charge: it takes longer than the client waits.
pub const SLOW: [&str; 5] = ["order-03", "order-07", "order-11", "order-14", "order-18"];
/// Orders with a lost response: the first charge succeeds, and the connection then breaks.
pub const LOST: [&str; 4] = ["order-05", "order-09", "order-16", "order-20"];

/// How long a charge takes: normally, and for slow orders.
const CHARGE: Duration = Duration::from_millis(200);
const CHARGE_SLOW: Duration = Duration::from_millis(1000);

/// Largest payment request, in bytes.
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
    /// Orders with at least one request.
    begun: HashSet<String>,
    /// All charges, oldest first.
    charges: Vec<Charge>,
}

/// A running API. It ends when this is dropped.
pub struct Api {
    /// The address of its listener.
    pub address: SocketAddr,
    handler: PaymentHandler,
    listening: AbortHandle,
}

/// Handles payments. A charge continues if its client disconnects.
#[derive(Clone, Default)]
struct PaymentHandler {
    state: Arc<Mutex<ApiState>>,
    charging: TaskTracker,
    services: Services,
}

/// The error that closes a connection without a response.
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

    /// Returns the services of the checkout.
    pub fn services(&self) -> &Services {
        &self.handler.services
    }

    /// Waits until active charges have ended, and returns all charges.
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
    // The connections are aborted together with this task, so that none of them outlives the API.
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(connections.spawn(serve(stream, handler.clone()))),
            // The process has probably no free file descriptors.
            Err(_) => tokio::time::sleep(CHARGE).await,
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(stream: TcpStream, handler: PaymentHandler) {
    let service = service_fn(move |request| handler.clone().answer(request));
    // Errors are expected: the API closes connections on purpose, and clients disconnect.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

impl PaymentHandler {
    async fn answer(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, HangUp> {
        match (request.method(), request.uri().path()) {
            (&Method::POST, PAYMENTS) => self.pay(request).await,
            (&Method::GET, LEDGER) => Ok(respond(StatusCode::OK, self.ledger())),
            (method, path) => {
                let (status, body) = self.services.execute(method, path);
                Ok(respond(status, body))
            }
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
