//! The three lists of statuses: `store_status`, `release_status` and `uncertain_status`.

use crate::config::read::{Table, Value};
use crate::engine::{StatusRules, StatusRulesError};

/// An entry of a list, and its value in the file.
struct StatusEntry<'a> {
    text: String,
    value: Value<'a>,
}

/// Reads the three lists. An entry that the route sets is removed from the inherited lists. For
/// example, a route that lists 500 in `uncertain_status` need not repeat `store_status` without it.
///
/// A class that the route sets in `release_status` or `uncertain_status` also removes the exact
/// codes of the class from the inherited `store_status`, because exact codes take precedence over a
/// class. Codes with a condition stay.
pub(super) fn read(table: &Table<'_>) -> Option<StatusRules> {
    let store = read_list(table, "store_status");
    let release = read_list(table, "release_status");
    let uncertain = read_list(table, "uncertain_status");
    let (mut store, mut release, mut uncertain) = (store?, release?, uncertain?);
    let given: Vec<String> = [&store, &release, &uncertain]
        .into_iter()
        .flatten()
        .filter(|entry| entry.value.span.given)
        .map(|entry| entry.text.clone())
        .collect();
    for list in [&mut store, &mut release, &mut uncertain] {
        list.retain(|entry| entry.value.span.given || !given.contains(&entry.text));
    }
    let not_stored: Vec<char> = [&release, &uncertain]
        .into_iter()
        .flatten()
        .filter(|entry| entry.value.span.given)
        .filter_map(|entry| entry.text.strip_suffix("xx")?.chars().next())
        .collect();
    store.retain(|entry| entry.value.span.given || !is_exact_of(&entry.text, &not_stored));
    let texts =
        |list: &[StatusEntry<'_>]| list.iter().map(|entry| entry.text.clone()).collect::<Vec<_>>();
    match StatusRules::new(&texts(&store), &texts(&release), &texts(&uncertain)) {
        Ok(rules) => Some(rules),
        Err(error) => {
            let (StatusRulesError::Form(text) | StatusRulesError::Twice(text)) = &error;
            let all = [&store, &release, &uncertain];
            let last = all.into_iter().flatten().rfind(|entry| entry.text == *text)?;
            last.value.fault(error.to_string());
            None
        }
    }
}

/// Returns whether an entry is an exact code of one of these classes, without a condition.
fn is_exact_of(text: &str, classes: &[char]) -> bool {
    text.len() == 3
        && text.ends_with(|last: char| last.is_ascii_digit())
        && text.starts_with(classes)
}

fn read_list<'a>(table: &Table<'a>, name: &'static str) -> Option<Vec<StatusEntry<'a>>> {
    let items = table.get(name)?.list("a list of statuses such as [\"2xx\", \"404\"]")?;
    let entries: Vec<Option<StatusEntry<'a>>> = items.into_iter().map(read_entry).collect();
    entries.into_iter().collect()
}

fn read_entry(value: Value<'_>) -> Option<StatusEntry<'_>> {
    let text = value
        .text("a status such as \"404\", \"4xx\" or \"503 retry-after\"")?
        .trim()
        .to_ascii_lowercase();
    match StatusRules::new(std::slice::from_ref(&text), &[], &[]) {
        Ok(_) => Some(StatusEntry { text, value }),
        Err(error) => {
            value.fault(error.to_string());
            None
        }
    }
}
