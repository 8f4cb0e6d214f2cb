//! The sink that sends webhooks (Standard Webhooks 1.0).
//!
//! - `signature`: the secrets, and the signature of a request
//! - `connections`: the receiver's address, and the connections to it
//! - `failure`: why a request got no answer

use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use tokio::time::{Instant, timeout};

use self::connections::WebhookConnections;
use self::failure::ExchangeFailure;
use self::signature::WebhookKeys;
use crate::event::EVENT_MEDIA_TYPE;
use crate::outbox::delivery::{ANSWER_KEPT_MAX, ANSWER_READ_MAX, AttemptResult, Delivery};
use crate::outbox::settings::WebhookTarget;
use crate::tls::TrustError;

mod connections;
mod failure;
mod signature;

pub use signature::{WebhookSecretError, webhook_secret};

#[cfg(test)]
mod tests;

const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// The `User-Agent` of every request.
const AGENT: &str = concat!("onceward/", env!("CARGO_PKG_VERSION"));

/// Shortest time for reading an answer's body, even if the status used up the attempt's time. A new
/// connection costs more than this.
const ANSWER_TIME_MIN: Duration = Duration::from_millis(100);

/// Longest time for reading an answer's body. The status has decided by then, and the next event
/// waits.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(1);

/// The reason why a receiver of webhooks can't be set up. No text has the path or the query of the
/// address, or a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WebhookError {
    /// The address is neither `http` nor `https`.
    #[error("the address is not an http or https url")]
    Scheme,
    /// The address has a user name. It would be neither sent nor hidden everywhere.
    #[error("the address has a user name: credentials belong in headers")]
    Credentials,
    /// The address has no host, a port that does not exist, or a host without a possible
    /// certificate.
    #[error("the address has no usable host and port")]
    Host,
    /// There is no secret, so that no request could be signed.
    #[error("a webhook needs a secret")]
    NoSecret,
    /// There is a `ca_file`, but the address is not `https`.
    #[error("ca_file has no effect: the address is not https")]
    CaFileUnused,
    /// The `ca_file` can't be read.
    #[error("can't read {}: {why}", .file.display())]
    CaFile {
        /// The file.
        file: PathBuf,
        /// The error.
        why: String,
    },
    /// There is no authority to trust.
    #[error(transparent)]
    Trust(#[from] TrustError),
}

/// A receiver of webhooks, with the connections to it.
///
/// It has no limit for attempts at the same time. Each uses a connection of its own, and leaves it
/// open for the next.
pub struct Webhook {
    connections: WebhookConnections,
    keys: WebhookKeys,
    /// The path and query.
    path: Uri,
    /// The fields that are the same in every request.
    fields: HeaderMap,
}

impl Webhook {
    /// Sets up a receiver, and reads its `ca_file`. Opens no connection yet.
    ///
    /// Configured fields replace `Content-Type` and `User-Agent`. They can't replace `Host` and the
    /// fields of the signature.
    ///
    /// # Errors
    /// See [`WebhookError`].
    pub fn new(target: &WebhookTarget) -> Result<Webhook, WebhookError> {
        let connections = WebhookConnections::new(&target.url, target.ca_file.as_deref())?;
        let keys = WebhookKeys::new(&target.secrets).ok_or(WebhookError::NoSecret)?;
        let mut fields = HeaderMap::new();
        fields.insert(CONTENT_TYPE, HeaderValue::from_static(EVENT_MEDIA_TYPE));
        fields.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        let mut configured = target.headers.clone();
        // They often are credentials.
        configured.values_mut().for_each(|value| value.set_sensitive(true));
        fields.extend(configured);
        fields.insert(HOST, connections.host_field().clone());
        Ok(Webhook { connections, keys, path: origin_form(&target.url)?, fields })
    }

    /// Sends an event once. `now_unix_s` is the time of this attempt, in seconds since 1970.
    ///
    /// `within` bounds the attempt up to the status of the answer; reading the answer can take a
    /// tenth of a second more. Redirects are not followed, because trust is configured per address.
    /// If the future is dropped, its connection is closed.
    pub async fn attempt(
        &self,
        delivery: &Delivery,
        now_unix_s: u64,
        within: Duration,
    ) -> AttemptResult {
        let began = Instant::now();
        let exchange = async {
            let request = self.request(delivery, now_unix_s)?;
            self.connections.send(request, within).await
        };
        let exchanged = timeout(within, exchange).await;
        let (response, connection) = match exchanged.unwrap_or(Err(ExchangeFailure::Late(within))) {
            Ok(answered) => answered,
            Err(failure) => return AttemptResult::Failed { error: failure.to_string() },
        };
        let (head, body) = response.into_parts();
        let mut answer = Vec::new();
        let reading = async {
            if read_answer(body, &mut answer).await {
                self.connections.keep(connection).await;
            }
        };
        let left = within.saturating_sub(began.elapsed());
        // If this ends early, the connection is closed. The result is the same.
        timeout(left.clamp(ANSWER_TIME_MIN, ANSWER_TIME_MAX), reading).await.ok();
        if head.status.is_success() {
            return AttemptResult::Delivered { status: Some(head.status.as_u16()) };
        }
        AttemptResult::Refused {
            status: head.status.as_u16(),
            answer: answer.into(),
            retry_after: retry_after(head.status, &head.headers, now_unix_s),
        }
    }

    fn request(
        &self,
        delivery: &Delivery,
        now_unix_s: u64,
    ) -> Result<Request<Full<Bytes>>, ExchangeFailure> {
        let Delivery { event_id, event, .. } = delivery;
        let field = |text: &str| HeaderValue::from_str(text).map_err(|_| ExchangeFailure::EventId);
        let signature = self.keys.signature(event_id, now_unix_s, event);
        let mut request = Request::new(Full::new(event.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.path.clone();
        let fields = request.headers_mut();
        *fields = self.fields.clone();
        fields.insert(WEBHOOK_ID, field(event_id)?);
        fields.insert(WEBHOOK_TIMESTAMP, HeaderValue::from(now_unix_s));
        fields.insert(WEBHOOK_SIGNATURE, field(&signature)?);
        Ok(request)
    }
}

/// Returns the path and query as a request has them: they begin with a slash.
fn origin_form(url: &Uri) -> Result<Uri, WebhookError> {
    let path = url.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string);
    Uri::try_from(path).map_err(|_| WebhookError::Host)
}

/// Reads an answer, and keeps its first bytes. Returns whether it ended within the limit, so that
/// its connection can be used again.
async fn read_answer(mut body: Incoming, kept: &mut Vec<u8>) -> bool {
    let mut read = 0;
    while read <= ANSWER_READ_MAX {
        let Some(frame) = body.frame().await else { return true };
        let Ok(frame) = frame else { return false };
        let Some(data) = frame.data_ref() else { continue };
        read += data.len();
        let room = ANSWER_KEPT_MAX.saturating_sub(kept.len());
        kept.extend(data.iter().take(room));
    }
    false
}

/// Returns how long the receiver wants to get nothing. Other statuses give the field another
/// meaning, or none.
fn retry_after(status: StatusCode, fields: &HeaderMap, now_unix_s: u64) -> Option<Duration> {
    if !matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        return None;
    }
    let text = fields.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok().map(Duration::from_secs);
    }
    let at = httpdate::parse_http_date(text).ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(at.saturating_sub(Duration::from_secs(now_unix_s)))
}
