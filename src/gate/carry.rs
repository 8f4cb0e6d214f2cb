//! Carrying the key on: the upstream may want it under another name, in another place, or shorter. The same key always
//! becomes the same, on every attempt: an upstream that deduplicates must know it again.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::request::Parts;
use http::{HeaderName, HeaderValue};

use super::Problem;
use super::identify::key_text;
use super::problem::KeyFault;
use crate::engine::{KeyPlace, KeySource, Policy, UpstreamKey};
use crate::key::{PartHasher, with_member};

/// The key as the upstream knows it.
pub(super) fn key_for_upstream(policy: &Policy, parts: &Parts, body: &Bytes) -> Result<String, Problem> {
    let key = key_text(policy, parts, body)?;
    Ok(match &policy.upstream_key {
        Some(wanted) => shortened(key, wanted),
        None => key,
    })
}

/// What has to change in a request for the upstream to find the key. Worked out before the claim, so that nothing can fail
/// between the claim and the attempt.
pub(super) struct Carried {
    /// The field that the client sent it in.
    from: Option<HeaderName>,
    to: To,
}

enum To {
    Header(HeaderName, HeaderValue),
    Body(Bytes),
}

impl Carried {
    /// Where the key goes. What it was sent in is taken away, if that is a field.
    pub fn new(policy: &Policy, wanted: &UpstreamKey, parts: &Parts, body: &Bytes) -> Result<Carried, Problem> {
        let refused = || Problem::KeyInvalid { why: KeyFault::NotCarried };
        let key = shortened(key_text(policy, parts, body)?, wanted);
        let from = match &policy.key.source {
            KeySource::Sent { header, .. } => header.clone(),
            KeySource::Derived(_) => None,
        };
        let to = match &wanted.place {
            KeyPlace::Header(name) => To::Header(name.clone(), HeaderValue::try_from(key).map_err(|_| refused())?),
            KeyPlace::Body(pointer) => To::Body(with_member(body, pointer, &key).ok_or_else(refused)?),
        };
        Ok(Carried { from, to })
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
        let wanted = UpstreamKey { place: KeyPlace::Header(HeaderName::from_static("k")), max_length: 38 };
        let long = |end: char| shortened("x".repeat(60) + &end.to_string(), &wanted);
        assert_eq!(long('a').len(), 38);
        assert_eq!(long('a'), long('a'));
        assert_ne!(long('a'), long('b'));
        assert_eq!(shortened("short".into(), &wanted), "short");
    }
}
