//! What a deployment's identities are made of: for every route the rules that make an operation's name, and which secrets
//! it is hashed under. The store keeps it, and a start that differs is seen before it bites.
//!
//! Danger: under another scope, route name or secret every key is new, and duplicates of what was answered run again.
//!
//! A route that is not configured any more changes no identity: its requests pass unprotected. But if another route takes its
//! requests, their operations get that route's name. So the store also keeps which requests each route covers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use http::{HeaderName, Method};
use serde::{Deserialize, Serialize};

use super::policy::{
    CallerRule, FingerprintRule, KeyPart, KeySource, Mode, OnMismatch, Policy, ScopeRule,
};
use crate::key::Pointer;
use crate::key::path::PathCase;
use targets::Target;

mod targets;

/// The format of both notes that this version writes.
const FORMAT: u32 = 1;

/// What identities are made of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identities {
    /// By the route's name.
    routes: BTreeMap<String, Made>,
    /// Check values of the secrets; the first writes. None: plain hashes.
    secrets: Vec<String>,
}

/// The rules that make a route's identities.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Made {
    /// In words that two versions write alike: this is a storage format.
    of: String,
    /// Whether the route protects: one that only watches, or does nothing, has nothing to lose.
    protects: bool,
    /// The requests that it covers.
    targets: BTreeSet<Target>,
    /// Its place among the routes: of those that cover a request the first one takes it.
    place: usize,
}

/// The note of identities, as it is stored. A route stays in it when it is not configured any more.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    format: u32,
    secrets: Vec<String>,
    routes: BTreeMap<String, String>,
}

/// The note of paths, as it is stored: for each route all requests that it covered since the note is kept. Routes that only
/// earlier versions have written are left out.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredTargets {
    format: u32,
    routes: BTreeMap<String, BTreeSet<Target>>,
}

/// The two notes that a store keeps of identities; `None` where it keeps none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notes {
    /// What identities are made of.
    pub identities: Option<String>,
    /// Which requests the routes cover.
    pub paths: Option<String>,
}

/// A route that protected operations and is not configured any more. No route of the configuration protects its requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vanished {
    /// Its name.
    pub route: String,
    /// The requests that it covered, each as a method and a path pattern.
    pub targets: Vec<String>,
}

/// A way in which a configuration would change identities.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Change {
    /// A route is not configured any more, and the store does not have its paths.
    #[error(
        "route {route:?} is not configured any more, and its name is part of its operations' identity: give the name back (an \
         earlier version wrote the store, so its paths are unknown, and another route may cover them)"
    )]
    Gone {
        /// Its name.
        route: String,
    },
    /// A route is not configured any more, and another one protects its requests.
    #[error(
        "route {route:?} is not configured any more, and its name is part of its operations' identity: route {now:?} covers \
         {target} in its place; give the name back"
    )]
    Renamed {
        /// Its name.
        route: String,
        /// The name of the other route.
        now: String,
        /// A request that both cover: a method and the path pattern of the first route.
        target: String,
    },
    /// A route is configured, and another one protects requests that it protected.
    #[error(
        "route {now:?} takes the requests for {target}, which route {route:?} protected: their retries would be new operations; \
         put {route:?} in front of it"
    )]
    TakenOver {
        /// Its name.
        route: String,
        /// The name of the other route.
        now: String,
        /// The requests: a method and a path pattern that both routes had.
        target: String,
    },
    /// A route's rules are others.
    #[error(
        "route {route:?} makes its operations' identity of {now}, and made it of {before}: change it back"
    )]
    Remade {
        /// Its name.
        route: String,
        /// What the store keeps.
        before: String,
        /// What is configured.
        now: String,
    },
    /// Records are hashed plainly.
    #[error("[hashing] is configured, and records were written without: leave it out")]
    HashingOn,
    /// Records are hashed under a secret.
    #[error("[hashing] is not configured, and records were written under a secret: put it back")]
    HashingOff,
    /// The secret that wrote is gone.
    #[error(
        "records were written under the hashing secret with the check value {check}, which is not configured: put it back"
    )]
    SecretGone {
        /// Its check value.
        check: String,
    },
    /// What is kept can't be read.
    #[error(
        "what the store keeps of identities can't be read: it may be of a newer version, which then has to be run"
    )]
    Unreadable,
}

/// What a comparison found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compared {
    /// What would change identities.
    pub changes: Vec<Change>,
    /// Routes that are not configured any more, without a change of identities.
    pub vanished: Vec<Vanished>,
    /// What an operator should know all the same, in words.
    pub remarks: Vec<&'static str>,
    /// What the store is to keep if nothing changes identities.
    pub next: Notes,
    /// What the store is to keep if the operator accepts new identities: nothing of routes that are not configured any more.
    pub accepted: Notes,
}

impl std::fmt::Display for Vanished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "route {:?} is not configured any more: requests for {} pass unprotected now, also retries of what it protected; put \
             the route back, or start once with --accept-new-identities to forget it",
            self.route,
            self.targets.join(", ")
        )
    }
}

const WRITER_IS_NEW: &str = "the hashing secret that writes was not looked up before: gateways that still run without it would \
                             run duplicates again; add a new secret behind the old one everywhere first";
const SECRET_DROPPED: &str =
    "a hashing secret is no longer looked up: what is still kept under it is not found any more";

impl Identities {
    /// What routes, each with its methods and path patterns, and the check values of secrets make.
    pub fn of<'p>(
        routes: impl IntoIterator<Item = (&'p Policy, &'p [Method], &'p [String])>,
        secrets: Vec<String>,
    ) -> Identities {
        let made = |(place, (policy, methods, paths)): (
            usize,
            (&'p Policy, &'p [Method], &'p [String]),
        )| {
            let targets = methods
                .iter()
                .flat_map(|method| paths.iter().map(move |path| Target::new(method, path)))
                .collect();
            (
                policy.route.to_string(),
                Made {
                    of: made_of(policy),
                    protects: policy.mode == Mode::Enforce,
                    targets,
                    place,
                },
            )
        };
        Identities { routes: routes.into_iter().enumerate().map(made).collect(), secrets }
    }

    /// Compares with what the store keeps.
    pub fn compare(&self, kept: &Notes) -> Compared {
        let accepted = self.notes(&BTreeMap::new(), &BTreeMap::new());
        let Some((stored, targets)) = self.read(kept) else {
            let changes = vec![Change::Unreadable];
            return Compared {
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
                Some(made) if made.of == *before => {
                    changes.extend(self.taken_over(route, targets.get(route)))
                }
                Some(made) => {
                    changes.push(Change::Remade {
                        route: route.clone(),
                        before: before.clone(),
                        now: made.of.clone(),
                    });
                }
                None => match self.without(route, targets.get(route)) {
                    Ok(route) => vanished.push(route),
                    Err(change) => changes.push(change),
                },
            }
        }
        let looked_up = |check: &String| self.secrets.contains(check);
        match (stored.secrets.first(), self.secrets.first()) {
            (None, None) => {}
            (None, Some(_)) => changes.push(Change::HashingOn),
            (Some(_), None) => changes.push(Change::HashingOff),
            (Some(wrote), Some(_)) if !looked_up(wrote) => {
                changes.push(Change::SecretGone { check: wrote.clone() })
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
        Compared {
            changes,
            vanished,
            remarks,
            next: self.notes(&stored.routes, &targets),
            accepted,
        }
    }

    /// Reads the notes that a store keeps; `None` where one can't be read.
    fn read(&self, kept: &Notes) -> Option<(Stored, BTreeMap<String, BTreeSet<Target>>)> {
        let stored = match &kept.identities {
            None => {
                Stored { format: FORMAT, secrets: self.secrets.clone(), routes: BTreeMap::new() }
            }
            Some(text) => serde_json::from_str::<Stored>(text)
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

    /// The first of the routes that protect the requests of a target by its very pattern.
    fn taker(&self, target: &Target) -> Option<&String> {
        let takers =
            self.routes.iter().filter(|(_, made)| made.protects && made.targets.contains(target));
        takers.min_by_key(|(_, made)| made.place).map(|(route, _)| route)
    }

    /// Returns the change where requests that a route covered, by the very pattern, now go to another one that protects. Patterns
    /// that only overlap may: a part of a route's requests is often given rules of its own.
    fn taken_over(&self, route: &str, targets: Option<&BTreeSet<Target>>) -> Option<Change> {
        targets.into_iter().flatten().find_map(|target| {
            let now = self.taker(target).filter(|now| *now != route)?;
            Some(Change::TakenOver {
                route: route.to_owned(),
                now: now.clone(),
                target: target.to_string(),
            })
        })
    }

    /// Returns what it means that a route is not configured any more.
    fn without(&self, route: &str, targets: Option<&BTreeSet<Target>>) -> Result<Vanished, Change> {
        let Some(targets) = targets.filter(|targets| !targets.is_empty()) else {
            return Err(Change::Gone { route: route.to_owned() });
        };
        for (now, made) in self.routes.iter().filter(|(_, made)| made.protects) {
            if let Some(target) = targets
                .iter()
                .find(|target| made.targets.iter().any(|other| target.overlaps(other)))
            {
                return Err(Change::Renamed {
                    route: route.to_owned(),
                    now: now.clone(),
                    target: target.to_string(),
                });
            }
        }
        Ok(Vanished {
            route: route.to_owned(),
            targets: targets.iter().map(Target::to_string).collect(),
        })
    }

    /// What to keep: of the routes that protect, of those that did and are only switched off, and of those that did and are not
    /// configured any more. Of the requests that a route covered none is forgotten: its operations from before are still there.
    fn notes(
        &self,
        kept: &BTreeMap<String, String>,
        covered: &BTreeMap<String, BTreeSet<Target>>,
    ) -> Notes {
        let is_kept =
            |(route, made): &(&String, &Made)| made.protects || kept.get(*route) == Some(&made.of);
        let configured = self
            .routes
            .iter()
            .filter(is_kept)
            .map(|(route, made)| (route.clone(), made.of.clone()));
        let vanished = kept.iter().filter(|(route, _)| !self.routes.contains_key(*route));
        let routes: BTreeMap<_, _> =
            configured.chain(vanished.map(|(route, of)| (route.clone(), of.clone()))).collect();
        let mut targets = covered.clone();
        targets.retain(|route, _| routes.contains_key(route));
        for (route, made) in self.routes.iter().filter(|(_, made)| made.protects) {
            let own = made.targets.iter().filter(|target| self.taker(target) == Some(route));
            targets.entry(route.clone()).or_default().extend(own.cloned());
        }
        // Strings in lists and maps can always be written.
        let identities = serde_json::to_string(&Stored {
            format: FORMAT,
            secrets: self.secrets.clone(),
            routes,
        });
        let paths = serde_json::to_string(&StoredTargets { format: FORMAT, routes: targets });
        Notes { identities: identities.ok(), paths: paths.ok() }
    }
}

/// The rules of a policy that make an operation's identity. Names are quoted where they could run into each other.
fn made_of(policy: &Policy) -> String {
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
