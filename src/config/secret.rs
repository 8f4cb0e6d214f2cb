//! Secrets, and the masking of texts that may contain one.

use std::fmt;
use std::ops::Range;

/// Replaces a secret in messages.
pub(super) const MASK: &str = "***";

/// If a name contains one of these texts, its value is treated as a secret, even if there is no
/// such key.
const SECRET_NAMES: [&str; 4] = ["pass", "secret", "token", "credential"];

/// A secret text. Logs, errors and `Debug` never show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// Returns the text. Use it only to connect and to compare.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

/// Masks all passwords in a url: in the user part and in the query.
pub(super) fn masked_url(url: &str) -> String {
    let hidden = secrets_in(url);
    let mut shown = String::with_capacity(url.len());
    let mut end = 0;
    for range in hidden {
        if range.start >= end {
            shown.push_str(&url[end..range.start]);
            shown.push_str(MASK);
        }
        end = end.max(range.end);
    }
    shown.push_str(&url[end..]);
    shown
}

/// Returns the sorted byte ranges of a line that may be secrets. This also works on lines that
/// don't parse. In unclear cases it returns too much rather than too little.
pub(super) fn secrets_in(line: &str) -> Vec<Range<usize>> {
    let mut hidden: Vec<Range<usize>> =
        line.match_indices("://").filter_map(|(at, _)| user_info(line, at)).collect();
    hidden.extend(line.match_indices('=').filter_map(|(at, _)| named_secret(line, at)));
    // If a multi-line string begins on this line, its end is on another one. So everything after
    // its opening is masked.
    for quotes in ["\"\"\"", "'''"] {
        hidden.extend(line.find(quotes).map(|at| at + quotes.len()..line.len()));
    }
    hidden.sort_by_key(|range| range.start);
    hidden
}

/// Returns the byte range of a line from the path of its first url on. The line may be one that
/// doesn't parse, so the url's end is unknown.
pub(super) fn url_path_in(line: &str) -> Option<Range<usize>> {
    let authority = line.find("://")? + "://".len();
    let path = line[authority..].find(['/', '?', '#'])?;
    Some(authority + path..line.len())
}

/// Returns the password of the url that has its `://` at `at`. Without a password, returns the
/// whole user part.
fn user_info(line: &str, at: usize) -> Option<Range<usize>> {
    let scheme_start =
        line[..at].rfind(|c: char| !(c.is_ascii_alphanumeric() || "+.-".contains(c)));
    let quote = scheme_start
        .map(|start| line.as_bytes()[start])
        .filter(|byte| matches!(byte, b'"' | b'\''));
    let start = at + "://".len();
    let rest = &line[start..];
    let end = quote.map_or(rest.len(), |quote| closing_quote(rest, quote));
    // A password in a faulty url may contain an `@` or a slash.
    let user = &rest[..rest[..end].rfind('@')?];
    let password = user.find(':').map_or(0, |colon| colon + 1);
    Some(start + password..start + user.len())
}

/// Returns the value after the `=` at `at`, if the name before it marks a secret. The name may be
/// in a url's query, or a key of the file.
fn named_secret(line: &str, at: usize) -> Option<Range<usize>> {
    let before = line[..at].trim_end().trim_end_matches(['"', '\'']);
    let name_start = before
        .rfind(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-'))
        .map_or(0, |last| last + before[last..].chars().next().map_or(1, char::len_utf8));
    let name = before[name_start..].to_ascii_lowercase();
    if !SECRET_NAMES.iter().any(|part| name.contains(part)) {
        return None;
    }
    let start = at + 1 + line[at + 1..].len() - line[at + 1..].trim_start().len();
    let rest = &line[start..];
    if before[..name_start].ends_with(['?', '&']) {
        let end = rest.find(['&', '"', '\'']).unwrap_or(rest.len());
        return Some(start..start + end);
    }
    match rest.as_bytes().first()? {
        // A table, or a list of tables. Secrets in it have their own names.
        b'[' | b'{' => None,
        quote @ (b'"' | b'\'') => Some(start + 1..start + 1 + closing_quote(&rest[1..], *quote)),
        _ => Some(start..line.len()),
    }
}

/// Returns the end of the string that continues in `rest`. If the string isn't closed, returns the
/// end of `rest`.
fn closing_quote(rest: &str, quote: u8) -> usize {
    let mut escaped = false;
    for (at, byte) in rest.bytes().enumerate() {
        if byte == quote && !escaped {
            return at;
        }
        escaped = byte == b'\\' && !escaped && quote == b'"';
    }
    rest.len()
}
