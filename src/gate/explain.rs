//! Explains a refusal: names the parts in which a request differs from the first request with the
//! same key. Only the caller of the first request gets the explanation.

use bytes::Bytes;
use http::request::Parts;

use crate::engine::{ClaimRequest, Policy};
use crate::entropy::Entropy;
use crate::gate::intake::fingerprint::body_hash;
use crate::key::{LeafDigests, RequestParts, Slot};
use crate::record::{Held, Record};
use crate::refusal::{Explanation, Refusal};

/// Maximum number of differing parts that one answer names.
const DIFFERING_MAX: usize = 32;

/// The parts of a request that an explanation compares.
#[derive(Clone, Copy)]
pub(super) struct ComparedRequest<'r> {
    pub parts: &'r Parts,
    /// The decoded body.
    pub content: &'r Bytes,
}

/// Returns the digests of a request's parts. The record keeps the digests, so that a later request
/// can be compared with this one. `None` if the route does not explain refusals.
pub(super) fn leaves(
    entropy: &Entropy,
    policy: &Policy,
    request: ComparedRequest<'_>,
) -> Option<Bytes> {
    if !policy.explain {
        return None;
    }
    LeafDigests::of(&anatomy(policy, request), entropy.salt()).map(|leaves| leaves.encode())
}

/// Returns the refusal of a request, because its key was used for another request. If both requests
/// have the same caller, the refusal has an explanation.
pub(super) fn key_reused(
    policy: &Policy,
    slot: Slot,
    asked: &ClaimRequest,
    held: Option<&Held>,
    request: ComparedRequest<'_>,
) -> Refusal {
    let explained = held
        .map(|held| &held.record)
        .filter(|record| policy.explain && record.caller == Some(asked.caller))
        .map(|record| Box::new(explanation(policy, record, request)));
    Refusal::KeyReused { slot, explained }
}

fn explanation(policy: &Policy, record: &Record, request: ComparedRequest<'_>) -> Explanation {
    let leaves = record.extras.leaves.as_ref().and_then(|stored| LeafDigests::decode(stored));
    let differing = leaves.and_then(|leaves| leaves.differing(&anatomy(policy, request)));
    let differing = differing.map(|mut differing| {
        differing.truncate(DIFFERING_MAX);
        differing
    });
    Explanation { differing, state: record.state.name(), opened_unix_ms: record.opened_unix_ms }
}

fn anatomy<'r>(policy: &'r Policy, request: ComparedRequest<'r>) -> RequestParts<'r> {
    let ComparedRequest { parts, content } = request;
    RequestParts {
        method: parts.method.as_str(),
        path: parts.uri.path(),
        query: parts.uri.query(),
        body: content,
        how: body_hash(&policy.fingerprint, &parts.headers),
    }
}
