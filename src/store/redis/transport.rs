//! Opens connections to a server at a known address: over TCP, TLS or a Unix socket.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::io::tcp::socket2::{SockRef, TcpKeepalive};
use redis::{AsyncConnectionConfig, ErrorKind, PushInfo, RedisConnectionInfo, RedisError};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::fault;
use super::options::{ConnectError, RedisOptions};
use crate::tls;

/// How long sent bytes may stay unacknowledged before the kernel ends the connection. Well below
/// the shortest time of a released marker, 60 s.
#[cfg_attr(
    not(target_os = "linux"),
    allow(dead_code, reason = "elsewhere the system's own limit holds")
)]
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(20);

/// Idle time after which the kernel probes a connection. Firewalls forget idle connections after
/// ten minutes or less.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);

/// Time between two probes of an idle connection.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// Shortest time limit for opening a connection: a name lookup and a TLS handshake take longer than
/// a command.
pub(super) const CONNECT_TIMEOUT_MIN: Duration = Duration::from_secs(1);

/// Limit for the commands that wait to be written. Bursts usually have fewer. If the queue is full,
/// further commands wait for a free place until they time out.
const QUEUE: usize = 1024;

/// The address of a server.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Address {
    /// A host name or IP address, and a port.
    Tcp(String, u16),
    /// A socket's path.
    Unix(std::path::PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Tcp(host, port) => write!(f, "{host}:{port}"),
            Address::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A connection, and the task that moves its bytes. Dropping the task ends the connection.
pub(super) struct NewConnection {
    pub connection: MultiplexedConnection,
    pub driver: AbortOnDropHandle<()>,
    pub address: Address,
}

/// Opens connections with one set of TLS settings and one time limit. Cheap to clone.
#[derive(Clone)]
pub(super) struct Transport {
    tls: Option<TlsConnector>,
    timeout: Duration,
}

impl Transport {
    /// Loads the certificates; connects to nothing.
    ///
    /// # Errors
    /// A certificate can't be used, or there is a `ca_file` without TLS.
    pub(super) fn new(uses_tls: bool, options: &RedisOptions) -> Result<Transport, ConnectError> {
        Ok(Transport { tls: tls_connector(uses_tls, options)?, timeout: options.timeout })
    }

    /// Longest time of a command.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Connects and logs in. `pushed` receives the messages that the server sends on its own, and
    /// the end of the connection.
    ///
    /// # Errors
    /// The reason why there is no connection. The text contains no password.
    pub(super) async fn connect(
        &self,
        address: Address,
        login: &RedisConnectionInfo,
        pushed: impl Fn(PushInfo) + Send + Sync + 'static,
    ) -> Result<NewConnection, String> {
        let config = AsyncConnectionConfig::new()
            // Each call has its own deadline, see `ServerConnection::call`.
            .set_response_timeout(None)
            .set_pipeline_buffer_size(QUEUE)
            .set_push_sender(move |info: PushInfo| -> Result<(), std::convert::Infallible> {
                pushed(info);
                Ok(())
            });
        let connecting = async {
            let stream = self.open(&address).await?;
            MultiplexedConnection::new_with_config(login, stream, config).await
        };
        let (connection, driver) = timeout(self.timeout.max(CONNECT_TIMEOUT_MIN), connecting)
            .await
            .unwrap_or_else(|_| Err(RedisError::from((ErrorKind::Io, "no connection in time"))))
            .map_err(|error| fault::of_connecting(&error))?;
        let driver = tokio::spawn(BatchingDriver { driver: Box::pin(driver), waited: false });
        Ok(NewConnection { connection, driver: AbortOnDropHandle::new(driver), address })
    }

    async fn open(&self, address: &Address) -> std::io::Result<Box<dyn ByteStream>> {
        Ok(match (address, &self.tls) {
            (Address::Tcp(host, port), None) => Box::new(open_tcp(host, *port).await?),
            (Address::Tcp(host, port), Some(tls)) => {
                let name = ServerName::try_from(host.clone()).map_err(std::io::Error::other)?;
                Box::new(tls.connect(name, open_tcp(host, *port).await?).await?)
            }
            (Address::Unix(path), _) => Box::new(UnixStream::connect(path).await?),
        })
    }
}

fn tls_connector(
    uses_tls: bool,
    options: &RedisOptions,
) -> Result<Option<TlsConnector>, ConnectError> {
    let ca_file = options.ca_file.as_deref();
    let pem = ca_file.map(|path| {
        std::fs::read(path)
            .map_err(|error| ConnectError::CaFile { path: path.into(), kind: error.kind() })
    });
    let pem = pem.transpose()?;
    let certificates = |path: &std::path::Path| ConnectError::Certificates { path: path.into() };
    if !uses_tls {
        return ca_file.map_or(Ok(None), |path| Err(certificates(path)));
    }
    let identity = options.client.clone().map(tls::ClientIdentity::load).transpose()?;
    let config = tls::client_config(pem.as_deref(), identity, &[]);
    let config =
        config.map_err(|error| ca_file.map_or(ConnectError::Trust(error), certificates))?;
    Ok(Some(TlsConnector::from(Arc::new(config))))
}

async fn open_tcp(host: &str, port: u16) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    // Commands are small, and each has a caller that waits for it.
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    socket.set_tcp_keepalive(
        &TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL),
    )?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))?;
    Ok(stream)
}

trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// Drives a connection one turn later than the runtime polls it.
///
/// Under load, many requests are ready at once. The runtime would run the driver after the first of
/// them, and every command would cost a write here and a read at the server. One turn later, one
/// write sends the commands of all these requests.
struct BatchingDriver<F> {
    driver: Pin<Box<F>>,
    waited: bool,
}

impl<F: Future<Output = ()>> Future for BatchingDriver<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.waited = !self.waited;
        if self.waited {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.driver.as_mut().poll(cx)
    }
}
