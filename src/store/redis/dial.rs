//! Making connections to the server, each set up in the same way.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::io::tcp::socket2::{SockRef, TcpKeepalive};
use redis::{AsyncConnectionConfig, ConnectionAddr, ErrorKind, IntoConnectionInfo, ProtocolVersion, PushInfo};
use redis::{RedisConnectionInfo, RedisError, RedisResult};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::{ConnectError, Options};
use crate::tls;

/// How long bytes may stay unacknowledged before the kernel ends the connection. Well below the 60 s for which a
/// released marker stands at least.
#[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "elsewhere the system's own limit holds"))]
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(20);

/// When an idle connection is probed: before the ten minutes or less after which firewalls forget it.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);

/// Between two probes of an idle connection.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// The shortest time that making a connection may take: a name lookup and a TLS handshake need more than a command.
const CONNECT_TIMEOUT_MIN: Duration = Duration::from_secs(1);

/// Commands that may wait to be written. More than usually come in one burst; who finds it full waits, and times out.
const QUEUE: usize = 1024;

/// Where the server is, and how it is greeted. Cheap to clone.
#[derive(Clone)]
pub(super) struct Dialer {
    address: Arc<Address>,
    greeting: RedisConnectionInfo,
    /// How long a command may take.
    pub(super) timeout: Duration,
}

enum Address {
    Tcp(String, u16),
    Tls { host: String, port: u16, name: ServerName<'static>, connector: TlsConnector },
    Unix(std::path::PathBuf),
}

/// A connection, and the task that moves its bytes: it ends with whoever holds this.
pub(super) struct Dialled {
    pub connection: MultiplexedConnection,
    pub driver: AbortOnDropHandle<()>,
}

impl Dialer {
    /// Reads the options; connects to nothing.
    pub(super) fn new(options: &Options) -> Result<Dialer, ConnectError> {
        let info = options.url.as_str().into_connection_info().map_err(|_| ConnectError::Url)?;
        let greeting = info
            .redis_settings()
            .clone()
            .set_protocol(ProtocolVersion::RESP3)
            .set_lib_name("onceward", env!("CARGO_PKG_VERSION"));
        let certificates = |path: &std::path::Path| ConnectError::Certificates { path: path.into() };
        let address = match (info.addr(), &options.ca_file) {
            (ConnectionAddr::TcpTls { host, port, insecure: false, .. }, ca_file) => {
                let pem = ca_file.as_ref().map(|path| {
                    std::fs::read(path).map_err(|error| ConnectError::CaFile { path: path.clone(), kind: error.kind() })
                });
                let config = tls::client_config(pem.transpose()?.as_deref(), &[]);
                let config = config.map_err(|error| match ca_file {
                    Some(path) => certificates(path),
                    None => ConnectError::Trust(error),
                })?;
                let name = ServerName::try_from(host.clone()).map_err(|_| ConnectError::Url)?;
                Address::Tls { host: host.clone(), port: *port, name, connector: TlsConnector::from(Arc::new(config)) }
            }
            (_, Some(path)) => {
                std::fs::read(path).map_err(|error| ConnectError::CaFile { path: path.clone(), kind: error.kind() })?;
                return Err(certificates(path));
            }
            (ConnectionAddr::Tcp(host, port), None) => Address::Tcp(host.clone(), *port),
            (ConnectionAddr::Unix(path), None) => Address::Unix(path.clone()),
            (_, None) => return Err(ConnectError::Url),
        };
        Ok(Dialer { address: Arc::new(address), greeting, timeout: options.timeout })
    }

    /// Connects and greets. `pushed` hears what the server sends unasked, and of the end of the connection.
    pub(super) async fn dial(&self, pushed: impl Fn(PushInfo) + Send + Sync + 'static) -> RedisResult<Dialled> {
        let config = AsyncConnectionConfig::new()
            // Deadlines are set around whole calls, see `Links::call`.
            .set_response_timeout(None)
            .set_pipeline_buffer_size(QUEUE)
            .set_push_sender(move |info: PushInfo| -> Result<(), std::convert::Infallible> {
                pushed(info);
                Ok(())
            });
        let dialling = async {
            let stream = self.open().await?;
            MultiplexedConnection::new_with_config(&self.greeting, stream, config).await
        };
        let (connection, driver) = timeout(self.timeout.max(CONNECT_TIMEOUT_MIN), dialling)
            .await
            .map_err(|_| RedisError::from((ErrorKind::Io, "no connection in time")))??;
        let driver = tokio::spawn(Gathering { driver: Box::pin(driver), waited: false });
        Ok(Dialled { connection, driver: AbortOnDropHandle::new(driver) })
    }

    async fn open(&self) -> std::io::Result<Box<dyn Stream>> {
        Ok(match &*self.address {
            Address::Tcp(host, port) => Box::new(open_tcp(host, *port).await?),
            Address::Tls { host, port, name, connector } => {
                Box::new(connector.connect(name.clone(), open_tcp(host, *port).await?).await?)
            }
            Address::Unix(path) => Box::new(UnixStream::connect(path).await?),
        })
    }
}

async fn open_tcp(host: &str, port: u16) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    // Commands are small, and each is waited for.
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL))?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))?;
    Ok(stream)
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Drives a connection, one turn later than it is asked to.
///
/// Under load many requests are ready at once. The runtime would run the driver after the first of them, and every command
/// would cost a write here and a read at the server; after a turn the commands of all of them go out in one.
struct Gathering<F> {
    driver: Pin<Box<F>>,
    waited: bool,
}

impl<F: Future<Output = ()>> Future for Gathering<F> {
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
