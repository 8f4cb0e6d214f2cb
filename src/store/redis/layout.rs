//! How records lie in Redis: the names of keys and channels, and the stamped value.
//!
//! All names of a partition share its hash tag, so that one script may change a record, its tombstone and the index in
//! one step, on a cluster too. This is a storage format: what is written here is read by older and newer gateways.

use std::sync::Arc;

use bytes::Bytes;

use crate::hex;
use crate::key::{SLOT_BYTES, Slot, Space};
use crate::record::{CodecError, HEAD_BYTES, Held, decode};
use crate::store::Note;
pub(super) use crate::store::log::{member, slot_of_member};

/// Longest namespace, in bytes.
const NAMESPACE_MAX: usize = 64;

/// The names of a store's keys and channels. All of them begin with the store's namespace and a colon, which no namespace has:
/// so no name of one store is a name of another. Cheap to clone.
#[derive(Clone)]
pub(super) struct Names {
    /// The namespace with its colon.
    prefix: Arc<str>,
}

impl Names {
    /// The names in a namespace: 1 to 64 letters, digits, `_` or `-` (ASCII). `None` for any other text.
    pub(super) fn new(namespace: &str) -> Option<Names> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        let sound = (1..=NAMESPACE_MAX).contains(&namespace.len()) && namespace.bytes().all(plain);
        sound.then(|| Names { prefix: format!("{namespace}:").into() })
    }

    /// The pattern that the names of all records that people may list match.
    pub(super) fn records_match(&self) -> String {
        format!("{}{{p*}}:r:*", self.prefix)
    }

    /// The pattern that all names match.
    pub(super) fn all_match(&self) -> String {
        format!("{}*", self.prefix)
    }

    /// The key that [`super::Redis`] writes to see whether a server accepts writes: of a cluster's node, in a partition that
    /// it holds.
    pub(super) fn ping_key(&self, partition: Option<u16>) -> Vec<u8> {
        match partition {
            None => [self.prefix.as_bytes(), b"ping"].concat(),
            Some(partition) => self.in_partition(partition, b"ping"),
        }
    }

    /// The key of a note, one for the whole store.
    pub(super) fn note_key(&self, note: Note) -> Vec<u8> {
        let name: &[u8] = match note {
            Note::Identities => b"identities",
            Note::Paths => b"paths",
        };
        self.in_partition(NOTES_PARTITION, name)
    }

    /// The key of a slot's record.
    pub(super) fn record_key(&self, slot: &Slot) -> Vec<u8> {
        self.named(slot, "r", "s")
    }

    /// The key of a slot's tombstone.
    pub(super) fn tombstone_key(&self, slot: &Slot) -> Vec<u8> {
        self.named(slot, "t", "st")
    }

    /// The key of a partition's index of unsettled records: members by when they are due.
    pub(super) fn due_key(&self, partition: u16) -> Vec<u8> {
        self.in_partition(partition, b"due")
    }

    /// The key of a partition's epoch, which every claim names. It has no end: who loses it has lost records too.
    pub(super) fn epoch_key(&self, partition: u16) -> Vec<u8> {
        self.in_partition(partition, b"epoch")
    }

    /// The key of a partition's event log, a stream. Each entry has one field: its name is the link, its value digest, member and event.
    pub(super) fn events_key(&self, partition: u16) -> Vec<u8> {
        self.in_partition(partition, b"events")
    }

    /// The key of the last entry of a partition's log, a hash: its link (`l`) and its id (`i`).
    pub(super) fn chain_key(&self, partition: u16) -> Vec<u8> {
        self.in_partition(partition, b"chain")
    }

    /// The key of the last entry that was trimmed from a partition's log, a hash like that of the last.
    pub(super) fn trimmed_key(&self, partition: u16) -> Vec<u8> {
        self.in_partition(partition, b"trimmed")
    }

    /// The key of the readers of a partition's log: how far each has read, and when it was heard of.
    pub(super) fn readers_key(&self, partition: u16) -> Vec<u8> {
        self.in_partition(partition, b"readers")
    }

    /// The key of observations, a stream: one for the whole store.
    pub(super) fn observations_key(&self) -> Vec<u8> {
        self.in_partition(OBSERVATIONS_PARTITION, b"observations")
    }

    /// The key of what they take, in bytes.
    pub(super) fn observed_bytes_key(&self) -> Vec<u8> {
        self.in_partition(OBSERVATIONS_PARTITION, b"observed_bytes")
    }

    /// The key of what each of their batches takes, in bytes: a list in the order of the stream.
    pub(super) fn observed_sizes_key(&self) -> Vec<u8> {
        self.in_partition(OBSERVATIONS_PARTITION, b"observed_sizes")
    }

    /// The key of the gateways that use the store, a hash: by name, when each was last heard of.
    pub(super) fn gateways_key(&self) -> Vec<u8> {
        self.in_partition(GATEWAYS_PARTITION, b"gateways")
    }

    /// The key of how far a copy into this store is. It is there only until the copy is complete.
    pub(super) fn copy_key(&self) -> Vec<u8> {
        self.in_partition(COPY_PARTITION, b"copy")
    }

    /// Whether a store that never had a record may have this name: what gateways and `onceward doctor` write at their start, or an
    /// interrupted beginning of a copy.
    pub(super) fn is_of_an_empty_store(&self, name: &[u8]) -> bool {
        let last = name.rsplit(|byte| *byte == b':').next().unwrap_or_default();
        matches!(last, b"epoch" | b"ping" | b"gateways")
    }

    /// The slot that a record's key names. The channel that wakes who waits for a slot has the same name.
    pub(super) fn slot_of(&self, name: &[u8]) -> Option<Slot> {
        self.stored_at(name).and_then(|(slot, tombstone)| (!tombstone).then_some(slot))
    }

    /// The slot whose record or tombstone has this key, and whether it is the tombstone.
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

    fn in_partition(&self, partition: u16, what: &[u8]) -> Vec<u8> {
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

    /// The beginning of all names of a partition. Written digit by digit: this is done several times for every request.
    fn tagged(&self, partition: u16) -> Vec<u8> {
        let mut name = Vec::with_capacity(self.prefix.len() + NAME_BYTES);
        name.extend_from_slice(self.prefix.as_bytes());
        name.extend_from_slice(b"{p");
        decimal(&mut name, u64::from(partition));
        name.extend_from_slice(b"}:");
        name
    }
}

/// The partition under whose tag the notes lie.
pub(super) const NOTES_PARTITION: u16 = 0;

/// The partition under whose tag the gateways lie.
pub(super) const GATEWAYS_PARTITION: u16 = 0;

/// The partition under whose tag the progress of a copy lies.
pub(super) const COPY_PARTITION: u16 = 0;

/// The last byte of the head of a record that is in flight, as the scripts compare it.
pub(super) const IN_FLIGHT: u8 = 1;

/// Room for the longest name behind its prefix.
const NAME_BYTES: usize = "{p255}:st:".len() + 2 * SLOT_BYTES;

/// Bytes in front of a payload: the head, when it was written and when it is due.
const STAMPED_BYTES: usize = HEAD_BYTES + 8 + 8;

/// The partition under whose tag those lie.
pub(super) const OBSERVATIONS_PARTITION: u16 = 0;

/// What a cluster makes the hash slot of a partition's names from.
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

/// A value that never falls due, written at this time (ms since 1970).
pub(super) fn stamped(head: &[u8; HEAD_BYTES], written_ms: u64, payload: &[u8]) -> Vec<u8> {
    [head, &written_ms.to_be_bytes()[..], &0_u64.to_be_bytes(), payload].concat()
}

/// Reads a stored value. The reply's body shares its memory.
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
        let names = Names::new("onceward").unwrap();
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
        ];
        assert!(others.iter().all(|name| !names.is_of_an_empty_store(name)));
    }

    #[test]
    fn the_names_of_two_namespaces_have_nothing_in_common() {
        let slot = Slot::from_hash(Space::Enforced, [7; SLOT_BYTES]);
        let [mine, theirs] =
            ["billing_eu-1", "billing_eu-1x"].map(|namespace| Names::new(namespace).unwrap());
        let name = mine.record_key(&slot);
        assert!(name.starts_with(b"billing_eu-1:{p7}:r:07"));
        assert_eq!((mine.slot_of(&name), theirs.slot_of(&name)), (Some(slot), None));
        assert_eq!(text(mine.ping_key(None)), "billing_eu-1:ping");
        assert_eq!(
            (mine.records_match(), mine.all_match()),
            ("billing_eu-1:{p*}:r:*".into(), "billing_eu-1:*".into())
        );
        for odd in ["", "a:b", "a{b", "a*", "a b", "\u{e4}", &"a".repeat(65)] {
            assert!(Names::new(odd).is_none(), "{odd}");
        }
        assert!(Names::new(&"a".repeat(64)).is_some());
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
