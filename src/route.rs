//! Which route a request belongs to, by its path and method.
//!
//! Danger: a path that the upstream reads differently than the gateway slips past the protection. So percent-encoded
//! unreserved characters are decoded before matching (RFC 3986, section 6.2.2.2), and a path with dot segments or empty
//! segments, encoded or not, is refused.

use std::borrow::Cow;
use std::sync::Arc;

use http::Method;
use matchit::Router;

use crate::engine::Policy;

/// A protected, watched or switched-off route.
#[derive(Debug, Clone)]
pub struct Route {
    /// The patterns, any of which matches: `{name}` is one segment, `{*rest}` one or more.
    pub paths: Vec<String>,
    /// The methods it covers.
    pub methods: Vec<Method>,
    /// Index of its upstream.
    pub upstream: usize,
    /// Its rules.
    pub policy: Policy,
}

/// The routes, in order: the first match wins.
#[derive(Debug, Clone)]
pub struct Routes(Vec<(Router<()>, Arc<Route>)>);

/// A pattern that can't be matched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the path pattern `{path}` is not valid: {why}")]
pub struct PatternError {
    path: String,
    why: String,
}

/// A path that the upstream could read differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the path has a `.`, `..` or empty segment")]
pub struct AmbiguousPath;

impl Routes {
    /// Compiles the patterns.
    pub fn new(routes: impl IntoIterator<Item = Route>) -> Result<Routes, PatternError> {
        let compile = |route: Route| {
            let mut router = Router::new();
            for path in &route.paths {
                let bare = if path.len() > 1 { path.trim_end_matches('/') } else { path };
                router.insert(bare, ()).map_err(|fault| PatternError { path: path.clone(), why: fault.to_string() })?;
            }
            Ok((router, Arc::new(route)))
        };
        routes.into_iter().map(compile).collect::<Result<_, _>>().map(Routes)
    }

    /// The place of the first route that covers a request. A trailing slash matches the same route.
    pub fn position(&self, method: &Method, path: &str) -> Result<Option<usize>, AmbiguousPath> {
        let path = normalise(path)?;
        let bare = if path.len() > 1 { path.strip_suffix('/').unwrap_or(&path) } else { &path };
        Ok(self.0.iter().position(|(router, route)| route.methods.contains(method) && router.at(bare).is_ok()))
    }

    /// The routes, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.0.iter().map(|(_, route)| route)
    }
}

/// Decodes percent-encoded unreserved characters; refuses what could be resolved into another path.
fn normalise(path: &str) -> Result<Cow<'_, str>, AmbiguousPath> {
    let path = if path.contains('%') { Cow::Owned(decode_unreserved(path)) } else { Cow::Borrowed(path) };
    let Some(inner) = path.strip_prefix('/') else { return Ok(path) };
    let mut segments = inner.split('/').peekable();
    while let Some(segment) = segments.next() {
        let empty = segment.is_empty() && segments.peek().is_some();
        if empty || segment == "." || segment == ".." {
            return Err(AmbiguousPath);
        }
    }
    Ok(path)
}

fn decode_unreserved(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let decoded = rest.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match decoded {
            Some(byte) if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => {
                out.push(char::from(byte));
                rest = &rest[at + 3..];
            }
            _ => {
                out.push('%');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    out
}
