//! JSON bodies by value: equal documents have equal hashes, whatever their member order, white
//! space or number spelling.
//!
//! Danger: two different payments with the same hash would share an answer. So numbers are compared
//! as decimal digits, never as floats. A document with an ambiguous value (duplicate member names,
//! too deep, not JSON) is compared as bytes. `serde_json` checks the grammar first; the code below
//! reads only valid text.

use std::borrow::Cow;

use memchr::memchr2;

use super::{PartHasher, Pointer};

/// Deepest nesting that is compared by value, which is also `serde_json`'s limit. Deeper documents
/// are compared as bytes.
pub const JSON_DEPTH_MAX: usize = 128;

/// Bytes collected for one update of the hash: fewer, larger updates are faster.
const CHUNK_BYTES: usize = 1024;

/// The reason why a body has no unambiguous JSON value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnclearJson {
    /// It is not JSON.
    NotJson,
    /// It is JSON that readers may interpret differently: duplicate member names, lone surrogates,
    /// unlimited exponents.
    Ambiguous,
    /// It is JSON with more than [`JSON_DEPTH_MAX`] levels.
    TooDeep,
}

/// Returns the body without a UTF-8 byte order mark at its start. RFC 8259, section 8.1 lets a
/// reader ignore the mark, and upstreams do: with and without the mark, a body is the same
/// document.
pub(super) fn without_mark(body: &[u8]) -> &[u8] {
    body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body)
}

/// A JSON document with one unambiguous value.
pub struct Document<'a>(JsonValue<'a>);

/// The value under a pointer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Member<'d> {
    /// No value.
    Missing,
    /// A string.
    Text(&'d str),
    /// A value of another type.
    Other,
}

impl<'a> Document<'a> {
    /// Parses a document of at most [`JSON_DEPTH_MAX`] levels, with or without a byte order mark.
    pub fn parse(body: &'a [u8]) -> Result<Document<'a>, UnclearJson> {
        let text = std::str::from_utf8(without_mark(body)).map_err(|_| UnclearJson::NotJson)?;
        serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|_| UnclearJson::NotJson)?;
        let mut reader = JsonReader { text, at: 0, too_deep: false };
        let value = reader.value(0);
        value.map(Document).ok_or(if reader.too_deep {
            UnclearJson::TooDeep
        } else {
            UnclearJson::Ambiguous
        })
    }

    /// Returns the value under a pointer.
    pub fn member(&self, pointer: &Pointer) -> Member<'_> {
        match self.0.find(pointer.tokens()) {
            None => Member::Missing,
            Some(JsonValue::Text(text)) => Member::Text(text),
            Some(_) => Member::Other,
        }
    }

    /// Returns the text of the string, number or boolean under a pointer, if it has at most `max`
    /// bytes. Numbers have their plain decimal form: 1e2, 100 and 100.0 are equal.
    pub fn scalar(&self, pointer: &Pointer, max: usize) -> Option<Cow<'_, str>> {
        let text = match self.0.find(pointer.tokens())? {
            JsonValue::Text(text) => Cow::Borrowed(text.as_ref()),
            JsonValue::Literal(word @ ("true" | "false")) => Cow::Borrowed(*word),
            JsonValue::Number(number) => Cow::Owned(number.plain(max)?),
            JsonValue::Literal(_) | JsonValue::Array(_) | JsonValue::Object(_) => return None,
        };
        (text.len() <= max).then_some(text)
    }

    /// Returns the document without the members under `ignore`.
    pub(super) fn without(mut self, ignore: &[Pointer]) -> Document<'a> {
        for pointer in ignore {
            self.0.remove(pointer.tokens());
        }
        self
    }

    /// Returns all scalars and empty containers with their pointers (RFC 6901); `None` if there are
    /// more than `max`.
    pub(super) fn leaves(&self, max: usize) -> Option<Vec<(String, Leaf<'_, 'a>)>> {
        let mut leaves = Vec::new();
        self.0.gather(String::new(), max, &mut leaves)?;
        Some(leaves)
    }

    /// Adds the value under a pointer to a hash. Returns `false`, and adds nothing, if it is
    /// missing or `null`.
    pub fn hash_member(&self, hasher: &mut PartHasher, pointer: &Pointer) -> bool {
        match self.0.find(pointer.tokens()) {
            None | Some(JsonValue::Literal("null")) => false,
            Some(value) => {
                Out::write(hasher, value);
                true
            }
        }
    }
}

impl<'a> Document<'a> {
    /// Returns the members of the document, if it is an object, in the order of their names.
    pub(super) fn members(&self) -> Option<Members<'_, 'a>> {
        Node(&self.0).members()
    }
}

/// The members of an object, with their names.
pub(super) type Members<'d, 'a> = Vec<(&'d str, Node<'d, 'a>)>;

/// A value in a document.
#[derive(Clone, Copy)]
pub(super) struct Node<'d, 'a>(&'d JsonValue<'a>);

impl<'d, 'a> Node<'d, 'a> {
    /// Returns the members, if the value is an object.
    pub fn members(&self) -> Option<Members<'d, 'a>> {
        let JsonValue::Object(members) = self.0 else { return None };
        Some(members.iter().map(|(name, value)| (name.as_ref(), Node(value))).collect())
    }

    /// Adds the value to a hash.
    pub fn hash(&self, hasher: &mut PartHasher) {
        Out::write(hasher, self.0);
    }
}

/// Adds the value of a JSON document to a hash, without the members under `ignore`.
pub(super) fn hash_json(hasher: &mut PartHasher, document: Document<'_>, ignore: &[Pointer]) {
    let Document(value) = document.without(ignore);
    hasher.part(b"json");
    Out::write(hasher, &value);
}

/// A value without inner values.
pub(super) struct Leaf<'d, 'a>(&'d JsonValue<'a>);

impl Leaf<'_, '_> {
    /// Adds the value to a hash.
    pub fn hash(&self, hasher: &mut PartHasher) {
        Out::write(hasher, self.0);
    }
}

/// A JSON value. Numbers stay text.
enum JsonValue<'a> {
    /// `true`, `false` or `null`, as written: each has one spelling.
    Literal(&'a str),
    Number(Number<'a>),
    Text(Cow<'a, str>),
    Array(Vec<JsonValue<'a>>),
    /// Members sorted by name, with distinct names.
    Object(Vec<(Cow<'a, str>, JsonValue<'a>)>),
}

impl<'a> JsonValue<'a> {
    fn find(&self, tokens: &[String]) -> Option<&JsonValue<'a>> {
        let [first, rest @ ..] = tokens else { return Some(self) };
        match self {
            JsonValue::Object(members) => {
                let at = members.binary_search_by(|(name, _)| name.as_ref().cmp(first)).ok()?;
                members[at].1.find(rest)
            }
            JsonValue::Array(items) => items.get(first.parse::<usize>().ok()?)?.find(rest),
            _ => None,
        }
    }

    fn gather<'d>(
        &'d self,
        at: String,
        max: usize,
        leaves: &mut Vec<(String, Leaf<'d, 'a>)>,
    ) -> Option<()> {
        match self {
            // The empty literal marks a value that the comparison ignores.
            JsonValue::Literal("") => Some(()),
            JsonValue::Array(items) if !items.is_empty() => items
                .iter()
                .enumerate()
                .try_for_each(|(place, item)| item.gather(format!("{at}/{place}"), max, leaves)),
            JsonValue::Object(members) if !members.is_empty() => {
                members.iter().try_for_each(|(name, member)| {
                    let name = name.replace('~', "~0").replace('/', "~1");
                    member.gather(format!("{at}/{name}"), max, leaves)
                })
            }
            _ => {
                leaves.push((at, Leaf(self)));
                (leaves.len() <= max).then_some(())
            }
        }
    }

    fn remove(&mut self, tokens: &[String]) {
        let [first, rest @ ..] = tokens else { return };
        match self {
            JsonValue::Object(members) => {
                let Ok(at) = members.binary_search_by(|(name, _)| name.as_ref().cmp(first)) else {
                    return;
                };
                if rest.is_empty() {
                    members.remove(at);
                } else {
                    members[at].1.remove(rest);
                }
            }
            // An element is blanked, not removed, because the positions of the other elements have
            // a meaning.
            JsonValue::Array(items) => {
                let Some(item) = first.parse::<usize>().ok().and_then(|at| items.get_mut(at))
                else {
                    return;
                };
                if rest.is_empty() {
                    *item = JsonValue::Literal("");
                } else {
                    item.remove(rest);
                }
            }
            _ => {}
        }
    }
}

/// A decimal number, `0.digits * 10^exponent`, with no zeros at either end of the digits. The
/// number zero has no digits.
struct Number<'a> {
    negative: bool,
    /// The digits before and after the decimal point. Both pieces together are the digits of the
    /// number.
    digits: [&'a str; 2],
    exponent: i64,
}

impl Number<'_> {
    /// Returns the decimal form without an exponent, if it has at most about `max` bytes. So a
    /// large exponent can't take much memory.
    fn plain(&self, max: usize) -> Option<String> {
        if self.digits.iter().map(|digits| digits.len()).sum::<usize>() > max {
            return None;
        }
        let digits = self.digits.concat();
        if digits.is_empty() {
            return Some("0".to_owned());
        }
        let point =
            isize::try_from(self.exponent).ok().filter(|point| point.unsigned_abs() <= max)?;
        let sign = if self.negative { "-" } else { "" };
        let (length, zeros) = (digits.len(), |count: usize| "0".repeat(count));
        Some(match usize::try_from(point) {
            Err(_) | Ok(0) => format!("{sign}0.{}{digits}", zeros(point.unsigned_abs())),
            Ok(point) if point < length => {
                format!("{sign}{}.{}", &digits[..point], &digits[point..])
            }
            Ok(point) => format!("{sign}{digits}{}", zeros(point - length)),
        })
    }
}

/// Reads text that `serde_json` accepted. Every method returns `None` for a value without a
/// canonical form.
struct JsonReader<'a> {
    text: &'a str,
    at: usize,
    /// Whether the reader stopped at a value deeper than [`JSON_DEPTH_MAX`].
    too_deep: bool,
}

impl<'a> JsonReader<'a> {
    fn peek(&mut self) -> Option<u8> {
        let bytes = self.text.as_bytes();
        while matches!(bytes.get(self.at), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
        bytes.get(self.at).copied()
    }

    /// Skips a byte if it is next.
    fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn value(&mut self, depth: usize) -> Option<JsonValue<'a>> {
        if depth > JSON_DEPTH_MAX {
            self.too_deep = true;
            return None;
        }
        match self.peek()? {
            b'{' => self.object(depth),
            b'[' => self.array(depth),
            b'"' => self.string().map(JsonValue::Text),
            b'-' | b'0'..=b'9' => self.number().map(JsonValue::Number),
            _ => {
                let word = self.span(|b| b.is_ascii_lowercase());
                (!word.is_empty()).then_some(JsonValue::Literal(word))
            }
        }
    }

    fn object(&mut self, depth: usize) -> Option<JsonValue<'a>> {
        self.take(b'{');
        let mut members = Vec::new();
        while !self.take(b'}') {
            let name = self.string()?;
            self.take(b':');
            members.push((name, self.value(depth + 1)?));
            self.take(b',');
        }
        members.sort_by(|(a, _), (b, _)| a.cmp(b));
        // It is unknown which of two equal names the upstream reads, so the document is ambiguous.
        let distinct = members.windows(2).all(|pair| pair[0].0 != pair[1].0);
        distinct.then_some(JsonValue::Object(members))
    }

    fn array(&mut self, depth: usize) -> Option<JsonValue<'a>> {
        self.take(b'[');
        let mut items = Vec::new();
        while !self.take(b']') {
            items.push(self.value(depth + 1)?);
            self.take(b',');
        }
        Some(JsonValue::Array(items))
    }

    fn string(&mut self) -> Option<Cow<'a, str>> {
        if !self.take(b'"') {
            return None;
        }
        let bytes = self.text.as_bytes();
        let start = self.at;
        let mut escaped = false;
        loop {
            self.at += memchr2(b'"', b'\\', bytes.get(self.at..)?)?;
            if bytes[self.at] == b'"' {
                break;
            }
            escaped = true;
            self.at += 2;
        }
        let inner = self.text.get(start..self.at)?;
        self.at += 1;
        if !escaped {
            return Some(Cow::Borrowed(inner));
        }
        // A lone surrogate is not valid text, so the document is compared as bytes.
        serde_json::from_str::<String>(self.text.get(start - 1..self.at)?).ok().map(Cow::Owned)
    }

    fn span(&mut self, accept: impl Fn(u8) -> bool) -> &'a str {
        let start = self.at;
        while self.text.as_bytes().get(self.at).is_some_and(|b| accept(*b)) {
            self.at += 1;
        }
        self.text.get(start..self.at).unwrap_or_default()
    }

    fn number(&mut self) -> Option<Number<'a>> {
        let negative = self.take(b'-');
        let whole = self.span(|b| b.is_ascii_digit());
        let mut fraction = "";
        if self.text.as_bytes().get(self.at) == Some(&b'.') {
            self.at += 1;
            fraction = self.span(|b| b.is_ascii_digit());
        }
        let mut exponent = 0;
        if matches!(self.text.as_bytes().get(self.at), Some(b'e' | b'E')) {
            self.at += 1;
            // An exponent beyond 64 bits makes the document ambiguous. Nothing is ever expanded.
            exponent =
                self.span(|b| b.is_ascii_digit() || b == b'+' || b == b'-').parse::<i64>().ok()?;
        }
        normalise(negative, whole, fraction, exponent)
    }
}

/// Strips zeros at both ends of `whole.fraction`, and moves them into the exponent.
fn normalise<'a>(
    negative: bool,
    whole: &'a str,
    fraction: &'a str,
    exponent: i64,
) -> Option<Number<'a>> {
    let whole = whole.trim_start_matches('0');
    let trimmed = fraction.trim_end_matches('0');
    // Number of digits between the first digit and the point.
    let (digits, places) = if whole.is_empty() {
        let digits = trimmed.trim_start_matches('0');
        (["", digits], -((trimmed.len() - digits.len()) as i64))
    } else if trimmed.is_empty() {
        ([whole.trim_end_matches('0'), ""], whole.len() as i64)
    } else {
        ([whole, trimmed], whole.len() as i64)
    };
    if digits[0].is_empty() && digits[1].is_empty() {
        return Some(Number { negative: false, digits: ["", ""], exponent: 0 });
    }
    Some(Number { negative, digits, exponent: exponent.checked_add(places)? })
}

/// Writes values in their canonical form: a tag, a length or count, then the content.
struct Out<'h> {
    hasher: &'h mut PartHasher,
    buffer: Vec<u8>,
}

impl<'h> Out<'h> {
    fn write(hasher: &'h mut PartHasher, value: &JsonValue<'_>) {
        let mut out = Out { hasher, buffer: Vec::with_capacity(CHUNK_BYTES) };
        out.value(value);
        let Out { hasher, buffer } = out;
        hasher.raw(&buffer);
    }

    fn put(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= CHUNK_BYTES {
            self.hasher.raw(&self.buffer);
            self.buffer.clear();
        }
    }

    fn tagged(&mut self, tag: u8, length: usize) {
        let length = (length as u64).to_be_bytes();
        self.put(&[tag]);
        self.put(&length);
    }

    fn text(&mut self, tag: u8, text: &str) {
        self.tagged(tag, text.len());
        self.put(text.as_bytes());
    }

    fn value(&mut self, value: &JsonValue<'_>) {
        match value {
            JsonValue::Literal(word) => self.text(b'l', word),
            JsonValue::Number(number) => {
                self.tagged(
                    if number.negative { b'-' } else { b'+' },
                    number.digits[0].len() + number.digits[1].len(),
                );
                self.put(number.digits[0].as_bytes());
                self.put(number.digits[1].as_bytes());
                self.put(&number.exponent.to_be_bytes());
            }
            JsonValue::Text(text) => self.text(b's', text),
            JsonValue::Array(items) => {
                self.tagged(b'a', items.len());
                items.iter().for_each(|item| self.value(item));
            }
            JsonValue::Object(members) => {
                self.tagged(b'o', members.len());
                for (name, member) in members {
                    self.text(b'n', name);
                    self.value(member);
                }
            }
        }
    }
}
