//! The findings of the checks of a store's servers, which run before a gateway starts.

/// A finding about one property of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remark {
    /// How the property affects the guarantees.
    pub grade: Grade,
    /// The property and its value, in words.
    pub text: String,
    /// What to do about it; empty where nothing needs to be done.
    pub advice: &'static str,
}

/// How a property of a server affects the guarantees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grade {
    /// The guarantees hold with this property.
    Sound,
    /// The property breaks a guarantee about operations.
    Unsound,
    /// The property breaks no guarantee about operations, but another function is missing or late.
    Limited,
    /// The server doesn't reveal the property.
    Unknown,
}
