//! The slots of resources. They are separate from the slots of operations: each hash has a purpose
//! of its own.

use super::{PartHasher, SLOT_BYTES, Slot, Space};

impl Slot {
    /// Computes the slot for the lock of a resource, from the name of the upstream, the path as
    /// [`identity`](super::path::identity) writes it, and the fields that name the tenant.
    ///
    /// The slot does not depend on a hashing secret. While secrets are rotated, gateways use
    /// different secrets for new records, and two locks of one resource would protect nothing.
    pub fn of_resource<'f>(
        upstream: &str,
        path: &[u8],
        tenant: impl IntoIterator<Item = (&'f str, &'f [u8])>,
    ) -> Slot {
        let mut hasher = PartHasher::new("resource:1");
        hasher.part(upstream.as_bytes()).part(path);
        for (name, value) in tenant {
            hasher.part(name.as_bytes()).part(value);
        }
        Slot::of_digest(&hasher.finish())
    }

    /// Returns the slot for the versions of the resource in this slot.
    pub fn of_versions(&self) -> Slot {
        let mut hasher = PartHasher::new("resource versions:1");
        hasher.part(self.hash());
        Slot::of_digest(&hasher.finish())
    }

    fn of_digest(digest: &[u8; 32]) -> Slot {
        let mut hash = [0; SLOT_BYTES];
        hash.copy_from_slice(&digest[..SLOT_BYTES]);
        Slot { space: Space::Enforced, hash }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::path::{PathCase, identity};

    fn resource(upstream: &str, path: &str, tenant: &[(&str, &[u8])]) -> Slot {
        let path = identity(path, PathCase::Sensitive);
        Slot::of_resource(upstream, &path, tenant.iter().copied())
    }

    #[test]
    fn all_spellings_of_a_path_are_one_resource() {
        let slot = resource("upstream", "/v1/subscriptions/a-7", &[]);
        for path in ["/v1/subscriptions/a-7/", "/v1/subscriptions/%61-7", "/v1/subscriptions/a%2D7"]
        {
            assert_eq!(resource("upstream", path, &[]), slot, "{path}");
        }
    }

    #[test]
    fn another_upstream_path_or_tenant_is_another_resource() {
        let slot = resource("upstream", "/a", &[("x-tenant", b"1")]);
        for other in [
            resource("billing", "/a", &[("x-tenant", b"1")]),
            resource("upstream", "/b", &[("x-tenant", b"1")]),
            resource("upstream", "/A", &[("x-tenant", b"1")]),
            resource("upstream", "/a", &[("x-tenant", b"2")]),
            resource("upstream", "/a", &[]),
            slot.of_versions(),
        ] {
            assert_ne!(other, slot);
        }
    }
}
