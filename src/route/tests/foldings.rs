//! Property tests of refused paths: foldings are computed one by one, as servers do, and matched
//! without the gateway's own code.

use std::collections::{BTreeSet, VecDeque};

use proptest::prelude::*;

use super::*;

/// The routes of the property tests.
fn many() -> (Routes, Vec<(&'static str, Mode, PathCase)>) {
    const ROUTES: [(&str, Mode, PathCase); 9] = [
        ("/v1/payments/test", Mode::Off, PathCase::Sensitive),
        ("/v1/payments", Mode::Enforce, PathCase::Sensitive),
        ("/v1/{id}/x", Mode::Enforce, PathCase::Sensitive),
        ("/x/{*rest}", Mode::Shadow, PathCase::Sensitive),
        ("/v1/test/{*rest}", Mode::Off, PathCase::Sensitive),
        ("/v1/x.{*rest}", Mode::Off, PathCase::Sensitive),
        ("/v1/test/{id}.x", Mode::Enforce, PathCase::Sensitive),
        ("/test", Mode::Enforce, PathCase::Insensitive),
        ("/v1/{*rest}", Mode::Enforce, PathCase::Sensitive),
    ];
    (
        Routes::new(ROUTES.map(|(path, mode, case)| route(path, mode, case))).unwrap(),
        ROUTES.to_vec(),
    )
}

/// Returns whether a path matches a pattern, without the gateway's own code.
fn matches(pattern: &str, path: &str, case: PathCase) -> bool {
    let path = decode(path, |byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte));
    let path = if path.len() > 1 { path.strip_suffix('/').unwrap_or(&path) } else { &path };
    let mut segments = path.strip_prefix('/').unwrap_or(path).split('/');
    for part in pattern[1..].split('/') {
        if let Some(before) = part.strip_suffix("{*rest}") {
            let rest: Vec<&str> = segments.collect();
            let rest = case.fold(rest.join("/").into());
            return rest.len() > before.len() && rest.starts_with(&case.fold(before.into()));
        }
        let Some(segment) = segments.next() else { return false };
        let matched = match part.strip_prefix("{id}") {
            Some(suffix) => segment.len() > suffix.len() && segment.ends_with(suffix),
            None => case.fold(segment.into()) == case.fold(part.into()),
        };
        if !matched {
            return false;
        }
    }
    segments.next().is_none()
}

/// Decodes the escapes of these bytes once.
fn decode(path: &str, which: impl Fn(u8) -> bool) -> String {
    let mut out = String::new();
    let mut rest = path;
    while let Some(c) = rest.chars().next() {
        match escape(rest) {
            Some(byte) if which(byte) => {
                out.push(char::from(byte));
                rest = &rest[escape_length(rest)..];
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
    let text = text.strip_prefix('%')?;
    let digits = text.strip_prefix("u00").unwrap_or(text).get(..2)?;
    digits
        .bytes()
        .all(|digit| digit.is_ascii_hexdigit())
        .then(|| u8::from_str_radix(digits, 16).unwrap())
}

/// Returns the length of the escape at the beginning of a text.
fn escape_length(text: &str) -> usize {
    if text.starts_with("%u") { 6 } else { 3 }
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
    let segments: Vec<&str> =
        path.split('/').map(|segment| segment.split(';').next().unwrap_or_default()).collect();
    segments.join("/")
}

/// Returns the results of one hop: each step done everywhere at once, as servers do.
fn hops(path: &str) -> Vec<String> {
    let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let authority =
        path.strip_prefix("//").and_then(|rest| rest.find('/').map(|at| rest[at..].to_owned()));
    let mut next = vec![
        decode(path, unreserved),
        decode(path, |byte| byte != b'/'),
        decode(path, |byte| byte != b'/' && byte != b'\\'),
        decode(path, |_| true),
        cut(path),
        path.split(';').next().unwrap_or_default().to_owned(),
        path.split(['?', '#', '\n', '\0']).next().unwrap_or_default().to_owned(),
        path.replace('\\', "/"),
        merged(path),
        resolved(path),
        resolved(&merged(path)),
        merged(&resolved(path)),
    ];
    next.extend(authority);
    next
}

/// Returns all paths that up to `hops_max` hops make of a path.
fn foldings(path: &str, hops_max: usize) -> BTreeSet<String> {
    let mut all = BTreeSet::from([path.to_owned()]);
    let mut latest = vec![path.to_owned()];
    for _ in 0..hops_max {
        let next: Vec<String> = latest
            .iter()
            .flat_map(|path| hops(path))
            .filter(|next| all.insert(next.clone()))
            .collect();
        latest = next;
    }
    all
}

/// Returns the results of one step at one place, which the search may include.
fn places(path: &str) -> Vec<String> {
    let mut next = Vec::new();
    let mut splice = |range: std::ops::Range<usize>, with: &str| {
        let folded = [&path[..range.start], with, &path[range.end..]].concat();
        next.push(if folded.starts_with('/') { folded } else { format!("/{folded}") });
    };
    for (at, c) in path.char_indices() {
        if let Some(byte) = escape(&path[at..]) {
            splice(at..at + escape_length(&path[at..]), &char::from(byte).to_string());
        }
        match c {
            '\\' => splice(at..at + 1, "/"),
            ';' => {
                splice(at..path[at..].find('/').map_or(path.len(), |end| at + end), "");
                splice(at..path.len(), "");
            }
            '?' | '#' | '\n' | '\0' => splice(at..path.len(), ""),
            _ => {}
        }
        if c != '/' {
            continue;
        }
        // The segment after this slash, and the next one.
        let behind = &path[at + 1..];
        let end = behind.find('/').map_or(path.len(), |end| at + 1 + end);
        let segment = &path[at + 1..end];
        if segment.is_empty() && end < path.len()
            || segment == "." && end < path.len()
            || segment == ".." && at == 0
        {
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

/// Returns the first path that satisfies a condition, among those that single steps lead to.
fn find(path: &str, holds: impl Fn(&str) -> bool) -> Option<String> {
    const PATHS_MAX: usize = 200_000;
    let mut all = BTreeSet::from([path.to_owned()]);
    let mut waiting = VecDeque::from([path.to_owned()]);
    while let Some(path) = waiting.pop_front() {
        if holds(&path) {
            return Some(path);
        }
        waiting.extend(
            places(&path)
                .into_iter()
                .filter(|next| all.len() < PATHS_MAX && all.insert(next.clone())),
        );
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
    "x.",
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
    "%3F",
    "%23",
    "%0A",
    "%00",
    "%u002F",
    "%u002e",
    "/v1/payments",
    "/v1/test/",
];

fn any_path(pieces_max: usize) -> impl Strategy<Value = String> {
    proptest::collection::vec(proptest::sample::select(PIECES), 0..pieces_max)
        .prop_map(|pieces| format!("/{}", pieces.concat()))
}

/// Settings of the property tests: 2,000 cases, or `PROPTEST_CASES`. Failures are not written to
/// files.
fn settings() -> ProptestConfig {
    let settings = ProptestConfig {
        failure_persistence: None,
        max_global_rejects: u32::MAX,
        ..ProptestConfig::default()
    };
    if std::env::var_os("PROPTEST_CASES").is_some() {
        settings
    } else {
        ProptestConfig { cases: 2000, ..settings }
    }
}

proptest! {
    #![proptest_config(settings())]

    #[test]
    fn no_folding_of_a_path_that_passes_leads_to_another_protected_route(path in any_path(9)) {
        let (routes, all) = many();
        let first = |path: &str| {
            all.iter().position(|(pattern, ..)| matches(pattern, path, PathCase::Sensitive))
        };
        let Ok(found) = position(&routes, &path) else { return Ok(()) };
        prop_assert_eq!(found, first(&path), "matched as received: {}", path);
        for folding in foldings(&path, 4) {
            let folded =
                all.iter().position(|(pattern, _, case)| matches(pattern, &folding, *case));
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
        let found =
            all.iter().position(|(pattern, ..)| matches(pattern, &path, PathCase::Sensitive));
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
        segments in proptest::collection::vec(
            "(v1|payments|[a-z.]{1,3}a|%20|caf%C3%A9|%25|a%3Ab|[!-,:=@-Z]{1,4})",
            0..6,
        ),
        slash in any::<bool>(),
    ) {
        let routes = enforced(&["/v1/payments", "/v1/{id}/x", "/{a}/{*rest}"]);
        let end = if slash && !segments.is_empty() { "/" } else { "" };
        let path = format!("/{}{end}", segments.join("/"));
        prop_assume!(is_opaque_throughout(&path));
        prop_assert!(position(&routes, &path).is_ok(), "{}", path);
    }
}
