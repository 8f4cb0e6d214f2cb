//! How records lie in Redis: the names of keys and channels, and the stamped value.
//!
//! All names of a partition share its hash tag, so that one script may change a record, its tombstone and the index in
//! one step, on a cluster too. This is a storage format: what is written here is read by older and newer gateways.

use bytes::Bytes;

use crate::key::{SLOT_BYTES, Slot, Space};
use crate::record::{CodecError, HEAD_BYTES, Held, decode};
pub(super) use crate::store::log::{member, slot_of_member};

/// What the names of all records that people may list match.
pub(super) const RECORDS_MATCH: &str = "onceward:{p*}:r:*";

/// What all names of keys and channels match.
pub(super) const ALL_MATCH: &str = "onceward:*";

/// The key that [`super::Redis`] writes to see whether a server accepts writes: of a cluster's node, in a partition that
/// it holds.
pub(super) fn ping_key(partition: Option<u16>) -> Vec<u8> {
    match partition {
        None => b"onceward:ping".to_vec(),
        Some(partition) => in_partition(partition, b"ping"),
    }
}

/// The key of what identities are made of, one for the whole store.
pub(super) fn identities_key() -> Vec<u8> {
    in_partition(IDENTITIES_PARTITION, b"identities")
}

/// The partition under whose tag that lies.
pub(super) const IDENTITIES_PARTITION: u16 = 0;

/// The last byte of the head of a record that is in flight, as the scripts compare it.
pub(super) const IN_FLIGHT: u8 = 1;

/// The same of one that is completed.
pub(super) const COMPLETED: u8 = 3;

/// Whether a stored value is a completed record, by its head.
pub(super) fn is_completed(value: &[u8]) -> bool {
    value.get(HEAD_BYTES - 1) == Some(&COMPLETED)
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Room for the longest name.
const NAME_BYTES: usize = "onceward:{p255}:st:".len() + 2 * SLOT_BYTES;

/// Bytes in front of a payload: the head, when it was written and when it is due.
const STAMPED_BYTES: usize = HEAD_BYTES + 8 + 8;

/// The key of a slot's record.
pub(super) fn record_key(slot: &Slot) -> Vec<u8> {
    named(slot, "r", "s")
}

/// The key of a slot's tombstone.
pub(super) fn tombstone_key(slot: &Slot) -> Vec<u8> {
    named(slot, "t", "st")
}

/// The key of a partition's index of unsettled records: members by when they are due.
pub(super) fn due_key(partition: u16) -> Vec<u8> {
    in_partition(partition, b"due")
}

/// The key of a partition's epoch, which every claim names. It has no end: who loses it has lost records too.
pub(super) fn epoch_key(partition: u16) -> Vec<u8> {
    in_partition(partition, b"epoch")
}

/// The key of a partition's event log, a stream. Each entry has one field: its name is the link, its value digest, member and event.
pub(super) fn events_key(partition: u16) -> Vec<u8> {
    in_partition(partition, b"events")
}

/// The key of the last entry of a partition's log, a hash: its link (`l`) and its id (`i`).
pub(super) fn chain_key(partition: u16) -> Vec<u8> {
    in_partition(partition, b"chain")
}

/// The key of the last entry that was trimmed from a partition's log, a hash like that of the last.
pub(super) fn trimmed_key(partition: u16) -> Vec<u8> {
    in_partition(partition, b"trimmed")
}

/// The key of the readers of a partition's log: how far each has read, and when it was heard of.
pub(super) fn readers_key(partition: u16) -> Vec<u8> {
    in_partition(partition, b"readers")
}

/// The key of observations, a stream: one for the whole store.
pub(super) fn observations_key() -> Vec<u8> {
    in_partition(OBSERVATIONS_PARTITION, b"observations")
}

/// The key of what they take, in bytes.
pub(super) fn observed_bytes_key() -> Vec<u8> {
    in_partition(OBSERVATIONS_PARTITION, b"observed_bytes")
}

/// The key of what each of their batches takes, in bytes: a list in the order of the stream.
pub(super) fn observed_sizes_key() -> Vec<u8> {
    in_partition(OBSERVATIONS_PARTITION, b"observed_sizes")
}

/// The partition under whose tag those lie.
pub(super) const OBSERVATIONS_PARTITION: u16 = 0;

fn in_partition(partition: u16, what: &[u8]) -> Vec<u8> {
    let mut name = tagged(partition);
    name.extend_from_slice(what);
    name
}

/// What a cluster makes the hash slot of a partition's names from.
pub(super) fn tag(partition: u16) -> String {
    format!("p{partition}")
}

fn named(slot: &Slot, enforced: &str, shadow: &str) -> Vec<u8> {
    let kind = match slot.space {
        Space::Enforced => enforced,
        Space::Shadow => shadow,
    };
    let mut name = tagged(slot.partition());
    name.extend_from_slice(kind.as_bytes());
    name.push(b':');
    for byte in slot.hash() {
        name.push(HEX[usize::from(byte >> 4)]);
        name.push(HEX[usize::from(byte & 15)]);
    }
    name
}

/// The beginning of all names of a partition. Written digit by digit: this is done several times for every request.
fn tagged(partition: u16) -> Vec<u8> {
    let mut name = Vec::with_capacity(NAME_BYTES);
    name.extend_from_slice(b"onceward:{p");
    decimal(&mut name, u64::from(partition));
    name.extend_from_slice(b"}:");
    name
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

/// The slot that a record's key names. The channel that wakes who waits for a slot has the same name.
pub(super) fn slot_of(name: &[u8]) -> Option<Slot> {
    let name = std::str::from_utf8(name).ok()?;
    let (rest, hex) = name.rsplit_once(':')?;
    let (_, kind) = rest.rsplit_once(':')?;
    let space = match kind {
        "r" => Space::Enforced,
        "s" => Space::Shadow,
        _ => return None,
    };
    let slot = Slot::from_reference(&format!("op_{hex}")).ok()?;
    Some(Slot::from_hash(space, *slot.hash()))
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
    Ok(Held { record, written_ms: u64::from_be_bytes(*written), due_ms: u64::from_be_bytes(*due), now_ms })
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
        let mut hash = [0xab; SLOT_BYTES];
        hash[0] = 255;
        let (enforced, shadow) = (Slot::from_hash(Space::Enforced, hash), Slot::from_hash(Space::Shadow, hash));
        let digits = "ff".to_owned() + &"ab".repeat(SLOT_BYTES - 1);
        for (name, expected) in [
            (record_key(&enforced), format!("onceward:{{p255}}:r:{digits}")),
            (record_key(&shadow), format!("onceward:{{p255}}:s:{digits}")),
            (tombstone_key(&enforced), format!("onceward:{{p255}}:t:{digits}")),
            (tombstone_key(&shadow), format!("onceward:{{p255}}:st:{digits}")),
            (due_key(7), "onceward:{p7}:due".into()),
            (epoch_key(10), "onceward:{p10}:epoch".into()),
            (events_key(0), "onceward:{p0}:events".into()),
            (chain_key(99), "onceward:{p99}:chain".into()),
            (trimmed_key(100), "onceward:{p100}:trimmed".into()),
            (readers_key(42), "onceward:{p42}:readers".into()),
            (observations_key(), "onceward:{p0}:observations".into()),
            (observed_bytes_key(), "onceward:{p0}:observed_bytes".into()),
            (observed_sizes_key(), "onceward:{p0}:observed_sizes".into()),
            (identities_key(), "onceward:{p0}:identities".into()),
            (ping_key(None), "onceward:ping".into()),
            (ping_key(Some(3)), "onceward:{p3}:ping".into()),
            (tag(31).into_bytes(), "p31".into()),
        ] {
            assert_eq!(text(name), expected);
        }
        assert_eq!(slot_of(&record_key(&shadow)), Some(shadow));
        assert_eq!(slot_of(&tombstone_key(&enforced)), None, "a tombstone is no record");
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
        assert_eq!(read(value.clone(), 2000), Ok(Held { record, written_ms: 1000, due_ms: 0, now_ms: 2000 }));
        for length in 0..=STAMPED_BYTES {
            assert_eq!(read(value[..length].to_vec(), 2000), Err(CodecError::Malformed), "cut to {length}");
        }
    }
}
