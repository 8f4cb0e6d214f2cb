//! The servers of a store: one server for all partitions, or the nodes of a cluster.

use std::sync::Arc;

use redis::Value;
use tokio::time::{Instant, sleep};

use super::cluster::{Cluster, RETRY_PAUSE};
use super::connect::Connector;
use super::connection::{CallError, Commands, ServerConnection};
use super::lineage::LineageId;
use crate::key::PARTITIONS;
use crate::store::StoreError;

/// The servers of a store.
pub(super) enum Servers {
    /// One server holds all partitions.
    One(Arc<ServerConnection>),
    /// Each node holds some partitions.
    Cluster(Cluster),
}

/// A server, and the partitions that it holds.
pub(super) struct ServerPartitions {
    pub server: Arc<ServerConnection>,
    pub partitions: Vec<u16>,
}

impl Servers {
    /// Starts to connect in the background. Must be called within a tokio runtime.
    pub(super) fn open(connector: Connector) -> Servers {
        match connector.members().cloned() {
            None => Servers::One(Arc::new(ServerConnection::open(connector))),
            Some(members) => Servers::Cluster(Cluster::open(connector, members)),
        }
    }

    /// Whether several servers hold the partitions.
    pub(super) fn is_cluster(&self) -> bool {
        matches!(self, Servers::Cluster(_))
    }

    /// Sends commands about a partition to its server. The first error among the answers of
    /// [`Commands::Many`] is the call's error. With a `lineage`, sends nothing to a server of
    /// another lineage.
    pub(super) async fn call(
        &self,
        partition: u16,
        commands: Commands<'_>,
        lineage: Option<LineageId>,
        deadline: Instant,
    ) -> Result<Value, CallError> {
        match self {
            Servers::One(server) => server.call_strict(commands, lineage, deadline).await,
            Servers::Cluster(cluster) => {
                Box::pin(cluster.call(partition, commands, lineage, deadline)).await
            }
        }
    }

    /// Returns the servers, each with its partitions. Leaves out partitions without a server.
    pub(super) fn groups(&self) -> Vec<ServerPartitions> {
        match self {
            Servers::One(server) => {
                let partitions = (0..PARTITIONS).collect();
                vec![ServerPartitions { server: server.clone(), partitions }]
            }
            Servers::Cluster(cluster) => {
                let nodes = cluster.nodes().into_iter();
                nodes.map(|(server, partitions)| ServerPartitions { server, partitions }).collect()
            }
        }
    }

    /// Checks that every partition has a server.
    ///
    /// # Errors
    /// A partition has no server.
    pub(super) fn complete(&self) -> Result<(), StoreError> {
        match self {
            Servers::One(_) => Ok(()),
            Servers::Cluster(cluster) => cluster.complete(),
        }
    }

    /// Returns the servers once every partition has one: a cluster's map is unknown at first.
    ///
    /// # Errors
    /// A partition still has no server at the deadline.
    pub(super) async fn wait_until_complete(
        &self,
        deadline: Instant,
    ) -> Result<Vec<ServerPartitions>, StoreError> {
        while let Err(error) = self.complete() {
            if Instant::now() >= deadline {
                return Err(error);
            }
            sleep(RETRY_PAUSE).await;
        }
        Ok(self.groups())
    }

    /// Makes the cluster read its partition map again, because a server may not hold a partition
    /// any more.
    pub(super) fn mark_stale(&self) {
        if let Servers::Cluster(cluster) = self {
            cluster.mark_stale();
        }
    }
}
