//! What a deployment's identities are made of: for every route the rules that make an operation's name, and which secrets
//! it is hashed under. The store keeps it, and a start that differs is seen before it bites.
//!
//! Danger: under another scope, route name or secret every key is new, and duplicates of what was answered run again.

use std::collections::BTreeMap;
use std::fmt::Write;

use http::HeaderName;
use serde::{Deserialize, Serialize};

use super::policy::{CallerRule, FingerprintRule, KeyPart, KeySource, Mode, OnMismatch, Policy, ScopeRule};
use crate::key::Pointer;
use crate::key::path::PathCase;

/// The format that this version writes.
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
}

/// As it is stored.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    format: u32,
    secrets: Vec<String>,
    routes: BTreeMap<String, String>,
}

/// A way in which a configuration would change identities.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Change {
    /// A route is gone.
    #[error("route {route:?} is not configured any more, and its name is part of its operations' identity: give the name back")]
    Gone {
        /// Its name.
        route: String,
    },
    /// A route's rules are others.
    #[error("route {route:?} makes its operations' identity of {now}, and made it of {before}: change it back")]
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
    #[error("records were written under the hashing secret with the check value {check}, which is not configured: put it back")]
    SecretGone {
        /// Its check value.
        check: String,
    },
    /// What is kept can't be read.
    #[error("what the store keeps of identities can't be read: it may be of a newer version, which then has to be run")]
    Unreadable,
}

/// What a comparison found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compared {
    /// What would change identities.
    pub changes: Vec<Change>,
    /// What an operator should know all the same, in words.
    pub remarks: Vec<&'static str>,
    /// What the store is to keep if the configuration is accepted.
    pub next: String,
}

const WRITER_IS_NEW: &str = "the hashing secret that writes was not looked up before: gateways that still run without it would \
                             run duplicates again; add a new secret behind the old one everywhere first";
const SECRET_DROPPED: &str = "a hashing secret is no longer looked up: what is still kept under it is not found any more";

impl Identities {
    /// What routes and the check values of secrets make.
    pub fn of<'p>(policies: impl IntoIterator<Item = &'p Policy>, secrets: Vec<String>) -> Identities {
        let made = |policy: &Policy| Made { of: made_of(policy), protects: policy.mode == Mode::Enforce };
        Identities { routes: policies.into_iter().map(|policy| (policy.route.to_string(), made(policy))).collect(), secrets }
    }

    /// Compares with what the store keeps.
    pub fn compare(&self, kept: Option<&str>) -> Compared {
        let stored = match kept.map(serde_json::from_str::<Stored>) {
            None => Stored { format: FORMAT, secrets: self.secrets.clone(), routes: BTreeMap::new() },
            Some(Ok(stored)) if stored.format == FORMAT => stored,
            Some(_) => {
                let next = self.text(&BTreeMap::new());
                return Compared { changes: vec![Change::Unreadable], remarks: Vec::new(), next };
            }
        };
        let changed = stored.routes.iter().filter_map(|(route, before)| match self.routes.get(route) {
            None => Some(Change::Gone { route: route.clone() }),
            Some(made) if made.of != *before => {
                Some(Change::Remade { route: route.clone(), before: before.clone(), now: made.of.clone() })
            }
            Some(_) => None,
        });
        let mut changes: Vec<Change> = changed.collect();
        let mut remarks = Vec::new();
        let looked_up = |check: &String| self.secrets.contains(check);
        match (stored.secrets.first(), self.secrets.first()) {
            (None, None) => {}
            (None, Some(_)) => changes.push(Change::HashingOn),
            (Some(_), None) => changes.push(Change::HashingOff),
            (Some(wrote), Some(_)) if !looked_up(wrote) => changes.push(Change::SecretGone { check: wrote.clone() }),
            (Some(_), Some(writes)) => {
                if !stored.secrets.contains(writes) {
                    remarks.push(WRITER_IS_NEW);
                }
                if !stored.secrets.iter().all(looked_up) {
                    remarks.push(SECRET_DROPPED);
                }
            }
        }
        Compared { changes, remarks, next: self.text(&stored.routes) }
    }

    /// What to keep: of the routes that protect, and of those that did and are only switched off.
    fn text(&self, kept: &BTreeMap<String, String>) -> String {
        let is_kept = |(route, made): &(&String, &Made)| made.protects || kept.get(*route) == Some(&made.of);
        let routes = self.routes.iter().filter(is_kept).map(|(route, made)| (route.clone(), made.of.clone())).collect();
        // Strings in lists and maps can always be written.
        serde_json::to_string(&Stored { format: FORMAT, secrets: self.secrets.clone(), routes }).unwrap_or_default()
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
        if let (true, CallerRule::Headers(names)) = (shared, &policy.caller) {
            // Writing to a string can't fail.
            let _ = write!(text, " and the caller by {}", list(names));
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
        ScopeRule::Token(rule) => _ = write!(text, ", scope by the claim {:?} of the token in {}", rule.claim, rule.header),
        ScopeRule::ClientCertificate => text.push_str(", scope by the client certificate's subject"),
    }
    if policy.on_mismatch == OnMismatch::Supersede {
        text.push_str(", one per fingerprint");
    }
    if reads_body {
        match &policy.fingerprint {
            FingerprintRule::Json(ignore) if ignore.is_empty() => text.push_str(", bodies by value"),
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
mod tests {
    use super::*;
    use crate::engine::tests::policy;

    fn named(route: &str) -> Policy {
        Policy { route: route.into(), ..policy() }
    }

    fn scoped(route: &str, header: &'static str) -> Policy {
        Policy { scope: ScopeRule::Headers(vec![HeaderName::from_static(header)]), ..named(route) }
    }

    fn of(policies: &[Policy], secrets: &[&str]) -> Identities {
        Identities::of(policies, secrets.iter().map(|check| (*check).to_owned()).collect())
    }

    fn derived(parts: Vec<KeyPart>) -> Policy {
        let key = super::super::KeyRule { source: KeySource::Derived(parts), ..policy().key };
        Policy { key, ..policy() }
    }

    /// What a configuration changes of what another left behind.
    fn changes(before: &Identities, now: &Identities) -> Vec<Change> {
        now.compare(Some(&before.compare(None).next)).changes
    }

    #[test]
    fn what_is_stored_stays_readable_for_ever() {
        let compared = of(&[scoped("payments", "x-account"), named("refunds")], &["0a", "0b"]).compare(None);
        let text = r#"{"format":1,"secrets":["0a","0b"],"routes":{"payments":"the key, scope by x-account","refunds":"the key, no scope"}}"#;
        assert_eq!((compared.changes.as_slice(), compared.next.as_str()), ([].as_slice(), text));
    }

    #[test]
    fn a_route_that_is_gone_or_made_of_something_else_is_told_by_name() {
        let before = of(&[scoped("payments", "x-account"), named("refunds")], &[]);
        assert_eq!(changes(&before, &of(&[scoped("payments", "x-account")], &[])), [Change::Gone { route: "refunds".into() }]);
        let remade = changes(&before, &of(&[scoped("payments", "x-api-key"), named("refunds")], &[]));
        let (before_text, now) = ("the key, scope by x-account".into(), "the key, scope by x-api-key".into());
        assert_eq!(remade, [Change::Remade { route: "payments".into(), before: before_text, now }]);
        assert!(remade[0].to_string().contains("\"payments\""));
        let added = of(&[named("refunds"), named("payouts"), scoped("payments", "x-account")], &[]);
        let compared = added.compare(Some(&before.compare(None).next));
        assert_eq!(compared.changes, [], "the order means nothing, and a new route is recorded");
        assert!(compared.next.contains("payouts"));
    }

    #[test]
    fn what_makes_identities_counts_and_nothing_else() {
        let supersede = Policy { on_mismatch: OnMismatch::Supersede, ..policy() };
        let header = |name: &'static str| HeaderName::from_static(name);
        let caller = |name| CallerRule::Headers(vec![header(name)]);
        let by_path = Policy { by_path: true, ..policy() };
        let different = [
            policy(),
            scoped("payments", "a"),
            Policy { scope: ScopeRule::Headers(vec![header("a"), header("b")]), ..policy() },
            supersede.clone(),
            Policy { fingerprint: FingerprintRule::Raw, ..supersede.clone() },
            by_path.clone(),
            Policy { path_case: PathCase::Insensitive, ..by_path },
            derived(vec![KeyPart::Path]),
            derived(vec![KeyPart::Path, KeyPart::BodyHash]),
            Policy { fingerprint: FingerprintRule::Raw, ..derived(vec![KeyPart::Path, KeyPart::BodyHash]) },
            derived(vec![KeyPart::Query("a".into()), KeyPart::Query("b".into())]),
            derived(vec![KeyPart::Query("a\", query \"b".into())]),
            Policy { caller: caller("a"), ..derived(vec![KeyPart::Path]) },
        ];
        let texts: std::collections::BTreeSet<String> = different.iter().map(made_of).collect();
        assert_eq!(texts.len(), different.len(), "{texts:?}");
        let same = [
            Policy { fingerprint: FingerprintRule::Raw, ..policy() },
            Policy { caller: caller("a"), ..policy() },
            Policy { retention: policy().retention * 2, tombstone: policy().retention, lease: policy().lease * 2, ..policy() },
            Policy { on_mismatch: OnMismatch::Replay, ..policy() },
        ];
        same.iter().for_each(|policy| assert_eq!(made_of(policy), made_of(&different[0])));
    }

    #[test]
    fn every_rule_is_written_in_words_that_stay() {
        let supersede = |fingerprint| Policy { on_mismatch: OnMismatch::Supersede, fingerprint, ..policy() };
        let pointers = |texts: &[&str]| texts.iter().filter_map(|text| Pointer::parse(text)).collect::<Vec<_>>();
        let header = HeaderName::from_static("x-user");
        let parts = [KeyPart::Path, KeyPart::Query("page".into()), KeyPart::Header(header.clone()), KeyPart::BodyHash];
        let parts = [&parts[..], &[KeyPart::Body(pointers(&["/order/id"]).remove(0))]].concat();
        let rule = super::super::TokenRule { header, claim: "sub".into(), issuer: None, audience: None };
        let rows = [
            (policy(), "the key, no scope"),
            (Policy { scope: ScopeRule::ClientCertificate, ..policy() }, "the key, scope by the client certificate's subject"),
            (
                Policy { scope: ScopeRule::Token(rule.into()), ..policy() },
                r#"the key, scope by the claim "sub" of the token in x-user"#,
            ),
            (supersede(FingerprintRule::Json(vec![])), "the key, no scope, one per fingerprint, bodies by value"),
            (
                supersede(FingerprintRule::Json(pointers(&["/a", "/b/0"]))),
                r#"the key, no scope, one per fingerprint, bodies by value without ["a"], ["b", "0"]"#,
            ),
            (supersede(FingerprintRule::Raw), "the key, no scope, one per fingerprint, bodies as bytes"),
            (supersede(FingerprintRule::WithoutBody), "the key, no scope, one per fingerprint, without bodies"),
            (
                derived(parts),
                "a key derived from path, query \"page\", header x-user, body_hash, body [\"order\", \"id\"] and the caller by \
                 authorization, no scope, bodies by value",
            ),
            (
                Policy { scope: scoped("payments", "x-account").scope, ..derived(vec![KeyPart::Path]) },
                "a key derived from path, scope by x-account",
            ),
            (
                Policy { path_case: PathCase::Insensitive, ..derived(vec![KeyPart::Path]) },
                "a key derived from path in any letter case and the caller by authorization, no scope",
            ),
            (Policy { path_case: PathCase::Insensitive, ..policy() }, "the key, no scope"),
            (Policy { by_path: true, ..policy() }, "the key and the path, no scope"),
            (
                Policy { by_path: true, path_case: PathCase::Insensitive, ..policy() },
                "the key and the path in any letter case, no scope",
            ),
        ];
        rows.iter().for_each(|(policy, text)| assert_eq!(made_of(policy), *text));
    }

    #[test]
    fn a_route_is_kept_from_when_it_protects() {
        let watching = Policy { mode: Mode::Shadow, ..scoped("payments", "a") };
        assert_eq!(changes(&of(std::slice::from_ref(&watching), &[]), &of(&[scoped("payments", "b")], &[])), []);
        // One that is switched off is remembered: its records are still there.
        let protected = of(&[scoped("payments", "a")], &[]).compare(None).next;
        let off = of(&[watching], &[]).compare(Some(&protected));
        assert_eq!((off.changes.as_slice(), &off.next), ([].as_slice(), &protected));
        assert_eq!(of(&[scoped("payments", "b")], &[]).compare(Some(&off.next)).changes.len(), 1);
    }

    /// Check values before and now, and what is said of them.
    type Row<'r> = (&'r [&'r str], &'r [&'r str], Vec<Change>, &'r [&'r str]);

    #[test]
    fn secrets_rotate_and_are_not_lost() {
        let secrets = |checks: &[&str]| of(&[policy()], checks);
        let gone = |check: &str| vec![Change::SecretGone { check: check.into() }];
        let rows: &[Row<'_>] = &[
            (&[], &[], vec![], &[]),
            (&[], &["new"], vec![Change::HashingOn], &[]),
            (&["old"], &[], vec![Change::HashingOff], &[]),
            (&["old"], &["old"], vec![], &[]),
            (&["old"], &["old", "new"], vec![], &[]),
            (&["old", "new"], &["new", "old"], vec![], &[]),
            (&["new", "old"], &["new"], vec![], &[SECRET_DROPPED]),
            (&["new", "old"], &["old", "new"], vec![], &[]),
            (&["old"], &["new", "old"], vec![], &[WRITER_IS_NEW]),
            (&["old"], &["new"], gone("old"), &[]),
            // Dropped before another wrote.
            (&["old", "new"], &["new"], gone("old"), &[]),
        ];
        for (before, now, changes, remarks) in rows {
            let compared = secrets(now).compare(Some(&secrets(before).compare(None).next));
            assert_eq!((&compared.changes, compared.remarks.as_slice()), (changes, *remarks), "{before:?} to {now:?}");
        }
    }

    #[test]
    fn what_can_not_be_read_is_not_taken_for_nothing() {
        for kept in
            ["", "{", "{}", r#"{"format":2,"secrets":[],"routes":{}}"#, r#"{"format":1,"secrets":[],"routes":{},"more":1}"#]
        {
            let compared = of(&[policy()], &[]).compare(Some(kept));
            assert_eq!(compared.changes, [Change::Unreadable], "{kept}");
            assert_eq!(of(&[policy()], &[]).compare(Some(&compared.next)).changes, [], "what is accepted is readable");
        }
    }
}
