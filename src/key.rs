//! The identity of a request: idempotency key, scope, caller, slot and fingerprint. Each is
//! computed once, when the request arrives.
//!
//! Danger: two different requests with the same [`Slot`] would share an answer. So every hashed
//! part is preceded by its length, and every hash by its purpose.

use std::fmt;
use std::sync::LazyLock;

use sha2::{Digest, Sha256};

use crate::hex::{self, Hex};

mod canonical;
mod cookie;
mod form;
mod hashing;
mod leaves;
mod member;
mod members;
mod multipart;
pub mod path;
mod reading;
mod resource;
mod spelling;
mod syntax;
mod tenant;

use canonical::hash_json;
pub use canonical::{Document, JSON_DEPTH_MAX, Member, UnclearJson};
pub use cookie::{CookieName, CookieRepeated};
pub use form::{FormField, form_field};
pub use hashing::{HASH_SECRET_BYTES_MIN, Hashing, OperationParts, SecretError};
pub use leaves::{LEAF_POINTER_BYTES_MAX, LEAVES_MAX, LeafDigests, RequestParts, Salt};
pub use member::{element, value, with_member, with_values_replaced};
pub use members::{MEMBERS_MAX, MemberDigests, MergeVerdict};
pub use multipart::{PARTS_MAX, form_boundary};
pub use reading::Reading;
pub use spelling::key_field_value;
pub use syntax::KeySyntax;
pub use tenant::TenantId;

/// Number of partitions for records. Part of the storage layout: it never changes.
pub const PARTITIONS: u16 = 256;

/// Bytes of a slot: SHA-256 cut to 160 bits. Short enough to read aloud. Finding another operation
/// with a given slot takes 2^160 tries. Finding any two operations with the same slot takes 2^80
/// tries.
pub const SLOT_BYTES: usize = 20;

/// A refused key. The texts never contain the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The value is empty.
    #[error("is empty")]
    Empty,
    /// The decoded value is longer than the route allows (characters, which here are bytes).
    #[error("is longer than {max} characters")]
    TooLong {
        /// The route's limit.
        max: usize,
    },
    /// The decoded value is shorter than the route requires.
    #[error("is shorter than {min} characters")]
    TooShort {
        /// The route's limit.
        min: usize,
    },
    /// The value has a byte outside visible ASCII, or a quote inside a bare key.
    #[error(
        "has a character that a key can't have (allowed: visible ASCII characters without white \
         space and quotes, or a quoted string)"
    )]
    Character,
    /// The value starts like a structured-field string and isn't a valid one.
    #[error("starts with a quote and isn't a well-formed structured string (RFC 9651)")]
    Quoting,
    /// The route requires another form.
    #[error("doesn't have the form that this route asks for: {expected}")]
    Form {
        /// The required form.
        expected: &'static str,
    },
}

/// A decoded idempotency key: 1 to `max_length` bytes of printable ASCII.
///
/// `Debug` hides the value: keys never reach logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// Parses one field value (IETF draft-ietf-httpapi-idempotency-key-header-07, section 2.1; RFC
    /// 9651).
    ///
    /// A value that starts with `"` is a structured-field string: escapes are decoded and
    /// parameters ignored. Any other value is the key itself, so `"abc"` and `abc` are the same
    /// key.
    pub fn parse(value: &[u8], syntax: KeySyntax, max_length: usize) -> Result<Key, KeyError> {
        let value = value.trim_ascii();
        if value.is_empty() {
            return Err(KeyError::Empty);
        }
        let text = if value[0] == b'"' {
            if syntax == KeySyntax::Bare {
                return Err(KeyError::Form { expected: syntax::BARE });
            }
            parse_quoted(value)?
        } else {
            if syntax == KeySyntax::Strict {
                return Err(KeyError::Form { expected: "a structured string, in double quotes" });
            }
            if !value.iter().all(|b| matches!(b, 0x21..=0x7e) && *b != b'"') {
                return Err(KeyError::Character);
            }
            String::from_utf8(value.to_vec()).map_err(|_| KeyError::Character)?
        };
        Key::checked(text, syntax, max_length)
    }

    /// Parses a key from a member of a JSON body, where it is a string without further quoting.
    pub fn from_body(text: &str, syntax: KeySyntax, max_length: usize) -> Result<Key, KeyError> {
        if !text.bytes().all(|b| matches!(b, 0x20..=0x7e)) {
            return Err(KeyError::Character);
        }
        Key::checked(text.to_owned(), syntax, max_length)
    }

    fn checked(text: String, syntax: KeySyntax, max_length: usize) -> Result<Key, KeyError> {
        if text.is_empty() {
            return Err(KeyError::Empty);
        }
        if text.len() > max_length {
            return Err(KeyError::TooLong { max: max_length });
        }
        match syntax.differing_form(&text) {
            Some(expected) => Err(KeyError::Form { expected }),
            None => Ok(Key(text)),
        }
    }

    /// Returns the key if it has at least `min` characters.
    ///
    /// # Errors
    /// [`KeyError::TooShort`].
    pub fn at_least(self, min: usize) -> Result<Key, KeyError> {
        if self.0.len() < min { Err(KeyError::TooShort { min }) } else { Ok(self) }
    }

    /// Returns the decoded key. For hashing and comparing only; never for a log line.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

fn parse_quoted(value: &[u8]) -> Result<String, KeyError> {
    let item: sfv::Item = sfv::Parser::new(value).parse().map_err(|_| KeyError::Quoting)?;
    match item.bare_item {
        sfv::BareItem::String(text) => Ok(text.as_str().to_owned()),
        _ => Err(KeyError::Quoting),
    }
}

/// SHA-256 over separate parts: each part is preceded by its length, and the whole by its purpose.
#[derive(Clone)]
pub struct PartHasher(Sha256);

impl PartHasher {
    /// Starts a hash for one purpose. Equal parts under another purpose hash differently.
    pub fn new(purpose: &str) -> PartHasher {
        let mut hasher = PartHasher(Sha256::new());
        hasher.part(purpose.as_bytes());
        hasher
    }

    /// Adds one part.
    pub fn part(&mut self, bytes: &[u8]) -> &mut PartHasher {
        self.0.update((bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
        self
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Returns the 32 bytes.
    pub fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

/// The hashed key space of a client: two scopes never share a record. On a route without a
/// configured scope, all clients share one key space, and the [`Caller`] separates them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope([u8; 32]);

impl Scope {
    /// Returns the key space of a route without a scope.
    pub fn shared() -> Scope {
        static SHARED: LazyLock<Scope> =
            LazyLock::new(|| Scope(PartHasher::new("scope:none").finish()));
        *SHARED
    }

    /// Creates a key space from header fields, in the configured order.
    pub fn of_fields<'a>(fields: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Scope {
        Scope(hash_fields("scope:fields", fields))
    }

    /// Creates the key space of one of the gateway's own components, such as a sink or a saga. Its
    /// hash has a purpose of its own, so no client's scope ever equals it.
    pub fn internal(component: &str, name: &str) -> Scope {
        let fields = [(component, name.as_bytes())];
        Scope(hash_fields("scope:internal", fields))
    }

    /// Returns the hash. Derived keys include it.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// The hashed credentials of a client. A replay is given only to the caller of the first request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller([u8; 32]);

impl Caller {
    /// Returns the caller of requests without any of the caller fields.
    pub fn nobody() -> Caller {
        static NOBODY: LazyLock<Caller> =
            LazyLock::new(|| Caller(PartHasher::new("caller:none").finish()));
        *NOBODY
    }

    /// Creates a caller from one field. Name and value count.
    pub fn of_field(name: &str, value: &[u8]) -> Caller {
        Caller::of_lines(name, [value])
    }

    /// Creates a caller from a field that may have several lines. Every line counts, in order.
    pub fn of_lines<'a>(name: &str, lines: impl IntoIterator<Item = &'a [u8]>) -> Caller {
        Caller(hash_fields("caller:field", lines.into_iter().map(|line| (name, line))))
    }

    /// Combines the caller with a scope: for `caller = "scope"`, or for a field together with a
    /// scope header.
    pub fn with_scope(self, scope: &Scope) -> Caller {
        let mut hasher = PartHasher::new("caller:scoped");
        hasher.part(&self.0).part(&scope.0);
        Caller(hasher.finish())
    }

    /// Creates the caller for one of the gateway's own components. Its hash has a purpose of its
    /// own, so no client's caller ever equals it.
    pub fn internal(component: &str, name: &str) -> Caller {
        let fields = [(component, name.as_bytes())];
        Caller(hash_fields("caller:internal", fields))
    }

    /// Creates a caller from a stored hash.
    pub fn from_bytes(bytes: [u8; 32]) -> Caller {
        Caller(bytes)
    }

    /// Returns the hash, as stored.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

fn hash_fields<'a>(
    purpose: &str,
    fields: impl IntoIterator<Item = (&'a str, &'a [u8])>,
) -> [u8; 32] {
    let mut hasher = PartHasher::new(purpose);
    for (name, value) in fields {
        hasher.part(name.as_bytes()).part(value);
    }
    hasher.finish()
}

/// The hash of a request's method, path, query and body. By default, a request with a used key and
/// another fingerprint is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Creates a fingerprint from a stored hash.
    pub fn from_bytes(bytes: [u8; 32]) -> Fingerprint {
        Fingerprint(bytes)
    }

    /// Returns the hash, as stored.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// The part of a body in the fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyHash<'a> {
    /// The JSON value, without the members under `ignore`; other media types as bytes.
    Json {
        /// Whether the request has a JSON media type.
        is_json: bool,
        /// Pointers to members that don't count (RFC 6901).
        ignore: &'a [Pointer],
    },
    /// The parts of a form, whatever its boundary; as bytes if readers could interpret the form
    /// differently.
    Form {
        /// The boundary, from [`form_boundary`].
        boundary: &'a str,
    },
    /// The bytes as received.
    Raw,
    /// Nothing.
    None,
}

/// Computes the fingerprint of a request. Path and query count as received; the media type doesn't
/// count.
pub fn fingerprint<'b>(
    method: &str,
    path: &str,
    query: Option<&str>,
    body: impl Into<Reading<'b>>,
    how: BodyHash<'_>,
) -> Fingerprint {
    let mut hasher = PartHasher::new("fingerprint:1");
    hasher.part(method.as_bytes()).part(path.as_bytes());
    match query {
        Some(query) => hasher.part(b"?").part(query.as_bytes()),
        None => hasher.part(b""),
    };
    hash_body(&mut hasher, body.into(), how);
    Fingerprint(hasher.finish())
}

/// Adds a body to a hash, by the rule of the route.
pub fn hash_body(hasher: &mut PartHasher, body: Reading<'_>, how: BodyHash<'_>) {
    let bytes = body.bytes();
    let by_value = match how {
        BodyHash::None => {
            hasher.part(b"none");
            return;
        }
        BodyHash::Json { is_json: true, ignore } => {
            let document = body.into_document();
            document.map(|document| hash_json(hasher, document, ignore)).is_ok()
        }
        BodyHash::Form { boundary } => multipart::hash_form(hasher, bytes, boundary),
        BodyHash::Raw | BodyHash::Json { is_json: false, .. } => false,
    };
    // A body without one unambiguous value is equal only to the same bytes.
    if !by_value {
        hasher.part(b"raw").part(bytes);
    }
}

/// A JSON pointer (RFC 6901), parsed into its reference tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pointer(Vec<String>);

impl Pointer {
    /// Parses a pointer such as `/order/id`. The empty pointer (the whole document) is refused.
    pub fn parse(text: &str) -> Option<Pointer> {
        let rest = text.strip_prefix('/')?;
        rest.split('/').map(unescape_token).collect::<Option<Vec<_>>>().map(Pointer)
    }

    /// Returns the reference tokens, unescaped.
    pub fn tokens(&self) -> &[String] {
        &self.0
    }
}

impl fmt::Display for Pointer {
    /// Formats the pointer as in RFC 6901.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|token| write!(f, "/{}", token.replace('~', "~0").replace('/', "~1")))
    }
}

fn unescape_token(token: &str) -> Option<String> {
    let mut out = String::with_capacity(token.len());
    let mut chars = token.chars();
    while let Some(c) = chars.next() {
        match c {
            '~' => match chars.next()? {
                '0' => out.push('~'),
                '1' => out.push('/'),
                _ => return None,
            },
            c => out.push(c),
        }
    }
    Some(out)
}

/// The key space of the store that contains a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Space {
    /// Records of enforcing routes.
    Enforced,
    /// Records of routes in shadow mode, which are never replayed.
    Shadow,
}

/// The location of an operation's record: the hash of route name, scope and key. It doesn't reveal
/// the key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot {
    /// The key space.
    pub space: Space,
    hash: [u8; SLOT_BYTES],
}

/// The text is not an operation reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an operation's reference is `op_` followed by {} hexadecimal digits", SLOT_BYTES * 2)]
pub struct ReferenceError;

impl Slot {
    /// Computes the slot of an operation. `variant` is empty, except where a route keeps one record
    /// per path or per fingerprint.
    pub fn of(space: Space, route: &str, scope: &Scope, key: &[u8], variant: &[u8]) -> Slot {
        let mut hasher = PartHasher::new("slot:1");
        hasher.part(route.as_bytes()).part(&scope.0).part(key).part(variant);
        let digest = hasher.finish();
        let mut hash = [0; SLOT_BYTES];
        hash.copy_from_slice(&digest[..SLOT_BYTES]);
        Slot { space, hash }
    }

    /// Creates a slot from its stored hash.
    pub const fn from_hash(space: Space, hash: [u8; SLOT_BYTES]) -> Slot {
        Slot { space, hash }
    }

    /// Returns the hash, as stored.
    pub fn hash(&self) -> &[u8; SLOT_BYTES] {
        &self.hash
    }

    /// Returns the partition, 0 to 255.
    pub fn partition(&self) -> u16 {
        u16::from(self.hash[0])
    }

    /// Parses an operation reference, as in problem documents and in `onceward operations`.
    pub fn from_reference(text: &str) -> Result<Slot, ReferenceError> {
        let hash = text.strip_prefix("op_").and_then(hex::decode).ok_or(ReferenceError)?;
        Ok(Slot { space: Space::Enforced, hash })
    }
}

impl fmt::Display for Slot {
    /// Writes the operation reference.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "op_{}", Hex(&self.hash))
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests;
