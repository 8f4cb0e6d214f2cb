//! Reading, replacing and inserting members of a JSON document without changing any other byte.

use std::fmt;

use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::canonical::without_mark;
use super::{Document, Pointer, UnclearJson};

/// Returns the value under a pointer, as written in the document; `None` if it is missing or
/// `null`.
pub fn element(document: &Bytes, pointer: &Pointer) -> Result<Option<Bytes>, UnclearJson> {
    Document::parse(document)?;
    Ok(find(document, pointer)?.map(|found| document.slice_ref(found.as_bytes())))
}

/// Returns the value under a pointer, or the whole document without one, as written in the
/// document.
/// `null` is a value. Returns `None` if there is no value.
pub fn value(document: &Bytes, pointer: Option<&Pointer>) -> Result<Option<Bytes>, UnclearJson> {
    Document::parse(document)?;
    let tokens = pointer.map_or(&[][..], Pointer::tokens);
    Ok(find_value(document, tokens)?.map(|found| document.slice_ref(found.as_bytes())))
}

/// Replaces every value under the pointers with a text, without changing any other byte. Missing
/// values and `null` stay.
pub fn with_values_replaced(
    document: &Bytes,
    pointers: &[Pointer],
    text: &str,
) -> Result<Bytes, UnclearJson> {
    Document::parse(document)?;
    let text = serde_json::to_string(text).map_err(|_| UnclearJson::NotJson)?;
    let start = document.as_ptr() as usize;
    let mut places = Vec::new();
    for pointer in pointers {
        if let Some(found) = find(document, pointer)? {
            let from = found.as_ptr() as usize - start;
            places.push(from..from + found.len());
        }
    }
    if places.is_empty() {
        return Ok(document.clone());
    }
    // Of two values that begin at the same byte, the longer one comes first: it contains the other.
    places.sort_by_key(|place| (place.start, std::cmp::Reverse(place.end)));
    let mut out = Vec::with_capacity(document.len());
    let mut end = 0;
    for place in places {
        if place.start >= end {
            out.extend_from_slice(&document[end..place.start]);
            out.extend_from_slice(text.as_bytes());
            end = place.end;
        }
    }
    out.extend_from_slice(&document[end..]);
    Ok(out.into())
}

/// Returns the text of the value under a pointer; `None` if it is missing or `null`.
fn find<'d>(document: &'d [u8], pointer: &Pointer) -> Result<Option<&'d str>, UnclearJson> {
    Ok(find_value(document, pointer.tokens())?.filter(|value| *value != "null"))
}

/// Returns the text of the value under reference tokens; `None` if it is missing.
fn find_value<'d>(document: &'d [u8], tokens: &[String]) -> Result<Option<&'d str>, UnclearJson> {
    let mut at: &RawValue =
        serde_json::from_slice(without_mark(document)).map_err(|_| UnclearJson::NotJson)?;
    for token in tokens {
        let found = if let Ok(RawMembers(members)) = serde_json::from_str(at.get()) {
            members.into_iter().find(|(name, _)| name == token).map(|(_, value)| value)
        } else if let Ok(items) = serde_json::from_str::<Vec<&RawValue>>(at.get()) {
            token.parse::<usize>().ok().and_then(|place| items.get(place).copied())
        } else {
            None
        };
        match found {
            Some(value) => at = value,
            None => return Ok(None),
        }
    }
    Ok(Some(at.get()))
}

/// Inserts or replaces a text under a pointer; `None` if the parent of the member is not an object.
/// A byte order mark is dropped.
pub fn with_member(document: &[u8], pointer: &Pointer, text: &str) -> Option<Bytes> {
    Document::parse(document).ok()?;
    let at: &RawValue = serde_json::from_slice(without_mark(document)).ok()?;
    put(at, pointer.tokens(), text).map(Bytes::from)
}

fn put(at: &RawValue, tokens: &[String], text: &str) -> Option<String> {
    let Some((token, rest)) = tokens.split_first() else { return serde_json::to_string(text).ok() };
    let RawMembers(members) = serde_json::from_str(at.get()).ok()?;
    let mut out = String::with_capacity(at.get().len() + token.len() + text.len() + 6);
    let mut found = false;
    for (name, value) in members {
        out.push(if out.is_empty() { '{' } else { ',' });
        out.push_str(&serde_json::to_string(&name).ok()?);
        out.push(':');
        if name == *token {
            found = true;
            out.push_str(&put(value, rest, text)?);
        } else {
            out.push_str(value.get());
        }
    }
    if !found {
        // Only the last member is created. If the client omitted a parent object, the upstream
        // should report that.
        rest.is_empty().then_some(())?;
        out.push(if out.is_empty() { '{' } else { ',' });
        out.push_str(&serde_json::to_string(token).ok()?);
        out.push(':');
        out.push_str(&serde_json::to_string(text).ok()?);
    }
    out.push('}');
    Some(out)
}

/// An object's members in order, with the original text of the values.
struct RawMembers<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for RawMembers<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RawMembers<'de>, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = RawMembers<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawMembers<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, &'de RawValue>()? {
                    members.push((name, value));
                }
                Ok(RawMembers(members))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pointer(text: &str) -> Pointer {
        Pointer::parse(text).expect("a pointer")
    }

    #[test]
    fn an_element_keeps_its_own_text() {
        let list =
            Bytes::from_static(br#"{"data": [ {"id":"p1", "amount":10.00} ], "more":false}"#);
        let found = element(&list, &pointer("/data/0"));
        assert_eq!(found, Ok(Some(Bytes::from_static(br#"{"id":"p1", "amount":10.00}"#))));
    }

    #[test]
    fn what_is_missing_is_not_what_cannot_be_read() {
        for (text, expected) in [
            (r#"{"data":[]}"#, Ok(None)),
            (r#"{"data":null}"#, Ok(None)),
            (r#"{"data":[null]}"#, Ok(None)),
            (r#"{"data":{"0":1}}"#, Ok(Some(Bytes::from_static(b"1")))),
            ("<html>", Err(UnclearJson::NotJson)),
            (r#"{"data":[],"data":[1]}"#, Err(UnclearJson::Ambiguous)),
        ] {
            assert_eq!(
                element(&Bytes::from_static(text.as_bytes()), &pointer("/data/0")),
                expected,
                "{text}"
            );
        }
    }

    #[test]
    fn values_are_replaced_and_every_other_byte_stays() {
        for (text, places, expected) in [
            (
                "{ \"b\" : 1e2,\n \"card\":{\"number\" :\"42\", \"exp\":[1, 2]} } ",
                &["/card/number"][..],
                "{ \"b\" : 1e2,\n \"card\":{\"number\" :\"***\", \"exp\":[1, 2]} } ",
            ),
            (
                r#"{"a":{"b":1},"c":[{"d":2},3]}"#,
                &["/a/b", "/a", "/c/0/d"],
                r#"{"a":"***","c":[{"d":"***"},3]}"#,
            ),
            (r#"{"a":{"b":1}}"#, &["/a", "/a/b", "/a"], r#"{"a":"***"}"#),
            (r#"{"a":{"x":true},"b":false}"#, &["/b", "/a/x"], r#"{"a":{"x":"***"},"b":"***"}"#),
            (r#"{"\u0061":1}"#, &["/a"], r#"{"\u0061":"***"}"#),
            (r#"{"a":null, "b":{}}"#, &["/a", "/b/c", "/d/0"], r#"{"a":null, "b":{}}"#),
            ("7", &["/a"], "7"),
        ] {
            let places: Vec<_> = places.iter().map(|place| pointer(place)).collect();
            let replaced =
                with_values_replaced(&Bytes::from_static(text.as_bytes()), &places, "***");
            assert_eq!(replaced, Ok(Bytes::from_static(expected.as_bytes())), "{text}");
        }
        for (text, why) in
            [("card=4242", UnclearJson::NotJson), (r#"{"a":1,"a":2}"#, UnclearJson::Ambiguous)]
        {
            let replaced =
                with_values_replaced(&Bytes::from_static(text.as_bytes()), &[pointer("/a")], "***");
            assert_eq!(replaced, Err(why), "{text}");
        }
    }

    #[test]
    fn a_member_is_put_in_and_the_numbers_stay() {
        for (text, place, expected) in [
            (r#"{"amount": 10.00}"#, "/key", Some(r#"{"amount":10.00,"key":"k\"1"}"#)),
            (r#"{}"#, "/key", Some(r#"{"key":"k\"1"}"#)),
            (r#"{"key":1,"b":[1, 2]}"#, "/key", Some(r#"{"key":"k\"1","b":[1, 2]}"#)),
            (r#"{"meta":{"a":1e400}}"#, "/meta/key", Some(r#"{"meta":{"a":1e400,"key":"k\"1"}}"#)),
            (r#"{"a":1}"#, "/meta/key", None),
            (r#"[1]"#, "/0", None),
            ("amount=1", "/key", None),
        ] {
            let put = with_member(text.as_bytes(), &pointer(place), "k\"1");
            assert_eq!(put, expected.map(|text| Bytes::from_static(text.as_bytes())), "{text}");
        }
    }
}
