//! Which spellings of a path are refused, by a table and against foldings that are made one by one.

use std::collections::{BTreeSet, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::engine::tests::policy;

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

/// Paths that some server, or a row of them, takes for `/v1/payments`, each with who does.
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
        assert_eq!(routes.position(&Method::GET, path), Ok(None), "{path}: nothing is protected under this method");
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
    for path in ["/v1/payments/a%20b/capture", "/v1/payments/..a/capture", "/v1/payments/caf%C3%A9/capture"] {
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
        ("/", "/x/.."),
        ("/{id}", "//;x/%2e/7"),
    ] {
        assert_eq!(position(&enforced(&[pattern]), path), Err(AmbiguousPath), "{pattern}: {path}");
    }
    assert_eq!(position(&enforced(&["/v1/{*rest}"]), "/v1/a/../b;c//d%2Fe"), Ok(Some(0)), "everything leads to the same");
    assert_eq!(position(&enforced(&["/", "/{*rest}"]), "/a//b"), Ok(Some(1)));
}

#[test]
fn a_route_that_comes_first_does_not_hide_a_protected_one() {
    let of = |first, mode, second| {
        Routes::new([route(first, mode, PathCase::Sensitive), route(second, Mode::Enforce, PathCase::Sensitive)]).unwrap()
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
    let watched = of("/v1/{id}/notes", Mode::Shadow, "/v1/{*rest}");
    assert_eq!(position(&watched, "/v1/a%20b/notes"), Ok(Some(0)));
    assert_eq!(position(&watched, "/v1/a%2Fb/notes"), Err(AmbiguousPath));
    let off = Routes::new([route("/v1/payments", Mode::Off, PathCase::Sensitive)]).unwrap();
    assert_eq!(position(&off, "/v1%2Fpayments"), Ok(None), "only protected routes count");
}

#[test]
fn another_letter_case_is_refused_where_the_route_says_so_and_nowhere_else() {
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
}

#[test]
fn where_the_path_is_part_of_the_key_it_has_one_reading_or_is_refused() {
    let mut derived = route("/orders/{*rest}", Mode::Enforce, PathCase::Sensitive);
    derived.policy.key.source = KeySource::Derived(vec![KeyPart::Path]);
    let watched = Route { policy: Policy { mode: Mode::Shadow, ..derived.policy.clone() }, ..derived.clone() };
    let (routes, watching) = (Routes::new([derived]).unwrap(), Routes::new([watched]).unwrap());
    for path in ["/orders/7", "/orders/7/", "/orders/%37", "/orders/a%20b", "/orders/50%25", "/orders/a:b", "/orders/a%3Ab"] {
        assert_eq!(position(&routes, path), Ok(Some(0)), "{path}");
    }
    for path in ["/orders/7;a", "/orders/7//", "/orders/./7", "/orders/7%2F8", "/orders/7%5c8", "/orders/%2537", "/orders/x/../7"]
    {
        assert_eq!(position(&routes, path), Err(AmbiguousPath), "{path}");
        assert_eq!(position(&watching, path), Ok(Some(0)), "{path}: a watched route refuses nothing");
    }
}

#[test]
fn the_work_is_bounded_and_what_is_beyond_it_passes_only_if_it_is_plain() {
    let routes = enforced(&["/v1/payments", "/v1/{id}.json", "/{a}/{b}/{c}.x/{*rest}"]);
    let long = "/a".repeat(5_000);
    assert_eq!(routes.position(&Method::GET, &format!("{long}%20")), Ok(None), "nothing is protected");
    assert_eq!(position(&enforced(&["/v1/payments"]), &long), Ok(None), "plain");
    for odd in [format!("{long}%20"), format!("/{}", "%2F".repeat(80)), format!("/{};", "a".repeat(9_000)), "/;".repeat(70)] {
        assert_eq!(position(&routes, &odd), Err(AmbiguousPath));
    }
    // The most that is searched. Run often, so that a search without bounds would be noticed.
    let most = format!("/v1{}", "%2F;".repeat(60));
    for _ in 0..200 {
        let _ = position(&routes, &most);
    }
}

/// The routes of the property tests.
fn many() -> (Routes, Vec<(&'static str, Mode, PathCase)>) {
    const ROUTES: [(&str, Mode, PathCase); 8] = [
        ("/v1/payments/test", Mode::Off, PathCase::Sensitive),
        ("/v1/payments", Mode::Enforce, PathCase::Sensitive),
        ("/v1/{id}/x", Mode::Enforce, PathCase::Sensitive),
        ("/x/{*rest}", Mode::Shadow, PathCase::Sensitive),
        ("/v1/test/{*rest}", Mode::Off, PathCase::Sensitive),
        ("/v1/test/{id}.x", Mode::Enforce, PathCase::Sensitive),
        ("/test", Mode::Enforce, PathCase::Insensitive),
        ("/v1/{*rest}", Mode::Enforce, PathCase::Sensitive),
    ];
    (Routes::new(ROUTES.map(|(path, mode, case)| route(path, mode, case))).unwrap(), ROUTES.to_vec())
}

/// Whether a path matches a pattern, without the gateway's own code.
fn matches(pattern: &str, path: &str, case: PathCase) -> bool {
    let path = decode(path, |byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte));
    let path = if path.len() > 1 { path.strip_suffix('/').unwrap_or(&path) } else { &path };
    let mut segments = path.strip_prefix('/').unwrap_or(path).split('/');
    for part in pattern[1..].split('/') {
        if part == "{*rest}" {
            return segments.next().is_some_and(|first| !first.is_empty() || segments.next().is_some());
        }
        let Some(segment) = segments.next() else { return false };
        let matched = match part.strip_prefix("{id}") {
            Some(suffix) => segment.len() > suffix.len() && segment.ends_with(suffix),
            None => case.equal(segment.as_bytes(), part.as_bytes()),
        };
        if !matched {
            return false;
        }
    }
    segments.next().is_none()
}

/// Decodes, once, the escapes of these bytes.
fn decode(path: &str, which: impl Fn(u8) -> bool) -> String {
    let mut out = String::new();
    let mut rest = path;
    while let Some(c) = rest.chars().next() {
        match escape(rest) {
            Some(byte) if which(byte) => {
                out.push(char::from(byte));
                rest = &rest[3..];
            }
            _ => {
                out.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
    }
    out
}

fn escape(text: &str) -> Option<u8> {
    let digits = text.strip_prefix('%')?.get(..2)?;
    digits.bytes().all(|digit| digit.is_ascii_hexdigit()).then(|| u8::from_str_radix(digits, 16).unwrap())
}

fn resolved(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let segments: Vec<&str> = path[1..].split('/').collect();
    for (at, segment) in segments.iter().enumerate() {
        let last = at + 1 == segments.len();
        match *segment {
            "." if last => kept.push(""),
            "." => {}
            ".." => {
                kept.pop();
                if last {
                    kept.push("");
                }
            }
            other => kept.push(other),
        }
    }
    format!("/{}", kept.join("/"))
}

fn merged(path: &str) -> String {
    let mut out = path.to_owned();
    while out.contains("//") {
        out = out.replace("//", "/");
    }
    out
}

fn cut(path: &str) -> String {
    let segments: Vec<&str> = path.split('/').map(|segment| segment.split(';').next().unwrap_or_default()).collect();
    segments.join("/")
}

/// What one hop makes of a path: each step done everywhere at once, as servers do it.
fn hops(path: &str) -> Vec<String> {
    let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let authority = path.strip_prefix("//").and_then(|rest| rest.find('/').map(|at| rest[at..].to_owned()));
    let mut next = vec![
        decode(path, unreserved),
        decode(path, |byte| byte != b'/'),
        decode(path, |byte| byte != b'/' && byte != b'\\'),
        decode(path, |_| true),
        cut(path),
        path.replace('\\', "/"),
        merged(path),
        resolved(path),
        resolved(&merged(path)),
        merged(&resolved(path)),
    ];
    next.extend(authority);
    next
}

/// Every path that up to so many hops make of a path.
fn foldings(path: &str, hops_max: usize) -> BTreeSet<String> {
    let mut all = BTreeSet::from([path.to_owned()]);
    let mut latest = vec![path.to_owned()];
    for _ in 0..hops_max {
        let next: Vec<String> = latest.iter().flat_map(|path| hops(path)).filter(|next| all.insert(next.clone())).collect();
        latest = next;
    }
    all
}

/// What one step at one place makes of a path: what the search may take for a reading.
fn places(path: &str) -> Vec<String> {
    let mut next = Vec::new();
    let mut splice = |range: std::ops::Range<usize>, with: &str| {
        let folded = [&path[..range.start], with, &path[range.end..]].concat();
        next.push(if folded.starts_with('/') { folded } else { format!("/{folded}") });
    };
    for (at, c) in path.char_indices() {
        if let Some(byte) = escape(&path[at..]) {
            splice(at..at + 3, &char::from(byte).to_string());
        }
        match c {
            '\\' => splice(at..at + 1, "/"),
            ';' => splice(at..path[at..].find('/').map_or(path.len(), |end| at + end), ""),
            _ => {}
        }
        if c != '/' {
            continue;
        }
        // The segment behind this slash, and the one behind that.
        let behind = &path[at + 1..];
        let end = behind.find('/').map_or(path.len(), |end| at + 1 + end);
        let segment = &path[at + 1..end];
        if segment.is_empty() && end < path.len() || segment == "." && end < path.len() || segment == ".." && at == 0 {
            splice(at..end, "");
        } else if segment == "." {
            splice(at + 1..end, "");
        }
        if segment != "." && segment != ".." && path[end..].starts_with("/..") {
            match path[end + 3..].chars().next() {
                Some('/') => splice(at..end + 3, ""),
                None => splice(at + 1..end + 3, ""),
                Some(_) => {}
            }
        }
        if at == 0
            && segment.is_empty()
            && let Some(host) = path[end..].strip_prefix('/')
        {
            let from = host.find('/').map_or(path.len(), |slash| end + 1 + slash);
            splice(0..from, "");
        }
    }
    next
}

/// The first path that steps at single places lead to and that a condition holds for.
fn find(path: &str, holds: impl Fn(&str) -> bool) -> Option<String> {
    const PATHS_MAX: usize = 200_000;
    let mut all = BTreeSet::from([path.to_owned()]);
    let mut waiting = VecDeque::from([path.to_owned()]);
    while let Some(path) = waiting.pop_front() {
        if holds(&path) {
            return Some(path);
        }
        waiting.extend(places(&path).into_iter().filter(|next| all.len() < PATHS_MAX && all.insert(next.clone())));
    }
    None
}

const PIECES: &[&str] = &[
    "/",
    "/",
    "//",
    "v1",
    "payments",
    "test",
    "TEST",
    "x",
    "1.x",
    "..",
    ".",
    "/..",
    ";",
    ";a",
    "%2F",
    "%5C",
    "\\",
    "%2e",
    "%2E%2e",
    "%252F",
    "%252e",
    "%3B",
    "%70ayments",
    "%2570",
    "%25",
    "/v1/payments",
    "/v1/test/",
];

fn any_path(pieces_max: usize) -> impl Strategy<Value = String> {
    proptest::collection::vec(proptest::sample::select(PIECES), 0..pieces_max).prop_map(|pieces| format!("/{}", pieces.concat()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_folding_of_a_path_that_passes_leads_to_another_protected_route(path in any_path(9)) {
        let (routes, all) = many();
        let first = |path: &str| all.iter().position(|(pattern, ..)| matches(pattern, path, PathCase::Sensitive));
        let Ok(found) = position(&routes, &path) else { return Ok(()) };
        prop_assert_eq!(found, first(&path), "matched as received: {}", path);
        for folding in foldings(&path, 4) {
            let folded = all.iter().position(|(pattern, _, case)| matches(pattern, &folding, *case));
            let Some(at) = folded.filter(|at| all[*at].1 == Mode::Enforce) else { continue };
            prop_assert_eq!(found, Some(at), "{} is folded to {}", path, folding);
        }
    }

    #[test]
    fn a_path_is_refused_only_if_a_folding_leads_elsewhere(path in any_path(6)) {
        let (routes, all) = many();
        if position(&routes, &path).is_ok() {
            return Ok(());
        }
        let found = all.iter().position(|(pattern, ..)| matches(pattern, &path, PathCase::Sensitive));
        let protected = |at: usize| found != Some(at) && all[at].1 == Mode::Enforce;
        let leads_elsewhere = |folding: &str| (0..all.len()).filter(|at| protected(*at)).any(|at| {
            let (pattern, _, case) = all[at];
            match found {
                Some(found) if matches(pattern, &path, PathCase::Sensitive) => {
                    !matches(all[found].0, folding, all[found].2)
                }
                _ => matches(pattern, folding, case),
            }
        });
        prop_assert!(find(&path, leads_elsewhere).is_some(), "{} is refused for nothing", path);
    }

    #[test]
    fn a_path_of_opaque_segments_is_never_refused(
        segments in proptest::collection::vec("(v1|payments|[a-z.]{1,3}a|%20|caf%C3%A9|%25|a%3Ab|[!-,:=@-Z]{1,4})", 0..6),
        slash in any::<bool>(),
    ) {
        let routes = enforced(&["/v1/payments", "/v1/{id}/x", "/{a}/{*rest}"]);
        let path = format!("/{}{}", segments.join("/"), if slash && !segments.is_empty() { "/" } else { "" });
        prop_assume!(is_opaque_throughout(&path));
        prop_assert!(position(&routes, &path).is_ok(), "{}", path);
    }
}
