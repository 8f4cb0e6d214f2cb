//! `[[routes]]`: which requests are protected, and by which rules.

use http::Method;

use crate::engine::Policy;

/// One route.
#[derive(Debug, Clone)]
pub struct Route {
    /// Unique; part of every record's identity.
    pub name: String,
    /// What it matches, as `matchit` patterns without a trailing slash. One, except in the implicit route.
    pub paths: Vec<String>,
    /// Which methods it matches.
    pub methods: Vec<Method>,
    /// The named upstream, if it isn't the default one.
    pub upstream: Option<String>,
    /// The profile that its values come from, where it doesn't set them.
    pub profile: String,
    /// Its rules.
    pub policy: Policy,
}
