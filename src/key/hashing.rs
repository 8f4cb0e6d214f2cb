//! The hash function of identities: plain SHA-256, or HMAC-SHA-256 (RFC 2104) with secrets that can
//! be rotated.
//!
//! Danger: an operation that was written under one secret and is looked up under another is not
//! found, and runs again. So new records use the first secret, and a look-up tries all secrets.

use std::fmt;
use std::sync::Arc;

use ring::hmac::{self, HMAC_SHA256};

use super::{Caller, PartHasher, SLOT_BYTES, Scope, Slot, Space, TenantId};
use crate::hex;

/// Shortest secret, in bytes: the length of the hash, so that guessing a secret is no easier than
/// guessing a hash.
pub const HASH_SECRET_BYTES_MIN: usize = 32;

/// Bytes of a check value: enough to distinguish secrets, and useless for anything else.
const CHECK_BYTES: usize = 8;

/// Bytes of a tenant's mark: enough to distinguish tenants, and short enough for a log line.
const MARK_BYTES: usize = 8;

/// Hashes identities. `Debug` shows no secret.
#[derive(Clone, Default)]
pub struct Hashing(Arc<[hmac::Key]>);

/// The secret is too short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a secret has at least {HASH_SECRET_BYTES_MIN} bytes")]
pub struct SecretError;

/// The parts of an operation's identity, before they are hashed into a [`Slot`].
#[derive(Debug, Clone, Copy)]
pub struct OperationParts<'n> {
    /// The key space.
    pub space: Space,
    /// The route's name.
    pub route: &'n str,
    /// The scope of the client.
    pub scope: &'n Scope,
    /// The key.
    pub key: &'n [u8],
    /// Empty, except where a route keeps one record per path or per fingerprint.
    pub variant: &'n [u8],
}

impl Hashing {
    /// Creates a hash function. New records use the first secret. Without secrets, the function is
    /// plain SHA-256.
    ///
    /// # Errors
    /// A secret is too short.
    pub fn under<'s>(secrets: impl IntoIterator<Item = &'s [u8]>) -> Result<Hashing, SecretError> {
        let key = |secret: &[u8]| {
            (secret.len() >= HASH_SECRET_BYTES_MIN).then(|| hmac::Key::new(HMAC_SHA256, secret))
        };
        let keys = secrets.into_iter().map(key).collect::<Option<Vec<_>>>();
        keys.map(|keys| Hashing(keys.into())).ok_or(SecretError)
    }

    /// Returns an operation's slot, and its caller as stored, under the first secret.
    pub fn identity(&self, operation: &OperationParts<'_>, caller: Caller) -> (Slot, Caller) {
        match self.0.first() {
            None => (
                Slot::of(
                    operation.space,
                    operation.route,
                    operation.scope,
                    operation.key,
                    operation.variant,
                ),
                caller,
            ),
            Some(secret) => identity(secret, operation, caller),
        }
    }

    /// Returns a caller in every form in which records may have it, one per secret.
    pub fn stored_callers(&self, caller: Caller) -> Vec<Caller> {
        if self.0.is_empty() {
            return vec![caller];
        }
        self.0.iter().map(|secret| stored_caller(secret, caller)).collect()
    }

    /// Returns slot and caller under each of the other secrets, for look-ups.
    pub fn other_identities(
        &self,
        operation: &OperationParts<'_>,
        caller: Caller,
    ) -> Vec<(Slot, Caller)> {
        self.0.iter().skip(1).map(|secret| identity(secret, operation, caller)).collect()
    }

    /// Returns the mark of a tenant: the first 16 hexadecimal digits of its hash, under the first
    /// secret if there is one. Operations of one tenant have the same mark.
    pub fn tenant_mark(&self, tenant: &TenantId) -> String {
        tenant_mark(self.0.first(), tenant)
    }

    /// Returns all marks that events may have for a tenant, one per secret: events written before a
    /// rotation keep the mark of the earlier secret.
    pub fn tenant_marks(&self, tenant: &TenantId) -> Vec<String> {
        if self.0.is_empty() {
            return vec![tenant_mark(None, tenant)];
        }
        self.0.iter().map(|secret| tenant_mark(Some(secret), tenant)).collect()
    }

    /// Returns for each secret a check value, in hexadecimal, that identifies the secret.
    pub fn checks(&self) -> Vec<String> {
        let check = |secret: &hmac::Key| {
            let signed = hmac::sign(secret, b"onceward: which secret is this");
            hex::encode(&signed.as_ref()[..CHECK_BYTES])
        };
        self.0.iter().map(check).collect()
    }
}

fn tenant_mark(secret: Option<&hmac::Key>, tenant: &TenantId) -> String {
    let signed = secret.map(|secret| {
        let mut parts = PartHasher::new("scope:keyed");
        parts.part(tenant.as_bytes());
        hmac::sign(secret, &parts.finish())
    });
    let hash = signed.as_ref().map_or(&tenant.as_bytes()[..], |signed| signed.as_ref());
    hex::encode(&hash[..MARK_BYTES])
}

/// Signs a hash of the parts. The code that makes scopes and callers hashes them without a secret.
fn identity(secret: &hmac::Key, operation: &OperationParts<'_>, caller: Caller) -> (Slot, Caller) {
    let mut parts = PartHasher::new("slot:keyed");
    parts
        .part(operation.route.as_bytes())
        .part(operation.scope.as_bytes())
        .part(operation.key)
        .part(operation.variant);
    let signed = hmac::sign(secret, &parts.finish());
    let mut hash = [0; SLOT_BYTES];
    hash.copy_from_slice(&signed.as_ref()[..SLOT_BYTES]);
    (Slot::from_hash(operation.space, hash), stored_caller(secret, caller))
}

fn stored_caller(secret: &hmac::Key, caller: Caller) -> Caller {
    let mut parts = PartHasher::new("caller:keyed");
    parts.part(caller.as_bytes());
    let mut signed = [0; 32];
    signed.copy_from_slice(hmac::sign(secret, &parts.finish()).as_ref());
    Caller::from_bytes(signed)
}

impl fmt::Debug for Hashing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hashing({} secrets)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &[u8] = &[1; 32];
    const NEW: &[u8] = &[2; 40];

    fn tenant(byte: u8) -> TenantId {
        TenantId::from_bytes([byte; 32])
    }

    fn named(route: &'static str, key: &'static [u8]) -> OperationParts<'static> {
        static SCOPE: std::sync::LazyLock<Scope> = std::sync::LazyLock::new(Scope::shared);
        OperationParts { space: Space::Enforced, route, scope: &SCOPE, key, variant: b"" }
    }

    #[test]
    fn without_secrets_nothing_changes() {
        let (hashing, caller) = (Hashing::default(), Caller::of_field("authorization", b"alice"));
        let plain = Slot::of(Space::Enforced, "payments", &Scope::shared(), b"k", b"");
        assert_eq!(hashing.identity(&named("payments", b"k"), caller), (plain, caller));
        assert_eq!(hashing.other_identities(&named("payments", b"k"), caller), []);
        assert!(hashing.checks().is_empty());
    }

    #[test]
    fn a_scopes_mark_tells_tenants_apart_and_is_another_under_a_secret() {
        let (plain, keyed) = (Hashing::default(), Hashing::under([OLD]).unwrap());
        assert_eq!(plain.tenant_mark(&tenant(0xab)), "ab".repeat(8));
        assert_eq!(keyed.tenant_mark(&tenant(1)), keyed.tenant_mark(&tenant(1)));
        assert_ne!(keyed.tenant_mark(&tenant(1)), keyed.tenant_mark(&tenant(2)));
        assert_ne!(keyed.tenant_mark(&tenant(1)), plain.tenant_mark(&tenant(1)));
        let (old, rotated) = (keyed.tenant_mark(&tenant(1)), Hashing::under([NEW, OLD]).unwrap());
        assert_eq!(
            rotated.tenant_marks(&tenant(1)),
            [rotated.tenant_mark(&tenant(1)), old],
            "marks from before a rotation are found"
        );
        assert_eq!(plain.tenant_marks(&tenant(1)), [plain.tenant_mark(&tenant(1))]);
    }

    #[test]
    fn under_a_secret_slot_and_caller_are_its_own() {
        let caller = Caller::of_field("authorization", b"alice");
        let one =
            |secret| Hashing::under([secret]).unwrap().identity(&named("payments", b"k"), caller);
        let (old, new) = (one(OLD), one(NEW));
        assert_eq!(old, one(OLD));
        let plain = Hashing::default().identity(&named("payments", b"k"), caller);
        for (a, b) in [(old, new), (old, plain), (new, plain)] {
            assert!(a.0 != b.0 && a.1 != b.1, "{a:?} {b:?}");
        }
        // This is a storage format: records written under a secret must be found for ever.
        assert_eq!(old.0.to_string(), "op_6c94da405824abcf5c7da7a07c28ac3147a25b89");
    }

    #[test]
    fn every_part_counts() {
        let hashing = Hashing::under([OLD]).unwrap();
        let slot = |named: OperationParts<'_>| hashing.identity(&named, Caller::nobody()).0;
        let usual = named("payments", b"k");
        let scope = Scope::of_fields([("x-api-key", b"alice".as_slice())]);
        let others = [
            named("refunds", b"k"),
            named("payments", b"l"),
            OperationParts { scope: &scope, ..usual },
            OperationParts { variant: b"f", ..usual },
            OperationParts { space: Space::Shadow, ..usual },
        ];
        for other in others {
            assert_ne!(slot(other), slot(usual), "{other:?}");
        }
    }

    #[test]
    fn the_first_writes_and_all_are_looked_up() {
        let caller = Caller::nobody();
        let both = Hashing::under([NEW, OLD]).unwrap();
        let one =
            |secret| Hashing::under([secret]).unwrap().identity(&named("payments", b"k"), caller);
        assert_eq!(both.identity(&named("payments", b"k"), caller), one(NEW));
        assert_eq!(both.other_identities(&named("payments", b"k"), caller), [one(OLD)]);
        assert_eq!(both.stored_callers(caller), [one(NEW).1, one(OLD).1]);
        assert_eq!(Hashing::default().stored_callers(caller), [caller]);
        assert_eq!(
            both.checks(),
            [NEW, OLD].map(|secret| Hashing::under([secret]).unwrap().checks().remove(0))
        );
    }

    #[test]
    fn a_short_secret_is_none_and_no_secret_is_shown() {
        assert_eq!(Hashing::under([OLD, &[1; 31]]).unwrap_err(), SecretError);
        assert_eq!(format!("{:?}", Hashing::under([OLD]).unwrap()), "Hashing(1 secrets)");
    }
}
