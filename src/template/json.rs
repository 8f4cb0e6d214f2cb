//! JSON documents as values of templates. Numbers keep their digits, and members their order.
//!
//! Danger: the language has no decimal numbers. A number that keeps its digits is an object there,
//! and a comparison of an object with a number compares their kinds: `10.00 > 20` would be true. So
//! each use of such a number other than writing it is noted, and the rendering fails.

use std::cell::Cell;
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

thread_local! {
    /// Whether this thread has compared an [`ExactNumber`], or has calculated with one.
    static CALCULATED: Cell<bool> = const { Cell::new(false) };
}

impl Object for ExactNumber {
    /// Every comparison, test and calculation asks for the representation. Writing does not.
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        CALCULATED.set(true);
        ObjectRepr::Plain
    }

    fn is_true(self: &Arc<Self>) -> bool {
        number(&self.0).is_true()
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

/// Runs a rendering. Also returns whether it compared a number that keeps its digits, or calculated
/// with one.
pub(super) fn noting_calculations<T>(render: impl FnOnce() -> T) -> (T, bool) {
    CALCULATED.set(false);
    (render(), CALCULATED.get())
}

/// Returns the digits of a number that keeps them.
pub(super) fn digits_of(value: &Value) -> Option<&str> {
    value.downcast_object_ref::<ExactNumber>().map(|number| number.0.as_str())
}

/// Returns a value to calculate with. A number loses its digits.
pub(super) fn calculable(value: &Value) -> Value {
    digits_of(value).map_or_else(|| value.clone(), number)
}

/// Reads a JSON document as a value of templates. Numbers with a point, an exponent or a leading
/// `-0` keep their digits, and can only be written.
///
/// # Errors
/// See [`MalformedJson`].
pub fn json_value(text: &str) -> Result<Value, MalformedJson> {
    read(text.trim(), 0, exact_number)
}

/// Reads a JSON document as a value of conditions. Numbers can be compared.
///
/// # Errors
/// See [`MalformedJson`].
pub fn json_numbers(text: &str) -> Result<Value, MalformedJson> {
    read(text.trim(), 0, number)
}

fn read(text: &str, depth: usize, number_of: fn(&str) -> Value) -> Result<Value, MalformedJson> {
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
                let value = read(value.get(), depth + 1, number_of)?;
                if object.values.insert(name, value).is_some() {
                    return Err(MalformedJson);
                }
            }
            Ok(Value::from_object(object))
        }
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(text).map_err(malformed)?;
            items.into_iter().map(|item| read(item.get(), depth + 1, number_of)).collect()
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
            Ok(number_of(text))
        }
    }
}

/// Returns a number that keeps its digits. An integer that is written the usual way can be
/// calculated with.
fn exact_number(text: &str) -> Value {
    match text.parse::<i128>() {
        Ok(number) if number.to_string() == text => Value::from(number),
        _ => Value::from_object(ExactNumber(text.to_owned())),
    }
}

/// Returns a number to calculate with. A number that is no integer becomes a floating-point number,
/// and so does an integer with more than 38 digits.
fn number(text: &str) -> Value {
    let integer = text.parse::<i128>().map(Value::from);
    integer.or_else(|_| text.parse::<f64>().map(Value::from)).unwrap_or(Value::UNDEFINED)
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
    if let Some(digits) = digits_of(value) {
        out.push_str(digits);
        return Ok(());
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
