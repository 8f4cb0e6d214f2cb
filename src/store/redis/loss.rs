//! Detects that a partition's server may have lost records.

use super::client::Redis;
use super::connection::{CallError, Commands};
use super::epochs::{ClaimBasis, epoch_of};
use crate::store::StoreError;

impl Redis {
    /// Whether a partition's server may have lost records since `before` was the basis of the
    /// partition's claims. If so, the basis has changed since then, or doesn't match the server
    /// now.
    pub(super) async fn may_have_lost(
        &self,
        partition: u16,
        before: Option<ClaimBasis>,
    ) -> Result<bool, StoreError> {
        Ok(self.epochs.current(partition) != before || self.is_basis_lost(partition).await?)
    }

    /// Whether a partition's claims have no basis, or a basis that doesn't match the server. The
    /// server then has another lineage or another epoch. Invalidates such a basis.
    pub(super) async fn is_basis_lost(&self, partition: u16) -> Result<bool, StoreError> {
        let Some(basis) = self.epochs.current(partition) else { return Ok(true) };
        let mut get = redis::cmd("GET");
        get.arg(self.names.epoch_key(partition));
        let (commands, lineage) = (Commands::One(&get), Some(basis.lineage_id));
        // The lineage is compared, too: a promoted replica has the epoch, and may still lack
        // records.
        let is_lost = match self.servers.call(partition, commands, lineage, self.deadline()).await {
            Ok(answer) => epoch_of(&answer) != Some(basis.epoch),
            Err(CallError::Replaced) => true,
            Err(error) => return Err(error.into()),
        };
        if is_lost {
            self.epochs.invalidate(partition, &basis);
        }
        Ok(is_lost)
    }
}
