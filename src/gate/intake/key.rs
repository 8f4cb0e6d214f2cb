//! Reads the key of a request: the key that the client sent, or a key that is derived from parts of
//! the request.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::request::Parts;
use http::{HeaderMap, HeaderName};
use percent_encoding::percent_decode_str;

use crate::engine::{KeyPart, KeyRule, KeySource, Policy};
use crate::gate::intake::body::{
    body_key, document_with_key, field_of_form, form_key, invalid, missing_in_body,
};
use crate::gate::intake::head::lines;
use crate::key::{
    BodyHash, FormField, Key, PartHasher, Pointer, Reading, TenantId, hash_body, path,
};
use crate::refusal::{BodyKind, KeyFault, Refusal};

/// The key of an operation. Its `Debug` hides the value: keys never reach logs.
#[derive(Clone, PartialEq, Eq)]
pub enum OperationKey {
    /// The key that the client sent, decoded.
    Sent(Key),
    /// The hash of the request parts from which the route derives its keys.
    Derived([u8; 32]),
}

impl OperationKey {
    /// Returns the bytes that identify the operation.
    pub(super) fn as_bytes(&self) -> &[u8] {
        match self {
            OperationKey::Sent(key) => key.as_str().as_bytes(),
            OperationKey::Derived(hash) => hash,
        }
    }

    /// Returns the key in plain text; a derived key in base64url.
    pub(super) fn text(&self) -> Cow<'_, str> {
        match self {
            OperationKey::Sent(key) => key.as_str().into(),
            OperationKey::Derived(hash) => URL_SAFE_NO_PAD.encode(hash).into(),
        }
    }
}

impl fmt::Debug for OperationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OperationKey(..)")
    }
}

/// Returns the name of the key's header field, if the route takes the key only from that field.
pub(super) fn only_header(rule: &KeyRule) -> Option<&HeaderName> {
    match &rule.source {
        KeySource::Sent { header: Some(name), body: None, form: None } => Some(name),
        _ => None,
    }
}

/// Reads the key on a route that takes the key only from this header field. Returns `None` if the
/// field is absent and the route requires no key.
///
/// # Errors
/// The key is missing and required, or it is invalid.
pub(in crate::gate) fn key_in_head(
    rule: &KeyRule,
    name: &HeaderName,
    headers: &HeaderMap,
) -> Result<Option<Key>, Refusal> {
    match header_key(rule, name, headers)? {
        None if rule.required => Err(missing(describe(rule))),
        key => Ok(key),
    }
}

/// Reads the key that the client sent, from all places that the route names. Returns `None` if
/// there is no key and the route requires no key.
///
/// # Errors
/// The key is missing and required, it is invalid, or two places have different keys.
pub(super) fn sent_key(
    rule: &KeyRule,
    headers: &HeaderMap,
    body: &Reading<'_>,
) -> Result<Option<Key>, Refusal> {
    let KeySource::Sent { header, body: pointer, form } = &rule.source else { return Ok(None) };
    let in_header =
        header.as_ref().map(|name| header_key(rule, name, headers)).transpose()?.flatten();
    let in_body = pointer
        .as_ref()
        .map(|pointer| body_key(rule, pointer, headers, body))
        .transpose()?
        .flatten();
    let in_form =
        form.as_ref().map(|name| form_key(rule, name, headers, body)).transpose()?.flatten();
    let mut found = [in_header, in_body, in_form].into_iter().flatten();
    let first = found.next();
    if found.any(|other| first.as_ref() != Some(&other)) {
        return Err(invalid(KeyFault::Differs));
    }
    if first.is_none() && rule.required {
        let reads_body = pointer.is_some() || form.is_some();
        let kind = reads_body.then(|| BodyKind::of(headers, body.bytes()));
        return Err(Refusal::KeyMissing { what: describe(rule), body: kind });
    }
    Ok(first)
}

/// Refuses a request with a body that can't be decoded, if the route takes the key or a part of it
/// from the body. Otherwise the gate would find no key in the encoded body, and would forward the
/// request without protection. The upstream could decode and execute it. A key derived from the
/// encoded body would differ each time that a client compresses the body.
pub(super) fn require_readable(policy: &Policy, is_decoded: bool) -> Result<(), Refusal> {
    let reads_body = || match &policy.key.source {
        KeySource::Sent { body, form, .. } => body.is_some() || form.is_some(),
        KeySource::Derived(parts) => parts
            .iter()
            .any(|part| matches!(part, KeyPart::Body(_) | KeyPart::Form(_) | KeyPart::BodyHash)),
    };
    if is_decoded || !reads_body() { Ok(()) } else { Err(Refusal::UnsupportedEncoding) }
}

/// Describes in words the places from which the route reads the key.
fn describe(rule: &KeyRule) -> String {
    let KeySource::Sent { header, body, form } = &rule.source else { return String::new() };
    let header = header.as_ref().map(|name| format!("the header field {name}"));
    let member = body.as_ref().map(|pointer| format!("the body member {pointer}"));
    let field = form.as_ref().map(|name| format!("the form field {name}"));
    [header, member, field].into_iter().flatten().collect::<Vec<_>>().join(" or ")
}

fn header_key(
    rule: &KeyRule,
    name: &HeaderName,
    headers: &HeaderMap,
) -> Result<Option<Key>, Refusal> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(invalid(KeyFault::Twice));
    }
    let key = Key::parse(value.as_bytes(), rule.syntax, rule.max_length);
    key.and_then(|key| key.at_least(rule.min_length)).map(Some).map_err(invalid)
}

/// The parts of a request from which keys can be derived.
pub(super) struct DerivedKeySource<'r, 'b> {
    pub policy: &'r Policy,
    pub tenant: TenantId,
    pub parts: &'r Parts,
    pub body: &'r Reading<'b>,
    pub body_hash: BodyHash<'r>,
}

impl DerivedKeySource<'_, '_> {
    /// Derives the key from these parts of the request.
    ///
    /// The key does not depend on a hashing secret. The upstream may get the key, and must
    /// recognise it after a rotation of the secrets.
    ///
    /// # Errors
    /// A part is missing, empty, or comes more than once.
    pub fn derive(&self, key_parts: &[KeyPart]) -> Result<[u8; 32], Refusal> {
        let mut hasher = PartHasher::new("key:derived");
        hasher.part(self.tenant.as_bytes());
        for part in key_parts {
            self.hash_part(&mut hasher, part)?;
        }
        Ok(hasher.finish())
    }

    fn hash_part(&self, hasher: &mut PartHasher, part: &KeyPart) -> Result<(), Refusal> {
        let Parts { uri, headers, .. } = self.parts;
        match part {
            KeyPart::Path => {
                hasher.part(b"path").part(&path::identity(uri.path(), self.policy.path_case));
            }
            KeyPart::Query(name) => {
                let value = query_parameter(uri.query().unwrap_or_default(), name)
                    .ok_or_else(|| missing(format!("the query parameter {name}")))?;
                hasher.part(b"query").part(name.as_bytes()).part(&value);
            }
            KeyPart::Header(name) => {
                let mut lines = lines(headers, name);
                // All requests with an empty value would have the same key part.
                let line = lines.next().filter(|line| !line.is_empty());
                let line = line.ok_or_else(|| missing(format!("the header field {name}")))?;
                // Some upstreams read the first line, others the last.
                if lines.next().is_some() {
                    return Err(invalid(KeyFault::Twice));
                }
                hasher.part(b"header").part(name.as_str().as_bytes()).part(line);
            }
            KeyPart::Body(pointer) => self.hash_member(hasher, pointer)?,
            KeyPart::Form(name) => self.hash_form_field(hasher, name)?,
            KeyPart::BodyHash => {
                hasher.part(b"body_hash");
                hash_body(hasher, Reading::new(self.body.bytes()), self.body_hash);
            }
        }
        Ok(())
    }

    fn hash_member(&self, hasher: &mut PartHasher, pointer: &Pointer) -> Result<(), Refusal> {
        let headers = &self.parts.headers;
        let missing = || missing_in_body(format!("the body member {pointer}"), headers, self.body);
        let document = document_with_key(headers, self.body)?.ok_or_else(missing)?;
        // This form, without the escapes of a pointer, must not change: stored identities depend on
        // it since the first version.
        let name = format!("the body member /{}", pointer.tokens().join("/"));
        hasher.part(b"body").part(name.as_bytes());
        if document.hash_member(hasher, pointer) { Ok(()) } else { Err(missing()) }
    }

    fn hash_form_field(&self, hasher: &mut PartHasher, name: &str) -> Result<(), Refusal> {
        let headers = &self.parts.headers;
        match field_of_form(name, headers, self.body) {
            FormField::Repeated => Err(invalid(KeyFault::Twice)),
            // All requests with an empty value would have the same key part.
            FormField::Value(value) if !value.is_empty() => {
                hasher.part(b"form").part(name.as_bytes()).part(&value);
                Ok(())
            }
            FormField::Missing | FormField::Value(_) => {
                Err(missing_in_body(format!("the form field {name}"), headers, self.body))
            }
        }
    }
}

fn missing(what: String) -> Refusal {
    Refusal::KeyMissing { what, body: None }
}

/// Returns the first value of a query parameter, decoded as in forms: `+` and `%20` both mean a
/// space.
fn query_parameter(query: &str, name: &str) -> Option<Vec<u8>> {
    let decoded = |text: &str| percent_decode_str(&text.replace('+', " ")).collect::<Vec<u8>>();
    let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.find(|(key, _)| decoded(key) == name.as_bytes()).map(|(_, value)| decoded(value))
}
