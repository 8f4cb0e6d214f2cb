//! Tests of values that a configuration sets.

use std::path::PathBuf;

use http::{HeaderMap, StatusCode};

use super::*;
use crate::engine::*;
use crate::key::{CookieName, KeySyntax};

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[test]
fn an_upstream_is_all_it_takes() {
    let config = load("").unwrap();
    assert_eq!(config.listen, "127.0.0.1:8080".parse().unwrap());
    assert_eq!(config.admin, "127.0.0.1:8081".parse().unwrap());
    assert_eq!(config.drain_timeout, 75 * SECOND);
    assert_eq!(config.problem_base_url, None);
    assert_eq!(config.store.url, StoreUrl::File("onceward-data".into()));
    assert_eq!(config.store.timeout, SECOND / 2);
    assert_eq!((config.limits.request_body, config.limits.buffered_bytes), (1 << 20, 256 << 20));
    assert_eq!((config.limits.waiters_per_key, config.limits.header_bytes), (64, 64 << 10));
    assert_eq!(config.warnings, Vec::<String>::new());

    let upstream = &config.upstream;
    assert_eq!(
        (upstream.name.as_str(), upstream.url.to_string().as_str()),
        ("default", "http://127.0.0.1:9000")
    );
    assert_eq!((upstream.connect_timeout, upstream.response_timeout), (SECOND, 60 * SECOND));
    assert_eq!((upstream.idle_timeout, upstream.host), (4 * SECOND, HostHeader::Upstream));
}

#[test]
fn without_routes_every_post_and_patch_with_a_key_is_protected() {
    let config = load("").unwrap();
    let [route] = config.routes.as_slice() else { panic!("{:?}", config.routes) };
    assert_eq!(route.name, "default");
    assert_eq!(&*route.policy.route, "default");
    assert_eq!(route.paths, ["/", "/{*rest}"]);
    assert_eq!(route.methods, [http::Method::POST, http::Method::PATCH]);
    assert!(!route.policy.key.required);
    assert_eq!(config.upstream_of(route).name, "default");

    // If the file has routes, no other requests are protected.
    let config = load_route("").unwrap();
    assert_eq!(config.routes.len(), 1);
    assert_eq!(config.routes[0].paths, ["/p"]);
}

#[test]
fn a_route_has_the_defaults_of_the_draft() {
    let RouteConfig { name, methods, policy, .. } = route("");
    assert_eq!(name, "/p");
    assert_eq!(methods, [http::Method::POST]);
    assert_eq!(policy.mode, Mode::Enforce);
    assert_eq!(key_of(&policy), "header idempotency-key");
    assert_eq!(
        (policy.key.required, policy.key.max_length, policy.key.syntax),
        (false, 255, KeySyntax::Lenient)
    );
    assert_eq!(policy.scope, ScopeRule::Shared);
    let CallerRule::Headers(caller) = &policy.caller else { panic!("{:?}", policy.caller) };
    assert_eq!(caller, &["authorization", "x-api-key", "cookie"]);
    assert_eq!(policy.fingerprint, FingerprintRule::Json(Vec::new()));
    assert_eq!((policy.on_in_flight, policy.wait_timeout), (OnInFlight::Reject, 10 * SECOND));
    assert_eq!((policy.on_mismatch, policy.mismatch_status.as_u16()), (OnMismatch::Reject, 422));
    assert!(matches!(policy.on_uncertain, OnUncertain::Hold));
    assert_eq!(policy.uncertain_after, 60 * SECOND);
    assert_eq!((policy.retention, policy.tombstone), (DAY, Duration::ZERO));
    assert_eq!((policy.unsettled_retention, policy.lease), (30 * DAY, 30 * SECOND));
    assert_eq!(policy.on_failure, OnFailure::FailClosed);
    assert!(policy.drop_headers.is_empty() && !policy.stripe_should_retry);
}

fn key_of(policy: &Policy) -> String {
    route::key_location(&policy.key)
}

#[test]
fn a_key_is_overridden_value_by_value() {
    let paypal = route("profile = \"paypal\"\nkey = { required = false }").policy;
    assert_eq!(key_of(&paypal), "header paypal-request-id");
    assert_eq!(
        (paypal.key.required, paypal.key.min_length, paypal.key.max_length),
        (false, 1, 108)
    );
    let long = route("key = { min_length = 22, max_length = 22, syntax = \"bare\" }").policy.key;
    assert_eq!((long.min_length, long.max_length, long.syntax), (22, 22, KeySyntax::Bare));

    let moved = route("profile = \"checkout\"\nkey = { body = \"/key\" }").policy;
    assert_eq!(key_of(&moved), "body /key");
    assert_eq!((moved.key.max_length, moved.key.syntax), (36, KeySyntax::UuidV4));

    let either = route("key = { header = \"X-Key\", body = \"/a~1b\" }").policy;
    assert_eq!(key_of(&either), "header x-key or body /a~1b");

    let derived = route(
        "key = { derive = [\"path\", \"query:p\", \"header:X-U\", \"body:/o/id\", \"body_hash\"] }",
    )
    .policy;
    assert_eq!(key_of(&derived), "derived from path, query:p, header:x-u, body:/o/id, body_hash");
    assert!(derived.key.required);
}

#[test]
fn the_path_is_a_part_of_the_identity_where_the_route_asks_for_it() {
    for (lines, by_path) in [
        ("", false),
        ("identity = [\"route\"]", false),
        ("identity = [\"path\"]", true),
        ("identity = [\"route\", \"path\"]", true),
    ] {
        assert_eq!(route(lines).policy.by_path, by_path, "{lines}");
    }
}

#[test]
fn a_verified_scope_is_the_caller_as_well() {
    let one = route("scope = { jwt = { jwks = \"keys.json\" } }");
    assert_eq!(
        (one.jwks, one.policy.caller),
        (Some(JwksSource::File("keys.json".into())), CallerRule::Scope)
    );
    let usual = TokenRule {
        header: http::header::AUTHORIZATION,
        claim: "sub".into(),
        issuer: None,
        audience: None,
    };
    assert_eq!(one.policy.scope, ScopeRule::Token(usual.into()));

    let jwt = "header = \"X-Jwt\", claim = \"tenant\", issuer = \"i\", audience = \"a\", \
               ca_file = \"ca.pem\"";
    let other = route(&format!(
        "scope = {{ jwt = {{ {jwt}, jwks = \"https://id.example:8443/a/jwks?b=c\" }} }}\n\
         caller = \"scope\""
    ));
    let rule = TokenRule {
        header: "x-jwt".parse().unwrap(),
        claim: "tenant".into(),
        issuer: Some("i".into()),
        audience: Some("a".into()),
    };
    assert_eq!(
        (other.policy.scope, other.policy.caller),
        (ScopeRule::Token(rule.into()), CallerRule::Scope)
    );
    let Some(JwksSource::Server { url, path, ca_file }) = other.jwks else {
        panic!("{:?}", other.jwks)
    };
    assert_eq!(
        (url.to_string().as_str(), path.as_str()),
        ("https://id.example:8443", "/a/jwks?b=c")
    );
    assert_eq!(ca_file, Some("ca.pem".into()));

    let tls = "[tls]\ncert = \"a\"\nkey = \"a\"\nclient_ca = \"a\"\n[[routes]]\npath = \"/p\"\n";
    let mutual =
        load(&format!("{tls}scope = {{ client_cert = \"subject\" }}")).unwrap().routes.remove(0);
    assert_eq!(
        (mutual.policy.scope, mutual.policy.caller),
        (ScopeRule::ClientCertificate, CallerRule::Scope)
    );

    for (url, warned) in [
        ("http://id.example/jwks", 1),
        ("http://127.0.0.1:1/jwks", 0),
        ("http://[::1]/jwks", 0),
        ("https://id.example", 0),
    ] {
        let config = load_route(&format!("scope = {{ jwt = {{ jwks = \"{url}\" }} }}")).unwrap();
        assert_eq!(config.warnings.len(), warned, "{url}: {:?}", config.warnings);
    }
}

#[test]
fn scope_caller_and_fingerprint_are_read() {
    let one = route(
        "scope = { header = \"X-Tenant\" }\ncaller = \"scope\"\nfingerprint = { body = \"raw\" }",
    )
    .policy;
    assert_eq!(one.scope, ScopeRule::Headers(vec!["x-tenant".parse().unwrap()]));
    assert_eq!(one.caller, CallerRule::Scope);
    assert_eq!(one.fingerprint, FingerprintRule::Raw);

    let two = route(
        "scope = { headers = [\"A\", \"B\"] }\ncaller = { headers = [\"C\"] }\nfingerprint = { \
         ignore = [\"/metadata/sent_at\"] }",
    )
    .policy;
    assert_eq!(two.scope, ScopeRule::Headers(vec!["a".parse().unwrap(), "b".parse().unwrap()]));
    assert_eq!(two.caller, CallerRule::Headers(vec!["c".parse().unwrap()]));
    assert!(matches!(
        &two.fingerprint,
        FingerprintRule::Json(ignore) if ignore[0].tokens() == ["metadata", "sent_at"]
    ));
    let session = || CookieName::parse("session").unwrap();
    let three = route("scope = { cookie = \"session\" }\ncaller = { cookie = \"session\" }").policy;
    assert_eq!(
        (three.scope, three.caller),
        (ScopeRule::Cookie(session()), CallerRule::Cookie(session()))
    );
    assert_eq!(
        route("fingerprint = { body = \"none\" }").policy.fingerprint,
        FingerprintRule::WithoutBody
    );
}

fn verdict(policy: &Policy, code: u16, field: Option<&'static str>) -> Verdict {
    let mut headers = HeaderMap::new();
    if let Some(field) = field {
        headers.insert(field, "1".parse().unwrap());
    }
    policy.statuses.verdict(StatusCode::from_u16(code).unwrap(), &headers)
}

#[test]
fn profiles_judge_statuses_as_their_vendors_do() {
    let ietf = route("").policy;
    assert_eq!(verdict(&ietf, 404, None), Verdict::Store);
    assert_eq!(verdict(&ietf, 429, None), Verdict::Release);
    assert_eq!(verdict(&ietf, 503, None), Verdict::Uncertain);
    assert_eq!(verdict(&ietf, 503, Some("retry-after")), Verdict::Release);

    let stripe = route("profile = \"stripe\"").policy;
    for code in [401, 409, 429] {
        assert_eq!(verdict(&stripe, code, None), Verdict::Release);
    }
    assert_eq!(
        (verdict(&stripe, 500, None), verdict(&stripe, 402, None)),
        (Verdict::Store, Verdict::Store)
    );
    assert_eq!((stripe.mismatch_status.as_u16(), stripe.stripe_should_retry), (400, true));
    let dialect = |lines: &str| route(lines).policy.errors;
    assert_eq!(dialect(""), Dialect::Problem);
    assert_eq!(stripe.errors, Dialect::Stripe);
    assert_eq!(dialect("profile = \"square\""), Dialect::Square);
    assert_eq!(dialect("profile = \"paypal\""), Dialect::PayPal);
    assert_eq!(dialect("profile = \"stripe\"\nerrors = \"problem\""), Dialect::Problem);

    for name in profiles::TEXT.lines().filter_map(|line| line.strip_prefix('[')?.strip_suffix(']'))
    {
        let policy = route(&format!("profile = \"{name}\"")).policy;
        for redirect in [307, 308] {
            assert_eq!(verdict(&policy, redirect, None), Verdict::Release, "{name}: {redirect}");
        }
        assert_eq!(
            verdict(&policy, 303, None),
            Verdict::Store,
            "{name}: a result may be elsewhere"
        );
    }
    for name in ["square", "checkout", "google", "modern-treasury"] {
        let success_only = route(&format!("profile = \"{name}\"")).policy;
        assert_eq!(verdict(&success_only, 201, None), Verdict::Store);
        assert_eq!(verdict(&success_only, 422, None), Verdict::Release);
        assert_eq!(verdict(&success_only, 500, None), Verdict::Uncertain);
        assert_eq!(verdict(&success_only, 503, Some("retry-after")), Verdict::Release);
    }
    assert_eq!(route("profile = \"modern-treasury\"").policy.on_mismatch, OnMismatch::Replay);
    assert_eq!(route("profile = \"adyen\"").policy.retention, 31 * DAY);
}

#[test]
fn the_profiles_of_agentic_commerce_follow_their_protocols() {
    let acp = route("profile = \"acp\"").policy;
    for (code, field, expected) in [
        (201, None, Verdict::Store),
        (402, None, Verdict::Store),
        (429, None, Verdict::Store),
        (500, None, Verdict::Uncertain),
        (503, None, Verdict::Uncertain),
        (503, Some("retry-after"), Verdict::Release),
    ] {
        assert_eq!(verdict(&acp, code, field), expected, "{code}");
    }
    assert_eq!(
        (acp.errors, acp.by_path, acp.echo_key, acp.key.required),
        (Dialect::Acp, true, true, true)
    );
    let moved = route("profile = \"acp\"\nkey = { body = \"/key\" }").policy;
    let shown = load_route("profile = \"acp\"").unwrap().describe();
    assert!(
        shown.contains("key header idempotency-key (required) on each path, kept 1d"),
        "{shown}"
    );
    assert!(!moved.echo_key, "a profile asks for no more than the route's key has");

    let ucp =
        load("[store]\non_failure = \"fail_open\"\n[[routes]]\npath = \"/p\"\nprofile = \"ucp\"")
            .unwrap()
            .routes
            .remove(0);
    assert_eq!(ucp.methods, [http::Method::POST, http::Method::PUT]);
    let ucp = ucp.policy;
    assert_eq!(
        (ucp.errors, ucp.mismatch_status.as_u16(), ucp.on_failure),
        (Dialect::Ucp, 409, OnFailure::FailClosed)
    );
    assert_eq!((ucp.key.min_length, ucp.key.syntax, ucp.retention), (22, KeySyntax::Bare, 2 * DAY));
    assert_eq!((ucp.fingerprint, ucp.by_path), (FingerprintRule::Raw, false));
}

#[test]
fn a_status_that_a_route_lists_leaves_the_inherited_lists() {
    let policy = route("uncertain_status = [\"500\", \"502\"]\nrelease_status = [\"4XX\"]").policy;
    assert_eq!(verdict(&policy, 500, None), Verdict::Uncertain);
    assert_eq!(verdict(&policy, 501, None), Verdict::Store);
    assert_eq!(verdict(&policy, 404, None), Verdict::Release);
}

#[test]
fn a_class_that_a_route_does_not_store_takes_its_codes_out_of_the_inherited_store_status() {
    for list in ["release_status", "uncertain_status"] {
        let policy = route(&format!("{list} = [\"5xx\"]")).policy;
        let expected = if list == "release_status" { Verdict::Release } else { Verdict::Uncertain };
        for code in [500, 501, 505] {
            assert_eq!(verdict(&policy, code, None), expected, "{list}: {code}");
        }
    }
    let policy = route("uncertain_status = [\"4xx\", \"5xx\"]").policy;
    assert_eq!(verdict(&policy, 404, None), Verdict::Uncertain);
    assert_eq!(verdict(&policy, 429, None), Verdict::Release, "release_status keeps its codes");
    assert_eq!(
        verdict(&policy, 503, Some("retry-after")),
        Verdict::Release,
        "a code with a condition stays"
    );

    let policy = route("store_status = [\"2xx\", \"5xx\"]").policy;
    assert_eq!(
        verdict(&policy, 502, None),
        Verdict::Uncertain,
        "a class in store_status removes nothing"
    );
    let policy = route("store_status = [\"2xx\", \"500\"]\nrelease_status = [\"5xx\"]").policy;
    assert_eq!(
        verdict(&policy, 500, None),
        Verdict::Store,
        "a code that the route itself sets stays"
    );
}

#[test]
fn check_prints_the_status_lists_that_result() {
    let shown =
        load_route("release_status = [\"5xx\"]\nuncertain_status = [\"404\"]").unwrap().describe();
    let lines: Vec<&str> = shown
        .lines()
        .skip_while(|line| !line.contains("statuses:"))
        .take(3)
        .map(str::trim)
        .collect();
    assert_eq!(
        lines,
        ["statuses: store 2xx, 3xx, 4xx", "release 5xx", "uncertain 404, all others"],
        "{shown}"
    );
    let shown = load_route("").unwrap().describe();
    for list in [
        "store 2xx, 3xx, 4xx, 500, 501\n",
        "release 307, 308, 401, 403, 407, 408, 417, 425, 429, 503 retry-after\n",
        "uncertain all others\n",
    ] {
        assert!(shown.contains(list), "{list}{shown}");
    }
}

#[test]
fn what_is_unsettled_is_kept_as_long_as_what_is_settled() {
    let policy = route("retention = \"60d\"\ntombstone = \"10d\"").policy;
    assert_eq!(policy.unsettled_retention, 70 * DAY + 30 * SECOND);
    assert_eq!(route("profile = \"square\"").policy.unsettled_retention, 365 * DAY + 30 * SECOND);
}

#[test]
fn a_route_takes_times_and_failure_from_its_surroundings() {
    let text = "[upstream]\nresponse_timeout = \"20s\"\n[upstreams.slow]\n\
                url = \"https://[::1]:9443/\"\nresponse_timeout = \"90s\"\n\
                [store]\non_failure = \"fail_open\"\n\
                [[routes]]\npath = \"/a\"\n[[routes]]\npath = \"/b/\"\nupstream = \"slow\"\n\
                on_failure = \"fail_closed\"";
    let config = load(text).unwrap();
    let [a, b] = config.routes.as_slice() else { panic!("{:?}", config.routes) };
    assert_eq!((a.policy.uncertain_after, a.policy.on_failure), (20 * SECOND, OnFailure::FailOpen));
    assert_eq!(
        (b.policy.uncertain_after, b.policy.on_failure),
        (90 * SECOND, OnFailure::FailClosed)
    );
    assert_eq!((b.name.as_str(), b.paths.as_slice()), ("/b/", ["/b".to_owned()].as_slice()));
    assert_eq!(
        config.upstream_of(b).url,
        UpstreamUrl { tls: true, authority: "[::1]:9443".parse().unwrap() }
    );
    assert_eq!(config.upstream_of(b).connect_timeout, SECOND);
    assert_eq!(config.drain_timeout, 105 * SECOND);
}

#[test]
fn flags_beat_the_file_which_beats_the_defaults() {
    let text = "listen = \"127.0.0.1:1\"\nadmin = \"127.0.0.1:2\"\n[upstream]\n\
                url = \"http://file\"\n[store]\nurl = \"file:dir\"";
    let file = Config::load(Some(("f", text)), Overrides::default()).unwrap();
    assert_eq!((file.listen.port(), file.admin.port()), (1, 2));
    assert_eq!(
        (file.upstream.url.to_string().as_str(), file.store.url.to_string().as_str()),
        ("http://file", "file:dir")
    );

    let some = |text: &str| Some(text.to_owned());
    let flags = Overrides {
        upstream: some("https://flag:8443"),
        listen: some("127.0.0.1:3"),
        admin: some("[::1]:4"),
        store: some("memory:"),
    };
    let flagged = Config::load(Some(("f", text)), flags).unwrap();
    assert_eq!((flagged.listen.port(), flagged.admin.port()), (3, 4));
    assert_eq!(
        (flagged.upstream.url.to_string().as_str(), flagged.store.url),
        ("https://flag:8443", StoreUrl::Memory)
    );
}

#[test]
fn stores_are_known_by_their_urls() {
    let parse = |text: &str| StoreUrl::parse(text).unwrap();
    assert_eq!(
        parse("file:///var/lib/onceward"),
        StoreUrl::File(PathBuf::from("/var/lib/onceward"))
    );
    assert_eq!(parse("file:data"), StoreUrl::File(PathBuf::from("data")));
    assert!(matches!(parse("redis://:pw@h:1/2"), StoreUrl::Redis { tls: false, unix: false, .. }));
    assert!(matches!(parse("rediss://h"), StoreUrl::Redis { tls: true, unix: false, .. }));
    assert!(matches!(
        parse("unix:///run/redis.sock"),
        StoreUrl::Redis { tls: false, unix: true, .. }
    ));
    let texts =
        |urls: &[Secret]| urls.iter().map(|url| url.expose().to_owned()).collect::<Vec<_>>();
    let StoreUrl::Cluster { nodes, tls: false, .. } = parse("redis+cluster://me:p%2Fw@a:1,b:2,c")
    else {
        panic!("a cluster")
    };
    assert_eq!(
        texts(&nodes),
        ["redis://me:p%2Fw@a:1", "redis://me:p%2Fw@b:2", "redis://me:p%2Fw@c"]
    );
    let sentinel = parse("rediss+sentinel://:pw@a,[::1]:7/main/2?sentinel_password=own");
    let StoreUrl::Sentinel { sentinels, primary, name, tls: true, .. } = sentinel else {
        panic!("sentinels")
    };
    assert_eq!(
        (texts(&sentinels), name.as_str()),
        (vec!["rediss://:own@a:26379".to_owned(), "rediss://:own@[::1]:7".to_owned()], "main")
    );
    assert_eq!(primary.expose(), "rediss://:pw@primary/2");
    for text in [
        "redis+cluster://",
        "redis+cluster://a/1",
        "redis+cluster://a,,b",
        "redis+sentinel://a",
        "redis+sentinel://a/m?x=1",
    ] {
        assert!(StoreUrl::parse(text).is_err(), "{text}");
    }
    for text in [
        "",
        "memory",
        "memory:x",
        "file:",
        "redis:",
        "redis://",
        "redis://h/x",
        "valkey://h",
        "http://h",
        "/dir",
    ] {
        assert!(StoreUrl::parse(text).is_err(), "{text}");
    }
}

#[test]
fn a_store_has_a_namespace_of_its_own_or_of_its_url() {
    let store = |text: &str| load(&format!("[store]\n{text}")).unwrap().store;
    assert_eq!(store("url = \"redis://a\"").namespace, "onceward");
    let own = store("url = \"redis://a\"\nnamespace = \"billing_eu-1\"");
    assert_eq!(
        (own.namespace.as_str(), own.location().as_str()),
        ("billing_eu-1", "redis://a (namespace billing_eu-1)")
    );
    for (url, client) in [
        ("redis://:pw@h:1/2?namespace=n-1", "redis://:pw@h:1/2"),
        ("redis+cluster://a:1,b:2?namespace=n-1", "redis+cluster://a:1,b:2"),
        ("unix:///s?db=2&namespace=n-1&pass=p", "unix:///s?db=2&pass=p"),
        (
            "redis+sentinel://a/m?namespace=n-1&sentinel_password=p",
            "redis+sentinel://a/m?sentinel_password=p",
        ),
    ] {
        let (parsed, namespace) = StoreUrl::with_namespace(url).unwrap();
        assert_eq!(
            (parsed, namespace.as_deref()),
            (StoreUrl::parse(client).unwrap(), Some("n-1")),
            "{url}"
        );
        assert_eq!(
            store(&format!("url = \"{url}\"\nnamespace = \"other\"")).namespace,
            "n-1",
            "the url's beats the key"
        );
    }
    assert_eq!(
        StoreUrl::with_namespace("file:a?namespace=n").unwrap(),
        (StoreUrl::File("a?namespace=n".into()), None)
    );
    for odd in ["", "a:b", "a%20b", "a{b", "a&namespace=b", &"a".repeat(65)] {
        assert!(StoreUrl::with_namespace(&format!("redis://h?namespace={odd}")).is_err(), "{odd}");
    }
    let unused = load("[store]\nurl = \"file:a\"\nnamespace = \"mine\"").unwrap();
    assert_eq!(
        (unused.store.location().as_str(), unused.warnings.len()),
        ("file:a", 1),
        "{:?}",
        unused.warnings
    );
}

#[test]
fn a_problem_type_can_follow_its_base() {
    let base = |url: &str| {
        load(&format!("problem_base_url = \"{url}\""))
            .map(|config| config.problem_base_url.unwrap())
    };
    assert_eq!(
        base("https://docs.example.com/problems/").unwrap(),
        "https://docs.example.com/problems/"
    );
    assert_eq!(
        base("https://docs.example.com/problems").unwrap(),
        "https://docs.example.com/problems/"
    );
    assert_eq!(
        base("https://docs.example.com/problems#").unwrap(),
        "https://docs.example.com/problems#"
    );
    for url in ["docs", "ftp://docs/", "https://docs/<x>", "/problems"] {
        assert!(base(url).is_err(), "{url}");
    }
}

#[test]
fn what_is_legal_and_dangerous_is_warned_of() {
    let text = "[store]\nurl = \"memory:\"\non_failure = \"fail_open\"\nca_file = \"x\"\n\
                local_cache = \"1MiB\"\n\
                [[routes]]\npath = \"/p\"\nkey = { derive = [\"body_hash\"] }\n\
                on_failure = \"fail_open\"";
    let warnings = load(text).unwrap().warnings;
    let keys: Vec<&str> =
        warnings.iter().map(|warning| warning.split(':').next().unwrap()).collect();
    let of_store = ["store.url", "store.local_cache", "store.on_failure", "store.ca_file"];
    assert_eq!(keys, [&of_store[..], &["routes[0].key.derive", "routes[0].on_failure"]].concat());
    let probed =
        "identity = [\"path\"]\non_uncertain = \"probe\"\nprobe = { path = \"/by-key/{key}\" }";
    assert_eq!(load_route(probed).unwrap().warnings.len(), 0, "one path");
    let several = load(&format!("[[routes]]\npath = \"/p/{{*rest}}\"\n{probed}")).unwrap().warnings;
    assert!(
        several.len() == 1 && several[0].starts_with("routes[0].probe: asks by the key alone"),
        "{several:?}"
    );
    let signed = load_route("key = { syntax = \"bare\" }\nupstream_key = { max_length = 40 }")
        .unwrap()
        .warnings;
    assert!(
        signed.len() == 1
            && signed[0].starts_with(
                "routes[0].upstream_key: changes a field that clients may have signed"
            ),
        "{signed:?}"
    );
}

#[test]
fn records_are_kept_in_the_process_where_one_server_tells_of_changes() {
    assert_eq!(load("").unwrap().store.local_cache, 0);
    for url in ["redis://a", "rediss://a", "unix:///a", "redis+sentinel://a/m"] {
        let config = load(&format!("[store]\nurl = \"{url}\"\nlocal_cache = \"64MiB\"")).unwrap();
        assert_eq!(
            (config.store.local_cache, config.warnings),
            (64 << 20, Vec::<String>::new()),
            "{url}"
        );
    }
}

#[test]
fn a_configuration_is_described_in_words() {
    let text = include_str!("../../../config/redis.toml");
    let config = Config::load(Some(("redis.toml", text)), Overrides::default()).unwrap();
    assert_eq!(
        config.describe(),
        include_str!("../../../tests/fixtures/config/redis_described.txt")
    );
}

#[test]
fn secrets_are_read_when_they_are_needed() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    std::fs::write(&file, "from-file\n").unwrap();
    let text = format!(
        "[admin_auth]\ntokens = [{{ name = \"a\", role = \"operate\", env = \"A\" }}, {{ \
         name = \"b\", role = \"read\", file = {:?} }}]",
        file
    );
    let config = load(&text).unwrap();
    let secrets =
        config.resolve_secrets(|name| (name == "A").then(|| "from-env".to_owned())).unwrap();
    let [a, b] = secrets.admin_tokens.as_slice() else { panic!("{secrets:?}") };
    assert_eq!((a.role, a.secret.expose()), (Role::Operate, "from-env"));
    assert_eq!((b.role, b.secret.expose()), (Role::Read, "from-file"));
    assert!(!format!("{secrets:?}").contains("from-"));

    let refusal = |value: Option<&'static str>| {
        config.resolve_secrets(|_| value.map(str::to_owned)).unwrap_err().to_string()
    };
    assert!(refusal(None).contains("admin_auth.tokens[0]: the environment variable A is not set"));
    assert!(refusal(Some("")).contains("expected a secret of visible ASCII"));
    assert!(refusal(Some("two words")).contains("expected a secret of visible ASCII"));
    assert!(refusal(Some("from-file")).contains("admin_auth.tokens[1]: the same secret as \"a\""));
    std::fs::remove_file(&file).unwrap();
    assert!(refusal(Some("x")).contains("admin_auth.tokens[1]: "));
}

#[test]
fn hashing_secrets_are_long_and_differ() {
    let config = load("[hashing]\nsecrets = [{ env = \"A\" }, { env = \"B\" }]").unwrap();
    let (long, other) = ("a".repeat(32), "b".repeat(32));
    let read = |a: &str, b: &str| {
        let (a, b) = (a.to_owned(), b.to_owned());
        config.resolve_secrets(move |name| Some(if name == "A" { a.clone() } else { b.clone() }))
    };
    let secrets = read(&long, &other).unwrap();
    assert_eq!(
        secrets.hash_secrets.iter().map(|secret| secret.expose()).collect::<Vec<_>>(),
        [&long, &other]
    );
    assert!(!format!("{secrets:?}{config:?}").contains(&long));
    let refusal = |a: &str, b: &str| read(a, b).unwrap_err().to_string();
    let text = refusal(&long, &other[..31]);
    assert!(
        text.contains("hashing.secrets[1]: expected a secret of at least 32 bytes")
            && !text.contains(&other[..31]),
        "{text}"
    );
    assert!(refusal(&long, &long).contains("hashing.secrets[1]: the same secret a second time"));
}

#[test]
fn requests_are_exported_where_the_file_asks_for_it() {
    let off = load("").unwrap();
    assert!(off.access_log.is_none() && off.tracing.is_none());
    let text = "[access_log]\nformat = \"combined\"\n[tracing]\notlp_endpoint = \"https://c\"\n\
                sample_ratio = 0.25\n\
                headers = { A = \"x\", B = { env = \"B\" } }";
    let config = load(text).unwrap();
    let log = config.access_log.as_ref().unwrap();
    assert_eq!((log.format, log.path.to_str()), (AccessLogFormat::Combined, Some("-")));
    let tracing = config.tracing.as_ref().unwrap();
    assert_eq!(
        (tracing.sample_ratio, tracing.path.as_str(), tracing.headers.len()),
        (0.25, "/v1/traces", 1)
    );
    let text = config.describe();
    assert!(
        text.contains("requests  logged to -\n")
            && text.contains("traces    exported to https://c/v1/traces, ratio 0.25 of"),
        "{text}"
    );
    let secrets =
        config.resolve_secrets(|name| (name == "B").then(|| "c4n4ry".to_owned())).unwrap();
    assert_eq!(secrets.tracing_headers["b"], "c4n4ry");
    assert!(!format!("{config:?}{secrets:?}").contains("c4n4ry"));
    assert!(
        config
            .resolve_secrets(|_| None)
            .unwrap_err()
            .to_string()
            .contains("tracing.headers.b: the environment variable B")
    );
}

#[test]
fn chosen_fields_are_read_where_there_is_a_log_to_tell_them_to() {
    let fields = "[[routes]]\npath = \"/p\"\nfields = { order = \"request:/order/id\", \
                  payment = \"response:/id\" }\n";
    let config = load(&format!("[log]\nenabled = true\n{fields}")).unwrap();
    let read: Vec<_> = config.routes[0]
        .policy
        .fields
        .iter()
        .map(|at| (at.name.as_str(), at.side, at.pointer.to_string()))
        .collect();
    let expected = [
        ("order", Side::Request, "/order/id".to_owned()),
        ("payment", Side::Response, "/id".to_owned()),
    ];
    assert_eq!((read.as_slice(), config.warnings.len()), (&expected[..], 0));
    assert!(config.describe().contains("fields order, payment"), "{}", config.describe());

    let sealed = "[encryption]\nkeys = [{ id = \"a\", env = \"A\" }]\n";
    let warned = load(&format!("[log]\nenabled = true\n{sealed}{fields}")).unwrap().warnings;
    assert!(warned[0].starts_with("routes[0].fields: plain text in the event log"), "{warned:?}");

    let unlogged = load(fields).unwrap();
    assert!(unlogged.routes[0].policy.fields.is_empty());
    assert!(
        unlogged.warnings[0].starts_with("routes[0].fields: not used"),
        "{:?}",
        unlogged.warnings
    );
}

#[test]
fn the_read_model_is_there_with_the_log_unless_it_is_switched_off() {
    let redis = "[store]\nurl = \"redis://localhost\"\n[log]\nenabled = true\n";
    let by_itself = load(redis).unwrap();
    assert_eq!(by_itself.read_model, Some(ReadModelConfig { path: None, project: true }));
    assert!(by_itself.describe().contains(
        "log       of every change, kept for 30d; read model in $STATE_DIRECTORY, or else memory\n"
    ));

    let apart =
        load(&format!("{redis}[read_model]\npath = \"/data/model.sqlite\"\nproject = false"))
            .unwrap();
    assert_eq!(
        apart.read_model,
        Some(ReadModelConfig { path: Some("/data/model.sqlite".into()), project: false })
    );
    assert!(
        apart
            .describe()
            .contains("read model in /data/model.sqlite, updated by onceward projector\n")
    );

    let off = load(&format!("{redis}[read_model]\nenabled = false")).unwrap();
    assert_eq!(off.read_model, None);
    assert!(off.describe().contains("; no read model\n"), "{}", off.describe());

    let unlogged = load("[read_model]\npath = \"a.sqlite\"").unwrap();
    assert!(
        unlogged.warnings[0].starts_with("read_model.path: not used: the event log is off"),
        "{:?}",
        unlogged.warnings
    );
    assert!(!unlogged.describe().contains("read model"));
}
