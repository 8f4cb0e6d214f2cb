//! The lists of statuses: `store_status`, `release_status` and `uncertain_status` of a route, and
//! those of a saga's step, which has `success` and `failure` instead of `store_status`.

use crate::config::read::{Table, Value};
use crate::engine::{StatusRules, StatusRulesError};

/// The statuses of a step. Each list has the texts that [`StatusRules`] reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::config) struct StepStatuses {
    pub success: Vec<String>,
    pub failure: Vec<String>,
    pub release: Vec<String>,
    pub uncertain: Vec<String>,
}

/// An entry of a list, and its value in the file. Defaults of steps are in no file.
struct StatusEntry<'a> {
    text: String,
    value: Option<Value<'a>>,
}

impl StatusEntry<'_> {
    /// Returns whether the operator wrote the entry.
    fn is_given(&self) -> bool {
        self.value.as_ref().is_some_and(|value| value.span.given)
    }
}

/// A list of statuses.
type StatusList<'a> = Vec<StatusEntry<'a>>;

/// Reads the three lists of a route.
pub(super) fn read(table: &Table<'_>) -> Option<StatusRules> {
    let store = read_list(table, "store_status", &[]);
    let release = read_list(table, "release_status", &[]);
    let uncertain = read_list(table, "uncertain_status", &[]);
    let mut lists = [store?, release?, uncertain?];
    drop_overridden(&mut lists, 1);
    let [store, release, uncertain] = lists.each_ref().map(texts);
    match StatusRules::new(&store, &release, &uncertain) {
        Ok(rules) => Some(rules),
        Err(error) => {
            let (StatusRulesError::Form(text) | StatusRulesError::Twice(text)) = &error;
            blame(&lists, text, &error.to_string());
            None
        }
    }
}

/// Reads the four lists of a step.
pub(in crate::config) fn read_of_step(table: &Table<'_>) -> Option<StepStatuses> {
    let success = read_list(table, "success", &["2xx"]);
    let failure = read_list(table, "failure", &["4xx"]);
    let release = read_list(table, "release_status", &[]);
    let uncertain = read_list(table, "uncertain_status", &[]);
    let mut lists = [success?, failure?, release?, uncertain?];
    drop_overridden(&mut lists, 2);
    let entries = || lists.iter().enumerate();
    let is_in_another = |at: usize, text: &str| {
        entries().any(|(other, list)| other != at && list.iter().any(|entry| entry.text == text))
    };
    let twice = entries().find_map(|(at, list)| {
        list.iter().find(|entry| is_in_another(at, &entry.text)).map(|entry| entry.text.clone())
    });
    if let Some(text) = twice {
        let why = format!(
            "`{text}` stands in two of the lists success, failure, release_status and \
             uncertain_status"
        );
        blame(&lists, &text, &why);
        return None;
    }
    if lists[0].is_empty() {
        table.report.note(&table.span_of("success"), "expected at least one status");
        return None;
    }
    let [success, failure, release, uncertain] = lists.each_ref().map(texts);
    Some(StepStatuses { success, failure, release, uncertain })
}

/// Removes entries that the operator has overridden. An entry that the operator writes is removed
/// from the inherited lists. For example, a route that lists 500 in `uncertain_status` need not
/// repeat `store_status` without it.
///
/// A class that the operator writes into `release_status` or `uncertain_status` also removes the
/// exact codes of the class from the inherited lists of results, which are the first `results`
/// lists, because exact codes take precedence over a class. Codes with a condition stay.
fn drop_overridden(lists: &mut [StatusList<'_>], results: usize) {
    let given = |lists: &[StatusList<'_>]| -> Vec<String> {
        let entries = lists.iter().flatten().filter(|entry| entry.is_given());
        entries.map(|entry| entry.text.clone()).collect()
    };
    let overridden = given(lists);
    let first = |text: &String| text.strip_suffix("xx").and_then(|class| class.chars().next());
    let not_results: Vec<char> = given(&lists[results..]).iter().filter_map(first).collect();
    for (at, list) in lists.iter_mut().enumerate() {
        list.retain(|entry| {
            let is_taken = at < results && is_exact_of(&entry.text, &not_results);
            entry.is_given() || !(is_taken || overridden.contains(&entry.text))
        });
    }
}

/// Notes a fault at the last entry with this text.
fn blame(lists: &[StatusList<'_>], text: &str, why: &str) {
    let mut values = lists.iter().flatten().filter(|entry| entry.text == text);
    if let Some(value) = values.rfind(|entry| entry.value.is_some()).and_then(|e| e.value.as_ref())
    {
        value.fault(why);
    }
}

fn texts(list: &StatusList<'_>) -> Vec<String> {
    list.iter().map(|entry| entry.text.clone()).collect()
}

/// Returns whether an entry is an exact code of one of these classes, without a condition.
fn is_exact_of(text: &str, classes: &[char]) -> bool {
    text.len() == 3
        && text.ends_with(|last: char| last.is_ascii_digit())
        && text.starts_with(classes)
}

/// Reads a list. `default` is the list of a table without the key.
fn read_list<'a>(
    table: &Table<'a>,
    name: &'static str,
    default: &[&str],
) -> Option<StatusList<'a>> {
    let Some(value) = table.get(name) else {
        let entry = |text: &&str| StatusEntry { text: (*text).to_owned(), value: None };
        return Some(default.iter().map(entry).collect());
    };
    let items = value.list("a list of statuses such as [\"2xx\", \"404\"]")?;
    let entries: Vec<Option<StatusEntry<'a>>> = items.into_iter().map(read_entry).collect();
    entries.into_iter().collect()
}

/// Reads a list of statuses without exceptions in other lists.
pub(in crate::config) fn read_plain_list(
    table: &Table<'_>,
    name: &'static str,
) -> Option<Vec<String>> {
    read_list(table, name, &[]).map(|list| texts(&list))
}

fn read_entry(value: Value<'_>) -> Option<StatusEntry<'_>> {
    let text = value
        .text("a status such as \"404\", \"4xx\" or \"503 retry-after\"")?
        .trim()
        .to_ascii_lowercase();
    match StatusRules::new(std::slice::from_ref(&text), &[], &[]) {
        Ok(_) => Some(StatusEntry { text, value: Some(value) }),
        Err(error) => {
            value.fault(error.to_string());
            None
        }
    }
}
