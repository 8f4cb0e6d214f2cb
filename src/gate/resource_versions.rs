//! Keeps digests of the versions of a resource, one for each tag that a client got, and finds them
//! for a merge.

use tokio::time::Instant;

use super::state::Gate;
use crate::engine::{EntityTag, OnStale, Policy, ResourceRule, TagHistory, kept_versions};
use crate::key::{MemberDigests, Slot};
use crate::record::{Fence, Held, PrivateContent, State, Version};
use crate::refusal::Refusal;
use crate::store::{Events, StoreError, Swap};

/// How often a version is written, if other gateways write other versions at the same time.
const WRITES_MAX: usize = 4;

impl Gate {
    /// Keeps the digests of a version under `on_stale = "merge"`, because a client gets its tag. If
    /// the store fails, or the representation has no digests, a write on this version is not merged
    /// later.
    pub(super) async fn keep_version(
        &self,
        policy: &Policy,
        rule: &ResourceRule,
        resource: &Slot,
        tag: &EntityTag,
        representation: &[u8],
    ) {
        let slot = resource.of_versions();
        if rule.on_stale != OnStale::Merge || self.kept_versions.has(&slot, tag) {
            return;
        }
        let salt = self.entropy.salt();
        let Some(digests) = MemberDigests::of(representation, salt) else { return };
        match self.write_version(policy, rule, &slot, tag, &digests).await {
            // Written again after half of its time, so that it is kept for `keep` from each read.
            Ok(true) => {
                let until = Instant::now() + rule.keep / 2;
                self.kept_versions.remember(slot, tag.clone(), until);
            }
            Ok(false) => {}
            Err(error) => {
                self.meter.store_errors.inc();
                tracing::debug!(route = %policy.route, %error, "version of a resource not kept");
            }
        }
    }

    /// Returns whether the version was written.
    async fn write_version(
        &self,
        policy: &Policy,
        rule: &ResourceRule,
        slot: &Slot,
        tag: &EntityTag,
        digests: &MemberDigests,
    ) -> Result<bool, StoreError> {
        let mut held = self.store.records.load(slot).await?;
        for _ in 0..WRITES_MAX {
            let mut history = held.as_ref().and_then(history_of).unwrap_or_default();
            if !history.keep(tag, digests) {
                return Ok(false);
            }
            let over = held.as_ref().map(|held| held.record.version);
            let random = (Fence(self.entropy.next()), Version(self.entropy.next()));
            let now_unix_ms = self.clock.unix_ms();
            // Half a `keep` more, because a version is written again only after that time.
            let next =
                kept_versions(&history, over, random, now_unix_ms, policy, rule.keep * 3 / 2);
            let records = &self.store.records;
            held =
                match records.write(slot, over, &next.record, next.lifetime, Events::NONE).await? {
                    Swap::Stored => return Ok(true),
                    Swap::Stale(held) => held,
                    Swap::Large(_) => records.load(slot).await?,
                };
        }
        Ok(false)
    }

    /// Returns the digests of the newest kept version with one of these tags.
    ///
    /// # Errors
    /// The store failed.
    pub(super) async fn kept_version(
        &self,
        resource: &Slot,
        tags: &[EntityTag],
    ) -> Result<Option<MemberDigests>, Refusal> {
        let slot = resource.of_versions();
        let held = self.store.records.load(&slot).await;
        let held = held.map_err(|error| self.store_failed(&slot, &error))?;
        Ok(held.as_ref().and_then(history_of).and_then(|history| history.find(tags)))
    }
}

/// Returns the history in a record, if this gateway can open it.
fn history_of(held: &Held) -> Option<TagHistory> {
    match &held.record.state {
        State::Versions { content: PrivateContent::Open(content) } => {
            TagHistory::decode(content.clone())
        }
        _ => None,
    }
}
