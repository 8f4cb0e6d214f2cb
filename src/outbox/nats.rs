//! The sink that publishes events to a stream of NATS (JetStream).
//!
//! A publication is a request to the subject, which the stream answers. So this uses no other part
//! of JetStream, and the server needs no right but those to the subject and to an inbox.
//!
//! - `server`: the server's address, and the connection to it
//! - `failure`: why an event was not stored

use std::path::PathBuf;
use std::time::Duration;

use async_nats::{HeaderMap, HeaderValue, Message, Request, RequestError};
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

use self::failure::NatsFailure;
use self::server::{NatsConnection, NatsServer};
use crate::event::EVENT_MEDIA_TYPE;
use crate::outbox::delivery::{AttemptResult, Delivery};
use crate::outbox::settings::NatsTarget;
use crate::tls::TrustError;

mod failure;
mod server;

pub use server::is_server_url;

/// The header by which a stream recognizes a message that it has.
const MESSAGE_ID: &str = "Nats-Msg-Id";
/// The header that names the format of a message (NATS Protocol Binding of CloudEvents).
const CONTENT_TYPE: &str = "Content-Type";

/// The reason why a stream of NATS can't be set up. No text has the address or a credential.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NatsError {
    /// The address is not that of a server of NATS.
    #[error("the address is not of the form nats://[user:password@]host[:port] or tls://..")]
    Url,
    /// A file can't be read.
    #[error("can't read {}: {why}", .file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// The error.
        why: String,
    },
    /// The file of credentials has no JWT or no seed.
    #[error("{} has no JWT of a user with the seed of its key", .file.display())]
    Credentials {
        /// The file.
        file: PathBuf,
    },
    /// There is no authority to trust.
    #[error(transparent)]
    Trust(#[from] TrustError),
}

/// A stream of NATS, with the connection to its server. All attempts share the connection.
pub struct Nats {
    server: NatsServer,
    subject: String,
}

/// A stream's answer to a message. It has an error, or else the stream has the message: it stored
/// it, or had one of the same id.
#[derive(Deserialize)]
struct Acknowledgement {
    error: Option<StreamRefusal>,
    /// The name of the stream. An answer without it is not a stream's.
    stream: Option<String>,
}

#[derive(Deserialize)]
struct StreamRefusal {
    #[serde(default)]
    description: String,
}

impl Nats {
    /// Sets up a stream, and reads its files. Opens no connection yet.
    ///
    /// # Errors
    /// See [`NatsError`].
    pub fn new(target: &NatsTarget) -> Result<Nats, NatsError> {
        Ok(Nats { server: NatsServer::new(target)?, subject: target.subject.clone() })
    }

    /// Publishes an event once. Takes at most `within`, including a connection if there is none.
    /// Must be called within a tokio runtime.
    ///
    /// The stream drops an event of a round that it already has, and acknowledges it. An attempt
    /// that fails may have published the event.
    pub async fn attempt(&self, delivery: &Delivery, within: Duration) -> AttemptResult {
        match self.publish(delivery, within).await {
            Ok(()) => AttemptResult::Delivered { status: None },
            Err(failure) => AttemptResult::Failed { error: failure.to_string() },
        }
    }

    async fn publish(&self, delivery: &Delivery, within: Duration) -> Result<(), NatsFailure> {
        let deadline = Instant::now() + within;
        let request = request(delivery)?;
        let connected = timeout_at(deadline, self.server.connection(within)).await;
        let late = || NatsFailure::NoConnection { within, trouble: None };
        let connection = connected.unwrap_or_else(|_| Err(late()))?;
        let up = timeout_at(deadline, connection.until_up()).await;
        let trouble = || connection.trouble();
        up.unwrap_or_else(|_| Err(NatsFailure::NoConnection { within, trouble: trouble() }))?;
        let exchange = self.exchange(&connection, request);
        let Ok(answer) = timeout_at(deadline, exchange).await else {
            let failure = NatsFailure::NoAnswer { within, trouble: trouble() };
            // The connection may be one that no packet passes.
            self.server.forget(&connection);
            return Err(failure);
        };
        acknowledged(&answer?)
    }

    /// Sends a message and waits for its answer, for as long as the connection lasts.
    async fn exchange(
        &self,
        connection: &NatsConnection,
        request: Request,
    ) -> Result<Message, NatsFailure> {
        let client = connection.client();
        tokio::select! {
            answer = client.send_request(self.subject.clone(), request) => {
                answer.map_err(|error: RequestError| NatsFailure::of_request(&error, &self.subject))
            }
            () = connection.until_down() => Err(NatsFailure::Broken),
        }
    }
}

/// Returns the message of an event. A requeued event has another id, because a stream would drop
/// the same id a second time.
fn request(delivery: &Delivery) -> Result<Request, NatsFailure> {
    let id = match delivery.round {
        0 => delivery.event_id.clone(),
        round => format!("{}.{round}", delivery.event_id),
    };
    let mut headers = HeaderMap::new();
    let id: HeaderValue = id.parse().map_err(|_| NatsFailure::EventId)?;
    headers.insert(MESSAGE_ID, id);
    headers.insert(CONTENT_TYPE, EVENT_MEDIA_TYPE);
    // The limit is the attempt's.
    Ok(Request::new().headers(headers).payload(delivery.event.clone()).timeout(None))
}

fn acknowledged(answer: &Message) -> Result<(), NatsFailure> {
    let acknowledgement = serde_json::from_slice(&answer.payload);
    match acknowledgement.map_err(|_| NatsFailure::Unreadable)? {
        Acknowledgement { error: Some(error), .. } => Err(NatsFailure::refused(&error.description)),
        Acknowledgement { stream: Some(_), .. } => Ok(()),
        Acknowledgement { .. } => Err(NatsFailure::Unreadable),
    }
}
