//! Who vouches for a request's scope: a token's signature, or the certificate of the connection.
//!
//! It is found out once per request, from the header fields alone, and goes with the request as an extension.

use std::sync::Arc;

use bytes::Bytes;
use http::{Extensions, HeaderMap};

use crate::engine::{ScopeRule, TokenRule};
use crate::gate::{Gate, ProtectedRoute, Refusal};
use crate::token::{Expected, TokenError, verify};

/// The subject of the certificate that a client has shown and the listener has verified, as DER; never empty. A request
/// extension: whoever puts it there vouches for it.
#[derive(Clone)]
pub struct ClientSubject(pub Bytes);

/// What was found out about a request's scope. A request extension.
#[derive(Clone)]
pub struct VerifiedScope(Result<Arc<[Said]>, Refusal>);

/// A name and what is said under it.
pub(in crate::gate) type Said = (String, Vec<u8>);

impl VerifiedScope {
    /// What an operator says that a verified request would have said, to find its operation. It is shown to nobody as verified.
    pub(in crate::gate) fn stated(said: Vec<Said>) -> VerifiedScope {
        VerifiedScope(Ok(said.into()))
    }

    /// What a scope is made of.
    pub(in crate::gate) fn said(&self) -> Result<&[Said], Refusal> {
        self.0.as_deref().map_err(Clone::clone)
    }
}

impl Gate {
    /// Finds out who vouches for a request; `None` where its route asks for nobody.
    pub fn vouch(
        &self,
        guarded: &ProtectedRoute,
        headers: &HeaderMap,
        extensions: &Extensions,
    ) -> Option<VerifiedScope> {
        let said = match &guarded.route.policy.scope {
            ScopeRule::Shared | ScopeRule::Headers(_) | ScopeRule::Cookie(_) => return None,
            ScopeRule::Token(rule) => self.by_token(guarded, rule, headers),
            ScopeRule::ClientCertificate => match extensions.get::<ClientSubject>() {
                Some(ClientSubject(subject)) => Ok([said_by_certificate(subject)].into()),
                None => Err(Refusal::ScopeMissing {
                    what: "a client certificate with a subject".to_owned(),
                }),
            },
        };
        Some(VerifiedScope(said))
    }

    fn by_token(
        &self,
        guarded: &ProtectedRoute,
        rule: &TokenRule,
        headers: &HeaderMap,
    ) -> Result<Arc<[Said]>, Refusal> {
        let mut lines =
            headers.get_all(&rule.header).iter().map(|value| value.as_bytes().trim_ascii());
        let (first, second) = (lines.next().filter(|line| !line.is_empty()), lines.next());
        let field = first
            .ok_or_else(|| Refusal::ScopeMissing { what: format!("the field {}", rule.header) })?;
        if second.is_some() {
            // Which of two an upstream believes is not known here.
            return Err(Refusal::ScopeInvalid { expired: false });
        }
        let keyring = guarded.keyring.as_ref();
        let keys =
            keyring.and_then(|keyring| keyring.current()).ok_or(Refusal::ScopeUnavailable)?;
        let expected = Expected {
            claim: &rule.claim,
            issuer: rule.issuer.as_deref(),
            audience: rule.audience.as_deref(),
        };
        let subject = verify(field, &keys, &expected, self.clock.unix_ms()).map_err(|error| {
            if let (TokenError::UnknownKey, Some(keyring)) = (error, keyring) {
                keyring.miss();
            }
            Refusal::ScopeInvalid { expired: error == TokenError::Expired }
        })?;
        Ok(said_by_token(rule, &subject.issuer, &subject.value, subject.is_number).into())
    }
}

/// What a certificate's subject says.
pub(in crate::gate) fn said_by_certificate(subject: &[u8]) -> Said {
    ("client_cert:subject".to_owned(), subject.to_vec())
}

/// What a token says: who issued it, and the claim, as the number or the text that it is.
pub(in crate::gate) fn said_by_token(
    rule: &TokenRule,
    issuer: &str,
    claim: &str,
    is_number: bool,
) -> [Said; 2] {
    let kind = if is_number { "number" } else { "text" };
    [("jwt:iss".to_owned(), issuer.into()), (format!("jwt:{kind}:{}", rule.claim), claim.into())]
}
