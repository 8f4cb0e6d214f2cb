//! Connections by client address, and what one connection counts in for as long as it is open.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::OwnedSemaphorePermit;

use crate::gate::AddressShare;

/// Connections by address.
#[derive(Clone, Default)]
pub(in crate::proxy) struct Peers(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    peers: HashMap<IpAddr, Peer>,
    /// How many addresses there may be before those without connections and requests are forgotten.
    forget_at: usize,
}

/// Addresses that are always kept.
const KEPT_MIN: usize = 64;

/// What an address counts as: an IPv6 address as its network of 64 bits, since whoever has one has all of its addresses
/// (RFC 4291, section 2.5.4); an IPv4 address that is written as one of IPv6 as itself.
fn counted_as(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address => address,
    }
}

/// An address that has connections, or held something of the common limits when it was last looked at.
#[derive(Default)]
struct Peer {
    connections: usize,
    share: Arc<AddressShare>,
}

/// One connection of an address; it is counted out when this is dropped.
pub(in crate::proxy) struct PeerPlace {
    peers: Peers,
    address: IpAddr,
    share: Arc<AddressShare>,
}

impl Peers {
    /// Counts one more connection of an address, unless it has `limit` of them.
    pub fn enter(&self, address: IpAddr, limit: usize) -> Option<PeerPlace> {
        let address = counted_as(address);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Known { peers, forget_at } = &mut *known;
        if peers.len() > *forget_at {
            peers.retain(|_, peer| peer.connections > 0 || !peer.share.is_idle());
            *forget_at = KEPT_MIN.max(2 * peers.len());
        }
        let peer = peers.entry(address).or_default();
        if peer.connections >= limit {
            return None;
        }
        peer.connections += 1;
        Some(PeerPlace { peers: self.clone(), address, share: peer.share.clone() })
    }
}

impl Drop for PeerPlace {
    fn drop(&mut self) {
        let mut known = self.peers.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(peer) = known.peers.get_mut(&self.address) else { return };
        peer.connections -= 1;
        // Attempts outlive their client's connections. Their share is kept, so that an address that closes its connections
        // and comes back does not begin anew; it is forgotten later.
        if peer.connections == 0 && peer.share.is_idle() {
            known.peers.remove(&self.address);
        }
    }
}

/// An accepted connection: its place among all, and among those of its address.
pub(in crate::proxy) struct Admitted {
    peer: PeerPlace,
    gauge: Gauge,
    _place: OwnedSemaphorePermit,
}

impl Admitted {
    /// Counts a connection in.
    pub fn new(place: OwnedSemaphorePermit, peer: PeerPlace, gauge: Gauge) -> Admitted {
        gauge.inc();
        Admitted { peer, gauge, _place: place }
    }

    /// Counts the connection for another address, whose client it carries; `false`, with nothing changed, where that address
    /// has `limit` of them.
    pub fn is_for(&mut self, address: IpAddr, limit: usize) -> bool {
        let Some(peer) = self.peer.peers.enter(address, limit) else { return false };
        self.peer = peer;
        true
    }

    /// What the connection's address holds of the common limits.
    pub fn share(&self) -> Arc<AddressShare> {
        self.peer.share.clone()
    }
}

impl Drop for Admitted {
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
    fn an_address_is_forgotten_when_it_holds_nothing_any_more() {
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
