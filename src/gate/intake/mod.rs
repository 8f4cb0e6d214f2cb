//! Intake: identifies the operation that a request asks for, before anything is claimed.
//!
//! Each input is parsed once. [`Intake::from_head`] reads only the header fields. If they already
//! show that a request is refused or unprotected, its body needs no buffer. [`Intake::with_body`]
//! reads the rest.

use std::collections::BTreeMap;

use http::HeaderMap;
use http::request::Parts;

use crate::engine::{KeyPart, KeySource, Mode, Policy, ScopeRule, Side, any_chosen, chosen};
use crate::key::{
    BodyHash, Caller, Fingerprint, Hashing, Key, OperationParts, Reading, Scope, Slot, Space,
    TenantId, fingerprint,
};
use crate::refusal::Refusal;

pub(super) mod body;
pub(super) mod caller;
pub(super) mod content;
pub(super) mod fingerprint;
mod head;
pub(super) mod heavy_work;
mod key;
pub(super) mod scope;
pub(super) mod upstream_key;

use caller::caller;
pub use content::Content;
use content::can_decode;
use fingerprint::{body_hash, variant};
pub use key::OperationKey;
pub(super) use key::key_in_head;
use key::{DerivedKeySource, only_header, require_readable, sent_key};
pub use scope::VerifiedScope;
use scope::scope;
pub use upstream_key::keep_identifying_fields;

/// The sender of a request, as the route's rules for scopes and callers identify it.
#[derive(Debug, Clone, Copy)]
pub struct Requester {
    scope: Scope,
    caller: Caller,
    tenant: TenantId,
}

impl Requester {
    /// Determines the sender of a request from its header fields.
    ///
    /// # Errors
    /// The scope or the caller is missing, invalid or ambiguous.
    pub fn from_head(
        policy: &Policy,
        headers: &HeaderMap,
        verified: Option<&VerifiedScope>,
    ) -> Result<Requester, Refusal> {
        let scope = scope(&policy.scope, headers, verified)?;
        let caller = caller(&policy.caller, &scope, headers)?;
        // Without a scope each caller is a tenant. Otherwise a key derived only from an order
        // number would be the same for all callers.
        let tenant = if policy.scope == ScopeRule::Shared { caller.into() } else { scope.into() };
        Ok(Requester { scope, caller, tenant })
    }

    /// Returns the caller, in the form before it is hashed with a secret.
    pub(super) fn caller(&self) -> Caller {
        self.caller
    }

    /// Returns the sender's tenant.
    pub fn tenant(&self) -> TenantId {
        self.tenant
    }
}

/// The parsed head of a request that needs protection.
#[derive(Debug)]
pub struct Intake {
    /// The key, if the route takes it only from a header field.
    key: Option<Key>,
    requester: Requester,
}

impl Intake {
    /// Reads the head of a request. Returns `None` if the request is not protected: the route takes
    /// the key only from a header field, requires no key, and the field is absent.
    ///
    /// # Errors
    /// The key, the scope or the caller is missing, invalid or ambiguous, or the body has to be
    /// decoded and its coding is not supported.
    pub fn from_head(
        policy: &Policy,
        headers: &HeaderMap,
        verified: Option<&VerifiedScope>,
    ) -> Result<Option<Intake>, Refusal> {
        let key = match only_header(&policy.key) {
            Some(name) => {
                let Some(key) = key_in_head(&policy.key, name, headers)? else { return Ok(None) };
                Some(key)
            }
            None => None,
        };
        require_readable(policy, can_decode(headers))?;
        Ok(Some(Intake { key, requester: Requester::from_head(policy, headers, verified)? }))
    }

    /// Returns the intake of a request that has no key.
    pub(super) fn without_key(requester: Requester) -> Intake {
        Intake { key: None, requester }
    }

    /// Returns the sender of the request.
    pub(super) fn requester(&self) -> &Requester {
        &self.requester
    }

    /// Identifies a request by this random key. No other request has the key, so the operation has
    /// no record under another hashing secret.
    pub(super) fn under_key(
        self,
        policy: &Policy,
        hashing: &Hashing,
        parts: &Parts,
        content: &Content,
        key: [u8; 32],
    ) -> Identified {
        let request = RequestReader::new(policy, parts, content);
        let mut identified = request.identify(hashing, OperationKey::Derived(key), &self.requester);
        identified.operation.others.clear();
        identified
    }

    /// Identifies the operation of the request, after its body was read. Returns `None` if the
    /// route also looks for the key in the body, requires no key, and the request has no key.
    ///
    /// # Errors
    /// The key is missing, invalid or ambiguous, or the body can't be read.
    pub fn with_body(
        self,
        policy: &Policy,
        hashing: &Hashing,
        parts: &Parts,
        content: &Content,
    ) -> Result<Option<Identified>, Refusal> {
        require_readable(policy, content.is_decoded())?;
        let request = RequestReader::new(policy, parts, content);
        let key = match (&policy.key.source, self.key) {
            (KeySource::Derived(wanted), _) => {
                request.derived_key(wanted, self.requester.tenant)?
            }
            (KeySource::Sent { .. }, Some(key)) => OperationKey::Sent(key),
            (KeySource::Sent { .. }, None) => match request.sent_key()? {
                Some(key) => OperationKey::Sent(key),
                None => return Ok(None),
            },
        };
        Ok(Some(request.identify(hashing, key, &self.requester)))
    }
}

/// Identifies a request in shadow mode, after its whole body was read. Returns `None` if the
/// request has no key and the route requires no key.
///
/// An error in `requester` does not matter if the request has no key: such a request needs no
/// scope.
///
/// # Errors
/// The refusal that the request would get under enforcement.
pub fn identify_watched(
    policy: &Policy,
    hashing: &Hashing,
    requester: &Result<Requester, Refusal>,
    parts: &Parts,
    content: &Content,
) -> Result<Option<Identified>, Refusal> {
    require_readable(policy, content.is_decoded())?;
    let request = RequestReader::new(policy, parts, content);
    let requester = || requester.as_ref().map_err(Clone::clone);
    let key = match &policy.key.source {
        KeySource::Derived(wanted) => request.derived_key(wanted, requester()?.tenant)?,
        KeySource::Sent { .. } => match request.sent_key()? {
            Some(key) => OperationKey::Sent(key),
            None => return Ok(None),
        },
    };
    Ok(Some(request.identify(hashing, key, requester()?)))
}

/// A request with a key, and the operation that it asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identified {
    /// The key.
    pub key: OperationKey,
    /// The operation.
    pub operation: RequestedOperation,
}

/// The operation that a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestedOperation {
    /// Where the operation's record is stored.
    pub slot: Slot,
    /// The caller, as the record stores it.
    pub caller: Caller,
    /// The fingerprint of the request.
    pub fingerprint: Fingerprint,
    /// The tenant of the operation. The operation counts against this tenant's quota.
    pub tenant: TenantId,
    /// Slot and caller under each hashing secret that new records don't use: an earlier secret, or
    /// the next one.
    pub others: Vec<(Slot, Caller)>,
    /// The members of the request that the route has chosen for events.
    pub fields: BTreeMap<String, String>,
}

/// A request with its body in memory.
struct RequestReader<'r> {
    policy: &'r Policy,
    parts: &'r Parts,
    body: Reading<'r>,
    body_hash: BodyHash<'r>,
}

impl<'r> RequestReader<'r> {
    fn new(policy: &'r Policy, parts: &'r Parts, content: &'r Content) -> RequestReader<'r> {
        let body_hash = match body_hash(&policy.fingerprint, &parts.headers) {
            BodyHash::None => BodyHash::None,
            by_rule if content.is_decoded() => by_rule,
            // Bodies that can't be decoded are compared byte by byte.
            _ => BodyHash::Raw,
        };
        RequestReader { policy, parts, body: Reading::new(content.bytes()), body_hash }
    }

    fn sent_key(&self) -> Result<Option<Key>, Refusal> {
        sent_key(&self.policy.key, &self.parts.headers, &self.body)
    }

    fn derived_key(&self, wanted: &[KeyPart], tenant: TenantId) -> Result<OperationKey, Refusal> {
        let RequestReader { policy, parts, ref body, body_hash } = *self;
        let source = DerivedKeySource { policy, tenant, parts, body, body_hash };
        source.derive(wanted).map(OperationKey::Derived)
    }

    fn identify(self, hashing: &Hashing, key: OperationKey, requester: &Requester) -> Identified {
        let RequestReader { policy, parts, body, body_hash } = self;
        let is_shadow = policy.mode == Mode::Shadow;
        let space = if is_shadow { Space::Shadow } else { Space::Enforced };
        // Shadow mode writes no events, so it needs no fields.
        let fields = if !is_shadow && any_chosen(&policy.fields, Side::Request) {
            body.document()
                .map(|document| chosen(&policy.fields, Side::Request, document))
                .unwrap_or_default()
        } else {
            BTreeMap::new()
        };
        let (path, query) = (parts.uri.path(), parts.uri.query());
        let fingerprint = fingerprint(parts.method.as_str(), path, query, body, body_hash);
        let variant = variant(policy, path, Some(&fingerprint));
        let named = OperationParts {
            space,
            route: &policy.route,
            scope: &requester.scope,
            key: key.as_bytes(),
            variant: &variant,
        };
        let (slot, caller) = hashing.identity(&named, requester.caller);
        let others = hashing.other_identities(&named, requester.caller);
        let tenant = requester.tenant;
        let operation = RequestedOperation { slot, caller, fingerprint, tenant, others, fields };
        Identified { key, operation }
    }
}

#[cfg(test)]
mod tests;
