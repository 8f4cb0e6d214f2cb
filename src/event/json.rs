//! JSON objects, written member by member. Every request writes a few objects, and a generic
//! serializer takes three times as long.

use std::collections::BTreeMap;

/// An unfinished object.
pub(super) struct Object<'o> {
    out: &'o mut Vec<u8>,
    before: u8,
}

impl<'o> Object<'o> {
    /// Begins an object at the end of `out`.
    pub fn begin(out: &'o mut Vec<u8>) -> Object<'o> {
        Object { out, before: b'{' }
    }

    /// Writes a member's name, which must not need escapes.
    pub fn name(&mut self, name: &'static str) -> &mut Vec<u8> {
        self.out.extend_from_slice(&[self.before, b'"']);
        self.before = b',';
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
        self.out
    }

    /// Writes a string member.
    pub fn text(&mut self, name: &'static str, value: &str) {
        text(self.name(name), value);
    }

    /// Writes a string member, if there is a value.
    pub fn text_if(&mut self, name: &'static str, value: Option<&str>) {
        value.into_iter().for_each(|value| self.text(name, value));
    }

    /// Writes a member's name, which may need escapes.
    pub fn any_name(&mut self, name: &str) -> &mut Vec<u8> {
        self.out.push(self.before);
        self.before = b',';
        text(self.out, name);
        self.out.push(b':');
        self.out
    }

    /// Writes a member that is `null`.
    pub fn null(&mut self, name: &'static str) {
        self.name(name).extend_from_slice(b"null");
    }

    /// Writes a number member.
    pub fn number(&mut self, name: &'static str, value: u64) {
        let mut digits = itoa::Buffer::new();
        self.name(name).extend_from_slice(digits.format(value).as_bytes());
    }

    /// Writes a number member, if there is a value.
    pub fn number_if(&mut self, name: &'static str, value: Option<u64>) {
        value.into_iter().for_each(|value| self.number(name, value));
    }

    /// Ends the object. It must have at least one member, because the first member writes the
    /// opening brace.
    pub fn end(self) {
        self.out.push(b'}');
    }
}

/// Writes a string (RFC 8259, section 7).
pub(super) fn text(out: &mut Vec<u8>, value: &str) {
    // Scans all bytes: that is faster than stopping at the first match.
    let is_plain = value
        .bytes()
        .fold(true, |plain, byte| plain & (byte >= b' ') & (byte != b'"') & (byte != b'\\'));
    if is_plain {
        out.push(b'"');
        out.extend_from_slice(value.as_bytes());
        out.push(b'"');
    } else {
        // Writing a string to memory can't fail.
        serde_json::to_writer(out, value).unwrap_or_default();
    }
}

/// Writes an object of strings. Names are escaped.
pub(super) fn texts(out: &mut Vec<u8>, values: &BTreeMap<String, String>) {
    out.push(b'{');
    for (n, (name, value)) in values.iter().enumerate() {
        if n > 0 {
            out.push(b',');
        }
        text(out, name);
        out.push(b':');
        text(out, value);
    }
    out.push(b'}');
}

/// Writes an array.
pub(super) fn list<T>(
    out: &mut Vec<u8>,
    values: impl IntoIterator<Item = T>,
    write: impl Fn(&mut Vec<u8>, T),
) {
    out.push(b'[');
    for (n, value) in values.into_iter().enumerate() {
        if n > 0 {
            out.push(b',');
        }
        write(out, value);
    }
    out.push(b']');
}
