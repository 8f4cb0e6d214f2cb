//! Connects to the servers that the options name, and sets up every connection in the same way.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use redis::{
    ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, PushInfo,
    RedisConnectionInfo,
};
use rustls_pki_types::ServerName;
use tokio::sync::Notify;

use super::layout::KeyNames;
use super::options::{ConnectError, Endpoint, RedisOptions};
use super::replication_ack::Confirmation;
use super::sentinel::{self, Sentinels};
use super::transport::{Address, NewConnection, Transport};
use crate::telemetry::BreakerMeter;

/// Connects to a server of a store, and holds the settings that each connection needs. Cheap to
/// clone.
#[derive(Clone)]
pub(super) struct Connector {
    target: ConnectTarget,
    login: RedisConnectionInfo,
    transport: Transport,
    /// Longest time of a command.
    pub(super) timeout: Duration,
    /// Notified when a server with another history of writes is connected.
    pub(super) replaced: Arc<Notify>,
    /// How answers are confirmed.
    pub(super) confirmation: Confirmation,
    pub(super) breakers: BreakerMeter,
    /// The names of the store's keys and channels.
    pub(super) names: KeyNames,
}

#[derive(Clone)]
enum ConnectTarget {
    /// One server.
    Fixed(Address),
    /// The primary that the sentinels name.
    Primary(Arc<Sentinels>),
    /// Any node of a cluster.
    AnyOf(ClusterMembers),
}

/// The known servers of a cluster, in the order in which they are tried.
#[derive(Clone)]
pub(super) struct ClusterMembers(Arc<RwLock<Vec<Address>>>);

impl ClusterMembers {
    fn new(seeds: Vec<Address>) -> ClusterMembers {
        ClusterMembers(Arc::new(RwLock::new(seeds)))
    }

    /// Returns the servers that are known now.
    pub(super) fn all(&self) -> Vec<Address> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the list.
    pub(super) fn set(&self, members: Vec<Address>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = members;
    }

    /// Moves a server that doesn't answer behind the others.
    fn demote(&self, failed: &Address) {
        let mut members = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = members.iter().position(|member| member == failed) {
            let member = members.remove(at);
            members.push(member);
        }
    }
}

impl Connector {
    /// Reads the options; connects to nothing.
    ///
    /// # Errors
    /// An option is invalid.
    pub(super) fn new(options: &RedisOptions) -> Result<Connector, ConnectError> {
        let read =
            |url: &String| url.as_str().into_connection_info().map_err(|_| ConnectError::Url);
        let (infos, sentinels) = match &options.endpoint {
            Endpoint::Server(url) => (vec![read(url)?], None),
            Endpoint::Cluster(urls) => {
                (urls.iter().map(read).collect::<Result<Vec<_>, _>>()?, None)
            }
            Endpoint::Sentinel { sentinels, primary, name } => {
                let sentinels = sentinels.iter().map(read).collect::<Result<Vec<_>, _>>()?;
                (vec![read(primary)?], Some((sentinels, name)))
            }
        };
        let Some(first) = infos.first() else { return Err(ConnectError::Url) };
        let (address, uses_tls) = address_of(first)?;
        let transport = Transport::new(uses_tls, options)?;
        let target = match (&options.endpoint, sentinels) {
            (_, Some((sentinels, name))) => {
                let Some(first) = sentinels.first() else { return Err(ConnectError::Url) };
                let login = login(first);
                let addresses =
                    sentinels.iter().map(|info| address_of(info).map(|(address, _)| address));
                ConnectTarget::Primary(Arc::new(Sentinels::new(
                    addresses.collect::<Result<_, _>>()?,
                    login,
                    name.clone(),
                )))
            }
            (Endpoint::Cluster(_), None) => {
                let seeds = infos.iter().map(|info| address_of(info).map(|(address, _)| address));
                ConnectTarget::AnyOf(ClusterMembers::new(seeds.collect::<Result<_, _>>()?))
            }
            (_, None) => ConnectTarget::Fixed(address),
        };
        Ok(Connector {
            target,
            login: login(first),
            transport,
            timeout: options.timeout,
            replaced: Arc::default(),
            confirmation: Confirmation::new(options),
            breakers: options.breakers.clone(),
            names: KeyNames::new(&options.namespace).ok_or(ConnectError::Namespace)?,
        })
    }

    /// Returns a connector to this server, otherwise with the same settings.
    pub(super) fn to(&self, address: Address) -> Connector {
        Connector { target: ConnectTarget::Fixed(address), ..self.clone() }
    }

    /// Returns the servers of the cluster, if the store is in one.
    pub(super) fn members(&self) -> Option<&ClusterMembers> {
        match &self.target {
            ConnectTarget::AnyOf(members) => Some(members),
            ConnectTarget::Fixed(_) | ConnectTarget::Primary(_) => None,
        }
    }

    /// Connects to a server of the store and logs in. `pushed` receives the messages that the
    /// server sends on its own, and the end of the connection.
    ///
    /// # Errors
    /// The reason why there is no connection. The text contains no password.
    pub(super) async fn connect(
        &self,
        pushed: impl Fn(PushInfo) + Send + Sync + 'static,
    ) -> Result<NewConnection, String> {
        match &self.target {
            ConnectTarget::Fixed(address) => self.connect_to(address.clone(), pushed).await,
            ConnectTarget::Primary(sentinels) => {
                let primary = sentinels.primary(&self.transport).await?;
                let opened = self.connect_to(primary, pushed).await?;
                sentinel::require_primary(&opened, self.timeout).await?;
                Ok(opened)
            }
            ConnectTarget::AnyOf(members) => {
                let Some(address) = members.all().into_iter().next() else {
                    return Err("the cluster has no servers".into());
                };
                let opened = self.connect_to(address.clone(), pushed).await;
                if opened.is_err() {
                    members.demote(&address);
                }
                opened
            }
        }
    }

    /// Connects to the server at this address and logs in.
    ///
    /// # Errors
    /// The reason why there is no connection. The text contains no password.
    pub(super) async fn connect_to(
        &self,
        address: Address,
        pushed: impl Fn(PushInfo) + Send + Sync + 'static,
    ) -> Result<NewConnection, String> {
        self.transport.connect(address, &self.login, pushed).await
    }

    /// Returns when the sentinels name another primary than the one at `address`. Without sentinels
    /// it never returns.
    pub(super) async fn until_replaced(&self, address: &Address) {
        match &self.target {
            ConnectTarget::Primary(sentinels) => {
                sentinels.until_replaced(&self.transport, address).await;
            }
            ConnectTarget::Fixed(_) | ConnectTarget::AnyOf(_) => std::future::pending().await,
        }
    }
}

fn login(info: &ConnectionInfo) -> RedisConnectionInfo {
    let login = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    login.set_lib_name("onceward", env!("CARGO_PKG_VERSION"))
}

/// Returns the address in a URL, and whether the URL requires TLS.
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
