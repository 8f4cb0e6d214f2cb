//! Finds the route of a request by path and method.
//!
//! Danger: a path that the upstream interprets differently than the gateway bypasses the
//! protection. So percent-encoded unreserved characters are decoded before matching (RFC 3986,
//! section 6.2.2.2), and a path is refused if a folding of it (see `folding`) leads to a protected
//! route that the path itself does not lead to.

use std::cell::LazyCell;
use std::sync::Arc;

use http::Method;
use matchit::Router;

use crate::engine::{Mode, Policy};
use crate::key::path::{PathCase, as_matched, is_opaque_throughout, is_plain};
use folding::{Pattern, Readings};

mod folding;

/// A route: enforced, shadowed or switched off.
#[derive(Debug, Clone)]
pub struct Route {
    /// Path patterns. The route covers a path that matches one of them. `{name}` matches one
    /// segment, and `{*rest}` matches one or more segments.
    pub paths: Vec<String>,
    /// Methods.
    pub methods: Vec<Method>,
    /// Index of the upstream.
    pub upstream: usize,
    /// Rules.
    pub policy: Policy,
}

/// The routes, in order: the first match wins.
#[derive(Debug, Clone)]
pub struct Routes(Vec<Compiled>);

/// A route with its compiled patterns.
#[derive(Debug, Clone)]
struct Compiled {
    router: Router<()>,
    patterns: Vec<Pattern>,
    route: Arc<Route>,
}

/// The pattern is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the path pattern `{path}` is not valid: {why}")]
pub struct PatternError {
    path: String,
    why: String,
}

/// The upstream could interpret the path as another, protected path, or as the path of another
/// operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the path can be read as another path")]
pub struct AmbiguousPath;

impl Routes {
    /// Compiles the patterns.
    pub fn new(routes: impl IntoIterator<Item = Route>) -> Result<Routes, PatternError> {
        let compile = |route: Route| {
            let mut router = Router::new();
            for path in &route.paths {
                let bare = if path.len() > 1 { path.trim_end_matches('/') } else { path };
                router
                    .insert(bare, ())
                    .map_err(|fault| PatternError { path: path.clone(), why: fault.to_string() })?;
            }
            let patterns =
                route.paths.iter().map(|path| Pattern::of(path, route.policy.path_case)).collect();
            Ok(Compiled { router, patterns, route: Arc::new(route) })
        };
        routes.into_iter().map(compile).collect::<Result<_, _>>().map(Routes)
    }

    /// Returns the position of the first route that matches a request. A trailing slash doesn't
    /// matter.
    ///
    /// Fails if a folding of the path leads to a protected route that the path does not lead to, or
    /// if the path is part of an identity or of a derived key and a folding changes it. A plain
    /// path costs one scan in addition to its match, except if a route ignores letter case.
    pub fn position(&self, method: &Method, path: &str) -> Result<Option<usize>, AmbiguousPath> {
        let bare = as_matched(path);
        let found =
            self.0.iter().position(|each| each.covers(method) && each.router.at(&bare).is_ok());
        let plain = is_plain(path);
        if !path.starts_with('/') || plain && !self.0.iter().any(Compiled::ignores_case) {
            return Ok(found);
        }
        if self.leads_elsewhere(method, path, &bare, found)
            || found.is_some_and(|at| self.0[at].has_ambiguous_identity(path))
        {
            return Err(AmbiguousPath);
        }
        Ok(found)
    }

    /// Returns whether a folding of a path leads to a protected route other than the found one.
    fn leads_elsewhere(
        &self,
        method: &Method,
        path: &str,
        bare: &str,
        found: Option<usize>,
    ) -> bool {
        let is_other =
            |at: usize| found != Some(at) && self.0[at].protects() && self.0[at].covers(method);
        let mut others = (0..self.0.len()).filter(|at| is_other(*at)).peekable();
        if others.peek().is_none() {
            return false;
        }
        let sensitive = LazyCell::new(|| Readings::of(path, PathCase::Sensitive));
        let insensitive = LazyCell::new(|| Readings::of(path, PathCase::Insensitive));
        // A path that is too complex to search could lead anywhere.
        let some_reading = |case, holds: &dyn Fn(&Readings) -> bool| match case {
            PathCase::Sensitive => sensitive.as_ref().is_none_or(holds),
            PathCase::Insensitive => insensitive.as_ref().is_none_or(holds),
        };
        others.any(|at| {
            let other = &self.0[at];
            let matched = other.router.at(bare).is_ok();
            let leads_there = matched
                || some_reading(other.case(), &|readings| other.some_reading_matches(readings));
            // Paths of an earlier route don't lead to this route, except in another letter case.
            let found = found.filter(|found| *found < at).map(|found| &self.0[found]);
            let first = found.filter(|found| {
                matched || !other.ignores_case() || found.case() == PathCase::Insensitive
            });
            leads_there
                && first.is_none_or(|first| {
                    some_reading(first.case(), &|readings| first.some_reading_leaves(readings))
                })
        })
    }

    /// Returns the routes in order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.0.iter().map(|each| &each.route)
    }
}

impl Compiled {
    fn covers(&self, method: &Method) -> bool {
        self.route.methods.contains(method)
    }

    fn protects(&self) -> bool {
        self.route.policy.mode == Mode::Enforce
    }

    fn case(&self) -> PathCase {
        self.route.policy.path_case
    }

    fn ignores_case(&self) -> bool {
        self.protects() && self.case() == PathCase::Insensitive
    }

    fn some_reading_matches(&self, readings: &Readings) -> bool {
        self.patterns.iter().any(|pattern| readings.some_match(pattern))
    }

    fn some_reading_leaves(&self, readings: &Readings) -> bool {
        self.patterns.iter().all(|pattern| readings.some_differ(pattern))
    }

    /// Returns whether the path is part of the route's identities and has other foldings, which
    /// would be other operations.
    fn has_ambiguous_identity(&self, path: &str) -> bool {
        self.route.policy.separates_paths() && self.protects() && !is_opaque_throughout(path)
    }
}

#[cfg(test)]
mod tests;
