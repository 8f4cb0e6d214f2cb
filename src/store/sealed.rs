//! Records with encrypted results: sealed before they are stored, opened when they are read.
//! AES-256-GCM (NIST SP 800-38D).
//!
//! Sealing covers header fields, trailers and body of a reply, the content of a saga, a kept key of
//! the upstream, and the digests of a request's members. The status and the hashes of scope and
//! caller stay readable, for operators and rules. The operation's slot is authenticated with the
//! sealed text. So nobody who can write to the store can move a result to another operation.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::HeaderMap;

use super::Store;
use super::error::{ListError, StoreError};
use super::outbox::{EventKey, OutboxEvent};
use super::records::{DueSagas, Events, Listing, Page, Records, Swap};
use super::sealed_outbox::{EVENT, SealedOutbox};
use super::watch::Watch;
use crate::key::Slot;
use crate::record::{
    Announcements, CodecError, Extras, Fence, Held, Lifetime, PrivateContent, Publication, Record,
    Reply, ReplyBody, State, Version, decode_reply, encode_reply,
};

pub use super::sealing::{InvalidSealingKey, KEY_BYTES, KEY_ID_MAX, SealingKey, SealingKeys};

/// Records with sealed results.
pub struct Sealed {
    inner: Arc<dyn Records>,
    keys: Arc<SealingKeys>,
}

impl Sealed {
    /// Seals the results that are written to `inner`.
    ///
    /// # Errors
    /// `keys` is empty.
    pub fn new(
        inner: Arc<dyn Records>,
        keys: Vec<SealingKey>,
    ) -> Result<Sealed, InvalidSealingKey> {
        Ok(Sealed { inner, keys: Arc::new(SealingKeys::new(keys)?) })
    }

    /// Returns the store with sealed results, events and dead letters.
    pub fn store(store: Store, keys: Arc<SealingKeys>) -> Store {
        let outbox = Arc::new(SealedOutbox::new(store.outbox, store.dead_letters, keys.clone()));
        Store {
            records: Arc::new(Sealed { inner: store.records, keys }),
            outbox: outbox.clone(),
            dead_letters: outbox,
            ..store
        }
    }

    /// Returns the events with their contents sealed. The event log stays readable: its events
    /// contain no body.
    fn sealed_events(
        &self,
        slot: &Slot,
        events: &[OutboxEvent],
    ) -> Result<Vec<OutboxEvent>, StoreError> {
        let sealed = |event: &OutboxEvent| {
            let key = EventKey { sink: event.sink.clone(), slot: *slot, order: event.order };
            let content = self.keys.seal_event(&key, EVENT, &event.content)?;
            Ok(OutboxEvent { content, ..event.clone() })
        };
        events.iter().map(sealed).collect()
    }

    fn opened(&self, slot: &Slot, held: Option<Held>) -> Result<Option<Held>, StoreError> {
        let Some(mut held) = held else { return Ok(None) };
        self.open_state(slot, &mut held.record.state)?;
        // Without its publication a later change would lose its events, so the record is unreadable
        // if the publication can't be opened. A saga that this gateway can't continue stays
        // readable: its duplicates are refused or wait.
        let is_foreign_saga =
            matches!(held.record.state, State::Saga { content: PrivateContent::Sealed(_), .. });
        if let Some(Publication::Sealed(sealed)) = &held.record.publication
            && !is_foreign_saga
        {
            let text = self.keys.open(slot, PUBLICATION, sealed)?;
            let announcements = Announcements::decode(&text).ok_or(CodecError::Malformed)?;
            held.record.publication = Some(Publication::Open(Arc::new(announcements)));
        }
        // If the kept key can't be opened, the operation is not probed in the background. Nothing
        // else changes.
        held.record.kept = held.record.kept.and_then(|kept| self.keys.open(slot, KEPT, &kept).ok());
        // If the leaves can't be opened, a refusal explains less. Nothing else changes.
        let leaves = &mut held.record.extras.leaves;
        *leaves = leaves.take().and_then(|leaves| self.keys.open(slot, LEAVES, &leaves).ok());
        Ok(Some(held))
    }

    /// Opens the sealed part of a state. A saga that no key opens stays sealed: its phase is enough
    /// for admission.
    fn open_state(&self, slot: &Slot, state: &mut State) -> Result<(), StoreError> {
        match state {
            State::Completed { reply, .. } => {
                if let ReplyBody::Sealed(sealed) = &reply.body {
                    let has_trailers = reply.trailers.is_some();
                    let text = self.keys.open(slot, context_of(has_trailers), sealed)?;
                    *reply = Arc::new(decode_reply(text, has_trailers)?);
                }
            }
            State::Saga { content, .. } => self.open_content(slot, SAGA, content),
            State::Review { content, .. } => self.open_content(slot, REVIEW, content),
            State::Versions { content } => self.open_content(slot, VERSIONS, content),
            _ => {}
        }
        Ok(())
    }

    /// Opens a content. One that no key opens stays sealed.
    fn open_content(&self, slot: &Slot, purpose: &[u8], content: &mut PrivateContent) {
        if let PrivateContent::Sealed(sealed) = content
            && let Ok(text) = self.keys.open(slot, purpose, sealed)
        {
            *content = PrivateContent::Open(text);
        }
    }

    /// Returns a state with its content as it is stored; `None` for states without a content, and
    /// for those with a sealed one.
    fn closed_state(&self, slot: &Slot, state: &State) -> Result<Option<State>, StoreError> {
        let closed =
            |purpose: &[u8], text| self.keys.seal(slot, purpose, text).map(PrivateContent::Sealed);
        Ok(match state {
            State::Saga { phase, content: PrivateContent::Open(text) } => {
                Some(State::Saga { phase: *phase, content: closed(SAGA, text)? })
            }
            State::Review { stage, content: PrivateContent::Open(text) } => {
                Some(State::Review { stage: *stage, content: closed(REVIEW, text)? })
            }
            State::Versions { content: PrivateContent::Open(text) } => {
                Some(State::Versions { content: closed(VERSIONS, text)? })
            }
            _ => None,
        })
    }

    /// Returns the record as it is stored; `None` if nothing in it must be sealed.
    fn closed(&self, slot: &Slot, record: &Record) -> Result<Option<Record>, StoreError> {
        let kept = record.kept.as_ref().map(|kept| self.keys.seal(slot, KEPT, kept)).transpose()?;
        let leaves = record
            .extras
            .leaves
            .as_ref()
            .map(|leaves| self.keys.seal(slot, LEAVES, leaves))
            .transpose()?;
        let extras = Extras { leaves, ..record.extras.clone() };
        let publication = match &record.publication {
            Some(Publication::Open(announcements)) => {
                let sealed = self.keys.seal(slot, PUBLICATION, &announcements.encode())?;
                Some(Publication::Sealed(sealed))
            }
            publication => publication.clone(),
        };
        match &record.state {
            State::Completed { reply, by } => {
                let purpose = context_of(reply.trailers.is_some());
                let body =
                    ReplyBody::Sealed(self.keys.seal(slot, purpose, &encode_reply(reply))?);
                // The trailers are in the sealed text. Empty trailers remain here, because they
                // give the record the format for replies with trailers.
                let trailers = reply.trailers.as_ref().map(|_| HeaderMap::new());
                let reply = Arc::new(Reply {
                    status: reply.status,
                    headers: HeaderMap::new(),
                    body,
                    trailers,
                });
                Ok(Some(Record {
                    state: State::Completed { reply, by: *by },
                    kept,
                    extras,
                    ..record.clone()
                }))
            }
            state => {
                let state = self.closed_state(slot, state)?;
                let is_closed = state.is_some()
                    || kept.is_some()
                    || extras.leaves.is_some()
                    || publication.is_some();
                let state = state.unwrap_or_else(|| record.state.clone());
                Ok(is_closed.then(|| Record { state, kept, publication, extras, ..record.clone() }))
            }
        }
    }
}

/// Purposes of sealed texts.
const REPLY: &[u8] = b"reply";
const REPLY_WITH_TRAILERS: &[u8] = b"reply with trailers";
const SAGA: &[u8] = b"saga";
const REVIEW: &[u8] = b"review";
const VERSIONS: &[u8] = b"versions";
const KEPT: &[u8] = b"kept";
const LEAVES: &[u8] = b"leaves";
const PUBLICATION: &[u8] = b"publication";

fn context_of(has_trailers: bool) -> &'static [u8] {
    if has_trailers { REPLY_WITH_TRAILERS } else { REPLY }
}

#[async_trait]
impl Records for Sealed {
    async fn write(
        &self,
        slot: &Slot,
        expected: Option<Version>,
        next: &Record,
        lifetime: Lifetime,
        events: Events<'_>,
    ) -> Result<Swap, StoreError> {
        let closed = self.closed(slot, next)?;
        let outbox = self.sealed_events(slot, events.outbox)?;
        let events = Events { outbox: &outbox, ..events };
        let swapped = self
            .inner
            .write(slot, expected, closed.as_ref().unwrap_or(next), lifetime, events)
            .await?;
        match swapped {
            Swap::Stored | Swap::Large(_) => Ok(swapped),
            Swap::Stale(held) => Ok(Swap::Stale(self.opened(slot, held)?)),
        }
    }

    async fn load(&self, slot: &Slot) -> Result<Option<Held>, StoreError> {
        self.opened(slot, self.inner.load(slot).await?)
    }

    async fn remains(&self, slot: &Slot) -> Result<Option<Held>, StoreError> {
        self.opened(slot, self.inner.remains(slot).await?)
    }

    async fn renew(
        &self,
        slot: &Slot,
        fence: Fence,
        lease: Duration,
        keep: Duration,
    ) -> Result<bool, StoreError> {
        self.inner.renew(slot, fence, lease, keep).await
    }

    async fn due(&self, limit: usize) -> Result<Vec<Slot>, StoreError> {
        self.inner.due(limit).await
    }

    async fn due_sagas(&self, limit: usize) -> Result<DueSagas, StoreError> {
        self.inner.due_sagas(limit).await
    }

    /// Leaves results sealed: listings don't use them, and a result that can't be opened must not
    /// hide other records.
    async fn list(
        &self,
        listing: Listing,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page, ListError> {
        self.inner.list(listing, cursor, limit).await
    }

    fn watch(&self, slot: &Slot) -> Watch {
        self.inner.watch(slot)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.inner.ping().await
    }
}

#[cfg(test)]
mod tests;
