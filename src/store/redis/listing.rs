//! What is overdue, and lists for people: read partition by partition, bounded, without stopping the server.
//!
//! SCAN answers as many keys as it likes, and its cursor stands behind all of them. What a page has no room for any more is named in
//! the page's own cursor: skipping so many of a SCAN that is said again would lose records when the server's table has grown or
//! shrunk meanwhile.

use std::fmt;
use std::sync::atomic::Ordering;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::{join_all, try_join_all};
use redis::Value;

use super::servers::Group;
use super::{Redis, held, layout, time_ms, unexpected};
use crate::key::{PARTITIONS, Slot, Space};
use crate::record::Held;
use crate::store::{ListError, Page, StoreError, is_listed};

/// Keys that one SCAN looks at: about a tenth of a millisecond of the server's time.
const SCAN_COUNT: usize = 500;

/// Keys that one SCAN looks at however small the page is: one key a round trip would take all day.
const SCAN_COUNT_MIN: usize = 10;

/// SCANs for one page. A database that is shared with other users yields short pages rather than long waits.
const SCANS_PER_PAGE: usize = 20;

impl Redis {
    /// See [`crate::store::Records::due`]. A server that fails doesn't keep the others from being asked, unless all fail.
    pub(super) async fn overdue(&self, limit: usize) -> Result<Vec<Slot>, StoreError> {
        let turn = self.next_partition.fetch_add(1, Ordering::Relaxed);
        let groups = self.servers.groups();
        let mut slots = Vec::new();
        let mut failed =
            (groups.is_empty()).then(|| StoreError::NotApplied("no server is known".into()));
        for answer in
            join_all(groups.into_iter().map(|group| self.overdue_at(group, turn, limit))).await
        {
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
    async fn overdue_at(
        &self,
        mut group: Group,
        turn: u16,
        limit: usize,
    ) -> Result<Vec<Slot>, StoreError> {
        let mut asking = redis::pipe();
        asking.cmd("TIME");
        let time =
            self.pipeline_to(&group, &asking).await?.into_iter().next().ok_or_else(unexpected)?;
        let now = time_ms(time)?.to_string();
        let count = group.partitions.len().max(1);
        group.partitions.rotate_left(usize::from(turn) % count);
        let mut counting = redis::pipe();
        for partition in &group.partitions {
            counting.cmd("ZCOUNT").arg(self.names.due_key(*partition)).arg("-inf").arg(&now);
        }
        let counts = self.pipeline_to(&group, &counting).await?;
        let mut reading = redis::pipe();
        for (partition, wanted) in shares(&group.partitions, &counts, limit) {
            reading.cmd("ZRANGEBYSCORE").arg(self.names.due_key(partition)).arg("-inf").arg(&now);
            reading.arg("LIMIT").arg(0).arg(wanted);
        }
        let slots = self.members(&group, &reading).await?;
        let stays = try_join_all(slots.iter().map(|slot| self.stays_in_index(slot))).await?;
        Ok(slots.into_iter().zip(stays).filter_map(|(slot, stays)| stays.then_some(slot)).collect())
    }

    /// Whether a slot belongs into the index; if not, it is taken out.
    async fn stays_in_index(&self, slot: &Slot) -> Result<bool, StoreError> {
        let keys = [self.names.record_key(slot), self.names.due_key(slot.partition())];
        let member = layout::member(slot);
        let answer = self
            .run(slot.partition(), &self.scripts.forget, (&keys, &[&member]), None, self.deadline())
            .await?;
        Ok(answer == Value::Int(1))
    }

    /// The slots that a pipeline of index reads names.
    async fn members(
        &self,
        group: &Group,
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

    /// Lists by the indexes. The cursor is a partition and a place in its index.
    pub(super) async fn list_unsettled(
        &self,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page, ListError> {
        let (first, skip) = match cursor {
            None => (0, 0),
            Some(cursor) => place(cursor).ok_or(ListError::Cursor)?,
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
                reading
                    .cmd("ZRANGE")
                    .arg(self.names.due_key(partition))
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

    /// How many unsettled records a server's partitions have, from this one on; those without any left out.
    async fn counts(&self, group: &Group, first: u16) -> Result<Vec<(u16, usize)>, StoreError> {
        let partitions: Vec<u16> =
            group.partitions.iter().copied().filter(|partition| *partition >= first).collect();
        let mut counting = redis::pipe();
        for partition in &partitions {
            counting.cmd("ZCARD").arg(self.names.due_key(*partition));
        }
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let counts = self.pipeline_to(group, &counting).await?;
        Ok(shares(&partitions, &counts, usize::MAX))
    }

    /// Lists by walking over all keys.
    pub(super) async fn list_all(
        &self,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page, ListError> {
        let mut place = match cursor {
            None => ScanPlace::default(),
            Some(cursor) => ScanPlace::parse(cursor).ok_or(ListError::Cursor)?,
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
                place = ScanPlace { server: place.server + 1, ..ScanPlace::default() };
            }
            if page.records.len() >= limit {
                break;
            }
        }
        page.cursor = (place.server < groups.len()).then(|| place.to_string());
        Ok(page)
    }

    /// Goes on over the keys of a server, in the hope of so many records: where to go on then, and what was found.
    async fn scan(
        &self,
        group: &Group,
        cursor: u64,
        room: usize,
    ) -> Result<(u64, Vec<Slot>), StoreError> {
        let mut scan = redis::pipe();
        scan.cmd("SCAN").arg(cursor).arg("MATCH").arg(self.names.records_match()).arg("COUNT");
        // Half as many as there is room for: what comes on top has to go into the page's cursor.
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

    /// Reads what is still there of these slots, all at one server. One that can't be read doesn't hide the others.
    async fn load_all(
        &self,
        group: &Group,
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

/// The place that a cursor of [`Redis::list_all`] names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct ScanPlace {
    /// At which server.
    server: usize,
    /// Where its next SCAN goes on; 0 is its beginning, or its end where something is left of the last.
    cursor: u64,
    /// What the last one found and no page has had.
    found: Vec<Slot>,
}

impl ScanPlace {
    fn parse(text: &str) -> Option<ScanPlace> {
        let (server, rest) = text.split_once(':')?;
        let (cursor, found) = rest.split_once(':').unwrap_or((rest, ""));
        let bytes = URL_SAFE_NO_PAD.decode(found).ok()?;
        let (hashes, []) = bytes.as_chunks() else { return None };
        let found = hashes.iter().map(|hash| Slot::from_hash(Space::Enforced, *hash)).collect();
        Some(ScanPlace { server: server.parse().ok()?, cursor: cursor.parse().ok()?, found })
    }
}

impl fmt::Display for ScanPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.server, self.cursor)?;
        if self.found.is_empty() {
            return Ok(());
        }
        let hashes: Vec<u8> = self.found.iter().flat_map(|slot| *slot.hash()).collect();
        write!(f, ":{}", URL_SAFE_NO_PAD.encode(hashes))
    }
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
    fn a_cursor_names_a_place_or_is_none() {
        assert_eq!((place("0:0"), place("255:17")), (Some((0, 0)), Some((255, 17))));
        let found = vec![
            Slot::from_hash(Space::Enforced, [7; 20]),
            Slot::from_hash(Space::Enforced, [8; 20]),
        ];
        for place in [
            ScanPlace { server: 2, cursor: u64::MAX, found: vec![] },
            ScanPlace { server: 0, cursor: 0, found },
        ] {
            assert_eq!(ScanPlace::parse(&place.to_string()), Some(place));
        }
        for odd in ["", "1", "1:", ":1", "a:1", "1:a", "1:1:1", "1:1:AAAA", "-1:0"] {
            assert_eq!((place(odd), ScanPlace::parse(odd)), (None, None), "{odd}");
        }
        assert_eq!(place("256:0"), None, "there is no such partition");
    }
}
