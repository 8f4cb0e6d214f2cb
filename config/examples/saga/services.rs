//! The three toy services. They execute every request that they get, as services without
//! idempotency keys do, and record it in one ledger.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Uri};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

/// The place that no carrier goes to.
pub const REFUSED_PLACE: &str = "the moon";

/// A request that a service executed.
#[derive(Debug, Clone)]
pub struct Execution {
    /// The method and the path.
    pub line: String,
    /// The idempotency key that the request had.
    pub key: String,
    /// The body of the request; null for a request without body.
    pub request: Value,
    /// The status of the answer.
    pub status: StatusCode,
}

/// The executions of all services, oldest first. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Ledger(Arc<Mutex<Vec<Execution>>>);

impl Ledger {
    /// Returns the executions.
    pub fn executions(&self) -> Vec<Execution> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn add(&self, execution: Execution) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(execution);
    }
}

/// A service on a free port. It ends when this is dropped.
pub struct ToyService {
    /// The address of its listener.
    pub address: SocketAddr,
    _listening: AbortOnDropHandle<()>,
}

impl ToyService {
    /// Starts a service that writes into a ledger.
    ///
    /// # Errors
    /// No port is free.
    pub async fn start(ledger: &Ledger) -> Result<ToyService> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let router = Router::new().fallback(execute).with_state(ledger.clone());
        let listening = tokio::spawn(async move {
            // It returns only after a graceful shutdown, which nobody requests.
            let _ = axum::serve(listener, router).await;
        });
        Ok(ToyService { address, _listening: AbortOnDropHandle::new(listening) })
    }
}

async fn execute(
    State(ledger): State<Ledger>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let request: Value = serde_json::from_slice(&body).unwrap_or_default();
    let key = headers.get("idempotency-key").and_then(|value| value.to_str().ok());
    let (status, answer) = answer(&method, uri.path(), &request);
    ledger.add(Execution {
        line: format!("{method} {}", uri.path()),
        key: key.unwrap_or("no key").to_owned(),
        request,
        status,
    });
    match answer {
        Some(answer) => (status, Json(answer)).into_response(),
        None => status.into_response(),
    }
}

/// Returns the status and the body of an answer. The id of what a request makes has the name of the
/// order in it.
fn answer(method: &Method, path: &str, request: &Value) -> (StatusCode, Option<Value>) {
    let order = request["order"].as_str().unwrap_or_default();
    let made = |kind| (StatusCode::CREATED, Some(json!({ "id": format!("{kind}-of-{order}") })));
    match (method, path) {
        (&Method::POST, "/v1/reservations") => made("reservation"),
        (&Method::DELETE, path) if path.starts_with("/v1/reservations/") => {
            (StatusCode::NO_CONTENT, None)
        }
        (&Method::POST, "/v1/charges") => made("charge"),
        (&Method::POST, "/v1/refunds") => made("refund"),
        (&Method::POST, "/v1/shipments") if request["to"] == REFUSED_PLACE => {
            let reason = json!({ "reason": "no carrier goes there" });
            (StatusCode::UNPROCESSABLE_ENTITY, Some(reason))
        }
        (&Method::POST, "/v1/shipments") => made("shipment"),
        _ => (StatusCode::NOT_FOUND, None),
    }
}
