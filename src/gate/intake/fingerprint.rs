//! Chooses how a request's body enters the fingerprint, and which other data distinguishes
//! operations with the same key.

use http::HeaderMap;

use crate::engine::{FingerprintRule, OnMismatch, Policy};
use crate::gate::intake::body::{content_type, is_json};
use crate::key::{BodyHash, Fingerprint, PartHasher, form_boundary, path};

/// Returns how a body enters the fingerprint of a request with these header fields.
pub(in crate::gate) fn body_hash<'p>(
    rule: &'p FingerprintRule,
    headers: &'p HeaderMap,
) -> BodyHash<'p> {
    match rule {
        FingerprintRule::Json(ignore) => match content_type(headers).and_then(form_boundary) {
            Some(boundary) => BodyHash::Form { boundary },
            None => BodyHash::Json { is_json: is_json(headers), ignore },
        },
        FingerprintRule::Raw => BodyHash::Raw,
        FingerprintRule::WithoutBody => BodyHash::None,
    }
}

/// Returns whether a policy keeps one record per fingerprint, not one per key.
pub(in crate::gate) fn is_per_fingerprint(policy: &Policy) -> bool {
    policy.on_mismatch == OnMismatch::Supersede
}

/// Returns the bytes that distinguish operations with the same key and scope. They are empty,
/// unless the route's identities include the path or the policy keeps one record per fingerprint.
/// The bytes are part of the storage format.
pub(in crate::gate) fn variant(
    policy: &Policy,
    path: &str,
    fingerprint: Option<&Fingerprint>,
) -> Vec<u8> {
    let fingerprint = fingerprint
        .filter(|_| is_per_fingerprint(policy))
        .map(|fingerprint| fingerprint.as_bytes().as_slice())
        .unwrap_or_default();
    if !policy.by_path {
        return fingerprint.to_vec();
    }
    let mut hasher = PartHasher::new("variant:path");
    hasher.part(&path::identity(path, policy.path_case)).part(fingerprint);
    hasher.finish().to_vec()
}
