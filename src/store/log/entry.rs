//! Entries of an event log: their ids and links, and positions between them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};

use crate::hex;
use crate::key::{SLOT_BYTES, Slot, Space};

/// Bytes of a link: SHA-1 in hexadecimal digits, because a script within a Redis server can compute
/// SHA-1.
pub const LINK_BYTES: usize = 40;

/// Bytes of an entry's digest. A link and a digest together fill the one block that SHA-1 hashes in
/// a single step. Two entries with the same digest are about as hard to find as two inputs with the
/// same SHA-1.
pub const DIGEST_BYTES: usize = 15;

/// Bytes of an operation's name in an entry (its member): the space and the slot's hash.
pub const MEMBER_BYTES: usize = 1 + SLOT_BYTES;

/// Limit for the bytes of all stored observations, plus [`OBSERVED_ENTRY_BYTES`] for each batch. It
/// is enough for some 300,000 observations. Observations share the store with the records, and must
/// not take the space that records need.
pub const OBSERVED_BYTES_MAX: usize = 64 << 20;

/// Overhead of a stored batch of observations, in bytes.
pub const OBSERVED_ENTRY_BYTES: usize = 64;

/// Id of an entry within its partition. Later entries have greater ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct EntryId {
    /// Time of the write, in ms since 1970 by the store's clock.
    pub ms: u64,
    /// Number of the entry within that millisecond.
    pub seq: u64,
}

impl EntryId {
    /// Returns the id of an entry written now, after `last`. It is greater than `last`, even if the
    /// clock is not.
    pub(in crate::store) fn behind(last: EntryId, now_ms: u64) -> EntryId {
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

/// A text that is not a position in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("that is not a position in the event log")]
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

/// A link of the chain: a digest, as text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Link([u8; LINK_BYTES]);

impl Link {
    /// Computes the link of an entry from the link before it (`None`: the entry is the first).
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

    /// Reads a stored link. The digits are not checked, because links are only compared.
    pub fn from_bytes(bytes: &[u8]) -> Option<Link> {
        bytes.try_into().ok().map(Link)
    }

    /// Returns the digits.
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
    /// The partition of the entry.
    pub partition: u16,
    /// The id within the partition.
    pub id: EntryId,
    /// The operation that changed.
    pub slot: Slot,
    /// The encoded event. Stores don't interpret it.
    pub event: Bytes,
    /// The chain's link; `None` if the stored link is malformed. If the whole entry is malformed,
    /// the event is empty, and the slot belongs to no operation.
    pub link: Option<Link>,
}

/// How far a log was read: the id of the last entry read in each partition. A partition without an
/// id is at its beginning.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Position(pub BTreeMap<u16, EntryId>);

impl Position {
    /// Returns how far a partition was read.
    pub fn of(&self, partition: u16) -> EntryId {
        self.0.get(&partition).copied().unwrap_or_default()
    }

    /// Moves the position behind an entry.
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

/// The id of an entry, and its link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The id.
    pub id: EntryId,
    /// The link.
    pub link: Link,
}

/// The ends of a partition's log, stored beside the entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// The partition.
    pub partition: u16,
    /// The last entry that was trimmed. The first remaining entry links to it. `None`: nothing was
    /// trimmed.
    pub trimmed: Option<Mark>,
    /// The last entry.
    pub last: Mark,
}

/// Result of trimming a log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Trimmed {
    /// Number of entries removed. If it is not 0, there may be more to trim.
    pub entries: usize,
    /// Number of batches of observations removed. If it is not 0, there may be more to trim.
    pub batches: usize,
    /// Readers that did not mark their position for too long. Trimming no longer waits for them.
    pub forgotten: Vec<String>,
}

/// Computes the digest of an entry for its link: the first bytes of a SHA-256 hash.
pub(in crate::store) fn digest(member: &[u8; MEMBER_BYTES], event: &[u8]) -> [u8; DIGEST_BYTES] {
    let mut entry = Context::new(&SHA256);
    entry.update(member);
    entry.update(event);
    let mut digest = [0; DIGEST_BYTES];
    digest.iter_mut().zip(entry.finish().as_ref()).for_each(|(to, byte)| *to = *byte);
    digest
}

/// Returns the name of an operation in entries.
pub fn member(slot: &Slot) -> [u8; MEMBER_BYTES] {
    let mut member = [0; MEMBER_BYTES];
    member[0] = match slot.space {
        Space::Enforced => 0,
        Space::Shadow => 1,
    };
    member[1..].copy_from_slice(slot.hash());
    member
}

/// Returns the slot that a member names; `None` for a malformed member.
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
    /// Returns the replacement for a malformed entry, so that readers can read past that entry.
    /// Only another program writes malformed entries.
    #[cfg(any(feature = "embedded", feature = "redis"))]
    pub(in crate::store) fn unreadable(partition: u16, id: EntryId) -> LogEntry {
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
