//! Which server holds which partition, and calls that find it: one server for all of them, or the nodes of a cluster.
//!
//! Danger: a command may be sent twice only where its first server is known not to have carried it out. A cluster's node
//! that redirects a command has not.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use redis::{ErrorKind, Pipeline, RedisError, ServerErrorKind, Value};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::dial::{Address, Dialer, Members};
use super::epoch::Generation;
use super::link::{Ask, Failure, Links, Pause};
use super::{fault, layout};
use crate::key::PARTITIONS;
use crate::store::StoreError;

/// Redirections that one call follows: two are what a failover or a moving partition needs.
const REDIRECTIONS_MAX: usize = 5;

/// Before a call that a cluster can't serve for the moment is sent again.
const AGAIN: Duration = Duration::from_millis(20);

/// How often the nodes are asked for the map although nothing seems wrong.
const REFRESH: Duration = Duration::from_secs(5);

/// Hash slots of a cluster, by definition.
const HASH_SLOTS: u16 = 16384;

/// The servers of a store.
pub(super) enum Servers {
    /// One holds everything.
    One(Arc<Links>),
    /// Each node holds some partitions.
    Cluster(Cluster),
}

impl Servers {
    /// Begins to connect. Must be called within a tokio runtime.
    pub(super) fn keep(dialer: Dialer) -> Servers {
        match dialer.members().cloned() {
            None => Servers::One(Arc::new(Links::keep(dialer))),
            Some(members) => Servers::Cluster(Cluster::keep(dialer, members)),
        }
    }

    /// Whether partitions are held by several servers.
    pub(super) fn is_cluster(&self) -> bool {
        matches!(self, Servers::Cluster(_))
    }

    /// Sends a command about a partition to the server that holds it. Of [`Ask::Many`], the first error is the call's.
    /// `under`: see [`Links::call`].
    pub(super) async fn call(
        &self,
        partition: u16,
        ask: Ask<'_>,
        under: Option<Generation>,
        deadline: Instant,
    ) -> Result<Value, Failure> {
        match self {
            Servers::One(links) => ask_whole(links, ask, under, deadline).await,
            Servers::Cluster(cluster) => {
                Box::pin(cluster.call(partition, ask, under, deadline)).await
            }
        }
    }

    /// The servers, each with the partitions that it holds. A partition that nobody holds is in none.
    pub(super) fn groups(&self) -> Vec<Group> {
        match self {
            Servers::One(links) => {
                vec![Group { links: links.clone(), partitions: (0..PARTITIONS).collect() }]
            }
            Servers::Cluster(cluster) => cluster.groups(),
        }
    }

    /// Whether every partition has a server.
    ///
    /// # Errors
    /// That one has none.
    pub(super) fn complete(&self) -> Result<(), StoreError> {
        match self {
            Servers::One(_) => Ok(()),
            Servers::Cluster(cluster) => cluster.complete(),
        }
    }

    /// The servers once every partition has one: at its start, a cluster's map is not known yet.
    ///
    /// # Errors
    /// That a partition still has none at the deadline.
    pub(super) async fn known(&self, deadline: Instant) -> Result<Vec<Group>, StoreError> {
        while let Err(error) = self.complete() {
            if Instant::now() >= deadline {
                return Err(error);
            }
            sleep(AGAIN).await;
        }
        Ok(self.groups())
    }

    /// A sign that a server doesn't serve what it is thought to.
    pub(super) fn suspect(&self) {
        if let Servers::Cluster(cluster) = self {
            cluster.shared.stale.notify_one();
        }
    }
}

/// A server, and the partitions that it holds.
pub(super) struct Group {
    pub links: Arc<Links>,
    pub partitions: Vec<u16>,
}

/// Sends to this server; an error among the answers is the call's. `under`: see [`Links::call`].
pub(super) async fn ask_whole(
    links: &Links,
    ask: Ask<'_>,
    under: Option<Generation>,
    deadline: Instant,
) -> Result<Value, Failure> {
    match links.call(ask, under, deadline).await.map_err(|failure| failure.naming(ask, 0))? {
        Value::Array(values) if matches!(ask, Ask::Many(_)) => {
            for (n, value) in values.iter().enumerate() {
                if let Value::ServerError(error) = value {
                    let error = RedisError::from(error.clone());
                    links.told_of(&error);
                    return Err(Failure::Answered(error).naming(ask, n));
                }
            }
            Ok(Value::Array(values))
        }
        value => Ok(value),
    }
}

/// The nodes of a cluster. Ends its work when dropped.
pub(super) struct Cluster {
    shared: Arc<Shared>,
    _keeper: AbortOnDropHandle<()>,
}

struct Shared {
    dialer: Dialer,
    members: Members,
    map: RwLock<Map>,
    /// The map may be wrong.
    stale: Notify,
    /// There is a new map.
    renewed: Notify,
    /// Why the last attempt found no map.
    failure: RwLock<Option<String>>,
}

#[derive(Default)]
struct Map {
    nodes: BTreeMap<Address, Arc<Links>>,
    /// By partition.
    owners: Vec<Option<Address>>,
}

impl Map {
    fn owner(&self, partition: u16) -> Option<(&Address, Arc<Links>)> {
        let address = self.owners.get(usize::from(partition))?.as_ref()?;
        Some((address, self.nodes.get(address)?.clone()))
    }
}

impl Cluster {
    fn keep(dialer: Dialer, members: Members) -> Cluster {
        let (map, failure) = (RwLock::default(), RwLock::default());
        let shared = Arc::new(Shared {
            dialer,
            members,
            map,
            stale: Notify::new(),
            renewed: Notify::new(),
            failure,
        });
        let keeper = AbortOnDropHandle::new(tokio::spawn(refresh(shared.clone())));
        Cluster { shared, _keeper: keeper }
    }

    fn groups(&self) -> Vec<Group> {
        let map = self.shared.map.read().unwrap_or_else(PoisonError::into_inner);
        let mut by_node: BTreeMap<&Address, Group> = BTreeMap::new();
        for partition in 0..PARTITIONS {
            if let Some((address, links)) = map.owner(partition) {
                by_node
                    .entry(address)
                    .or_insert_with(|| Group { links, partitions: Vec::new() })
                    .partitions
                    .push(partition);
            }
        }
        by_node.into_values().collect()
    }

    fn complete(&self) -> Result<(), StoreError> {
        let map = self.shared.map.read().unwrap_or_else(PoisonError::into_inner);
        let homeless = (0..PARTITIONS).any(|partition| map.owner(partition).is_none());
        if !homeless {
            return Ok(());
        }
        match &*self.shared.failure.read().unwrap_or_else(PoisonError::into_inner) {
            Some(why) => {
                Err(StoreError::NotApplied(format!("the cluster's map is not known: {why}")))
            }
            None => Err(no_owner()),
        }
    }

    async fn call(
        &self,
        partition: u16,
        ask: Ask<'_>,
        under: Option<Generation>,
        deadline: Instant,
    ) -> Result<Value, Failure> {
        let mut links = self.owner(partition, deadline).await.map_err(Failure::Refused)?;
        for _ in 0..REDIRECTIONS_MAX {
            let error = match ask_whole(&links, ask, under, deadline).await {
                Err(Failure::Answered(error)) => error,
                Err(Failure::Replaced) => return Err(Failure::Replaced),
                Err(failure) => {
                    // Another may have taken its place.
                    self.shared.stale.notify_one();
                    return Err(failure);
                }
                done => return done,
            };
            match redirection(&error) {
                Some(Redirection::Moved) => {
                    self.shared.stale.notify_one();
                    let Some(address) = target(&error) else {
                        return Err(Failure::Answered(error));
                    };
                    links = self.shared.adopt(partition, address);
                }
                Some(Redirection::Ask) => {
                    let Some(address) = target(&error) else {
                        return Err(Failure::Answered(error));
                    };
                    let answer = self.shared.visit(&self.shared.node(address), ask, deadline).await;
                    match answer {
                        Err(Failure::Answered(error)) if redirection(&error).is_some() => {
                            pause(error, deadline).await?
                        }
                        done => return done,
                    }
                }
                Some(Redirection::Later) => {
                    self.shared.stale.notify_one();
                    pause(error, deadline).await?;
                    links = self.owner(partition, deadline).await.map_err(Failure::Refused)?;
                }
                None => {
                    if fault::is_transport(&error) {
                        self.shared.stale.notify_one();
                    }
                    return Err(Failure::Answered(error));
                }
            }
        }
        Err(Failure::Refused(StoreError::NotApplied(
            "the cluster's nodes send a command from one to the other".into(),
        )))
    }

    /// Who holds a partition; at the start, waits for the map.
    async fn owner(&self, partition: u16, deadline: Instant) -> Result<Arc<Links>, StoreError> {
        loop {
            let renewed = self.shared.renewed.notified();
            let known = {
                let map = self.shared.map.read().unwrap_or_else(PoisonError::into_inner);
                map.owner(partition).map(|(_, links)| links).ok_or(map.owners.is_empty())
            };
            match known {
                Ok(links) => return Ok(links),
                Err(begins) => {
                    self.shared.stale.notify_one();
                    if !begins || timeout_at(deadline, renewed).await.is_err() {
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

/// A pause before a command is sent again; the error, if there is no time left for that.
async fn pause(error: RedisError, deadline: Instant) -> Result<(), Failure> {
    if Instant::now() + AGAIN >= deadline {
        return Err(Failure::Answered(error));
    }
    sleep(AGAIN).await;
    Ok(())
}

/// What a node of a cluster wants done with a command that it did not carry out.
enum Redirection {
    /// Another holds the partition.
    Moved,
    /// Another may, for this once.
    Ask,
    /// Try again.
    Later,
}

fn redirection(error: &RedisError) -> Option<Redirection> {
    match error.kind() {
        ErrorKind::Server(ServerErrorKind::Moved) => Some(Redirection::Moved),
        ErrorKind::Server(ServerErrorKind::Ask) => Some(Redirection::Ask),
        ErrorKind::Server(ServerErrorKind::TryAgain | ServerErrorKind::ClusterDown) => {
            Some(Redirection::Later)
        }
        _ => None,
    }
}

/// Where a redirection leads.
fn target(error: &RedisError) -> Option<Address> {
    let (host, port) = error.redirect_node()?.0.rsplit_once(':')?;
    (!host.is_empty()).then_some(Address::Tcp(host.to_owned(), port.parse().ok()?))
}

impl Shared {
    /// The links to a node, made if there are none yet.
    fn node(&self, address: Address) -> Arc<Links> {
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        map.nodes
            .entry(address.clone())
            .or_insert_with(|| Arc::new(Links::keep(self.dialer.to(address))))
            .clone()
    }

    /// The node at this address holds the partition.
    fn adopt(&self, partition: u16, address: Address) -> Arc<Links> {
        let links = self.node(address.clone());
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(owner) = map.owners.get_mut(usize::from(partition)) {
            *owner = Some(address);
        }
        links
    }

    /// Sends a command to a node that is about to get its partition.
    async fn visit(
        &self,
        links: &Links,
        ask: Ask<'_>,
        deadline: Instant,
    ) -> Result<Value, Failure> {
        let mut visit = Pipeline::new();
        visit.cmd("ASKING");
        match ask {
            Ask::One(command) => _ = visit.add_command(command.clone()),
            // ASKING is good for one command.
            Ask::Many(commands) => commands.cmd_iter().enumerate().for_each(|(n, command)| {
                if n > 0 {
                    visit.cmd("ASKING");
                }
                visit.add_command(command.clone());
            }),
        }
        // Where the partition is about to be, its epoch comes along with its records, and is compared.
        let Value::Array(values) = ask_whole(links, Ask::Many(&visit), None, deadline).await?
        else {
            return Err(Failure::Refused(super::unexpected()));
        };
        let mut answers = values.into_iter().skip(1).step_by(2);
        match ask {
            Ask::One(_) => answers.next().ok_or_else(|| Failure::Refused(super::unexpected())),
            Ask::Many(_) => Ok(Value::Array(answers.collect())),
        }
    }

    /// Asks one node for the map.
    async fn map_of(&self, address: &Address) -> Result<Vec<Option<Address>>, String> {
        let dialled = self.dialer.dial_to(address.clone(), |_| {}).await?;
        let mut connection = dialled.connection;
        let mut asked = Pipeline::new();
        asked.cmd("CLUSTER").arg("INFO").cmd("CLUSTER").arg("SLOTS");
        let answer =
            timeout(self.dialer.timeout, asked.query_async::<(Value, Value)>(&mut connection))
                .await;
        // Of a pipeline's error the client doesn't keep the text that names the command.
        let failed = |error| {
            fault::denial(&error, "CLUSTER").unwrap_or_else(|| fault::of_connecting(&error))
        };
        let (info, slots) = answer.map_err(|_| "no answer in time".to_owned())?.map_err(failed)?;
        let info: String = redis::from_redis_value(info).map_err(|_| UNREADABLE)?;
        if !info.contains("cluster_state:ok") {
            return Err("it says that the cluster is down".into());
        }
        owners(slots, address).ok_or_else(|| UNREADABLE.into())
    }

    /// Finds the map with any node.
    async fn discover(&self) -> Result<(), String> {
        let mut why = String::from("the cluster has no servers");
        for address in self.members.all() {
            match self.map_of(&address).await {
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
        let mut kept = std::mem::take(&mut map.nodes);
        for address in owners.iter().flatten() {
            if !map.nodes.contains_key(address) {
                let links = kept
                    .remove(address)
                    .unwrap_or_else(|| Arc::new(Links::keep(self.dialer.to(address.clone()))));
                map.nodes.insert(address.clone(), links);
            }
        }
        map.owners = owners;
        // Those that hold nothing any more are asked last: they may be all that is left one day.
        let mut members: Vec<Address> = map.nodes.keys().cloned().collect();
        members.extend(
            self.members
                .all()
                .into_iter()
                .filter(|member| !map.nodes.contains_key(member))
                .take(MEMBERS_MAX),
        );
        drop(map);
        self.members.set(members);
        self.renewed.notify_waiters();
    }
}

const UNREADABLE: &str = "its answer can't be read";

/// Nodes without a partition that are remembered, beside the others.
const MEMBERS_MAX: usize = 64;

/// Keeps the map.
async fn refresh(shared: Arc<Shared>) {
    let mut pause = Pause::default();
    let mut failing = false;
    loop {
        let discovered = shared.discover().await;
        *shared.failure.write().unwrap_or_else(PoisonError::into_inner) =
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
                    tracing::warn!(reason, "no node tells the cluster's map");
                }
                failing = true;
                shared.stale.notify_one();
            }
        }
        let begun = Instant::now();
        let told = timeout(REFRESH, shared.stale.notified()).await.is_ok();
        if begun.elapsed() >= super::link::PAUSE_MAX {
            pause = Pause::default();
        }
        if told {
            // A failover takes seconds, and everybody notices it.
            pause.pass().await;
        }
    }
}

/// Who holds which partition, by an answer to CLUSTER SLOTS: `[first, last, [host, port, ..], replicas ..], ..`.
fn owners(slots: Value, asked: &Address) -> Option<Vec<Option<Address>>> {
    let Value::Array(ranges) = slots else { return None };
    let mut owners = vec![None; usize::from(PARTITIONS)];
    let hash_slots: Vec<i64> = (0..PARTITIONS)
        .map(|partition| hash_slot(layout::tag(partition).as_bytes()).into())
        .collect();
    for range in ranges {
        let Value::Array(parts) = range else { return None };
        let (Some(Value::Int(first)), Some(Value::Int(last)), Some(Value::Array(node))) =
            (parts.first(), parts.get(1), parts.get(2))
        else {
            return None;
        };
        let port = match node.get(1) {
            Some(Value::Int(port)) => u16::try_from(*port).ok()?,
            _ => return None,
        };
        let host = match (node.first(), asked) {
            (Some(Value::BulkString(host)), _) if !host.is_empty() && host != b"?" => {
                String::from_utf8(host.clone()).ok()?
            }
            // The node doesn't know its own name: it is the one that was asked.
            (_, Address::Tcp(host, _)) => host.clone(),
            (_, Address::Unix(_)) => return None,
        };
        for (owner, hash_slot) in owners.iter_mut().zip(&hash_slots) {
            if (*first..=*last).contains(hash_slot) {
                *owner = Some(Address::Tcp(host.clone(), port));
            }
        }
    }
    Some(owners)
}

/// The hash slot of a key with this hash tag: CRC16 (XMODEM) modulo the number of slots, as the cluster's
/// specification says.
pub(super) fn hash_slot(tag: &[u8]) -> u16 {
    const POLYNOMIAL: u16 = 0x1021;
    let crc = tag.iter().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ POLYNOMIAL }
        })
    });
    crc % HASH_SLOTS
}
