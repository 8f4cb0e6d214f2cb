//! The admin API's client, for the command line.

use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, IF_MATCH};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

use super::{Listed, LogLevelView, OperationView, ReleaseRequest, ResolveRequest, VerifiedView};

/// Longest wait for the admin port, and largest answer.
const TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No answer.
    #[error("the admin port {address} can't be reached: {why}")]
    Unreachable {
        /// Where.
        address: String,
        /// Why.
        why: String,
    },
    /// A refusal.
    #[error("{status}: {detail}")]
    Refused {
        /// The status.
        status: StatusCode,
        /// What it said.
        detail: String,
    },
}

/// Talks to one admin port.
pub struct Client {
    address: String,
    token: Option<String>,
}

impl Client {
    /// A client for `host:port`, with a bearer token where one is needed.
    pub fn new(address: impl Into<String>, token: Option<String>) -> Client {
        Client { address: address.into(), token }
    }

    /// A page of operations.
    pub async fn list(&self, state: Option<&str>, limit: usize, cursor: Option<&str>) -> Result<Listed, ClientError> {
        let mut path = format!("/v1/operations?limit={limit}");
        for (name, value) in [("state", state), ("cursor", cursor)] {
            if let Some(value) = value {
                let value = percent_encoding::utf8_percent_encode(value, percent_encoding::NON_ALPHANUMERIC);
                path.push_str(&format!("&{name}={value}"));
            }
        }
        self.json(Method::GET, &path, None::<&()>, None).await
    }

    /// Verifies a piece of the event log, from a cursor on.
    pub async fn verify_log(&self, cursor: Option<&str>) -> Result<VerifiedView, ClientError> {
        let mut path = "/v1/log/verify".to_owned();
        if let Some(cursor) = cursor {
            let cursor = percent_encoding::utf8_percent_encode(cursor, percent_encoding::NON_ALPHANUMERIC);
            path.push_str(&format!("?cursor={cursor}"));
        }
        self.json(Method::GET, &path, None::<&()>, None).await
    }

    /// What the process logs.
    pub async fn log_level(&self) -> Result<LogLevelView, ClientError> {
        self.json(Method::GET, "/v1/log-level", None::<&()>, None).await
    }

    /// Changes what the process logs.
    pub async fn set_log_level(&self, wanted: &LogLevelView) -> Result<LogLevelView, ClientError> {
        self.json(Method::PUT, "/v1/log-level", Some(wanted), None).await
    }

    /// One operation.
    pub async fn show(&self, operation: &str) -> Result<OperationView, ClientError> {
        self.json(Method::GET, &path(operation, ""), None::<&()>, None).await
    }

    /// Settles an operation with a result, if it is still as it was seen.
    pub async fn resolve(&self, seen: &OperationView, request: &ResolveRequest) -> Result<OperationView, ClientError> {
        self.json(Method::POST, &path(&seen.operation, "/resolve"), Some(request), Some(&seen.version)).await
    }

    /// Lets the next duplicate run, if the operation is still as it was seen.
    pub async fn retry(&self, seen: &OperationView, request: &ReleaseRequest) -> Result<OperationView, ClientError> {
        self.json(Method::POST, &path(&seen.operation, "/retry"), Some(request), Some(&seen.version)).await
    }

    /// Releases an operation.
    pub async fn release(&self, seen: &OperationView, request: &ReleaseRequest) -> Result<OperationView, ClientError> {
        self.json(Method::POST, &path(&seen.operation, "/release"), Some(request), Some(&seen.version)).await
    }

    /// Expires a result, if the operation is still as it was seen.
    pub async fn expire(&self, seen: &OperationView, request: &ReleaseRequest) -> Result<OperationView, ClientError> {
        self.json(Method::POST, &path(&seen.operation, "/expire"), Some(request), Some(&seen.version)).await
    }

    /// Whether a path answers 200, with what it said.
    pub async fn probe(&self, path: &str) -> Result<String, ClientError> {
        let body = self.call(Method::GET, path, Bytes::new(), None).await?;
        Ok(String::from_utf8_lossy(&body).trim().to_owned())
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
        version: Option<&str>,
    ) -> Result<T, ClientError> {
        let body = match body {
            Some(body) => serde_json::to_vec(body).map_err(|error| self.unreachable(&error))?.into(),
            None => Bytes::new(),
        };
        let answer = self.call(method, path, body, version).await?;
        serde_json::from_slice(&answer).map_err(|error| self.unreachable(&error))
    }

    fn unreachable(&self, why: &dyn std::fmt::Display) -> ClientError {
        ClientError::Unreachable { address: self.address.clone(), why: why.to_string() }
    }

    async fn call(&self, method: Method, path: &str, body: Bytes, version: Option<&str>) -> Result<Bytes, ClientError> {
        let mut request = Request::builder().method(method).uri(path).header(HOST, &self.address);
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(version) = version {
            request = request.header(IF_MATCH, format!("\"{version}\""));
        }
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(body)).map_err(|error| self.unreachable(&error))?;
        let exchange = async {
            let stream = TcpStream::connect(&self.address).await.map_err(|error| self.unreachable(&error))?;
            let (mut sender, driver) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.unreachable(&error))?;
            tokio::spawn(driver);
            let response = sender.send_request(request).await.map_err(|error| self.unreachable(&error))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            Ok((status, body.map_err(|error| self.unreachable(&error))?.to_bytes()))
        };
        let (status, body) =
            tokio::time::timeout(TIMEOUT, exchange).await.unwrap_or_else(|_| Err(self.unreachable(&"no answer in time")))?;
        if status.is_success() {
            return Ok(body);
        }
        let problem: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let detail = problem["detail"].as_str().map(str::to_owned);
        let detail = detail.unwrap_or_else(|| String::from_utf8_lossy(&body).trim().to_owned());
        Err(ClientError::Refused { status, detail })
    }
}

fn path(operation: &str, verb: &str) -> String {
    let operation = percent_encoding::utf8_percent_encode(operation, percent_encoding::NON_ALPHANUMERIC);
    format!("/v1/operations/{}{verb}", operation.to_string().replace("%5F", "_"))
}
