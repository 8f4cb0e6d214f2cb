//! Membership: the relays of a store share its partitions.
//!
//! Each relay attends with a lease, and computes its share ([`super::shares`]). It hands a
//! partition over when no attempt is under way in it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::sync::Notify;

use super::ownership::Ownership;
use super::shares::shares;
use crate::clock::Clock;
use crate::entropy::Entropy;
use crate::store::StoreError;
use crate::store::outbox::{Outbox, RelayFence};

/// Time between two renewals of the lease. A dead relay's partitions are taken within its lease and
/// two of these.
const RENEWAL: Duration = Duration::from_secs(1);

/// Partitions that a relay takes at the same time.
const TAKES_AT_ONCE: usize = 32;

/// A relay among the relays of its store.
pub(super) struct Membership {
    pub outbox: Arc<dyn Outbox>,
    pub clock: Clock,
    pub entropy: Arc<Entropy>,
    pub ownership: Arc<Ownership>,
    /// Wakes this relay when another one left.
    pub wake: Arc<Notify>,
    /// Set when this relay has new partitions. Their events must be read.
    pub gained: Arc<Notify>,
}

impl Membership {
    /// Attends until the task is dropped.
    pub async fn keep(&self) {
        let (mut members, mut is_settled, mut was_reached) = (Vec::new(), false, true);
        loop {
            if self.ownership.has_ended() {
                self.begin_term().await;
                is_settled = false;
            }
            match self.attend().await {
                Ok(present) => {
                    was_reached = true;
                    let has_lost = self.ownership.take_lost();
                    if has_lost || !is_settled || present != members {
                        is_settled = self.share().await.unwrap_or(false);
                        members = present;
                    }
                }
                Err(error) => {
                    if std::mem::take(&mut was_reached) {
                        tracing::warn!(%error, "the relay can't reach the store");
                    }
                }
            }
            tokio::select! {
                // A fixed order, so that a simulation can repeat a run.
                biased;
                () = tokio::time::sleep(RENEWAL) => {}
                () = self.wake.notified() => {}
                () = self.ownership.attempt_ended(), if !is_settled => {}
            }
        }
    }

    /// Begins a new term, after the lease has ended.
    async fn begin_term(&self) {
        let former = self.ownership.begin_term(RelayFence(self.entropy.next()));
        tracing::warn!("the relay could not renew its lease in time, and begins anew");
        // The other relays would give partitions to a relay that does not exist any more. If the
        // call fails, the store forgets it at the end of its lease.
        _ = self.outbox.leave(former).await;
    }

    /// Renews the lease. Returns all relays.
    async fn attend(&self) -> Result<Vec<RelayFence>, StoreError> {
        let (from_ms, lease) = (self.clock.boot_ms(), self.ownership.lease());
        let members = self.outbox.attend(self.ownership.fence(), lease).await?;
        if self.ownership.renew(from_ms, lease) {
            Ok(members)
        } else {
            Err(StoreError::NotApplied("the answer came after the end of the lease".into()))
        }
    }

    /// Gives its partitions to the other relays. No attempt is under way.
    pub async fn leave(&self) {
        self.ownership.set(BTreeSet::new(), BTreeSet::new());
        if let Err(error) = self.outbox.leave(self.ownership.fence()).await {
            tracing::warn!(%error, "the other relays take over when this relay's lease ends");
        }
    }

    /// Hands over and takes partitions. Returns whether this relay has exactly its share.
    async fn share(&self) -> Result<bool, StoreError> {
        let owners = self.outbox.partition_owners().await?;
        // After the owners: a relay attends before it owns. So an owner that is not among these
        // relays is gone for good, and its partition may be taken.
        let members = &self.attend().await?;
        let fence = self.ownership.fence();
        let mut share = shares(fence, members, &owners);
        let leaving = share.leaving.iter().map(|(partition, _)| *partition).collect();
        let was_given = self.ownership.set(share.owned.clone(), leaving);
        let mut is_settled = !share.waits;
        let mut leaving = BTreeSet::new();
        for (partition, next) in share.leaving {
            if self.ownership.is_running(partition) {
                leaving.insert(partition);
                is_settled = false;
            } else {
                // If the answer is lost, the next look at the owners shows the result.
                self.outbox.own_partition(partition, next, Some(fence)).await?;
                share.owned.remove(&partition);
            }
        }
        let take = |(partition, owner)| async move {
            let is_owner = self.outbox.own_partition(partition, fence, owner).await?;
            Ok::<_, StoreError>((partition, is_owner))
        };
        // Several at once: the lease must not end while a new relay takes all partitions of a slow
        // store.
        let mut takes = stream::iter(share.taken).map(take).buffered(TAKES_AT_ONCE);
        while let Some(taken) = takes.next().await {
            match taken? {
                (partition, true) => _ = share.owned.insert(partition),
                (_, false) => is_settled = false,
            }
        }
        let count = share.owned.len();
        let has_taken = self.ownership.set(share.owned, leaving);
        if was_given || has_taken {
            tracing::info!(partitions = count, relays = members.len(), "the relay has partitions");
            self.gained.notify_one();
        }
        Ok(is_settled)
    }
}
