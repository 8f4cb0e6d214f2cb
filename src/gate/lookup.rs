//! Look-ups for an operator: one operation by a client's key and scope, or all operations of a
//! client. The gate hashes the stated key and scope like those of a request, and does not store
//! them.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::header::COOKIE;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::engine::{CallerRule, KeyRule, KeySource, Mode, Policy, ScopeRule};
use crate::gate::intake::caller::{caller, is_credential};
use crate::gate::intake::fingerprint::{is_per_fingerprint, variant};
use crate::gate::intake::scope::{certificate_scope, scope, token_scope};
use crate::gate::state::Gate;
use crate::key::path::is_opaque_throughout;
use crate::key::{Caller, CookieName, Key, KeyError, OperationParts, Scope, Slot, Space, TenantId};

/// The name of a token's issuer, in the values that an operator states.
const ISSUER: &str = "iss";
/// The name of a certificate's subject, in the values that an operator states.
const SUBJECT: &str = "subject";

/// Why an operation can't be looked up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// The key is malformed.
    #[error("the key {0}")]
    Key(#[from] KeyError),
    /// The route derives its keys.
    #[error(
        "the route derives its keys from requests: give the key that its upstream gets, \
         43 characters of base64url"
    )]
    Derived,
    /// A part of the scope is missing or malformed.
    #[error("the scope of this route needs {0}")]
    Scope(String),
    /// The route has no scope, and the stated values have no caller.
    #[error(
        "the route has no scope, and distinguishes clients by the first of these that they send: \
         give {0}"
    )]
    Caller(String),
    /// The route keeps one record for each fingerprint under a key, so a key does not name one
    /// record.
    #[error(
        "the route keeps a record for each request under a key: \
         search by time or by a field instead"
    )]
    PerRequest,
    /// The path is part of the route's identities, and is missing or ambiguous.
    #[error(
        "the route distinguishes operations by their path: \
         give the path of the request, such as \"/v1/payments/7\", without a query"
    )]
    Path,
    /// The route protects no operations.
    #[error("the route does not protect: records of routes in shadow mode can't be looked up")]
    Unprotected,
}

/// Returns the names of the values that are needed, besides the key, to look up an operation.
pub fn scope_names(policy: &Policy) -> Vec<String> {
    match &policy.scope {
        ScopeRule::Shared => Vec::new(),
        ScopeRule::Headers(names) => names.iter().map(HeaderName::to_string).collect(),
        ScopeRule::Cookie(name) => vec![name.as_str().to_owned()],
        ScopeRule::Token(rule) if rule.claim == ISSUER => vec![ISSUER.to_owned()],
        ScopeRule::Token(rule) => vec![ISSUER.to_owned(), rule.claim.clone()],
        ScopeRule::ClientCertificate => vec![SUBJECT.to_owned()],
    }
}

/// Returns the names of the values that are needed to look up all operations of a client. On a
/// route with a scope they are the parts of the scope. On a route without one they are the names of
/// the caller's fields; the value of the first field that the client sends is enough.
pub fn tenant_names(policy: &Policy) -> Vec<String> {
    match (&policy.scope, &policy.caller) {
        (ScopeRule::Shared, CallerRule::Headers(names)) => {
            names.iter().map(HeaderName::to_string).collect()
        }
        (ScopeRule::Shared, CallerRule::Cookie(name)) => vec![name.as_str().to_owned()],
        _ => scope_names(policy),
    }
}

impl Gate {
    /// Returns the marks that a client's operations have in the event log. A client has several
    /// marks after a rotation of hashing secrets, or if a token's claim may be a number or a text.
    /// `stated` has values for [`tenant_names`].
    pub fn tenant_marks(
        &self,
        policy: &Policy,
        stated: &BTreeMap<String, String>,
    ) -> Result<Vec<String>, LookupError> {
        if policy.mode == Mode::Off {
            return Err(LookupError::Unprotected);
        }
        let hashing = &self.settings.hashing;
        let tenants = tenants(policy, stated)?;
        Ok(tenants.iter().flat_map(|tenant| hashing.tenant_marks(tenant)).collect())
    }

    /// Returns the slots in which an operation with this key and scope may be stored: one for each
    /// hashing secret, beginning with the secret for new records. `path` matters only if
    /// [`Policy::by_path`] is set. `stated` has a value for each of [`scope_names`].
    pub fn slots_of(
        &self,
        policy: &Policy,
        key: &str,
        path: &str,
        stated: &BTreeMap<String, String>,
    ) -> Result<Vec<Slot>, LookupError> {
        if policy.mode != Mode::Enforce {
            return Err(LookupError::Unprotected);
        }
        if is_per_fingerprint(policy) {
            return Err(LookupError::PerRequest);
        }
        if policy.by_path && !(path.starts_with('/') && is_opaque_throughout(path)) {
            return Err(LookupError::Path);
        }
        let key = key_bytes(&policy.key, key)?;
        let variant = variant(policy, path, None);
        let mut slots = Vec::new();
        for scope in scopes(&policy.scope, stated)? {
            let named = OperationParts {
                space: Space::Enforced,
                route: &policy.route,
                scope: &scope,
                key: &key,
                variant: &variant,
            };
            let hashing = &self.settings.hashing;
            slots.push(hashing.identity(&named, Caller::nobody()).0);
            slots.extend(
                hashing
                    .other_identities(&named, Caller::nobody())
                    .into_iter()
                    .map(|(slot, _)| slot),
            );
        }
        Ok(slots)
    }
}

fn key_bytes(rule: &KeyRule, key: &str) -> Result<Vec<u8>, LookupError> {
    let decoded = |key: Key| key.as_str().as_bytes().to_vec();
    match &rule.source {
        KeySource::Sent { header: Some(_), .. } => {
            Ok(Key::parse(key.as_bytes(), rule.syntax, rule.max_length).map(decoded)?)
        }
        KeySource::Sent { header: None, .. } => {
            Ok(Key::from_body(key, rule.syntax, rule.max_length).map(decoded)?)
        }
        KeySource::Derived(_) => URL_SAFE_NO_PAD
            .decode(key.trim())
            .ok()
            .filter(|digest| digest.len() == 32)
            .ok_or(LookupError::Derived),
    }
}

/// Returns the tenants that the stated values may mean.
fn tenants(
    policy: &Policy,
    stated: &BTreeMap<String, String>,
) -> Result<Vec<TenantId>, LookupError> {
    if policy.scope != ScopeRule::Shared {
        return Ok(scopes(&policy.scope, stated)?.into_iter().map(TenantId::from).collect());
    }
    let mut headers = HeaderMap::new();
    if let CallerRule::Cookie(name) = &policy.caller {
        let line = cookie_line(name, stated)
            .ok_or_else(|| LookupError::Caller(format!("the cookie {}", name.as_str())))?;
        headers.append(COOKIE, line);
    }
    if let CallerRule::Headers(names) = &policy.caller {
        for name in names {
            let line = HeaderValue::from_str(field(stated, name));
            let line =
                line.map_err(|_| LookupError::Caller(format!("a field's value for {name}")))?;
            if is_credential(line.as_bytes()) {
                headers.append(name, line);
            }
        }
        if headers.is_empty() {
            return Err(LookupError::Caller(tenant_names(policy).join(" or ")));
        }
    }
    let caller = caller(&policy.caller, &Scope::shared(), &headers)
        .map_err(|_| LookupError::Caller(tenant_names(policy).join(" or ")))?;
    Ok(vec![caller.into()])
}

/// Returns the stated value of a header field. The name matches in any letter case. Empty if no
/// value is stated.
fn field<'s>(stated: &'s BTreeMap<String, String>, name: &HeaderName) -> &'s str {
    let mut found = stated.iter().filter(|(stated, _)| stated.eq_ignore_ascii_case(name.as_str()));
    found.next().map_or("", |(_, value)| value.trim())
}

/// Returns the `Cookie` line of a client with the stated value of this cookie; `None` if no cookie
/// can have that value.
fn cookie_line(name: &CookieName, stated: &BTreeMap<String, String>) -> Option<HeaderValue> {
    let value = stated.get(name.as_str()).map_or("", |value| value.trim());
    let valid = !value.is_empty() && !value.contains(';');
    valid.then(|| HeaderValue::from_str(&format!("{}={value}", name.as_str())).ok()).flatten()
}

/// Returns the scopes that the stated values may mean. A token gives two scopes, because the values
/// don't show whether the claim is a number or a text.
fn scopes(rule: &ScopeRule, stated: &BTreeMap<String, String>) -> Result<Vec<Scope>, LookupError> {
    let needed = |what: &str| LookupError::Scope(what.to_owned());
    let value = |name: &str| stated.get(name).map_or("", |value| value.trim());
    let required = |name: &str| {
        Some(value(name)).filter(|value| !value.is_empty()).ok_or_else(|| needed(name))
    };
    match rule {
        ScopeRule::Shared => Ok(vec![Scope::shared()]),
        ScopeRule::Headers(names) => {
            let mut headers = HeaderMap::new();
            for name in names {
                let value = Some(field(stated, name)).filter(|value| !value.is_empty());
                let line = HeaderValue::from_str(value.ok_or_else(|| needed(name.as_str()))?);
                headers.append(
                    name,
                    line.map_err(|_| needed(&format!("a field's value for {name}")))?,
                );
            }
            let scope = scope(rule, &headers, None).map_err(|_| needed("its header fields"))?;
            Ok(vec![scope])
        }
        ScopeRule::Cookie(name) => {
            let line = cookie_line(name, stated)
                .ok_or_else(|| needed(&format!("the cookie {}", name.as_str())))?;
            let headers = HeaderMap::from_iter([(COOKIE, line)]);
            Ok(vec![scope(rule, &headers, None).map_err(|_| needed("its cookie"))?])
        }
        ScopeRule::Token(token) => {
            // A token may have no issuer.
            let (issuer, claim) = (value(ISSUER), required(&token.claim)?);
            let of_kind = |is_number| token_scope(token, issuer, claim, is_number);
            Ok([false, true].map(of_kind).into())
        }
        ScopeRule::ClientCertificate => {
            let subject = STANDARD.decode(required(SUBJECT)?);
            let subject =
                subject.map_err(|_| needed("the subject of the certificate, as DER in base64"))?;
            Ok(vec![certificate_scope(&subject)])
        }
    }
}
