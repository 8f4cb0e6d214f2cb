//! Carrying the key on: the upstream may want it under another name, in another place, or shorter. The same key always
//! becomes the same, on every attempt: an upstream that deduplicates must know it again.
//!
//! Danger: the client chooses how its key is spelled and which fields `Connection` names. Forwarded as
//! they came, both let a retry reach the upstream with another key, or with none.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::engine::{KeyPlace, KeySource, Policy, UpstreamKey};
use crate::gate::intake::identify::key_text;
use crate::gate::{Content, Refusal};
use crate::key::{KeySyntax, PartHasher, key_field_value, with_member};
use crate::refusal::KeyFault;

/// The key as the upstream knows it.
pub(in crate::gate) fn key_for_upstream(
    policy: &Policy,
    parts: &Parts,
    content: &Bytes,
) -> Result<String, Refusal> {
    let key = key_text(policy, parts, content)?;
    Ok(match &policy.upstream_key {
        Some(wanted) => shortened(key, wanted),
        None => key,
    })
}

/// What has to change in a request for the upstream to find the key. Worked out before the claim, so that nothing can fail
/// between the claim and the attempt.
pub(in crate::gate) struct CarriedKey {
    /// The field that the client sent it in.
    from: Option<HeaderName>,
    to: To,
}

enum To {
    Header(HeaderName, HeaderValue),
    Body(Bytes),
    /// The key stays in the body as it came, or is derived and not sent at all.
    Unchanged,
}

impl CarriedKey {
    /// Where the key goes. What it was sent in is taken away, if that is a field.
    ///
    /// Without `upstream_key`, a key that the route reads from a field is written to that field, also
    /// where this client sent it in the body.
    /// `content` is the body decoded; into a body that is encoded no key can be put.
    pub fn new(
        policy: &Policy,
        parts: &Parts,
        content: &Content,
        body: &Bytes,
    ) -> Result<CarriedKey, Refusal> {
        let content = content.bytes();
        let from = match &policy.key.source {
            KeySource::Sent { header, .. } => header.clone(),
            KeySource::Derived(_) => None,
        };
        let refused = || Refusal::KeyInvalid { why: KeyFault::NotCarried };
        let header = |name: &HeaderName, key: String| -> Result<To, Refusal> {
            // Another field has the rules of another API, and `strict` is a rule of the client's field.
            let syntax =
                if from.as_ref() == Some(name) { policy.key.syntax } else { KeySyntax::Lenient };
            let value =
                HeaderValue::try_from(key_field_value(&key, syntax)).map_err(|_| refused())?;
            Ok(To::Header(name.clone(), value))
        };
        let to = match (policy.upstream_key.as_ref().map(|wanted| &wanted.place), &from) {
            (None, None) => To::Unchanged,
            (None, Some(name)) | (Some(KeyPlace::Header(name)), _) => {
                header(name, key_for_upstream(policy, parts, content)?)?
            }
            (Some(KeyPlace::Body(pointer)), _) => {
                let key = key_for_upstream(policy, parts, content)?;
                if parts.headers.contains_key(CONTENT_ENCODING) {
                    return Err(Refusal::UnsupportedEncoding);
                }
                To::Body(with_member(body, pointer, &key).ok_or_else(refused)?)
            }
        };
        Ok(CarriedKey { from, to })
    }

    /// Changes the request.
    pub fn apply(self, parts: &mut Parts, body: &mut Bytes) {
        if let Some(name) = self.from {
            parts.headers.remove(name);
        }
        match self.to {
            To::Header(name, value) => {
                parts.headers.insert(name, value);
            }
            To::Body(carried) => {
                // Framing is computed anew from the body.
                parts.headers.remove(CONTENT_LENGTH);
                *body = carried;
            }
            To::Unchanged => {}
        }
    }
}

/// Removes from `Connection` the names of the fields that identify a request of this route, and of those that say how its body is
/// read: the upstream must read the key in it as the gateway did. Whoever
/// strips hop-by-hop fields behind the gate (RFC 9110, section 7.6.1) then forwards these fields.
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

/// A key that is longer than the upstream takes becomes a digest of itself. Two keys that share their beginning must not
/// become one, so nothing is cut off.
fn shortened(key: String, wanted: &UpstreamKey) -> String {
    if key.len() <= wanted.max_length {
        return key;
    }
    let mut hasher = PartHasher::new("key:upstream");
    hasher.part(key.as_bytes());
    let mut digest = URL_SAFE_NO_PAD.encode(hasher.finish());
    digest.truncate(wanted.max_length);
    digest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_key_becomes_a_digest_of_the_wanted_length() {
        let wanted =
            UpstreamKey { place: KeyPlace::Header(HeaderName::from_static("k")), max_length: 38 };
        let long = |end: char| shortened("x".repeat(60) + &end.to_string(), &wanted);
        assert_eq!(long('a').len(), 38);
        assert_eq!(long('a'), long('a'));
        assert_ne!(long('a'), long('b'));
        assert_eq!(shortened("short".into(), &wanted), "short");
    }
}
