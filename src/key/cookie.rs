//! One named cookie of a request (RFC 6265, section 4.2.1).
//!
//! Danger: the whole `Cookie` field changes between a request and its retry, because analytics and
//! consent scripts add cookies of their own. Only the session cookie identifies the caller.

/// A cookie's name: a token (RFC 6265, section 4.1.1), case-sensitive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CookieName {
    name: String,
    label: String,
}

/// The cookie is present more than once with different values. Different upstreams read different
/// ones of these values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the cookie is given with different values")]
pub struct CookieRepeated;

impl CookieName {
    /// Parses a cookie's name; `None` if it is not a token (RFC 9110, section 5.6.2).
    pub fn parse(name: &str) -> Option<CookieName> {
        let is_token =
            |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        let valid = !name.is_empty() && name.bytes().all(is_token);
        valid.then(|| CookieName { name: name.to_owned(), label: format!("cookie:{name}") })
    }

    /// Returns the name as in the request.
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// Returns the name for hashing. It contains a colon, so it can't equal the name of a header
    /// field.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Returns the cookie's value from the lines of the `Cookie` field, without surrounding white
    /// space; `None` if the cookie is absent or empty. All lines count as one: HTTP/2 clients send
    /// one line per cookie (RFC 9113, section 8.2.3).
    ///
    /// # Errors
    /// The cookie is present more than once with different values.
    pub fn value<'h>(
        &self,
        lines: impl IntoIterator<Item = &'h [u8]>,
    ) -> Result<Option<&'h [u8]>, CookieRepeated> {
        let pairs = lines.into_iter().flat_map(|line| line.split(|byte| *byte == b';'));
        let mut found = None;
        for pair in pairs {
            let Some(at) = memchr::memchr(b'=', pair) else { continue };
            let (name, value) = (pair[..at].trim_ascii(), pair[at + 1..].trim_ascii());
            if name != self.name.as_bytes() {
                continue;
            }
            if found.replace(value).is_some_and(|first| first != value) {
                return Err(CookieRepeated);
            }
        }
        Ok(found.filter(|value| !value.is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_token() {
        for (name, valid) in [
            ("session", true),
            ("__Host-sid", true),
            ("a.b", true),
            ("", false),
            ("a b", false),
            ("a=b", false),
            ("a;b", false),
            ("\u{e9}", false),
        ] {
            assert_eq!(CookieName::parse(name).is_some(), valid, "{name}");
        }
    }

    #[test]
    fn a_value_is_found_by_the_whole_name_wherever_it_stands() {
        let session = CookieName::parse("session").unwrap();
        for (lines, expected) in [
            (&["session=a"][..], Ok(Some("a"))),
            (&["_ga=1; session=a; _gid=2"], Ok(Some("a"))),
            (&["_ga=1", "session=a"], Ok(Some("a"))),
            (&["_ga=1;session = a "], Ok(Some("a"))),
            (&["session=a=b=="], Ok(Some("a=b=="))),
            (&["session=\"a\""], Ok(Some("\"a\""))),
            (&["session=a; session=a"], Ok(Some("a"))),
            (&["session=a; session=b"], Err(CookieRepeated)),
            (&["session=a", "session=b"], Err(CookieRepeated)),
            (&["session=a; session="], Err(CookieRepeated)),
            (&["session="], Ok(None)),
            (&["session"], Ok(None)),
            (&["Session=a; xsession=a; session2=a; x=session"], Ok(None)),
            (&[""], Ok(None)),
            (&[], Ok(None)),
        ] {
            let found = session.value(lines.iter().map(|line| line.as_bytes()));
            assert_eq!(found, expected.map(|value| value.map(str::as_bytes)), "{lines:?}");
        }
    }
}
