//! The kind of a request body, for messages.

use std::fmt;

/// The kind of a request body, as the gateway reads it. For messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyKind {
    /// No content.
    None,
    /// JSON, or a body that claims to be JSON.
    Json,
    /// A form, `application/x-www-form-urlencoded`.
    Form,
    /// A form in parts, `multipart/form-data`. No key is looked for in it.
    Multipart,
    /// Anything else.
    Other,
}

impl fmt::Display for BodyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BodyKind::None => "the request has no body",
            BodyKind::Json => "the body was read as JSON",
            BodyKind::Form => "the body was read as a form (application/x-www-form-urlencoded)",
            BodyKind::Multipart => {
                "the body is a form in parts (multipart/form-data), in which no key is looked for"
            }
            BodyKind::Other => "the body is neither JSON nor a form, by its Content-Type",
        })
    }
}
