//! The event log in Redis: a stream for each partition, to which the claim and change scripts
//! append.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::try_join_all;
use redis::Value;

use super::answer::{array, unexpected};
use super::client::Redis;
use super::connection::CallError;
use super::layout;
use super::servers::ServerPartitions;
use super::time::millis;
use crate::key::PARTITIONS;
use crate::store::StoreError;
use crate::store::log::{
    DIGEST_BYTES, Ends, EntryId, EventLog, Link, LogEntry, MEMBER_BYTES, Mark, OBSERVED_BYTES_MAX,
    OBSERVED_ENTRY_BYTES, Position, Trimmed, slot_of_member,
};

/// Limit for the entries of one partition that one call trims. They take a fraction of a
/// millisecond of the server's time.
const TRIMMED_PER_PARTITION: usize = 200;

impl Redis {
    /// Reads the logs of a server's partitions, up to `count` entries of each.
    async fn read_at(
        &self,
        group: &ServerPartitions,
        from: &Position,
        count: usize,
    ) -> Result<Vec<LogEntry>, StoreError> {
        // One command reads all partitions, because most of them are empty most of the time. On a
        // cluster, each partition needs a command of its own, because partitions have different
        // hash slots.
        let at_once = if self.servers.is_cluster() { 1 } else { group.partitions.len().max(1) };
        let mut reading = redis::pipe();
        for partitions in group.partitions.chunks(at_once) {
            reading.cmd("XREAD").arg("COUNT").arg(count).arg("STREAMS");
            partitions
                .iter()
                .for_each(|partition| _ = reading.arg(self.names.events_key(*partition)));
            partitions
                .iter()
                .for_each(|partition| _ = reading.arg(from.of(*partition).to_string()));
        }
        let mut entries = Vec::new();
        for (answer, partitions) in self
            .pipeline_to(group, &reading)
            .await?
            .into_iter()
            .zip(group.partitions.chunks(at_once))
        {
            let mut streams = partitions.iter();
            for (name, found) in streams_of(answer)? {
                // The answer has the streams in the order of the request, without the empty ones.
                let partition = streams
                    .find(|partition| self.names.events_key(**partition) == name)
                    .ok_or_else(unexpected)?;
                for value in found {
                    entries.push(entry(*partition, value)?);
                }
            }
        }
        Ok(entries)
    }

    /// Removes the oldest batches of observations while all batches take too many bytes. Also
    /// removes batches older than `keep_ms`, unless that is empty. Returns the number of removed
    /// batches.
    async fn forget_observed(&self, keep_ms: &[u8]) -> Result<usize, StoreError> {
        let keys = [
            self.names.observations_key(),
            self.names.observed_bytes_key(),
            self.names.observed_sizes_key(),
        ];
        let (bytes_max, count) =
            (OBSERVED_BYTES_MAX.to_string(), TRIMMED_PER_PARTITION.to_string());
        let args: [&[u8]; 3] = [bytes_max.as_bytes(), keep_ms, count.as_bytes()];
        let script = &self.scripts.forget_observed;
        let answer = self
            .run(layout::OBSERVATIONS_PARTITION, script, (&keys, &args), None, self.deadline())
            .await?;
        redis::from_redis_value(answer).map_err(|_| unexpected())
    }

    async fn ends_where(&self, wanted: impl Fn(u16) -> bool) -> Result<Vec<Ends>, StoreError> {
        self.servers.complete()?;
        let groups = self.servers.groups();
        let mut ends =
            try_join_all(groups.iter().map(|group| self.ends_at(group, &wanted))).await?.concat();
        ends.sort_by_key(|ends| ends.partition);
        Ok(ends)
    }

    /// Returns the ends of a server's partitions, but only of those that `wanted` selects.
    async fn ends_at(
        &self,
        group: &ServerPartitions,
        wanted: impl Fn(u16) -> bool,
    ) -> Result<Vec<Ends>, StoreError> {
        let partitions: Vec<u16> =
            group.partitions.iter().copied().filter(|partition| wanted(*partition)).collect();
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let mut reading = redis::pipe();
        for partition in &partitions {
            for key in [self.names.chain_key(*partition), self.names.trimmed_key(*partition)] {
                reading.cmd("HMGET").arg(key).arg("l").arg("i");
            }
        }
        let mut answers = self.pipeline_to(group, &reading).await?.into_iter();
        let mut ends = Vec::new();
        for partition in &partitions {
            let (last, trimmed) = answers.next().zip(answers.next()).ok_or_else(unexpected)?;
            if let Some(last) = mark(last)? {
                ends.push(Ends { partition: *partition, trimmed: mark(trimmed)?, last });
            }
        }
        Ok(ends)
    }
}

#[async_trait]
impl EventLog for Redis {
    async fn read(&self, from: &Position, limit: usize) -> Result<Vec<LogEntry>, StoreError> {
        self.servers.complete()?;
        let count = (limit / usize::from(PARTITIONS)).max(1);
        let groups = self.servers.groups();
        Ok(try_join_all(groups.iter().map(|group| self.read_at(group, from, count)))
            .await?
            .concat())
    }

    async fn read_partition(
        &self,
        partition: u16,
        from: EntryId,
        limit: usize,
    ) -> Result<Vec<LogEntry>, StoreError> {
        let mut read = redis::cmd("XREAD");
        read.arg("COUNT")
            .arg(limit.max(1))
            .arg("STREAMS")
            .arg(self.names.events_key(partition))
            .arg(from.to_string());
        let found = streams_of(self.command(partition, &read).await?)?
            .into_iter()
            .flat_map(|(_, found)| found);
        found.map(|value| entry(partition, value)).collect()
    }

    async fn mark_read(&self, reader: &str, read: &Position) -> Result<(), StoreError> {
        self.servers.complete()?;
        let reported_ms = self.now_ms(0).await?;
        let mark_at = async |group: &ServerPartitions| {
            let mut marking = redis::pipe();
            for partition in &group.partitions {
                let value = format!("{} {reported_ms}", read.of(*partition));
                marking.cmd("HSET").arg(self.names.readers_key(*partition)).arg(reader).arg(value);
            }
            self.pipeline_to(group, &marking).await.map(drop)
        };
        try_join_all(self.servers.groups().iter().map(mark_at)).await.map(drop)
    }

    async fn read_by(&self, reader: &str) -> Result<Option<Position>, StoreError> {
        self.servers.complete()?;
        let read_at = async |group: &ServerPartitions| {
            let mut reading = redis::pipe();
            group
                .partitions
                .iter()
                .for_each(|p| _ = reading.cmd("HGET").arg(self.names.readers_key(*p)).arg(reader));
            let answers = self.pipeline_to(group, &reading).await?;
            let read = group.partitions.iter().zip(answers).filter_map(|(partition, answer)| {
                let text: String = redis::from_redis_value(answer).ok()?;
                Some((*partition, text.split_once(' ')?.0.parse().ok()?))
            });
            Ok::<BTreeMap<u16, EntryId>, StoreError>(read.collect())
        };
        let read: BTreeMap<u16, EntryId> = try_join_all(self.servers.groups().iter().map(read_at))
            .await?
            .into_iter()
            .flatten()
            .collect();
        Ok((!read.is_empty()).then_some(Position(read)))
    }

    async fn trim(&self, older_than: Duration) -> Result<Trimmed, StoreError> {
        let span = millis(older_than);
        let mut trimmed =
            Trimmed { batches: self.forget_observed(&span).await?, ..Trimmed::default() };
        let count = TRIMMED_PER_PARTITION.to_string();
        for Ends { partition, .. } in self.ends().await? {
            let keys = [
                self.names.events_key(partition),
                self.names.readers_key(partition),
                self.names.trimmed_key(partition),
            ];
            let args: [&[u8]; 2] = [&span, count.as_bytes()];
            let answer = self
                .run(partition, &self.scripts.trim, (&keys, &args), None, self.deadline())
                .await?;
            let (entries, forgotten): (usize, Vec<String>) =
                redis::from_redis_value(answer).map_err(|_| unexpected())?;
            trimmed.entries += entries;
            trimmed.forgotten.extend(forgotten);
        }
        trimmed.forgotten.sort();
        trimmed.forgotten.dedup();
        Ok(trimmed)
    }

    async fn observe(&self, batch: &[u8]) -> Result<(), StoreError> {
        let bytes = batch.len() + OBSERVED_ENTRY_BYTES;
        // In a transaction and not in a script, because a script would copy the batch twice.
        let mut appending = redis::pipe();
        appending.cmd("MULTI");
        appending.cmd("XADD").arg(self.names.observations_key()).arg("*").arg("b").arg(batch);
        appending.cmd("RPUSH").arg(self.names.observed_sizes_key()).arg(bytes);
        appending.cmd("INCRBY").arg(self.names.observed_bytes_key()).arg(bytes);
        appending.cmd("EXEC");
        let done = self
            .pipeline(layout::OBSERVATIONS_PARTITION, &appending)
            .await?
            .pop()
            .ok_or_else(unexpected)?;
        if appended(array(done)?)? > OBSERVED_BYTES_MAX {
            self.forget_observed(b"").await?;
        }
        Ok(())
    }

    async fn observations(
        &self,
        after: EntryId,
        limit: usize,
    ) -> Result<Vec<(EntryId, Bytes)>, StoreError> {
        let mut read = redis::cmd("XREAD");
        read.arg("COUNT")
            .arg(limit.max(1))
            .arg("STREAMS")
            .arg(self.names.observations_key())
            .arg(after.to_string());
        let answer = self.command(layout::OBSERVATIONS_PARTITION, &read).await?;
        let found = streams_of(answer)?.into_iter().flat_map(|(_, found)| found);
        let batch = |value| {
            let (id, fields) = fields_of(value)?;
            Ok((id, field(&fields, b"b").unwrap_or_default().to_vec().into()))
        };
        found.map(batch).collect()
    }

    async fn ends(&self) -> Result<Vec<Ends>, StoreError> {
        self.ends_where(|_| true).await
    }

    async fn ends_of(&self, partitions: &BTreeSet<u16>) -> Result<Vec<Ends>, StoreError> {
        self.ends_where(|partition| partitions.contains(&partition)).await
    }
}

/// Returns the bytes of all batches, from the answers of the transaction that appended a batch. If
/// a cluster is moving the partition, the answers include those to `ASKING`.
pub(super) fn appended(answers: Vec<Value>) -> Result<usize, StoreError> {
    let numbers = |answer: Value| match answer {
        Value::Int(number) => Some(Ok(number)),
        // The transaction runs its other commands even if the server refuses one.
        Value::ServerError(error) => Some(Err(CallError::Redis(error.into()).into())),
        _ => None,
    };
    let numbers =
        answers.into_iter().filter_map(numbers).collect::<Result<Vec<i64>, StoreError>>()?;
    match numbers[..] {
        [_batches, held] => usize::try_from(held).map_err(|_| unexpected()),
        _ => Err(unexpected()),
    }
}

/// A stream's name, and its entries.
type StreamEntries = (Vec<u8>, Vec<Value>);

/// Returns the streams in an answer to XREAD, which is nil without entries.
fn streams_of(answer: Value) -> Result<Vec<StreamEntries>, StoreError> {
    let streams = match answer {
        Value::Nil => return Ok(Vec::new()),
        // RESP3 answers with a map, RESP2 with an array of pairs.
        Value::Map(streams) => streams,
        Value::Array(streams) => streams.into_iter().map(pair).collect::<Result<_, _>>()?,
        _ => return Err(unexpected()),
    };
    let stream = |(name, found)| match (name, found) {
        (Value::BulkString(name), Value::Array(found)) => Ok((name, found)),
        _ => Err(unexpected()),
    };
    streams.into_iter().map(stream).collect()
}

fn pair(value: Value) -> Result<(Value, Value), StoreError> {
    let Value::Array(parts) = value else { return Err(unexpected()) };
    let [first, second] = <[Value; 2]>::try_from(parts).map_err(|_| unexpected())?;
    Ok((first, second))
}

/// Decodes an entry of a stream: its id, and one field. The field's name is the link, its value is
/// digest, member and event. Only the scripts use the digest; a verification computes it again.
fn entry(partition: u16, value: Value) -> Result<LogEntry, StoreError> {
    let (id, fields) = fields_of(value)?;
    let read = || {
        let [link, value] = <[Vec<u8>; 2]>::try_from(fields).ok()?;
        let mut event = Bytes::from(value);
        let member = (event.len() >= DIGEST_BYTES + MEMBER_BYTES)
            .then(|| event.split_to(DIGEST_BYTES + MEMBER_BYTES))?;
        Some(LogEntry {
            partition,
            id,
            slot: slot_of_member(&member[DIGEST_BYTES..])?,
            event,
            link: Link::from_bytes(&link),
        })
    };
    Ok(read().unwrap_or_else(|| LogEntry::unreadable(partition, id)))
}

fn fields_of(value: Value) -> Result<(EntryId, Vec<Vec<u8>>), StoreError> {
    let (id, fields) = pair(value)?;
    let id: String = redis::from_redis_value(id).map_err(|_| unexpected())?;
    Ok((
        id.parse().map_err(|_| unexpected())?,
        redis::from_redis_value(fields).map_err(|_| unexpected())?,
    ))
}

fn field<'f>(fields: &'f [Vec<u8>], name: &[u8]) -> Option<&'f [u8]> {
    fields.chunks_exact(2).find(|pair| pair[0] == name).map(|pair| pair[1].as_slice())
}

/// Decodes the link and the id of a partition's last or trimmed entry.
fn mark(value: Value) -> Result<Option<Mark>, StoreError> {
    let (link, id): (Option<Vec<u8>>, Option<String>) =
        redis::from_redis_value(value).map_err(|_| unexpected())?;
    let link = link.as_deref().and_then(Link::from_bytes);
    Ok(link.zip(id.and_then(|id| id.parse().ok())).map(|(link, id)| Mark { link, id }))
}
