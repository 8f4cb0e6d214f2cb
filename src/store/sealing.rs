//! Keys that seal the texts of a store: AES-256-GCM (NIST SP 800-38D).

use bytes::{BufMut, Bytes, BytesMut};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};

use super::error::StoreError;
use super::outbox::{EventContent, EventKey};
use crate::key::Slot;
use crate::record::CodecError;

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;
/// Longest name of a key, in bytes.
pub const KEY_ID_MAX: usize = 64;

/// A key, and its name. Records contain the name of the key that sealed them.
pub struct SealingKey {
    id: String,
    key: LessSafeKey,
}

/// A malformed key, or no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a key needs a name of 1 to 64 bytes, and 32 bytes of key material")]
pub struct InvalidSealingKey;

impl SealingKey {
    /// Returns a key with a name.
    ///
    /// # Errors
    /// The key has another length, or the name is empty or too long.
    pub fn new(id: &str, bytes: &[u8]) -> Result<SealingKey, InvalidSealingKey> {
        let unbound = UnboundKey::new(&AES_256_GCM, bytes).map_err(|_| InvalidSealingKey)?;
        let named = !id.is_empty() && id.len() <= KEY_ID_MAX;
        named
            .then(|| SealingKey { id: id.to_owned(), key: LessSafeKey::new(unbound) })
            .ok_or(InvalidSealingKey)
    }
}

impl std::fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealingKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The keys of a gateway.
pub struct SealingKeys {
    /// The first key seals. All keys open.
    keys: Vec<SealingKey>,
    random: SystemRandom,
}

impl SealingKeys {
    /// Returns the keys. Nonces are random: a key must not seal more than 2^32 texts.
    ///
    /// # Errors
    /// `keys` is empty.
    pub fn new(keys: Vec<SealingKey>) -> Result<SealingKeys, InvalidSealingKey> {
        if keys.is_empty() {
            Err(InvalidSealingKey)
        } else {
            Ok(SealingKeys { keys, random: SystemRandom::new() })
        }
    }

    /// Returns the names of the keys, that of the first one first.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(|key| key.id.as_str())
    }

    /// Seals a text of an operation for one purpose. The purpose is authenticated too, so a text
    /// for one purpose can't replace a text for another.
    pub(super) fn seal(
        &self,
        slot: &Slot,
        purpose: &[u8],
        text: &[u8],
    ) -> Result<Bytes, StoreError> {
        let failed = || StoreError::NotApplied("the record could not be sealed".into());
        let key = self.keys.first().ok_or_else(failed)?;
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(|_| failed())?;
        let mut text = text.to_vec();
        let context = [slot.hash(), purpose].concat();
        let given = Nonce::assume_unique_for_key(nonce);
        key.key
            .seal_in_place_append_tag(given, Aad::from(context), &mut text)
            .map_err(|_| failed())?;
        let mut sealed = BytesMut::with_capacity(1 + key.id.len() + NONCE_LEN + text.len());
        sealed.put_u8(u8::try_from(key.id.len()).map_err(|_| failed())?);
        sealed.put_slice(key.id.as_bytes());
        sealed.put_slice(&nonce);
        sealed.put_slice(&text);
        Ok(sealed.freeze())
    }

    /// Opens the output of [`SealingKeys::seal`] with the same operation and purpose.
    ///
    /// # Errors
    /// The key is missing, or the text was sealed for another operation or purpose.
    pub(super) fn open(
        &self,
        slot: &Slot,
        purpose: &[u8],
        sealed: &Bytes,
    ) -> Result<Bytes, CodecError> {
        let (length, rest) = sealed.split_first().ok_or(CodecError::Malformed)?;
        let (id, rest) =
            rest.split_at_checked(usize::from(*length)).ok_or(CodecError::Malformed)?;
        let (nonce, text) = rest.split_at_checked(NONCE_LEN).ok_or(CodecError::Malformed)?;
        let key = self.keys.iter().find(|key| key.id.as_bytes() == id).ok_or(CodecError::Sealed)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| CodecError::Malformed)?;
        let mut text = text.to_vec();
        let context = [slot.hash(), purpose].concat();
        let length = key
            .key
            .open_in_place(nonce, Aad::from(context), &mut text)
            .map_err(|_| CodecError::Sealed)?
            .len();
        text.truncate(length);
        Ok(Bytes::from(text))
    }

    /// Seals a text about an event for one purpose.
    pub(super) fn seal_event(
        &self,
        event: &EventKey,
        purpose: &[u8],
        content: &EventContent,
    ) -> Result<EventContent, StoreError> {
        match content {
            EventContent::Plain(text) => {
                let sealed = self.seal(&event.slot, &event_purpose(event, purpose), text)?;
                Ok(EventContent::Sealed(sealed))
            }
            EventContent::Sealed(_) => Ok(content.clone()),
        }
    }

    /// Opens the output of [`SealingKeys::seal_event`]. A text that can't be opened stays sealed.
    pub(super) fn open_event(
        &self,
        event: &EventKey,
        purpose: &[u8],
        content: EventContent,
    ) -> EventContent {
        match content {
            EventContent::Sealed(sealed) => {
                match self.open(&event.slot, &event_purpose(event, purpose), &sealed) {
                    Ok(text) => EventContent::Plain(text),
                    Err(_) => EventContent::Sealed(sealed),
                }
            }
            EventContent::Plain(_) => content,
        }
    }

    /// Seals a text about an event under the first key. Returns it unchanged if it is sealed under
    /// that key already, and `None` if no key opens it.
    pub(super) fn reseal_event(
        &self,
        event: &EventKey,
        purpose: &[u8],
        content: &EventContent,
    ) -> Result<Option<EventContent>, StoreError> {
        if let EventContent::Sealed(sealed) = content
            && key_name(sealed).is_some_and(|name| self.names().next() == Some(name))
        {
            return Ok(Some(content.clone()));
        }
        match self.open_event(event, purpose, content.clone()) {
            EventContent::Sealed(_) => Ok(None),
            plain => self.seal_event(event, purpose, &plain).map(Some),
        }
    }
}

/// Returns the name of the key that a text is sealed under; `None` for a malformed text.
pub(super) fn key_name(sealed: &[u8]) -> Option<&str> {
    let (length, rest) = sealed.split_first()?;
    let (name, rest) = rest.split_at_checked(usize::from(*length))?;
    let name = std::str::from_utf8(name).ok()?;
    (!name.is_empty() && rest.len() >= NONCE_LEN).then_some(name)
}

fn event_purpose(event: &EventKey, purpose: &[u8]) -> Vec<u8> {
    [purpose, &event.order.encode(), event.sink.as_bytes()].concat()
}
