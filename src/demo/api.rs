//! The toy payment API: it charges for every request it gets, as an API without idempotency keys does, and keeps a ledger.
//!
//! For some orders the first charge goes wrong, as it does on bad days: it is slow, or the connection breaks after the
//! charge and before the answer. Which orders these are is fixed, so that every run tells the same story.

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

/// Where payments are made.
pub const PAYMENTS: &str = "/v1/payments";
/// Where the ledger is shown.
pub const LEDGER: &str = "/v1/ledger";

/// Orders whose first charge takes longer than their client waits.
pub const SLOW: [&str; 5] = ["order-03", "order-07", "order-11", "order-14", "order-18"];
/// Orders whose first charge succeeds, and whose answer is lost.
pub const LOST: [&str; 4] = ["order-05", "order-09", "order-16", "order-20"];

/// How long a charge takes, and how long a slow one.
const CHARGE: Duration = Duration::from_millis(200);
const CHARGE_SLOW: Duration = Duration::from_millis(1000);

/// Largest payment request.
const REQUEST_BYTES_MAX: usize = 64 << 10;

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Its name.
    pub order: String,
    /// The amount, in cents.
    pub amount: u64,
}

/// What was charged, and what the client is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Charge {
    /// A number of its own.
    pub id: String,
    /// For which order.
    pub order: String,
    /// The amount, in cents.
    pub amount: u64,
}

/// What an API knows of its orders.
#[derive(Debug, Default)]
struct Book {
    /// Orders that were asked for.
    begun: HashSet<String>,
    /// All charges, in the order in which they were made.
    charges: Vec<Charge>,
}

/// A running API. It ends when this is dropped.
pub struct Api {
    /// Where it listens.
    pub address: SocketAddr,
    desk: Desk,
    listening: AbortHandle,
}

/// Takes payments. A charge goes on when its client leaves.
#[derive(Clone, Default)]
struct Desk {
    book: Arc<Mutex<Book>>,
    charging: TaskTracker,
}

/// The connection breaks here.
#[derive(Debug, thiserror::Error)]
#[error("the connection is closed without an answer")]
struct HangUp;

impl Api {
    /// Listens on a free port of this machine.
    pub async fn start() -> io::Result<Api> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let desk = Desk::default();
        let listening = tokio::spawn(listen(listener, desk.clone())).abort_handle();
        Ok(Api { address, desk, listening })
    }

    /// All charges so far, once those under way are made.
    pub async fn charges(&self) -> Vec<Charge> {
        self.desk.charging.close();
        self.desk.charging.wait().await;
        self.desk.book(|book| book.charges.clone())
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

async fn listen(listener: TcpListener, desk: Desk) {
    // Aborted with this task: nobody talks to an API that is gone.
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(connections.spawn(serve(stream, desk.clone()))),
            // Out of file descriptors, most likely.
            Err(_) => tokio::time::sleep(CHARGE).await,
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(stream: TcpStream, desk: Desk) {
    let service = service_fn(move |request| desk.clone().answer(request));
    // Fails where the API hangs up on purpose, and where a client leaves: both are the story.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

impl Desk {
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
        let first = self.book(|book| book.begun.insert(order.order.clone()));
        let is_slow = first && SLOW.contains(&order.order.as_str());
        let is_lost = first && LOST.contains(&order.order.as_str());
        let desk = self.clone();
        let charging = self.charging.spawn(async move {
            tokio::time::sleep(if is_slow { CHARGE_SLOW } else { CHARGE }).await;
            desk.charge(order)
        });
        let charge = charging.await.map_err(|_| HangUp)?;
        if is_lost { Err(HangUp) } else { Ok(respond(StatusCode::CREATED, charge.document())) }
    }

    fn charge(&self, Order { order, amount }: Order) -> Charge {
        self.book(|book| {
            let charge = Charge { id: format!("pay_{:04}", book.charges.len() + 1), order, amount };
            book.charges.push(charge.clone());
            charge
        })
    }

    /// A line a charge: it is read by people.
    fn ledger(&self) -> String {
        let lines: Vec<String> = self.book(|book| {
            book.charges.iter().map(|charge| format!("  {}", json!(charge))).collect()
        });
        format!("[\n{}\n]\n", lines.join(",\n"))
    }

    fn book<T>(&self, read: impl FnOnce(&mut Book) -> T) -> T {
        read(&mut self.book.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Charge {
    /// What the API answers.
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
