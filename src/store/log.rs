//! The event log: what the changes of records say of themselves, appended in the same atomic step as the record.
//!
//! It lies in partitions. Within one, entries are in the order in which they were written, all of an operation's are in the
//! same one, and each carries a link: a digest over the link before it and a digest of the entry itself. So an entry that is changed,
//! taken out or put in is found ([`verify`]), and so is an end that was cut off, because the last link is kept beside the log.
//!
//! Danger: the links are no signatures. Who may write to the store can make all of them anew; a link that was noted
//! elsewhere shows that, too.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

use super::StoreError;
use crate::hex;
use crate::key::{SLOT_BYTES, Slot, Space};

mod verify;

pub use verify::{ChainBreak, ChainCursor, ChainFault, Verification, verify};

/// Bytes of a link: SHA-1 in hexadecimal digits, which is what a script can make within a Redis server.
pub const LINK_BYTES: usize = 40;

/// Bytes of an entry's digest. With a link they are the most that SHA-1 takes in one block, and two entries with one digest
/// are about as hard to find as two with one SHA-1.
pub const DIGEST_BYTES: usize = 15;

/// Bytes of an operation's name in an entry: the space and the slot's hash.
pub const MEMBER_BYTES: usize = 1 + SLOT_BYTES;

/// Bytes of observations that are kept, with [`OBSERVED_ENTRY_BYTES`] for each batch: some 300,000 of them. They share the
/// store with the records, and must not take the room that those need.
pub const OBSERVED_BYTES_MAX: usize = 64 << 20;

/// What a batch takes beside its bytes.
pub const OBSERVED_ENTRY_BYTES: usize = 64;

/// An entry's place within its partition. Later ones are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct EntryId {
    /// When it was written, in ms since 1970 by the store's clock.
    pub ms: u64,
    /// Which of those of that millisecond it is.
    pub seq: u64,
}

impl EntryId {
    /// The id of an entry written at this time behind `last`: greater than that also where the clock isn't.
    pub(super) fn behind(last: EntryId, now_ms: u64) -> EntryId {
        if now_ms > last.ms {
            EntryId { ms: now_ms, seq: 0 }
        } else {
            EntryId { ms: last.ms, seq: last.seq.saturating_add(1) }
        }
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

/// A text that is no place in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("that is no place in the event log")]
pub struct InvalidPosition;

impl FromStr for EntryId {
    type Err = InvalidPosition;

    fn from_str(text: &str) -> Result<EntryId, InvalidPosition> {
        let (ms, seq) = text.split_once('-').ok_or(InvalidPosition)?;
        Ok(EntryId {
            ms: ms.parse().map_err(|_| InvalidPosition)?,
            seq: seq.parse().map_err(|_| InvalidPosition)?,
        })
    }
}

/// A link of the chain, as text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Link([u8; LINK_BYTES]);

impl Link {
    /// The link of an entry, from the one before it (`None`: there is none).
    pub fn of(before: Option<Link>, member: &[u8; MEMBER_BYTES], event: &[u8]) -> Link {
        let mut chained = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
        if let Some(before) = &before {
            chained.update(&before.0);
        }
        chained.update(&digest(member, event));
        let mut link = [0; LINK_BYTES];
        for (byte, digits) in chained.finish().as_ref().iter().zip(link.chunks_exact_mut(2)) {
            digits.copy_from_slice(&hex::digits(*byte));
        }
        Link(link)
    }

    /// A link as it stands in an entry. What is there is compared, and need not look like one.
    pub fn from_bytes(bytes: &[u8]) -> Option<Link> {
        bytes.try_into().ok().map(Link)
    }

    /// Its digits.
    pub fn as_bytes(&self) -> &[u8; LINK_BYTES] {
        &self.0
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An entry of the log.
#[derive(Debug, Clone, PartialEq)]
pub struct LogEntry {
    /// The partition that it lies in.
    pub partition: u16,
    /// Its place there.
    pub id: EntryId,
    /// The operation that changed.
    pub slot: Slot,
    /// What the change says of itself: opaque to stores.
    pub event: Bytes,
    /// The chain's link; `None` where what stands there is none. Where the whole entry can't be read, the event is empty as
    /// well, and the slot nobody's.
    pub link: Option<Link>,
}

/// How far somebody has read: the last entry of each partition. One that isn't named is at its beginning.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Position(pub BTreeMap<u16, EntryId>);

impl Position {
    /// How far a partition was read.
    pub fn of(&self, partition: u16) -> EntryId {
        self.0.get(&partition).copied().unwrap_or_default()
    }

    /// An entry was read.
    pub fn advance(&mut self, entry: &LogEntry) {
        self.0.insert(entry.partition, entry.id);
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (partition, id)) in self.0.iter().enumerate() {
            write!(f, "{}{partition}:{id}", if n == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl FromStr for Position {
    type Err = InvalidPosition;

    fn from_str(text: &str) -> Result<Position, InvalidPosition> {
        let mut position = Position::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (partition, id) = part.split_once(':').ok_or(InvalidPosition)?;
            position.0.insert(partition.parse().map_err(|_| InvalidPosition)?, id.parse()?);
        }
        Ok(position)
    }
}

/// An entry, and its link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The entry.
    pub id: EntryId,
    /// Its link.
    pub link: Link,
}

/// What is kept beside a partition's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// The partition.
    pub partition: u16,
    /// The last entry that was trimmed away: the first that is left goes on from it. `None`: none was.
    pub trimmed: Option<Mark>,
    /// The last entry.
    pub last: Mark,
}

/// What trimming came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Trimmed {
    /// How many entries are gone; if any, there may be more to trim.
    pub entries: usize,
    /// How many batches of observations are gone, likewise.
    pub batches: usize,
    /// Readers that were not heard of for too long, and are waited for no more.
    pub forgotten: Vec<String>,
}

/// A store's event log.
#[async_trait]
pub trait EventLog: Send + Sync + 'static {
    /// Entries behind a position, of every partition that has more, in order within each: in all about `limit`, or one of each.
    /// None means that there are none.
    async fn read(&self, from: &Position, limit: usize) -> Result<Vec<LogEntry>, StoreError>;

    /// Up to `limit` entries of one partition behind an entry, in order.
    async fn read_partition(
        &self,
        partition: u16,
        from: EntryId,
        limit: usize,
    ) -> Result<Vec<LogEntry>, StoreError>;

    /// Says how far a reader has read, in all partitions: what is behind that is not trimmed while the reader is heard of.
    /// To be said before the first reading, and now and then though nothing was read.
    async fn mark_read(&self, reader: &str, read: &Position) -> Result<(), StoreError>;

    /// How far a reader has read, as it said; `None`: it said nothing, or was forgotten.
    async fn read_by(&self, reader: &str) -> Result<Option<Position>, StoreError>;

    /// Takes away some entries that are older than that, from the beginnings on, though none that a reader has still to read. A
    /// reader that was not heard of for as long is forgotten.
    async fn trim(&self, older_than: Duration) -> Result<Trimmed, StoreError>;

    /// Appends a batch of observations: opaque bytes that may be lost, in an order of their own. The oldest go when there are
    /// more than [`OBSERVED_BYTES_MAX`], read or not; and [`EventLog::trim`] takes away those that are too old.
    async fn observe(&self, batch: &[u8]) -> Result<(), StoreError>;

    /// Up to `limit` batches of observations behind one, in order.
    async fn observations(
        &self,
        after: EntryId,
        limit: usize,
    ) -> Result<Vec<(EntryId, Bytes)>, StoreError>;

    /// What is kept beside the log, of every partition that ever had an entry, by partition.
    async fn ends(&self) -> Result<Vec<Ends>, StoreError>;

    /// The same of some partitions alone, for what that costs.
    async fn ends_of(&self, partitions: &BTreeSet<u16>) -> Result<Vec<Ends>, StoreError> {
        Ok(self
            .ends()
            .await?
            .into_iter()
            .filter(|ends| partitions.contains(&ends.partition))
            .collect())
    }
}

/// What a link is made of beside the one before it: the beginning of SHA-256 over an entry.
pub(super) fn digest(member: &[u8; MEMBER_BYTES], event: &[u8]) -> [u8; DIGEST_BYTES] {
    let mut entry = Context::new(&SHA256);
    entry.update(member);
    entry.update(event);
    let mut digest = [0; DIGEST_BYTES];
    digest.iter_mut().zip(entry.finish().as_ref()).for_each(|(to, byte)| *to = *byte);
    digest
}

/// A slot as entries name it.
pub fn member(slot: &Slot) -> [u8; MEMBER_BYTES] {
    let mut member = [0; MEMBER_BYTES];
    member[0] = match slot.space {
        Space::Enforced => 0,
        Space::Shadow => 1,
    };
    member[1..].copy_from_slice(slot.hash());
    member
}

/// The slot that a member names.
pub fn slot_of_member(member: &[u8]) -> Option<Slot> {
    let (space, hash) = member.split_first()?;
    let space = match space {
        0 => Space::Enforced,
        1 => Space::Shadow,
        _ => return None,
    };
    Some(Slot::from_hash(space, hash.try_into().ok()?))
}

impl LogEntry {
    /// An entry that somebody else wrote: it can't be read, says nothing, and must not keep anybody from reading on.
    pub(super) fn unreadable(partition: u16, id: EntryId) -> LogEntry {
        let slot = Slot::from_hash(Space::Enforced, [0; SLOT_BYTES]);
        LogEntry { partition, id, slot, event: Bytes::new(), link: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: fn(Space) -> Slot = |space| Slot::from_hash(space, [0xab; SLOT_BYTES]);

    #[test]
    fn a_link_is_a_digest_over_the_one_before_it_the_operation_and_the_event() {
        let member = member(&SLOT(Space::Shadow));
        let first = Link::of(None, &member, b"claimed");
        assert_eq!(first.to_string(), "20fd6da6ae49b42e1a10cfd1eadfd4cf179ceab6");
        let second = Link::of(Some(first), &member, b"completed");
        assert_eq!(format!("{second:?}"), "d364f96fc71622007b0dea3b87224d5d618310b1");
        assert_eq!(Link::from_bytes(second.as_bytes()), Some(second));
        assert_eq!(Link::from_bytes(&second.as_bytes()[1..]), None);
    }

    #[test]
    fn a_member_leads_back_to_its_slot_and_an_odd_one_nowhere() {
        for (space, first) in [(Space::Enforced, 0), (Space::Shadow, 1)] {
            let member = member(&SLOT(space));
            assert_eq!((member[0], &member[1..]), (first, &[0xab; SLOT_BYTES][..]));
            assert_eq!(slot_of_member(&member), Some(SLOT(space)));
        }
        assert_eq!(
            [&b""[..], &[0], &[2; MEMBER_BYTES], &[0; MEMBER_BYTES + 1]].map(slot_of_member),
            [None; 4]
        );
    }

    #[test]
    fn ids_grow_also_where_the_clock_does_not() {
        let id = |ms, seq| EntryId { ms, seq };
        assert_eq!(EntryId::behind(id(5, 7), 6), id(6, 0));
        assert_eq!(EntryId::behind(id(5, 7), 5), id(5, 8));
        assert_eq!(EntryId::behind(id(5, 7), 4), id(5, 8));
        assert!(id(5, 8) < id(6, 0));
    }

    #[test]
    fn a_position_is_written_and_read_back() {
        let position = Position(BTreeMap::from([
            (0, EntryId { ms: 5, seq: 7 }),
            (255, EntryId { ms: 6, seq: 0 }),
        ]));
        assert_eq!(position.to_string(), "0:5-7,255:6-0");
        assert_eq!("0:5-7,255:6-0".parse(), Ok(position.clone()));
        assert_eq!("".parse(), Ok(Position::default()));
        assert_eq!(
            (position.of(255), position.of(1)),
            (EntryId { ms: 6, seq: 0 }, EntryId::default())
        );
        for odd in ["0", "0:5", "0:5-", "a:5-7", "0:5-7;1:5-7", "65536:1-1"] {
            assert_eq!(odd.parse::<Position>(), Err(InvalidPosition), "{odd}");
        }
    }
}
