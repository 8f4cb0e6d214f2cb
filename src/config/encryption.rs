//! `[encryption]`: the keys that seal results at rest.

use super::admin::SecretPlace;
use super::read::Table;

const KEYS_EXPECTED: &str =
    "a list of keys such as [{ id = \"2026-11\", env = \"ONCEWARD_KEY_2026_11\" }]";
/// Longest name of a key, in bytes; it stands in every record.
const ID_MAX: usize = 64;

/// A key as the file names it; the file never holds the key itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySource {
    /// The name by which records know it.
    pub id: String,
    /// Where it is.
    pub place: SecretPlace,
}

/// Reads `[encryption]`: the first key seals, all open.
pub(super) fn read(root: &Table<'_>) -> Option<Vec<KeySource>> {
    let Some(whole) = root.get("encryption") else { return Some(Vec::new()) };
    let table = root.table("encryption", "a table with keys");
    let keys = table.get("keys").map(|value| (value.list(KEYS_EXPECTED), value));
    table.finish();
    let Some((items, value)) = keys else {
        whole.fault(format!("needs keys: {KEYS_EXPECTED}"));
        return None;
    };
    let items = items.or_else(|| {
        value.conceal();
        None
    })?;
    if items.is_empty() {
        value.fault("expected at least one key");
    }
    let mut found: Vec<KeySource> = Vec::new();
    for item in &items {
        let Some(table) = item.table("a table with id and env or file") else {
            item.conceal();
            continue;
        };
        let word = |text: &str| {
            let sound = !text.is_empty()
                && text.len() <= ID_MAX
                && text.bytes().all(|byte| byte.is_ascii_graphic());
            sound.then(|| text.to_owned())
        };
        let id = table
            .get("id")
            .map(|value| value.parsed("a key's name of at most 64 visible characters", word));
        if id.is_none() {
            table
                .report
                .note_absence(&table.place_of("id"), "a key needs an id, by which records know it");
        }
        let place = SecretPlace::read_from(&table, "a key");
        table.finish();
        let (Some(Some(id)), Some(place)) = (id, place) else { continue };
        if found.iter().any(|other| other.id == id) {
            item.fault(format!(
                "a second key is named {id:?}: it couldn't be told which one opens a record"
            ));
        }
        found.push(KeySource { id, place });
    }
    Some(found)
}
