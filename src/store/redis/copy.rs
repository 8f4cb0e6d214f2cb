//! A store in Redis as the source or the target of a copy.
//!
//! The target is closed during the copy. The mark of the copy replaces the epoch of each partition.
//! The mark is not an epoch, so the claim script refuses every claim. Scripts write the records and
//! events of a copy, and compare the mark. So an interrupted copy writes none of them when it
//! resumes after another copy took over, or after the store was opened.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use redis::{Pipeline, Value};
use tokio::sync::OnceCell;

use super::answer::{time_ms, unexpected};
use super::client::Redis;
use super::layout;
use super::options::{ConnectError, RedisOptions};
use super::outbox_copy;
use super::servers::ServerPartitions;
use super::time::millis;
use crate::hex::Hex;
use crate::key::PARTITIONS;
use crate::store::copy::{
    CopyError, CopyProgress, CopySource, CopyStart, CopyTarget, Item, ItemKey, Items, OutboxItem,
    OutboxItems,
};
use crate::store::log::{Ends, EventLog, LogEntry, digest};
use crate::store::{IdentityNotes, Note, StoreError};

/// Keys that one SCAN visits, and about the number of records in one read. Large records must not
/// fill the memory.
const SCAN_COUNT: usize = 64;

/// The beginning of every mark of a copy. A mark is longer than an epoch.
const MARK: &str = "copying:";

/// The source or target of a copy.
pub struct CopiedRedis {
    store: Arc<Redis>,
    /// The mark of this copy.
    mark: OnceCell<String>,
}

/// A summary of the epochs of a store's partitions.
struct CopyEpochs {
    /// The epoch of the first partition.
    first: Option<Vec<u8>>,
    /// Partitions that have the mark of a copy.
    marked: Vec<u16>,
    /// Whether any partition has an epoch.
    any_real: bool,
}

impl CopiedRedis {
    /// Starts to connect to the servers. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// An option is invalid.
    pub fn connect(options: RedisOptions) -> Result<CopiedRedis, ConnectError> {
        Ok(CopiedRedis { store: Redis::without_recovery(options)?, mark: OnceCell::new() })
    }

    /// Returns the servers once all partitions have one.
    async fn groups(&self) -> Result<Vec<ServerPartitions>, StoreError> {
        self.store.servers.wait_until_complete(self.store.deadline()).await
    }

    /// Sends the commands about each partition to its server. The answers are in no order.
    async fn to_each(
        &self,
        commands: impl Fn(u16, &mut Pipeline),
    ) -> Result<Vec<(u16, Value)>, StoreError> {
        let mut all = Vec::new();
        for group in self.groups().await? {
            let mut pipeline = redis::pipe();
            let mut about = Vec::new();
            for partition in &group.partitions {
                let before = pipeline.len();
                commands(*partition, &mut pipeline);
                about.extend(std::iter::repeat_n(*partition, pipeline.len() - before));
            }
            if !pipeline.is_empty() {
                all.extend(about.into_iter().zip(self.store.pipeline_to(&group, &pipeline).await?));
            }
        }
        Ok(all)
    }

    async fn epochs(&self) -> Result<CopyEpochs, StoreError> {
        let answers = self
            .to_each(|partition, pipe| {
                _ = pipe.cmd("GET").arg(self.store.names.epoch_key(partition))
            })
            .await?;
        let mut epochs = CopyEpochs { first: None, marked: Vec::new(), any_real: false };
        for (partition, answer) in answers {
            let Value::BulkString(epoch) = answer else { continue };
            if epoch.starts_with(MARK.as_bytes()) {
                epochs.marked.push(partition);
            } else {
                epochs.any_real = true;
            }
            if partition == 0 {
                epochs.first = Some(epoch);
            }
        }
        Ok(epochs)
    }

    /// Closes the partitions that `closes` selects, for this copy.
    async fn close(&self, closes: impl Fn(u16) -> bool) -> Result<(), StoreError> {
        let mark = self.mark()?;
        let close = |partition: u16, pipe: &mut Pipeline| {
            if closes(partition) {
                pipe.cmd("SET").arg(self.store.names.epoch_key(partition)).arg(mark);
            }
        };
        self.to_each(close).await.map(drop)
    }

    fn mark(&self) -> Result<&str, StoreError> {
        if self.mark.get().is_none() {
            let name = getrandom::u64()
                .map_err(|_| StoreError::NotApplied("the system gives no random numbers".into()))?;
            // Another call may have been faster; then its mark counts.
            let _ = self.mark.set(format!("{MARK}{name:016x}"));
        }
        self.mark.get().map(String::as_str).ok_or_else(unexpected)
    }

    /// Whether the namespace has only names that gateways write at their start.
    async fn is_empty(&self) -> Result<bool, StoreError> {
        for group in self.groups().await? {
            let mut cursor = 0;
            loop {
                let (next, names) = self.scan(&group, cursor).await?;
                if names.iter().any(|name| !self.store.names.is_of_an_empty_store(name)) {
                    return Ok(false);
                }
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
        }
        Ok(true)
    }

    async fn scan(
        &self,
        group: &ServerPartitions,
        cursor: u64,
    ) -> Result<(u64, Vec<Vec<u8>>), StoreError> {
        let mut scan = redis::pipe();
        scan.cmd("SCAN")
            .arg(cursor)
            .arg("MATCH")
            .arg(self.store.names.all_match())
            .arg("COUNT")
            .arg(SCAN_COUNT);
        let answer = self
            .store
            .pipeline_to(group, &scan)
            .await?
            .into_iter()
            .next()
            .ok_or_else(unexpected)?;
        redis::from_redis_value(answer).map_err(|_| unexpected())
    }

    fn name_of(&self, key: &ItemKey) -> Vec<u8> {
        if key.tombstone {
            self.store.names.tombstone_key(&key.slot)
        } else {
            self.store.names.record_key(&key.slot)
        }
    }

    /// Reads items of one server.
    async fn read(
        &self,
        group: &ServerPartitions,
        keys: &[ItemKey],
    ) -> Result<Vec<Option<Item>>, StoreError> {
        let mut items = Vec::with_capacity(keys.len());
        for keys in keys.chunks(SCAN_COUNT) {
            let mut reading = redis::pipe();
            // The time is read first. Otherwise an item could get an end that is too late.
            reading.cmd("TIME");
            for key in keys {
                let name = self.name_of(key);
                reading.cmd("GET").arg(&name).cmd("PTTL").arg(&name);
            }
            let mut answers = self.store.pipeline_to(group, &reading).await?.into_iter();
            let now_ms = time_ms(answers.next().ok_or_else(unexpected)?)?;
            for key in keys {
                let (value, left) = answers.next().zip(answers.next()).ok_or_else(unexpected)?;
                items.push(item_of(key, value, left, now_ms)?);
            }
        }
        Ok(items)
    }

    /// Sends these commands to the servers of their partitions. Each answer must be 1: the
    /// partition is still closed for this copy.
    async fn run(&self, commands: BTreeMap<u16, Pipeline>) -> Result<(), StoreError> {
        for group in self.groups().await? {
            let mut pipeline = redis::pipe();
            for partition in &group.partitions {
                commands.get(partition).into_iter().flat_map(Pipeline::cmd_iter).for_each(
                    |command| {
                        pipeline.add_command(command.clone());
                    },
                );
            }
            if pipeline.is_empty() {
                continue;
            }
            if self
                .store
                .pipeline_to(&group, &pipeline)
                .await?
                .iter()
                .any(|answer| *answer != Value::Int(1))
            {
                return Err(StoreError::NotApplied(
                    "another copy has taken over, or the store was opened meanwhile".into(),
                ));
            }
        }
        Ok(())
    }

    async fn store_progress(&self, progress: &CopyProgress) -> Result<(), StoreError> {
        let mut keep = redis::cmd("SET");
        keep.arg(self.store.names.copy_key())
            .arg(serde_json::to_string(progress).unwrap_or_default());
        self.store.command(layout::COPY_PARTITION, &keep).await.map(drop)
    }

    async fn stored_progress(&self) -> Result<Option<String>, StoreError> {
        let mut get = redis::cmd("GET");
        get.arg(self.store.names.copy_key());
        redis::from_redis_value(self.store.command(layout::COPY_PARTITION, &get).await?)
            .map_err(|_| unexpected())
    }

    /// Returns the time at which a gateway last used the store, in ms since 1970.
    ///
    /// # Errors
    /// A gateway uses the store now.
    async fn refuse_used(&self) -> Result<u64, CopyError> {
        let gateways = self.store.gateways().await?;
        if gateways.present > 0 {
            return Err(CopyError::Refused(format!(
                "gateways use this store in Redis ({} of them): end them first \
                 (one that was killed counts for 20 s)",
                gateways.present
            )));
        }
        Ok(gateways.last_ms)
    }
}

/// Makes an item from a value and its remaining life (ms; -1: no expiry). Returns `None` for an
/// absent key.
fn item_of(
    key: &ItemKey,
    value: Value,
    left: Value,
    now_ms: u64,
) -> Result<Option<Item>, StoreError> {
    let (value, left) = match (value, left) {
        (Value::Nil, _) => return Ok(None),
        (Value::BulkString(value), Value::Int(left)) => (value, left),
        _ => return Err(unexpected()),
    };
    let ends_ms = match u64::try_from(left) {
        Ok(left) => now_ms.saturating_add(left),
        Err(_) if left == -1 => u64::MAX,
        // The item has just expired.
        Err(_) => return Ok(None),
    };
    Ok(Some(Item { key: *key, value: Bytes::from(value), ends_ms }))
}

/// Reads a cursor of [`CopySource::items`]: the index of a server, and the cursor of its SCAN.
fn place_of(cursor: &str) -> Option<(usize, u64)> {
    let (server, cursor) = cursor.split_once(':')?;
    Some((server.parse().ok()?, cursor.parse().ok()?))
}

#[async_trait]
impl CopySource for CopiedRedis {
    fn log_partitions(&self) -> u16 {
        PARTITIONS
    }

    fn log(&self) -> &dyn EventLog {
        &*self.store
    }

    async fn time_ms(&self) -> Result<u64, StoreError> {
        self.groups().await?;
        time_ms(self.store.command(layout::COPY_PARTITION, &redis::cmd("TIME")).await?)
    }

    async fn note(&self, note: Note) -> Result<Option<String>, StoreError> {
        self.store.note(note).await
    }

    async fn unused_state(&self) -> Result<String, CopyError> {
        let last_ms = self.refuse_used().await?;
        let epochs = self.epochs().await?;
        if !epochs.marked.is_empty() || self.stored_progress().await?.is_some() {
            return Err(CopyError::Refused(
                "the first store holds a copy that isn't finished itself".into(),
            ));
        }
        let first = epochs.first.ok_or_else(|| {
            CopyError::Refused("there is no store in Redis under this namespace".into())
        })?;
        Ok(format!("redis {} {last_ms}", Hex(&first)))
    }

    async fn items(&self, cursor: Option<&str>) -> Result<Items, StoreError> {
        let odd = || StoreError::NotApplied("the key where the copy goes on can't be read".into());
        let (server, cursor) =
            cursor.map_or(Ok((0, 0)), |cursor| place_of(cursor).ok_or_else(odd))?;
        let groups = self.groups().await?;
        let Some(group) = groups.get(server) else { return Ok(Items::default()) };
        let (next, names) = self.scan(group, cursor).await?;
        let stored = names.iter().filter_map(|name| self.store.names.stored_at(name));
        let keys: Vec<ItemKey> =
            stored.map(|(slot, tombstone)| ItemKey { slot, tombstone }).collect();
        let items = self.read(group, &keys).await?.into_iter().flatten().collect();
        let next = if next == 0 { (server + 1, 0) } else { (server, next) };
        Ok(Items {
            items,
            cursor: (next.0 < groups.len()).then(|| format!("{}:{}", next.0, next.1)),
        })
    }

    async fn find(&self, keys: &[ItemKey]) -> Result<Vec<Option<Item>>, StoreError> {
        let mut found = vec![None; keys.len()];
        for group in self.groups().await? {
            let here = |key: &&ItemKey| group.partitions.contains(&key.slot.partition());
            let own: Vec<ItemKey> = keys.iter().filter(here).copied().collect();
            let mut items = self.read(&group, &own).await?.into_iter();
            for (place, _) in found.iter_mut().zip(keys).filter(|(_, key)| here(key)) {
                *place = items.next().flatten();
            }
        }
        Ok(found)
    }

    async fn outbox(&self, cursor: Option<&str>) -> Result<OutboxItems, CopyError> {
        self.groups().await?;
        self.store.outbox_page(cursor).await
    }
}

#[async_trait]
impl CopyTarget for CopiedRedis {
    async fn begin(&self) -> Result<CopyStart, CopyError> {
        self.refuse_used().await?;
        let epochs = self.epochs().await?;
        match self.stored_progress().await? {
            Some(_) if epochs.any_real => Ok(CopyStart::Opening),
            Some(kept) => {
                let progress = serde_json::from_str(&kept).map_err(|_| {
                    CopyError::Refused(
                        "the second store holds an unfinished copy by another version: \
                         empty it and begin anew"
                            .into(),
                    )
                })?;
                self.close(|_| true).await?;
                Ok(CopyStart::Resumed(progress))
            }
            None => {
                if !self.is_empty().await? {
                    return Err(CopyError::Refused(
                        "the second store holds something already: \
                         empty it, or name another namespace"
                            .into(),
                    ));
                }
                self.close(|_| true).await?;
                self.store_progress(&CopyProgress::default()).await?;
                Ok(CopyStart::Fresh)
            }
        }
    }

    async fn put_items(&self, items: &[Item], progress: &CopyProgress) -> Result<(), StoreError> {
        let (mark, now_ms) = (self.mark()?, self.time_ms().await?);
        let mut commands: BTreeMap<u16, Pipeline> = BTreeMap::new();
        for item in items.iter().filter(|item| item.ends_ms > now_ms) {
            let partition = item.key.slot.partition();
            let keep =
                millis(std::time::Duration::from_millis(item.ends_ms.saturating_sub(now_ms)));
            let put = commands.entry(partition).or_default().cmd("EVAL");
            put.arg(include_str!("scripts/copy_item.lua"))
                .arg(3)
                .arg(self.store.names.epoch_key(partition));
            put.arg(self.name_of(&item.key));
            put.arg(self.store.names.index_key(partition, item.is_saga()));
            put.arg(mark)
                .arg(&item.value[..])
                .arg(keep)
                .arg(item.due_ms())
                .arg(&layout::member(&item.key.slot)[..]);
        }
        self.run(commands).await?;
        self.store_progress(progress).await
    }

    async fn put_events(
        &self,
        entries: &[LogEntry],
        progress: &CopyProgress,
    ) -> Result<(), StoreError> {
        let mark = self.mark()?;
        let mut commands: BTreeMap<u16, Pipeline> = BTreeMap::new();
        for entry in entries {
            let Some(link) = entry.link else { continue };
            let (partition, member) = (entry.partition, layout::member(&entry.slot));
            let value = [&digest(&member, &entry.event)[..], &member, &entry.event].concat();
            let put = commands.entry(partition).or_default().cmd("EVAL");
            put.arg(include_str!("scripts/copy_event.lua"))
                .arg(3)
                .arg(self.store.names.epoch_key(partition));
            put.arg(self.store.names.events_key(partition))
                .arg(self.store.names.chain_key(partition));
            put.arg(mark).arg(entry.id.to_string()).arg(&link.as_bytes()[..]).arg(value);
        }
        self.run(commands).await?;
        self.store_progress(progress).await
    }

    async fn put_outbox(
        &self,
        items: &[OutboxItem],
        progress: &CopyProgress,
    ) -> Result<(), StoreError> {
        self.run(outbox_copy::put_commands(&self.store.names, self.mark()?, items)).await?;
        self.store_progress(progress).await
    }

    async fn put_ends(&self, ends: &[Ends]) -> Result<(), StoreError> {
        let put = |partition: u16, pipe: &mut Pipeline| {
            let Some(ends) = ends.iter().find(|ends| ends.partition == partition) else { return };
            let marks = [
                (self.store.names.chain_key(partition), Some(ends.last)),
                (self.store.names.trimmed_key(partition), ends.trimmed),
            ];
            for (key, mark) in marks {
                let Some(mark) = mark else { continue };
                pipe.cmd("HSET")
                    .arg(key)
                    .arg("l")
                    .arg(&mark.link.as_bytes()[..])
                    .arg("i")
                    .arg(mark.id.to_string());
            }
        };
        self.to_each(put).await.map(drop)
    }

    /// Writes the notes first, because no gateway may claim before it has compared them. Then
    /// writes the epochs. Each epoch opens its partition, and after the first one nothing is copied
    /// any more. Deletes the progress last.
    async fn finish(&self, notes: &[(Note, String)]) -> Result<(), StoreError> {
        for (note, text) in notes {
            let mut set = redis::cmd("SET");
            set.arg(self.store.names.note_key(*note)).arg(text);
            self.store.command(layout::NOTES_PARTITION, &set).await?;
        }
        let marked = self.epochs().await?.marked;
        let name = getrandom::u64()
            .map_err(|_| StoreError::NotApplied("the system gives no random numbers".into()))?;
        let epoch = [name.to_be_bytes(), self.time_ms().await?.to_be_bytes()].concat();
        let open = |partition: u16, pipe: &mut Pipeline| {
            if marked.contains(&partition) {
                pipe.cmd("SET").arg(self.store.names.epoch_key(partition)).arg(&epoch);
            }
        };
        self.to_each(open).await?;
        let mut end = redis::pipe();
        end.cmd("DEL").arg(self.store.names.copy_key());
        let wait = self.store.wait_command();
        wait.into_iter().for_each(|wait| _ = end.add_command(wait));
        let answers = self.store.pipeline(layout::COPY_PARTITION, &end).await?;
        self.store.require_confirmed(answers.into_iter().nth(1))
    }
}
