//! Adds the client's key to the answer, so that clients can match answers to requests.
//!
//! Danger: a key is a secret of its client. The field is added last, after everything that stores,
//! counts or logs the answer, and replaces the upstream's field of the same name.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::engine::Policy;

/// A key as its client sent it, with the name of its field.
pub(super) struct Echo(HeaderName, HeaderValue);

impl Echo {
    /// Takes the key from a request of a route that echoes it. Returns `None` if the field is
    /// absent, occurs twice or has other characters than printable ASCII. A key that is refused for
    /// another reason, such as its length, is echoed as well.
    pub fn of(policy: &Policy, headers: &HeaderMap) -> Option<Echo> {
        let name = policy.echoed_field()?;
        let mut lines = headers.get_all(name).iter();
        let value = lines.next().filter(|value| {
            !value.is_empty() && value.to_str().is_ok_and(|text| !text.contains('\t'))
        })?;
        if lines.next().is_some() {
            return None;
        }
        let mut value = value.clone();
        // Keeps the key out of HTTP/2 header tables (RFC 7541, section 7.1.3) and out of debug
        // output.
        value.set_sensitive(true);
        Some(Echo(name.clone(), value))
    }

    /// Returns the field's name.
    pub fn name(&self) -> &HeaderName {
        &self.0
    }

    /// Adds the field to an answer.
    pub fn put_on(self, headers: &mut HeaderMap) {
        headers.insert(self.0, self.1);
    }
}
