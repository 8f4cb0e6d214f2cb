//! A route's path pattern.

/// Description of a pattern, for messages.
pub(super) const EXPECTED: &str =
    "a path such as \"/v1/payments/{id}\" or \"/v1/payments/{*rest}\"";

/// Parses a pattern and removes its trailing slash, because both forms match the same paths.
///
/// Danger: if a pattern never matches, the requests that it should protect pass unprotected. So a
/// pattern that no request's path can match is refused.
pub(super) fn parse(text: &str) -> Result<String, String> {
    if !text.starts_with('/') {
        return Err(format!("expected {EXPECTED}: a path starts with a slash"));
    }
    let pattern = if text.len() > 1 { text.strip_suffix('/').unwrap_or(text) } else { text };
    if !pattern.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#\"<>\\^`|".contains(&byte)) {
        return Err(
            "a path has only visible ASCII characters except ? and #: percent-encode the others"
                .to_owned(),
        );
    }
    let mut segments = pattern.split('/').skip(1);
    if pattern.len() > 1 && segments.any(|segment| matches!(segment, "" | "." | "..")) {
        return Err(
            "a pattern must not contain //, . or ..: upstreams resolve such paths to others"
                .to_owned(),
        );
    }
    check_escapes(pattern)?;
    let mut alone = matchit::Router::new();
    match alone.insert(pattern, ()) {
        Ok(()) => Ok(pattern.to_owned()),
        Err(matchit::InsertError::InvalidCatchAll) => {
            Err("{*rest} can only be the last segment".to_owned())
        }
        Err(matchit::InsertError::InvalidParamSegment) => {
            Err("only one {parameter} fits into a segment".to_owned())
        }
        Err(_) => {
            Err(format!("expected {EXPECTED}: each {{parameter}} has a name and both braces"))
        }
    }
}

/// Refuses escapes of unreserved characters, because request paths are matched with such characters
/// decoded.
fn check_escapes(pattern: &str) -> Result<(), String> {
    for (at, _) in pattern.match_indices('%') {
        let digits = pattern
            .get(at + 1..at + 3)
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let Some(byte) = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) else {
            return Err("% is followed by two hexadecimal digits".to_owned());
        };
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            return Err(format!(
                "matches nothing: write {:?} instead of its percent-encoding",
                char::from(byte)
            ));
        }
        // Upstreams treat both spellings as the same path. A request with the plain spelling would
        // pass unprotected (RFC 3986, section 3.3: pchar).
        if b"!$&'()*+,=:@".contains(&byte) {
            return Err(format!(
                "write {:?} instead of its percent-encoding: requests with either spelling are \
                 then protected or refused",
                char::from(byte)
            ));
        }
    }
    Ok(())
}
