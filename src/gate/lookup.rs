//! Finds an operation by what its client knows: the key, and whose it is; or all that are theirs. Both are hashed here, as a
//! request's are, and kept nowhere.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::header::COOKIE;
use http::{Extensions, HeaderMap, HeaderName, HeaderValue};

use super::{Gate, is_per_fingerprint, is_shadow};
use crate::engine::{CallerRule, KeyRule, KeySource, Mode, Policy, ScopeRule};
use crate::gate::intake::identify::{caller, is_credential, scope, variant};
use crate::gate::intake::scope::{VerifiedScope, said_by_certificate, said_by_token};
use crate::key::path::is_opaque_throughout;
use crate::key::{Caller, CookieName, Key, KeyError, OperationParts, Scope, Slot, Space, TenantId};

/// The name under which the issuer of a token is stated.
const ISSUER: &str = "iss";
/// The name under which the subject of a certificate is stated.
const SUBJECT: &str = "subject";

/// Why nothing can be looked up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// The key is none.
    #[error("the key {0}")]
    Key(#[from] KeyError),
    /// The route makes its keys itself.
    #[error(
        "the route makes its keys out of requests: give the key that its upstream gets, 43 characters of base64url"
    )]
    Derived,
    /// A part of the scope is missing, or no value that it could have.
    #[error("the scope of this route needs {0}")]
    Scope(String),
    /// Nothing is said of who a client is where there is no scope.
    #[error(
        "the route has no scope, and tells clients apart by the first of these that they send: give {0}"
    )]
    Caller(String),
    /// There are as many records under a key as there were requests.
    #[error(
        "the route keeps a record for each request under a key: search by time or by a field instead"
    )]
    PerRequest,
    /// The path is a part of the route's identities, and is missing or could be read as another.
    #[error(
        "the route tells operations apart by their path: give the path of the request, such as \"/v1/payments/7\", without a query"
    )]
    Path,
    /// Nothing is protected there.
    #[error("the route does not protect: records of routes in shadow mode can't be looked up")]
    Unprotected,
}

/// What has to be known of whose an operation is, beside its key, to find it.
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

/// What has to be known to find all operations of a client: what its scope is made of. Where the route has no scope, the first of
/// these that its requests have.
pub fn whose_names(policy: &Policy) -> Vec<String> {
    match (&policy.scope, &policy.caller) {
        (ScopeRule::Shared, CallerRule::Headers(names)) => {
            names.iter().map(HeaderName::to_string).collect()
        }
        (ScopeRule::Shared, CallerRule::Cookie(name)) => vec![name.as_str().to_owned()],
        _ => scope_names(policy),
    }
}

impl Gate {
    /// The marks that a client's operations are told under; several after a rotation of hashing secrets, or where two claims look
    /// alike. `said` has values for [`whose_names`].
    pub fn marks_of(
        &self,
        policy: &Policy,
        said: &BTreeMap<String, String>,
    ) -> Result<Vec<String>, LookupError> {
        if policy.mode == Mode::Off {
            return Err(LookupError::Unprotected);
        }
        let hashing = &self.settings.hashing;
        Ok(whose(policy, said)?
            .iter()
            .flat_map(|whose| hashing.tenant_marks(&TenantId::from_bytes(*whose)))
            .collect())
    }

    /// Where the record of a request lies that came with this key, in this scope: under each hashing secret, the one that
    /// writes first. `path` counts only where [`Policy::by_path`]. `said` has a value for each of [`scope_names`].
    pub fn slots_of(
        &self,
        policy: &Policy,
        key: &str,
        path: &str,
        said: &BTreeMap<String, String>,
    ) -> Result<Vec<Slot>, LookupError> {
        if policy.mode == Mode::Off || is_shadow(policy) {
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
        for scope in scopes(&policy.scope, said)? {
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

/// Whose operations are meant, as the event log tells it.
fn whose(policy: &Policy, said: &BTreeMap<String, String>) -> Result<Vec<[u8; 32]>, LookupError> {
    if policy.scope != ScopeRule::Shared {
        return Ok(scopes(&policy.scope, said)?.iter().map(|scope| *scope.as_bytes()).collect());
    }
    let mut headers = HeaderMap::new();
    if let CallerRule::Cookie(name) = &policy.caller {
        let line = cookie_line(name, said)
            .ok_or_else(|| LookupError::Caller(format!("the cookie {}", name.as_str())))?;
        headers.append(COOKIE, line);
    }
    if let CallerRule::Headers(names) = &policy.caller {
        for name in names {
            let line = HeaderValue::from_str(field(said, name));
            let line =
                line.map_err(|_| LookupError::Caller(format!("a field's value for {name}")))?;
            if is_credential(line.as_bytes()) {
                headers.append(name, line);
            }
        }
        if headers.is_empty() {
            return Err(LookupError::Caller(whose_names(policy).join(" or ")));
        }
    }
    let caller = caller(&policy.caller, &Scope::shared(), &headers);
    Ok(vec![*caller.map_err(|_| LookupError::Caller(whose_names(policy).join(" or ")))?.as_bytes()])
}

/// What was stated for a header field, whose name is the same however it is written.
fn field<'s>(said: &'s BTreeMap<String, String>, name: &HeaderName) -> &'s str {
    let mut stated = said.iter().filter(|(stated, _)| stated.eq_ignore_ascii_case(name.as_str()));
    stated.next().map_or("", |(_, value)| value.trim())
}

/// Returns the `Cookie` line of a client that has the stated value of this cookie; `None` where no cookie can have it.
fn cookie_line(name: &CookieName, said: &BTreeMap<String, String>) -> Option<HeaderValue> {
    let value = said.get(name.as_str()).map_or("", |value| value.trim());
    let valid = !value.is_empty() && !value.contains(';');
    valid.then(|| HeaderValue::from_str(&format!("{}={value}", name.as_str())).ok()).flatten()
}

/// The scope that was stated. Of a token two: nothing that is written down says whether its claim is a number or a text.
fn scopes(rule: &ScopeRule, said: &BTreeMap<String, String>) -> Result<Vec<Scope>, LookupError> {
    let needed = |what: &str| LookupError::Scope(what.to_owned());
    let stated = |name: &str| said.get(name).map_or("", |value| value.trim());
    let value = |name: &str| {
        Some(stated(name)).filter(|value| !value.is_empty()).ok_or_else(|| needed(name))
    };
    let vouched = |said: Vec<_>| {
        let mut extensions = Extensions::new();
        extensions.insert(VerifiedScope::stated(said));
        scope(rule, &HeaderMap::new(), &extensions).map_err(|_| needed("a verified account"))
    };
    match rule {
        ScopeRule::Shared => Ok(vec![Scope::shared()]),
        ScopeRule::Headers(names) => {
            let mut headers = HeaderMap::new();
            for name in names {
                let value = Some(field(said, name)).filter(|value| !value.is_empty());
                let line = HeaderValue::from_str(value.ok_or_else(|| needed(name.as_str()))?);
                headers.append(
                    name,
                    line.map_err(|_| needed(&format!("a field's value for {name}")))?,
                );
            }
            let scope = scope(rule, &headers, &Extensions::new())
                .map_err(|_| needed("its header fields"))?;
            Ok(vec![scope])
        }
        ScopeRule::Cookie(name) => {
            let line = cookie_line(name, said)
                .ok_or_else(|| needed(&format!("the cookie {}", name.as_str())))?;
            let headers = HeaderMap::from_iter([(COOKIE, line)]);
            Ok(vec![scope(rule, &headers, &Extensions::new()).map_err(|_| needed("its cookie"))?])
        }
        ScopeRule::Token(token) => {
            // A token need not say who issued it.
            let (issuer, claim) = (stated(ISSUER), value(&token.claim)?);
            [false, true]
                .into_iter()
                .map(|number| vouched(said_by_token(token, issuer, claim, number).into()))
                .collect()
        }
        ScopeRule::ClientCertificate => {
            let subject = STANDARD.decode(value(SUBJECT)?);
            let subject =
                subject.map_err(|_| needed("the subject of the certificate, as DER in base64"))?;
            Ok(vec![vouched(vec![said_by_certificate(&subject)])?])
        }
    }
}
