//! `resource` and `on_stale`: the versions of the resources on a route's paths.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode};

use super::header;
use super::identity::{FRAMING, POINTER_EXPECTED};
use crate::config::read::{Table, Value};
use crate::config::upstream::DEFAULT_UPSTREAM;
use crate::engine::{IfMatchRule, Mode, OnFailure, OnStale, Policy, ResourceRule, VersionSource};
use crate::key::Pointer;

const EXPECTED: &str = "a table such as { versions = \"hash\" }";
const VERSIONS_EXPECTED: &str = "\"hash\", \"upstream\" or a table such as { body = \"/version\" }";
const ACCEPT_EXPECTED: &str = "a list of media types such as \"application/json\"";
const PER_EXPECTED: &str = "a list of header fields such as [\"header:X-Tenant\"]";
const PER_ITEM_EXPECTED: &str = "\"header:NAME\", such as \"header:X-Tenant\"";

const VERSIONS: [(&str, VersionWord); 2] =
    [("hash", VersionWord::Hash), ("upstream", VersionWord::Upstream)];
const IF_MATCH: [(&str, IfMatchRule); 2] =
    [("required", IfMatchRule::Required), ("optional", IfMatchRule::Optional)];
const ON_STALE: [(&str, OnStale); 3] =
    [("reject", OnStale::Reject), ("overwrite", OnStale::Overwrite), ("merge", OnStale::Merge)];
/// Words of `on_stale` that have no meaning yet.
const ON_STALE_LATER: [&str; 1] = ["review"];

const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
const BYTES: u64 = 256 << 10;
/// Largest limit of a tagged representation. A longer one would be hashed for too long while other
/// requests wait.
const BYTES_MAX: u64 = 16 << 20;
const ACCEPT: HeaderValue = HeaderValue::from_static("application/json");
const KEEP: Duration = Duration::from_secs(3600);

/// A word for [`VersionSource`].
#[derive(Clone, Copy)]
enum VersionWord {
    Hash,
    Upstream,
}

/// Reads `resource` and `on_stale`. The inner value is `None` if the route has no `resource`.
pub(super) fn read(route: &Table<'_>) -> Option<Option<Arc<ResourceRule>>> {
    let on_stale = match route.get("on_stale") {
        Some(value) => value.choice(&ON_STALE, &ON_STALE_LATER),
        None => Some(OnStale::Reject),
    };
    let Some(value) = route.get("resource") else {
        if let Some(value) = route.get("on_stale").filter(|value| value.span.given) {
            value.fault("the route has no versions to compare: set resource, or remove on_stale");
        }
        return on_stale.map(|_| None);
    };
    let table = value.table(EXPECTED)?;
    let versions =
        table.get("versions").map_or(Some(VersionSource::Hash), |value| read_versions(&value));
    let if_match = table
        .get("if_match")
        .map_or(Some(IfMatchRule::Required), |value| value.choice(&IF_MATCH, &[]));
    let duration =
        |name, default| table.get(name).map_or(Some(default), |value: Value<'_>| value.duration());
    let (lock_timeout, keep) = (duration("lock_timeout", LOCK_TIMEOUT), duration("keep", KEEP));
    let bytes = table.get("bytes").map_or(Some(BYTES), |value| read_bytes(&value));
    let accept = table.get("accept").map_or(Some(ACCEPT), |value| {
        value.parsed(ACCEPT_EXPECTED, |text| {
            HeaderValue::from_str(text).ok().filter(|_| text.contains('/'))
        })
    });
    let per = table.get("per").map_or(Some(Vec::new()), |value| read_per(&value));
    table.finish();
    Some(Some(Arc::new(ResourceRule {
        upstream: DEFAULT_UPSTREAM.into(),
        versions: versions?,
        if_match: if_match?,
        on_stale: on_stale?,
        lock_timeout: lock_timeout?,
        bytes: usize::try_from(bytes?).ok()?,
        accept: accept?,
        per: per?,
        keep: keep?,
    })))
}

fn read_versions(value: &Value<'_>) -> Option<VersionSource> {
    if value.is_text() {
        return Some(match value.choice(&VERSIONS, &[])? {
            VersionWord::Hash => VersionSource::Hash,
            VersionWord::Upstream => VersionSource::Upstream,
        });
    }
    let table = value.table(VERSIONS_EXPECTED)?;
    let body = table.get("body");
    if body.is_none() {
        value.fault(format!("expected {VERSIONS_EXPECTED}"));
    }
    table.finish();
    body?.parsed(POINTER_EXPECTED, Pointer::parse).map(VersionSource::Member)
}

fn read_bytes(value: &Value<'_>) -> Option<u64> {
    let bytes = value.size(1)?;
    if bytes > BYTES_MAX {
        value.fault("more than the limit of 16MiB: one that long is relayed without a tag");
        return None;
    }
    Some(bytes)
}

fn read_per(value: &Value<'_>) -> Option<Vec<HeaderName>> {
    let field = |text: &str| {
        let name = header(text.strip_prefix("header:")?)?;
        (!FRAMING.contains(&name.as_str())).then_some(name)
    };
    value.list_of(PER_EXPECTED, PER_ITEM_EXPECTED, field)
}

/// Completes the policy of a route with `resource`.
pub(super) fn complete(policy: &mut Policy, upstream: Option<&str>) {
    let Some(rule) = &mut policy.resource else { return };
    if let Some(upstream) = upstream {
        Arc::make_mut(rule).upstream = upstream.into();
    }
    if !rule.makes_tags() {
        // A write that the upstream refuses for its condition has done nothing. If the refusal
        // were the result of its key, a retry with the current tag would get it too.
        policy.statuses.release(StatusCode::PRECONDITION_FAILED);
        policy.statuses.release(StatusCode::PRECONDITION_REQUIRED);
    }
}

/// Refuses what a route with `resource` can't be.
pub(super) fn check(route: &Table<'_>, policy: &Policy, methods: &[Method]) {
    let (Some(_), Some(value)) = (&policy.resource, route.get("resource")) else { return };
    if policy.mode == Mode::Shadow {
        value.fault(
            "can't be used with mode = \"shadow\": a route that only watches makes no tags and \
             compares none",
        );
    }
    if policy.on_failure == OnFailure::FailOpen {
        value.fault(
            "can't be used with on_failure = \"fail_open\": without the store no update can be \
             kept from being lost; set on_failure = \"fail_closed\" on the route",
        );
    }
    if let (Some(rule), Some(value)) = (&policy.resource, route.get("on_stale"))
        && rule.on_stale == OnStale::Merge
        && !methods.contains(&Method::PATCH)
    {
        value.fault(
            "only patches can be merged, and PATCH is not among the route's methods: add it, or \
             set on_stale = \"reject\"",
        );
    }
    if let (Some(rule), Some(value)) = (&policy.resource, route.get("on_stale"))
        && rule.on_stale != OnStale::Reject
        && !rule.makes_tags()
    {
        value.fault(
            "needs tags that the gateway makes: with versions = \"upstream\" the upstream compares \
             versions itself; set on_stale = \"reject\"",
        );
    }
}
