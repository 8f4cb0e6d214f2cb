//! The share of a relay: which partitions it keeps, hands over and takes. A pure function.
//!
//! The relays in order of their fences share the partitions in turn, so every relay computes the
//! same shares. A relay takes a partition if the owner is not among the relays.

use std::collections::BTreeSet;

use crate::store::outbox::RelayFence;

/// What a relay does with the partitions after a look at their owners.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Share {
    /// Owned partitions.
    pub owned: BTreeSet<u16>,
    /// Owned partitions that another relay gets, with that relay.
    pub leaving: Vec<(u16, RelayFence)>,
    /// Partitions to take, with their present owners.
    pub taken: Vec<(u16, Option<RelayFence>)>,
    /// Whether a partition of this relay's share has another living owner.
    pub waits: bool,
}

/// Returns what the relay `own` does. `owners` are the owners of the partitions, and `members` the
/// relays that attend, in order.
///
/// Danger: read `members` after `owners`. A relay attends before it owns, so an owner that is not
/// among later members is gone for good. Otherwise it may be a relay that has just come.
pub fn shares(own: RelayFence, members: &[RelayFence], owners: &[Option<RelayFence>]) -> Share {
    let mut share = Share::default();
    for (partition, owner) in (0..).zip(owners) {
        let next = members.get(usize::from(partition) % members.len().max(1)).copied();
        let next = next.unwrap_or(own);
        match owner {
            Some(owner) if *owner == own => {
                share.owned.insert(partition);
                if next != own {
                    share.leaving.push((partition, next));
                }
            }
            _ if next != own => {}
            Some(owner) if members.contains(owner) => share.waits = true,
            owner => share.taken.push((partition, *owner)),
        }
    }
    share
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: RelayFence = RelayFence(1);
    const B: RelayFence = RelayFence(2);
    const DEAD: RelayFence = RelayFence(9);

    #[test]
    fn a_lone_relay_takes_everything_that_no_living_relay_owns() {
        let share = shares(A, &[A], &[None, Some(DEAD), Some(A)]);
        let taken = vec![(0, None), (1, Some(DEAD))];
        assert_eq!(share, Share { owned: BTreeSet::from([2]), taken, ..Share::default() });
    }

    #[test]
    fn two_relays_share_evenly_and_only_the_owner_hands_over() {
        let owners = [Some(A); 4];
        let of_a = shares(A, &[A, B], &owners);
        assert_eq!(of_a.leaving, [(1, B), (3, B)]);
        assert_eq!((of_a.taken, of_a.waits), (vec![], false));
        let of_b = shares(B, &[A, B], &owners);
        assert_eq!((of_b.owned, of_b.taken, of_b.waits), (BTreeSet::new(), vec![], true));
    }
}
