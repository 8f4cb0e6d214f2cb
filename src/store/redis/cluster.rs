//! The nodes of a cluster: which node holds which partition, and calls that follow redirections.
//!
//! Danger: a command may be sent to a second node only if the first one surely did not run it. A
//! node that redirects a command did not run it.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use redis::{ErrorKind, Pipeline, RedisError, ServerErrorKind, Value};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::answer::{UNREADABLE, unexpected};
use super::backoff::{BACKOFF_MAX, ReconnectBackoff};
use super::connect::{ClusterMembers, Connector};
use super::connection::{CallError, Commands, ServerConnection};
use super::fault;
use super::lineage::LineageId;
use super::partition_map::{PartitionMap, owners};
use super::transport::Address;
use crate::store::StoreError;

/// Limit for the redirections that one call follows. A failover or a moving partition needs two.
const REDIRECTIONS_MAX: usize = 5;

/// Pause before a call is repeated because the cluster can't serve it at the moment.
pub(super) const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// How often the store reads the partition map although nothing seems wrong.
const REFRESH_INTERVAL: Duration = Duration::from_secs(5);

/// The nodes of a cluster. Dropping it ends its background task.
pub(super) struct Cluster {
    state: Arc<ClusterState>,
    _keeper: AbortOnDropHandle<()>,
}

struct ClusterState {
    connector: Connector,
    members: ClusterMembers,
    map: RwLock<PartitionMap>,
    /// Notified when the map may be wrong.
    stale: Notify,
    /// Notified when there is a new map.
    renewed: Notify,
    /// Why the last attempt to read the map failed.
    failure: RwLock<Option<String>>,
}

impl Cluster {
    /// Starts to read the partition map in the background.
    pub(super) fn open(connector: Connector, members: ClusterMembers) -> Cluster {
        let state = Arc::new(ClusterState {
            connector,
            members,
            map: RwLock::default(),
            stale: Notify::new(),
            renewed: Notify::new(),
            failure: RwLock::default(),
        });
        let keeper = AbortOnDropHandle::new(tokio::spawn(keep_map(state.clone())));
        Cluster { state, _keeper: keeper }
    }

    /// Returns the nodes, each with its partitions. Leaves out partitions without a node.
    pub(super) fn nodes(&self) -> Vec<(Arc<ServerConnection>, Vec<u16>)> {
        self.state.map.read().unwrap_or_else(PoisonError::into_inner).nodes()
    }

    /// Checks that every partition has a node.
    ///
    /// # Errors
    /// A partition has no node.
    pub(super) fn complete(&self) -> Result<(), StoreError> {
        if self.state.map.read().unwrap_or_else(PoisonError::into_inner).is_complete() {
            return Ok(());
        }
        match &*self.state.failure.read().unwrap_or_else(PoisonError::into_inner) {
            Some(why) => {
                Err(StoreError::NotApplied(format!("the cluster's map is not known: {why}")))
            }
            None => Err(no_owner()),
        }
    }

    /// Makes the background task read the map again.
    pub(super) fn mark_stale(&self) {
        self.state.stale.notify_one();
    }

    /// Sends commands about a partition to its node, and follows redirections. With a `lineage`,
    /// sends nothing to a node of another lineage.
    pub(super) async fn call(
        &self,
        partition: u16,
        commands: Commands<'_>,
        lineage: Option<LineageId>,
        deadline: Instant,
    ) -> Result<Value, CallError> {
        let state = &self.state;
        let mut node = self.owner(partition, deadline).await.map_err(CallError::Store)?;
        for _ in 0..REDIRECTIONS_MAX {
            let error = match node.call_strict(commands, lineage, deadline).await {
                Err(CallError::Redis(error)) => error,
                Err(CallError::Replaced) => return Err(CallError::Replaced),
                Err(error) => {
                    // Another node may have taken the place of this node.
                    self.mark_stale();
                    return Err(error);
                }
                done => return done,
            };
            match Redirection::of(&error) {
                Some(Redirection::Moved) => {
                    self.mark_stale();
                    let Some(address) = target(&error) else {
                        return Err(CallError::Redis(error));
                    };
                    node = state.adopt(partition, address);
                }
                Some(Redirection::Ask) => {
                    let Some(address) = target(&error) else {
                        return Err(CallError::Redis(error));
                    };
                    match state.call_asking(&state.node(address), commands, deadline).await {
                        Err(CallError::Redis(error)) if Redirection::of(&error).is_some() => {
                            pause(error, deadline).await?
                        }
                        done => return done,
                    }
                }
                Some(Redirection::Later) => {
                    self.mark_stale();
                    pause(error, deadline).await?;
                    node = self.owner(partition, deadline).await.map_err(CallError::Store)?;
                }
                None => {
                    if fault::is_transport(&error) {
                        self.mark_stale();
                    }
                    return Err(CallError::Redis(error));
                }
            }
        }
        Err(CallError::Store(StoreError::NotApplied(
            "the cluster's nodes send a command from one to the other".into(),
        )))
    }

    /// Returns the node of a partition. After the start, waits for the first map.
    async fn owner(
        &self,
        partition: u16,
        deadline: Instant,
    ) -> Result<Arc<ServerConnection>, StoreError> {
        loop {
            let renewed = self.state.renewed.notified();
            let known = {
                let map = self.state.map.read().unwrap_or_else(PoisonError::into_inner);
                map.owner(partition).map(|(_, node)| node).ok_or(map.is_empty())
            };
            match known {
                Ok(node) => return Ok(node),
                Err(is_first) => {
                    self.mark_stale();
                    if !is_first || timeout_at(deadline, renewed).await.is_err() {
                        return Err(no_owner());
                    }
                }
            }
        }
    }
}

fn no_owner() -> StoreError {
    StoreError::NotApplied("no node of the cluster is known to hold this partition".into())
}

/// Waits before a command is sent again. Returns the error if the deadline comes first.
async fn pause(error: RedisError, deadline: Instant) -> Result<(), CallError> {
    if Instant::now() + RETRY_PAUSE >= deadline {
        return Err(CallError::Redis(error));
    }
    sleep(RETRY_PAUSE).await;
    Ok(())
}

/// How a node redirects a command that it did not run.
enum Redirection {
    /// Another node holds the partition.
    Moved,
    /// Another node may hold the partition for this one command.
    Ask,
    /// Try again.
    Later,
}

impl Redirection {
    fn of(error: &RedisError) -> Option<Redirection> {
        match error.kind() {
            ErrorKind::Server(ServerErrorKind::Moved) => Some(Redirection::Moved),
            ErrorKind::Server(ServerErrorKind::Ask) => Some(Redirection::Ask),
            ErrorKind::Server(ServerErrorKind::TryAgain | ServerErrorKind::ClusterDown) => {
                Some(Redirection::Later)
            }
            _ => None,
        }
    }
}

/// Returns the address in a redirection.
fn target(error: &RedisError) -> Option<Address> {
    let (host, port) = error.redirect_node()?.0.rsplit_once(':')?;
    (!host.is_empty()).then_some(Address::Tcp(host.to_owned(), port.parse().ok()?))
}

impl ClusterState {
    /// Returns the connection to a node, and opens one if necessary.
    fn node(&self, address: Address) -> Arc<ServerConnection> {
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        map.node_or_insert(&address, || ServerConnection::open(self.connector.to(address.clone())))
    }

    /// Assigns a partition to the node at this address.
    fn adopt(&self, partition: u16, address: Address) -> Arc<ServerConnection> {
        let node = self.node(address.clone());
        self.map.write().unwrap_or_else(PoisonError::into_inner).assign(partition, address);
        node
    }

    /// Sends commands to a node that is about to get their partition.
    async fn call_asking(
        &self,
        node: &ServerConnection,
        commands: Commands<'_>,
        deadline: Instant,
    ) -> Result<Value, CallError> {
        let mut pipeline = Pipeline::new();
        pipeline.cmd("ASKING");
        match commands {
            Commands::One(command) => _ = pipeline.add_command(command.clone()),
            // ASKING is valid for one command, so each command needs its own.
            Commands::Many(commands) => commands.cmd_iter().enumerate().for_each(|(n, command)| {
                if n > 0 {
                    pipeline.cmd("ASKING");
                }
                pipeline.add_command(command.clone());
            }),
        }
        // No lineage is required: the partition's epoch moves with its records, and the scripts
        // compare it.
        let Value::Array(values) =
            node.call_strict(Commands::Many(&pipeline), None, deadline).await?
        else {
            return Err(CallError::Store(unexpected()));
        };
        let mut answers = values.into_iter().skip(1).step_by(2);
        match commands {
            Commands::One(_) => answers.next().ok_or_else(|| CallError::Store(unexpected())),
            Commands::Many(_) => Ok(Value::Array(answers.collect())),
        }
    }

    /// Reads the partition map from one node.
    async fn read_map(&self, address: &Address) -> Result<Vec<Option<Address>>, String> {
        let opened = self.connector.connect_to(address.clone(), |_| {}).await?;
        let mut connection = opened.connection;
        let mut query = Pipeline::new();
        query.cmd("CLUSTER").arg("INFO").cmd("CLUSTER").arg("SLOTS");
        let answer =
            timeout(self.connector.timeout, query.query_async::<(Value, Value)>(&mut connection))
                .await;
        // The client library drops the text of a pipeline's error. That text would name the
        // command.
        let failed = |error| {
            fault::denial(&error, "CLUSTER").unwrap_or_else(|| fault::of_connecting(&error))
        };
        let (info, slots) = answer.map_err(|_| "no answer in time".to_owned())?.map_err(failed)?;
        let info: String = redis::from_redis_value(info).map_err(|_| UNREADABLE)?;
        if !info.contains("cluster_state:ok") {
            return Err("it reports that the cluster is down".into());
        }
        owners(slots, address).ok_or_else(|| UNREADABLE.into())
    }

    /// Reads the partition map from the first node that answers.
    async fn discover(&self) -> Result<(), String> {
        let mut why = String::from("the cluster has no servers");
        for address in self.members.all() {
            match self.read_map(&address).await {
                Ok(owners) => {
                    self.apply(owners);
                    return Ok(());
                }
                Err(error) => why = format!("{address}: {error}"),
            }
        }
        Err(why)
    }

    fn apply(&self, owners: Vec<Option<Address>>) {
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        map.replace(owners, |address| ServerConnection::open(self.connector.to(address.clone())));
        let mut members = map.addresses();
        drop(map);
        // Former nodes come last. If all other nodes are gone, the store can still ask them.
        let former: Vec<Address> =
            self.members.all().into_iter().filter(|member| !members.contains(member)).collect();
        members.extend(former.into_iter().take(FORMER_MEMBERS_MAX));
        self.members.set(members);
        self.renewed.notify_waiters();
    }
}

/// Limit for the remembered nodes that hold no partition.
const FORMER_MEMBERS_MAX: usize = 64;

/// Reads the map again and again: soon after it seems wrong, otherwise every [`REFRESH_INTERVAL`].
async fn keep_map(state: Arc<ClusterState>) {
    let mut backoff = ReconnectBackoff::default();
    let mut failing = false;
    loop {
        let discovered = state.discover().await;
        *state.failure.write().unwrap_or_else(PoisonError::into_inner) =
            discovered.as_ref().err().cloned();
        match discovered {
            Ok(()) => {
                if failing {
                    tracing::info!("the cluster's map is known again");
                }
                failing = false;
            }
            Err(reason) => {
                if !failing {
                    tracing::warn!(reason, "no node answers with the cluster's map");
                }
                failing = true;
                state.stale.notify_one();
            }
        }
        let begun = Instant::now();
        let is_stale = timeout(REFRESH_INTERVAL, state.stale.notified()).await.is_ok();
        if begun.elapsed() >= BACKOFF_MAX {
            backoff = ReconnectBackoff::default();
        }
        if is_stale {
            // A failover takes seconds, and every call during it makes the map stale.
            backoff.wait().await;
        }
    }
}
