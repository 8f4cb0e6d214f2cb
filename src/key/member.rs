//! Taking one member out of a JSON document, or putting one in, with every other byte of a value left as it was.

use std::fmt;

use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{Document, Pointer, Unclear};

/// The value that a pointer leads to, as it stands in the document; `None` where it is missing or `null`.
pub fn element(document: &Bytes, pointer: &Pointer) -> Result<Option<Bytes>, Unclear> {
    Document::parse(document)?;
    let mut at: &RawValue = serde_json::from_slice(document).map_err(|_| Unclear::NotJson)?;
    for token in pointer.tokens() {
        let found = if let Ok(Members(members)) = serde_json::from_str(at.get()) {
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
    Ok((at.get() != "null").then(|| document.slice_ref(at.get().as_bytes())))
}

/// The document with a text at a pointer, in place of what stood there. `None` where there is no object to put it in.
pub fn with_member(document: &[u8], pointer: &Pointer, text: &str) -> Option<Bytes> {
    Document::parse(document).ok()?;
    let at: &RawValue = serde_json::from_slice(document).ok()?;
    put(at, pointer.tokens(), text).map(Bytes::from)
}

fn put(at: &RawValue, tokens: &[String], text: &str) -> Option<String> {
    let Some((token, rest)) = tokens.split_first() else { return serde_json::to_string(text).ok() };
    let Members(members) = serde_json::from_str(at.get()).ok()?;
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
        // Only the last name is made up: an object that the client left out is the upstream's to miss.
        rest.is_empty().then_some(())?;
        out.push(if out.is_empty() { '{' } else { ',' });
        out.push_str(&serde_json::to_string(token).ok()?);
        out.push(':');
        out.push_str(&serde_json::to_string(text).ok()?);
    }
    out.push('}');
    Some(out)
}

/// An object's members in their order, with the values' own text.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Members<'de>, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, &'de RawValue>()? {
                    members.push((name, value));
                }
                Ok(Members(members))
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
        let list = Bytes::from_static(br#"{"data": [ {"id":"p1", "amount":10.00} ], "more":false}"#);
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
            ("<html>", Err(Unclear::NotJson)),
            (r#"{"data":[],"data":[1]}"#, Err(Unclear::Ambiguous)),
        ] {
            assert_eq!(element(&Bytes::from_static(text.as_bytes()), &pointer("/data/0")), expected, "{text}");
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
