//! Why an event was not added to a stream. No text has a credential, or a part of what was sent.

use std::io;
use std::time::Duration;

use redis::{ErrorKind, RedisError};

/// Codes of the server's errors, and their meaning for an operator. Other texts of the server are
/// not shown, because they may repeat what was sent.
const MEANINGS: &[(&str, &str)] = &[
    ("ASK", "its cluster is moving the stream"),
    ("CLUSTERDOWN", "its cluster is down"),
    ("LOADING", "it is still loading its data"),
    ("MASTERDOWN", "it is a replica without its primary"),
    ("MISCONF", "it can't persist, and is set to refuse writes then"),
    ("MOVED", "it is a node of a cluster that does not hold the stream"),
    ("NOAUTH", "it wants a password"),
    ("NOPERM", "its user has no right to add to the stream"),
    ("NOREPLICAS", "it has too few replicas for its min-replicas-to-write"),
    ("OOM", "its maxmemory is reached"),
    ("READONLY", "it is a read-only replica"),
    ("TRYAGAIN", "its cluster is moving the stream"),
    ("WRONGPASS", "user name or password are wrong"),
    ("WRONGTYPE", "the key of the stream has a value of another type"),
];

/// The reason why an event was not added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum StreamFailure {
    #[error("the event has no type")]
    Event,
    #[error("no connection within {}", humantime::format_duration(*.0))]
    NoConnection(Duration),
    #[error("can't connect: {0}")]
    CannotConnect(Box<StreamFailure>),
    #[error("no answer within {}", humantime::format_duration(*.0))]
    NoAnswer(Duration),
    #[error("the server answered {code}{}", .meaning.map(|text| format!(": {text}")).unwrap_or_default())]
    Answered { code: String, meaning: Option<&'static str> },
    #[error("{0}")]
    Transport(String),
}

impl StreamFailure {
    /// Returns the failure of opening a connection.
    pub(super) fn of_connecting(error: &RedisError) -> StreamFailure {
        StreamFailure::CannotConnect(Box::new(StreamFailure::of_command(error)))
    }

    /// Returns the failure of a command.
    pub(super) fn of_command(error: &RedisError) -> StreamFailure {
        if let Some(code) = error.code() {
            let known = MEANINGS.iter().find(|(known, _)| *known == code);
            let meaning = known.map(|(_, meaning)| *meaning);
            return StreamFailure::Answered { code: code.to_owned(), meaning };
        }
        StreamFailure::Transport(match error.kind() {
            ErrorKind::Io => error.to_string(),
            ErrorKind::AuthenticationFailed => "user name or password are wrong".to_owned(),
            ErrorKind::RESP3NotSupported => "the server is older than Redis 6".to_owned(),
            ErrorKind::Parse | ErrorKind::UnexpectedReturnType => {
                "the server's answer can't be read".to_owned()
            }
            _ => "the connection failed".to_owned(),
        })
    }

    /// Returns the failure of opening a stream of bytes.
    pub(super) fn of_io(error: &io::Error) -> StreamFailure {
        StreamFailure::CannotConnect(Box::new(StreamFailure::Transport(error.to_string())))
    }

    /// Whether the next attempt needs another connection: this one may be broken, or leads to a
    /// server that is not the primary any more.
    pub(super) fn concerns_connection(&self) -> bool {
        match self {
            StreamFailure::NoAnswer(_) | StreamFailure::Transport(_) => true,
            StreamFailure::Answered { code, .. } => {
                matches!(code.as_str(), "READONLY" | "MASTERDOWN" | "NOAUTH")
            }
            StreamFailure::Event
            | StreamFailure::NoConnection(_)
            | StreamFailure::CannotConnect(_) => false,
        }
    }
}
