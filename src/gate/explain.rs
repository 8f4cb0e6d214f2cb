//! Explaining a refusal: where a request differs from the first one with its key, told to nobody but the first one's caller.

use bytes::Bytes;
use http::request::Parts;

use super::{Gate, Refusal};
use crate::engine::{Asked, Policy};
use crate::gate::intake::identify::body_hash;
use crate::key::{LeafDigests, RequestParts, Slot};
use crate::record::{Held, Record};

/// Places that are named in one answer, at most.
const DIFFERING_MAX: usize = 32;

/// What is said of the first request to its own caller, who uses its key for another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// JSON pointers into the body, and `method`, `path`, `query` and `body` as a whole; `None` where it can't be told.
    pub differing: Option<Vec<String>>,
    /// Where the operation stands.
    pub state: &'static str,
    /// When its first attempt began, in ms since 1970 by its gateway's clock.
    pub opened_unix_ms: u64,
}

impl Gate {
    /// What a record keeps of a request, so that a later one can be told where it differs.
    pub(super) fn leaves(&self, policy: &Policy, parts: &Parts, body: &Bytes) -> Option<Bytes> {
        if !policy.explain {
            return None;
        }
        let mut salt = [0; 16];
        salt[..8].copy_from_slice(&self.entropy.next().to_be_bytes());
        salt[8..].copy_from_slice(&self.entropy.next().to_be_bytes());
        LeafDigests::of(&anatomy(policy, parts, body), salt).map(|leaves| leaves.encode())
    }

    /// The refusal of a request whose key was used before, with what its caller may know of that.
    pub(super) fn key_reused(
        &self,
        policy: &Policy,
        slot: Slot,
        asked: &Asked,
        held: Option<&Held>,
        (parts, body): (&Parts, &Bytes),
    ) -> Refusal {
        let explained = held
            .map(|held| &held.record)
            .filter(|record| policy.explain && record.caller == Some(asked.caller))
            .map(|record| Box::new(explanation(policy, record, parts, body)));
        Refusal::KeyReused { slot, explained }
    }
}

fn explanation(policy: &Policy, record: &Record, parts: &Parts, body: &Bytes) -> Explanation {
    let leaves = record.extras.leaves.as_ref().and_then(|stored| LeafDigests::decode(stored));
    let differing = leaves.and_then(|leaves| leaves.differing(&anatomy(policy, parts, body)));
    let differing = differing.map(|mut differing| {
        differing.truncate(DIFFERING_MAX);
        differing
    });
    Explanation { differing, state: record.state.name(), opened_unix_ms: record.opened_unix_ms }
}

fn anatomy<'r>(policy: &'r Policy, parts: &'r Parts, body: &'r Bytes) -> RequestParts<'r> {
    RequestParts {
        method: parts.method.as_str(),
        path: parts.uri.path(),
        query: parts.uri.query(),
        body,
        how: body_hash(&policy.fingerprint, &parts.headers),
    }
}
