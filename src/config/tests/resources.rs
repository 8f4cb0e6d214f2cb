//! Tests of `resource` and `on_stale`.

use std::time::Duration;

use http::HeaderName;

use super::*;
use crate::engine::{IfMatchRule, OnStale, ResourceRule, VersionSource};
use crate::key::Pointer;

const READS: &str = "methods = [\"GET\", \"HEAD\"]\n";

fn rule(lines: &str) -> ResourceRule {
    let resource = route(&format!("{READS}{lines}")).policy.resource;
    resource.unwrap().as_ref().clone()
}

#[test]
fn a_resource_has_defaults_for_all_its_settings() {
    let default = ResourceRule {
        upstream: crate::config::DEFAULT_UPSTREAM.into(),
        versions: VersionSource::Hash,
        if_match: IfMatchRule::Required,
        on_stale: OnStale::Reject,
        lock_timeout: Duration::from_secs(5),
        bytes: 256 << 10,
        accept: "application/json".parse().unwrap(),
        per: Vec::new(),
        keep: Duration::from_secs(3600),
    };
    assert_eq!(rule("resource = {}"), default);
    let documented = DEFAULTS.lines().filter_map(|line| line.strip_prefix("# "));
    let documented: Vec<&str> = documented
        .filter(|line| line.starts_with("resource = ") || line.starts_with("on_stale = "))
        .collect();
    assert_eq!((documented.len(), rule(&documented.join("\n"))), (2, default));
    assert_eq!(
        rule(
            "resource = { versions = { body = \"/meta/version\" }, if_match = \"optional\", \
             lock_timeout = \"1s\", bytes = \"1MiB\", accept = \"application/vnd.a+json\", \
             per = [\"header:X-Tenant\"], keep = \"2h\" }\non_stale = \"reject\""
        ),
        ResourceRule {
            upstream: crate::config::DEFAULT_UPSTREAM.into(),
            versions: VersionSource::Member(Pointer::parse("/meta/version").unwrap()),
            if_match: IfMatchRule::Optional,
            on_stale: OnStale::Reject,
            lock_timeout: Duration::from_secs(1),
            bytes: 1 << 20,
            accept: "application/vnd.a+json".parse().unwrap(),
            per: vec![HeaderName::from_static("x-tenant")],
            keep: Duration::from_secs(7200),
        }
    );
    assert_eq!(rule("resource = { versions = \"upstream\" }").versions, VersionSource::Upstream);
    assert_eq!(route(READS).policy.resource, None);
    let off = format!("{READS}resource = {{}}\nmode = \"off\"");
    assert!(load_route(&off).is_ok(), "a route may be switched off for a while");
}

#[test]
fn a_faulty_resource_is_refused() {
    for (lines, key, text) in [
        ("resource = true", "resource", "a table such as"),
        ("resource = { versions = \"etag\" }", "resource.versions", "\"hash\" or \"upstream\""),
        ("resource = { versions = {} }", "resource.versions", "{ body = \"/version\" }"),
        ("resource = { versions = { body = \"v\" } }", "resource.versions.body", "JSON pointer"),
        ("resource = { versions = { bdy = \"/v\" } }", "resource.versions", "expected"),
        ("resource = { if_match = true }", "resource.if_match", "\"required\" or \"optional\""),
        ("resource = { lock_timeout = \"0s\" }", "resource.lock_timeout", "above zero"),
        ("resource = { keep = \"0s\" }", "resource.keep", "above zero"),
        ("resource = { bytes = \"0B\" }", "resource.bytes", "a size from"),
        ("resource = { bytes = \"17MiB\" }", "resource.bytes", "limit of 16MiB"),
        ("resource = { accept = \"json\" }", "resource.accept", "media types"),
        ("resource = { per = [\"X-Tenant\"] }", "resource.per[0]", "\"header:NAME\""),
        ("resource = { per = [\"header:\"] }", "resource.per[0]", "\"header:NAME\""),
        ("resource = { per = [\"header:Connection\"] }", "resource.per[0]", "\"header:NAME\""),
        ("resource = { ttl = \"1h\" }", "resource.ttl", "no such key"),
        ("on_stale = \"reject\"", "on_stale", "set resource, or remove on_stale"),
        ("resource = {}\non_stale = \"review\"", "on_stale", "not supported yet"),
        ("resource = {}\non_stale = \"merge\"", "on_stale", "only patches can be merged"),
        ("resource = {}\non_stale = \"never\"", "on_stale", "expected \"reject\""),
        ("resource = {}\nmode = \"shadow\"", "resource", "mode = \"shadow\""),
        ("resource = {}\non_failure = \"fail_open\"", "resource", "fail_open"),
    ] {
        let faults = load_route(&format!("{READS}{lines}")).expect_err(lines).0;
        let found = faults
            .iter()
            .any(|fault| fault.key.ends_with(&format!("].{key}")) && fault.text.contains(text));
        assert!(found, "{lines}: {}", Faults(faults));
    }
}

#[test]
fn a_resource_follows_the_stores_policy_unless_its_route_has_one() {
    let store = "[store]\non_failure = \"fail_open\"\n[[routes]]\npath = \"/p\"\n";
    let fault = fault_of(load(&format!("{store}{READS}resource = {{}}")));
    assert!(fault.contains("set on_failure = \"fail_closed\" on the route"), "{fault}");
    let own = format!("{store}{READS}resource = {{}}\non_failure = \"fail_closed\"");
    assert!(load(&own).is_ok());
}

#[test]
fn the_resources_of_another_upstream_are_other_resources() {
    let upstreams = "[upstreams.billing]\nurl = \"http://127.0.0.1:2\"\n";
    let route = "[[routes]]\nname = \"a\"\npath = \"/a\"\nresource = {}\nupstream = \"billing\"";
    let config = load(&format!("{upstreams}{route}")).unwrap_or_else(|faults| panic!("{faults}"));
    let rule = config.routes[0].policy.resource.clone().unwrap();
    assert_eq!(&*rule.upstream, "billing");
}

#[test]
fn an_upstream_that_compares_versions_itself_refuses_a_write_without_doing_it() {
    let verdict = |lines: &str| {
        let statuses = route(lines).policy.statuses;
        let of = |code| {
            statuses.verdict(http::StatusCode::from_u16(code).unwrap(), &http::HeaderMap::new())
        };
        [of(412), of(428), of(413)]
    };
    let (store, release) = (crate::engine::Verdict::Store, crate::engine::Verdict::Release);
    assert_eq!(verdict("resource = { versions = \"upstream\" }"), [release, release, store]);
    assert_eq!(verdict("resource = {}"), [store, store, store]);
    let fault =
        fault_of(load_route("resource = { versions = \"upstream\" }\non_stale = \"overwrite\""));
    assert!(fault.contains("the upstream compares versions itself"), "{fault}");
}

#[test]
fn a_saga_has_no_resource() {
    let text = "[[sagas]]\nname = \"s\"\npath = \"/s\"\nresource = {}\non_stale = \"reject\"";
    let faults = load(text).expect_err("accepted").to_string();
    assert!(faults.contains("a saga has no resource") && faults.contains("has no on_stale"));
}

#[test]
fn check_describes_a_resource() {
    let described = |lines: &str| {
        let lines = format!("{READS}{lines}");
        load_route(&lines).unwrap_or_else(|faults| panic!("{faults}")).describe()
    };
    let text = described(
        "resource = { versions = { body = \"/v\" }, per = [\"header:X-A\", \"header:X-B\"] }",
    );
    let line = "     resource with versions by body /v of at most 262144 bytes, read as \
                application/json, per x-a, x-b\n";
    assert!(text.contains(line), "{text}");
    let text = described("resource = { versions = \"upstream\" }");
    assert!(text.contains("     resource with the upstream's own versions\n"), "{text}");
}
