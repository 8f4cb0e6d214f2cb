//! Objects of JSON, written member by member: a few of them with every request, where a serializer for any type takes three
//! times as long.

use std::collections::BTreeMap;

/// An object that is being written.
pub(super) struct Object<'o> {
    out: &'o mut Vec<u8>,
    before: u8,
}

impl<'o> Object<'o> {
    /// Begins one at the end of `out`.
    pub fn begin(out: &'o mut Vec<u8>) -> Object<'o> {
        Object { out, before: b'{' }
    }

    /// Writes a member's name. Names are texts of this program: nothing in them has to be escaped.
    pub fn name(&mut self, name: &'static str) -> &mut Vec<u8> {
        self.out.extend_from_slice(&[self.before, b'"']);
        self.before = b',';
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
        self.out
    }

    /// A text.
    pub fn text(&mut self, name: &'static str, value: &str) {
        text(self.name(name), value);
    }

    /// A text, if there is one.
    pub fn text_if(&mut self, name: &'static str, value: Option<&str>) {
        value.into_iter().for_each(|value| self.text(name, value));
    }

    /// A number.
    pub fn number(&mut self, name: &'static str, value: u64) {
        let mut digits = itoa::Buffer::new();
        self.name(name).extend_from_slice(digits.format(value).as_bytes());
    }

    /// A number, if there is one.
    pub fn number_if(&mut self, name: &'static str, value: Option<u64>) {
        value.into_iter().for_each(|value| self.number(name, value));
    }

    /// Ends it. It has at least one member: what begins it is written with the first.
    pub fn end(self) {
        self.out.push(b'}');
    }
}

/// Writes a text (RFC 8259, section 7).
pub(super) fn text(out: &mut Vec<u8>, value: &str) {
    // Looked at to its end: that is faster than stopping.
    let is_plain = value
        .bytes()
        .fold(true, |plain, byte| plain & (byte >= b' ') & (byte != b'"') & (byte != b'\\'));
    if is_plain {
        out.push(b'"');
        out.extend_from_slice(value.as_bytes());
        out.push(b'"');
    } else {
        // There is no text that can't be written.
        serde_json::to_writer(out, value).unwrap_or_default();
    }
}

/// Writes an object of texts, by names that may have to be escaped.
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

/// Writes a list.
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
