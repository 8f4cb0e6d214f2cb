//! Why an event was not published. No text has a credential.

use std::error::Error;
use std::time::Duration;

use async_nats::{ConnectError, ConnectErrorKind, RequestError, RequestErrorKind};

/// Longest text of another program, in characters.
const TEXT_MAX: usize = 200;

/// The reason why an event was not published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NatsFailure {
    #[error("the event's id can't be a header field")]
    EventId,
    #[error("no connection within {}{}", humantime::format_duration(*.within), because(.trouble))]
    NoConnection { within: Duration, trouble: Option<String> },
    #[error("can't connect: {0}")]
    CannotConnect(String),
    #[error("the connection broke")]
    Broken,
    #[error("no stream takes the subject {0}")]
    NoStream(String),
    #[error("the event has more bytes than the max_payload of the server")]
    TooLarge,
    #[error(
        "no acknowledgement within {}{}", humantime::format_duration(*.within), because(.trouble)
    )]
    NoAnswer { within: Duration, trouble: Option<String> },
    #[error("the stream refused the event: {0}")]
    Refused(String),
    #[error("the answer is not that of a stream")]
    Unreadable,
}

impl NatsFailure {
    /// Returns the failure of opening a connection.
    pub(super) fn of_connecting(error: &ConnectError) -> NatsFailure {
        NatsFailure::CannotConnect(match error.kind() {
            ConnectErrorKind::Authentication => "the credentials can't be used".to_owned(),
            ConnectErrorKind::AuthorizationViolation => {
                "the server refused the credentials".to_owned()
            }
            ConnectErrorKind::TimedOut => "no answer in time".to_owned(),
            kind => {
                let cause = error.source().map(ToString::to_string);
                shortened(&cause.unwrap_or_else(|| kind.to_string()))
            }
        })
    }

    /// Returns the failure of a message to a subject.
    pub(super) fn of_request(error: &RequestError, subject: &str) -> NatsFailure {
        match error.kind() {
            RequestErrorKind::NoResponders => NatsFailure::NoStream(subject.to_owned()),
            RequestErrorKind::MaxPayloadExceeded => NatsFailure::TooLarge,
            RequestErrorKind::InvalidSubject => NatsFailure::Refused("invalid subject".to_owned()),
            RequestErrorKind::TimedOut | RequestErrorKind::Other => NatsFailure::Broken,
        }
    }

    /// Returns the failure of a message that a stream refused.
    pub(super) fn refused(description: &str) -> NatsFailure {
        NatsFailure::Refused(shortened(description))
    }
}

/// Returns the first characters of a text of another program.
pub(super) fn shortened(text: &str) -> String {
    text.chars().take(TEXT_MAX).collect()
}

fn because(trouble: &Option<String>) -> String {
    trouble.as_ref().map(|trouble| format!(": {trouble}")).unwrap_or_default()
}
