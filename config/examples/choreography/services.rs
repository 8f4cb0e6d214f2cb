//! The three toy services. They execute every request that they get, as services without
//! idempotency keys do, and record it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use http::header::AUTHORIZATION;
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

/// The order that no carrier takes.
pub const REFUSED_ORDER: &str = "order-2";

/// A request that a service executed.
#[derive(Debug, Clone)]
pub struct Execution {
    /// The idempotency key that the request had.
    pub key: String,
    /// The body of the request.
    pub request: Value,
    /// The status of the answer.
    pub status: StatusCode,
    /// The body of the answer.
    pub answer: Value,
}

impl Execution {
    /// Returns the order.
    pub fn order(&self) -> &str {
        self.request["order"].as_str().unwrap_or_default()
    }
}

/// A service on a free port. It ends when this is dropped.
pub struct ToyService {
    /// The path for its requests.
    pub path: &'static str,
    /// The address of its listener.
    pub address: SocketAddr,
    executions: Executions,
    _listening: AbortOnDropHandle<()>,
}

/// The answer to a request. `count` is the number of the execution, from 1 on.
type Answer = fn(request: &Value, count: usize) -> (StatusCode, Value);

/// All executions of a service, oldest first.
type Executions = Arc<Mutex<Vec<Execution>>>;

#[derive(Clone)]
struct Shared {
    answer: Answer,
    /// The credential that callers have to send; `None`: none is needed.
    authorization: Option<&'static str>,
    executions: Executions,
}

impl ToyService {
    /// Starts a service.
    ///
    /// # Errors
    /// No port is free.
    pub async fn start(
        path: &'static str,
        authorization: Option<&'static str>,
        answer: Answer,
    ) -> Result<ToyService> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let executions = Executions::default();
        let shared = Shared { answer, authorization, executions: executions.clone() };
        let router = Router::new().route(path, post(execute)).with_state(shared);
        let listening = tokio::spawn(async move {
            // It returns only after a graceful shutdown, which nobody requests.
            let _ = axum::serve(listener, router).await;
        });
        let _listening = AbortOnDropHandle::new(listening);
        Ok(ToyService { path, address, executions, _listening })
    }

    /// Returns the executions, in the order of the customers' orders.
    pub fn executions(&self) -> Vec<Execution> {
        let mut executions = lock(&self.executions).clone();
        executions.sort_by(|a, b| a.order().cmp(b.order()));
        executions
    }
}

fn lock(executions: &Executions) -> std::sync::MutexGuard<'_, Vec<Execution>> {
    executions.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn execute(
    State(shared): State<Shared>,
    headers: HeaderMap,
    Json(request): Json<Value>,
) -> (StatusCode, Json<Value>) {
    let field = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let key = field("idempotency-key").unwrap_or("no key").to_owned();
    let mut executions = lock(&shared.executions);
    let is_allowed = field(AUTHORIZATION.as_str()) == shared.authorization;
    let (status, answer) = match is_allowed {
        true => (shared.answer)(&request, executions.len() + 1),
        false => (StatusCode::UNAUTHORIZED, json!({ "reason": "the credential is not right" })),
    };
    executions.push(Execution { key, request, status, answer: answer.clone() });
    (status, Json(answer))
}

/// Charges a payment.
pub fn charge(_: &Value, count: usize) -> (StatusCode, Value) {
    (StatusCode::CREATED, json!({ "id": format!("payment-{count}") }))
}

/// Books a shipment, or refuses it.
pub fn ship(request: &Value, count: usize) -> (StatusCode, Value) {
    if request["order"] == REFUSED_ORDER {
        return (StatusCode::UNPROCESSABLE_ENTITY, json!({ "reason": "no carrier goes there" }));
    }
    (StatusCode::CREATED, json!({ "id": format!("shipment-{count}") }))
}

/// Refunds a payment.
pub fn refund(_: &Value, count: usize) -> (StatusCode, Value) {
    (StatusCode::CREATED, json!({ "id": format!("refund-{count}") }))
}
