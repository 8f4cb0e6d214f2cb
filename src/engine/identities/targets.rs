//! A target: a method and a path pattern, which together say which requests a route covers.
//!
//! Danger: two targets that are wrongly taken for disjoint let a route take over another's requests under a new name. So where
//! it is not certain that no request matches both, they overlap.

use std::fmt;

use http::Method;
use serde::{Deserialize, Serialize};

/// A method and a path pattern, in the form in which both are stored: `POST /v1/payments/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Target(String);

impl Target {
    /// The requests with this method whose path the pattern matches.
    pub fn new(method: &Method, pattern: &str) -> Target {
        Target(format!("{method} {pattern}"))
    }

    /// Whether some request may match both.
    pub fn overlaps(&self, other: &Target) -> bool {
        // Only a damaged note has a target without a space, which is then equal to nothing but itself.
        let (method, pattern) = self.0.split_once(' ').unwrap_or((&self.0, ""));
        let (other_method, other_pattern) = other.0.split_once(' ').unwrap_or((&other.0, ""));
        method == other_method && patterns_overlap(pattern, other_pattern)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether some path may match both patterns. A segment with a brace counts as one that matches any segment.
fn patterns_overlap(one: &str, other: &str) -> bool {
    let (mut one, mut other) =
        (one.trim_end_matches('/').split('/'), other.trim_end_matches('/').split('/'));
    loop {
        match (one.next(), other.next()) {
            (None, None) => return true,
            (None, Some(_)) | (Some(_), None) => return false,
            // The rest of a path has one segment or more.
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
    fn targets_overlap_where_one_request_may_match_both() {
        let target = |text: &str| Target(text.to_owned());
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
