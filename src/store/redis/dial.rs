//! Making connections to servers, each set up in the same way.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::io::tcp::socket2::{SockRef, TcpKeepalive};
use redis::{
    AsyncConnectionConfig, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo,
    ProtocolVersion, PushInfo,
};
use redis::{RedisConnectionInfo, RedisError};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::confirm::Confirmation;
use super::layout::Names;
use super::sentinel::{self, Sentinels};
use super::{ConnectError, Options, Place, fault};
use crate::telemetry::BreakerMeter;
use crate::tls;

/// How long bytes may stay unacknowledged before the kernel ends the connection. Well below the 60 s for which a
/// released marker stands at least.
#[cfg_attr(
    not(target_os = "linux"),
    allow(dead_code, reason = "elsewhere the system's own limit holds")
)]
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(20);

/// When an idle connection is probed: before the ten minutes or less after which firewalls forget it.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);

/// Between two probes of an idle connection.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// The shortest time that making a connection may take: a name lookup and a TLS handshake need more than a command.
pub(super) const CONNECT_TIMEOUT_MIN: Duration = Duration::from_secs(1);

/// Commands that may wait to be written. More than usually come in one burst; who finds it full waits, and times out.
const QUEUE: usize = 1024;

/// Which server is meant, and how it is greeted. Cheap to clone.
#[derive(Clone)]
pub(super) struct Dialer {
    target: Target,
    greeting: RedisConnectionInfo,
    connector: Option<TlsConnector>,
    /// How long a command may take.
    pub(super) timeout: Duration,
    /// Woken when a server with another history of writes is connected.
    pub(super) replaced: Arc<Notify>,
    /// How answers are confirmed.
    pub(super) confirmation: Confirmation,
    pub(super) breakers: BreakerMeter,
    /// The names of the store's keys and channels.
    pub(super) names: Names,
}

#[derive(Clone)]
enum Target {
    /// This one.
    Fixed(Address),
    /// The primary that the sentinels name.
    Primary(Arc<Sentinels>),
    /// Any of a cluster.
    AnyOf(Members),
}

/// A cluster's servers as far as they are known, and which of them is asked next.
#[derive(Clone)]
pub(super) struct Members(Arc<RwLock<Vec<Address>>>);

impl Members {
    /// The servers that are known first.
    pub(super) fn new(seeds: Vec<Address>) -> Members {
        Members(Arc::new(RwLock::new(seeds)))
    }

    /// Those that are known now.
    pub(super) fn all(&self) -> Vec<Address> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// They are these now.
    pub(super) fn set(&self, members: Vec<Address>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = members;
    }

    /// Puts one that doesn't answer behind the others.
    fn demote(&self, failed: &Address) {
        let mut members = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = members.iter().position(|member| member == failed) {
            let member = members.remove(at);
            members.push(member);
        }
    }
}

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Address {
    /// A name or address, and a port.
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

/// A connection, and the task that moves its bytes: it ends with whoever holds this.
pub(super) struct Dialled {
    pub connection: MultiplexedConnection,
    pub driver: AbortOnDropHandle<()>,
    pub address: Address,
}

impl Dialer {
    /// Reads the options; connects to nothing.
    pub(super) fn new(options: &Options) -> Result<Dialer, ConnectError> {
        let read =
            |url: &String| url.as_str().into_connection_info().map_err(|_| ConnectError::Url);
        let (infos, sentinels) = match &options.place {
            Place::Server(url) => (vec![read(url)?], None),
            Place::Cluster(urls) => (urls.iter().map(read).collect::<Result<Vec<_>, _>>()?, None),
            Place::Sentinel { sentinels, primary, name } => {
                let asked = sentinels.iter().map(read).collect::<Result<Vec<_>, _>>()?;
                (vec![read(primary)?], Some((asked, name)))
            }
        };
        let Some(first) = infos.first() else { return Err(ConnectError::Url) };
        let (address, tls) = address_of(first)?;
        let connector = connector(tls, options)?;
        let target = match (&options.place, sentinels) {
            (_, Some((asked, name))) => {
                let Some(asked_first) = asked.first() else { return Err(ConnectError::Url) };
                let greeting = greeting(asked_first);
                let addresses =
                    asked.iter().map(|info| address_of(info).map(|(address, _)| address));
                Target::Primary(Arc::new(Sentinels::new(
                    addresses.collect::<Result<_, _>>()?,
                    greeting,
                    name.clone(),
                )))
            }
            (Place::Cluster(_), None) => {
                let seeds = infos.iter().map(|info| address_of(info).map(|(address, _)| address));
                Target::AnyOf(Members::new(seeds.collect::<Result<_, _>>()?))
            }
            (_, None) => Target::Fixed(address),
        };
        let names = Names::new(&options.namespace).ok_or(ConnectError::Namespace)?;
        let confirmation = Confirmation::new(options);
        let (timeout, breakers) = (options.timeout, options.breakers.clone());
        let greeting = greeting(first);
        Ok(Dialer {
            target,
            greeting,
            connector,
            timeout,
            replaced: Arc::default(),
            confirmation,
            breakers,
            names,
        })
    }

    /// The same, to this server.
    pub(super) fn to(&self, address: Address) -> Dialer {
        Dialer { target: Target::Fixed(address), ..self.clone() }
    }

    /// The same, with another greeting.
    pub(super) fn greeting_with(&self, greeting: &RedisConnectionInfo) -> Dialer {
        Dialer { greeting: greeting.clone(), ..self.clone() }
    }

    /// The servers of the cluster, if it is one.
    pub(super) fn members(&self) -> Option<&Members> {
        match &self.target {
            Target::AnyOf(members) => Some(members),
            Target::Fixed(_) | Target::Primary(_) => None,
        }
    }

    /// The sentinels, if there are some.
    pub(super) fn sentinels(&self) -> Option<&Sentinels> {
        match &self.target {
            Target::Primary(sentinels) => Some(sentinels),
            Target::Fixed(_) | Target::AnyOf(_) => None,
        }
    }

    /// Connects and greets. `pushed` hears what the server sends unasked, and of the end of the connection.
    ///
    /// # Errors
    /// Why there is no connection, without a password.
    pub(super) async fn dial(
        &self,
        pushed: impl Fn(PushInfo) + Send + Sync + 'static,
    ) -> Result<Dialled, String> {
        match &self.target {
            Target::Fixed(address) => self.dial_to(address.clone(), pushed).await,
            Target::Primary(sentinels) => {
                let dialled = self.dial_to(sentinels.primary(self).await?, pushed).await?;
                sentinel::insist_on_primary(&dialled, self.timeout).await?;
                Ok(dialled)
            }
            Target::AnyOf(members) => {
                let Some(address) = members.all().into_iter().next() else {
                    return Err("the cluster has no servers".into());
                };
                let dialled = self.dial_to(address.clone(), pushed).await;
                if dialled.is_err() {
                    members.demote(&address);
                }
                dialled
            }
        }
    }

    /// Connects to this server, whichever is meant, and greets it.
    pub(super) async fn dial_to(
        &self,
        address: Address,
        pushed: impl Fn(PushInfo) + Send + Sync + 'static,
    ) -> Result<Dialled, String> {
        let config = AsyncConnectionConfig::new()
            // Deadlines are set around whole calls, see `Links::call`.
            .set_response_timeout(None)
            .set_pipeline_buffer_size(QUEUE)
            .set_push_sender(move |info: PushInfo| -> Result<(), std::convert::Infallible> {
                pushed(info);
                Ok(())
            });
        let dialling = async {
            let stream = self.open(&address).await?;
            MultiplexedConnection::new_with_config(&self.greeting, stream, config).await
        };
        let (connection, driver) = timeout(self.timeout.max(CONNECT_TIMEOUT_MIN), dialling)
            .await
            .unwrap_or_else(|_| Err(RedisError::from((ErrorKind::Io, "no connection in time"))))
            .map_err(|error| fault::of_connecting(&error))?;
        let driver = tokio::spawn(Gathering { driver: Box::pin(driver), waited: false });
        Ok(Dialled { connection, driver: AbortOnDropHandle::new(driver), address })
    }

    async fn open(&self, address: &Address) -> std::io::Result<Box<dyn Stream>> {
        Ok(match (address, &self.connector) {
            (Address::Tcp(host, port), None) => Box::new(open_tcp(host, *port).await?),
            (Address::Tcp(host, port), Some(connector)) => {
                let name = ServerName::try_from(host.clone()).map_err(std::io::Error::other)?;
                Box::new(connector.connect(name, open_tcp(host, *port).await?).await?)
            }
            (Address::Unix(path), _) => Box::new(UnixStream::connect(path).await?),
        })
    }
}

fn greeting(info: &ConnectionInfo) -> RedisConnectionInfo {
    let greeting = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    greeting.set_lib_name("onceward", env!("CARGO_PKG_VERSION"))
}

/// Where a URL leads, and whether by TLS.
fn address_of(info: &ConnectionInfo) -> Result<(Address, bool), ConnectError> {
    match info.addr() {
        ConnectionAddr::TcpTls { host, port, insecure: false, .. } => {
            ServerName::try_from(host.as_str()).map_err(|_| ConnectError::Url)?;
            Ok((Address::Tcp(host.clone(), *port), true))
        }
        ConnectionAddr::Tcp(host, port) => Ok((Address::Tcp(host.clone(), *port), false)),
        ConnectionAddr::Unix(path) => Ok((Address::Unix(path.clone()), false)),
        _ => Err(ConnectError::Url),
    }
}

fn connector(tls: bool, options: &Options) -> Result<Option<TlsConnector>, ConnectError> {
    let ca_file = options.ca_file.as_deref();
    let pem = ca_file.map(|path| {
        std::fs::read(path)
            .map_err(|error| ConnectError::CaFile { path: path.into(), kind: error.kind() })
    });
    let pem = pem.transpose()?;
    let certificates = |path: &std::path::Path| ConnectError::Certificates { path: path.into() };
    if !tls {
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
    // Commands are small, and each is waited for.
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    socket.set_tcp_keepalive(
        &TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL),
    )?;
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
