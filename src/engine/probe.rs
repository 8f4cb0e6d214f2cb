//! The probe: how a route asks its upstream for the outcome of an uncertain operation, and how the
//! answer is read.

use std::sync::Arc;

use http::header::{CONTENT_ENCODING, CONTENT_RANGE, ETAG, LAST_MODIFIED};
use http::{HeaderMap, HeaderName, Method, StatusCode};

use super::statuses::{StatusRules, Verdict};
use crate::key::path::fill;
use crate::key::{Pointer, element};
use crate::record::{Reply, ReplyBody};

/// The request that asks an upstream for the outcome of an operation.
#[derive(Debug, Clone)]
pub struct Probe {
    /// A safe method (RFC 9110, section 9.2.1).
    pub method: Method,
    /// The path, in which [`Probe::KEY`] is replaced by the key.
    pub path: String,
    /// The statuses that mean found (store) and absent (release). Any other status is unclear.
    pub statuses: StatusRules,
    /// The member of a found answer that has the operation. An answer without this member means
    /// absent.
    pub found_if: Option<Pointer>,
    /// The status of the result; `None` for the status of the answer.
    pub map_status: Option<StatusCode>,
    /// Fields that identify the gateway to the upstream. If empty, the credentials of the duplicate
    /// are used.
    pub headers: HeaderMap,
    /// Whether the reconciler also sends the probe, without a duplicate. This needs `headers` and a
    /// store that encrypts records, because the record then keeps the key.
    pub background: bool,
}

/// The answer to a probe.
#[derive(Debug, Clone, PartialEq)]
pub enum Finding {
    /// The operation was executed, with this result.
    Found(Arc<Reply>),
    /// The upstream has no such operation.
    Absent,
    /// The answer does not show whether the operation was executed.
    Unclear,
}

/// Fields that describe the whole answer, not the element in it that is the result.
const OF_THE_WHOLE: [HeaderName; 6] = [
    ETAG,
    LAST_MODIFIED,
    CONTENT_RANGE,
    HeaderName::from_static("content-md5"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-digest"),
];

impl Probe {
    /// The placeholder for the key in the path.
    pub const KEY: &str = "{key}";

    /// Returns the path with a key filled in. Returns `None` if the key is not one segment of the
    /// path under every folding: such a request could reach another resource and must not be sent.
    pub fn path_for(&self, key: &str) -> Option<String> {
        fill(&self.path, Probe::KEY, key)
    }

    /// Reads an upstream's answer. Only an explicit answer counts as found or absent: an answer
    /// that is not JSON is unclear if `found_if` needs a member.
    pub fn finding(&self, reply: Reply) -> Finding {
        match self.statuses.verdict(reply.status, &reply.headers) {
            Verdict::Uncertain => Finding::Unclear,
            Verdict::Release => Finding::Absent,
            Verdict::Store => match (&self.found_if, &reply.body) {
                (None, _) => Finding::Found(Arc::new(self.result(reply))),
                (Some(_), ReplyBody::NotStored | ReplyBody::Sealed(_)) => Finding::Unclear,
                (Some(_), ReplyBody::Whole(_)) if reply.headers.contains_key(CONTENT_ENCODING) => {
                    Finding::Unclear
                }
                (Some(pointer), ReplyBody::Whole(body)) => match element(body, pointer) {
                    Err(_) => Finding::Unclear,
                    Ok(None) => Finding::Absent,
                    Ok(Some(element)) => {
                        let mut reply = Reply { body: ReplyBody::Whole(element), ..reply };
                        for name in &OF_THE_WHOLE {
                            reply.headers.remove(name);
                        }
                        Finding::Found(Arc::new(self.result(reply)))
                    }
                },
            },
        }
    }

    fn result(&self, reply: Reply) -> Reply {
        Reply { status: self.map_status.unwrap_or(reply.status), ..reply }
    }
}
