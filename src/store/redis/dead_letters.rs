//! Dead letters in Redis: each partition has those of its operations, and their ids by the time of
//! the burial.
//!
//! A listing merges the partitions. It reads a few ids ahead of each partition, and only the dead
//! letters that it examines: a page costs about the same, however many dead letters there are.

use std::collections::{BTreeMap, VecDeque};

use async_trait::async_trait;
use redis::{Pipeline, Value};

use super::answer::unexpected;
use super::client::Redis;
use super::outbox::is_done;
use super::outbox_values as values;
use super::servers::ServerPartitions;
use super::wakes;
use crate::key::PARTITIONS;
use crate::record::CodecError;
use crate::store::StoreError;
use crate::store::dead_letters::{
    DEAD_LETTERS_EXAMINED_MAX, DeadLetter, DeadLetterCursor, DeadLetterFilter, DeadLetterId,
    DeadLetterPage, DeadLetters, RoundChange,
};

/// Ids that a listing reads ahead of each partition: a page of 1000 has about four of each.
const IDS_AHEAD: usize = 16;

/// Most dead letters in one read. They are up to 64 KiB long.
const LETTERS_PER_READ: usize = 64;

#[async_trait]
impl DeadLetters for Redis {
    async fn dead_letters(
        &self,
        filter: &DeadLetterFilter,
        cursor: Option<DeadLetterCursor>,
        limit: usize,
    ) -> Result<DeadLetterPage, StoreError> {
        let limit = limit.max(1);
        let is_read_whole =
            filter.sink.is_none() && filter.kind.is_none() && filter.operation.is_none();
        let mut merge = Merge::new(self, filter, cursor).await?;
        let (mut letters, mut last, mut examined) = (Vec::new(), cursor, 0);
        while letters.len() < limit && examined < DEAD_LETTERS_EXAMINED_MAX {
            let missing = if is_read_whole { limit - letters.len() } else { LETTERS_PER_READ };
            let count = missing.min(LETTERS_PER_READ).min(DEAD_LETTERS_EXAMINED_MAX - examined);
            let places = merge.take(count).await?;
            if places.is_empty() {
                return Ok(DeadLetterPage { letters, cursor: None });
            }
            for (place, letter) in places.iter().zip(self.letters_at(&merge.groups, &places).await?)
            {
                if letters.len() >= limit {
                    return Ok(DeadLetterPage { letters, cursor: last });
                }
                (last, examined) = (Some(*place), examined + 1);
                letters.extend(letter.filter(|letter| filter.matches(letter)));
            }
        }
        let is_end = merge.first().await?.is_none();
        Ok(DeadLetterPage { letters, cursor: last.filter(|_| !is_end) })
    }

    async fn dead_letter(&self, id: DeadLetterId) -> Result<Option<DeadLetter>, StoreError> {
        let partition = id.partition();
        if partition >= PARTITIONS {
            return Ok(None);
        }
        let mut get = redis::cmd("HGET");
        get.arg(self.names.outbox_dead_key(partition)).arg(id.as_bytes());
        match self.command(partition, &get).await? {
            Value::Nil => Ok(None),
            Value::BulkString(value) => match values::letter(&value) {
                None => Err(CodecError::Malformed.into()),
                letter => Ok(letter),
            },
            _ => Err(unexpected()),
        }
    }

    async fn requeue(&self, id: DeadLetterId, round: RoundChange) -> Result<bool, StoreError> {
        // An id is of one sink, so the sink can't change before the script runs.
        let Some(letter) = self.dead_letter(id).await? else { return Ok(false) };
        let (partition, sink, names) = (id.partition(), &letter.key.sink, &self.names);
        let keys = [
            names.outbox_dead_key(partition),
            names.outbox_dead_at_key(partition),
            names.outbox_counts_key(partition),
            names.outbox_due_key(partition, sink),
            names.outbox_events_key(partition, sink),
            names.outbox_attempts_key(partition, sink),
            names.outbox_old_key(partition, sink),
        ];
        let (channel, wake) = (names.outbox_channel(), wakes::message(partition, sink));
        let (from, to) = (round.from.to_be_bytes(), round.to.to_be_bytes());
        let args: [&[u8]; 6] = [id.as_bytes(), sink.as_bytes(), &channel, &wake, &from, &to];
        let script = &self.scripts.outbox_requeue;
        let is_requeued = is_done(self.run_outbox(partition, script, &keys, &args).await)?;
        if is_requeued {
            self.wakes.send_unconfirmed(partition, sink);
        }
        Ok(is_requeued)
    }

    async fn discard(&self, id: DeadLetterId) -> Result<bool, StoreError> {
        let partition = id.partition();
        if partition >= PARTITIONS {
            return Ok(false);
        }
        let names = &self.names;
        let keys = [
            names.outbox_dead_key(partition),
            names.outbox_dead_at_key(partition),
            names.outbox_counts_key(partition),
        ];
        let script = &self.scripts.outbox_discard;
        is_done(self.run_outbox(partition, script, &keys, &[id.as_bytes()]).await)
    }
}

impl Redis {
    /// Reads the dead letters at these places. `None` for one that is elsewhere or gone meanwhile,
    /// or that can't be read.
    async fn letters_at(
        &self,
        groups: &[ServerPartitions],
        places: &[DeadLetterCursor],
    ) -> Result<Vec<Option<DeadLetter>>, StoreError> {
        let mut letters = vec![None; places.len()];
        for group in groups {
            let mut reading = redis::pipe();
            let mut read = Vec::new();
            for partition in &group.partitions {
                let of =
                    |(_, place): &(usize, &DeadLetterCursor)| place.id.partition() == *partition;
                let mut here = places.iter().enumerate().filter(of).peekable();
                if here.peek().is_some() {
                    reading.cmd("HMGET").arg(self.names.outbox_dead_key(*partition));
                    for (n, place) in here {
                        reading.arg(place.id.as_bytes());
                        read.push(n);
                    }
                }
            }
            if reading.is_empty() {
                continue;
            }
            let answers = self.pipeline_to(group, &reading).await?;
            let values = answers.into_iter().flat_map(|answer| match answer {
                Value::Array(values) => values,
                other => vec![other],
            });
            for (n, value) in read.into_iter().zip(values) {
                let (Some(letter), Some(place)) = (letters.get_mut(n), places.get(n)) else {
                    continue;
                };
                *letter = letter_at(place, &value);
            }
        }
        Ok(letters)
    }
}

fn letter_at(place: &DeadLetterCursor, value: &Value) -> Option<DeadLetter> {
    let Value::BulkString(value) = value else { return None };
    let letter = values::letter(value);
    if letter.is_none() {
        tracing::warn!(id = %place.id, "a dead letter can't be read");
    }
    letter.filter(|letter| letter.buried_ms == place.buried_ms)
}

/// Merges the dead letters of all partitions, latest burial first.
struct Merge<'a> {
    store: &'a Redis,
    groups: Vec<ServerPartitions>,
    since_ms: Option<u64>,
    until_ms: Option<u64>,
    partitions: BTreeMap<u16, PartitionAhead>,
}

/// The ids that are read ahead of a partition.
struct PartitionAhead {
    places: VecDeque<DeadLetterCursor>,
    /// The next read begins behind this place.
    behind: Option<DeadLetterCursor>,
    has_more: bool,
}

impl<'a> Merge<'a> {
    /// Begins behind a place.
    async fn new(
        store: &'a Redis,
        filter: &DeadLetterFilter,
        behind: Option<DeadLetterCursor>,
    ) -> Result<Merge<'a>, StoreError> {
        let ahead = || PartitionAhead { places: VecDeque::new(), behind, has_more: true };
        // The dead letters of an operation are in its partition.
        let of_operation = filter.operation.map(|slot| slot.partition());
        let partitions = of_operation.map_or(0..PARTITIONS, |here| here..here + 1);
        Ok(Merge {
            store,
            groups: store.servers.wait_until_complete(store.deadline()).await?,
            since_ms: filter.since_ms,
            until_ms: filter.until_ms,
            partitions: partitions.map(|partition| (partition, ahead())).collect(),
        })
    }

    /// Takes up to `count` places, fewer only at the end.
    async fn take(&mut self, count: usize) -> Result<Vec<DeadLetterCursor>, StoreError> {
        let mut taken = Vec::new();
        while taken.len() < count
            && let Some(first) = self.first().await?
        {
            if let Some(ahead) = self.partitions.get_mut(&first.id.partition()) {
                ahead.places.pop_front();
            }
            taken.push(first);
        }
        Ok(taken)
    }

    /// Returns the next place; `None` at the end.
    async fn first(&mut self) -> Result<Option<DeadLetterCursor>, StoreError> {
        if self.partitions.values().any(PartitionAhead::is_wanting) {
            self.read_ahead().await?;
        }
        // A partition that is read to its end needs no place in the search.
        self.partitions.retain(|_, ahead| !ahead.places.is_empty());
        Ok(self.partitions.values().filter_map(|ahead| ahead.places.front()).max().copied())
    }

    /// Reads ids of each partition that has none ahead.
    async fn read_ahead(&mut self) -> Result<(), StoreError> {
        for group in &self.groups {
            let (mut reading, mut read) = (redis::pipe(), Vec::new());
            for partition in &group.partitions {
                let Some(ahead) = self.partitions.get(partition) else { continue };
                if ahead.is_wanting() {
                    let reads = self.push_reads(&mut reading, *partition, ahead.behind);
                    read.push((*partition, reads));
                }
            }
            if reading.is_empty() {
                continue;
            }
            let mut answers = self.store.pipeline_to(group, &reading).await?.into_iter();
            for (partition, reads) in read {
                let Some(ahead) = self.partitions.get_mut(&partition) else { continue };
                for answer in answers.by_ref().take(reads) {
                    ahead.add(partition, answer)?;
                }
            }
        }
        Ok(())
    }

    /// Adds the commands that read the ids of a partition behind a place. Returns their number. The
    /// last one reads the earlier burials. The one before it reads those of the same millisecond.
    fn push_reads(
        &self,
        reading: &mut Pipeline,
        partition: u16,
        behind: Option<DeadLetterCursor>,
    ) -> usize {
        let key = self.store.names.outbox_dead_at_key(partition);
        let min = self.since_ms.map_or("-inf".to_owned(), |since_ms| since_ms.to_string());
        let is_in_span = |ms: u64| {
            self.since_ms.is_none_or(|since_ms| ms >= since_ms)
                && self.until_ms.is_none_or(|until_ms| ms < until_ms)
        };
        // The ids of later partitions are greater, so those with the same time were listed before.
        let same_ms = behind
            .filter(|behind| partition <= behind.id.partition() && is_in_span(behind.buried_ms));
        let mut reads = 1;
        if let Some(DeadLetterCursor { buried_ms, .. }) = same_ms {
            reading.cmd("ZREVRANGEBYSCORE").arg(&key).arg(buried_ms).arg(buried_ms);
            reading.arg("WITHSCORES");
            reads += 1;
        }
        let before = self.until_ms.into_iter().chain(behind.map(|behind| behind.buried_ms)).min();
        let max = before.map_or("+inf".to_owned(), |before_ms| format!("({before_ms}"));
        reading.cmd("ZREVRANGEBYSCORE").arg(&key).arg(max).arg(min).arg("WITHSCORES");
        reading.arg("LIMIT").arg(0).arg(IDS_AHEAD);
        reads
    }
}

impl PartitionAhead {
    fn is_wanting(&self) -> bool {
        self.places.is_empty() && self.has_more
    }

    /// Adds the answer to a read of ids, in their order. Leaves out ids that were listed before.
    fn add(&mut self, partition: u16, answer: Value) -> Result<(), StoreError> {
        let found: Vec<(Vec<u8>, f64)> =
            redis::from_redis_value(answer).map_err(|_| unexpected())?;
        // Only the last answer counts: the one before it has no limit.
        self.has_more = found.len() >= IDS_AHEAD;
        for (id, buried_ms) in found {
            let id = id.as_slice().try_into().map_err(|_| unexpected())?;
            let place =
                DeadLetterCursor { buried_ms: buried_ms as u64, id: DeadLetterId::from_bytes(id) };
            let is_next = self.behind.is_none_or(|behind| place < behind);
            // Another program may have written an id of another partition.
            if is_next && place.id.partition() == partition {
                self.places.push_back(place);
                self.behind = Some(place);
            }
        }
        Ok(())
    }
}
