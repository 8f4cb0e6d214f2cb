//! The client of the admin API, for the command line.

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

use super::view::{
    DeadLetterListView, DeadLetterView, DecisionRequest, DiscardedView, LogLevelView, LoggedView,
    OperationListView, OperationView, ProjectionView, ReasonRequest, ReportView, RequeueOneRequest,
    RequeueRequest, RequeuedView, ResealRequest, ResealedView, ResolveRequest, SagaDecisionRequest,
    SagaListView, SagaView, ScopeRequest, ScopeView, SinkListView, SinkTestView, SinkView,
    VerifiedView,
};

/// The longest wait for the admin port, and the largest response.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The longest wait for a call that works through something: the admin port ends every request
/// before.
const LONG_TIMEOUT: Duration = Duration::from_secs(60);
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// The reason why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The admin port sent no response.
    #[error("the admin port {address} can't be reached: {why}")]
    Unreachable {
        /// The address.
        address: String,
        /// The reason.
        why: String,
    },
    /// The admin port refused the request.
    #[error("{status}: {detail}")]
    Refused {
        /// The status.
        status: StatusCode,
        /// The detail of the problem document.
        detail: String,
    },
}

/// A decision that needs only a reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlainDecision {
    /// The operation was not executed, and its key is free.
    Release,
    /// The operation was not executed, and its next duplicate runs.
    Retry,
    /// The result is deleted before the end of its retention.
    Expire,
}

impl PlainDecision {
    fn segment(self) -> &'static str {
        match self {
            PlainDecision::Release => "/release",
            PlainDecision::Retry => "/retry",
            PlainDecision::Expire => "/expire",
        }
    }
}

/// The filters of a list of operations. An operation must match all filters that are set.
#[derive(Debug, Clone, Default)]
pub struct OperationFilter {
    /// The state.
    pub state: Option<String>,
    /// The route.
    pub route: Option<String>,
    /// The scope's mark.
    pub scope: Option<String>,
}

/// The filters of a list of dead letters. A dead letter must match all filters that are set.
#[derive(Debug, Clone, Default)]
pub struct DeadLettersOf {
    /// The name of the sink.
    pub sink: Option<String>,
    /// `receiver` or `gateway`.
    pub kind: Option<String>,
    /// The earliest time of the burial (RFC 3339).
    pub since: Option<String>,
}

/// The filters of a list of sagas. A saga must match all filters that are set.
#[derive(Debug, Clone, Default)]
pub struct SagasOf {
    /// `pending`, `running`, `compensating` or `stuck`.
    pub status: Option<String>,
    /// The name of the saga.
    pub name: Option<String>,
}

/// A decision about a saga.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SagaChange {
    /// Stuck steps are tried again.
    Retry,
    /// A stuck step was done by hand.
    Skip,
    /// The saga goes back.
    Cancel,
}

impl SagaChange {
    fn segment(self) -> &'static str {
        match self {
            SagaChange::Retry => "retry",
            SagaChange::Skip => "skip",
            SagaChange::Cancel => "cancel",
        }
    }
}

/// A client of one admin port.
pub struct Client {
    address: String,
    token: Option<String>,
    timeout: Duration,
}

impl Client {
    /// Creates a client for `host:port`, with a bearer token if the port requires one.
    pub fn new(address: impl Into<String>, token: Option<String>) -> Client {
        Client { address: address.into(), token, timeout: TIMEOUT }
    }

    /// Waits up to a minute for each answer, for calls that work through something.
    pub fn patient(self) -> Client {
        Client { timeout: LONG_TIMEOUT, ..self }
    }

    /// Returns a page of operations.
    pub async fn list(
        &self,
        filter: &OperationFilter,
        limit: usize,
        cursor: Option<&str>,
    ) -> Result<OperationListView, ClientError> {
        let limit = limit.to_string();
        let OperationFilter { state, route, scope } = filter;
        let parameters = [
            ("limit", Some(&*limit)),
            ("state", state.as_deref()),
            ("route", route.as_deref()),
            ("scope", scope.as_deref()),
            ("cursor", cursor),
        ];
        self.json(Method::GET, &with_query("/v1/operations", parameters), None::<&()>, None).await
    }

    /// Returns the mark under which a client's operations are listed.
    pub async fn scope(&self, request: &ScopeRequest) -> Result<ScopeView, ClientError> {
        self.json(Method::POST, "/v1/scope", Some(request), None).await
    }

    /// Returns the report on shadow routes since a time (RFC 3339).
    pub async fn report(&self, since: &str) -> Result<ReportView, ClientError> {
        self.json(
            Method::GET,
            &with_query("/v1/report", [("since", Some(since))]),
            None::<&()>,
            None,
        )
        .await
    }

    /// Returns the position of the read model.
    pub async fn projection(&self) -> Result<ProjectionView, ClientError> {
        self.json(Method::GET, "/v1/projection", None::<&()>, None).await
    }

    /// Empties the read model, and starts its rebuild from the event log.
    pub async fn rebuild_projection(&self) -> Result<ProjectionView, ClientError> {
        self.json(Method::POST, "/v1/projection/rebuild", None::<&()>, None).await
    }

    /// Verifies a part of the event log, starting at a cursor.
    pub async fn verify_log(&self, cursor: Option<&str>) -> Result<VerifiedView, ClientError> {
        self.json(
            Method::GET,
            &with_query("/v1/log/verify", [("cursor", cursor)]),
            None::<&()>,
            None,
        )
        .await
    }

    /// Returns events after a cursor, since a time (RFC 3339), or only new ones. The gateway waits
    /// up to `wait_s` seconds for an event.
    pub async fn tail(
        &self,
        after: Option<&str>,
        since: Option<&str>,
        wait_s: u64,
    ) -> Result<LoggedView, ClientError> {
        let wait = wait_s.to_string();
        let path =
            with_query("/v1/log", [("after", after), ("since", since), ("wait", Some(&*wait))]);
        self.json(Method::GET, &path, None::<&()>, None).await
    }

    /// Returns the filter of the process log.
    pub async fn log_level(&self) -> Result<LogLevelView, ClientError> {
        self.json(Method::GET, "/v1/log-level", None::<&()>, None).await
    }

    /// Changes the filter of the process log.
    pub async fn set_log_level(&self, filter: &LogLevelView) -> Result<LogLevelView, ClientError> {
        self.json(Method::PUT, "/v1/log-level", Some(filter), None).await
    }

    /// Returns one operation.
    pub async fn show(&self, operation: &str) -> Result<OperationView, ClientError> {
        self.json(Method::GET, &path(operation, ""), None::<&()>, None).await
    }

    /// Settles an operation with a result, if it still has this version.
    pub async fn resolve(
        &self,
        operation: &str,
        version: &str,
        request: &ResolveRequest,
    ) -> Result<OperationView, ClientError> {
        self.json(Method::POST, &path(operation, "/resolve"), Some(request), Some(version)).await
    }

    /// Applies a decision without a result, if the operation still has this version.
    pub async fn decide(
        &self,
        operation: &str,
        decision: PlainDecision,
        version: &str,
        request: &DecisionRequest,
    ) -> Result<OperationView, ClientError> {
        self.json(Method::POST, &path(operation, decision.segment()), Some(request), Some(version))
            .await
    }

    /// Returns the sinks.
    pub async fn sinks(&self) -> Result<SinkListView, ClientError> {
        self.json(Method::GET, "/v1/sinks", None::<&()>, None).await
    }

    /// Pauses a sink.
    pub async fn pause_sink(
        &self,
        name: &str,
        request: &ReasonRequest,
    ) -> Result<SinkView, ClientError> {
        let path = format!("/v1/sinks/{}/pause", segment(name));
        self.json(Method::POST, &path, Some(request), None).await
    }

    /// Resumes a sink.
    pub async fn resume_sink(&self, name: &str) -> Result<SinkView, ClientError> {
        let path = format!("/v1/sinks/{}/resume", segment(name));
        self.json(Method::POST, &path, None::<&()>, None).await
    }

    /// Sends a test event to a sink. A receiver that does not take it is no error.
    pub async fn test_sink(&self, name: &str) -> Result<SinkTestView, ClientError> {
        let path = format!("/v1/sinks/{}/test", segment(name));
        self.json(Method::POST, &path, None::<&()>, None).await
    }

    /// Returns a page of dead letters.
    pub async fn dead_letters(
        &self,
        filter: &DeadLettersOf,
        limit: usize,
        cursor: Option<&str>,
    ) -> Result<DeadLetterListView, ClientError> {
        let limit = limit.to_string();
        let parameters = [
            ("limit", Some(&*limit)),
            ("sink", filter.sink.as_deref()),
            ("kind", filter.kind.as_deref()),
            ("since", filter.since.as_deref()),
            ("cursor", cursor),
        ];
        let path = with_query("/v1/dead-letters", parameters);
        self.json(Method::GET, &path, None::<&()>, None).await
    }

    /// Returns a dead letter.
    pub async fn dead_letter(&self, id: &str) -> Result<DeadLetterView, ClientError> {
        let path = format!("/v1/dead-letters/{}", segment(id));
        self.json(Method::GET, &path, None::<&()>, None).await
    }

    /// Requeues a dead letter.
    pub async fn requeue(
        &self,
        id: &str,
        request: &RequeueOneRequest,
    ) -> Result<RequeuedView, ClientError> {
        let path = format!("/v1/dead-letters/{}/requeue", segment(id));
        self.json(Method::POST, &path, Some(request), None).await
    }

    /// Requeues a part of a sink's dead letters.
    pub async fn requeue_part(
        &self,
        request: &RequeueRequest,
    ) -> Result<RequeuedView, ClientError> {
        self.json(Method::POST, "/v1/dead-letters/requeue", Some(request), None).await
    }

    /// Discards a dead letter.
    pub async fn discard(
        &self,
        id: &str,
        request: &ReasonRequest,
    ) -> Result<DiscardedView, ClientError> {
        let path = format!("/v1/dead-letters/{}/discard", segment(id));
        self.json(Method::POST, &path, Some(request), None).await
    }

    /// Returns a page of the sagas that have not ended.
    pub async fn sagas(
        &self,
        filter: &SagasOf,
        limit: usize,
        cursor: Option<&str>,
    ) -> Result<SagaListView, ClientError> {
        let limit = limit.to_string();
        let parameters = [
            ("limit", Some(&*limit)),
            ("status", filter.status.as_deref()),
            ("name", filter.name.as_deref()),
            ("cursor", cursor),
        ];
        self.json(Method::GET, &with_query("/v1/sagas", parameters), None::<&()>, None).await
    }

    /// Returns a saga.
    pub async fn saga(&self, id: &str) -> Result<SagaView, ClientError> {
        let path = format!("/v1/sagas/{}", segment(id));
        self.json(Method::GET, &path, None::<&()>, None).await
    }

    /// Decides about a saga, if it still has this version.
    pub async fn decide_saga(
        &self,
        id: &str,
        change: SagaChange,
        version: &str,
        request: &SagaDecisionRequest,
    ) -> Result<SagaView, ClientError> {
        let path = format!("/v1/sagas/{}/{}", segment(id), change.segment());
        self.json(Method::POST, &path, Some(request), Some(version)).await
    }

    /// Seals a part of the outbox anew.
    pub async fn reseal_part(&self, request: &ResealRequest) -> Result<ResealedView, ClientError> {
        self.json(Method::POST, "/v1/outbox/reseal", Some(request), None).await
    }

    /// Calls a health path, and returns the text of a 200 response.
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
            Some(body) => {
                serde_json::to_vec(body).map_err(|error| self.unreachable(&error))?.into()
            }
            None => Bytes::new(),
        };
        let answer = self.call(method, path, body, version).await?;
        serde_json::from_slice(&answer).map_err(|error| self.unreachable(&error))
    }

    fn unreachable(&self, why: &dyn std::fmt::Display) -> ClientError {
        ClientError::Unreachable { address: self.address.clone(), why: why.to_string() }
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        version: Option<&str>,
    ) -> Result<Bytes, ClientError> {
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
            let stream = TcpStream::connect(&self.address)
                .await
                .map_err(|error| self.unreachable(&error))?;
            let (mut sender, driver) = http1::handshake(TokioIo::new(stream))
                .await
                .map_err(|error| self.unreachable(&error))?;
            tokio::spawn(driver);
            let response =
                sender.send_request(request).await.map_err(|error| self.unreachable(&error))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            Ok((status, body.map_err(|error| self.unreachable(&error))?.to_bytes()))
        };
        let (status, body) = tokio::time::timeout(self.timeout, exchange)
            .await
            .unwrap_or_else(|_| Err(self.unreachable(&"no answer in time")))?;
        if status.is_success() {
            return Ok(body);
        }
        let problem: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let detail = problem["detail"].as_str().map(str::to_owned);
        let detail = detail.unwrap_or_else(|| String::from_utf8_lossy(&body).trim().to_owned());
        Err(ClientError::Refused { status, detail })
    }
}

/// Returns the path with the parameters that have a value.
fn with_query<const N: usize>(path: &str, parameters: [(&str, Option<&str>); N]) -> String {
    let stated = parameters.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let written = stated.map(|(name, value)| {
        format!(
            "{name}={}",
            percent_encoding::utf8_percent_encode(value, percent_encoding::NON_ALPHANUMERIC)
        )
    });
    format!("{path}?{}", written.collect::<Vec<_>>().join("&"))
}

fn path(operation: &str, verb: &str) -> String {
    format!("/v1/operations/{}{verb}", segment(operation))
}

/// Returns a text as one segment of a path.
fn segment(text: &str) -> String {
    let text = percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC);
    text.to_string().replace("%5F", "_")
}
