//! Why a request got no answer. No text has a path, a query or a secret.

use std::error::Error;
use std::io;
use std::time::Duration;

/// Longest text of an error of TLS, in characters. The receiver's certificate may have many names.
const TLS_TEXT_MAX: usize = 200;

/// The reason why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExchangeFailure {
    #[error("the event's id can't be a header field")]
    EventId,
    #[error("name not found: {0}")]
    NameNotFound(String),
    #[error("connection refused")]
    ConnectionRefused,
    #[error("no connection: {0}")]
    NoConnection(io::ErrorKind),
    #[error("TLS: {0}")]
    Tls(String),
    #[error("the connection broke")]
    Broken,
    #[error("the answer's head is too large")]
    HeadTooLarge,
    #[error("the answer is not HTTP/1.1")]
    Malformed,
    #[error("no answer within {}", seconds(*.0))]
    Late(Duration),
}

impl ExchangeFailure {
    /// Returns the failure of a name look-up.
    pub(super) fn of_lookup(error: &io::Error) -> ExchangeFailure {
        let text = error.to_string();
        let why = text.strip_prefix("failed to lookup address information: ");
        ExchangeFailure::NameNotFound(why.unwrap_or(&text).to_owned())
    }

    /// Returns the failure of a TCP connection.
    pub(super) fn of_connecting(kind: io::ErrorKind) -> ExchangeFailure {
        match kind {
            io::ErrorKind::ConnectionRefused => ExchangeFailure::ConnectionRefused,
            kind => ExchangeFailure::NoConnection(kind),
        }
    }

    /// Returns the failure of a TLS handshake.
    pub(super) fn of_tls(error: &dyn Error) -> ExchangeFailure {
        ExchangeFailure::Tls(error.to_string().chars().take(TLS_TEXT_MAX).collect())
    }

    /// Returns the failure of a request on an open connection.
    pub(super) fn of_exchange(error: &hyper::Error) -> ExchangeFailure {
        if error.is_parse_too_large() {
            ExchangeFailure::HeadTooLarge
        } else if error.is_parse() {
            ExchangeFailure::Malformed
        } else {
            // A server that misses a client certificate closes the connection only now.
            tls_cause(error).map_or(ExchangeFailure::Broken, ExchangeFailure::of_tls)
        }
    }
}

fn tls_cause(error: &hyper::Error) -> Option<&dyn Error> {
    let mut causes = std::iter::successors(error.source(), |&cause| cause.source());
    let io = causes.find_map(|cause| cause.downcast_ref::<io::Error>())?;
    Some(io.get_ref()?.downcast_ref::<rustls::Error>()?)
}

fn seconds(time: Duration) -> String {
    if time.subsec_nanos() == 0 {
        format!("{} s", time.as_secs())
    } else {
        format!("{} ms", time.as_millis())
    }
}
