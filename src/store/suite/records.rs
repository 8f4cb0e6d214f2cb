//! Records and lifetimes that the stories write.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::key::{Caller, Fingerprint, Scope, Slot, Space};
use crate::record::{
    Cause, Extras, Fence, Lifetime, Record, Reply, ReplyBody, Settler, State, Version,
};

/// Longer than any story takes, also with real time and on a busy machine.
pub(super) const LONG: Duration = Duration::from_secs(600);
/// Short enough to wait for.
pub(super) const SHORT: Duration = Duration::from_millis(300);

/// Returns the lifetime of an unsettled record.
pub(super) fn lease(due: Duration) -> Lifetime {
    Lifetime { keep: LONG * 2, due: Some(due), tombstone: None }
}

/// Returns the lifetime of a settled record.
pub(super) fn keep(keep: Duration) -> Lifetime {
    Lifetime { keep, due: None, tombstone: None }
}

/// Returns the lifetime of a claim or a result under a policy that keeps tombstones.
pub(super) fn with_tombstone(lifetime: Lifetime, tombstone: Duration) -> Lifetime {
    Lifetime { tombstone: Some(tombstone), ..lifetime }
}

/// Slots of an enforced route.
pub(super) const HERE: fn(u64) -> Slot = |n| slot(Space::Enforced, n);

/// Returns the slot with this number.
pub fn slot(space: Space, n: u64) -> Slot {
    Slot::of(space, "payments", &Scope::shared(), &n.to_be_bytes(), b"")
}

pub(super) fn record(version: u64, fence: u64, state: State) -> Record {
    Record {
        version: Version(version),
        fence: Fence(fence),
        route: "payments".into(),
        fingerprint: Some(Fingerprint::from_bytes([7; 32])),
        caller: Some(Caller::of_field("authorization", b"Bearer alice")),
        opened_unix_ms: 1_799_999_999_999,
        kept: None,
        publication: None,
        extras: Extras::default(),
        state,
    }
}

/// Returns a record in flight.
pub fn claim(version: u64, fence: u64) -> Record {
    record(version, fence, State::InFlight { uncertain_since_ms: None })
}

pub(super) fn marker(version: u64, fence: u64) -> Record {
    Record { fingerprint: None, caller: None, ..record(version, fence, State::Released) }
}

pub(super) fn uncertain(version: u64, fence: u64) -> Record {
    record(
        version,
        fence,
        State::Uncertain { cause: Cause::LeaseEnded, since_ms: None, retry: None },
    )
}

/// Returns a completed record; `version` is also its fence.
pub fn completed(version: u64) -> Record {
    completed_with(version, b"paid")
}

/// Returns a completed record with this body.
pub fn completed_with(version: u64, body: &[u8]) -> Record {
    let headers = HeaderMap::from_iter([(
        HeaderName::from_static("content-type"),
        HeaderValue::from_static("text/plain"),
    )]);
    let reply = Arc::new(Reply {
        status: StatusCode::CREATED,
        headers,
        body: ReplyBody::Whole(Bytes::copy_from_slice(body)),
        trailers: None,
    });
    record(version, version, State::Completed { reply, by: Settler::Upstream })
}
