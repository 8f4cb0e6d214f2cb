//! The tenant of an operation: the unit that quotas count and that event log entries are grouped by.

/// The hash of an operation's scope; of its caller, where the route has no scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId([u8; 32]);

impl TenantId {
    /// Takes the hash of a scope or a caller.
    pub const fn from_bytes(bytes: [u8; 32]) -> TenantId {
        TenantId(bytes)
    }

    /// Returns the hash.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}
