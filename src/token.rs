//! Tokens (JWT, RFC 7519, signed in the compact form of RFC 7515): whom one speaks of, believed only after its signature.
//!
//! Danger: whoever can make up a token gets another's answers. So the key decides what may be verified with it: an
//! algorithm that its kind doesn't have, that its own `alg` excludes, that is `none` or that needs a shared secret verifies
//! nothing. Nothing inside a token is looked at before its signature, but for the name of its key and its algorithm.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

mod keyring;
mod keys;

pub use keyring::{Keyring, Pace};
pub use keys::{KEY_SET_BYTES_MAX, KeySet, KeySetError};

/// Longest token, in bytes: several times what identity providers issue, and little work to look through.
pub const TOKEN_BYTES_MAX: usize = 16 << 10;

/// By how much clocks may differ, in seconds: the issuer's, and this machine's.
pub const LEEWAY_S: f64 = 30.0;

/// What a token has to say to be believed, besides being in time.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// The claim that names whom it speaks of.
    pub claim: &'a str,
    /// Who has to have issued it (`iss`); `None`: whoever has the keys.
    pub issuer: Option<&'a str>,
    /// For whom it has to be (`aud`); `None`: for anybody.
    pub audience: Option<&'a str>,
}

/// Whom a verified token speaks of.
#[derive(Clone, PartialEq, Eq)]
pub struct Subject {
    /// Who issued it; empty where it doesn't say. A subject is one only together with its issuer (RFC 7519, section 4.1.2).
    pub issuer: String,
    /// The claim's value; never empty.
    pub value: String,
    /// Whether it is a number: 7 and "7" are two.
    pub is_number: bool,
}

impl std::fmt::Debug for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Subject(..)")
    }
}

/// Why a token is not believed. EventSource no more than its sender may know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It was good until lately.
    #[error("has expired")]
    Expired,
    /// No key of the set could have signed it: perhaps the set is older than the key.
    #[error("is signed with an unknown key")]
    UnknownKey,
    /// Anything else.
    #[error("is not valid")]
    Invalid,
}

/// Verifies the token in a field's value, with or without `Bearer` before it.
///
/// # Errors
/// See [`TokenError`]. `now_ms`: the wall clock, ms since 1970.
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
    // An extension that has to be understood (RFC 7515, section 4.1.11); none is.
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

/// The token behind the scheme's name, which is case-insensitive (RFC 9110, section 11.1).
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

/// What a verified token says.
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
        // Beyond 64 bits, and behind a point, digits are lost: two subjects could become one.
        Some(Value::Number(number)) if number.is_u64() || number.is_i64() => {
            (number.to_string(), true)
        }
        _ => return Err(TokenError::Invalid),
    };
    Ok(Subject { issuer: issuer.to_owned(), value, is_number })
}

#[cfg(test)]
mod tests;
