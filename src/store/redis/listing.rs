//! What is overdue, and lists for people: read partition by partition, bounded, without stopping the server.

use std::sync::atomic::Ordering;

use futures_util::future::{join_all, try_join_all};
use redis::Value;

use super::servers::Group;
use super::{Redis, held, layout, time_ms, unexpected};
use crate::key::{PARTITIONS, Slot};
use crate::record::Held;
use crate::store::{Page, StoreError, is_listed};

/// Keys that one SCAN looks at: about a tenth of a millisecond of the server's time.
const SCAN_COUNT: usize = 500;

/// Keys that one SCAN looks at however small the page is: one key a round trip would take all day.
const SCAN_COUNT_MIN: usize = 10;

/// SCANs for one page. A database that is shared with other users yields short pages rather than long waits.
const SCANS_PER_PAGE: usize = 20;

/// Why a listing can't go on.
fn no_cursor() -> StoreError {
    StoreError::NotApplied("that is not the cursor of a listing".into())
}

impl Redis {
    /// See [`crate::store::Store::due`]. A server that fails doesn't keep the others from being asked, unless all fail.
    pub(super) async fn overdue(&self, limit: usize) -> Result<Vec<Slot>, StoreError> {
        let turn = self.next_partition.fetch_add(1, Ordering::Relaxed);
        let groups = self.servers.groups();
        let mut slots = Vec::new();
        let mut failed = (groups.is_empty()).then(|| StoreError::NotApplied("no server is known".into()));
        for answer in join_all(groups.into_iter().map(|group| self.overdue_at(group, turn, limit))).await {
            match answer {
                Ok(found) => slots.extend(found),
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) if slots.is_empty() => Err(error),
            _ => {
                slots.truncate(limit);
                Ok(slots)
            }
        }
    }

    /// What is overdue at one server, by its clock. `turn` says with which of its partitions to begin.
    async fn overdue_at(&self, mut group: Group, turn: u16, limit: usize) -> Result<Vec<Slot>, StoreError> {
        let mut asking = redis::pipe();
        asking.cmd("TIME");
        let time = self.pipeline_to(&group, &asking).await?.into_iter().next().ok_or_else(unexpected)?;
        let now = time_ms(time)?.to_string();
        let count = group.partitions.len().max(1);
        group.partitions.rotate_left(usize::from(turn) % count);
        let mut counting = redis::pipe();
        for partition in &group.partitions {
            counting.cmd("ZCOUNT").arg(layout::due_key(*partition)).arg("-inf").arg(&now);
        }
        let counts = self.pipeline_to(&group, &counting).await?;
        let mut reading = redis::pipe();
        for (partition, wanted) in shares(&group.partitions, &counts, limit) {
            reading.cmd("ZRANGEBYSCORE").arg(layout::due_key(partition)).arg("-inf").arg(&now);
            reading.arg("LIMIT").arg(0).arg(wanted);
        }
        let slots = self.members(&group, &reading).await?;
        let stays = try_join_all(slots.iter().map(|slot| self.stays_in_index(slot))).await?;
        Ok(slots.into_iter().zip(stays).filter_map(|(slot, stays)| stays.then_some(slot)).collect())
    }

    /// Whether a slot belongs into the index; if not, it is taken out.
    async fn stays_in_index(&self, slot: &Slot) -> Result<bool, StoreError> {
        let keys = [layout::record_key(slot), layout::due_key(slot.partition())];
        let member = layout::member(slot);
        let answer = self.run(slot.partition(), &self.scripts.forget, (&keys, &[&member]), None, self.deadline()).await?;
        Ok(answer == Value::Int(1))
    }

    /// The slots that a pipeline of index reads names.
    async fn members(&self, group: &Group, reading: &redis::Pipeline) -> Result<Vec<Slot>, StoreError> {
        if reading.is_empty() {
            return Ok(Vec::new());
        }
        let mut slots = Vec::new();
        for answer in self.pipeline_to(group, reading).await? {
            let Value::Array(members) = answer else { return Err(unexpected()) };
            slots.extend(members.iter().filter_map(bytes).filter_map(layout::slot_of_member));
        }
        Ok(slots)
    }

    /// Lists by the indexes. The cursor is a partition and a place in its index.
    pub(super) async fn list_unsettled(&self, cursor: Option<&str>, limit: usize) -> Result<Page, StoreError> {
        let (first, skip) = match cursor {
            None => (0, 0),
            Some(cursor) => place(cursor).ok_or_else(no_cursor)?,
        };
        self.servers.complete()?;
        let groups = self.servers.groups();
        let counts = try_join_all(groups.iter().map(|group| self.counts(group, first))).await?;
        let mut counted: Vec<(u16, usize, &Group)> = Vec::new();
        for (group, counts) in groups.iter().zip(counts) {
            counted.extend(counts.into_iter().map(|(partition, count)| (partition, count, group)));
        }
        counted.sort_by_key(|(partition, ..)| *partition);
        let mut page = Page::default();
        let mut left = limit;
        for (partition, count, group) in counted {
            let skip = if partition == first { skip } else { 0 };
            let wanted = count.saturating_sub(skip);
            let taken = wanted.min(left);
            if taken > 0 {
                let mut reading = redis::pipe();
                reading.cmd("ZRANGE").arg(layout::due_key(partition)).arg(skip).arg(skip + taken - 1);
                let slots = self.members(group, &reading).await?;
                page.records.extend(self.load_all(group, slots).await?);
            }
            left -= taken;
            if taken < wanted {
                page.cursor = Some(format!("{partition}:{}", skip + taken));
                break;
            }
        }
        Ok(page)
    }

    /// How many unsettled records a server's partitions have, from this one on; those without any left out.
    async fn counts(&self, group: &Group, first: u16) -> Result<Vec<(u16, usize)>, StoreError> {
        let partitions: Vec<u16> = group.partitions.iter().copied().filter(|partition| *partition >= first).collect();
        let mut counting = redis::pipe();
        for partition in &partitions {
            counting.cmd("ZCARD").arg(layout::due_key(*partition));
        }
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let counts = self.pipeline_to(group, &counting).await?;
        Ok(shares(&partitions, &counts, usize::MAX))
    }

    /// Lists by walking over all keys. The cursor is the server's, with which server it is.
    pub(super) async fn list_all(&self, cursor: Option<&str>, limit: usize) -> Result<Page, StoreError> {
        let (mut at, mut cursor) = match cursor {
            None => (0, 0),
            Some(cursor) => scan_place(cursor).ok_or_else(no_cursor)?,
        };
        self.servers.complete()?;
        let groups = self.servers.groups();
        let mut page = Page::default();
        for _ in 0..SCANS_PER_PAGE {
            let Some(group) = groups.get(at) else { return Ok(page) };
            let mut scan = redis::pipe();
            scan.cmd("SCAN").arg(cursor).arg("MATCH").arg(layout::RECORDS_MATCH).arg("COUNT");
            scan.arg(limit.clamp(SCAN_COUNT_MIN, SCAN_COUNT));
            let answer = self.pipeline_to(group, &scan).await?.into_iter().next().ok_or_else(unexpected)?;
            let (next, keys): (u64, Vec<Vec<u8>>) = redis::from_redis_value(answer).map_err(|_| unexpected())?;
            let slots = keys.iter().filter_map(|key| layout::slot_of(key)).collect();
            page.records.extend(self.load_all(group, slots).await?);
            (at, cursor) = if next == 0 { (at + 1, 0) } else { (at, next) };
            if page.records.len() >= limit {
                break;
            }
        }
        page.cursor = (at < groups.len()).then(|| format!("{at}:{cursor}"));
        Ok(page)
    }

    /// Reads what is still there of these slots, all at one server. One that can't be read doesn't hide the others.
    async fn load_all(&self, group: &Group, slots: Vec<Slot>) -> Result<Vec<(Slot, Held)>, StoreError> {
        let slots: Vec<Slot> = slots.into_iter().filter(is_listed).collect();
        if slots.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipeline = redis::pipe();
        pipeline.cmd("TIME");
        for slot in &slots {
            pipeline.cmd("GET").arg(layout::record_key(slot));
        }
        let mut values = self.pipeline_to(group, &pipeline).await?.into_iter();
        let now_ms = time_ms(values.next().ok_or_else(unexpected)?)?;
        let mut records = Vec::with_capacity(slots.len());
        for (slot, value) in slots.into_iter().zip(values) {
            match held(value, now_ms) {
                Ok(Some(held)) => records.push((slot, held)),
                Ok(None) => {}
                Err(error) => tracing::warn!(operation = %slot, %error, "left out of a listing"),
            }
        }
        Ok(records)
    }
}

/// How many members to read of which partition: those that the counts tell of, `limit` in all; none of those without any.
fn shares(partitions: &[u16], counts: &[Value], limit: usize) -> Vec<(u16, usize)> {
    let mut left = limit;
    let mut shares = Vec::new();
    for (partition, count) in partitions.iter().zip(counts) {
        let Value::Int(count) = count else { continue };
        let share = usize::try_from(*count).unwrap_or(0).min(left);
        if share > 0 {
            shares.push((*partition, share));
        }
        left -= share;
    }
    shares
}

/// The server and the place that a cursor of [`Redis::list_all`] names.
fn scan_place(cursor: &str) -> Option<(usize, u64)> {
    let (server, cursor) = cursor.split_once(':')?;
    Some((server.parse().ok()?, cursor.parse().ok()?))
}

/// The place that a cursor of [`Redis::list_unsettled`] names.
fn place(cursor: &str) -> Option<(u16, usize)> {
    let (partition, rank) = cursor.split_once(':')?;
    Some((partition.parse().ok().filter(|partition| *partition < PARTITIONS)?, rank.parse().ok()?))
}

fn bytes(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_read_than_was_asked_for_and_nothing_where_nothing_is() {
        let counts = [Value::Int(3), Value::Int(0), Value::Nil, Value::Int(-1), Value::Int(5), Value::Int(2)];
        let partitions = [10, 11, 12, 13, 14, 15];
        assert_eq!(shares(&partitions, &counts, 100), [(10, 3), (14, 5), (15, 2)]);
        assert_eq!(shares(&partitions, &counts, 9), [(10, 3), (14, 5), (15, 1)]);
        assert_eq!(shares(&partitions, &counts, 8), [(10, 3), (14, 5)]);
        assert_eq!(shares(&partitions, &counts, 2), [(10, 2)]);
        assert_eq!(shares(&partitions, &counts, 0), []);
    }

    #[test]
    fn a_cursor_names_a_place_or_is_none() {
        assert_eq!((place("0:0"), place("255:17")), (Some((0, 0)), Some((255, 17))));
        assert_eq!(scan_place("2:18446744073709551615"), Some((2, u64::MAX)));
        for odd in ["", "1", "1:", ":1", "a:1", "1:a", "1:1:1", "-1:0"] {
            assert_eq!((place(odd), scan_place(odd)), (None, None), "{odd}");
        }
        assert_eq!(place("256:0"), None, "there is no such partition");
    }
}
