//! The sink that adds events to a stream of Redis.
//!
//! - `server`: the server's address, and the connection to it
//! - `failure`: why an event was not added

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Duration;

use redis::Cmd;
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

use self::failure::StreamFailure;
use self::server::StreamServer;
use crate::outbox::delivery::{AttemptResult, Delivery};
use crate::outbox::settings::RedisStreamTarget;
use crate::tls::TrustError;

mod failure;
mod server;

/// The reason why a stream of Redis can't be set up. No text has the address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedisStreamError {
    /// The address is not that of a Redis server.
    #[error(
        "the address is not of the form redis://[user:password@]host[:port][/db], rediss://.. or \
         unix:///path"
    )]
    Url,
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

/// A stream of Redis, with the connection to its server. All attempts share the connection, so that
/// Redis gets those of the same moment together.
pub struct RedisStream {
    server: StreamServer,
    stream: String,
    max_length: u64,
}

/// The attributes of an event that are fields of their own, so that a consumer can choose events
/// without parsing them.
#[derive(Deserialize)]
struct EventAttributes<'e> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'e, str>,
    #[serde(borrow, default)]
    subject: Cow<'e, str>,
}

impl RedisStream {
    /// Sets up a stream, and reads its `ca_file`. Opens no connection yet.
    ///
    /// # Errors
    /// See [`RedisStreamError`].
    pub fn new(target: &RedisStreamTarget) -> Result<RedisStream, RedisStreamError> {
        Ok(RedisStream {
            server: StreamServer::new(&target.url, target.ca_file.as_deref())?,
            stream: target.stream.clone(),
            max_length: target.max_length,
        })
    }

    /// Adds an event once. Takes at most `within`, with the time to connect. Must be
    /// called within a tokio runtime.
    ///
    /// An attempt that fails may have added the event.
    pub async fn attempt(&self, delivery: &Delivery, within: Duration) -> AttemptResult {
        match self.add(delivery, within).await {
            Ok(()) => AttemptResult::Delivered { status: None },
            Err(failure) => AttemptResult::Failed { error: failure.to_string() },
        }
    }

    async fn add(&self, delivery: &Delivery, within: Duration) -> Result<(), StreamFailure> {
        let deadline = Instant::now() + within;
        let command = self.command(delivery)?;
        let connecting = self.server.connection(within);
        let connected = timeout_at(deadline, connecting).await;
        let mut connection = connected.unwrap_or(Err(StreamFailure::NoConnection(within)))?;
        let adding = connection.send(&command);
        let added = timeout_at(deadline, adding).await;
        match added.unwrap_or(Err(StreamFailure::NoAnswer(within))) {
            Err(failure) if failure.concerns_connection() => {
                self.server.forget(&connection);
                Err(failure)
            }
            added => added,
        }
    }

    fn command(&self, delivery: &Delivery) -> Result<Cmd, StreamFailure> {
        let EventAttributes { kind, subject } =
            serde_json::from_slice(&delivery.event).map_err(|_| StreamFailure::Event)?;
        let mut command = redis::cmd("XADD");
        command.arg(&self.stream);
        if self.max_length > 0 {
            // An exact limit would cost the server a search within the oldest node of the stream.
            command.arg("MAXLEN").arg("~").arg(self.max_length);
        }
        command.arg("*");
        command.arg("id").arg(&delivery.event_id);
        command.arg("type").arg(kind.as_ref());
        command.arg("subject").arg(subject.as_ref());
        command.arg("event").arg(delivery.event.as_ref());
        Ok(command)
    }
}
