//! Signed tokens (JWT, RFC 7519, in the compact form of RFC 7515). Claims are used only after the
//! signature is verified.
//!
//! Danger: a forged token would get the answers of another caller. So the key decides which
//! algorithms may verify with it. An algorithm is refused if it is for another key type, if the
//! key's own `alg` excludes it, if it needs a shared secret, or if it is `none`. Before the
//! signature is verified, only the key's id, the algorithm and `crit` are read.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

mod keyring;
mod keys;

pub use keyring::{Keyring, RefreshIntervals};
pub use keys::{KEY_SET_BYTES_MAX, KeySet, KeySetError};

/// Longest token, in bytes: several times what identity providers issue, and fast to parse.
pub const TOKEN_BYTES_MAX: usize = 16 << 10;

/// Tolerated difference between the issuer's clock and this machine's, in seconds.
pub const LEEWAY_S: f64 = 30.0;

/// Requirements for a token, besides its signature and its times.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// The claim with the subject.
    pub claim: &'a str,
    /// The required issuer (`iss`); `None`: any issuer with a key of the set.
    pub issuer: Option<&'a str>,
    /// The required audience (`aud`); `None`: any.
    pub audience: Option<&'a str>,
}

/// The subject of a verified token.
#[derive(Clone, PartialEq, Eq)]
pub struct Subject {
    /// The issuer; empty if the token has none. A subject is unique only together with its issuer
    /// (RFC 7519, section 4.1.2).
    pub issuer: String,
    /// The claim's value, not empty.
    pub value: String,
    /// Whether the value is a number: 7 and "7" are different subjects.
    pub is_number: bool,
}

impl std::fmt::Debug for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Subject(..)")
    }
}

/// A refused token. The texts disclose no more than the sender of the token may learn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The token has expired.
    #[error("has expired")]
    Expired,
    /// No key of the set could have signed the token. The set may lack newer keys.
    #[error("is signed with an unknown key")]
    UnknownKey,
    /// The token is invalid for any other reason.
    #[error("is not valid")]
    Invalid,
}

/// Verifies the token in a field's value, with or without `Bearer` before it. `now_ms` is the wall
/// clock, in ms since 1970.
///
/// # Errors
/// See [`TokenError`].
pub fn verify(
    field: &[u8],
    keys: &KeySet,
    expected: &Expected<'_>,
    now_ms: u64,
) -> Result<Subject, TokenError> {
    let token = without_scheme(field);
    if token.len() > TOKEN_BYTES_MAX {
        return Err(TokenError::Invalid);
    }
    let text = std::str::from_utf8(token).map_err(|_| TokenError::Invalid)?;
    let (signed, signature) = text.rsplit_once('.').ok_or(TokenError::Invalid)?;
    let (header, payload) = signed
        .split_once('.')
        .filter(|(_, payload)| !payload.contains('.'))
        .ok_or(TokenError::Invalid)?;
    let header = object(header)?;
    // The token requires an extension (RFC 7515, section 4.1.11), and none is supported.
    if header.contains_key("crit") {
        return Err(TokenError::Invalid);
    }
    let algorithm = header.get("alg").and_then(Value::as_str).ok_or(TokenError::Invalid)?;
    let key_id = match header.get("kid") {
        None => None,
        Some(Value::String(id)) => Some(id.as_str()),
        Some(_) => return Err(TokenError::Invalid),
    };
    let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| TokenError::Invalid)?;
    keys.verify(algorithm, key_id, signed.as_bytes(), &signature)?;
    subject(&object(payload)?, expected, now_ms)
}

/// Returns the token after the scheme's name, which is case-insensitive (RFC 9110, section 11.1).
fn without_scheme(field: &[u8]) -> &[u8] {
    const SCHEME: &[u8] = b"bearer ";
    let field = field.trim_ascii();
    match field.split_at_checked(SCHEME.len()) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case(SCHEME) => token.trim_ascii_start(),
        _ => field,
    }
}

fn object(part: &str) -> Result<Map<String, Value>, TokenError> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Invalid)?;
    serde_json::from_slice(&bytes).map_err(|_| TokenError::Invalid)
}

/// Checks the claims of a verified token and returns its subject.
fn subject(
    claims: &Map<String, Value>,
    expected: &Expected<'_>,
    now_ms: u64,
) -> Result<Subject, TokenError> {
    let now = std::time::Duration::from_millis(now_ms).as_secs_f64();
    let time = |value: &Value| value.as_f64().ok_or(TokenError::Invalid);
    let expires = claims.get("exp").ok_or(TokenError::Invalid).and_then(time)?;
    if now >= expires + LEEWAY_S {
        return Err(TokenError::Expired);
    }
    if let Some(begins) = claims.get("nbf").map(time).transpose()?
        && now < begins - LEEWAY_S
    {
        return Err(TokenError::Invalid);
    }
    let issuer = match claims.get("iss") {
        None => "",
        Some(Value::String(issuer)) => issuer,
        Some(_) => return Err(TokenError::Invalid),
    };
    let is_for = |audience: &str| match claims.get("aud") {
        Some(Value::String(one)) => one == audience,
        Some(Value::Array(many)) => many.iter().any(|one| one.as_str() == Some(audience)),
        _ => false,
    };
    if expected.issuer.is_some_and(|wanted| wanted != issuer)
        || !expected.audience.is_none_or(is_for)
    {
        return Err(TokenError::Invalid);
    }
    let (value, is_number) = match claims.get(expected.claim) {
        Some(Value::String(text)) if !text.is_empty() => (text.clone(), false),
        // Larger numbers and fractions lose digits, and two subjects could become equal.
        Some(Value::Number(number)) if number.is_u64() || number.is_i64() => {
            (number.to_string(), true)
        }
        _ => return Err(TokenError::Invalid),
    };
    Ok(Subject { issuer: issuer.to_owned(), value, is_number })
}

#[cfg(test)]
mod tests;
