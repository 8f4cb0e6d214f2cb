//! The records that the stories write.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::key::{Caller, Fingerprint, Scope, Slot, Space};
use crate::record::{Cause, Extras, Fence, Record, Reply, ReplyBody, Settler, State, Version};

pub(crate) fn slot(space: Space, n: u64) -> Slot {
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
        extras: Extras::default(),
        state,
    }
}

pub(crate) fn claim(version: u64, fence: u64) -> Record {
    record(version, fence, State::InFlight { doubt_since_ms: None })
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

/// A result whose version and fence are `version`.
pub(crate) fn completed(version: u64) -> Record {
    completed_with(version, b"paid")
}

pub(crate) fn completed_with(version: u64, body: &[u8]) -> Record {
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
