//! Determines the scope of a request, from its header fields, a token or a client certificate.

use std::sync::Arc;

use http::header::{AUTHORIZATION, PROXY_AUTHORIZATION};
use http::{HeaderMap, HeaderName};

use crate::clock::Clock;
use crate::engine::{ScopeRule, TokenRule};
use crate::gate::context::ClientSubject;
use crate::gate::intake::head::{cookie, is_scheme_alone, lines};
use crate::key::Scope;
use crate::refusal::Refusal;
use crate::token::{Expected, Keyring, TokenError, verify};

/// The scope of a request from a verified token or client certificate, or the refusal of a request
/// without a valid token or certificate.
#[derive(Clone)]
pub struct VerifiedScope(Result<Scope, Refusal>);

impl VerifiedScope {
    /// Verifies a request's token, or takes the subject of its client certificate. Returns `None`
    /// on a route that needs neither.
    pub(in crate::gate) fn verify(
        rule: &ScopeRule,
        keyring: Option<&Arc<Keyring>>,
        headers: &HeaderMap,
        client_subject: Option<&ClientSubject>,
        clock: &Clock,
    ) -> Option<VerifiedScope> {
        match rule {
            ScopeRule::Shared | ScopeRule::Headers(_) | ScopeRule::Cookie(_) => None,
            ScopeRule::Token(rule) => {
                Some(VerifiedScope(verified_token_scope(rule, keyring, headers, clock)))
            }
            ScopeRule::ClientCertificate => {
                let subject = client_subject.ok_or_else(|| Refusal::ScopeMissing {
                    what: "a client certificate with a subject".to_owned(),
                });
                Some(VerifiedScope(subject.map(|ClientSubject(der)| certificate_scope(der))))
            }
        }
    }
}

/// Returns the scope of a request.
///
/// # Errors
/// The scope is missing or invalid, or a part of it comes more than once.
pub(in crate::gate) fn scope(
    rule: &ScopeRule,
    headers: &HeaderMap,
    verified: Option<&VerifiedScope>,
) -> Result<Scope, Refusal> {
    match rule {
        ScopeRule::Token(_) | ScopeRule::ClientCertificate => match verified {
            Some(VerifiedScope(scope)) => scope.clone(),
            None => Err(Refusal::ScopeMissing { what: "a verified account".to_owned() }),
        },
        ScopeRule::Shared => Ok(Scope::shared()),
        ScopeRule::Headers(names) => {
            let fields: Vec<_> = names
                .iter()
                .map(|name| scope_field(name, headers))
                .collect::<Result<_, Refusal>>()?;
            Ok(Scope::of_fields(fields))
        }
        ScopeRule::Cookie(name) => {
            let value = cookie(name, headers)?;
            let value = value.ok_or_else(|| Refusal::ScopeMissing {
                what: format!("the cookie {}", name.as_str()),
            })?;
            Ok(Scope::of_fields([(name.label(), value)]))
        }
    }
}

/// Returns the scope of a client certificate with this subject.
pub(in crate::gate) fn certificate_scope(subject: &[u8]) -> Scope {
    Scope::of_fields([("client_cert:subject", subject)])
}

/// Returns the scope of a token: its issuer and its claim. The claim `"7"` and the claim `7` give
/// two different scopes.
pub(in crate::gate) fn token_scope(
    rule: &TokenRule,
    issuer: &str,
    claim: &str,
    is_number: bool,
) -> Scope {
    let kind = if is_number { "number" } else { "text" };
    let claim_name = format!("jwt:{kind}:{}", rule.claim);
    Scope::of_fields([("jwt:iss", issuer.as_bytes()), (&claim_name, claim.as_bytes())])
}

fn verified_token_scope(
    rule: &TokenRule,
    keyring: Option<&Arc<Keyring>>,
    headers: &HeaderMap,
    clock: &Clock,
) -> Result<Scope, Refusal> {
    let mut lines = lines(headers, &rule.header);
    let (first, second) = (lines.next().filter(|line| !line.is_empty()), lines.next());
    let field = first
        .ok_or_else(|| Refusal::ScopeMissing { what: format!("the field {}", rule.header) })?;
    if second.is_some() {
        // An upstream may use either of the two tokens.
        return Err(Refusal::ScopeInvalid { expired: false });
    }
    let keys = keyring.and_then(|keyring| keyring.current()).ok_or(Refusal::ScopeUnavailable)?;
    let expected = Expected {
        claim: &rule.claim,
        issuer: rule.issuer.as_deref(),
        audience: rule.audience.as_deref(),
    };
    let subject = verify(field, &keys, &expected, clock.unix_ms()).map_err(|error| {
        if let (TokenError::UnknownKey, Some(keyring)) = (error, keyring) {
            keyring.miss();
        }
        Refusal::ScopeInvalid { expired: error == TokenError::Expired }
    })?;
    Ok(token_scope(rule, &subject.issuer, &subject.value, subject.is_number))
}

/// Returns the name and the only value of a plain scope field.
///
/// # Errors
/// The field is absent, has no value, or came more than once. An upstream reads only the first line
/// or only the last one, but each pair of lines would be a scope of its own.
pub(in crate::gate) fn scope_field<'h>(
    name: &'h HeaderName,
    headers: &'h HeaderMap,
) -> Result<(&'h str, &'h [u8]), Refusal> {
    let mut values = lines(headers, name);
    let value = values.next().unwrap_or_default();
    if values.next().is_some() {
        return Err(Refusal::ScopeRepeated { what: format!("the field {name}") });
    }
    // In other fields the name of a scheme is a normal value: a tenant may be called "basic".
    let has_schemes = [AUTHORIZATION, PROXY_AUTHORIZATION].contains(name);
    if value.is_empty() || has_schemes && is_scheme_alone(value) {
        return Err(Refusal::ScopeMissing { what: format!("the field {name}") });
    }
    Ok((name.as_str(), value))
}
