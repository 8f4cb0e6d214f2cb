//! Stories of refused paths: a table of spellings, and a comparison with foldings computed one by
//! one.

use super::*;
use crate::engine::tests::policy;
use crate::engine::{KeyPart, KeySource};

mod foldings;

fn route(path: &str, mode: Mode, path_case: PathCase) -> Route {
    let policy = Policy { route: path.into(), mode, path_case, ..policy() };
    Route { paths: vec![path.to_owned()], methods: vec![Method::POST], upstream: 0, policy }
}

fn enforced(paths: &[&str]) -> Routes {
    Routes::new(paths.iter().map(|path| route(path, Mode::Enforce, PathCase::Sensitive))).unwrap()
}

fn position(routes: &Routes, path: &str) -> Result<Option<usize>, AmbiguousPath> {
    routes.position(&Method::POST, path)
}

/// Paths that some server, or a chain of them, treats as `/v1/payments`, each with that server.
const FOLDED: &[(&str, &str)] = &[
    ("/v1/payments;x=1", "Tomcat, Jetty, Spring MVC cut parameters"),
    ("/v1;a/payments", "in every segment"),
    ("/v1/payments;", "an empty one too"),
    ("/;a/v1/payments", "of an empty segment, which is then merged"),
    ("/v1/payments%3Bx=1", "a proxy decodes, Tomcat cuts"),
    ("/x/..;/v1/payments", "Tomcat cuts before it resolves"),
    ("/x;a/../v1/payments", "the segment that is resolved away has parameters"),
    ("/x/..;a=b/v1/payments;c", "both"),
    ("/..;/v1/payments", "Tomcat behind nginx: `..` at the root"),
    ("/../v1/payments", "RFC 3986, section 5.2.4"),
    ("/./v1/./payments/.", "everybody"),
    ("/v1/x/../payments", "everybody"),
    ("/v1/payments/x/..", "everybody: what remains has a trailing slash"),
    ("/a/b/../../v1/payments", "everybody"),
    ("/a/./../v1/payments", "everybody: `.` is nobody's parent"),
    ("/v1/a%2Fb/../payments", "Apache without AllowEncodedSlashes, Tomcat with passthrough"),
    ("/v1/a%2Fb/%2e%2e/payments", "the same with encoded dots"),
    ("/v1/a%2Fb/..%3B/payments", "a proxy decodes all but slashes, Tomcat cuts"),
    ("/a//../v1/payments", "Go ServeMux, nginx: merged first"),
    ("/v1//../payments", "RFC 3986: the empty segment is the parent"),
    ("//v1//payments//", "nginx merge_slashes, Express, Go, Rails"),
    ("//x/v1/payments", "new URL(req.url, base) in Node takes x for the host"),
    ("/\\x/v1/payments", "so does a browser's parser"),
    ("///x/v1/payments", "however many slashes"),
    ("//%2F../x/v1/payments", "and whatever is resolved before it"),
    (
        "/%2F./x/v1/payments",
        "the second slash is encoded, and there is a dot segment before the host",
    ),
    ("/v1/payments;x/y", "Jetty before 9.3, Tomcat 5: the parameter ends the path"),
    ("/v1/payments/;x/y", "the same behind a slash"),
    ("/v1/payments/7/..;/x", "and behind a dot segment"),
    (
        "/v1/payments%3Fx/y",
        "Apache mod_rewrite, nginx with $uri: decoded, then split from the query",
    ),
    ("/v1/payments/%253f/y", "decoded once more"),
    ("/x/../v1/payments%23/y", "split from the fragment"),
    ("/v1/payments%00.png", "a text ends with NUL in C"),
    ("/v1/payments%0A", "Django before 3, Flask before 2.2: `$` matches before a line end"),
    ("/v1/%u0070ayments", "IIS (http.sys, PercentUAllowed)"),
    ("/v1%u002Fpayments", "the same"),
    ("/v1/x/%u002e./payments", "the same for dots"),
    ("/v1/%25u0070ayments", "decoded once more"),
    ("/v1%2Fpayments", "IIS, Express with decodeURIComponent, Spring with allowUrlEncodedSlash"),
    ("/%2Fv1/payments", "decoded, then merged"),
    ("/v1%2fpayments/", "in lower case"),
    ("/v1/x%2f..%2fpayments", "decoded, then resolved"),
    ("/v1/x/%2e%2e/payments", "encoded dots, resolved by whoever decodes first"),
    ("/v1/x/.%2E/payments", "one of them"),
    ("/v1%252Fpayments", "decoded once more behind a proxy that decodes"),
    ("/v1/x/%252e%252e/payments", "dots decoded once more"),
    ("/v1/%2570ayments", "anything decoded once more"),
    ("/v1/x/%25252e./payments", "and once more than that"),
    ("/v1\\payments", "IIS, browsers"),
    ("/v1%5Cpayments", "IIS decodes first"),
    ("/x\\..\\v1/payments", "resolved as one"),
    ("/v1/x/..%5Cpayments", "resolved as another"),
    ("/x;a%2F..%2F/v1/payments", "parameters end where the hop sees a slash"),
    ("/x;a\\..\\/../v1/payments", "or do not"),
    ("/x/%2e%2e;a/%2Fv1%252f;b/payments/./", "all at once"),
];

#[test]
fn a_path_that_some_server_takes_for_a_protected_one_is_refused() {
    let routes = enforced(&["/v1/payments"]);
    for (path, why) in FOLDED {
        assert_eq!(position(&routes, path), Err(AmbiguousPath), "{path}: {why}");
        assert_eq!(
            routes.position(&Method::GET, path),
            Ok(None),
            "{path}: nothing is protected under this method"
        );
    }
    for path in ["/v1/payments", "/v1/payments/", "/v1/p%61yments", "/v1/%70%61yments/"] {
        assert_eq!(position(&routes, path), Ok(Some(0)), "{path}");
    }
}

#[test]
fn a_path_that_leads_to_nothing_protected_passes() {
    let routes = enforced(&["/v1/payments", "/v1/payments/{id}/capture"]);
    for path in [
        "/cb/https://x",
        "/cb/https://x/v1/payments",
        "/cb/..",
        "//",
        "/v1//payment",
        "/v1/payments//x",
        "/v1/payments/..",
        "/v1/x;payments",
        "/v1/payments%20",
        "/v1%00/payments",
        "/files/a%2Fb;c/../d",
        "/v1/payments/a/b/capture",
        "/v1/../payments",
        "/v1/a/b/../payments",
        "/v1/./x/payments",
        "/V1/payments",
        "*",
        "",
    ] {
        assert_eq!(position(&routes, path), Ok(None), "{path}");
    }
    for path in
        ["/v1/payments/a%20b/capture", "/v1/payments/..a/capture", "/v1/payments/caf%C3%A9/capture"]
    {
        assert_eq!(position(&routes, path), Ok(Some(1)), "{path}");
    }
}

#[test]
fn other_forms_of_patterns_are_searched_too() {
    for (pattern, path) in [
        ("/v1/payments:capture", "/v1/payments%3Acapture"),
        ("/v1/caf%C3%A9", "/v1/caf%c3%a9"),
        ("/v1/a%2Fb", "/v1/a%252Fb"),
        ("/v1/{id}.json", "/v1/7.json;x"),
        ("/v1/order-{id}", "/v1%2Forder-7"),
        ("/v1/{{x}}", "/v1/%7Bx%7D"),
        ("/v1/{*rest}", "/x/../v1/a/b"),
        ("/v1/order-{*rest}", "/v1%2Forder-7/x"),
        ("/v1/order-{*rest}", "/v1/%u006frder-7/x"),
        ("/", "/x/.."),
        ("/", "/;x/y"),
        ("/", "//host"),
        ("/", "//host%3Fx/y"),
        ("/{id}", "//;x/%2e/7"),
    ] {
        assert_eq!(position(&enforced(&[pattern]), path), Err(AmbiguousPath), "{pattern}: {path}");
    }
    assert_eq!(
        position(&enforced(&["/v1/{*rest}"]), "/v1/a/../b;c//d%2Fe"),
        Ok(Some(0)),
        "everything leads to the same"
    );
    assert_eq!(position(&enforced(&["/", "/{*rest}"]), "/a//b"), Ok(Some(1)));
}

#[test]
fn a_route_that_comes_first_does_not_hide_a_protected_one() {
    let of = |first, mode, second| {
        Routes::new([
            route(first, mode, PathCase::Sensitive),
            route(second, Mode::Enforce, PathCase::Sensitive),
        ])
        .unwrap()
    };
    let open = of("/cb/{*rest}", Mode::Off, "/{*rest}");
    for (path, expected) in [
        ("/cb/https://x", Ok(Some(0))),
        ("/cb/a%20b", Ok(Some(0))),
        ("/cb/x/./y;z", Ok(Some(0))),
        ("/cb/../v1/payments", Err(AmbiguousPath)),
        ("/cb/x%2F..%2F..%2Fv1", Err(AmbiguousPath)),
        ("/cb/x/..;/../v1", Err(AmbiguousPath)),
        ("/v1/payments%20", Ok(Some(1))),
    ] {
        assert_eq!(position(&open, path), expected, "{path}");
    }
    let begins = of("/cb/x-{*rest}", Mode::Off, "/cb/{*rest}");
    for path in ["/cb/x-;y", "/cb/x-//", "/cb/x-/.", "/cb/x-%3Fy", "/cb/x-%2F", "/cb/x-y/../z"] {
        assert_eq!(position(&begins, path), Err(AmbiguousPath), "{path}");
    }
    assert_eq!(position(&begins, "/cb/x-y;z//"), Ok(Some(0)));
    let narrow = of("/cb/{*rest}", Mode::Off, "/cb/{id}/x");
    assert_eq!(
        position(&narrow, "/cb/a//x"),
        Ok(Some(0)),
        "the folding leads to the route that comes first"
    );
    let watched = of("/v1/{id}/notes", Mode::Shadow, "/v1/{*rest}");
    assert_eq!(position(&watched, "/v1/a%20b/notes"), Ok(Some(0)));
    assert_eq!(position(&watched, "/v1/a%2Fb/notes"), Err(AmbiguousPath));
    let off = Routes::new([route("/v1/payments", Mode::Off, PathCase::Sensitive)]).unwrap();
    assert_eq!(position(&off, "/v1%2Fpayments"), Ok(None), "only protected routes count");
}

#[test]
fn another_letter_case_is_refused_where_the_route_asks_for_it_and_nowhere_else() {
    let routes = Routes::new([
        route("/v1/Payments/{id}", Mode::Enforce, PathCase::Insensitive),
        route("/v1/refunds", Mode::Enforce, PathCase::Sensitive),
    ])
    .unwrap();
    assert_eq!(position(&routes, "/v1/Payments/ABC"), Ok(Some(0)));
    for path in ["/v1/payments/abc", "/V1/PAYMENTS/7/", "/v1/%50AYMENTS/7", "/V1%2FPayments/7"] {
        assert_eq!(position(&routes, path), Err(AmbiguousPath), "{path}");
    }
    assert_eq!(position(&routes, "/v1/Refunds"), Ok(None));
    assert_eq!(position(&routes, "/v1/other"), Ok(None));
    let routes =
        Routes::new([route("/v1/caf\u{e9}/pickup", Mode::Enforce, PathCase::Insensitive)]).unwrap();
    for path in [
        "/v1/caf\u{c9}/pickup",
        "/V1/CAF%C3%89/PICKUP",
        "/v1/caf%c3%a9/pic%E2%84%AAup",
        "/v1/caf%c3%a9/p%C4%B0ckup",
    ] {
        assert_eq!(
            position(&routes, path),
            Err(AmbiguousPath),
            "{path}: letters of Unicode have cases too"
        );
    }
    assert_eq!(position(&routes, "/v1/cafe/pickup"), Ok(None));
}

#[test]
fn where_the_path_is_part_of_the_key_it_has_one_reading_or_is_refused() {
    let mut derived = route("/orders/{*rest}", Mode::Enforce, PathCase::Sensitive);
    derived.policy.key.source = KeySource::Derived(vec![KeyPart::Path]);
    let mut by_path = route("/orders/{*rest}", Mode::Enforce, PathCase::Sensitive);
    by_path.policy.by_path = true;
    assert_eq!(
        Routes::new([by_path]).unwrap().position(&Method::POST, "/orders/7%2Fx"),
        Err(AmbiguousPath)
    );
    let watched = Route {
        policy: Policy { mode: Mode::Shadow, ..derived.policy.clone() },
        ..derived.clone()
    };
    let (routes, watching) = (Routes::new([derived]).unwrap(), Routes::new([watched]).unwrap());
    for path in [
        "/orders/7",
        "/orders/7/",
        "/orders/%37",
        "/orders/a%20b",
        "/orders/50%25",
        "/orders/a:b",
        "/orders/a%3Ab",
    ] {
        assert_eq!(position(&routes, path), Ok(Some(0)), "{path}");
    }
    for path in [
        "/orders/7;a",
        "/orders/7//",
        "/orders/./7",
        "/orders/7%2F8",
        "/orders/7%5c8",
        "/orders/7%3Fx",
        "/orders/7%23",
        "/orders/%u0037",
        "/orders/%2537",
        "/orders/x/../7",
    ] {
        assert_eq!(position(&routes, path), Err(AmbiguousPath), "{path}");
        assert_eq!(
            position(&watching, path),
            Ok(Some(0)),
            "{path}: a watched route refuses nothing"
        );
    }
}

#[test]
fn the_work_is_bounded_and_what_is_beyond_it_passes_only_if_it_is_plain() {
    let routes = enforced(&["/v1/payments", "/v1/{id}.json", "/{a}/{b}/{c}.x/{*rest}"]);
    let long = "/a".repeat(5_000);
    assert_eq!(
        routes.position(&Method::GET, &format!("{long}%20")),
        Ok(None),
        "nothing is protected"
    );
    assert_eq!(position(&enforced(&["/v1/payments"]), &long), Ok(None), "plain");
    for odd in [
        format!("{long}%20"),
        format!("/{}", "%2F".repeat(80)),
        format!("/{};", "a".repeat(9_000)),
        "/;".repeat(70),
    ] {
        assert_eq!(position(&routes, &odd), Err(AmbiguousPath));
    }
    // The largest path that is searched. It runs often, so that an unbounded search would be
    // noticed.
    let most = format!("/v1{}", "%2F;".repeat(60));
    for _ in 0..200 {
        let _ = position(&routes, &most);
    }
}
