//! The outbox in Redis as the source or the target of a copy. Its pages go from partition to
//! partition: the waiting events of each sink, then the dead letters.
//!
//! Relays find events by the counts of their partition, and so does a copy.

use std::collections::{BTreeMap, BTreeSet};

use redis::{Pipeline, Value};
use serde::{Deserialize, Serialize};

use super::answer::{array, unexpected};
use super::client::Redis;
use super::layout::{KeyNames, member};
use super::outbox_values as values;
use crate::store::StoreError;
use crate::store::copy::{CopyError, OutboxItem, OutboxItems};
use crate::store::dead_letters::{DeadLetter, DeadLetterId, DeadLetterKind};
use crate::store::outbox::WaitingEvent;

/// Limit for the operations and dead letters of one read. Events are up to 64 KiB long.
const READ_LIMIT: usize = 64;

/// The script that writes a waiting event of a copy.
const COPY_WAITING: &str = concat!(
    include_str!("scripts/outbox_counts.lua"),
    include_str!("scripts/outbox_insert.lua"),
    include_str!("scripts/copy_waiting.lua")
);

/// The script that writes a dead letter of a copy.
const COPY_DEAD_LETTER: &str = concat!(
    include_str!("scripts/outbox_counts.lua"),
    include_str!("scripts/copy_dead_letter.lua")
);

/// A part of the outbox.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Section {
    pub partition: u16,
    pub kind: SectionKind,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum SectionKind {
    /// The waiting events of a sink.
    Waiting(String),
    /// The dead letters of all sinks.
    Dead,
}

impl Section {
    /// Returns a section that is not behind any other.
    pub fn first() -> Section {
        Section { partition: 0, kind: SectionKind::Waiting(String::new()) }
    }
}

/// A place in the outbox. It stays the same as long as no gateway uses the store.
#[derive(Debug, Serialize, Deserialize)]
struct OutboxPlace {
    section: Section,
    /// The number of operations or dead letters of the section in front of the place.
    rank: usize,
}

impl OutboxPlace {
    /// Reads a cursor of a copy; `None` for any other text.
    fn parse(cursor: Option<&str>) -> Option<OutboxPlace> {
        let Some(cursor) = cursor else {
            return Some(OutboxPlace { section: Section::first(), rank: 0 });
        };
        serde_json::from_str(cursor).ok()
    }
}

impl Redis {
    /// See [`crate::store::copy::CopySource::outbox`].
    pub(super) async fn outbox_page(&self, cursor: Option<&str>) -> Result<OutboxItems, CopyError> {
        let from = OutboxPlace::parse(cursor).ok_or_else(|| {
            StoreError::NotApplied("the place where the copy goes on can't be read".into())
        })?;
        let (mut page, mut room) = (OutboxItems::default(), READ_LIMIT);
        for section in self.sections().await?.range(&from.section..) {
            let rank = if *section == from.section { from.rank } else { 0 };
            let (read, items) = self.items_of(section, rank, room).await?;
            page.items.extend(items);
            room -= read.min(room);
            if room == 0 {
                let place = OutboxPlace { section: section.clone(), rank: rank + read };
                page.cursor = Some(serde_json::to_string(&place).map_err(|_| unexpected())?);
                break;
            }
        }
        Ok(page)
    }

    /// Returns the sections that may have items.
    pub(super) async fn sections(&self) -> Result<BTreeSet<Section>, StoreError> {
        let mut sections = BTreeSet::new();
        for part in self.counted_backlog().await? {
            let partition = part.partition;
            sections.insert(Section { partition, kind: SectionKind::Waiting(part.sink) });
            sections.insert(Section { partition, kind: SectionKind::Dead });
        }
        Ok(sections)
    }

    /// Reads up to `limit` operations or dead letters of a section. Returns their number and the
    /// items. Another program may have removed an item and left its place: such places are left
    /// out, as relays and listings do.
    async fn items_of(
        &self,
        section: &Section,
        rank: usize,
        limit: usize,
    ) -> Result<(usize, Vec<OutboxItem>), CopyError> {
        let partition = section.partition;
        let key = match &section.kind {
            SectionKind::Waiting(sink) => self.names.outbox_due_key(partition, sink),
            SectionKind::Dead => self.names.outbox_dead_at_key(partition),
        };
        let mut range = redis::cmd("ZRANGE");
        range.arg(key).arg(rank).arg(rank + limit - 1).arg("WITHSCORES");
        let places: Vec<(Vec<u8>, f64)> =
            redis::from_redis_value(self.command(partition, &range).await?)
                .map_err(|_| unexpected())?;
        if places.is_empty() {
            return Ok((0, Vec::new()));
        }
        let items = match &section.kind {
            SectionKind::Waiting(sink) => self.waiting_of(partition, sink, &places).await?,
            SectionKind::Dead => self.dead_of(partition, &places).await?,
        };
        Ok((places.len(), items))
    }

    /// Reads the waiting events of these operations, which come with their due times in ms.
    async fn waiting_of(
        &self,
        partition: u16,
        sink: &str,
        operations: &[(Vec<u8>, f64)],
    ) -> Result<Vec<OutboxItem>, CopyError> {
        let odd = || unreadable("a waiting event", partition);
        let events_key = self.names.outbox_events_key(partition, sink);
        let texts = self.fields_of(partition, events_key, operations.iter().map(|one| &one.0));
        let texts = texts.await?;
        let (mut events, mut names) = (Vec::new(), Vec::new());
        for ((operation, due_ms), text) in operations.iter().zip(&texts) {
            let Value::BulkString(text) = text else { continue };
            for (order, event) in values::events_of(text).ok_or_else(odd)? {
                names.push([operation, order].concat());
                events.push((operation, order, event, *due_ms as u64));
            }
        }
        let attempts_key = self.names.outbox_attempts_key(partition, sink);
        let attempts = self.fields_of(partition, attempts_key, names.iter()).await?;
        let mut items = Vec::new();
        for ((operation, order, event, due_ms), attempts) in events.into_iter().zip(attempts) {
            let [operation, order, event] =
                [operation, order, event].map(|part| Value::BulkString(part.to_vec()));
            let event = values::waiting_event(sink, &[operation, order, event, attempts])?;
            items.push(OutboxItem::Waiting { event: event.ok_or_else(odd)?, due_ms });
        }
        Ok(items)
    }

    /// Reads the dead letters with these ids.
    async fn dead_of(
        &self,
        partition: u16,
        ids: &[(Vec<u8>, f64)],
    ) -> Result<Vec<OutboxItem>, CopyError> {
        let key = self.names.outbox_dead_key(partition);
        let mut items = Vec::new();
        for letter in self.fields_of(partition, key, ids.iter().map(|one| &one.0)).await? {
            let Value::BulkString(letter) = letter else { continue };
            let letter = values::letter(&letter);
            let odd = || unreadable("a dead letter", partition);
            items.push(OutboxItem::Dead(letter.ok_or_else(odd)?));
        }
        Ok(items)
    }

    /// Reads fields of a hash, in this order.
    async fn fields_of(
        &self,
        partition: u16,
        key: Vec<u8>,
        fields: impl ExactSizeIterator<Item = &Vec<u8>>,
    ) -> Result<Vec<Value>, StoreError> {
        if fields.len() == 0 {
            return Ok(Vec::new());
        }
        let mut get = redis::cmd("HMGET");
        get.arg(key);
        fields.for_each(|field| _ = get.arg(field));
        array(self.command(partition, &get).await?)
    }
}

fn unreadable(what: &str, partition: u16) -> CopyError {
    CopyError::Refused(format!(
        "{what} in partition {partition} can't be read: somebody else wrote it"
    ))
}

/// Returns the commands that write items of a copy, by partition. `mark` is the mark of the copy.
/// Each command answers 1 if its partition is still closed for the copy.
pub(super) fn put_commands(
    names: &KeyNames,
    mark: &str,
    items: &[OutboxItem],
) -> BTreeMap<u16, Pipeline> {
    let mut commands: BTreeMap<u16, Pipeline> = BTreeMap::new();
    for item in items {
        let slot = match item {
            OutboxItem::Waiting { event, .. } => &event.key.slot,
            OutboxItem::Dead(letter) => &letter.key.slot,
        };
        let put = commands.entry(slot.partition()).or_default();
        match item {
            OutboxItem::Waiting { event, due_ms } => put_waiting(put, names, mark, event, *due_ms),
            OutboxItem::Dead(letter) => put_dead(put, names, mark, letter),
        }
    }
    commands
}

fn put_waiting(
    put: &mut Pipeline,
    names: &KeyNames,
    mark: &str,
    event: &WaitingEvent,
    due_ms: u64,
) {
    let WaitingEvent { key, content, written_ms, round, attempts } = event;
    let (partition, sink) = (key.slot.partition(), &key.sink);
    let put = put.cmd("EVAL").arg(COPY_WAITING).arg(6);
    put.arg(names.epoch_key(partition))
        .arg(names.outbox_counts_key(partition))
        .arg(names.outbox_due_key(partition, sink))
        .arg(names.outbox_events_key(partition, sink))
        .arg(names.outbox_attempts_key(partition, sink))
        .arg(names.outbox_old_key(partition, sink));
    put.arg(mark)
        .arg(&member(&key.slot)[..])
        .arg(values::event_in_round(key.order, *written_ms, *round, content))
        .arg(format!("1,0,0,{} {sink}\n", content.size()))
        .arg(*written_ms)
        .arg(due_ms)
        .arg(values::attempts(*attempts));
}

fn put_dead(put: &mut Pipeline, names: &KeyNames, mark: &str, letter: &DeadLetter) {
    let (partition, sink) = (letter.key.slot.partition(), &letter.key.sink);
    let kind = match letter.burial.kind {
        DeadLetterKind::Receiver => "0,1,0",
        DeadLetterKind::Gateway => "0,0,1",
    };
    let put = put.cmd("EVAL").arg(COPY_DEAD_LETTER).arg(4);
    put.arg(names.epoch_key(partition))
        .arg(names.outbox_counts_key(partition))
        .arg(names.outbox_dead_key(partition))
        .arg(names.outbox_dead_at_key(partition));
    put.arg(mark)
        .arg(&DeadLetterId::of(&letter.key).as_bytes()[..])
        .arg(values::dead_letter(letter))
        .arg(format!("{kind},{} {sink}\n", letter.content.size()))
        .arg(letter.buried_ms);
}
