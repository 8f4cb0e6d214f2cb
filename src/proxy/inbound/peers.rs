//! Connections by client address, and the permit of an open connection.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::OwnedSemaphorePermit;

use crate::gate::AddressShare;

/// Counts connections by client address. Cheap to clone.
#[derive(Clone, Default)]
pub(in crate::proxy) struct Peers(Arc<Mutex<PeerTable>>);

#[derive(Default)]
struct PeerTable {
    peers: HashMap<IpAddr, PeerEntry>,
    /// If there are more addresses than this, the ones without connections and requests are
    /// removed.
    forget_at: usize,
}

/// Smallest value of `forget_at`.
const KEPT_MIN: usize = 64;

/// Returns the address under which a client counts. An IPv6 address counts as its network of 64
/// bits, because a client with one address has all of that network (RFC 4291, section 2.5.4). An
/// IPv4 address in IPv6 form counts as itself.
fn counted_as(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address => address,
    }
}

/// An address that has connections, or had a share of the common limits at the last check.
#[derive(Default)]
struct PeerEntry {
    connections: usize,
    share: Arc<AddressShare>,
}

/// Permit for one connection of an address; dropping it gives the permit back.
pub(in crate::proxy) struct PeerPermit {
    peers: Peers,
    address: IpAddr,
    share: Arc<AddressShare>,
}

impl Peers {
    /// Takes a permit for one more connection of an address. Returns `None` if the address has
    /// `limit` connections.
    pub fn enter(&self, address: IpAddr, limit: usize) -> Option<PeerPermit> {
        let address = counted_as(address);
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let PeerTable { peers, forget_at } = &mut *table;
        if peers.len() > *forget_at {
            peers.retain(|_, peer| peer.connections > 0 || !peer.share.is_idle());
            *forget_at = KEPT_MIN.max(2 * peers.len());
        }
        let peer = peers.entry(address).or_default();
        if peer.connections >= limit {
            return None;
        }
        peer.connections += 1;
        Some(PeerPermit { peers: self.clone(), address, share: peer.share.clone() })
    }
}

impl Drop for PeerPermit {
    fn drop(&mut self) {
        let mut table = self.peers.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(peer) = table.peers.get_mut(&self.address) else { return };
        peer.connections -= 1;
        // An attempt may last longer than its client's connection. So the share of the address is
        // kept: otherwise the address could reset it with new connections. `enter` removes the
        // share later.
        if peer.connections == 0 && peer.share.is_idle() {
            table.peers.remove(&self.address);
        }
    }
}

/// Permit for an accepted connection. It counts in the total of connections, and in the connections
/// of its address.
pub(in crate::proxy) struct ConnectionPermit {
    peer: PeerPermit,
    gauge: Gauge,
    _permit: OwnedSemaphorePermit,
}

impl ConnectionPermit {
    /// Counts a connection in the gauge.
    pub fn new(permit: OwnedSemaphorePermit, peer: PeerPermit, gauge: Gauge) -> ConnectionPermit {
        gauge.inc();
        ConnectionPermit { peer, gauge, _permit: permit }
    }

    /// Counts the connection for another address, the address of the client behind a proxy. If that
    /// address has `limit` connections, returns `false` and changes nothing.
    pub fn move_to(&mut self, address: IpAddr, limit: usize) -> bool {
        let Some(peer) = self.peer.peers.enter(address, limit) else { return false };
        self.peer = peer;
        true
    }

    /// Returns the share of the connection's address in the common limits.
    pub fn share(&self) -> Arc<AddressShare> {
        self.peer.share.clone()
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_of_ipv6_is_one_address_and_a_mapped_one_is_itself() {
        let counted = |text: &str| counted_as(text.parse().unwrap()).to_string();
        for (address, counts_as) in [
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            ("2001:db8:1:2:ffff::", "2001:db8:1:2::"),
            ("2001:db8:1:3::", "2001:db8:1:3::"),
            ("192.0.2.7", "192.0.2.7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
        ] {
            assert_eq!(counted(address), counts_as);
        }
        let peers = Peers::default();
        let first = peers.enter("2001:db8::1".parse().unwrap(), 1);
        assert!(first.is_some() && peers.enter("2001:db8::2".parse().unwrap(), 1).is_none());
    }

    #[test]
    fn an_address_is_forgotten_when_it_has_no_connections_and_no_share() {
        let peers = Peers::default();
        let address = |n: u8| IpAddr::from([10, 0, 0, n]);
        let (first, second) = (peers.enter(address(0), 2), peers.enter(address(0), 2));
        assert!(first.is_some() && second.is_some() && peers.enter(address(0), 2).is_none());
        drop((first, second));
        for n in 0..200 {
            drop(peers.enter(address(n), 1));
        }
        assert!(peers.0.lock().unwrap().peers.is_empty());
    }
}
