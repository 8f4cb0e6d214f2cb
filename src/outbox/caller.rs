//! The way from a sink to the gate.

use async_trait::async_trait;
use http::HeaderMap;
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use crate::gate::CallOutcome;
use crate::hex;
use crate::key::Slot;
use crate::record::StatusClass;

/// Bytes of the key of a call: see [`call_key`].
pub const CALL_KEY_BYTES: usize = 36;

/// The request of a round. It is fixed when the round begins, so that every attempt of the round
/// has the same fingerprint. It has no credentials, so that these can be replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallRequest {
    /// The name of the route.
    pub route: String,
    /// The method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// The body (JSON); `None` for a request without one.
    pub body: Option<String>,
}

/// A call of a sink.
#[derive(Debug, Clone)]
pub struct SinkCall {
    /// The name of the sink: scope and caller of the operation.
    pub sink: String,
    /// The idempotency key. See [`call_key`].
    pub key: String,
    /// Number of events that led to the call.
    pub hops: u8,
    /// Whether the operation began earlier: then the call never begins it.
    pub continues: bool,
    /// The request.
    pub request: CallRequest,
    /// Fields that are added when the request is sent, such as credentials.
    pub headers: HeaderMap,
}

/// What is known of a call before it is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreparedCall {
    /// The operation.
    pub operation: Slot,
    /// The statuses of a completed operation about which the route publishes an event.
    pub announced: Vec<StatusClass>,
}

/// Why a call can't be made, whatever the upstream does.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallRouteError {
    /// The configuration has no such route.
    #[error("the route {0} is not configured")]
    Unknown(String),
    /// The route does not enforce, or has no header field for the key.
    #[error("the route {0} does not protect calls: it needs mode enforce and a header for the key")]
    Unprotected(String),
    /// Another route covers the request, or none does.
    #[error("the route {0} does not cover the rendered path")]
    OtherPath(String),
    /// The request can't be built.
    #[error("the rendered request is not valid")]
    Malformed,
}

/// Runs the operations of sinks, on the routes of one configuration.
#[async_trait]
pub trait OperationCaller: Send + Sync + 'static {
    /// Checks that a call can be made.
    ///
    /// # Errors
    /// See [`CallRouteError`].
    fn prepare(&self, call: &SinkCall) -> Result<PreparedCall, CallRouteError>;

    /// Makes a call, through the gate.
    ///
    /// # Errors
    /// See [`CallRouteError`]. Nothing was sent.
    async fn call(&self, call: SinkCall) -> Result<CallOutcome, CallRouteError>;
}

/// Returns the idempotency key of a round: equal for every attempt of the round, and different for
/// every other event, sink and round. It is a UUID of version 4 in form, because some APIs accept
/// no other keys.
pub fn call_key(event_id: &str, sink: &str, round: u32) -> String {
    let mut digest = Context::new(&SHA256);
    for part in [event_id.as_bytes(), sink.as_bytes(), &round.to_be_bytes()] {
        digest.update(&(part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    let mut hash = [0; 32];
    hash.iter_mut().zip(digest.finish().as_ref()).for_each(|(byte, of)| *byte = *of);
    hex::uuid(&hash)
}
