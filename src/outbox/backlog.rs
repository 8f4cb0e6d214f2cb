//! The backlogs of sinks: how much waits for each, and which sinks have reached their limits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use super::settings::SinkSettings;
use crate::store::StoreError;
use crate::store::outbox::{Outbox, SinkBacklog};
use crate::telemetry::{OutboxMeter, SinkGauges};

/// The events of a sink, in all partitions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BacklogSum {
    /// Waiting events.
    pub waiting: u64,
    /// Dead letters by receiver.
    pub dead_by_receiver: u64,
    /// Dead letters by gateway.
    pub dead_by_gateway: u64,
    /// Bytes of all these.
    pub bytes: u64,
    /// Time of the change of the oldest waiting event, in ms since 1970 by the store's clock.
    pub oldest_ms: Option<u64>,
}

impl BacklogSum {
    fn add(&mut self, part: &SinkBacklog) {
        self.waiting += part.waiting;
        self.dead_by_receiver += part.dead_by_receiver;
        self.dead_by_gateway += part.dead_by_gateway;
        self.bytes += part.bytes;
    }

    /// Returns the number of dead letters.
    pub fn dead_letters(&self) -> u64 {
        self.dead_by_receiver + self.dead_by_gateway
    }

    fn is_full(&self, settings: &SinkSettings) -> bool {
        self.waiting + self.dead_letters() >= settings.max_backlog
            || self.bytes >= settings.max_bytes
    }
}

/// The result of a look at the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BacklogLook {
    /// The partitions with waiting events, by sink.
    pub waiting: BTreeMap<String, BTreeSet<u16>>,
    /// Whether a configured sink has reached its limits.
    pub has_full: bool,
}

/// Gets the names of the full sinks, and returns those that are new.
type NotesFullSinks = dyn Fn(BTreeSet<String>) -> BTreeSet<String> + Send + Sync;

/// The backlogs at the last look. Cheap to clone.
#[derive(Clone)]
pub struct Backlogs {
    sums: Arc<RwLock<Arc<BTreeMap<String, BacklogSum>>>>,
    full: Arc<NotesFullSinks>,
    meter: OutboxMeter,
}

impl Backlogs {
    /// Returns backlogs before the first look. `full` gets the names of the sinks that have
    /// reached their limits, and returns those that are new.
    pub fn new(
        meter: OutboxMeter,
        full: impl Fn(BTreeSet<String>) -> BTreeSet<String> + Send + Sync + 'static,
    ) -> Backlogs {
        Backlogs { sums: Arc::default(), full: Arc::new(full), meter }
    }

    /// Returns the backlogs of the sinks that have one.
    pub fn sums(&self) -> Arc<BTreeMap<String, BacklogSum>> {
        self.sums.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks at the store.
    ///
    /// # Errors
    /// The store fails. The former sums stay.
    pub async fn refresh<'s>(
        &self,
        outbox: &dyn Outbox,
        sinks: impl Iterator<Item = &'s SinkSettings> + Send,
        is_paused: impl Fn(&str) -> bool + Send,
        now_ms: u64,
    ) -> Result<BacklogLook, StoreError> {
        let parts = outbox.backlog().await?;
        let waiting = waiting_in(&parts);
        let sums = sums_of(outbox, &parts, &waiting).await?;
        let mut full = BTreeSet::new();
        for settings in sinks {
            let sum = sums.get(&settings.name).copied().unwrap_or_default();
            if sum.is_full(settings) {
                full.insert(settings.name.clone());
            }
            self.show(&settings.name, &sum, is_paused(&settings.name), now_ms);
        }
        // Sinks that the configuration does not name any more, as long as something waits for them.
        let before = self.sums();
        for name in before.keys().chain(sums.keys()) {
            let sum = sums.get(name).copied().unwrap_or_default();
            self.show(name, &sum, is_paused(name), now_ms);
        }
        let has_full = !full.is_empty();
        for sink in (self.full)(full) {
            tracing::error!(sink, "the sink's backlog has reached its limit");
        }
        *self.sums.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(sums);
        Ok(BacklogLook { waiting, has_full })
    }

    fn show(&self, sink: &str, sum: &BacklogSum, is_paused: bool, now_ms: u64) {
        let oldest = sum.oldest_ms.map_or(0, |oldest_ms| now_ms.saturating_sub(oldest_ms));
        let gauges = SinkGauges {
            waiting: sum.waiting,
            oldest: Duration::from_millis(oldest),
            dead_by_receiver: sum.dead_by_receiver,
            dead_by_gateway: sum.dead_by_gateway,
            is_paused,
        };
        self.meter.set(sink, &gauges);
    }
}

/// Reads the present backlogs of the sinks that have one, by name.
///
/// # Errors
/// The store fails.
pub async fn present_backlogs(
    outbox: &dyn Outbox,
) -> Result<BTreeMap<String, BacklogSum>, StoreError> {
    let parts = outbox.backlog().await?;
    sums_of(outbox, &parts, &waiting_in(&parts)).await
}

/// Returns the partitions with waiting events, by sink.
fn waiting_in(parts: &[SinkBacklog]) -> BTreeMap<String, BTreeSet<u16>> {
    let mut waiting: BTreeMap<String, BTreeSet<u16>> = BTreeMap::new();
    for part in parts.iter().filter(|part| part.waiting > 0) {
        waiting.entry(part.sink.clone()).or_default().insert(part.partition);
    }
    waiting
}

async fn sums_of(
    outbox: &dyn Outbox,
    parts: &[SinkBacklog],
    waiting: &BTreeMap<String, BTreeSet<u16>>,
) -> Result<BTreeMap<String, BacklogSum>, StoreError> {
    let mut sums: BTreeMap<String, BacklogSum> = BTreeMap::new();
    for part in parts {
        sums.entry(part.sink.clone()).or_default().add(part);
    }
    for (sink, partitions) in waiting {
        let oldest_ms = outbox.oldest_waiting_ms(sink, partitions).await?;
        sums.entry(sink.clone()).or_default().oldest_ms = oldest_ms;
    }
    Ok(sums)
}
