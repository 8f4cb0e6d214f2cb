//! A client that retries, as those of real shops do: it waits for a while, and then sends the same request again.
//!
//! This is where double charges come from: a client can't tell a request that never arrived from an answer that was lost.

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
use tokio::net::TcpStream;

use super::api::{Order, PAYMENTS};

/// How long a client waits for an answer.
const TIMEOUT: Duration = Duration::from_millis(600);
/// How often it sends a request before it gives up.
const TRIES_MAX: usize = 4;
/// The pause before the first retry; it doubles with each.
const PAUSE: Duration = Duration::from_millis(200);
/// Longest pause that it lets a server ask for.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Largest answer.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// What one try came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Try {
    /// An answer.
    Answered(Answer),
    /// No answer in time.
    TimedOut,
    /// A connection that broke, or that never was.
    Dropped,
}

/// What a client takes from an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Whether it is the stored answer of an earlier try.
    pub is_replayed: bool,
    /// Whether the server says that the same request may be sent again.
    pub should_retry: Option<bool>,
    /// When.
    pub retry_after: Option<Duration>,
    /// The kind of problem it is, such as `outcome-uncertain`.
    pub problem: Option<String>,
    /// The operation that the problem is about.
    pub operation: Option<String>,
}

/// What a client does after a try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It has its answer.
    Stop,
    /// It sends the same request again.
    RetryAfter(Duration),
    /// It has tried often enough, and never learns what became of its payment.
    GiveUp,
}

/// All that a client saw of its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its tries; at least one.
    pub tries: Vec<Try>,
    /// Whether it gave up without an answer to rely on.
    pub gave_up: bool,
}

/// Pays for an order, with one idempotency key for all tries.
pub async fn pay(server: SocketAddr, order: &Order) -> Seen {
    let mut tries = Vec::new();
    loop {
        let tried = try_once(server, order).await;
        let next = decide(&tried, tries.len() + 1);
        tries.push(tried);
        match next {
            Next::Stop => return Seen { tries, gave_up: false },
            Next::GiveUp => return Seen { tries, gave_up: true },
            Next::RetryAfter(pause) => tokio::time::sleep(pause).await,
        }
    }
}

/// What to do after the `count`th try.
///
/// A server that says whether to retry is believed. Without its word, an answer is final unless it is one of the
/// statuses that mean "not now" and says when to come back.
pub fn decide(tried: &Try, count: usize) -> Next {
    let backoff =
        PAUSE * 2u32.saturating_pow(u32::try_from(count).unwrap_or(u32::MAX).saturating_sub(1));
    let pause = match tried {
        Try::TimedOut | Try::Dropped => backoff,
        Try::Answered(answer) => {
            let not_now =
                matches!(answer.status.as_u16(), 409 | 502 | 503) && answer.retry_after.is_some();
            if answer.status.is_success() || !answer.should_retry.unwrap_or(not_now) {
                return Next::Stop;
            }
            answer.retry_after.unwrap_or(backoff)
        }
    };
    if count < TRIES_MAX { Next::RetryAfter(pause.min(PAUSE_MAX)) } else { Next::GiveUp }
}

async fn try_once(server: SocketAddr, order: &Order) -> Try {
    match tokio::time::timeout(TIMEOUT, exchange(server, order)).await {
        Ok(Some(answer)) => Try::Answered(answer),
        Ok(None) => Try::Dropped,
        Err(_) => Try::TimedOut,
    }
}

/// One request on a connection of its own, which is closed where this is dropped. `None` where the connection breaks.
async fn exchange(server: SocketAddr, order: &Order) -> Option<Answer> {
    let request = Request::post(PAYMENTS)
        .header(HOST, server.to_string())
        .header(CONTENT_TYPE, "application/json")
        .header("idempotency-key", &order.order)
        .body(Full::<Bytes>::from(serde_json::to_vec(order).ok()?))
        .ok()?;
    let stream = TcpStream::connect(server).await.ok()?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
    let asking = async move { read(sender.send_request(request).await.ok()?).await };
    tokio::join!(asking, connection).0
}

async fn read(response: Response<Incoming>) -> Option<Answer> {
    let (head, body) = response.into_parts();
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.ok()?.to_bytes();
    Some(Answer::new(head.status, &head.headers, &body))
}

impl Answer {
    fn new(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Answer {
        let field = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let document: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        let kind = document["type"].as_str().and_then(|kind| kind.rsplit([':', '/']).next());
        Answer {
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

impl Seen {
    /// The operation that the client was told is held: nobody knows whether it was executed.
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

impl fmt::Display for Seen {
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
        Try::Answered(Answer {
            status,
            should_retry,
            retry_after: retry_after.map(Duration::from_secs),
            ..Answer::default()
        })
    }

    #[test]
    fn a_client_retries_what_it_may_and_nothing_else() {
        let second = Duration::from_secs(1);
        let table = [
            ("an answer", answered(201, None, None), 1, Next::Stop),
            ("a success is never repeated", answered(201, Some(true), Some(1)), 1, Next::Stop),
            ("a final refusal", answered(422, None, None), 1, Next::Stop),
            (
                "a conflict that says when",
                answered(409, None, Some(1)),
                1,
                Next::RetryAfter(second),
            ),
            ("a bare conflict", answered(409, None, None), 1, Next::Stop),
            ("a bare bad gateway", answered(502, None, None), 1, Next::Stop),
            ("the server's yes", answered(500, Some(true), None), 1, Next::RetryAfter(PAUSE)),
            (
                "the server's no beats its Retry-After",
                answered(503, Some(false), Some(1)),
                1,
                Next::Stop,
            ),
            (
                "a pause without end",
                answered(503, None, Some(86_400)),
                1,
                Next::RetryAfter(PAUSE_MAX),
            ),
            ("no answer", Try::TimedOut, 1, Next::RetryAfter(PAUSE)),
            ("the pause doubles", Try::Dropped, 3, Next::RetryAfter(PAUSE * 4)),
            ("often enough", Try::TimedOut, TRIES_MAX, Next::GiveUp),
            (
                "often enough, and told to come back",
                answered(503, Some(true), Some(1)),
                TRIES_MAX,
                Next::GiveUp,
            ),
            ("the last try may succeed", answered(201, None, None), TRIES_MAX, Next::Stop),
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
        let answer = Answer::new(StatusCode::BAD_GATEWAY, &headers, body);
        assert_eq!(answer.should_retry, Some(false));
        let seen = Seen { tries: vec![Try::TimedOut, Try::Answered(answer)], gave_up: false };
        assert_eq!(seen.held(), Some("op_1"));
        assert_eq!(seen.to_string(), "timeout, then 502 outcome-uncertain: held");
    }

    #[test]
    fn a_client_that_gives_up_knows_nothing() {
        let seen = Seen { tries: vec![Try::Dropped, Try::TimedOut], gave_up: true };
        assert_eq!(seen.held(), None);
        assert_eq!(seen.to_string(), "connection lost, then timeout: unknown");
    }
}
