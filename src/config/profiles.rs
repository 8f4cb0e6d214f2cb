//! Profiles: how payment vendors treat idempotency keys, as values that routes take where they set none. They are data,
//! in `config/profiles.toml`.

use super::read::{Table, Value, closest};
use super::route::DEFAULT_PROFILE;

/// The file.
pub(super) const TEXT: &str = include_str!("../../config/profiles.toml");

/// All profiles.
pub(super) struct Profiles<'a>(Vec<(String, Table<'a>)>);

impl<'a> Profiles<'a> {
    /// Takes the profiles from their file.
    pub fn of(root: &Table<'a>) -> Profiles<'a> {
        Profiles(root.entries("a profile"))
    }

    /// Whether there is such a profile; reports it if not.
    pub fn know(&self, name: &str, value: &Value<'_>) -> bool {
        let known = self.find(name).is_some();
        if !known {
            let names: Vec<&str> = self.names().collect();
            let help = closest(name, self.names()).map(|near| format!("did you mean \"{near}\"?"));
            let text =
                format!("there is no profile named {name:?}; there are {}", names.join(", "));
            value.report.note_with_help(&value.place, text, help);
        }
        known
    }

    /// Lays a profile, and under it the one that has everything, under a route.
    pub fn lay_under(&self, route: Table<'a>, name: &str) -> Option<Table<'a>> {
        Some(route.over(self.find(name)?).over(self.find(DEFAULT_PROFILE)?))
    }

    /// The names, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    fn find(&self, name: &str) -> Option<&Table<'a>> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, table)| table)
    }
}
