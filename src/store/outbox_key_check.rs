//! Checks, before a gateway uses a store, that it has every key under which something in the outbox
//! is sealed.
//!
//! The store has a note with the keys of its gateways. Only a gateway that lacks one of these keys
//! reads the outbox: to find out whether something is still sealed under that key.

use std::collections::{BTreeMap, BTreeSet};

use super::Store;
use super::error::{ListError, StoreError};
use super::identities::Note;
use super::outbox::EventContent;
use super::outbox_contents::StoredContents;
use super::sealing::key_name;

/// Maximum number of checks. A check is repeated if another gateway has written the note in the
/// meantime.
const TRIES_MAX: usize = 16;

/// Why a gateway with these keys must not use the store.
#[derive(Debug, thiserror::Error)]
pub enum OutboxKeyError {
    /// Something is sealed under keys that the gateway does not have.
    #[error("{}", missing_text(.0))]
    Missing(BTreeMap<String, SealedCount>),
    /// The store failed. The check may be repeated.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Numbers of events that are sealed under one key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SealedCount {
    /// Waiting events.
    pub waiting: u64,
    /// Dead letters.
    pub dead: u64,
}

fn missing_text(missing: &BTreeMap<String, SealedCount>) -> String {
    let line = |(key, count): (&String, &SealedCount)| {
        let SealedCount { waiting, dead } = count;
        format!("\n  - \"{key}\": {waiting} waiting events, {dead} dead letters")
    };
    format!(
        "events of the outbox are sealed under keys that [encryption] does not name, so that they \
         could never be delivered:{}\n\
         Put these keys back, after the first one. Then run `onceward outbox reseal`, and remove \
         them again.",
        missing.iter().map(line).collect::<String>()
    )
}

/// Checks that `keys`, the names of the configured keys, include every key under which a waiting
/// event or a dead letter is sealed. Then writes their names to the store's note.
///
/// # Errors
/// A key is missing, or the store failed.
pub async fn check_outbox_keys(store: &Store, keys: &[String]) -> Result<(), OutboxKeyError> {
    let configured: BTreeSet<&str> = keys.iter().map(String::as_str).collect();
    for _ in 0..TRIES_MAX {
        let note = store.identities.note(Note::OutboxKeys).await?;
        // Without a note, a version that did not write it may have sealed events.
        let known: Option<BTreeSet<String>> =
            note.as_deref().and_then(|note| serde_json::from_str(note).ok());
        let is_complete =
            known.is_some_and(|known| known.iter().all(|key| configured.contains(key.as_str())));
        if !is_complete {
            let missing = sealed_under_others(store, &configured).await?;
            if !missing.is_empty() {
                return Err(OutboxKeyError::Missing(missing));
            }
        }
        let next = serde_json::json!(configured).to_string();
        if note.as_deref() == Some(&*next)
            || store.identities.set_note(Note::OutboxKeys, note.as_deref(), &next).await?
        {
            return Ok(());
        }
    }
    Err(StoreError::NotApplied("other gateways keep changing the note of keys".into()).into())
}

/// Counts the events that are sealed under other keys, by the name of the key.
async fn sealed_under_others(
    store: &Store,
    configured: &BTreeSet<&str>,
) -> Result<BTreeMap<String, SealedCount>, StoreError> {
    let mut found: BTreeMap<String, SealedCount> = BTreeMap::new();
    let mut cursor: Option<String> = None;
    loop {
        let page = match store.contents.contents(cursor.as_deref()).await {
            Ok(page) => page,
            Err(ListError::Store(error)) => return Err(error),
            Err(ListError::Cursor) => {
                return Err(StoreError::NotApplied("the store refused its own cursor".into()));
            }
        };
        for StoredContents { content, report, .. } in &page.contents {
            let keys: BTreeSet<&str> =
                [Some(content), report.as_ref()].into_iter().flatten().filter_map(key_of).collect();
            for key in keys.difference(configured) {
                let count = found.entry((*key).to_owned()).or_default();
                match report {
                    None => count.waiting += 1,
                    Some(_) => count.dead += 1,
                }
            }
        }
        match page.cursor {
            None => return Ok(found),
            next => cursor = next,
        }
    }
}

/// Returns the name of the key that a content is sealed under. `None` for a plain one, and for one
/// that no key opens because another program wrote it.
fn key_of(content: &EventContent) -> Option<&str> {
    match content {
        EventContent::Plain(_) => None,
        EventContent::Sealed(sealed) => key_name(sealed),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::key::Space;
    use crate::record::Lifetime;
    use crate::store::dead_letters::{Burial, DeadLetterKind};
    use crate::store::memory::Memory;
    use crate::store::outbox::{EventKey, EventOrder, OutboxEvent, RelayFence};
    use crate::store::resealing::{Resealed, Resealer};
    use crate::store::sealed::{KEY_BYTES, Sealed, SealingKey, SealingKeys};
    use crate::store::suite::{completed, slot};
    use crate::store::{Events, IdentityNotes};

    const RELAY: RelayFence = RelayFence(1);

    fn keys(names: &[&str]) -> Arc<SealingKeys> {
        let key = |name: &&str| SealingKey::new(name, &[name.as_bytes()[0]; KEY_BYTES]).unwrap();
        Arc::new(SealingKeys::new(names.iter().map(key).collect()).unwrap())
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn event(n: u64) -> EventKey {
        let order = EventOrder { opened_unix_ms: 1, version: 1, number: 0 };
        EventKey { sink: "ledger".into(), slot: slot(Space::Enforced, n), order }
    }

    /// Returns the text of the n-th event.
    fn text(n: u64) -> EventContent {
        EventContent::Plain(Bytes::from(format!("event {n}")))
    }

    /// A store with some events that are sealed under the first of the keys.
    async fn with_events(memory: &Arc<Memory>, keys: Arc<SealingKeys>, numbers: &[u64]) -> Store {
        let store = Sealed::store(memory.clone().into(), keys);
        for n in numbers {
            let EventKey { sink, slot, order } = event(*n);
            let outbox = [OutboxEvent { sink, order, content: text(*n) }];
            let events = Events { outbox: &outbox, ..Events::NONE };
            let keep = Duration::from_secs(60);
            let lifetime = Lifetime { keep, due: None, tombstone: None };
            store.records.write(&slot, None, &completed(1), lifetime, events).await.unwrap();
        }
        store
    }

    /// Buries an event.
    async fn bury(store: &Store, n: u64) {
        let owner = store.outbox.partition_owners().await.unwrap()[0];
        assert!(store.outbox.own_partition(0, RELAY, owner).await.unwrap());
        let report = EventContent::Plain(Bytes::from_static(b"refused"));
        let burial = Burial { kind: DeadLetterKind::Receiver, report };
        assert!(store.outbox.bury(RELAY, &event(n), 0, &burial).await.unwrap());
    }

    async fn missing(store: &Store, keys: &[&str]) -> Vec<(String, u64, u64)> {
        match check_outbox_keys(store, &names(keys)).await {
            Ok(()) => Vec::new(),
            Err(OutboxKeyError::Missing(missing)) => {
                let count = |(key, count): (String, SealedCount)| (key, count.waiting, count.dead);
                missing.into_iter().map(count).collect()
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn memory() -> Arc<Memory> {
        Arc::new(Memory::new(Arc::new(|| 1000)))
    }

    #[tokio::test]
    async fn a_key_that_something_is_sealed_under_is_missed_until_all_is_sealed_anew() {
        let memory = memory();
        let old = with_events(&memory, keys(&["old"]), &[1, 2, 3]).await;
        bury(&old, 3).await;
        assert_eq!(missing(&old, &["old"]).await, []);
        let expected = vec![("old".to_owned(), 2, 1)];
        assert_eq!(missing(&old, &["new"]).await, expected);
        assert_eq!(missing(&old, &[]).await, expected);
        let refusal = check_outbox_keys(&old, &names(&["new"])).await.unwrap_err().to_string();
        for part in ["\"old\": 2 waiting events, 1 dead letters", "onceward outbox reseal"] {
            assert!(refusal.contains(part), "{refusal}");
        }

        let both = keys(&["new", "old"]);
        assert_eq!(missing(&old, &["new", "old"]).await, []);
        let resealer = Resealer::new(old.contents.clone(), both);
        let (mut resealed, mut cursor) = (0, None);
        loop {
            let done = resealer.reseal(cursor.as_deref()).await.unwrap();
            resealed += done.resealed;
            assert_eq!(done.unreadable, 0);
            let Some(next) = done.cursor else { break };
            cursor = Some(next);
        }
        assert_eq!(resealed, 3);
        let again = resealer.reseal(None).await.unwrap();
        assert_eq!(again, Resealed { cursor: again.cursor.clone(), ..Resealed::default() });
        assert_eq!(missing(&old, &["new"]).await, []);

        let new = Sealed::store(memory.into(), keys(&["new"]));
        let waiting = new.outbox.due_events(0, "ledger", 9).await.unwrap().events;
        let contents: Vec<_> = waiting.into_iter().map(|event| event.content).collect();
        assert!(contents.len() == 2 && [1, 2].map(text).iter().all(|one| contents.contains(one)));
        let letters = new.dead_letters.dead_letters(&Default::default(), None, 9).await.unwrap();
        let report = EventContent::Plain(Bytes::from_static(b"refused"));
        assert_eq!(letters.letters[0].content, text(3));
        assert_eq!(letters.letters[0].burial.report, report);
    }

    #[tokio::test]
    async fn a_key_that_nothing_is_sealed_under_may_be_removed() {
        let memory = memory();
        let store = with_events(&memory, keys(&["new"]), &[1]).await;
        assert_eq!(missing(&store, &["new", "old"]).await, []);
        assert_eq!(missing(&store, &["new"]).await, []);
        let note = memory.note(Note::OutboxKeys).await.unwrap();
        assert_eq!(note.as_deref(), Some(r#"["new"]"#));
    }

    #[tokio::test]
    async fn events_of_a_version_without_the_note_are_found() {
        let memory = memory();
        let store = with_events(&memory, keys(&["old"]), &[1]).await;
        assert_eq!(memory.note(Note::OutboxKeys).await.unwrap(), None);
        assert_eq!(missing(&store, &["new"]).await, [("old".to_owned(), 1, 0)]);
    }

    #[tokio::test]
    async fn plain_events_need_no_key_and_are_sealed_with_the_others() {
        let memory = memory();
        let plain: Store = memory.clone().into();
        let EventKey { sink, slot, order } = event(1);
        let outbox = [OutboxEvent { sink, order, content: text(1) }];
        let events = Events { outbox: &outbox, ..Events::NONE };
        let keep = Duration::from_secs(60);
        let lifetime = Lifetime { keep, due: None, tombstone: None };
        plain.records.write(&slot, None, &completed(1), lifetime, events).await.unwrap();
        assert_eq!(missing(&plain, &[]).await, []);
        let resealer = Resealer::new(plain.contents.clone(), keys(&["new"]));
        assert_eq!(resealer.reseal(None).await.unwrap().resealed, 1);
        let found = plain.outbox.due_events(0, "ledger", 9).await.unwrap().events.remove(0);
        assert!(matches!(found.content, EventContent::Sealed(_)), "{found:?}");
    }

    #[tokio::test]
    async fn what_no_key_opens_is_counted_and_stays() {
        let memory = memory();
        let store = with_events(&memory, keys(&["lost"]), &[1]).await;
        let before = store.contents.contents(None).await.unwrap().contents;
        let resealer = Resealer::new(store.contents.clone(), keys(&["new"]));
        let done = resealer.reseal(None).await.unwrap();
        assert_eq!((done.resealed, done.unreadable), (0, 1));
        assert_eq!(store.contents.contents(None).await.unwrap().contents, before);
    }
}
