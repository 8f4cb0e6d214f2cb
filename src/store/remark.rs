//! Remarks about the settings of a store's servers.

/// A remark about one property of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remark {
    /// Whether the property is as the promises need it.
    pub grade: Grade,
    /// The property and its value, in words.
    pub text: String,
    /// The advice; empty where nothing needs to be done.
    pub advice: &'static str,
}

/// Whether a property of a server is as the promises need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grade {
    /// It is.
    Sound,
    /// It isn't.
    Unsound,
    /// It isn't, and no promise about an operation needs it: something else is missing or late.
    Limited,
    /// The server does not disclose it.
    Unknown,
}
