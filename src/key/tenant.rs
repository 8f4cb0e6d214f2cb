//! The tenant of an operation: quotas and listings group operations by it.

use super::{Caller, Scope};

/// The tenant of an operation: the hash of its scope, or of its caller on a route without a scope.
///
/// Quotas count the operations of each tenant. Events and observations contain a mark of the tenant
/// ([`Hashing::tenant_mark`](super::Hashing::tenant_mark)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId([u8; 32]);

impl TenantId {
    /// Creates the id from a hash.
    pub const fn from_bytes(hash: [u8; 32]) -> TenantId {
        TenantId(hash)
    }

    /// Returns the hash.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<Scope> for TenantId {
    fn from(scope: Scope) -> TenantId {
        TenantId(*scope.as_bytes())
    }
}

impl From<Caller> for TenantId {
    fn from(caller: Caller) -> TenantId {
        TenantId(*caller.as_bytes())
    }
}
