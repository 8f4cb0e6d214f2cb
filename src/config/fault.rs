//! Faults of a configuration, shown as a compiler shows them.

use std::fmt;

/// One fault. Its texts hold no password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The key's path, such as `routes[1].lease`; empty for a syntax error.
    pub key: String,
    /// What is wrong and what was expected.
    pub text: String,
    /// What to do, if that is clear.
    pub help: Option<String>,
    /// Where it stands, if it stands in a file.
    pub excerpt: Option<Excerpt>,
}

/// A place in a file, and its line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excerpt {
    /// The file's name, as given.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// The line itself, secrets masked.
    pub text: String,
    /// First character under the caret and how many follow, in `text`.
    pub caret: (usize, usize),
}

/// All faults of a configuration, in the order of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl std::error::Error for Faults {}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for fault in &self.0 {
            writeln!(f, "{}: {}", fault.key, fault.text)?;
        }
        Ok(())
    }
}
