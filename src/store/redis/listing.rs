//! Overdue operations and lists for operators: read partition by partition, in limited steps,
//! without blocking the server.
//!
//! SCAN returns any number of keys, and its cursor continues behind all of them. So the page's own
//! cursor names the keys for which the page had no room. A repeated SCAN that skips as many keys
//! would lose records if the server's table has grown or shrunk meanwhile.

use std::fmt;
use std::sync::atomic::Ordering;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::{join_all, try_join_all};
use redis::Value;

use super::answer::{held, time_ms, unexpected};
use super::client::Redis;
use super::layout::{self, KeyNames};
use super::servers::ServerPartitions;
use crate::key::{PARTITIONS, Slot, Space};
use crate::record::Held;
use crate::store::{ListError, Page, StoreError, is_listed};

/// Keys that one SCAN visits: about a tenth of a millisecond of the server's time.
const SCAN_COUNT: usize = 500;

/// Lower limit for the keys that one SCAN visits, for small pages. With one key a round trip, a
/// listing would take hours.
const SCAN_COUNT_MIN: usize = 10;

/// Limit for the SCANs for one page. In a database with many keys of other users, pages get short
/// instead of slow.
const SCANS_PER_PAGE: usize = 20;

/// An index of due times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DueTimeIndex {
    /// The unsettled records.
    Unsettled,
    /// The sagas.
    Sagas,
}

impl DueTimeIndex {
    fn key(self, names: &KeyNames, partition: u16) -> Vec<u8> {
        match self {
            DueTimeIndex::Unsettled => names.due_key(partition),
            DueTimeIndex::Sagas => names.sagas_key(partition),
        }
    }

    /// Returns the lowest and the highest state of the records in the index, as the scripts compare
    /// them.
    fn states(self) -> [&'static [u8]; 2] {
        match self {
            DueTimeIndex::Unsettled => [b"1", b"2"],
            DueTimeIndex::Sagas => [b"6", b"6"],
        }
    }
}

impl Redis {
    /// Implements [`crate::store::Records::due`] and [`crate::store::Records::due_sagas`]: returns
    /// overdue slots, and the latest time of a server, in ms since 1970. Fails only if a server
    /// fails and the others have no overdue slot.
    pub(super) async fn overdue(
        &self,
        index: DueTimeIndex,
        limit: usize,
    ) -> Result<(Vec<Slot>, u64), StoreError> {
        let turn = self.next_partition.fetch_add(1, Ordering::Relaxed);
        let groups = self.servers.groups();
        let (mut slots, mut latest_ms) = (Vec::new(), 0);
        let mut failed =
            (groups.is_empty()).then(|| StoreError::NotApplied("no server is known".into()));
        for answer in
            join_all(groups.into_iter().map(|group| self.overdue_at(index, group, turn, limit)))
                .await
        {
            match answer {
                Ok((found, now_ms)) => {
                    slots.extend(found);
                    latest_ms = latest_ms.max(now_ms);
                }
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(error) if slots.is_empty() => Err(error),
            _ => {
                slots.truncate(limit);
                Ok((slots, latest_ms))
            }
        }
    }

    /// Returns overdue slots at one server, by its clock, and its time. `turn` chooses the
    /// partition to begin with.
    async fn overdue_at(
        &self,
        index: DueTimeIndex,
        mut group: ServerPartitions,
        turn: u16,
        limit: usize,
    ) -> Result<(Vec<Slot>, u64), StoreError> {
        let mut query = redis::pipe();
        query.cmd("TIME");
        let time =
            self.pipeline_to(&group, &query).await?.into_iter().next().ok_or_else(unexpected)?;
        let now_ms = time_ms(time)?;
        let now = now_ms.to_string();
        let count = group.partitions.len().max(1);
        group.partitions.rotate_left(usize::from(turn) % count);
        let mut counting = redis::pipe();
        for partition in &group.partitions {
            let key = index.key(&self.names, *partition);
            counting.cmd("ZCOUNT").arg(key).arg("-inf").arg(&now);
        }
        let counts = self.pipeline_to(&group, &counting).await?;
        let mut reading = redis::pipe();
        for (partition, wanted) in shares(&group.partitions, &counts, limit) {
            let key = index.key(&self.names, partition);
            reading.cmd("ZRANGEBYSCORE").arg(key).arg("-inf").arg(&now);
            reading.arg("LIMIT").arg(0).arg(wanted);
        }
        let slots = self.members(&group, &reading).await?;
        let stays = try_join_all(slots.iter().map(|slot| self.keep_in_index(index, slot))).await?;
        let staying =
            slots.into_iter().zip(stays).filter_map(|(slot, stays)| stays.then_some(slot));
        Ok((staying.collect(), now_ms))
    }

    /// Whether a slot belongs in the index; if not, removes it.
    async fn keep_in_index(&self, index: DueTimeIndex, slot: &Slot) -> Result<bool, StoreError> {
        let keys = [self.names.record_key(slot), index.key(&self.names, slot.partition())];
        let (member, [lowest, highest]) = (layout::member(slot), index.states());
        let args: [&[u8]; 3] = [&member, lowest, highest];
        let answer = self
            .run(slot.partition(), &self.scripts.forget, (&keys, &args), None, self.deadline())
            .await?;
        Ok(answer == Value::Int(1))
    }

    /// Returns the slots in the answers to a pipeline of index reads.
    async fn members(
        &self,
        group: &ServerPartitions,
        reading: &redis::Pipeline,
    ) -> Result<Vec<Slot>, StoreError> {
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

    /// Lists the records of an index. The cursor is a partition and a rank in its
    /// index.
    pub(super) async fn list_due(
        &self,
        index: DueTimeIndex,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page, ListError> {
        let (first, skip) = match cursor {
            None => (0, 0),
            Some(cursor) => position(cursor).ok_or(ListError::Cursor)?,
        };
        self.servers.complete()?;
        let groups = self.servers.groups();
        let counts =
            try_join_all(groups.iter().map(|group| self.counts(index, group, first))).await?;
        let mut counted: Vec<(u16, usize, &ServerPartitions)> = Vec::new();
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
                reading
                    .cmd("ZRANGE")
                    .arg(index.key(&self.names, partition))
                    .arg(skip)
                    .arg(skip + taken - 1);
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

    /// Counts the records in the indexes of a server's partitions, starting with partition `first`.
    /// Leaves out partitions without such records.
    async fn counts(
        &self,
        index: DueTimeIndex,
        group: &ServerPartitions,
        first: u16,
    ) -> Result<Vec<(u16, usize)>, StoreError> {
        let partitions: Vec<u16> =
            group.partitions.iter().copied().filter(|partition| *partition >= first).collect();
        let mut counting = redis::pipe();
        for partition in &partitions {
            counting.cmd("ZCARD").arg(index.key(&self.names, *partition));
        }
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let counts = self.pipeline_to(group, &counting).await?;
        Ok(shares(&partitions, &counts, usize::MAX))
    }

    /// Lists by scanning all keys.
    pub(super) async fn list_all(
        &self,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page, ListError> {
        let mut place = match cursor {
            None => ScanPosition::default(),
            Some(cursor) => ScanPosition::parse(cursor).ok_or(ListError::Cursor)?,
        };
        self.servers.complete()?;
        let groups = self.servers.groups();
        let mut page = Page::default();
        for _ in 0..SCANS_PER_PAGE {
            let Some(group) = groups.get(place.server) else { return Ok(page) };
            let room = limit - page.records.len();
            if place.found.is_empty() {
                (place.cursor, place.found) = self.scan(group, place.cursor, room).await?;
            }
            let rest = place.found.split_off(room.min(place.found.len()));
            let taken = std::mem::replace(&mut place.found, rest);
            page.records.extend(self.load_all(group, taken).await?);
            if place.found.is_empty() && place.cursor == 0 {
                place = ScanPosition { server: place.server + 1, ..ScanPosition::default() };
            }
            if page.records.len() >= limit {
                break;
            }
        }
        page.cursor = (place.server < groups.len()).then(|| place.to_string());
        Ok(page)
    }

    /// Scans a server's keys once, for about `room` records. Returns the next cursor and the
    /// records' slots.
    async fn scan(
        &self,
        group: &ServerPartitions,
        cursor: u64,
        room: usize,
    ) -> Result<(u64, Vec<Slot>), StoreError> {
        let mut scan = redis::pipe();
        scan.cmd("SCAN").arg(cursor).arg("MATCH").arg(self.names.records_match()).arg("COUNT");
        // Half of the room, because SCAN may return more, and surplus keys must go into the page's
        // cursor.
        scan.arg((room / 2).clamp(SCAN_COUNT_MIN, SCAN_COUNT));
        let answer =
            self.pipeline_to(group, &scan).await?.into_iter().next().ok_or_else(unexpected)?;
        let (next, keys): (u64, Vec<Vec<u8>>) =
            redis::from_redis_value(answer).map_err(|_| unexpected())?;
        Ok((
            next,
            keys.iter().filter_map(|key| self.names.slot_of(key)).filter(is_listed).collect(),
        ))
    }

    /// Reads the records of these slots at one server. Leaves out absent and unreadable records.
    async fn load_all(
        &self,
        group: &ServerPartitions,
        slots: Vec<Slot>,
    ) -> Result<Vec<(Slot, Held)>, StoreError> {
        let slots: Vec<Slot> = slots.into_iter().filter(is_listed).collect();
        if slots.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipeline = redis::pipe();
        pipeline.cmd("TIME");
        for slot in &slots {
            pipeline.cmd("GET").arg(self.names.record_key(slot));
        }
        let mut values = self.pipeline_to(group, &pipeline).await?.into_iter();
        let now_ms = time_ms(values.next().ok_or_else(unexpected)?)?;
        let mut records = Vec::with_capacity(slots.len());
        for (slot, value) in slots.into_iter().zip(values) {
            match held(value, now_ms) {
                Ok(Some(held)) => records.push((slot, held)),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(operation = %slot, %error, "unreadable record left out of a listing");
                }
            }
        }
        Ok(records)
    }
}

/// Returns the number of members to read of each partition: at most its count, and at most `limit`
/// in all. Leaves out partitions without members.
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

/// The position in a cursor of [`Redis::list_all`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct ScanPosition {
    /// Index of the server.
    server: usize,
    /// The cursor for the server's next SCAN. 0 is the beginning. If `found` is not empty, 0 is the
    /// end.
    cursor: u64,
    /// Keys that the last SCAN found and no page has shown.
    found: Vec<Slot>,
}

impl ScanPosition {
    fn parse(text: &str) -> Option<ScanPosition> {
        let (server, rest) = text.split_once(':')?;
        let (cursor, found) = rest.split_once(':').unwrap_or((rest, ""));
        let bytes = URL_SAFE_NO_PAD.decode(found).ok()?;
        let (hashes, []) = bytes.as_chunks() else { return None };
        let found = hashes.iter().map(|hash| Slot::from_hash(Space::Enforced, *hash)).collect();
        Some(ScanPosition { server: server.parse().ok()?, cursor: cursor.parse().ok()?, found })
    }
}

impl fmt::Display for ScanPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.server, self.cursor)?;
        if self.found.is_empty() {
            return Ok(());
        }
        let hashes: Vec<u8> = self.found.iter().flat_map(|slot| *slot.hash()).collect();
        write!(f, ":{}", URL_SAFE_NO_PAD.encode(hashes))
    }
}

/// Reads the position in a cursor of [`Redis::list_due`].
fn position(cursor: &str) -> Option<(u16, usize)> {
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
    fn no_more_is_read_than_requested_and_nothing_from_empty_partitions() {
        let counts = [
            Value::Int(3),
            Value::Int(0),
            Value::Nil,
            Value::Int(-1),
            Value::Int(5),
            Value::Int(2),
        ];
        let partitions = [10, 11, 12, 13, 14, 15];
        assert_eq!(shares(&partitions, &counts, 100), [(10, 3), (14, 5), (15, 2)]);
        assert_eq!(shares(&partitions, &counts, 9), [(10, 3), (14, 5), (15, 1)]);
        assert_eq!(shares(&partitions, &counts, 8), [(10, 3), (14, 5)]);
        assert_eq!(shares(&partitions, &counts, 2), [(10, 2)]);
        assert_eq!(shares(&partitions, &counts, 0), []);
    }

    #[test]
    fn a_cursor_names_a_position_or_is_invalid() {
        assert_eq!((position("0:0"), position("255:17")), (Some((0, 0)), Some((255, 17))));
        let found = vec![
            Slot::from_hash(Space::Enforced, [7; 20]),
            Slot::from_hash(Space::Enforced, [8; 20]),
        ];
        for place in [
            ScanPosition { server: 2, cursor: u64::MAX, found: vec![] },
            ScanPosition { server: 0, cursor: 0, found },
        ] {
            assert_eq!(ScanPosition::parse(&place.to_string()), Some(place));
        }
        for odd in ["", "1", "1:", ":1", "a:1", "1:a", "1:1:1", "1:1:AAAA", "-1:0"] {
            assert_eq!((position(odd), ScanPosition::parse(odd)), (None, None), "{odd}");
        }
        assert_eq!(position("256:0"), None, "there is no such partition");
    }
}
