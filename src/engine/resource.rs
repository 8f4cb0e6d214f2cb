//! The rules of a resource: how its versions are known, and what a write must say about them.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};

use crate::key::Pointer;

/// The rules of the resources on a route's paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourceRule {
    /// The configured name of the upstream that has the resources. Resources of two upstreams are
    /// never the same.
    pub upstream: Arc<str>,
    /// What the tag of a representation is made of.
    pub versions: VersionSource,
    /// Whether a write needs a condition.
    pub if_match: IfMatchRule,
    /// How a write on a version that moved is answered.
    pub on_stale: OnStale,
    /// How long a write waits for another write on its resource.
    pub lock_timeout: Duration,
    /// Longest representation that gets a tag, in bytes.
    pub bytes: usize,
    /// The value of `Accept` with which representations are read.
    pub accept: HeaderValue,
    /// Fields that name the tenant to which a resource belongs.
    pub per: Vec<HeaderName>,
    /// How long the versions of a resource are kept for a merge.
    pub keep: Duration,
}

/// What the tag of a representation is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VersionSource {
    /// All its bytes.
    Hash,
    /// A member of the JSON body.
    Member(Pointer),
    /// The upstream has strong tags, and checks conditions itself.
    Upstream,
}

/// Whether a write needs a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfMatchRule {
    /// It is refused without one.
    Required,
    /// Without one, it is compared with nothing.
    Optional,
}

/// How a write on a version that moved is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnStale {
    /// With a refusal.
    Reject,
    /// It is sent: the last write wins.
    Overwrite,
    /// A merge patch is sent if it names no member that has changed.
    Merge,
}

impl ResourceRule {
    /// Returns whether a request with this method reads a resource.
    pub fn is_read(method: &Method) -> bool {
        matches!(*method, Method::GET | Method::HEAD)
    }

    /// Returns whether a request with this method writes a resource.
    pub fn is_write(method: &Method) -> bool {
        matches!(*method, Method::PUT | Method::PATCH | Method::DELETE)
    }

    /// Returns whether the gateway makes the tags and compares them. If not, the upstream does
    /// both.
    pub fn makes_tags(&self) -> bool {
        self.versions != VersionSource::Upstream
    }
}
