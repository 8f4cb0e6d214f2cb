//! The address of a stream's server, and the connection to it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::io::tcp::socket2::{SockRef, TcpKeepalive};
use redis::{AsyncConnectionConfig, Cmd, ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::RedisStreamError;
use super::failure::StreamFailure;
use crate::outbox::shared_connection::{BrokerConnection, SharedConnection};
use crate::tls;

/// Shortest limit for opening a connection: a look-up and a TLS handshake can take longer than an
/// attempt.
const CONNECT_TIMEOUT_MIN: Duration = Duration::from_secs(1);

/// Idle time after which the kernel probes a connection, and the time between two probes. Firewalls
/// forget idle connections after some minutes.
const KEEPALIVE: [Duration; 2] = [Duration::from_secs(15), Duration::from_secs(5)];

/// Limit for the commands that wait to be written. It is the highest number of attempts at the same
/// time.
const QUEUE: usize = 1024;

/// A server, and the connection that all attempts share.
pub(super) struct StreamServer {
    settings: Arc<ServerSettings>,
    shared: SharedConnection<StreamConnection, StreamFailure>,
}

/// What is needed to open a connection.
struct ServerSettings {
    address: ServerAddress,
    login: RedisConnectionInfo,
}

enum ServerAddress {
    Tcp(String, u16),
    Tls(String, u16, ServerName<'static>, TlsConnector),
    Unix(PathBuf),
}

/// An open connection. The last copy closes it.
#[derive(Clone)]
pub(super) struct StreamConnection {
    connection: MultiplexedConnection,
    /// The task that reads and writes. It ends with the connection.
    driver: Arc<AbortOnDropHandle<()>>,
}

impl StreamServer {
    /// Reads the address and the authorities. Opens no connection yet.
    ///
    /// # Errors
    /// See [`RedisStreamError`].
    pub(super) fn new(url: &str, ca_file: Option<&Path>) -> Result<StreamServer, RedisStreamError> {
        let info = url.into_connection_info().map_err(|_| RedisStreamError::Url)?;
        let address = match info.addr() {
            ConnectionAddr::Tcp(host, port) => ServerAddress::Tcp(host.clone(), *port),
            ConnectionAddr::TcpTls { host, port, insecure: false, .. } => {
                let name = ServerName::try_from(host.clone()).map_err(|_| RedisStreamError::Url)?;
                ServerAddress::Tls(host.clone(), *port, name, tls_connector(ca_file)?)
            }
            ConnectionAddr::Unix(path) => ServerAddress::Unix(path.clone()),
            _ => return Err(RedisStreamError::Url),
        };
        let login = info.redis_settings().clone();
        let login = login.set_lib_name("onceward", env!("CARGO_PKG_VERSION"));
        let settings = Arc::new(ServerSettings { address, login });
        Ok(StreamServer { settings, shared: SharedConnection::unopened() })
    }

    /// Returns the connection. Opens one if there is none.
    pub(super) async fn connection(
        &self,
        within: Duration,
    ) -> Result<StreamConnection, StreamFailure> {
        let (settings, limit) = (self.settings.clone(), within.max(CONNECT_TIMEOUT_MIN));
        let opening = async move {
            let opened = timeout(limit, settings.open()).await;
            opened.unwrap_or(Err(StreamFailure::NoConnection(limit)))
        };
        self.shared.get(opening).await.unwrap_or(Err(StreamFailure::NoConnection(within)))
    }

    /// Closes a connection as soon as no attempt uses it. The next attempt opens another one.
    pub(super) fn forget(&self, connection: &StreamConnection) {
        self.shared.forget(connection);
    }
}

impl BrokerConnection for StreamConnection {
    fn is_open(&self) -> bool {
        !self.driver.is_finished()
    }

    fn is_same(&self, other: &StreamConnection) -> bool {
        Arc::ptr_eq(&self.driver, &other.driver)
    }
}

impl StreamConnection {
    /// Sends a command and waits for the answer, for any time.
    pub(super) async fn send(&mut self, command: &Cmd) -> Result<(), StreamFailure> {
        let answer = self.connection.send_packed_command(command).await;
        let answer = answer.and_then(redis::Value::extract_error);
        answer.map(drop).map_err(|error| StreamFailure::of_command(&error))
    }
}

impl ServerSettings {
    async fn open(&self) -> Result<StreamConnection, StreamFailure> {
        let stream = self.address.open().await.map_err(|error| StreamFailure::of_io(&error))?;
        // Each attempt has its own limit.
        let config =
            AsyncConnectionConfig::new().set_response_timeout(None).set_pipeline_buffer_size(QUEUE);
        let opened = MultiplexedConnection::new_with_config(&self.login, stream, config).await;
        let (connection, driver) = opened.map_err(|error| StreamFailure::of_connecting(&error))?;
        let driver = Arc::new(AbortOnDropHandle::new(tokio::spawn(driver)));
        Ok(StreamConnection { connection, driver })
    }
}

impl ServerAddress {
    async fn open(&self) -> std::io::Result<Box<dyn ByteStream>> {
        Ok(match self {
            ServerAddress::Tcp(host, port) => Box::new(open_tcp(host, *port).await?),
            ServerAddress::Tls(host, port, name, tls) => {
                Box::new(tls.connect(name.clone(), open_tcp(host, *port).await?).await?)
            }
            ServerAddress::Unix(path) => Box::new(UnixStream::connect(path).await?),
        })
    }
}

async fn open_tcp(host: &str, port: u16) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    let [idle, interval] = KEEPALIVE;
    let keepalive = TcpKeepalive::new().with_time(idle).with_interval(interval);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    Ok(stream)
}

fn tls_connector(ca_file: Option<&Path>) -> Result<TlsConnector, RedisStreamError> {
    let pem = ca_file.map(|file| {
        std::fs::read(file).map_err(|error| RedisStreamError::CaFile {
            file: file.to_owned(),
            why: error.to_string(),
        })
    });
    let config = tls::client_config(pem.transpose()?.as_deref(), None, &[])?;
    Ok(TlsConnector::from(Arc::new(config)))
}

trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}
