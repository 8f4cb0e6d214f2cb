//! The map of a cluster's partitions to its nodes, and how to read it from an answer to CLUSTER
//! SLOTS.

use std::collections::BTreeMap;
use std::sync::Arc;

use redis::Value;

use super::connection::ServerConnection;
use super::layout;
use super::transport::Address;
use crate::key::PARTITIONS;

/// Hash slots of a cluster, by its specification.
const HASH_SLOTS: u16 = 16384;

/// The nodes of a cluster, and the partitions that they hold. Empty until the first map is read.
#[derive(Default)]
pub(super) struct PartitionMap {
    nodes: BTreeMap<Address, Arc<ServerConnection>>,
    /// The address of each partition's node, by partition.
    owners: Vec<Option<Address>>,
}

impl PartitionMap {
    /// Whether no map was read yet.
    pub(super) fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }

    /// Whether every partition has a node.
    pub(super) fn is_complete(&self) -> bool {
        (0..PARTITIONS).all(|partition| self.owner(partition).is_some())
    }

    /// Returns the node of a partition.
    pub(super) fn owner(&self, partition: u16) -> Option<(&Address, Arc<ServerConnection>)> {
        let address = self.owners.get(usize::from(partition))?.as_ref()?;
        Some((address, self.nodes.get(address)?.clone()))
    }

    /// Returns the nodes that hold partitions, each with its partitions.
    pub(super) fn nodes(&self) -> Vec<(Arc<ServerConnection>, Vec<u16>)> {
        let mut by_node: BTreeMap<&Address, (Arc<ServerConnection>, Vec<u16>)> = BTreeMap::new();
        for partition in 0..PARTITIONS {
            if let Some((address, node)) = self.owner(partition) {
                by_node.entry(address).or_insert_with(|| (node, Vec::new())).1.push(partition);
            }
        }
        by_node.into_values().collect()
    }

    /// Returns the addresses of all nodes.
    pub(super) fn addresses(&self) -> Vec<Address> {
        self.nodes.keys().cloned().collect()
    }

    /// Returns the node at this address, and opens a connection if necessary.
    pub(super) fn node_or_insert(
        &mut self,
        address: &Address,
        open: impl FnOnce() -> ServerConnection,
    ) -> Arc<ServerConnection> {
        self.nodes.entry(address.clone()).or_insert_with(|| Arc::new(open())).clone()
    }

    /// Assigns a partition to a node.
    pub(super) fn assign(&mut self, partition: u16, address: Address) {
        if let Some(owner) = self.owners.get_mut(usize::from(partition)) {
            *owner = Some(address);
        }
    }

    /// Replaces the map. Keeps the connections of the nodes that still hold partitions.
    pub(super) fn replace(
        &mut self,
        owners: Vec<Option<Address>>,
        open: impl Fn(&Address) -> ServerConnection,
    ) {
        let mut former = std::mem::take(&mut self.nodes);
        for address in owners.iter().flatten() {
            if !self.nodes.contains_key(address) {
                let node = former.remove(address).unwrap_or_else(|| Arc::new(open(address)));
                self.nodes.insert(address.clone(), node);
            }
        }
        self.owners = owners;
    }
}

/// Reads the owner of each partition from an answer to CLUSTER SLOTS, which is
/// `[first, last, [host, port, ..], replicas ..], ..`. `answered_by` is the node that sent it.
pub(super) fn owners(slots: Value, answered_by: &Address) -> Option<Vec<Option<Address>>> {
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
        let host = match (node.first(), answered_by) {
            (Some(Value::BulkString(host)), _) if !host.is_empty() && host != b"?" => {
                String::from_utf8(host.clone()).ok()?
            }
            // A node without a configured name sends no host. Its host is the one that the query
            // was sent to.
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

/// Returns the hash slot of a key with this hash tag: CRC16 (XMODEM) modulo the number of slots, as
/// the cluster's specification defines it.
fn hash_slot(tag: &[u8]) -> u16 {
    const POLYNOMIAL: u16 = 0x1021;
    let crc = tag.iter().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ POLYNOMIAL }
        })
    });
    crc % HASH_SLOTS
}
