//! The facts with which a route explains the refusal of a reused key.

/// Facts about the first request of an operation. Only the caller of that request gets them, after
/// using the same key for another request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The places where the two requests differ: JSON pointers into the body, and `method`, `path`,
    /// `query` and `body` as a whole. `None` where they are not known.
    pub differing: Option<Vec<String>>,
    /// The state of the operation's record.
    pub state: &'static str,
    /// When the first attempt began, in ms since 1970 by its gateway's clock.
    pub opened_unix_ms: u64,
}
