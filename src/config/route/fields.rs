//! `fields`: body members that are written to the event log, so that operators can search for
//! operations by them.

use super::RouteContext;
use crate::config::read::{Table, Value};
use crate::engine::{CHOSEN_MAX, ChosenField, Side};
use crate::key::Pointer;

const EXPECTED: &str =
    "a table such as { order = \"request:/order/id\", payment = \"response:/id\" }";
pub(super) const PLACE_EXPECTED: &str =
    "a body and a JSON pointer, such as \"request:/order/id\" or \"response:/id\"";

/// Longest name, in bytes. The name is written with every operation.
pub(super) const NAME_BYTES_MAX: usize = 32;

/// Reads `fields`. Without the event log the result is empty.
pub(super) fn read(
    route: &Table<'_>,
    redact: &[Pointer],
    context: &RouteContext<'_>,
) -> Option<Vec<ChosenField>> {
    let Some(value) = route.get("fields") else { return Some(Vec::new()) };
    let values = value.table(EXPECTED)?.values();
    if values.len() > CHOSEN_MAX {
        value.fault(format!(
            "expected at most {CHOSEN_MAX} fields: each is written with every operation"
        ));
        return None;
    }
    // This parses all fields before it returns the first failure, so that all faults are reported.
    let fields: Vec<Option<ChosenField>> =
        values.iter().map(|(name, value)| read_field(name, value, redact)).collect();
    let fields = fields.into_iter().collect::<Option<Vec<_>>>()?;
    if context.log == Some(false) {
        route
            .report
            .warn(&value.span.path, "not used: the event log is off (set [log] enabled = true)");
        return Some(Vec::new());
    }
    if context.encrypted == Some(true) && !fields.is_empty() {
        route
            .report
            .warn(&value.span.path, "plain text in the event log: [encryption] seals only results");
    }
    Some(fields)
}

fn read_field(name: &str, value: &Value<'_>, redact: &[Pointer]) -> Option<ChosenField> {
    if !is_name(name) {
        value.fault(format!(
            "the name of a field has 1 to {NAME_BYTES_MAX} letters, digits, _ and -"
        ));
        return None;
    }
    let (side, pointer) = value.parsed(PLACE_EXPECTED, |text| {
        let (side, pointer) = place(text)?;
        Some((side, Pointer::parse(pointer)?))
    })?;
    if let Some(kept) = redact.iter().find(|kept| pointer.tokens().starts_with(kept.tokens())) {
        value.fault(format!(
            "redact removes {kept} before it is stored, so the event log can't contain it"
        ));
        return None;
    }
    Some(ChosenField { name: name.to_owned(), side, pointer })
}

/// Returns whether a text can be the name of a chosen member.
pub(super) fn is_name(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_plain)
}

/// Splits a place such as `request:/order/id` into the body and the pointer. The pointer is not
/// parsed.
pub(super) fn place(text: &str) -> Option<(Side, &str)> {
    match text.split_once(':')? {
        ("request", pointer) => Some((Side::Request, pointer)),
        ("response", pointer) => Some((Side::Response, pointer)),
        _ => None,
    }
}
