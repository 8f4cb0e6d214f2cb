//! Conditions of requests that are false for the current version of a resource.

use std::fmt;

/// The condition that is false. Nothing was sent, or nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailedCondition {
    /// A read names other versions.
    Read,
    /// A write names other versions.
    Stale,
    /// A write names a version, and the resource does not exist.
    Missing,
    /// A write creates the resource, and it exists.
    Exists,
}

impl fmt::Display for FailedCondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FailedCondition::Read => "the resource has none of the versions in If-Match",
            FailedCondition::Stale => {
                "the resource has changed: it has none of the versions in If-Match any more; the \
                 write was not sent to the upstream"
            }
            FailedCondition::Missing => {
                "the resource does not exist, and If-Match names a version of it; the write was \
                 not sent to the upstream"
            }
            FailedCondition::Exists => {
                "the resource exists, and If-None-Match: * only creates it; the write was not sent \
                 to the upstream"
            }
        })
    }
}
