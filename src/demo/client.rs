//! A client that retries like a real shop: it waits, and sends the same request again.
//!
//! Retries cause double charges, because a client can't distinguish a request that never arrived
//! from a response that was lost.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, RETRY_AFTER};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// How long a client waits for a response.
const TIMEOUT: Duration = Duration::from_millis(600);
/// The maximum of tries of one payment.
const TRIES_MAX: usize = 4;
/// The pause before the first retry; it doubles with each retry.
const PAUSE: Duration = Duration::from_millis(200);
/// The longest pause that a server may request.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Largest response, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// The result of one try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Try {
    /// A response.
    Answered(ApiResponse),
    /// There was no response in time.
    TimedOut,
    /// The connection broke or could not be opened.
    Dropped,
}

/// The facts of a response that the client uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ApiResponse {
    /// The status.
    pub status: StatusCode,
    /// Whether the response is the stored one to an earlier try.
    pub is_replayed: bool,
    /// Whether the client should send the same request again, if the server states this.
    pub should_retry: Option<bool>,
    /// The pause before a retry.
    pub retry_after: Option<Duration>,
    /// The kind of the problem, such as `outcome-uncertain`.
    pub problem: Option<String>,
    /// The problem's operation.
    pub operation: Option<String>,
}

/// The decision after a try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryDecision {
    /// The client has its response.
    Stop,
    /// The client sends the same request again.
    RetryAfter(Duration),
    /// The client has no tries left, and never learns the outcome of its payment.
    GiveUp,
}

/// All tries of a client for one order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PaymentTries {
    /// The tries. There is at least one.
    pub tries: Vec<Try>,
    /// Whether the client gave up without a reliable response.
    pub gave_up: bool,
}

/// Sends a document to a path, with one idempotency key for all tries.
pub async fn send(server: SocketAddr, path: &str, key: &str, document: &Value) -> PaymentTries {
    let mut tries = Vec::new();
    loop {
        let tried = try_once(server, path, key, document).await;
        let next = decide(&tried, tries.len() + 1);
        tries.push(tried);
        match next {
            RetryDecision::Stop => return PaymentTries { tries, gave_up: false },
            RetryDecision::GiveUp => return PaymentTries { tries, gave_up: true },
            RetryDecision::RetryAfter(pause) => tokio::time::sleep(pause).await,
        }
    }
}

/// Decides what to do after the `count`th try.
///
/// If the server states whether to retry, the client does that. Otherwise a response is final,
/// unless it has a Retry-After and a status that means "not now".
pub fn decide(tried: &Try, count: usize) -> RetryDecision {
    let backoff =
        PAUSE * 2u32.saturating_pow(u32::try_from(count).unwrap_or(u32::MAX).saturating_sub(1));
    let pause = match tried {
        Try::TimedOut | Try::Dropped => backoff,
        Try::Answered(answer) => {
            let not_now =
                matches!(answer.status.as_u16(), 409 | 502 | 503) && answer.retry_after.is_some();
            if answer.status.is_success() || !answer.should_retry.unwrap_or(not_now) {
                return RetryDecision::Stop;
            }
            answer.retry_after.unwrap_or(backoff)
        }
    };
    if count < TRIES_MAX {
        RetryDecision::RetryAfter(pause.min(PAUSE_MAX))
    } else {
        RetryDecision::GiveUp
    }
}

async fn try_once(server: SocketAddr, path: &str, key: &str, document: &Value) -> Try {
    match tokio::time::timeout(TIMEOUT, exchange(server, path, key, document)).await {
        Ok(Some(answer)) => Try::Answered(answer),
        Ok(None) => Try::Dropped,
        Err(_) => Try::TimedOut,
    }
}

/// Sends one request on a new connection. Dropping the future closes the connection. Returns `None`
/// if the connection breaks.
async fn exchange(
    server: SocketAddr,
    path: &str,
    key: &str,
    document: &Value,
) -> Option<ApiResponse> {
    let request = Request::post(path)
        .header(HOST, server.to_string())
        .header(CONTENT_TYPE, "application/json")
        .header("idempotency-key", key)
        .body(Full::<Bytes>::from(document.to_string()))
        .ok()?;
    let stream = TcpStream::connect(server).await.ok()?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
    let asking = async move { read(sender.send_request(request).await.ok()?).await };
    tokio::join!(asking, connection).0
}

async fn read(response: Response<Incoming>) -> Option<ApiResponse> {
    let (head, body) = response.into_parts();
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.ok()?.to_bytes();
    Some(ApiResponse::new(head.status, &head.headers, &body))
}

impl ApiResponse {
    fn new(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> ApiResponse {
        let field = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let document: Value = serde_json::from_slice(body).unwrap_or_default();
        let kind = document["type"].as_str().and_then(|kind| kind.rsplit([':', '/']).next());
        ApiResponse {
            status,
            is_replayed: field("idempotent-replayed") == Some("true"),
            should_retry: field("x-should-retry").and_then(|word| word.parse().ok()),
            retry_after: field(RETRY_AFTER.as_str())
                .and_then(|text| text.parse().ok())
                .map(Duration::from_secs),
            problem: kind.map(str::to_owned),
            operation: document["operation"].as_str().map(str::to_owned),
        }
    }
}

impl PaymentTries {
    /// Returns the operation, if the response reports that its outcome is unknown and it is held.
    pub fn held(&self) -> Option<&str> {
        match self.tries.last() {
            Some(Try::Answered(answer))
                if answer.problem.as_deref() == Some("outcome-uncertain") =>
            {
                answer.operation.as_deref()
            }
            _ => None,
        }
    }
}

impl fmt::Display for PaymentTries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, tried) in self.tries.iter().enumerate() {
            write!(f, "{}{tried}", if at == 0 { "" } else { ", then " })?;
        }
        match self.held() {
            Some(_) => f.write_str(": held"),
            None if self.gave_up => f.write_str(": unknown"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Try {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Try::TimedOut => f.write_str("timeout"),
            Try::Dropped => f.write_str("connection lost"),
            Try::Answered(answer) => {
                f.write_str(answer.status.as_str())?;
                if answer.is_replayed {
                    f.write_str(" replayed")?;
                }
                answer.problem.as_ref().map_or(Ok(()), |problem| write!(f, " {problem}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status: u16, should_retry: Option<bool>, retry_after: Option<u64>) -> Try {
        let status = StatusCode::from_u16(status).expect("a status");
        Try::Answered(ApiResponse {
            status,
            should_retry,
            retry_after: retry_after.map(Duration::from_secs),
            ..ApiResponse::default()
        })
    }

    #[test]
    fn a_client_retries_what_it_may_and_nothing_else() {
        let second = Duration::from_secs(1);
        let table = [
            ("an answer", answered(201, None, None), 1, RetryDecision::Stop),
            (
                "a success is never repeated",
                answered(201, Some(true), Some(1)),
                1,
                RetryDecision::Stop,
            ),
            ("a final refusal", answered(422, None, None), 1, RetryDecision::Stop),
            (
                "a conflict with a Retry-After",
                answered(409, None, Some(1)),
                1,
                RetryDecision::RetryAfter(second),
            ),
            ("a bare conflict", answered(409, None, None), 1, RetryDecision::Stop),
            ("a bare bad gateway", answered(502, None, None), 1, RetryDecision::Stop),
            (
                "the server's yes",
                answered(500, Some(true), None),
                1,
                RetryDecision::RetryAfter(PAUSE),
            ),
            (
                "the server's no beats its Retry-After",
                answered(503, Some(false), Some(1)),
                1,
                RetryDecision::Stop,
            ),
            (
                "a pause without end",
                answered(503, None, Some(86_400)),
                1,
                RetryDecision::RetryAfter(PAUSE_MAX),
            ),
            ("no answer", Try::TimedOut, 1, RetryDecision::RetryAfter(PAUSE)),
            ("the pause doubles", Try::Dropped, 3, RetryDecision::RetryAfter(PAUSE * 4)),
            ("often enough", Try::TimedOut, TRIES_MAX, RetryDecision::GiveUp),
            (
                "often enough, although the server allows a retry",
                answered(503, Some(true), Some(1)),
                TRIES_MAX,
                RetryDecision::GiveUp,
            ),
            ("the last try may succeed", answered(201, None, None), TRIES_MAX, RetryDecision::Stop),
        ];
        for (story, tried, count, next) in table {
            assert_eq!(decide(&tried, count), next, "{story}");
        }
    }

    #[test]
    fn a_problem_document_is_read() {
        let mut headers = HeaderMap::new();
        headers.insert("x-should-retry", http::HeaderValue::from_static("false"));
        let body = br#"{"type":"urn:onceward:problem:outcome-uncertain","operation":"op_1"}"#;
        let answer = ApiResponse::new(StatusCode::BAD_GATEWAY, &headers, body);
        assert_eq!(answer.should_retry, Some(false));
        let history =
            PaymentTries { tries: vec![Try::TimedOut, Try::Answered(answer)], gave_up: false };
        assert_eq!(history.held(), Some("op_1"));
        assert_eq!(history.to_string(), "timeout, then 502 outcome-uncertain: held");
    }

    #[test]
    fn a_client_that_gives_up_does_not_know_the_outcome() {
        let history = PaymentTries { tries: vec![Try::Dropped, Try::TimedOut], gave_up: true };
        assert_eq!(history.held(), None);
        assert_eq!(history.to_string(), "connection lost, then timeout: unknown");
    }
}
