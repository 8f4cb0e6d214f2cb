//! `on_uncertain`, `probe` and `upstream_key`: operations with unknown outcome, and the key that
//! the upstream receives.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};

use super::identity::{POINTER_EXPECTED, read_key_header};
use crate::config::SecretSource;
use crate::config::read::{Table, Value};
use crate::engine::{KeyPlace, KeyRule, KeySource, OnUncertain, Probe, StatusRules, UpstreamKey};
use crate::key::path::{Decoded, fill};
use crate::key::{KeySyntax, Pointer};

const PROBE_EXPECTED: &str = "a table such as { method = \"GET\", \
    path = \"/v1/payments/by-key/{key}\", found = [\"200\"], absent = [\"404\"] }";
const UPSTREAM_KEY_EXPECTED: &str =
    "a table such as { header = \"X-Request-Id\", max_length = 38 }";
const PATH_EXPECTED: &str = "a path with {key} in it, such as \"/v1/payments/by-key/{key}\"";
const HEADERS_EXPECTED: &str = "a table such as { Authorization = { env = \"PROBE_TOKEN\" } }";
const STATUSES_EXPECTED: &str = "a list of statuses such as [\"200\"]";

/// Shortest digest, in characters of 6 bits each. The 132 bits are enough to avoid collisions of
/// keys.
const DIGEST_MIN: u64 = 22;
/// Largest possible limit of the length of an upstream's key.
const KEY_LENGTH_MAX: u64 = 4096;

#[derive(Clone, Copy, PartialEq)]
enum UncertainPolicy {
    Hold,
    Forward,
    Probe,
}

/// `on_uncertain`, with its probe.
pub(in crate::config) enum UncertainSetting {
    Hold,
    Forward,
    Probe(ProbeSetting),
}

/// A probe, with its lists of statuses as they are written.
pub(in crate::config) struct ProbeSetting {
    pub probe: Probe,
    pub found: Vec<String>,
    pub absent: Vec<String>,
}

const WORDS: [(&str, UncertainPolicy); 3] = [
    ("hold", UncertainPolicy::Hold),
    ("forward", UncertainPolicy::Forward),
    ("probe", UncertainPolicy::Probe),
];

/// Reads `on_uncertain` and `probe` of a route.
pub(super) fn read(
    table: &Table<'_>,
    secret: &mut Vec<(HeaderName, SecretSource)>,
) -> Option<OnUncertain> {
    Some(match read_setting(table, secret)? {
        UncertainSetting::Hold => OnUncertain::Hold,
        UncertainSetting::Forward => OnUncertain::Forward,
        UncertainSetting::Probe(setting) => OnUncertain::Probe(Arc::new(setting.probe)),
    })
}

/// Reads `on_uncertain` and `probe`. Header fields of the probe with secret values are added to
/// `secret`.
pub(in crate::config) fn read_setting(
    table: &Table<'_>,
    secret: &mut Vec<(HeaderName, SecretSource)>,
) -> Option<UncertainSetting> {
    let word = table.get("on_uncertain");
    let given = word.as_ref().is_some_and(|value| value.span.given);
    let chosen = word.and_then(|value| value.choice(&WORDS, &[]));
    let probe = table.get("probe").map(|value| {
        let inside = table.table("probe", PROBE_EXPECTED);
        let probe = read_probe(&inside, secret);
        inside.finish();
        (probe, value)
    });
    match (chosen?, probe) {
        (UncertainPolicy::Probe, Some((probe, _))) => Some(UncertainSetting::Probe(probe?)),
        (UncertainPolicy::Probe, None) => {
            table.report.note_absence(
                &table.span_of("probe"),
                format!("on_uncertain = \"probe\" needs probe: {PROBE_EXPECTED}"),
            );
            None
        }
        (other, Some((probe, value))) => {
            probe?;
            if value.span.given && !given {
                value.fault("is not used: add on_uncertain = \"probe\"");
            }
            Some(if other == UncertainPolicy::Forward {
                UncertainSetting::Forward
            } else {
                UncertainSetting::Hold
            })
        }
        (UncertainPolicy::Forward, None) => Some(UncertainSetting::Forward),
        (UncertainPolicy::Hold, None) => Some(UncertainSetting::Hold),
    }
}

/// Warns about a probe if the same key can name operations on several paths. A probe finds an
/// operation by the key alone. So it could return the result of an operation on another path.
pub(super) fn warn_of_paths(
    route: &Table<'_>,
    by_path: Option<bool>,
    on_uncertain: Option<&OnUncertain>,
) {
    let several = route
        .get("path")
        .filter(Value::is_text)
        .and_then(|path| path.text(""))
        .is_some_and(|path| path.contains('{'));
    if several && by_path == Some(true) && matches!(on_uncertain, Some(OnUncertain::Probe(_))) {
        route.report.warn(
            &route.span_of("probe").path,
            "asks by the key alone, but with identity = [\"path\"] each path has its own operation \
             under a key: use this only if clients never use a key on two paths",
        );
    }
}

fn read_probe(
    table: &Table<'_>,
    secret: &mut Vec<(HeaderName, SecretSource)>,
) -> Option<ProbeSetting> {
    let method = table.get("method").map_or(Some(Method::GET), |value| {
        value.parsed("\"GET\" or another safe method", safe_method)
    });
    let absence = |name| {
        table
            .report
            .note_absence(&table.span_of(name), format!("a probe needs {name}: {PROBE_EXPECTED}"))
    };
    let path = table.get("path").map(|value| value.parsed(PATH_EXPECTED, path));
    if path.is_none() {
        absence("path");
    }
    let found = read_statuses(table, "found", "200");
    let absent = read_statuses(table, "absent", "404");
    let found_if = table
        .get("found_if")
        .map_or(Some(None), |value| value.parsed(POINTER_EXPECTED, Pointer::parse).map(Some));
    let map_status = table.get("map_status").map_or(Some(None), |value| {
        let status = StatusCode::from_u16(u16::try_from(value.number(200, 599)?).ok()?).ok()?;
        Some(Some(status))
    });
    let given = table.get("headers").is_some();
    let headers = if given {
        read_headers(&table.table("headers", HEADERS_EXPECTED), "a probe", |_| true, secret)
    } else {
        Some(HeaderMap::new())
    };
    let statuses = match (&found, &absent) {
        (Some(found), Some(absent)) => match StatusRules::new(found, absent, &[]) {
            Ok(statuses) => Some(statuses),
            Err(error) => {
                table.report.note(&table.span(), error.to_string());
                None
            }
        },
        _ => None,
    };
    let probe = Probe {
        method: method?,
        path: path??,
        statuses: statuses?,
        found_if: found_if?,
        map_status: map_status?,
        headers: headers?,
        background: false,
    };
    Some(ProbeSetting { probe, found: found?, absent: absent? })
}

fn safe_method(text: &str) -> Option<Method> {
    Method::from_bytes(text.as_bytes())
        .ok()
        .filter(|method| [Method::GET, Method::HEAD].contains(method) || text == "QUERY")
}

/// Parses a path template. No key may change the structure of the path: the template has no dot
/// segments, and the key is in one segment or in the query.
fn path(text: &str) -> Option<String> {
    let with_key = text.replace(Probe::KEY, "k");
    let parsed: Uri = with_key.parse().ok()?;
    let plain = text.starts_with('/')
        && !text.starts_with("//")
        && text.contains(Probe::KEY)
        && !with_key.contains(['{', '}', '#']);
    let has_dots = parsed
        .path()
        .split('/')
        .any(|segment| matches!(&Decoded::of(segment).bytes[..], b"." | b".."));
    let one = plain && !has_dots && fill(text, Probe::KEY, "k").is_some();
    (one && parsed.path_and_query().is_some_and(|path| path.as_str() == with_key))
        .then(|| text.to_owned())
}

fn read_statuses(table: &Table<'_>, name: &'static str, default: &str) -> Option<Vec<String>> {
    let Some(value) = table.get(name) else { return Some(vec![default.to_owned()]) };
    let statuses =
        value.list_of(STATUSES_EXPECTED, "a status such as \"200\" or \"2xx\"", |text| {
            Some(text.to_owned())
        })?;
    if statuses.is_empty() {
        value.fault("expected at least one status");
        return None;
    }
    Some(statuses)
}

/// Reads header fields that authenticate the gateway. A value is plain text, or the source of a
/// secret. `can_be_set` refuses further fields besides `Host`.
pub(in crate::config) fn read_headers(
    table: &Table<'_>,
    owner: &str,
    can_be_set: impl Fn(&HeaderName) -> bool,
    secret: &mut Vec<(HeaderName, SecretSource)>,
) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    let mut sound = true;
    for (name, value) in table.values() {
        let allowed = |name: &HeaderName| name != http::header::HOST && can_be_set(name);
        let Some(name) = super::header(&name).filter(allowed) else {
            value.conceal();
            value.fault(format!(
                "{name:?} is not the name of a header field that can be set for {owner}"
            ));
            sound = false;
            continue;
        };
        if value.is_text() {
            value.conceal();
            match value.parsed("a field's value", |text| HeaderValue::try_from(text).ok()) {
                Some(mut text) => {
                    text.set_sensitive(true);
                    headers.append(name, text);
                }
                None => sound = false,
            }
            continue;
        }
        let source =
            value.table("a text, or a table such as { env = \"PROBE_TOKEN\" }").and_then(|table| {
                let source = SecretSource::read_from(&table, &format!("a field for {owner}"));
                table.finish();
                source
            });
        match source {
            Some(source) => secret.push((name, source)),
            None => sound = false,
        }
    }
    sound.then_some(headers)
}

/// Reads `upstream_key`. The inner value is `None` if the key is forwarded as received.
pub(super) fn read_upstream_key(
    table: &Table<'_>,
    key: Option<&KeyRule>,
) -> Option<Option<UpstreamKey>> {
    if table.get("upstream_key").is_none() {
        return Some(None);
    }
    let table = table.table("upstream_key", UPSTREAM_KEY_EXPECTED);
    let max_length = table
        .get("max_length")
        .map_or(Some(KEY_LENGTH_MAX), |value| value.number(DIGEST_MIN, KEY_LENGTH_MAX));
    let place = match table.get_together(["header", "body"]) {
        [Some(header), None] => read_key_header(&header).map(KeyPlace::Header),
        [None, Some(body)] => body.parsed(POINTER_EXPECTED, Pointer::parse).map(KeyPlace::Body),
        [Some(_), Some(body)] => {
            body.fault("the upstream gets the key in header or body, not both");
            None
        }
        [None, None] => match key.map(|key| &key.source) {
            Some(KeySource::Sent { header: Some(name), .. }) => {
                Some(KeyPlace::Header(name.clone()))
            }
            Some(KeySource::Sent { header: None, body: Some(pointer), .. }) => {
                Some(KeyPlace::Body(pointer.clone()))
            }
            Some(_) => {
                table.report.note_absence(
                    &table.span_of("header"),
                    "a derived key is in no field, and forms are not rewritten: set header or body",
                );
                None
            }
            None => None,
        },
    };
    if key.is_some_and(|key| key.syntax == KeySyntax::Bare) {
        table.report.warn(
            &table.span().path,
            "changes a field that clients may have signed: with syntax = \"bare\" alone, keys are \
             forwarded as received",
        );
    }
    table.finish();
    Some(Some(UpstreamKey { place: place?, max_length: usize::try_from(max_length?).ok()? }))
}
