//! The address of a stream's server, and the connection to it. An open connection that breaks is
//! replaced in the background, for some time. After that, the next attempt opens another one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, ClientError, ConnectOptions, Event, ServerAddr};
use percent_encoding::percent_decode_str;
use rustls::ClientConfig;
use tokio::sync::watch;
use tokio::time::timeout;

use super::NatsError;
use super::failure::{NatsFailure, shortened};
use crate::outbox::settings::NatsTarget;
use crate::outbox::shared_connection::{BrokerConnection, SharedConnection};
use crate::tls;

/// Shortest limit for opening a connection: a look-up and a TLS handshake can take longer than an
/// attempt.
const CONNECT_TIMEOUT_MIN: Duration = Duration::from_secs(1);

/// Attempts to replace a connection in the background. They end, because nothing else stops them
/// when the sink is removed while its server is away.
const RECONNECTS_MAX: usize = 12;
/// Pause before the second attempt to replace a connection. It doubles with each attempt.
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause before an attempt to replace a connection.
const RECONNECT_PAUSE_MAX: Duration = Duration::from_secs(2);

/// A server, and the connection that all attempts share.
pub(super) struct NatsServer {
    settings: Arc<ServerSettings>,
    shared: SharedConnection<NatsConnection, NatsFailure>,
}

/// What is needed to open a connection.
struct ServerSettings {
    address: ServerAddr,
    credentials: Option<PathBuf>,
    requires_tls: bool,
    tls: Option<ClientConfig>,
}

/// A client, which replaces its connection by itself.
#[derive(Clone)]
pub(super) struct NatsConnection {
    client: Client,
    /// Its sender ends with the client.
    link: watch::Receiver<Link>,
}

/// The state of a client's connection.
#[derive(Debug, Default)]
struct Link {
    is_up: bool,
    /// The last error since the connection was opened.
    trouble: Option<String>,
}

/// Returns whether a text is the address of a server of NATS: `nats://` or `tls://`, a host, and
/// perhaps a port, a user and a password.
pub fn is_server_url(text: &str) -> bool {
    server_address(text).is_some()
}

fn server_address(text: &str) -> Option<ServerAddr> {
    if !["nats://", "tls://"].iter().any(|scheme| text.starts_with(scheme)) {
        return None;
    }
    let address: ServerAddr = text.parse().ok()?;
    let url = address.clone().into_inner();
    let is_bare = matches!(url.path(), "" | "/") && url.query().or(url.fragment()).is_none();
    (is_bare && !address.host().is_empty() && address.port() != 0).then_some(address)
}

impl NatsServer {
    /// Reads the address and the files. Opens no connection yet.
    ///
    /// # Errors
    /// See [`NatsError`].
    pub(super) fn new(target: &NatsTarget) -> Result<NatsServer, NatsError> {
        let address = server_address(&target.url).ok_or(NatsError::Url)?;
        if let Some(file) = &target.credentials {
            let text = std::fs::read_to_string(file).map_err(|error| unreadable(file, &error))?;
            ConnectOptions::with_credentials(&text)
                .map_err(|_| NatsError::Credentials { file: file.clone() })?;
        }
        // With authorities of its own, a server without TLS would not be the expected one.
        let requires_tls = address.tls_required() || target.ca_file.is_some();
        let tls = match tls_config(target.ca_file.as_deref()) {
            Ok(config) => Some(config),
            Err(error) if requires_tls => return Err(error),
            Err(_) => None,
        };
        let credentials = target.credentials.clone();
        let settings = Arc::new(ServerSettings { address, credentials, requires_tls, tls });
        Ok(NatsServer { settings, shared: SharedConnection::unopened() })
    }

    /// Returns the connection. Opens one if there is none.
    pub(super) async fn connection(&self, within: Duration) -> Result<NatsConnection, NatsFailure> {
        let late = |within| NatsFailure::NoConnection { within, trouble: None };
        let (settings, limit) = (self.settings.clone(), within.max(CONNECT_TIMEOUT_MIN));
        let opening = async move {
            let opened = timeout(limit, settings.open(limit)).await;
            opened.unwrap_or_else(|_| Err(late(limit)))
        };
        self.shared.get(opening).await.unwrap_or_else(|| Err(late(within)))
    }

    /// Closes a connection as soon as no attempt uses it. The next attempt opens another one.
    pub(super) fn forget(&self, connection: &NatsConnection) {
        self.shared.forget(connection);
    }
}

impl BrokerConnection for NatsConnection {
    fn is_open(&self) -> bool {
        self.link.has_changed().is_ok()
    }

    fn is_same(&self, other: &NatsConnection) -> bool {
        self.link.same_channel(&other.link)
    }
}

impl NatsConnection {
    /// Returns the client.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Returns the last error since the connection was opened.
    pub(super) fn trouble(&self) -> Option<String> {
        self.link.borrow().trouble.clone()
    }

    /// Returns when the connection is open.
    ///
    /// # Errors
    /// It broke, and the client has given up replacing it.
    pub(super) async fn until_up(&self) -> Result<(), NatsFailure> {
        let mut link = self.link.clone();
        let is_up = link.wait_for(|link| link.is_up).await.is_ok();
        let trouble = || self.trouble().unwrap_or_else(|| "the connection broke".to_owned());
        if is_up { Ok(()) } else { Err(NatsFailure::CannotConnect(trouble())) }
    }

    /// Returns when the connection is broken.
    pub(super) async fn until_down(&self) {
        let mut link = self.link.clone();
        // An error means that the client has ended.
        _ = link.wait_for(|link| !link.is_up).await;
    }
}

impl ServerSettings {
    async fn open(&self, within: Duration) -> Result<NatsConnection, NatsFailure> {
        let (sender, link) = watch::channel(Link::default());
        let options =
            self.options().await?.connection_timeout(within).event_callback(move |event| {
                sender.send_modify(|link| link.note(event));
                std::future::ready(())
            });
        let client = options.connect(self.address.clone()).await;
        let client = client.map_err(|error| NatsFailure::of_connecting(&error))?;
        Ok(NatsConnection { client, link })
    }

    async fn options(&self) -> Result<ConnectOptions, NatsFailure> {
        let mut options = ConnectOptions::new()
            .name("onceward")
            .require_tls(self.requires_tls)
            .max_reconnects(RECONNECTS_MAX)
            .reconnect_delay_callback(reconnect_pause);
        if let Some(config) = &self.tls {
            options = options.tls_client_config(config.clone());
        }
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        options = match (self.address.username(), self.address.password()) {
            (Some(user), Some(password)) => {
                options.user_and_password(decoded(user), decoded(password))
            }
            (Some(token), None) => options.token(decoded(token)),
            (None, _) => options,
        };
        let Some(file) = &self.credentials else { return Ok(options) };
        // Read for each connection, because the JWT in it expires and is replaced.
        let text = tokio::fs::read_to_string(file)
            .await
            .map_err(|error| NatsFailure::CannotConnect(unreadable(file, &error).to_string()))?;
        options.credentials(&text).map_err(|_| {
            let error = NatsError::Credentials { file: file.clone() };
            NatsFailure::CannotConnect(error.to_string())
        })
    }
}

impl Link {
    fn note(&mut self, event: Event) {
        match event {
            Event::Connected => *self = Link { is_up: true, trouble: None },
            Event::Disconnected => self.is_up = false,
            Event::ServerError(error) => self.trouble = Some(shortened(&error.to_string())),
            Event::ClientError(ClientError::Other(text)) => self.trouble = Some(shortened(&text)),
            Event::ClientError(_)
            | Event::LameDuckMode
            | Event::Draining
            | Event::Closed
            | Event::SlowConsumer(_) => {}
        }
    }
}

fn reconnect_pause(attempt: usize) -> Duration {
    let doublings = u32::try_from(attempt.saturating_sub(2)).unwrap_or(u32::MAX);
    match attempt {
        0 | 1 => Duration::ZERO,
        _ => {
            RECONNECT_PAUSE.saturating_mul(2_u32.saturating_pow(doublings)).min(RECONNECT_PAUSE_MAX)
        }
    }
}

fn unreadable(file: &Path, error: &std::io::Error) -> NatsError {
    NatsError::File { file: file.to_owned(), why: error.to_string() }
}

fn tls_config(ca_file: Option<&Path>) -> Result<ClientConfig, NatsError> {
    let pem = ca_file.map(|file| std::fs::read(file).map_err(|error| unreadable(file, &error)));
    Ok(tls::client_config(pem.transpose()?.as_deref(), None, &[])?)
}
