//! Profiles: the rules of payment vendors for idempotency keys, as defaults for routes. The
//! profiles are in `config/profiles.toml`.

use super::read::{Table, Value, closest};

/// The profile of a route that names no profile.
pub const DEFAULT_PROFILE: &str = "ietf";

/// The text of the built-in file.
pub(super) const TEXT: &str = include_str!("../../config/profiles.toml");

/// All profiles.
pub(super) struct Profiles<'a>(Vec<(String, Table<'a>)>);

impl<'a> Profiles<'a> {
    /// Reads the profiles of a file.
    pub fn of(root: &Table<'a>) -> Profiles<'a> {
        Profiles(root.entries("a profile"))
    }

    /// Returns whether a profile exists. Reports a fault if it doesn't.
    pub fn check(&self, name: &str, value: &Value<'_>) -> bool {
        let known = self.find(name).is_some();
        if !known {
            let names: Vec<&str> = self.names().collect();
            let help = closest(name, self.names()).map(|near| format!("did you mean \"{near}\"?"));
            let text =
                format!("there is no profile named {name:?}; there are {}", names.join(", "));
            value.report.note_with_help(&value.span, text, help);
        }
        known
    }

    /// Returns a table with three layers: the route, its profile, and the default profile, which
    /// has every value.
    pub fn above_profile(&self, route: Table<'a>, name: &str) -> Option<Table<'a>> {
        Some(route.over(self.find(name)?).over(self.find(DEFAULT_PROFILE)?))
    }

    /// Returns the names in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    fn find(&self, name: &str) -> Option<&Table<'a>> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, table)| table)
    }
}
