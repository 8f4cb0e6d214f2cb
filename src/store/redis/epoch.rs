//! Whether the servers still have what they acknowledged. A server that restarts empty, is flushed, or is replaced by a
//! replica that lags behind answers like any other: keys that ran look new.
//!
//! Two things tell. Each partition has an **epoch**, a key without an end that every claim names and the script compares: who
//! lost everything lost it too. And each server has a **lineage** (run id and replication id), read on every connect before
//! the first claim: a restart or a promotion changes it. After a change of either, what this process holds is written again
//! before the next claim; and where claims must not be lost at all, new ones are refused for [`QUIET`], in which the other
//! gateways do the same.
//!
//! Danger: gateways and servers that all start empty at once know of nothing that was lost.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use redis::Value;
use redis::aio::MultiplexedConnection;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::holdings::{Assertion, Holding};
use super::link::{Ask, Failure};
use super::servers::{Group, ask_whole};
use super::write::{Change, Written};
use super::{Redis, array, copy, fault, time_ms, unexpected};
use crate::key::{PARTITIONS, Slot};
use crate::record::{CodecError, Held, Record, Version, decode, encode};
use crate::store::{StoreError, Swap};

/// How long new operations are refused, under "strict", after the servers may have lost something: several times what the
/// other gateways need to notice it.
pub const QUIET: Duration = Duration::from_secs(5);

/// How often an epoch of each server is looked at although nothing seems wrong: a flushed server tells nobody.
const PERIOD: Duration = Duration::from_secs(1);

/// Before a pass that failed is repeated.
const AGAIN: Duration = Duration::from_millis(50);

/// How often one record is looked at again because its slot changes meanwhile.
const LOOKS_MAX: usize = 8;

/// Records written again at once.
const ASSERTIONS_AT_ONCE: usize = 64;

/// Bytes of an epoch: a random name, and when it began (ms since 1970 by the server's clock).
pub(super) const EPOCH_BYTES: usize = 16;

/// The name of a partition's history, and since when it has it.
pub(super) type Epoch = [u8; EPOCH_BYTES];

/// A server's history of writes, numbered within this process: a number stands for one lineage.
pub(super) type Generation = u64;

/// Which server answers, and which history of writes it has.
#[derive(PartialEq, Eq)]
pub(super) struct Lineage {
    /// Changes with every start.
    run: String,
    /// Changes with every promotion.
    replication: String,
}

impl Lineage {
    /// Asks a server; `None` where it doesn't tell.
    ///
    /// # Errors
    /// It doesn't answer.
    pub(super) async fn of(
        connection: &MultiplexedConnection,
        limit: Duration,
    ) -> Result<Option<Lineage>, String> {
        let mut connection = connection.clone();
        let info = redis::cmd("INFO");
        let answer = timeout(limit, info.query_async::<String>(&mut connection))
            .await
            .map_err(|_| "no answer in time")?;
        let info = match answer {
            Ok(info) => info,
            Err(error) if fault::is_transport(&error) => return Err(fault::of_connecting(&error)),
            Err(_) => return Ok(None),
        };
        let field = |name: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(|value| value.trim().to_owned())
        };
        Ok(field("run_id")
            .zip(field("master_replid"))
            .map(|(run, replication)| Lineage { run, replication }))
    }
}

/// A number that no other lineage has.
pub(super) fn new_generation() -> Generation {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Ordering::Relaxed) + 1
}

/// What a partition's claims go by.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Standing {
    pub generation: Generation,
    pub epoch: Epoch,
    /// Until when new operations are refused.
    pub quiet_until: Option<Instant>,
}

/// What is known of all partitions.
pub(super) struct Epochs {
    table: RwLock<Vec<Known>>,
    /// A claim wants to know, or something changed.
    wanted: Arc<Notify>,
    /// A look at a server has ended.
    looked: Notify,
    /// How many looks have ended.
    looks: AtomicU64,
    /// Why the last look that found out nothing did so.
    failure: RwLock<Option<StoreError>>,
    quiet: Duration,
}

#[derive(Clone, Copy, Default)]
struct Known {
    standing: Option<Standing>,
    /// The epoch that this process went by last, also while it is in doubt.
    last: Option<Epoch>,
    /// Which look found out nothing about it, the last time that was so.
    failed: u64,
}

impl Epochs {
    /// Nothing is known yet. `wanted` wakes who finds out; new operations are refused for `quiet` after a loss.
    pub(super) fn new(wanted: Arc<Notify>, quiet: Duration) -> Epochs {
        let table = vec![Known::default(); usize::from(PARTITIONS)];
        Epochs {
            table: RwLock::new(table),
            wanted,
            looked: Notify::new(),
            looks: AtomicU64::new(0),
            failure: RwLock::default(),
            quiet,
        }
    }

    fn known(&self, partition: u16) -> Known {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.get(usize::from(partition)).copied().unwrap_or_default()
    }

    /// Changes what is known of a partition in one piece: requests raise doubts while the keeper finds out.
    fn change(&self, partition: u16, change: impl FnOnce(&mut Known)) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = table.get_mut(usize::from(partition)) {
            change(known);
        }
    }

    /// What claims in a partition go by; waits for it, until the deadline, while it is being found out.
    pub(super) async fn standing(
        &self,
        partition: u16,
        deadline: Instant,
    ) -> Result<Standing, StoreError> {
        let asked = self.looks.load(Ordering::Acquire);
        loop {
            let looked = self.looked.notified();
            let known = self.known(partition);
            if let Some(standing) = known.standing {
                return Ok(standing);
            }
            self.wanted.notify_one();
            // A look that began before may have ended since; its failure is as good as the next.
            if known.failed > asked || timeout_at(deadline, looked).await.is_err() {
                return Err(self.failure());
            }
        }
    }

    /// Waits until claims can be made in all partitions.
    pub(super) async fn all_standing(&self, deadline: Instant) -> Result<(), StoreError> {
        for partition in 0..PARTITIONS {
            self.standing(partition, deadline).await?;
        }
        Ok(())
    }

    /// Why nothing can be claimed. Whatever failed, nothing of a claim was sent.
    fn failure(&self) -> StoreError {
        match &*self.failure.read().unwrap_or_else(PoisonError::into_inner) {
            Some(
                StoreError::NotApplied(why)
                | StoreError::MaybeApplied(why)
                | StoreError::Unread(why),
            ) => StoreError::NotApplied(why.clone()),
            Some(error @ StoreError::Corrupt(_)) => error.clone(),
            None => StoreError::NotApplied("what the store's server holds is not known yet".into()),
        }
    }

    /// A look at a server that holds these partitions has ended.
    fn looked_at(&self, partitions: &[u16], done: &Result<(), StoreError>) {
        let look = self.looks.fetch_add(1, Ordering::AcqRel) + 1;
        if let Err(error) = done {
            *self.failure.write().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
            partitions
                .iter()
                .for_each(|partition| self.change(*partition, |known| known.failed = look));
        }
        self.looked.notify_waiters();
    }

    /// What a partition's claims go by now; `None` while it is being found out.
    pub(super) fn current(&self, partition: u16) -> Option<Standing> {
        self.known(partition).standing
    }

    /// A partition's server is not what this standing says.
    pub(super) fn doubt(&self, partition: u16, standing: &Standing) {
        self.change(partition, |known| {
            known.standing.take_if(|stands| stands == standing);
        });
        self.wanted.notify_one();
    }
}

/// Finds out and keeps what claims go by, for as long as the store lives.
pub(super) async fn keep(store: Weak<Redis>, wanted: Arc<Notify>) {
    loop {
        let done = match store.upgrade() {
            None => return,
            Some(store) => store.look_at_epochs().await,
        };
        if done.is_err() {
            sleep(AGAIN).await;
        }
        let _ = timeout(PERIOD, wanted.notified()).await;
    }
}

impl Redis {
    /// Finds out what claims go by, wherever it is not known; elsewhere, looks whether it still holds.
    async fn look_at_epochs(&self) -> Result<(), StoreError> {
        let begun = Instant::now();
        // One server that doesn't answer keeps nobody from the others.
        let looks = self.servers.groups().into_iter().map(async |group| {
            let done = self.look_at(&group).await;
            self.epochs.looked_at(&group.partitions, &done);
            done
        });
        futures_util::future::join_all(looks).await.into_iter().collect::<Result<(), _>>()?;
        self.servers.complete()?;
        self.holdings.intact_at(begun);
        Ok(())
    }

    async fn look_at(&self, group: &Group) -> Result<(), StoreError> {
        let generation = group.links.generation(self.deadline()).await?;
        let stands = |partition: &u16| {
            let standing = self.epochs.known(*partition).standing;
            standing.is_some_and(|standing| standing.generation == generation)
        };
        let (standing, unclear): (Vec<u16>, Vec<u16>) =
            group.partitions.iter().copied().partition(stands);
        // Who loses one loses all.
        let forgotten = match standing.first() {
            Some(first) => self.is_forgotten(*first).await?,
            None => false,
        };
        match (forgotten, unclear.is_empty()) {
            (true, _) => self.find_out(group, generation, group.partitions.clone()).await,
            (false, false) => self.find_out(group, generation, unclear).await,
            (false, true) => Ok(()),
        }
    }

    /// Whether a partition's server may have lost records since its claims went by `before`: it was found out anew since,
    /// or is in doubt now.
    pub(super) async fn may_have_lost(
        &self,
        partition: u16,
        before: Option<Standing>,
    ) -> Result<bool, StoreError> {
        Ok(self.epochs.current(partition) != before || self.is_forgotten(partition).await?)
    }

    /// Whether a partition's server has another history of writes or another epoch than its claims go by, or none.
    async fn is_forgotten(&self, partition: u16) -> Result<bool, StoreError> {
        let Some(standing) = self.epochs.current(partition) else { return Ok(true) };
        let mut get = redis::cmd("GET");
        get.arg(self.names.epoch_key(partition));
        // A replica that was promoted has the epoch, and may lack records all the same.
        let forgotten = match self
            .servers
            .call(partition, Ask::One(&get), Some(standing.generation), self.deadline())
            .await
        {
            Ok(found) => epoch(&found) != Some(standing.epoch),
            Err(Failure::Replaced) => true,
            Err(failure) => return Err(failure.into()),
        };
        if forgotten {
            self.epochs.doubt(partition, &standing);
        }
        Ok(forgotten)
    }

    /// Reads the epochs of a server's partitions, writes again what this process holds of those that may have lost something,
    /// and begins an epoch where there is none.
    async fn find_out(
        &self,
        group: &Group,
        generation: Generation,
        partitions: Vec<u16>,
    ) -> Result<(), StoreError> {
        // Before it is looked up what is held: a write that is confirmed from now on finds out that this may lack it.
        partitions
            .iter()
            .for_each(|partition| self.epochs.change(*partition, |known| known.standing = None));
        let (now_ms, mut found) = self.epochs_at(group, generation, &partitions).await?;
        let last = |partition: &u16| self.epochs.known(*partition).last;
        let met_again: HashSet<u16> =
            partitions.iter().copied().filter(|partition| last(partition).is_some()).collect();
        let lost = partitions
            .iter()
            .zip(&found)
            .filter(|(partition, found)| last(partition).is_some_and(|last| **found != Some(last)));
        report(lost.count(), met_again.len());
        self.assert_again(&met_again).await?;
        if found.iter().any(Option::is_none) {
            let absent = partitions
                .iter()
                .zip(&found)
                .filter(|(_, found)| found.is_none())
                .map(|(partition, _)| *partition);
            self.begin_epochs(group, generation, absent, now_ms).await?;
            // Another gateway may have been faster: what stands is what counts.
            found = self.epochs_at(group, generation, &partitions).await?.1;
        }
        for (partition, epoch) in partitions.iter().zip(found) {
            let epoch = epoch.ok_or_else(copy::unfinished)?;
            let quiet_until = self.quiet_until(met_again.contains(partition), &epoch, now_ms);
            let standing = Standing { generation, epoch, quiet_until };
            self.epochs.change(*partition, |known| {
                known.standing = Some(standing);
                known.last = Some(epoch);
            });
        }
        Ok(())
    }

    /// A server's time, and the epochs of its partitions.
    async fn epochs_at(
        &self,
        group: &Group,
        generation: Generation,
        partitions: &[u16],
    ) -> Result<(u64, Vec<Option<Epoch>>), StoreError> {
        let mut reading = redis::pipe();
        reading.cmd("TIME");
        for partition in partitions {
            reading.cmd("GET").arg(self.names.epoch_key(*partition));
        }
        let mut answers = array(
            ask_whole(&group.links, Ask::Many(&reading), Some(generation), self.deadline()).await?,
        )?
        .into_iter();
        let now_ms = time_ms(answers.next().ok_or_else(unexpected)?)?;
        Ok((now_ms, answers.map(|answer| epoch(&answer)).collect()))
    }

    async fn begin_epochs(
        &self,
        group: &Group,
        generation: Generation,
        partitions: impl Iterator<Item = u16>,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        let name = random()?;
        let fresh = [name.to_be_bytes(), now_ms.to_be_bytes()].concat();
        let mut beginning = redis::pipe();
        for partition in partitions {
            beginning.cmd("SET").arg(self.names.epoch_key(partition)).arg(&fresh).arg("NX");
        }
        let begun = beginning.len();
        if let Some(wait) = self.wait() {
            beginning.add_command(wait);
        }
        let answers = array(
            ask_whole(&group.links, Ask::Many(&beginning), Some(generation), self.deadline())
                .await?,
        )?;
        self.insist(answers.into_iter().nth(begun))
    }

    /// Writes again what this process holds of these partitions.
    async fn assert_again(&self, partitions: &HashSet<u16>) -> Result<(), StoreError> {
        let assertions = self
            .holdings
            .of(partitions)
            .into_iter()
            .map(|(slot, holding)| self.assert_one(slot, holding));
        let done: Vec<_> = futures_util::stream::iter(assertions)
            .buffer_unordered(ASSERTIONS_AT_ONCE)
            .collect()
            .await;
        done.into_iter().collect()
    }

    /// Leaves a record alone that can't be read.
    fn can_not_assert(&self, slot: &Slot, error: &CodecError) -> Result<(), StoreError> {
        tracing::error!(operation = %slot, %error, "a record that the store may have lost can't be written again: what stands there can't be read");
        Ok(())
    }

    async fn assert_one(&self, slot: Slot, holding: Holding) -> Result<(), StoreError> {
        let mut record = decode(&holding.encoded.head, holding.encoded.payload.clone())?;
        let mut encoded = holding.encoded.clone();
        let mut expected = None;
        for _ in 0..LOOKS_MAX {
            let (lifetime, event) = (holding.lifetime, holding.event.clone());
            let change = Change {
                slot: &slot,
                expected,
                next: &record,
                encoded: encoded.clone(),
                lifetime,
                event,
            };
            let stands = match self.swap_script(&change, None, self.deadline()).await {
                Ok(Written::Swapped(Swap::Stored)) => {
                    let Change { encoded, event, .. } = change;
                    self.holdings.acknowledged(&slot, &record, encoded, lifetime, event);
                    return Ok(());
                }
                Ok(Written::Swapped(Swap::Stale(stands))) => stands,
                Ok(Written::Swapped(Swap::Large(_))) => match self.read(&slot, false).await {
                    Err(StoreError::Corrupt(error)) => return self.can_not_assert(&slot, &error),
                    stands => stands?,
                },
                Ok(Written::OtherEpoch) => return Err(unexpected()),
                // A record that can't be read is not replaced, and must not keep all others from being written again.
                Err(StoreError::Corrupt(error)) => return self.can_not_assert(&slot, &error),
                Err(error) => return Err(error),
            };
            // Of what is gone meanwhile nothing is in the way any more.
            let Some(Held { record: stands, .. }) = stands else {
                expected = None;
                continue;
            };
            match holding.assertion(&stands) {
                Assertion::Forward(version) => expected = Some(version),
                Assertion::Anew(version) => {
                    expected = Some(version);
                    record = Record { version: Version(random()?), ..record };
                    encoded = encode(&record);
                }
                // Written again already, under another version, in a pass that failed later.
                Assertion::Obsolete if stands.is_same_state(&record) => return Ok(()),
                Assertion::Obsolete => {
                    self.holdings.superseded(&slot, holding.version());
                    return Ok(());
                }
                Assertion::BegunAgain => {
                    tracing::error!(operation = %slot, "the store lost this operation and it was begun again: it may have been executed twice");
                    self.holdings.superseded(&slot, holding.version());
                    return Ok(());
                }
            }
        }
        Err(StoreError::NotApplied(
            "a record that the store may have lost changes again and again".into(),
        ))
    }

    /// Until when new operations are refused: for a while after a change that was noticed here, and while an epoch is young,
    /// which others may have noticed.
    fn quiet_until(&self, met_again: bool, epoch: &Epoch, now_ms: u64) -> Option<Instant> {
        let age = Duration::from_millis(now_ms.saturating_sub(born_ms(epoch)));
        let left =
            if met_again { self.epochs.quiet } else { self.epochs.quiet.saturating_sub(age) };
        (!left.is_zero()).then(|| Instant::now() + left)
    }
}

fn random() -> Result<u64, StoreError> {
    getrandom::u64()
        .map_err(|_| StoreError::NotApplied("the system gives no random numbers".into()))
}

fn report(lost: usize, met_again: usize) {
    if lost > 0 {
        tracing::error!(
            partitions = lost,
            "the store has lost its records: what this gateway holds of them is written again"
        );
    } else if met_again > 0 {
        tracing::warn!(
            partitions = met_again,
            "the store's server was restarted or replaced: what this gateway holds is written again"
        );
    }
}

/// The epoch in an answer; `None` where there is none.
fn epoch(answer: &Value) -> Option<Epoch> {
    match answer {
        Value::BulkString(bytes) => bytes.as_slice().try_into().ok(),
        _ => None,
    }
}

fn born_ms(epoch: &Epoch) -> u64 {
    epoch.iter().skip(8).fold(0, |n, byte| n << 8 | u64::from(*byte))
}
