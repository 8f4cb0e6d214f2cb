//! Verification of logs that are intact, changed, or trimmed during the verification.

use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::*;
use crate::key::Space;
use crate::store::log::{Position, Trimmed};
use crate::store::suite::slot;

/// Entries that one read of the log returns.
const AT_ONCE: usize = 2;

/// A log of two partitions. Each change in `later` happens after its number of reads.
struct Kept {
    partitions: Mutex<Vec<(Vec<LogEntry>, Ends)>>,
    later: Mutex<Vec<(usize, Change)>>,
    readings: Mutex<usize>,
}

type Change = fn(&mut Vec<LogEntry>, &mut Ends);

fn id(n: u64) -> EntryId {
    EntryId { ms: n, seq: 0 }
}

/// Partitions 3 and 7 with this number of entries each. Ids count from 1.
fn log(entries: u64) -> Kept {
    let partitions = [3, 7].map(|partition| {
        let mut written: Vec<LogEntry> = Vec::new();
        for n in 1..=entries {
            let (slot, event) = (slot(Space::Enforced, n), Bytes::from(format!("event {n}")));
            let link = Link::of(written.last().and_then(|last| last.link), &member(&slot), &event);
            written.push(LogEntry { partition, id: id(n), slot, event, link: Some(link) });
        }
        let last = written.last().and_then(mark).unwrap();
        (written, Ends { partition, trimmed: None, last })
    });
    Kept {
        partitions: Mutex::new(partitions.into()),
        later: Mutex::default(),
        readings: Mutex::default(),
    }
}

fn mark(entry: &LogEntry) -> Option<Mark> {
    entry.link.map(|link| Mark { id: entry.id, link })
}

fn trim(entries: &mut Vec<LogEntry>, ends: &mut Ends, count: usize) {
    ends.trimmed = entries.drain(..count).next_back().as_ref().and_then(mark);
}

impl Kept {
    /// Changes the first partition.
    fn changed(self, change: Change) -> Kept {
        if let Some((entries, ends)) = self.partitions.lock().unwrap().first_mut() {
            change(entries, ends);
        }
        self
    }

    /// Changes the first partition after this number of reads.
    fn later(self, readings: usize, change: Change) -> Kept {
        self.later.lock().unwrap().push((readings, change));
        self
    }

    async fn breaks(&self) -> Vec<(u16, u64, ChainFault)> {
        let progress = verify(self, None, usize::MAX).await.unwrap();
        assert_eq!(progress.cursor, None);
        progress.breaks.iter().map(|found| (found.partition, found.id.ms, found.fault)).collect()
    }
}

#[async_trait]
impl EventLog for Kept {
    async fn read(&self, _: &Position, _: usize) -> Result<Vec<LogEntry>, StoreError> {
        unreachable!("partitions are verified one by one")
    }
    async fn read_partition(
        &self,
        partition: u16,
        from: EntryId,
        limit: usize,
    ) -> Result<Vec<LogEntry>, StoreError> {
        let mut partitions = self.partitions.lock().unwrap();
        let (entries, _) = partitions.iter().find(|(_, ends)| ends.partition == partition).unwrap();
        let read = entries
            .iter()
            .filter(|entry| entry.id > from)
            .take(limit.min(AT_ONCE))
            .cloned()
            .collect();
        let mut readings = self.readings.lock().unwrap();
        *readings += 1;
        let (entries, ends) = &mut partitions[0];
        self.later
            .lock()
            .unwrap()
            .iter()
            .filter(|(at, _)| *at == *readings)
            .for_each(|(_, change)| change(entries, ends));
        Ok(read)
    }
    async fn mark_read(&self, _: &str, _: &Position) -> Result<(), StoreError> {
        Ok(())
    }
    async fn read_by(&self, _: &str) -> Result<Option<Position>, StoreError> {
        Ok(None)
    }
    async fn trim(&self, _: Duration) -> Result<Trimmed, StoreError> {
        Ok(Trimmed::default())
    }
    async fn observe(&self, _: &[u8]) -> Result<(), StoreError> {
        Ok(())
    }
    async fn observations(
        &self,
        _: EntryId,
        _: usize,
    ) -> Result<Vec<(EntryId, Bytes)>, StoreError> {
        Ok(Vec::new())
    }
    async fn ends(&self) -> Result<Vec<Ends>, StoreError> {
        Ok(self.partitions.lock().unwrap().iter().map(|(_, ends)| *ends).collect())
    }
}

#[tokio::test]
async fn what_was_written_is_whole() {
    let progress = verify(&log(5), None, usize::MAX).await.unwrap();
    assert_eq!(progress, Verification { entries: 10, breaks: vec![], cursor: None });
    assert_eq!(log(5).changed(|entries, ends| trim(entries, ends, 2)).breaks().await, []);
    assert_eq!(
        log(5).changed(|entries, ends| trim(entries, ends, 5)).breaks().await,
        [],
        "all of it"
    );
}

#[tokio::test]
async fn each_change_is_one_break_at_its_place() {
    let unlinked = |n| [(3, n, ChainFault::Unlinked)];
    let event: Change = |entries, _| entries[1].event = Bytes::from_static(b"another");
    assert_eq!(log(5).changed(event).breaks().await, unlinked(2));
    let operation: Change = |entries, _| entries[2].slot = slot(Space::Shadow, 3);
    assert_eq!(log(5).changed(operation).breaks().await, unlinked(3));
    assert_eq!(log(5).changed(|entries, _| entries[2].link = None).breaks().await, unlinked(3));
    assert_eq!(
        log(5).changed(|entries, _| _ = entries.remove(2)).breaks().await,
        unlinked(4),
        "taken out"
    );
    let trimmed_and_taken: Change = |entries, ends| {
        trim(entries, ends, 2);
        entries.remove(0);
    };
    assert_eq!(log(5).changed(trimmed_and_taken).breaks().await, unlinked(4));
    assert_eq!(
        log(5).changed(|entries, _| _ = entries.drain(..2)).breaks().await,
        unlinked(3),
        "not by trimming"
    );
}

#[tokio::test]
async fn an_end_that_was_cut_off_is_found() {
    let cut_off = [(3, 5, ChainFault::CutOff)];
    assert_eq!(log(5).changed(|entries, _| entries.truncate(4)).breaks().await, cut_off);
    assert_eq!(log(5).changed(|entries, _| entries.clear()).breaks().await, cut_off);
    let trimmed_and_cut: Change = |entries, ends| {
        trim(entries, ends, 4);
        entries.clear();
    };
    assert_eq!(log(5).changed(trimmed_and_cut).breaks().await, cut_off);
    // The last entry is replaced by one with a valid link. It still differs from the entry that was
    // written.
    let forged: Change = |entries, _| {
        let before = entries[3].link;
        entries[4].event = Bytes::from_static(b"another");
        entries[4].link = Some(Link::of(before, &member(&entries[4].slot), b"another"));
    };
    assert_eq!(log(5).changed(forged).breaks().await, cut_off);
}

#[tokio::test]
async fn what_is_trimmed_while_it_is_looked_at_is_no_break() {
    let mid: Change = |entries, ends| trim(entries, ends, 4);
    assert_eq!(
        log(7).later(1, mid).breaks().await,
        [],
        "two were read, four are gone, the fifth goes on from the fourth"
    );
    let all: Change = |entries, ends| trim(entries, ends, 7);
    assert_eq!(log(7).later(1, all).breaks().await, [], "all are gone, the last one too");
    let taken: Change = |entries, ends| {
        trim(entries, ends, 4);
        entries.remove(0);
    };
    assert_eq!(log(7).later(1, taken).breaks().await, [(3, 6, ChainFault::Unlinked)]);
    let cut_off: Change = |entries, ends| {
        trim(entries, ends, 4);
        entries.clear();
    };
    assert_eq!(log(7).later(1, cut_off).breaks().await, [(3, 7, ChainFault::CutOff)]);
    // The log is trimmed no further than it was verified. A fault behind that is still reported.
    let behind: Change = |entries, ends| {
        trim(entries, ends, 1);
        entries.remove(1);
    };
    assert_eq!(log(7).later(1, behind).breaks().await, [(3, 4, ChainFault::Unlinked)]);
}

#[tokio::test]
async fn a_changed_link_counts_though_its_entry_is_trimmed_while_it_is_looked_at() {
    // The mark of the last trimmed entry is unchanged.
    let trim_two: Change = |entries, ends| {
        let link = Link::of(entries[0].link, &member(&entries[1].slot), &entries[1].event);
        ends.trimmed = Some(Mark { id: entries[1].id, link });
        entries.drain(..2);
    };
    let taken_out: Change = |entries, _| entries[1].link = None;
    assert_eq!(
        log(7).changed(taken_out).later(1, trim_two).breaks().await,
        [(3, 2, ChainFault::Unlinked)]
    );
    let another: Change = |entries, _| entries[1].link = Link::from_bytes(&[b'0'; LINK_BYTES]);
    let both = [(3, 2, ChainFault::Unlinked), (3, 3, ChainFault::Unlinked)];
    assert_eq!(log(7).changed(another).breaks().await, both);
    assert_eq!(
        log(7).changed(another).later(1, trim_two).breaks().await,
        both,
        "as if it were still there"
    );
}

#[tokio::test]
async fn it_goes_on_from_a_cursor_and_through_all_partitions() {
    let log = log(5);
    let (mut cursor, mut pieces) = (None, Vec::new());
    loop {
        let piece = verify(&log, cursor, 4).await.unwrap();
        assert_eq!(piece.breaks, []);
        pieces.push(piece.entries);
        assert!(pieces.len() < 10, "it gets nowhere");
        let Some(next) = piece.cursor else { break };
        assert_eq!(next.to_string().parse(), Ok(next));
        cursor = Some(next);
    }
    assert_eq!(
        pieces,
        [4, 5, 1],
        "a piece ends with what was read at once; the next partition begins a new one"
    );
    let whole = log.changed(|entries, _| entries[0].event = Bytes::from_static(b"another"));
    let later = ChainCursor { partition: 7, behind: None };
    assert_eq!(
        verify(&whole, Some(later), usize::MAX).await.unwrap().breaks,
        [],
        "what lies before the cursor was looked at"
    );
    let Verification { cursor, .. } = verify(&whole, None, 4).await.unwrap();
    assert_eq!(
        verify(&whole, cursor, usize::MAX).await.unwrap(),
        Verification { entries: 6, breaks: vec![], cursor: None }
    );
}

#[tokio::test]
async fn a_cursor_at_the_end_finds_nothing_missing() {
    let log = log(5);
    let last = log.ends().await.unwrap()[1].last;
    let at_end = ChainCursor { partition: 7, behind: Some(last) };
    assert_eq!(verify(&log, Some(at_end), usize::MAX).await.unwrap(), Verification::default());
}

#[test]
fn a_cursor_is_a_place_or_none() {
    let link = "0123456789abcdef0123456789abcdef01234567";
    for text in ["7", &format!("7:5-1:{link}")] {
        assert_eq!(text.parse::<ChainCursor>().unwrap().to_string(), text);
    }
    let long = format!("7:5-1:{link}0");
    let signs = format!("7:5-1:{}", link.replace('a', "x"));
    for odd in [
        "",
        "x",
        "7:",
        "7:5-1",
        "7:5-1:0123",
        &long,
        &signs,
        &format!("7:5:{link}"),
        &format!("7:5-1:{link}:1"),
    ] {
        assert_eq!(odd.parse::<ChainCursor>(), Err(InvalidPosition), "{odd}");
    }
}

#[test]
fn faults_are_described_in_words() {
    assert!(ChainFault::Unlinked.describe().contains("doesn't link"));
    assert!(ChainFault::CutOff.describe().contains("cut off"));
}
