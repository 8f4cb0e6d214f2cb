//! Which operation a request belongs to: key, scope, caller and fingerprint, by the route's policy.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, PROXY_AUTHORIZATION};
use http::request::Parts;
use http::{Extensions, HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;

use super::problem::{KeyFault, Problem};
use super::vouch::Vouched;
use super::{is_per_fingerprint, is_shadow};
use crate::engine::{CallerRule, FingerprintRule, KeyPart, KeyRule, KeySource, Policy, ScopeRule, Side, any_chosen, chosen};
use crate::key::{
    BodyHash, Caller, Document, Fingerprint, Hashing, Key, Member, Named, PartHasher, Pointer, Reading, Scope, Slot, Space,
    Unclear, fingerprint, form_boundary, hash_body, path,
};

/// A request's place among operations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identified {
    /// Where its record lies.
    pub slot: Slot,
    /// Who asks.
    pub caller: Caller,
    /// For what.
    pub fingerprint: Fingerprint,
    /// Whose operation it is, as far as quotas tell: the scope, or where there is none the caller.
    pub whose: [u8; 32],
    /// Slot and caller under the secrets that don't write, where there are any: an earlier one, or the next.
    pub others: Vec<(Slot, Caller)>,
    /// The route's chosen fields that the request has.
    pub fields: BTreeMap<String, String>,
}

/// Identifies a request; `None` where the route doesn't require a key and there is none.
pub fn identify(policy: &Policy, hashing: &Hashing, parts: &Parts, body: &Bytes) -> Result<Option<Identified>, Problem> {
    let body = Reading::new(body);
    let sent = match &policy.key.source {
        KeySource::Sent { header, body: pointer } => {
            if pointer.is_some() {
                readable(policy, &parts.headers)?;
            }
            // Without a key there is nothing to ask whose it is.
            let Some(key) = sent_key(&policy.key, header.as_ref(), pointer.as_ref(), parts, &body)? else { return Ok(None) };
            Some(key)
        }
        KeySource::Derived(_) => None,
    };
    readable(policy, &parts.headers)?;
    let how = body_hash(&policy.fingerprint, &parts.headers);
    let scope = scope(&policy.scope, &parts.headers, &parts.extensions)?;
    let caller = caller(&policy.caller, &scope, &parts.headers);
    // Without a scope the caller keeps tenants apart: a key made of order numbers alone would join them.
    let whose = if policy.scope == ScopeRule::Shared { caller.as_bytes() } else { scope.as_bytes() };
    let derived = match &policy.key.source {
        // Made without secrets: the upstream may know it, and must know it again when they are rotated.
        KeySource::Derived(wanted) => derived_key(policy, wanted, whose, parts, &body, how)?,
        KeySource::Sent { .. } => Vec::new(),
    };
    let key = sent.as_ref().map_or(derived.as_slice(), |key| key.as_str().as_bytes());
    let space = if is_shadow(policy) { Space::Shadow } else { Space::Enforced };
    // Of what is only watched nothing is told.
    let fields = match (space, any_chosen(&policy.fields, Side::Request)) {
        (Space::Enforced, true) => body.document().map(|found| chosen(&policy.fields, Side::Request, found)).unwrap_or_default(),
        _ => BTreeMap::new(),
    };
    let fingerprint = fingerprint(parts.method.as_str(), parts.uri.path(), parts.uri.query(), body, how);
    let variant = variant(policy, parts.uri.path(), Some(&fingerprint));
    let named = Named { space, route: &policy.route, scope: &scope, key, variant: &variant };
    let (slot, hashed) = hashing.identity(&named, caller);
    let others = hashing.other_identities(&named, caller);
    Ok(Some(Identified { slot, caller: hashed, fingerprint, whose: *whose, others, fields }))
}

/// Returns what tells apart the operations under one key of one scope: nothing, except where the route's identities have
/// the path in them, or there is a record for each fingerprint. What it returns is a storage format.
pub(super) fn variant(policy: &Policy, path: &str, fingerprint: Option<&Fingerprint>) -> Vec<u8> {
    let per_fingerprint = fingerprint.filter(|_| is_per_fingerprint(policy));
    let of_fingerprint = per_fingerprint.map(|fingerprint| fingerprint.as_bytes().as_slice()).unwrap_or_default();
    if !policy.by_path {
        return of_fingerprint.to_vec();
    }
    let mut hasher = PartHasher::new("variant:path");
    hasher.part(&path::identity(path, policy.path_case)).part(of_fingerprint);
    hasher.finish().to_vec()
}

/// Whose operation a request would be, as far as that can be told of one that is not identified.
pub(super) fn whose(policy: &Policy, parts: &Parts) -> Option<[u8; 32]> {
    let scope = scope(&policy.scope, &parts.headers, &parts.extensions).ok()?;
    let caller = caller(&policy.caller, &scope, &parts.headers);
    Some(if policy.scope == ScopeRule::Shared { *caller.as_bytes() } else { *scope.as_bytes() })
}

/// The key in plain text, of a request that was identified: as sent, or the digest that a derived one is.
pub(super) fn key_text(policy: &Policy, parts: &Parts, body: &Bytes) -> Result<String, Problem> {
    match &policy.key.source {
        KeySource::Sent { header, body: pointer } => {
            let in_header = header.as_ref().map(|name| header_key(&policy.key, name, &parts.headers)).transpose()?;
            let key = match in_header.flatten() {
                // The request was identified, so a key in the body is the same one.
                Some(key) => Some(key),
                None => sent_key(&policy.key, header.as_ref(), pointer.as_ref(), parts, &Reading::new(body))?,
            };
            key.map(|key| key.as_str().to_owned())
                .ok_or_else(|| Problem::KeyMissing { what: describe(header.as_ref(), pointer.as_ref()) })
        }
        KeySource::Derived(wanted) => {
            let scope = scope(&policy.scope, &parts.headers, &parts.extensions)?;
            let caller = caller(&policy.caller, &scope, &parts.headers);
            let whose = if policy.scope == ScopeRule::Shared { caller.as_bytes() } else { scope.as_bytes() };
            let how = body_hash(&policy.fingerprint, &parts.headers);
            let key = derived_key(policy, wanted, whose, parts, &Reading::new(body), how)?;
            Ok(URL_SAFE_NO_PAD.encode(key))
        }
    }
}

/// Looks at the header fields alone: whether the request asks for protection, before its body is read. A request that
/// can be refused is refused here, and one that can pass streams through whatever its size.
pub fn wants_protection(policy: &Policy, headers: &HeaderMap, extensions: &Extensions) -> Result<bool, Problem> {
    if let KeySource::Sent { header: Some(name), body: None } = &policy.key.source
        && header_key(&policy.key, name, headers)?.is_none()
    {
        let missing = || Problem::KeyMissing { what: describe(Some(name), None) };
        return if policy.key.required { Err(missing()) } else { Ok(false) };
    }
    readable(policy, headers)?;
    scope(&policy.scope, headers, extensions)?;
    Ok(true)
}

pub(super) fn scope(rule: &ScopeRule, headers: &HeaderMap, extensions: &Extensions) -> Result<Scope, Problem> {
    match rule {
        ScopeRule::Token(_) | ScopeRule::ClientCertificate => {
            let unasked = || Problem::ScopeMissing { what: "a verified account".to_owned() };
            let said = extensions.get::<Vouched>().ok_or_else(unasked)?.said()?;
            Ok(Scope::of_fields(said.iter().map(|(name, value)| (name.as_str(), value.as_slice()))))
        }
        ScopeRule::Shared => Ok(Scope::shared()),
        ScopeRule::Headers(names) => {
            let fields: Vec<_> = names.iter().map(|name| scope_field(name, headers)).collect::<Result<_, Problem>>()?;
            Ok(Scope::of_fields(fields))
        }
    }
}

/// Returns the one value of a plain scope field, with its name.
///
/// # Errors
/// The field is absent, has no value, or came more than once: an upstream reads the first or the last
/// line, and each pair of lines would be a key space of its own.
fn scope_field<'h>(name: &'h HeaderName, headers: &'h HeaderMap) -> Result<(&'h str, &'h [u8]), Problem> {
    let mut values = lines(headers, name);
    let value = values.next().unwrap_or_default();
    if values.next().is_some() {
        return Err(Problem::ScopeRepeated { name: name.to_string() });
    }
    // In other fields these words are names like any others: a tenant may be called "basic".
    let has_schemes = [AUTHORIZATION, PROXY_AUTHORIZATION].contains(name);
    if value.is_empty() || has_schemes && is_scheme_alone(value) {
        return Err(Problem::ScopeMissing { what: format!("the field {name}") });
    }
    Ok((name.as_str(), value))
}

pub(super) fn caller(rule: &CallerRule, scope: &Scope, headers: &HeaderMap) -> Caller {
    match rule {
        CallerRule::Scope => Caller::nobody().with_scope(scope),
        CallerRule::Headers(names) => names
            .iter()
            .find(|name| lines(headers, name).any(is_credential))
            .map(|name| Caller::of_lines(name.as_str(), lines(headers, name)))
            .unwrap_or_else(Caller::nobody),
    }
}

/// All lines of a field: which of two an upstream believes is not known here. White space around a value
/// is no part of it (RFC 9110, section 5.5), and HTTP/2 leaves it there.
fn lines<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h [u8]> {
    headers.get_all(name).iter().map(|value| value.as_bytes().trim_ascii())
}

/// Returns whether a caller field's value says who asks. An empty value, or an authentication scheme
/// without credentials, is sent by clients that have none: it would be one caller for all of them.
pub(super) fn is_credential(value: &[u8]) -> bool {
    let value = value.trim_ascii();
    !value.is_empty() && !is_scheme_alone(value)
}

/// Returns whether a value is the name of an authentication scheme and nothing else. Every other single
/// word may be a credential: some APIs take `Authorization: sk_live_a`.
fn is_scheme_alone(value: &[u8]) -> bool {
    const SCHEMES: [&str; 5] = ["Basic", "Bearer", "DPoP", "Digest", "Negotiate"];
    SCHEMES.iter().any(|scheme| value.eq_ignore_ascii_case(scheme.as_bytes()))
}

pub(super) fn body_hash<'p>(rule: &'p FingerprintRule, headers: &'p HeaderMap) -> BodyHash<'p> {
    match rule {
        FingerprintRule::Json(ignore) => match content_type(headers).and_then(form_boundary) {
            Some(boundary) => BodyHash::Form { boundary },
            None => BodyHash::Json { is_json: is_json(headers), ignore },
        },
        FingerprintRule::Raw => BodyHash::Raw,
        FingerprintRule::WithoutBody => BodyHash::None,
    }
}

/// The media type, where there is exactly one: which of two a reader believes is not known here.
fn content_type(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(CONTENT_TYPE).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

/// Whether a route takes the key, or what to leave out, from members of the body.
fn reads_members(policy: &Policy) -> bool {
    let in_key = match &policy.key.source {
        KeySource::Sent { body, .. } => body.is_some(),
        KeySource::Derived(parts) => parts.iter().any(|part| matches!(part, KeyPart::Body(_))),
    };
    in_key || matches!(&policy.fingerprint, FingerprintRule::Json(ignore) if !ignore.is_empty())
}

/// Refuses a body that has to be read and is encoded. Taken as it is, its key would be missing, and a request that the
/// upstream decodes and executes would go unprotected.
fn readable(policy: &Policy, headers: &HeaderMap) -> Result<(), Problem> {
    let codings = headers.get_all(CONTENT_ENCODING).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let is_plain = |coding: &[u8]| coding.trim_ascii().is_empty() || coding.trim_ascii().eq_ignore_ascii_case(b"identity");
    if reads_members(policy) && !codings.into_iter().all(is_plain) {
        return Err(Problem::UnsupportedEncoding);
    }
    Ok(())
}

/// Whether the media type is a JSON one (RFC 8259; RFC 6839, section 3.1).
pub(super) fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()) else { return false };
    let essence = value.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
        || essence.len() > 5 && essence.get(essence.len() - 5..).is_some_and(|suffix| suffix.eq_ignore_ascii_case("+json"))
}

fn sent_key(
    rule: &KeyRule,
    header: Option<&HeaderName>,
    pointer: Option<&Pointer>,
    parts: &Parts,
    body: &Reading<'_>,
) -> Result<Option<Key>, Problem> {
    let in_header = header.map(|name| header_key(rule, name, &parts.headers)).transpose()?.flatten();
    let in_body = pointer.map(|pointer| body_key(rule, pointer, &parts.headers, body)).transpose()?.flatten();
    match (in_header, in_body) {
        (Some(a), Some(b)) if a != b => Err(invalid(KeyFault::Differs)),
        (None, None) if rule.required => Err(Problem::KeyMissing { what: describe(header, pointer) }),
        (a, b) => Ok(a.or(b)),
    }
}

fn describe(header: Option<&HeaderName>, pointer: Option<&Pointer>) -> String {
    let header = header.map(|name| format!("the header field {name}"));
    let member = pointer.map(|pointer| format!("the body member /{}", pointer.tokens().join("/")));
    [header, member].into_iter().flatten().collect::<Vec<_>>().join(" or ")
}

fn invalid(why: impl Into<KeyFault>) -> Problem {
    Problem::KeyInvalid { why: why.into() }
}

fn header_key(rule: &KeyRule, name: &HeaderName, headers: &HeaderMap) -> Result<Option<Key>, Problem> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(invalid(KeyFault::Twice));
    }
    let key = Key::parse(value.as_bytes(), rule.syntax, rule.max_length);
    key.and_then(|key| key.at_least(rule.min_length)).map(Some).map_err(invalid)
}

/// Returns the JSON document that a key is looked for in, or `None` where the body is another kind of body.
///
/// # Errors
/// The body claims to be JSON and can't be read, or two readers could read it in two ways. An upstream
/// with a more tolerant parser would find a key in it, and execute a request that nothing protects.
fn document_with_key<'r, 'b>(headers: &HeaderMap, body: &'r Reading<'b>) -> Result<Option<&'r Document<'b>>, Problem> {
    match body.document() {
        Ok(document) => Ok(Some(document)),
        Err(Unclear::Ambiguous) => Err(invalid(KeyFault::AmbiguousBody)),
        Err(Unclear::TooDeep) => Err(Problem::BodyUnreadable),
        Err(Unclear::NotJson) if claims_json(headers, body.bytes()) => Err(Problem::BodyUnreadable),
        Err(Unclear::NotJson) => Ok(None),
    }
}

/// Returns whether a body claims to be JSON: by any of its media types, or by its first character, because
/// many upstreams parse a body without a look at its type. A body without content claims nothing.
fn claims_json(headers: &HeaderMap, body: &[u8]) -> bool {
    // Bytes of byte order marks, and the zeros between the letters of UTF-16 and UTF-32.
    let is_mark = |byte: &u8| matches!(byte, 0 | 0xef | 0xbb | 0xbf | 0xfe | 0xff);
    let first = body.iter().find(|byte| !byte.is_ascii_whitespace() && !is_mark(byte));
    match first {
        None => false,
        Some(b'{' | b'[') => true,
        Some(_) => headers.get_all(CONTENT_TYPE).iter().any(|value| essence_has(value, b"json")),
    }
}

/// Returns whether a media type, without its parameters, has a word in it, in any letter case.
pub(super) fn essence_has(media_type: &HeaderValue, word: &[u8]) -> bool {
    let essence = media_type.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
    essence.windows(word.len()).any(|part| part.eq_ignore_ascii_case(word))
}

fn body_key(rule: &KeyRule, pointer: &Pointer, headers: &HeaderMap, body: &Reading<'_>) -> Result<Option<Key>, Problem> {
    let Some(document) = document_with_key(headers, body)? else { return Ok(None) };
    match document.member(pointer) {
        Member::Missing => Ok(None),
        Member::Text(text) => {
            let key = Key::from_body(text, rule.syntax, rule.max_length);
            key.and_then(|key| key.at_least(rule.min_length)).map(Some).map_err(invalid)
        }
        Member::Other => Err(invalid(KeyFault::NotText)),
    }
}

fn derived_key(
    policy: &Policy,
    wanted: &[KeyPart],
    whose: &[u8; 32],
    parts: &Parts,
    body: &Reading<'_>,
    how: BodyHash<'_>,
) -> Result<Vec<u8>, Problem> {
    let missing = |what: String| Problem::KeyMissing { what };
    let mut hasher = PartHasher::new("key:derived");
    hasher.part(whose);
    for part in wanted {
        match part {
            KeyPart::Path => {
                hasher.part(b"path").part(&path::identity(parts.uri.path(), policy.path_case));
            }
            KeyPart::Query(name) => {
                let value = query_parameter(parts.uri.query().unwrap_or_default(), name)
                    .ok_or_else(|| missing(format!("the query parameter {name}")))?;
                hasher.part(b"query").part(name.as_bytes()).part(&value);
            }
            KeyPart::Header(name) => {
                let mut lines = lines(&parts.headers, name);
                // An empty value would be one part for all who have none, and of two lines each upstream reads another.
                let line = lines.next().filter(|line| !line.is_empty());
                let line = line.ok_or_else(|| missing(format!("the header field {name}")))?;
                if lines.next().is_some() {
                    return Err(invalid(KeyFault::Twice));
                }
                hasher.part(b"header").part(name.as_str().as_bytes()).part(line);
            }
            KeyPart::Body(pointer) => {
                let name = format!("the body member /{}", pointer.tokens().join("/"));
                let document = document_with_key(&parts.headers, body)?.ok_or_else(|| missing(name.clone()))?;
                hasher.part(b"body").part(name.as_bytes());
                if !document.hash_member(&mut hasher, pointer) {
                    return Err(missing(name));
                }
            }
            KeyPart::BodyHash => {
                hasher.part(b"body_hash");
                hash_body(&mut hasher, Reading::new(body.bytes()), how);
            }
        }
    }
    Ok(hasher.finish().to_vec())
}

/// The first value of a query parameter, decoded as forms are: `+` and `%20` are one value.
fn query_parameter(query: &str, name: &str) -> Option<Vec<u8>> {
    let decoded = |text: &str| percent_decode_str(&text.replace('+', " ")).collect::<Vec<u8>>();
    let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.find(|(key, _)| decoded(key) == name.as_bytes()).map(|(_, value)| decoded(value))
}

#[cfg(test)]
mod tests;
