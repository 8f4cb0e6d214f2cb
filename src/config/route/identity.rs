//! The identity of a request: key, scope, caller and fingerprint.

use http::HeaderName;

use super::{HEADER_EXPECTED, header};
use crate::config::read::{Table, Value};
use crate::engine::{CallerRule, FingerprintRule, KeyPart, KeyRule, KeySource, ScopeRule};
use crate::key::{CookieName, KeySyntax, Pointer};

/// Largest possible limit of a key's length.
const KEY_LENGTH_MAX: u64 = 4096;

const KEY_EXPECTED: &str = "a table such as { header = \"Idempotency-Key\" }";
const CALLER_EXPECTED: &str =
    "\"scope\" or a table such as { headers = [\"Authorization\"] } or { cookie = \"session\" }";
const COOKIE_EXPECTED: &str = "a cookie's name such as \"session\"";
const FINGERPRINT_EXPECTED: &str = "a table such as { body = \"json\" }";
const HEADERS_EXPECTED: &str = "a list of header fields such as [\"Authorization\"]";
pub(super) const POINTER_EXPECTED: &str = "a JSON pointer such as \"/order/id\"";
const PARTS_EXPECTED: &str = "a list of parts such as [\"path\", \"body:/order/id\"]";
const PART_EXPECTED: &str =
    "\"path\", \"query:NAME\", \"header:NAME\", \"body:/POINTER\", \"form:/NAME\" or \"body_hash\"";
const FORM_EXPECTED: &str = "a form field's name such as \"txn_id\", without a slash before it";

const SYNTAXES: [(&str, KeySyntax); 6] = [
    ("lenient", KeySyntax::Lenient),
    ("strict", KeySyntax::Strict),
    ("bare", KeySyntax::Bare),
    ("uuid", KeySyntax::Uuid),
    ("uuid4", KeySyntax::UuidV4),
    ("word", KeySyntax::Word),
];

const IDENTITY_EXPECTED: &str = "a list of parts besides scope and key: [\"route\"] or [\"path\"]";
/// The parts of `identity`, each with whether it is the path.
const IDENTITY_PARTS: [(&str, bool); 2] = [("route", false), ("path", true)];

/// Fields that belong to a connection or to the framing of one message. A retry doesn't repeat
/// them.
pub(in crate::config) const FRAMING: [&str; 9] = [
    "connection",
    "content-length",
    "expect",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Fields that the gateway sets or drops on the way to the upstream.
const NOT_PASSED_ON: [&str; 9] = [
    "forwarded",
    "proxy-authenticate",
    "proxy-authorization",
    "traceparent",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-real-ip",
];

/// The part of a body that the fingerprint includes.
#[derive(Clone, Copy, PartialEq)]
enum Body {
    Json,
    Raw,
    None,
}

/// Reads `key`. The whole location of the key comes from one layer, and each other value from the
/// first layer that has it. So a route with only `required = true` keeps its profile's header, and
/// a route with `body`, `form` or `derive` replaces that header.
pub(super) fn read_key(route: &Table<'_>) -> Option<KeyRule> {
    let table = route.table("key", KEY_EXPECTED);
    let required =
        table.get("required").map(|value| value.boolean().map(|required| (required, value)));
    let lengths = read_lengths(&table);
    let syntax = table.get("syntax").and_then(|value| value.choice(&SYNTAXES, &[]));
    let source = match table.get_together(["header", "body", "form", "derive"]) {
        [None, None, None, Some(derive)] => read_derived(&table, &derive, required.as_ref()),
        [header, body, form, None] => {
            let header = header.map(|value| read_key_header(&value));
            let body = body.map(|value| value.parsed(POINTER_EXPECTED, Pointer::parse));
            let form = form.map(|value| value.parsed(FORM_EXPECTED, form_name));
            match (header, body, form) {
                (Some(None), _, _) | (_, Some(None), _) | (_, _, Some(None)) => None,
                (header, body, form) => Some(KeySource::Sent {
                    header: header.flatten(),
                    body: body.flatten(),
                    form: form.flatten(),
                }),
            }
        }
        [_, _, _, Some(derive)] => {
            derive.fault("a derived key replaces header, body and form: remove these");
            None
        }
    };
    table.finish();
    let (source, (min_length, max_length)) = (source?, lengths?);
    let required = matches!(source, KeySource::Derived(_)) || required??.0;
    Some(KeyRule { source, required, min_length, max_length, syntax: syntax? })
}

/// Reads `min_length` and `max_length`. If they contradict each other, notes the fault at the value
/// that the route sets.
fn read_lengths(table: &Table<'_>) -> Option<(usize, usize)> {
    let length = |name| {
        let value = table.get(name)?;
        value.number(1, KEY_LENGTH_MAX).map(|length| (length, value))
    };
    let (min, max) = (length("min_length"), length("max_length"));
    let ((min, min_value), (max, max_value)) = (min?, max?);
    if min > max {
        let blamed = if min_value.span.given { min_value } else { max_value };
        blamed.fault(format!(
            "min_length ({min}) is more than max_length ({max}): no key would be accepted"
        ));
        return None;
    }
    Some((usize::try_from(min).ok()?, usize::try_from(max).ok()?))
}

/// Reads `echo_key`. `key` is `None` if the setting `key` is faulty.
pub(super) fn read_echo_key(route: &Table<'_>, key: Option<&KeyRule>) -> Option<bool> {
    let value = route.get("echo_key")?;
    let echoes = value.boolean()?;
    let in_a_field = matches!(key?.source, KeySource::Sent { header: Some(_), .. });
    if echoes && !in_a_field && value.span.given {
        value.fault(
            "this route has no header field with a key to echo: set header under key, or remove \
             echo_key",
        );
        return None;
    }
    Some(echoes && in_a_field)
}

/// Reads `identity`. Returns whether it includes the path. It always includes the route's name.
pub(super) fn read_by_path(route: &Table<'_>) -> Option<bool> {
    let value = route.get("identity")?;
    let part = |text: &str| {
        IDENTITY_PARTS.iter().find(|(name, _)| *name == text).map(|(_, by_path)| *by_path)
    };
    let parts = value.list_of(IDENTITY_EXPECTED, "\"route\" or \"path\"", part)?;
    if parts.is_empty() {
        value.fault(format!("expected {IDENTITY_EXPECTED}: the route is always included"));
        return None;
    }
    Some(parts.contains(&true))
}

/// Parses the name of a form field. Refuses a name that begins with a slash, because it is probably
/// a pointer that belongs under another key.
fn form_name(text: &str) -> Option<String> {
    (!text.is_empty() && !text.starts_with('/')).then(|| text.to_owned())
}

/// Reads the name of a header field that contains a key, from the client or to the upstream.
pub(in crate::config) fn read_key_header(value: &Value<'_>) -> Option<HeaderName> {
    let name = read_header(value)?;
    if name == http::header::HOST {
        value.fault("Host can't be a key: every request to this address has the same value");
        return None;
    }
    if NOT_PASSED_ON.contains(&name.as_str()) {
        value.fault(format!(
            "{name:?} can't carry a key: the gateway sets or drops it on the way to the upstream"
        ));
        return None;
    }
    Some(name)
}

fn read_derived(
    table: &Table<'_>,
    derive: &Value<'_>,
    required: Option<&Option<(bool, Value<'_>)>>,
) -> Option<KeySource> {
    if let Some(Some((false, value))) = required
        && value.span.given
    {
        value.fault("a derived key is always required");
    }
    for name in ["min_length", "max_length", "syntax"] {
        if let Some(value) = table.get(name).filter(|value| value.span.given) {
            value.fault("not used for a derived key");
        }
    }
    let parts: Vec<Option<KeyPart>> = derive.list(PARTS_EXPECTED)?.iter().map(read_part).collect();
    let parts: Vec<KeyPart> = parts.into_iter().collect::<Option<_>>()?;
    if parts.is_empty() {
        derive.fault(format!("expected at least one part: {PART_EXPECTED}"));
        return None;
    }
    table.report.warn(
        &derive.span.path,
        "two intended requests that are equal in these parts within the retention become one \
         operation",
    );
    Some(KeySource::Derived(parts))
}

fn read_part(value: &Value<'_>) -> Option<KeyPart> {
    let parse = |text: &str| match text.split_once(':') {
        None if text == "path" => Some(KeyPart::Path),
        None if text == "body_hash" => Some(KeyPart::BodyHash),
        Some(("query", name)) if !name.is_empty() => Some(KeyPart::Query(name.to_owned())),
        Some(("header", name)) => header(name).map(KeyPart::Header),
        Some(("body", pointer)) => Pointer::parse(pointer).map(KeyPart::Body),
        Some(("form", pointer)) => match Pointer::parse(pointer)?.tokens() {
            [name] if !name.is_empty() => Some(KeyPart::Form(name.clone())),
            _ => None,
        },
        _ => None,
    };
    let part = value.parsed(PART_EXPECTED, parse)?;
    if let KeyPart::Header(name) = &part {
        repeated_by_retries(value, name)?;
    }
    Some(part)
}

/// Reads `caller`. `scope` is `None` if the setting `scope` is faulty.
pub(super) fn read_caller(route: &Table<'_>, scope: Option<&ScopeRule>) -> Option<CallerRule> {
    let value = route.get("caller")?;
    if scope.is_some_and(ScopeRule::is_verified) && !value.is_text() {
        if value.span.given {
            value.fault("the verified scope is also the caller: remove caller");
        }
        return Some(CallerRule::Scope);
    }
    if value.is_text() {
        value.choice(&[("scope", ())], &[])?;
        if scope == Some(&ScopeRule::Shared) {
            value
                .fault("needs a scope: without one, any client could get another client's answers");
        }
        return Some(CallerRule::Scope);
    }
    let table = value.table(CALLER_EXPECTED)?;
    let caller = match table.get_together(["headers", "cookie"]) {
        [Some(headers), None] => read_headers(&headers).map(CallerRule::Headers),
        [None, Some(cookie)] => read_cookie(&cookie).map(CallerRule::Cookie),
        [Some(_), Some(cookie)] => {
            cookie.fault("a caller is identified by headers or by a cookie, not by both");
            None
        }
        [None, None] => {
            value.fault(format!("expected {CALLER_EXPECTED}"));
            None
        }
    };
    table.finish();
    caller
}

/// Reads `fingerprint`. Each value comes from the first layer that has it.
pub(super) fn read_fingerprint(route: &Table<'_>) -> Option<FingerprintRule> {
    let table = route.table("fingerprint", FINGERPRINT_EXPECTED);
    let bodies = [("json", Body::Json), ("raw", Body::Raw), ("none", Body::None)];
    let body = table.get("body").and_then(|value| value.choice(&bodies, &[]));
    let ignore = table.get("ignore").and_then(|value| {
        let pointers = value.list_of(
            "a list of JSON pointers such as [\"/metadata/sent_at\"]",
            POINTER_EXPECTED,
            Pointer::parse,
        )?;
        if !pointers.is_empty() && matches!(body, Some(Body::Raw | Body::None)) {
            value.fault("only members of JSON bodies can be ignored: body = \"json\"");
        }
        Some(pointers)
    });
    table.finish();
    Some(match (body?, ignore?) {
        (Body::Json, pointers) => FingerprintRule::Json(pointers),
        (Body::Raw, _) => FingerprintRule::Raw,
        (Body::None, _) => FingerprintRule::WithoutBody,
    })
}

pub(super) fn read_cookie(value: &Value<'_>) -> Option<CookieName> {
    value.parsed(COOKIE_EXPECTED, CookieName::parse)
}

pub(super) fn read_headers(value: &Value<'_>) -> Option<Vec<HeaderName>> {
    let names: Vec<Option<HeaderName>> =
        value.list(HEADERS_EXPECTED)?.iter().map(read_header).collect();
    let names: Vec<HeaderName> = names.into_iter().collect::<Option<_>>()?;
    if names.is_empty() {
        value.fault("expected at least one header field");
        return None;
    }
    Some(names)
}

pub(in crate::config) fn read_header(value: &Value<'_>) -> Option<HeaderName> {
    let name = value.parsed(HEADER_EXPECTED, header)?;
    repeated_by_retries(value, &name)?;
    Some(name)
}

fn repeated_by_retries(value: &Value<'_>, name: &HeaderName) -> Option<()> {
    if FRAMING.contains(&name.as_str()) {
        value.fault(format!(
            "{name:?} belongs to one connection or message, not to an operation: a retry may differ"
        ));
        return None;
    }
    Some(())
}

/// Describes the location of a key.
pub(in crate::config) fn key_location(key: &KeyRule) -> String {
    match &key.source {
        KeySource::Sent { header, body, form } => {
            let header = header.as_ref().map(|name| format!("header {name}"));
            let body = body.as_ref().map(|pointer| format!("body {pointer}"));
            let form = form.as_ref().map(|name| format!("form {name}"));
            let places: Vec<String> = [header, body, form].into_iter().flatten().collect();
            if places.is_empty() { "nowhere".to_owned() } else { places.join(" or ") }
        }
        KeySource::Derived(parts) => {
            format!("derived from {}", parts.iter().map(part_name).collect::<Vec<_>>().join(", "))
        }
    }
}

/// Formats a part of a derived key as the file writes it.
fn part_name(part: &KeyPart) -> String {
    match part {
        KeyPart::Path => "path".to_owned(),
        KeyPart::Query(name) => format!("query:{name}"),
        KeyPart::Header(name) => format!("header:{name}"),
        KeyPart::Body(pointer) => format!("body:{pointer}"),
        KeyPart::Form(name) => format!("form:/{}", name.replace('~', "~0").replace('/', "~1")),
        KeyPart::BodyHash => "body_hash".to_owned(),
    }
}
