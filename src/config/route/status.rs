//! The three lists of statuses.

use crate::config::read::{Table, Value};
use crate::engine::{StatusRules, StatusRulesError};

/// An entry, and where it stands.
struct Entry<'a> {
    text: String,
    value: Value<'a>,
}

/// Reads the three lists. An entry that the operator gives leaves the lists that are inherited: to move 500 to the
/// uncertain ones it is enough to list it there.
pub(super) fn read(table: &Table<'_>) -> Option<StatusRules> {
    let store = read_list(table, "store_status");
    let release = read_list(table, "release_status");
    let uncertain = read_list(table, "uncertain_status");
    let (mut store, mut release, mut uncertain) = (store?, release?, uncertain?);
    let given: Vec<String> = [&store, &release, &uncertain]
        .into_iter()
        .flatten()
        .filter(|entry| entry.value.place.given)
        .map(|entry| entry.text.clone())
        .collect();
    for list in [&mut store, &mut release, &mut uncertain] {
        list.retain(|entry| entry.value.place.given || !given.contains(&entry.text));
    }
    let texts = |list: &[Entry<'_>]| list.iter().map(|entry| entry.text.clone()).collect::<Vec<_>>();
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

fn read_list<'a>(table: &Table<'a>, name: &'static str) -> Option<Vec<Entry<'a>>> {
    let items = table.get(name)?.list("a list of statuses such as [\"2xx\", \"404\"]")?;
    let entries: Vec<Option<Entry<'a>>> = items.into_iter().map(read_entry).collect();
    entries.into_iter().collect()
}

fn read_entry(value: Value<'_>) -> Option<Entry<'_>> {
    let text = value.text("a status such as \"404\", \"4xx\" or \"503 retry-after\"")?.trim().to_ascii_lowercase();
    match StatusRules::new(std::slice::from_ref(&text), &[], &[]) {
        Ok(_) => Some(Entry { text, value }),
        Err(error) => {
            value.fault(error.to_string());
            None
        }
    }
}
