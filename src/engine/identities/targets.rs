//! Route targets: a method and a path pattern, which describe the requests that a route covers.
//!
//! Danger: if two targets were wrongly considered disjoint, a route could take over another route's
//! requests, and their operations would have a new name. So two targets overlap unless it is
//! certain that no request matches both.

use std::fmt;

use http::Method;
use serde::{Deserialize, Serialize};

/// A method and a path pattern, in the stored form: `POST /v1/payments/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct RouteTarget(String);

impl RouteTarget {
    /// Makes the target of requests with this method and a path that matches the pattern.
    pub fn new(method: &Method, pattern: &str) -> RouteTarget {
        RouteTarget(format!("{method} {pattern}"))
    }

    /// Returns whether a request may match both targets.
    pub fn overlaps(&self, other: &RouteTarget) -> bool {
        // Only a damaged note has a target without a space. Such a target overlaps only with
        // itself.
        let (method, pattern) = self.0.split_once(' ').unwrap_or((&self.0, ""));
        let (other_method, other_pattern) = other.0.split_once(' ').unwrap_or((&other.0, ""));
        method == other_method && patterns_overlap(pattern, other_pattern)
    }
}

impl fmt::Display for RouteTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Returns whether a path may match both patterns. A segment with a brace counts as a match for any
/// segment.
fn patterns_overlap(one: &str, other: &str) -> bool {
    let (mut one, mut other) =
        (one.trim_end_matches('/').split('/'), other.trim_end_matches('/').split('/'));
    loop {
        match (one.next(), other.next()) {
            (None, None) => return true,
            (None, Some(_)) | (Some(_), None) => return false,
            // A wildcard for the rest of a path matches one segment or more.
            (Some(one), Some(other)) if one.contains("{*") || other.contains("{*") => return true,
            (Some(one), Some(other)) => {
                if one != other && !one.contains('{') && !other.contains('{') {
                    return false;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_overlap_if_one_request_may_match_both() {
        let target = |text: &str| RouteTarget(text.to_owned());
        let rows = [
            ("POST /v1/payments", "POST /v1/payments", true),
            ("POST /v1/payments", "POST /v1/payments/", true),
            ("POST /v1/payments", "PATCH /v1/payments", false),
            ("POST /v1/payments", "POST /v1/refunds", false),
            ("POST /v1/payments", "POST /v1/Payments", false),
            ("POST /v1/payments", "POST /v1/{kind}", true),
            ("POST /v1/{kind}", "POST /{version}/payments", true),
            ("POST /v1/payments", "POST /v1/payments/{id}", false),
            ("POST /v1/payments/{id}", "POST /v1/payments/{id}/refunds", false),
            ("POST /v1/payments", "POST /v1/payments/{*rest}", false),
            ("POST /v1/payments/{id}/refunds", "POST /v1/payments/{*rest}", true),
            ("POST /v1/refunds/{*rest}", "POST /v1/payments/{*rest}", false),
            ("POST /{*rest}", "POST /v1/payments", true),
            ("POST /{*rest}", "POST /", false),
            ("POST /", "POST /", true),
            ("POST /", "POST /v1", false),
            ("POST /v1/pay-{id}", "POST /v1/payments", true),
            ("POST /v1/x", "damaged", false),
        ];
        for (one, other, expected) in rows {
            let (one, other) = (target(one), target(other));
            assert_eq!(
                (one.overlaps(&other), other.overlaps(&one)),
                (expected, expected),
                "{one} and {other}"
            );
        }
    }
}
