//! Compares the configured rules that identify operations with the rules under which the store was
//! written.
//!
//! An operation's identity depends on its route's rules and on the hashing secrets. The store keeps
//! notes of both, so that a start with another configuration is refused before it does harm.
//!
//! Danger: under another scope, route name or secret every key is new, and duplicates of answered
//! requests run again.
//!
//! Removing a route changes no identity: its requests pass unprotected. But if another route covers
//! its requests, their operations get that route's name. So the store also keeps a list of the
//! requests that each route covers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use http::{HeaderName, Method};
use serde::{Deserialize, Serialize};

use super::policy::{
    CallerRule, FingerprintRule, KeyPart, KeySource, Mode, OnMismatch, Policy, ScopeRule,
};
use crate::key::Pointer;
use crate::key::path::PathCase;
use targets::RouteTarget;

mod targets;

/// The format in which this version writes both notes.
const FORMAT: u32 = 1;

/// The rules and secrets of a configuration that identify operations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identities {
    /// Routes by name.
    routes: BTreeMap<String, RouteIdentity>,
    /// Check values of the hashing secrets. The first secret is used for new records. If there are
    /// no secrets, hashes are plain.
    secrets: Vec<String>,
}

/// The rules of a route that identify its operations.
#[derive(Debug, Clone, PartialEq, Eq)]
struct RouteIdentity {
    /// The rules as text. Every version writes the same text: this is a storage format.
    rules: String,
    /// Whether the route protects requests. If it only counts or is off, a change of its identities
    /// does no harm.
    protects: bool,
    /// The requests that it covers.
    targets: BTreeSet<RouteTarget>,
    /// Its position among the routes. The first route that covers a request takes it.
    position: usize,
}

/// The note of identities, as it is stored. Routes that are not configured any more stay in it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredIdentities {
    format: u32,
    secrets: Vec<String>,
    routes: BTreeMap<String, String>,
}

/// The note of paths, as it is stored: for each route, all requests that it has covered since the
/// note exists. The note lacks routes that only earlier versions wrote, because these versions
/// wrote no note of paths.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredTargets {
    format: u32,
    routes: BTreeMap<String, BTreeSet<RouteTarget>>,
}

/// The two notes about identities that a store keeps. `None` if it keeps no such note.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notes {
    /// The rules and secrets that identify operations.
    pub identities: Option<String>,
    /// The requests that each route covers.
    pub paths: Option<String>,
}

/// A route that protected operations and is not configured any more. No other route protects its
/// requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VanishedRoute {
    /// Its name.
    pub route: String,
    /// The requests that it covered, each as a method and a path pattern.
    pub targets: Vec<String>,
}

/// A change of identities that a configuration would cause.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityChange {
    /// A route is not configured any more, and the store does not have its paths.
    #[error(
        "route {route:?} is not configured any more, and its name is part of its operations' \
         identity. An earlier version wrote the store without the route's paths, so another route \
         may cover them: give the name back"
    )]
    Gone {
        /// Its name.
        route: String,
    },
    /// A route is not configured any more, and another one protects its requests.
    #[error(
        "route {route:?} is not configured any more, and its name is part of its operations' \
         identity: route {now:?} covers {target} in its place; give the name back"
    )]
    Renamed {
        /// Its name.
        route: String,
        /// The name of the other route.
        now: String,
        /// A request that both cover: a method and the path pattern of the first route.
        target: String,
    },
    /// A route is still configured, but another route protects requests that the first route
    /// protected.
    #[error(
        "route {now:?} takes the requests for {target}, which route {route:?} protected: their \
         retries would be new operations; move {route:?} before it"
    )]
    TakenOver {
        /// Its name.
        route: String,
        /// The name of the other route.
        now: String,
        /// The requests: a method and a path pattern that both routes had.
        target: String,
    },
    /// The rules of a route are different.
    #[error(
        "route {route:?} identifies its operations by {now}, and before by {before}: change it back"
    )]
    Remade {
        /// Its name.
        route: String,
        /// The rules that the store keeps.
        before: String,
        /// The configured rules.
        now: String,
    },
    /// Records are hashed without a secret.
    #[error("[hashing] is configured, and records were written without it: leave it out")]
    HashingOn,
    /// Records are hashed under a secret.
    #[error("[hashing] is not configured, and records were written under a secret: put it back")]
    HashingOff,
    /// The secret under which records were written is not configured.
    #[error(
        "records were written under the hashing secret with the check value {check}, which is not \
         configured: put it back"
    )]
    SecretGone {
        /// Its check value.
        check: String,
    },
    /// The notes can't be read.
    #[error(
        "the store's notes about identities can't be read: a newer version may have written them; \
         if so, run that version"
    )]
    Unreadable,
}

/// The result of comparing a configuration with the notes of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityComparison {
    /// The changes of identities.
    pub changes: Vec<IdentityChange>,
    /// Routes that are not configured any more. Their removal changes no identities.
    pub vanished: Vec<VanishedRoute>,
    /// Warnings for the operator about hashing secrets.
    pub remarks: Vec<&'static str>,
    /// The notes to store if there are no changes.
    pub next: Notes,
    /// The notes to store if the operator accepts new identities. They lack routes that are not
    /// configured any more.
    pub accepted: Notes,
}

impl std::fmt::Display for VanishedRoute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "route {:?} is not configured any more: requests for {} pass unprotected now, also \
             retries of requests that it protected; put the route back, or start once with \
             --accept-new-identities to forget it",
            self.route,
            self.targets.join(", ")
        )
    }
}

const WRITER_IS_NEW: &str = "the first hashing secret is new: gateways that still run without it \
                             would run duplicates again; first add a new secret after the old one \
                             on every gateway";
const SECRET_DROPPED: &str =
    "a hashing secret is no longer looked up: records under it are not found any more";

impl Identities {
    /// Makes the identities of routes, each with its methods and path patterns, under the secrets
    /// with these check values.
    pub fn of<'p>(
        routes: impl IntoIterator<Item = (&'p Policy, &'p [Method], &'p [String])>,
        secrets: Vec<String>,
    ) -> Identities {
        let identity = |(position, (policy, methods, paths)): (
            usize,
            (&'p Policy, &'p [Method], &'p [String]),
        )| {
            let targets = methods
                .iter()
                .flat_map(|method| paths.iter().map(move |path| RouteTarget::new(method, path)))
                .collect();
            (
                policy.route.to_string(),
                RouteIdentity {
                    rules: identity_rules(policy),
                    protects: policy.mode == Mode::Enforce,
                    targets,
                    position,
                },
            )
        };
        Identities { routes: routes.into_iter().enumerate().map(identity).collect(), secrets }
    }

    /// Compares these identities with the notes that a store keeps.
    pub fn compare(&self, kept: &Notes) -> IdentityComparison {
        let accepted = self.notes(&BTreeMap::new(), &BTreeMap::new());
        let Some((stored, targets)) = self.read(kept) else {
            let changes = vec![IdentityChange::Unreadable];
            return IdentityComparison {
                changes,
                vanished: Vec::new(),
                remarks: Vec::new(),
                next: accepted.clone(),
                accepted,
            };
        };
        let (mut changes, mut vanished, mut remarks) = (Vec::new(), Vec::new(), Vec::new());
        for (route, before) in &stored.routes {
            match self.routes.get(route) {
                Some(identity) if identity.rules == *before => {
                    changes.extend(self.taken_over(route, targets.get(route)))
                }
                Some(identity) => {
                    changes.push(IdentityChange::Remade {
                        route: route.clone(),
                        before: before.clone(),
                        now: identity.rules.clone(),
                    });
                }
                None => match self.removed(route, targets.get(route)) {
                    Ok(route) => vanished.push(route),
                    Err(change) => changes.push(change),
                },
            }
        }
        let looked_up = |check: &String| self.secrets.contains(check);
        match (stored.secrets.first(), self.secrets.first()) {
            (None, None) => {}
            (None, Some(_)) => changes.push(IdentityChange::HashingOn),
            (Some(_), None) => changes.push(IdentityChange::HashingOff),
            (Some(wrote), Some(_)) if !looked_up(wrote) => {
                changes.push(IdentityChange::SecretGone { check: wrote.clone() })
            }
            (Some(_), Some(writes)) => {
                if !stored.secrets.contains(writes) {
                    remarks.push(WRITER_IS_NEW);
                }
                if !stored.secrets.iter().all(looked_up) {
                    remarks.push(SECRET_DROPPED);
                }
            }
        }
        IdentityComparison {
            changes,
            vanished,
            remarks,
            next: self.notes(&stored.routes, &targets),
            accepted,
        }
    }

    /// Reads the notes that a store keeps. Returns `None` if a note can't be read.
    fn read(
        &self,
        kept: &Notes,
    ) -> Option<(StoredIdentities, BTreeMap<String, BTreeSet<RouteTarget>>)> {
        let stored = match &kept.identities {
            None => StoredIdentities {
                format: FORMAT,
                secrets: self.secrets.clone(),
                routes: BTreeMap::new(),
            },
            Some(text) => serde_json::from_str::<StoredIdentities>(text)
                .ok()
                .filter(|stored| stored.format == FORMAT)?,
        };
        let targets = match &kept.paths {
            None => BTreeMap::new(),
            Some(text) => {
                serde_json::from_str::<StoredTargets>(text)
                    .ok()
                    .filter(|stored| stored.format == FORMAT)?
                    .routes
            }
        };
        Some((stored, targets))
    }

    /// Returns the first route that protects exactly this target.
    fn protector(&self, target: &RouteTarget) -> Option<&String> {
        let protectors = self
            .routes
            .iter()
            .filter(|(_, identity)| identity.protects && identity.targets.contains(target));
        protectors.min_by_key(|(_, identity)| identity.position).map(|(route, _)| route)
    }

    /// Returns a change if a target that a route covered is now protected by another route. Only
    /// equal targets count. Overlapping ones are allowed, because a part of a route's requests
    /// often gets rules of its own.
    fn taken_over(
        &self,
        route: &str,
        targets: Option<&BTreeSet<RouteTarget>>,
    ) -> Option<IdentityChange> {
        targets.into_iter().flatten().find_map(|target| {
            let now = self.protector(target).filter(|now| *now != route)?;
            Some(IdentityChange::TakenOver {
                route: route.to_owned(),
                now: now.clone(),
                target: target.to_string(),
            })
        })
    }

    /// Returns the effect of a removed route: `Ok` if the route has only vanished, an error if
    /// identities would change.
    fn removed(
        &self,
        route: &str,
        targets: Option<&BTreeSet<RouteTarget>>,
    ) -> Result<VanishedRoute, IdentityChange> {
        let Some(targets) = targets.filter(|targets| !targets.is_empty()) else {
            return Err(IdentityChange::Gone { route: route.to_owned() });
        };
        for (now, identity) in self.routes.iter().filter(|(_, identity)| identity.protects) {
            if let Some(target) = targets
                .iter()
                .find(|target| identity.targets.iter().any(|other| target.overlaps(other)))
            {
                return Err(IdentityChange::Renamed {
                    route: route.to_owned(),
                    now: now.clone(),
                    target: target.to_string(),
                });
            }
        }
        Ok(VanishedRoute {
            route: route.to_owned(),
            targets: targets.iter().map(RouteTarget::to_string).collect(),
        })
    }

    /// Makes the notes to store. They contain the routes that protect, the routes that protected
    /// before and are switched off now, and the routes that protected before and are not configured
    /// any more. For each of these routes, the notes keep every request that the route ever
    /// covered, because the store still has its operations.
    fn notes(
        &self,
        kept: &BTreeMap<String, String>,
        covered: &BTreeMap<String, BTreeSet<RouteTarget>>,
    ) -> Notes {
        let is_kept = |(route, identity): &(&String, &RouteIdentity)| {
            identity.protects || kept.get(*route) == Some(&identity.rules)
        };
        let configured = self
            .routes
            .iter()
            .filter(is_kept)
            .map(|(route, identity)| (route.clone(), identity.rules.clone()));
        let vanished = kept.iter().filter(|(route, _)| !self.routes.contains_key(*route));
        let routes: BTreeMap<_, _> = configured
            .chain(vanished.map(|(route, rules)| (route.clone(), rules.clone())))
            .collect();
        let mut targets = covered.clone();
        targets.retain(|route, _| routes.contains_key(route));
        for (route, identity) in self.routes.iter().filter(|(_, identity)| identity.protects) {
            let own =
                identity.targets.iter().filter(|target| self.protector(target) == Some(route));
            targets.entry(route.clone()).or_default().extend(own.cloned());
        }
        // Lists and maps of strings can always be serialized.
        let identities = serde_json::to_string(&StoredIdentities {
            format: FORMAT,
            secrets: self.secrets.clone(),
            routes,
        });
        let paths = serde_json::to_string(&StoredTargets { format: FORMAT, routes: targets });
        Notes { identities: identities.ok(), paths: paths.ok() }
    }
}

/// Returns the rules of a policy that identify an operation, as text. Names that could be confused
/// with the text around them are quoted.
fn identity_rules(policy: &Policy) -> String {
    let mut text = String::from("the key");
    let shared = policy.scope == ScopeRule::Shared;
    let mut reads_body = policy.on_mismatch == OnMismatch::Supersede;
    if let KeySource::Derived(parts) = &policy.key.source {
        let parts: Vec<String> = parts.iter().map(part).collect();
        text = format!("a key derived from {}", parts.join(", "));
        reads_body |= parts.iter().any(|part| part == BODY_HASH);
        if parts.iter().any(|part| part == PATH) && policy.path_case == PathCase::Insensitive {
            text.push_str(" in any letter case");
        }
        // Writing to a string can't fail.
        match &policy.caller {
            CallerRule::Headers(names) if shared => {
                _ = write!(text, " and the caller by {}", list(names))
            }
            CallerRule::Cookie(name) if shared => {
                _ = write!(text, " and the caller by the cookie {}", name.as_str())
            }
            CallerRule::Headers(_) | CallerRule::Cookie(_) | CallerRule::Scope => {}
        }
    }
    if policy.by_path {
        text.push_str(" and the path");
        if policy.path_case == PathCase::Insensitive {
            text.push_str(" in any letter case");
        }
    }
    match &policy.scope {
        ScopeRule::Shared => text.push_str(", no scope"),
        ScopeRule::Headers(names) => _ = write!(text, ", scope by {}", list(names)),
        ScopeRule::Cookie(name) => _ = write!(text, ", scope by the cookie {}", name.as_str()),
        ScopeRule::Token(rule) => {
            _ = write!(
                text,
                ", scope by the claim {:?} of the token in {}",
                rule.claim, rule.header
            )
        }
        ScopeRule::ClientCertificate => {
            text.push_str(", scope by the client certificate's subject")
        }
    }
    if policy.on_mismatch == OnMismatch::Supersede {
        text.push_str(", one per fingerprint");
    }
    if reads_body {
        match &policy.fingerprint {
            FingerprintRule::Json(ignore) if ignore.is_empty() => {
                text.push_str(", bodies by value")
            }
            FingerprintRule::Json(ignore) => {
                let ignore: Vec<String> = ignore.iter().map(pointer).collect();
                let _ = write!(text, ", bodies by value without {}", ignore.join(", "));
            }
            FingerprintRule::Raw => text.push_str(", bodies as bytes"),
            FingerprintRule::WithoutBody => text.push_str(", without bodies"),
        }
    }
    text
}

const BODY_HASH: &str = "body_hash";
const PATH: &str = "path";

fn part(part: &KeyPart) -> String {
    match part {
        KeyPart::Path => PATH.to_owned(),
        KeyPart::Query(name) => format!("query {name:?}"),
        KeyPart::Header(name) => format!("header {name}"),
        KeyPart::Body(at) => format!("body {}", pointer(at)),
        KeyPart::Form(name) => format!("form {name:?}"),
        KeyPart::BodyHash => BODY_HASH.to_owned(),
    }
}

fn pointer(pointer: &Pointer) -> String {
    format!("{:?}", pointer.tokens())
}

fn list(names: &[HeaderName]) -> String {
    names.iter().map(HeaderName::as_str).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
