//! Faults of an idempotency key.

use crate::key::KeyError;

/// The fault of a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyFault {
    /// The key does not parse.
    #[error(transparent)]
    Syntax(#[from] KeyError),
    /// Two fields carry a key.
    #[error("is given more than once")]
    Twice,
    /// The key in the field differs from the key in the body.
    #[error("in the header field differs from the one in the body")]
    Differs,
    /// The member of the body is not a string.
    #[error("in the body is not a string")]
    NotText,
    /// Two parsers could interpret the body differently, for example because it has duplicate
    /// member names.
    #[error(
        "can't be taken from a body that two parsers could interpret differently (duplicate member \
         names, half a surrogate pair, or an exponent without bounds)"
    )]
    AmbiguousBody,
    /// The upstream expects the key in the body, and this body has no place for it.
    #[error(
        "can't be put into the body, where the upstream looks for it: the body has to be a JSON \
         object"
    )]
    NotCarried,
}
