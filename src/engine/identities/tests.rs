//! Comparisons of configurations with the notes that a store keeps.

use super::*;
use crate::engine::tests::policy;

fn named(route: &str) -> Policy {
    Policy { route: route.into(), ..policy() }
}

fn scoped(route: &str, header: &'static str) -> Policy {
    Policy { scope: ScopeRule::Headers(vec![HeaderName::from_static(header)]), ..named(route) }
}

/// Makes identities of routes. Each covers POST requests for its own path, which has the route's
/// name.
fn of(policies: &[Policy], secrets: &[&str]) -> Identities {
    let paths: Vec<String> =
        policies.iter().map(|policy| format!("/v1/{}", policy.route)).collect();
    let routes: Vec<(&Policy, &str, &str)> =
        policies.iter().zip(&paths).map(|(policy, path)| (policy, "POST", path.as_str())).collect();
    covering(&routes, secrets)
}

/// Makes identities of routes, each with a method and a path.
fn covering(routes: &[(&Policy, &str, &str)], secrets: &[&str]) -> Identities {
    let parts: Vec<(Method, String)> = routes
        .iter()
        .map(|(_, method, path)| (method.parse().unwrap(), (*path).to_owned()))
        .collect();
    let slices = |(method, path)| (std::slice::from_ref(method), std::slice::from_ref(path));
    let routes = routes.iter().zip(parts.iter().map(|(method, path)| slices((method, path))));
    let routes = routes.map(|((policy, _, _), (methods, paths))| (*policy, methods, paths));
    Identities::of(routes, secrets.iter().map(|check| (*check).to_owned()).collect())
}

/// Returns the notes that a store keeps after its first configuration.
fn kept(before: &Identities) -> Notes {
    before.compare(&Notes::default()).next
}

fn derived(parts: Vec<KeyPart>) -> Policy {
    let key = super::super::KeyRule { source: KeySource::Derived(parts), ..policy().key };
    Policy { key, ..policy() }
}

/// Returns the changes of identities from one configuration to the next.
fn changes(before: &Identities, now: &Identities) -> Vec<IdentityChange> {
    now.compare(&kept(before)).changes
}

#[test]
fn the_format_of_the_notes_stays_the_same() {
    let compared = of(&[scoped("payments", "x-account"), named("refunds")], &["0a", "0b"])
        .compare(&Notes::default());
    let text = concat!(
        r#"{"format":1,"secrets":["0a","0b"],"routes":{"payments":"the key, scope by x-account","#,
        r#""refunds":"the key, no scope"}}"#,
    );
    let paths = concat!(
        r#"{"format":1,"routes":{"payments":["POST /v1/payments"],"#,
        r#""refunds":["POST /v1/refunds"]}}"#,
    );
    let notes = Notes { identities: Some(text.into()), paths: Some(paths.into()) };
    assert_eq!((compared.changes.as_slice(), compared.next), ([].as_slice(), notes));
}

#[test]
fn a_route_with_other_rules_is_reported_by_name() {
    let before = of(&[scoped("payments", "x-account"), named("refunds")], &[]);
    let remade = changes(&before, &of(&[scoped("payments", "x-api-key"), named("refunds")], &[]));
    let (before_text, now) =
        ("the key, scope by x-account".into(), "the key, scope by x-api-key".into());
    assert_eq!(
        remade,
        [IdentityChange::Remade { route: "payments".into(), before: before_text, now }]
    );
    assert!(remade[0].to_string().contains("\"payments\""));
    let added = of(&[named("refunds"), named("payouts"), scoped("payments", "x-account")], &[]);
    let compared = added.compare(&kept(&before));
    assert_eq!(compared.changes, [], "the order does not matter, and a new route is recorded");
    assert!(compared.next.identities.unwrap().contains("payouts"));
}

#[test]
fn only_rules_that_identify_operations_are_compared() {
    let supersede = Policy { on_mismatch: OnMismatch::Supersede, ..policy() };
    let header = |name: &'static str| HeaderName::from_static(name);
    let caller = |name| CallerRule::Headers(vec![header(name)]);
    let by_path = Policy { by_path: true, ..policy() };
    let different = [
        policy(),
        scoped("payments", "a"),
        Policy { scope: ScopeRule::Headers(vec![header("a"), header("b")]), ..policy() },
        supersede.clone(),
        Policy { fingerprint: FingerprintRule::Raw, ..supersede.clone() },
        by_path.clone(),
        Policy { path_case: PathCase::Insensitive, ..by_path },
        derived(vec![KeyPart::Path]),
        derived(vec![KeyPart::Path, KeyPart::BodyHash]),
        Policy {
            fingerprint: FingerprintRule::Raw,
            ..derived(vec![KeyPart::Path, KeyPart::BodyHash])
        },
        derived(vec![KeyPart::Query("a".into()), KeyPart::Query("b".into())]),
        derived(vec![KeyPart::Query("a\", query \"b".into())]),
        Policy { caller: caller("a"), ..derived(vec![KeyPart::Path]) },
    ];
    let texts: std::collections::BTreeSet<String> = different.iter().map(identity_rules).collect();
    assert_eq!(texts.len(), different.len(), "{texts:?}");
    let same = [
        Policy { fingerprint: FingerprintRule::Raw, ..policy() },
        Policy { caller: caller("a"), ..policy() },
        Policy {
            retention: policy().retention * 2,
            tombstone: policy().retention,
            lease: policy().lease * 2,
            ..policy()
        },
        Policy { on_mismatch: OnMismatch::Replay, ..policy() },
    ];
    same.iter()
        .for_each(|policy| assert_eq!(identity_rules(policy), identity_rules(&different[0])));
}

/// Returns one key part of each kind.
fn every_key_part(header: &HeaderName) -> Vec<KeyPart> {
    vec![
        KeyPart::Path,
        KeyPart::Query("page".into()),
        KeyPart::Header(header.clone()),
        KeyPart::BodyHash,
        KeyPart::Body(Pointer::parse("/order/id").unwrap()),
        KeyPart::Form("a\"b".into()),
    ]
}

#[test]
fn the_text_of_every_rule_stays_the_same() {
    let supersede =
        |fingerprint| Policy { on_mismatch: OnMismatch::Supersede, fingerprint, ..policy() };
    let pointers =
        |texts: &[&str]| texts.iter().filter_map(|text| Pointer::parse(text)).collect::<Vec<_>>();
    let header = HeaderName::from_static("x-user");
    let parts = every_key_part(&header);
    let rule =
        super::super::TokenRule { header, claim: "sub".into(), issuer: None, audience: None };
    let session = crate::key::CookieName::parse("session").expect("a name");
    let rows = [
        (policy(), "the key, no scope"),
        (
            Policy { scope: ScopeRule::ClientCertificate, ..policy() },
            "the key, scope by the client certificate's subject",
        ),
        (
            Policy { scope: ScopeRule::Token(rule.into()), ..policy() },
            r#"the key, scope by the claim "sub" of the token in x-user"#,
        ),
        (
            supersede(FingerprintRule::Json(vec![])),
            "the key, no scope, one per fingerprint, bodies by value",
        ),
        (
            supersede(FingerprintRule::Json(pointers(&["/a", "/b/0"]))),
            r#"the key, no scope, one per fingerprint, bodies by value without ["a"], ["b", "0"]"#,
        ),
        (
            supersede(FingerprintRule::Raw),
            "the key, no scope, one per fingerprint, bodies as bytes",
        ),
        (
            supersede(FingerprintRule::WithoutBody),
            "the key, no scope, one per fingerprint, without bodies",
        ),
        (
            derived(parts),
            "a key derived from path, query \"page\", header x-user, body_hash, \
             body [\"order\", \"id\"], form \"a\\\"b\" and the caller by authorization, no scope, \
             bodies by value",
        ),
        (
            Policy { scope: scoped("payments", "x-account").scope, ..derived(vec![KeyPart::Path]) },
            "a key derived from path, scope by x-account",
        ),
        (
            Policy { scope: ScopeRule::Cookie(session.clone()), ..policy() },
            "the key, scope by the cookie session",
        ),
        (
            Policy { caller: CallerRule::Cookie(session), ..derived(vec![KeyPart::Path]) },
            "a key derived from path and the caller by the cookie session, no scope",
        ),
        (
            Policy { path_case: PathCase::Insensitive, ..derived(vec![KeyPart::Path]) },
            "a key derived from path in any letter case and the caller by authorization, no scope",
        ),
        (Policy { path_case: PathCase::Insensitive, ..policy() }, "the key, no scope"),
        (Policy { by_path: true, ..policy() }, "the key and the path, no scope"),
        (
            Policy { by_path: true, path_case: PathCase::Insensitive, ..policy() },
            "the key and the path in any letter case, no scope",
        ),
    ];
    rows.iter().for_each(|(policy, text)| assert_eq!(identity_rules(policy), *text));
}

#[test]
fn a_route_is_kept_from_the_time_when_it_protects() {
    let watching = Policy { mode: Mode::Shadow, ..scoped("payments", "a") };
    assert_eq!(
        changes(&of(std::slice::from_ref(&watching), &[]), &of(&[scoped("payments", "b")], &[])),
        []
    );
    // A route that is switched off stays in the notes: the store still has its records.
    let protected = kept(&of(&[scoped("payments", "a")], &[]));
    let off = of(&[watching], &[]).compare(&protected);
    assert_eq!((off.changes.as_slice(), &off.next), ([].as_slice(), &protected));
    assert_eq!(of(&[scoped("payments", "b")], &[]).compare(&off.next).changes.len(), 1);
}

/// Check values before and now, and the expected changes and remarks.
type Row<'r> = (&'r [&'r str], &'r [&'r str], Vec<IdentityChange>, &'r [&'r str]);

#[test]
fn secrets_rotate_and_are_not_lost() {
    let secrets = |checks: &[&str]| of(&[policy()], checks);
    let gone = |check: &str| vec![IdentityChange::SecretGone { check: check.into() }];
    let rows: &[Row<'_>] = &[
        (&[], &[], vec![], &[]),
        (&[], &["new"], vec![IdentityChange::HashingOn], &[]),
        (&["old"], &[], vec![IdentityChange::HashingOff], &[]),
        (&["old"], &["old"], vec![], &[]),
        (&["old"], &["old", "new"], vec![], &[]),
        (&["old", "new"], &["new", "old"], vec![], &[]),
        (&["new", "old"], &["new"], vec![], &[SECRET_DROPPED]),
        (&["new", "old"], &["old", "new"], vec![], &[]),
        (&["old"], &["new", "old"], vec![], &[WRITER_IS_NEW]),
        (&["old"], &["new"], gone("old"), &[]),
        // The secret was dropped before another one was used for records.
        (&["old", "new"], &["new"], gone("old"), &[]),
    ];
    for (before, now, changes, remarks) in rows {
        let compared = secrets(now).compare(&kept(&secrets(before)));
        assert_eq!(
            (&compared.changes, compared.remarks.as_slice()),
            (changes, *remarks),
            "{before:?} to {now:?}"
        );
    }
}

#[test]
fn unreadable_notes_do_not_count_as_missing() {
    let usual = of(&[policy()], &[]);
    let identities = [
        "",
        "{",
        "{}",
        r#"{"format":2,"secrets":[],"routes":{}}"#,
        r#"{"format":1,"secrets":[],"routes":{},"x":1}"#,
    ];
    let paths = [
        "",
        "{}",
        r#"{"format":2,"routes":{}}"#,
        r#"{"format":1,"routes":{},"x":1}"#,
        r#"{"format":1,"routes":[]}"#,
    ];
    let damaged = identities.map(|text| Notes { identities: Some(text.into()), ..kept(&usual) });
    for notes in damaged
        .into_iter()
        .chain(paths.map(|text| Notes { paths: Some(text.into()), ..kept(&usual) }))
    {
        let compared = usual.compare(&notes);
        assert_eq!(compared.changes, [IdentityChange::Unreadable], "{notes:?}");
        assert_eq!(
            usual.compare(&compared.accepted).changes,
            [],
            "the accepted notes are readable"
        );
    }
}

#[test]
fn a_removed_route_is_no_change_and_stays_in_the_notes_until_the_operator_gives_it_up() {
    let (usual, more) =
        (of(&[named("payments")], &[]), of(&[named("payments"), named("refunds")], &[]));
    let compared = usual.compare(&kept(&more));
    let gone = VanishedRoute { route: "refunds".into(), targets: vec!["POST /v1/refunds".into()] };
    assert_eq!(
        (compared.changes.as_slice(), compared.vanished),
        ([].as_slice(), vec![gone.clone()])
    );
    assert!(
        gone.to_string().contains("requests for POST /v1/refunds pass unprotected now"),
        "{gone}"
    );
    assert_eq!(compared.next, kept(&more), "both notes keep the route");
    assert_eq!(compared.accepted, kept(&usual), "and neither does if the operator gives it up");
    // It may only come back with the same rules.
    assert_eq!(more.compare(&compared.next).vanished, []);
    let other =
        of(&[named("payments"), scoped("refunds", "x-account")], &[]).compare(&compared.next);
    assert!(
        matches!(&other.changes[..], [IdentityChange::Remade { route, .. }] if route == "refunds"),
        "{other:?}"
    );
}

#[test]
fn a_route_that_takes_the_requests_of_one_that_is_gone_would_rename_its_operations() {
    let (payments, refunds, all) = (named("payments"), named("refunds"), named("all"));
    let watching = Policy { mode: Mode::Shadow, ..named("all") };
    let before = covering(
        &[(&payments, "POST", "/v1/payments"), (&refunds, "POST", "/v1/refunds/{id}")],
        &[],
    );
    let after = |routes: &[(&Policy, &str, &str)]| covering(routes, &[]).compare(&kept(&before));
    let usual = (&payments, "POST", "/v1/payments");
    for (policy, method, path, renamed) in [
        (&all, "POST", "/v1/refunds/{key}", true),
        (&all, "POST", "/v1/{*rest}", true),
        (&all, "PATCH", "/v1/refunds/{id}", false),
        (&all, "POST", "/v1/refunds", false),
        // A route that does not protect gives its requests no identity.
        (&watching, "POST", "/v1/{*rest}", false),
    ] {
        let compared = after(&[usual, (policy, method, path)]);
        let change = IdentityChange::Renamed {
            route: "refunds".into(),
            now: "all".into(),
            target: "POST /v1/refunds/{id}".into(),
        };
        let expected = if renamed { vec![change] } else { vec![] };
        assert_eq!(
            (compared.changes, compared.vanished.is_empty()),
            (expected, renamed),
            "{method} {path}"
        );
    }
    // A route that the notes already have can take over requests, too.
    let wider = after(&[(&payments, "POST", "/v1/{*rest}")]);
    assert!(
        matches!(&wider.changes[..], [IdentityChange::Renamed { now, .. }] if now == "payments"),
        "{wider:?}"
    );
}

#[test]
fn a_route_must_not_take_over_the_requests_of_another_one() {
    let (payments, payouts) = (named("payments"), named("payouts"));
    let switched_off = Policy { mode: Mode::Off, ..named("payments") };
    let (path, other) = ("/v1/payments/{id}", "/v1/payments/{id}/refunds");
    let before = covering(&[(&payments, "POST", path)], &[]);
    for (routes, taken) in [
        (vec![(&payouts, "POST", path), (&payments, "POST", path)], true),
        (vec![(&payouts, "POST", path), (&payments, "POST", "/v2/payments")], true),
        (vec![(&payouts, "POST", path), (&switched_off, "POST", path)], true),
        (vec![(&payments, "POST", path), (&payouts, "POST", path)], false),
        (vec![(&payouts, "PATCH", path), (&payments, "POST", path)], false),
        (vec![(&payouts, "POST", other), (&payments, "POST", path)], false),
    ] {
        let compared = covering(&routes, &[]).compare(&kept(&before));
        let change = IdentityChange::TakenOver {
            route: "payments".into(),
            now: "payouts".into(),
            target: "POST /v1/payments/{id}".into(),
        };
        assert_eq!(compared.changes, if taken { vec![change] } else { vec![] }, "{routes:?}");
        assert_eq!(
            covering(&routes, &[]).compare(&compared.accepted).changes,
            [],
            "after it was accepted"
        );
    }
}

#[test]
fn the_notes_keep_the_requests_that_a_route_covered_before() {
    let payments = named("payments");
    let moved = covering(&[(&payments, "POST", "/v2/payments")], &[]);
    let kept = moved.compare(&kept(&of(&[named("payments")], &[]))).next;
    for path in ["/v1/payments", "/v2/payments"] {
        let renamed = covering(&[(&named("payouts"), "POST", path)], &[]).compare(&kept);
        assert!(
            matches!(&renamed.changes[..], [IdentityChange::Renamed { .. }]),
            "{path}: {renamed:?}"
        );
    }
}

#[test]
fn removing_a_route_of_an_earlier_version_is_refused_until_its_paths_are_known() {
    let (usual, more) =
        (of(&[named("payments")], &[]), of(&[named("payments"), named("refunds")], &[]));
    let earlier = Notes { paths: None, ..kept(&more) };
    assert_eq!(usual.compare(&earlier).changes, [IdentityChange::Gone { route: "refunds".into() }]);
    let known = more.compare(&earlier).next;
    assert_eq!(usual.compare(&known).changes, []);
    // The route was switched off before its paths were known.
    let off = of(&[named("payments"), Policy { mode: Mode::Off, ..named("refunds") }], &[])
        .compare(&earlier);
    assert_eq!(off.changes, []);
    assert_eq!(
        usual.compare(&off.next).changes,
        [IdentityChange::Gone { route: "refunds".into() }]
    );
}
