//! JSON documents as values of templates. Numbers keep their digits, and members their order.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::sync::Arc;

use minijinja::Value;
use minijinja::value::{Enumerator, Object, ObjectRepr, ValueKind};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Deepest nesting of a document. Each level is read again, and takes stack.
const DEPTH_MAX: usize = 64;

/// A text that is no JSON document, has two members of one name, or is nested too deeply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a JSON document, or one with two members of one name, or nested too deeply")]
pub struct MalformedJson;

/// A number with digits that a floating-point number would lose, such as `1.10`.
#[derive(Debug)]
struct ExactNumber(String);

impl Object for ExactNumber {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A JSON object.
#[derive(Debug)]
struct JsonObject {
    names: Vec<Arc<str>>,
    values: BTreeMap<Arc<str>, Value>,
}

impl Object for JsonObject {
    fn get_value(self: &Arc<Self>, name: &Value) -> Option<Value> {
        self.values.get(name.as_str()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.names.iter().cloned().map(Value::from).collect())
    }
}

/// Reads a JSON document as a value of templates.
///
/// # Errors
/// See [`MalformedJson`].
pub fn json_value(text: &str) -> Result<Value, MalformedJson> {
    read(text.trim(), 0)
}

fn read(text: &str, depth: usize) -> Result<Value, MalformedJson> {
    if depth > DEPTH_MAX {
        return Err(MalformedJson);
    }
    let malformed = |_: serde_json::Error| MalformedJson;
    match text.as_bytes().first() {
        Some(b'{') => {
            let members: Members<'_> = serde_json::from_str(text).map_err(malformed)?;
            let mut object = JsonObject { names: Vec::new(), values: BTreeMap::new() };
            for (name, value) in members.0 {
                let name: Arc<str> = name.into();
                object.names.push(name.clone());
                if object.values.insert(name, read(value.get(), depth + 1)?).is_some() {
                    return Err(MalformedJson);
                }
            }
            Ok(Value::from_object(object))
        }
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(text).map_err(malformed)?;
            items.into_iter().map(|item| read(item.get(), depth + 1)).collect()
        }
        Some(b'"') => Ok(Value::from(serde_json::from_str::<String>(text).map_err(malformed)?)),
        Some(b't' | b'f') => {
            Ok(Value::from(serde_json::from_str::<bool>(text).map_err(malformed)?))
        }
        Some(b'n') => {
            serde_json::from_str::<()>(text).map_err(malformed)?;
            Ok(Value::from(()))
        }
        _ => {
            serde_json::from_str::<&RawValue>(text).map_err(malformed)?;
            Ok(number(text))
        }
    }
}

/// Returns a number. An integer that is written the usual way can be calculated with.
fn number(text: &str) -> Value {
    match text.parse::<i64>() {
        Ok(number) if number.to_string() == text => Value::from(number),
        _ => Value::from_object(ExactNumber(text.to_owned())),
    }
}

/// The members of an object, in their order.
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
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

/// Writes a value as JSON.
///
/// # Errors
/// JSON has no such value, such as an infinite number.
pub(super) fn write_json(
    out: &mut String,
    value: &Value,
    depth: usize,
) -> Result<(), &'static str> {
    if depth > DEPTH_MAX {
        return Err("a value is nested too deeply");
    }
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::String => write_text(out, value.as_str().unwrap_or_default()),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => {
            let text = value.to_string();
            if matches!(text.as_str(), "NaN" | "inf" | "-inf") {
                return Err("a number is not finite");
            }
            out.push_str(&text);
        }
        ValueKind::Plain => match value.downcast_object_ref::<ExactNumber>() {
            Some(number) => out.push_str(&number.0),
            None => return Err("a value has no JSON form"),
        },
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (at, item) in items(value)?.enumerate() {
                if at > 0 {
                    out.push(',');
                }
                write_json(out, &item, depth + 1)?;
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (at, name) in items(value)?.enumerate() {
                if at > 0 {
                    out.push(',');
                }
                write_text(out, name.as_str().ok_or("a member's name is no text")?);
                out.push(':');
                let member = value.get_item(&name).map_err(|_| "a member can't be read")?;
                write_json(out, &member, depth + 1)?;
            }
            out.push('}');
        }
        _ => return Err("a value has no JSON form"),
    }
    Ok(())
}

fn items(value: &Value) -> Result<impl Iterator<Item = Value>, &'static str> {
    value.try_iter().map_err(|_| "a value can't be read")
}

fn write_text(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            // Writing to a text does not fail.
            c if c < ' ' => _ = write!(out, "\\u{:04x}", u32::from(c)),
            c => out.push(c),
        }
    }
    out.push('"');
}
