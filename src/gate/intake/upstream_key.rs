//! Passes the key on to the upstream, which may need it under another name, in another place, or
//! shorter. Every attempt passes on the same form of a key, so that an upstream that deduplicates
//! recognises it.
//!
//! Danger: the client chooses the spelling of its key, and the fields that `Connection` names. If
//! the gate forwarded both unchanged, a retry could reach the upstream with another key, or without
//! one.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::engine::{KeyPlace, KeySource, Policy, UpstreamKey};
use crate::gate::intake::key::OperationKey;
use crate::key::{KeySyntax, PartHasher, key_field_value, with_member};
use crate::refusal::{KeyFault, Refusal};

/// Returns the key that the upstream gets, in plain text.
pub(in crate::gate) fn key_for_upstream<'k>(
    policy: &Policy,
    key: &'k OperationKey,
) -> Cow<'k, str> {
    match &policy.upstream_key {
        Some(wanted) => shortened(key.text(), wanted),
        None => key.text(),
    }
}

/// The changes to a request that put the key where the upstream looks for it. They are computed
/// before the claim, so that nothing can fail between the claim and the attempt.
pub(in crate::gate) struct UpstreamKeyPlacement {
    /// The field in which the client may have sent the key.
    from: Option<HeaderName>,
    to: KeyDestination,
}

enum KeyDestination {
    Header(HeaderName, HeaderValue),
    /// The body with the key in it.
    Body(Bytes),
    /// The request is not changed. The key is in the body already, or it is derived and the
    /// upstream does not get it.
    Unchanged,
}

impl UpstreamKeyPlacement {
    /// Computes where to put the key. If the route reads keys from a header field, [`Self::apply`]
    /// first removes that field.
    ///
    /// If the policy has no `upstream_key`, the key is written to the field from which the route
    /// reads keys, even if this client sent the key in the body.
    ///
    /// # Errors
    /// The key does not fit its place, or has to be put into a body that is encoded.
    pub fn new(
        policy: &Policy,
        parts: &Parts,
        body: &Bytes,
        key: &OperationKey,
    ) -> Result<UpstreamKeyPlacement, Refusal> {
        let from = match &policy.key.source {
            KeySource::Sent { header, .. } => header.clone(),
            KeySource::Derived(_) => None,
        };
        let refused = || Refusal::KeyInvalid { why: KeyFault::NotCarried };
        let in_header = |name: &HeaderName| -> Result<KeyDestination, Refusal> {
            // The route's syntax is only for the field in which clients send keys. Any other field
            // belongs to the upstream's API.
            let syntax =
                if from.as_ref() == Some(name) { policy.key.syntax } else { KeySyntax::Lenient };
            let value = key_field_value(&key_for_upstream(policy, key), syntax);
            let value = HeaderValue::try_from(value).map_err(|_| refused())?;
            Ok(KeyDestination::Header(name.clone(), value))
        };
        let to = match (policy.upstream_key.as_ref().map(|wanted| &wanted.place), &from) {
            (None, None) => KeyDestination::Unchanged,
            (None, Some(name)) | (Some(KeyPlace::Header(name)), _) => in_header(name)?,
            (Some(KeyPlace::Body(pointer)), _) => {
                if parts.headers.contains_key(CONTENT_ENCODING) {
                    return Err(Refusal::UnsupportedEncoding);
                }
                let key = key_for_upstream(policy, key);
                KeyDestination::Body(with_member(body, pointer, &key).ok_or_else(refused)?)
            }
        };
        Ok(UpstreamKeyPlacement { from, to })
    }

    /// Puts the key into the request.
    pub fn apply(self, parts: &mut Parts, body: &mut Bytes) {
        if let Some(name) = self.from {
            parts.headers.remove(name);
        }
        match self.to {
            KeyDestination::Header(name, value) => {
                parts.headers.insert(name, value);
            }
            KeyDestination::Body(with_key) => {
                // The length is computed again from the new body.
                parts.headers.remove(CONTENT_LENGTH);
                *body = with_key;
            }
            KeyDestination::Unchanged => {}
        }
    }
}

/// Removes two kinds of field names from `Connection`: fields that identify a request of this
/// route, and fields that decide how its body is read. A service behind the gate that strips
/// hop-by-hop fields (RFC 9110, section 7.6.1) then forwards these fields. So the upstream finds
/// the same key in the body as the gateway.
pub fn keep_identifying_fields(policy: &Policy, headers: &mut HeaderMap) {
    let is_kept = |name: HeaderName| {
        [CONTENT_TYPE, CONTENT_ENCODING].contains(&name) || policy.identifies_by(&name)
    };
    let identifies = |option: &[u8]| HeaderName::from_bytes(option.trim_ascii()).is_ok_and(is_kept);
    let options = || {
        headers
            .get_all(CONNECTION)
            .iter()
            .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
    };
    if !options().any(identifies) {
        return;
    }
    let kept = options().filter(|option| !identifies(option)).collect::<Vec<_>>().join(&b","[..]);
    match HeaderValue::from_bytes(&kept) {
        Ok(value) if !kept.is_empty() => {
            headers.insert(CONNECTION, value);
        }
        _ => {
            headers.remove(CONNECTION);
        }
    }
}

/// Replaces a key that is too long for the upstream by a digest of it. A key is never cut off,
/// because two keys with the same beginning would become one.
fn shortened<'k>(key: Cow<'k, str>, wanted: &UpstreamKey) -> Cow<'k, str> {
    if key.len() <= wanted.max_length {
        return key;
    }
    let mut hasher = PartHasher::new("key:upstream");
    hasher.part(key.as_bytes());
    let mut digest = URL_SAFE_NO_PAD.encode(hasher.finish());
    digest.truncate(wanted.max_length);
    digest.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_key_becomes_a_digest_of_the_wanted_length() {
        let wanted =
            UpstreamKey { place: KeyPlace::Header(HeaderName::from_static("k")), max_length: 38 };
        let long = |end: char| shortened(("x".repeat(60) + &end.to_string()).into(), &wanted);
        assert_eq!(long('a').len(), 38);
        assert_eq!(long('a'), long('a'));
        assert_ne!(long('a'), long('b'));
        assert_eq!(shortened("short".into(), &wanted), "short");
    }
}
