//! Field names that some servers read as another name.
//!
//! Danger: servers that turn fields into variables (CGI, WSGI, PHP and others) read `_` as `-`. To
//! them a client's `X_Forwarded_For` is the gateway's `X-Forwarded-For`, and `Idempotency_Key` is a
//! key that the gateway did not see. So the gateway drops a field if its name, with `_` read as
//! `-`, is a name that the gateway sets, trusts or reads. The listener refuses requests with other
//! spellings of the fields that frame a message.

use http::{HeaderMap, HeaderName};

use crate::engine::{
    CONDITIONAL_FIELDS, CallerRule, KeyPart, KeyPlace, KeySource, Policy, ScopeRule,
};

/// Names that the gateway sets, trusts or reads on every route. A name without a dash has no other
/// spelling.
const ALWAYS: [&str; 16] = [
    "content-encoding",
    "content-type",
    "http2-settings",
    "idempotency-key",
    "idempotent-replayed",
    "keep-alive",
    "max-forwards",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "x-api-key",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-real-ip",
    "x-should-retry",
];

/// Names of fields. A field with another spelling of one of these names is dropped.
#[derive(Debug, Clone)]
pub(super) struct Lookalikes {
    names: Box<[HeaderName]>,
    /// Whether one of the names has an underscore. Then a field name without an underscore can be
    /// another spelling too.
    underscored: bool,
}

impl Lookalikes {
    /// Collects the names that are read on every route, and those that these policies configure:
    /// fields of keys, scopes and callers, of derived keys, and of the upstream's key.
    pub fn new<'p>(policies: impl IntoIterator<Item = &'p Policy>) -> Lookalikes {
        let configured = policies.into_iter().flat_map(configured).cloned();
        let names: Box<[_]> =
            ALWAYS.into_iter().map(HeaderName::from_static).chain(configured).collect();
        let underscored = names.iter().any(|name| name.as_str().contains('_'));
        Lookalikes { names, underscored }
    }

    /// Drops the fields that have another spelling of one of the names.
    pub fn drop_from(&self, headers: &mut HeaderMap) {
        let suspect = |name: &HeaderName| self.underscored || name.as_str().contains('_');
        let found: Vec<HeaderName> = headers
            .keys()
            .filter(|name| suspect(name) && self.is_other_spelling(name))
            .cloned()
            .collect();
        for name in found {
            headers.remove(name);
        }
    }

    fn is_other_spelling(&self, name: &HeaderName) -> bool {
        let reads_the_same = |known: &HeaderName| {
            let (name, known) = (name.as_str().as_bytes(), known.as_str().as_bytes());
            let folded = |byte: &u8| if *byte == b'_' { b'-' } else { *byte };
            name.len() == known.len() && name.iter().map(folded).eq(known.iter().map(folded))
        };
        self.names.iter().any(reads_the_same) && !self.names.contains(name)
    }
}

/// The fields that a policy reads or sets.
fn configured(policy: &Policy) -> Vec<&HeaderName> {
    let mut names = Vec::new();
    match &policy.key.source {
        KeySource::Sent { header, .. } => names.extend(header),
        KeySource::Derived(parts) => names.extend(parts.iter().filter_map(|part| match part {
            KeyPart::Header(name) => Some(name),
            KeyPart::Path
            | KeyPart::Query(_)
            | KeyPart::Body(_)
            | KeyPart::Form(_)
            | KeyPart::BodyHash => None,
        })),
    }
    match &policy.scope {
        ScopeRule::Headers(fields) => names.extend(fields),
        ScopeRule::Token(rule) => names.push(&rule.header),
        // `Cookie` has no dash.
        ScopeRule::Shared | ScopeRule::Cookie(_) | ScopeRule::ClientCertificate => {}
    }
    if let Some(rule) = &policy.resource {
        names.extend(rule.per.iter().chain(&CONDITIONAL_FIELDS));
    }
    if let CallerRule::Headers(fields) = &policy.caller {
        names.extend(fields);
    }
    if let Some(KeyPlace::Header(name)) = policy.upstream_key.as_ref().map(|wanted| &wanted.place) {
        names.push(name);
    }
    names
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn left(lookalikes: &Lookalikes, names: &[&'static str]) -> Vec<String> {
        let field =
            |name: &&'static str| (HeaderName::from_static(name), HeaderValue::from_static("1"));
        let mut headers: HeaderMap = names.iter().map(field).collect();
        lookalikes.drop_from(&mut headers);
        let mut left: Vec<String> = headers.keys().map(ToString::to_string).collect();
        left.sort();
        left
    }

    #[test]
    fn other_spellings_are_dropped_and_the_names_themselves_stay() {
        let usual = Lookalikes::new([]);
        let names = [
            "x-forwarded-for",
            "x_forwarded_for",
            "x-forwarded_for",
            "idempotency_key",
            "x_other",
            "content-type",
        ];
        assert_eq!(left(&usual, &names), ["content-type", "x-forwarded-for", "x_other"]);
    }

    #[test]
    fn a_configured_name_with_an_underscore_stays_and_its_dashed_spelling_goes() {
        let own =
            Lookalikes { names: [HeaderName::from_static("my_key")].into(), underscored: true };
        assert_eq!(left(&own, &["my_key", "my-key", "mykey"]), ["my_key", "mykey"]);
    }
}
