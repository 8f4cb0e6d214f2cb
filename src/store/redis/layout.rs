//! The storage format in Redis: the names of keys and channels, and the stamped value.
//!
//! All names of a partition share its hash tag, so that one script can change a record, its
//! tombstone and the index in one step, on a cluster too. Older and newer gateways read the same
//! format.

use std::sync::Arc;

use bytes::Bytes;

use crate::hex;
use crate::key::{SLOT_BYTES, Slot, Space};
use crate::record::{CodecError, HEAD_BYTES, Held, decode};
use crate::store::Note;
pub(super) use crate::store::log::{member, slot_of_member};

/// Longest namespace, in bytes.
const NAMESPACE_MAX: usize = 64;

/// The names of a store's keys and channels. All begin with the store's namespace and a colon. A
/// namespace has no colon, so two stores share no name. Cheap to clone.
#[derive(Clone)]
pub(super) struct KeyNames {
    /// The namespace with its colon.
    prefix: Arc<str>,
}

impl KeyNames {
    /// Makes the names in a namespace: 1 to 64 letters, digits, `_` or `-` (ASCII). `None` for any
    /// other text.
    pub(super) fn new(namespace: &str) -> Option<KeyNames> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        let sound = (1..=NAMESPACE_MAX).contains(&namespace.len()) && namespace.bytes().all(plain);
        sound.then(|| KeyNames { prefix: format!("{namespace}:").into() })
    }

    /// Returns the pattern that matches the keys of all records that listings show.
    pub(super) fn records_match(&self) -> String {
        format!("{}{{p*}}:r:*", self.prefix)
    }

    /// Returns the pattern that matches all names.
    pub(super) fn all_match(&self) -> String {
        format!("{}*", self.prefix)
    }

    /// Returns the key of the probe write. On a node of a cluster, the key is in a partition that
    /// the node holds.
    pub(super) fn ping_key(&self, partition: Option<u16>) -> Vec<u8> {
        match partition {
            None => [self.prefix.as_bytes(), b"ping"].concat(),
            Some(partition) => self.in_partition(partition, b"ping"),
        }
    }

    /// Returns a name of the whole store that has no partition.
    pub(super) fn of_store(&self, what: &str) -> Vec<u8> {
        [self.prefix.as_bytes(), what.as_bytes()].concat()
    }

    /// Returns the key of a note, one for the whole store.
    pub(super) fn note_key(&self, note: Note) -> Vec<u8> {
        let name: &[u8] = match note {
            Note::Identities => b"identities",
            Note::Paths => b"paths",
            Note::Sinks => b"sinks",
            Note::OutboxKeys => b"outbox_keys",
        };
        self.in_partition(NOTES_PARTITION, name)
    }

    /// Returns the key of a slot's record.
    pub(super) fn record_key(&self, slot: &Slot) -> Vec<u8> {
        self.named(slot, "r", "s")
    }

    /// Returns the key of a slot's tombstone.
    pub(super) fn tombstone_key(&self, slot: &Slot) -> Vec<u8> {
        self.named(slot, "t", "st")
    }

    /// Returns the key of a partition's index of unsettled records, a sorted set: members by their
    /// due time.
    pub(super) fn due_key(&self, partition: u16) -> Vec<u8> {
        self.in_partition(partition, b"due")
    }

    /// Returns the key of a partition's index of sagas, a sorted set: members by the end of their
    /// owner's lease.
    pub(super) fn sagas_key(&self, partition: u16) -> Vec<u8> {
        self.in_partition(partition, b"sagas")
    }

    /// Returns the key of the index of a record.
    pub(super) fn index_key(&self, partition: u16, is_saga: bool) -> Vec<u8> {
        if is_saga { self.sagas_key(partition) } else { self.due_key(partition) }
    }

    /// Returns the key of a partition's epoch, which every claim names. The key never expires, so a
    /// server without it has lost records too.
    pub(super) fn epoch_key(&self, partition: u16) -> Vec<u8> {
        self.in_partition(partition, b"epoch")
    }

    /// Returns the key of a partition's event log, a stream. Each entry has one field: its name is
    /// the link, its value is digest, member and event.
    pub(super) fn events_key(&self, partition: u16) -> Vec<u8> {
        self.in_partition(partition, b"events")
    }

    /// Returns the key of the last entry of a partition's log, a hash: its link (`l`) and its id
    /// (`i`).
    pub(super) fn chain_key(&self, partition: u16) -> Vec<u8> {
        self.in_partition(partition, b"chain")
    }

    /// Returns the key of the last entry that was trimmed from a partition's log, a hash of the
    /// same form.
    pub(super) fn trimmed_key(&self, partition: u16) -> Vec<u8> {
        self.in_partition(partition, b"trimmed")
    }

    /// Returns the key of the readers of a partition's log: the last entry that each has read, and
    /// the time of its last report.
    pub(super) fn readers_key(&self, partition: u16) -> Vec<u8> {
        self.in_partition(partition, b"readers")
    }

    /// Returns the key of the observations, a stream: one for the whole store.
    pub(super) fn observations_key(&self) -> Vec<u8> {
        self.in_partition(OBSERVATIONS_PARTITION, b"observations")
    }

    /// Returns the key of the bytes of all observations.
    pub(super) fn observed_bytes_key(&self) -> Vec<u8> {
        self.in_partition(OBSERVATIONS_PARTITION, b"observed_bytes")
    }

    /// Returns the key of the bytes of each batch of observations: a list in the order of the
    /// stream.
    pub(super) fn observed_sizes_key(&self) -> Vec<u8> {
        self.in_partition(OBSERVATIONS_PARTITION, b"observed_sizes")
    }

    /// Returns the key of the gateways that use the store, a hash: each gateway's name, and the
    /// time at which it last wrote its entry.
    pub(super) fn gateways_key(&self) -> Vec<u8> {
        self.in_partition(GATEWAYS_PARTITION, b"gateways")
    }

    /// Returns the key of the progress of a copy into this store. It exists only until the copy is
    /// complete.
    pub(super) fn copy_key(&self) -> Vec<u8> {
        self.in_partition(COPY_PARTITION, b"copy")
    }

    /// Whether a name may exist in a store that never had a record: gateways and `onceward doctor`
    /// write such names at their start. A copy that was interrupted at its beginning leaves such
    /// names, too.
    pub(super) fn is_of_an_empty_store(&self, name: &[u8]) -> bool {
        let is_named = |rest: &[u8]| matches!(rest, b"epoch" | b"ping" | b"gateways");
        let Some(rest) = name.strip_prefix(self.prefix.as_bytes()) else { return false };
        // Other names of a partition may end alike: they can have the name of a sink.
        let in_partition = rest.strip_prefix(b"{p").and_then(|rest| {
            let end = rest.iter().position(|byte| *byte == b'}')?;
            rest.get(end + 1..)?.strip_prefix(b":")
        });
        is_named(in_partition.unwrap_or(rest))
    }

    /// Returns the slot of a record's key. The channel that wakes the slot's waiters has the same
    /// name.
    pub(super) fn slot_of(&self, name: &[u8]) -> Option<Slot> {
        self.stored_at(name).and_then(|(slot, tombstone)| (!tombstone).then_some(slot))
    }

    /// Returns the slot of the key of a record or tombstone, and whether it is the tombstone.
    pub(super) fn stored_at(&self, name: &[u8]) -> Option<(Slot, bool)> {
        let name = std::str::from_utf8(name).ok()?.strip_prefix(&*self.prefix)?;
        let (rest, hex) = name.rsplit_once(':')?;
        let (_, kind) = rest.rsplit_once(':')?;
        let (space, tombstone) = match kind {
            "r" => (Space::Enforced, false),
            "s" => (Space::Shadow, false),
            "t" => (Space::Enforced, true),
            "st" => (Space::Shadow, true),
            _ => return None,
        };
        let slot = Slot::from_reference(&format!("op_{hex}")).ok()?;
        Some((Slot::from_hash(space, *slot.hash()), tombstone))
    }

    /// Returns a name of a partition.
    pub(super) fn in_partition(&self, partition: u16, what: &[u8]) -> Vec<u8> {
        let mut name = self.tagged(partition);
        name.extend_from_slice(what);
        name
    }

    fn named(&self, slot: &Slot, enforced: &str, shadow: &str) -> Vec<u8> {
        let kind = match slot.space {
            Space::Enforced => enforced,
            Space::Shadow => shadow,
        };
        let mut name = self.tagged(slot.partition());
        name.extend_from_slice(kind.as_bytes());
        name.push(b':');
        for byte in slot.hash() {
            name.extend_from_slice(&hex::digits(*byte));
        }
        name
    }

    /// Returns the beginning of all names of a partition. The digits are appended one by one,
    /// without formatting, because each request needs this several times.
    fn tagged(&self, partition: u16) -> Vec<u8> {
        let mut name = Vec::with_capacity(self.prefix.len() + NAME_BYTES);
        name.extend_from_slice(self.prefix.as_bytes());
        name.extend_from_slice(b"{p");
        decimal(&mut name, u64::from(partition));
        name.extend_from_slice(b"}:");
        name
    }
}

/// The partition with the hash tag of the notes.
pub(super) const NOTES_PARTITION: u16 = 0;

/// The partition with the hash tag of the gateways.
pub(super) const GATEWAYS_PARTITION: u16 = 0;

/// The partition with the hash tag of a copy's progress.
pub(super) const COPY_PARTITION: u16 = 0;

/// Bytes for the longest name behind its prefix.
const NAME_BYTES: usize = "{p255}:st:".len() + 2 * SLOT_BYTES;

/// Bytes in front of a payload: the head, the time of the write, and the due time.
const STAMPED_BYTES: usize = HEAD_BYTES + 8 + 8;

/// The partition with the hash tag of the observations.
pub(super) const OBSERVATIONS_PARTITION: u16 = 0;

/// Returns the hash tag of a partition's names.
pub(super) fn tag(partition: u16) -> String {
    format!("p{partition}")
}

/// Appends a number in decimal digits.
pub(super) fn decimal(out: &mut Vec<u8>, mut number: u64) {
    const DIGITS: usize = 20;
    let mut digits = [0; DIGITS];
    let mut at = DIGITS;
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Makes a stored value that never falls due, written at this time (ms since 1970).
pub(super) fn stamped(head: &[u8; HEAD_BYTES], written_ms: u64, payload: &[u8]) -> Vec<u8> {
    [head, &written_ms.to_be_bytes()[..], &0_u64.to_be_bytes(), payload].concat()
}

/// Decodes a stored value. The reply's body shares the memory of `value`.
pub(super) fn read(value: Vec<u8>, now_ms: u64) -> Result<Held, CodecError> {
    let mut value = Bytes::from(value);
    if value.len() < STAMPED_BYTES {
        return Err(CodecError::Malformed);
    }
    let stamped = value.split_to(STAMPED_BYTES);
    let (head, stamps) = stamped.split_first_chunk::<HEAD_BYTES>().ok_or(CodecError::Malformed)?;
    let (written, due) = stamps.split_first_chunk::<8>().ok_or(CodecError::Malformed)?;
    let due = due.first_chunk::<8>().ok_or(CodecError::Malformed)?;
    let record = decode(head, value)?;
    Ok(Held {
        record,
        written_ms: u64::from_be_bytes(*written),
        due_ms: u64::from_be_bytes(*due),
        now_ms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::encode;
    use crate::store::suite::completed;

    fn text(name: Vec<u8>) -> String {
        String::from_utf8(name).unwrap()
    }

    #[test]
    fn names_stay_as_they_are() {
        let names = KeyNames::new("onceward").unwrap();
        let mut hash = [0xab; SLOT_BYTES];
        hash[0] = 255;
        let (enforced, shadow) =
            (Slot::from_hash(Space::Enforced, hash), Slot::from_hash(Space::Shadow, hash));
        let digits = "ff".to_owned() + &"ab".repeat(SLOT_BYTES - 1);
        for (name, expected) in [
            (names.record_key(&enforced), format!("onceward:{{p255}}:r:{digits}")),
            (names.record_key(&shadow), format!("onceward:{{p255}}:s:{digits}")),
            (names.tombstone_key(&enforced), format!("onceward:{{p255}}:t:{digits}")),
            (names.tombstone_key(&shadow), format!("onceward:{{p255}}:st:{digits}")),
            (names.due_key(7), "onceward:{p7}:due".into()),
            (names.sagas_key(7), "onceward:{p7}:sagas".into()),
            (names.epoch_key(10), "onceward:{p10}:epoch".into()),
            (names.events_key(0), "onceward:{p0}:events".into()),
            (names.chain_key(99), "onceward:{p99}:chain".into()),
            (names.trimmed_key(100), "onceward:{p100}:trimmed".into()),
            (names.readers_key(42), "onceward:{p42}:readers".into()),
            (names.observations_key(), "onceward:{p0}:observations".into()),
            (names.observed_bytes_key(), "onceward:{p0}:observed_bytes".into()),
            (names.observed_sizes_key(), "onceward:{p0}:observed_sizes".into()),
            (names.note_key(Note::Identities), "onceward:{p0}:identities".into()),
            (names.note_key(Note::Paths), "onceward:{p0}:paths".into()),
            (names.note_key(Note::OutboxKeys), "onceward:{p0}:outbox_keys".into()),
            (names.gateways_key(), "onceward:{p0}:gateways".into()),
            (names.copy_key(), "onceward:{p0}:copy".into()),
            (names.ping_key(None), "onceward:ping".into()),
            (names.ping_key(Some(3)), "onceward:{p3}:ping".into()),
            (tag(31).into_bytes(), "p31".into()),
        ] {
            assert_eq!(text(name), expected);
        }
        assert_eq!(names.slot_of(&names.record_key(&shadow)), Some(shadow));
        assert_eq!(
            names.slot_of(&names.tombstone_key(&enforced)),
            None,
            "a tombstone is no record"
        );
        assert_eq!(names.stored_at(&names.tombstone_key(&shadow)), Some((shadow, true)));
        assert_eq!(names.stored_at(&names.record_key(&shadow)), Some((shadow, false)));
        let of_empty = [
            names.epoch_key(3),
            names.ping_key(None),
            names.ping_key(Some(3)),
            names.gateways_key(),
        ];
        assert!(of_empty.iter().all(|name| names.is_of_an_empty_store(name)));
        let others = [
            names.note_key(Note::Identities),
            names.note_key(Note::Paths),
            names.record_key(&shadow),
            names.chain_key(1),
            names.copy_key(),
            names.outbox_due_key(1, "ping"),
        ];
        assert!(others.iter().all(|name| !names.is_of_an_empty_store(name)));
    }

    #[test]
    fn the_names_of_two_namespaces_have_nothing_in_common() {
        let slot = Slot::from_hash(Space::Enforced, [7; SLOT_BYTES]);
        let [mine, theirs] =
            ["billing_eu-1", "billing_eu-1x"].map(|namespace| KeyNames::new(namespace).unwrap());
        let name = mine.record_key(&slot);
        assert!(name.starts_with(b"billing_eu-1:{p7}:r:07"));
        assert_eq!((mine.slot_of(&name), theirs.slot_of(&name)), (Some(slot), None));
        assert_eq!(text(mine.ping_key(None)), "billing_eu-1:ping");
        assert_eq!(
            (mine.records_match(), mine.all_match()),
            ("billing_eu-1:{p*}:r:*".into(), "billing_eu-1:*".into())
        );
        for odd in ["", "a:b", "a{b", "a*", "a b", "\u{e4}", &"a".repeat(65)] {
            assert!(KeyNames::new(odd).is_none(), "{odd}");
        }
        assert!(KeyNames::new(&"a".repeat(64)).is_some());
    }

    #[test]
    fn numbers_are_written_as_everybody_does() {
        for number in [0, 9, 10, 255, 1_800_000_000_000, u64::MAX] {
            let mut out = b"at ".to_vec();
            decimal(&mut out, number);
            assert_eq!(text(out), format!("at {number}"));
        }
    }

    #[test]
    fn a_stamped_value_is_read_back_and_one_cut_short_is_an_error() {
        let record = completed(7);
        let encoded = encode(&record);
        let value = stamped(&encoded.head, 1000, &encoded.payload);
        assert_eq!(
            read(value.clone(), 2000),
            Ok(Held { record, written_ms: 1000, due_ms: 0, now_ms: 2000 })
        );
        for length in 0..=STAMPED_BYTES {
            assert_eq!(
                read(value[..length].to_vec(), 2000),
                Err(CodecError::Malformed),
                "cut to {length}"
            );
        }
    }
}
