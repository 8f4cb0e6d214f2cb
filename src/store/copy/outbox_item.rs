//! Waiting events and dead letters, as a copy carries them. Contents and reports stay sealed.

use ring::digest::{Context, SHA256};

use crate::store::dead_letters::{DeadLetter, DeadLetterKind};
use crate::store::log::member;
use crate::store::outbox::{EventContent, EventKey, WaitingEvent};

/// A waiting event or a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutboxItem {
    /// An event that waits for its sink.
    Waiting {
        /// The event.
        event: WaitingEvent,
        /// When the first event of its operation is due for the sink, in ms since 1970 by the
        /// store's clock; 0: at once.
        due_ms: u64,
    },
    /// A dead letter.
    Dead(DeadLetter),
}

/// A page of waiting events and dead letters, in the order of the store.
#[derive(Debug, Default)]
pub struct OutboxItems {
    /// The items. A page may be empty although more items follow.
    pub items: Vec<OutboxItem>,
    /// Where to continue; `None` at the end.
    pub cursor: Option<String>,
}

impl OutboxItem {
    /// Returns the number of bytes of content and report.
    pub fn bytes(&self) -> usize {
        match self {
            OutboxItem::Waiting { event, .. } => event.content.size(),
            OutboxItem::Dead(letter) => letter.content.size() + letter.burial.report.size(),
        }
    }

    /// Returns the SHA-256 of everything that the item has. Two items have the same digest only if
    /// they are equal.
    pub(super) fn digest(&self) -> [u8; 32] {
        let mut digest = ItemDigest(Context::new(&SHA256));
        match self {
            OutboxItem::Waiting { event, due_ms } => {
                let WaitingEvent { key, content, written_ms, round, attempts } = event;
                digest.add_event(key, content, [*written_ms, u64::from(*round)]);
                digest.add_numbers([u64::from(attempts.count), attempts.first_ms, *due_ms]);
            }
            OutboxItem::Dead(letter) => {
                let DeadLetter { key, content, written_ms, round, buried_ms, burial } = letter;
                digest.add_event(key, content, [*written_ms, u64::from(*round)]);
                let kind = match burial.kind {
                    DeadLetterKind::Receiver => 0,
                    DeadLetterKind::Gateway => 1,
                };
                digest.add_numbers([*buried_ms, kind]);
                digest.add_text(&burial.report.encode());
            }
        }
        let mut bytes = [0; 32];
        bytes.iter_mut().zip(digest.0.finish().as_ref()).for_each(|(byte, of)| *byte = *of);
        bytes
    }
}

struct ItemDigest(Context);

impl ItemDigest {
    fn add_event<const N: usize>(
        &mut self,
        key: &EventKey,
        content: &EventContent,
        numbers: [u64; N],
    ) {
        self.add_text(key.sink.as_bytes());
        self.0.update(&member(&key.slot));
        self.0.update(&key.order.encode());
        self.add_numbers(numbers);
        self.add_text(&content.encode());
    }

    /// Adds a text and its length, so that its end can't be taken for the beginning of the next.
    fn add_text(&mut self, text: &[u8]) {
        self.add_numbers([text.len() as u64]);
        self.0.update(text);
    }

    fn add_numbers<const N: usize>(&mut self, numbers: [u64; N]) {
        numbers.iter().for_each(|number| self.0.update(&number.to_be_bytes()));
    }
}
