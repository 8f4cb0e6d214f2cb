//! The store is away at the time of a call's note. Each event still calls once.

use tokio::sync::broadcast;

use super::calling::{Calls, answered, calling_sink, operation};
use super::*;
use crate::gate::CallOutcome;
use crate::store::StoreError;
use crate::store::dead_letters::Burial;
use crate::store::outbox::{
    DeliveryAttempts, DueEvents, EventKey, OutboxWake, RelayFence, SinkBacklog, WaitingEvent,
};

/// What happens to one write of a note.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    None,
    /// The store does not get it.
    Lost,
    /// The store has it, and its answer is lost.
    AnswerLost,
}

/// An outbox with faults in the first writes of notes.
struct FaultyNotes {
    outbox: Arc<Memory>,
    faults: Mutex<Vec<Fault>>,
}

#[async_trait]
impl Outbox for FaultyNotes {
    fn partition_count(&self) -> u16 {
        self.outbox.partition_count()
    }

    async fn attend(
        &self,
        relay: RelayFence,
        lease: Duration,
    ) -> Result<Vec<RelayFence>, StoreError> {
        self.outbox.attend(relay, lease).await
    }

    async fn leave(&self, relay: RelayFence) -> Result<(), StoreError> {
        self.outbox.leave(relay).await
    }

    async fn own_partition(
        &self,
        partition: u16,
        fence: RelayFence,
        over: Option<RelayFence>,
    ) -> Result<bool, StoreError> {
        self.outbox.own_partition(partition, fence, over).await
    }

    async fn partition_owners(&self) -> Result<Vec<Option<RelayFence>>, StoreError> {
        self.outbox.partition_owners().await
    }

    async fn due_events(
        &self,
        partition: u16,
        sink: &str,
        limit: usize,
    ) -> Result<DueEvents, StoreError> {
        self.outbox.due_events(partition, sink, limit).await
    }

    async fn postpone(
        &self,
        fence: RelayFence,
        event: &EventKey,
        round: u32,
        attempts: DeliveryAttempts,
        pause: Duration,
    ) -> Result<bool, StoreError> {
        self.outbox.postpone(fence, event, round, attempts, pause).await
    }

    async fn replace_content(
        &self,
        fence: RelayFence,
        event: &EventKey,
        round: u32,
        content: &EventContent,
    ) -> Result<bool, StoreError> {
        let fault = self.faults.lock().unwrap().pop().unwrap_or(Fault::None);
        if fault == Fault::Lost {
            return Err(StoreError::NotApplied("the store is away".into()));
        }
        let replaced = self.outbox.replace_content(fence, event, round, content).await;
        match fault {
            Fault::AnswerLost => Err(StoreError::MaybeApplied("the store is away".into())),
            _ => replaced,
        }
    }

    async fn remove(
        &self,
        fence: RelayFence,
        event: &EventKey,
        round: u32,
    ) -> Result<bool, StoreError> {
        self.outbox.remove(fence, event, round).await
    }

    async fn bury(
        &self,
        fence: RelayFence,
        event: &EventKey,
        round: u32,
        burial: &Burial,
    ) -> Result<bool, StoreError> {
        self.outbox.bury(fence, event, round, burial).await
    }

    async fn backlog(&self) -> Result<Vec<SinkBacklog>, StoreError> {
        self.outbox.backlog().await
    }

    async fn oldest_waiting_ms(
        &self,
        sink: &str,
        partitions: &BTreeSet<u16>,
    ) -> Result<Option<u64>, StoreError> {
        self.outbox.oldest_waiting_ms(sink, partitions).await
    }

    async fn waiting_of(&self, sink: &str, slot: &Slot) -> Result<Vec<WaitingEvent>, StoreError> {
        self.outbox.waiting_of(sink, slot).await
    }

    fn wakes(&self) -> broadcast::Receiver<OutboxWake> {
        self.outbox.wakes()
    }
}

/// Delivers one event while the writes of its notes have these faults, in order. The first call is
/// not sent if `is_sent` is false. Returns the number of begun calls.
async fn begun_calls(faults: &[Fault], is_sent: bool) -> usize {
    let calls = Calls::new(Duration::ZERO, move |call, before| match (call.continues, before) {
        // A look would find that the round never began.
        (true, _) => CallOutcome::NothingToContinue { operation: operation(), was_released: false },
        (false, 0) if !is_sent => CallOutcome::StoreUnavailable { retry_after: Duration::ZERO },
        (false, _) => answered(),
    });
    let scene = Scene::in_tokio_time();
    scene.change(1, 7, None).await;
    let mut parts = scene.parts();
    let faults = Mutex::new(faults.iter().rev().copied().collect());
    parts.store.outbox = Arc::new(FaultyNotes { outbox: scene.store.clone(), faults });
    let relay = calls.relay_with(parts, calling_sink(0));
    until("nothing waits", async || scene.waiting().await == 0).await;
    relay.stop().await;
    assert_eq!(scene.dead_letters().await, []);
    calls.counts().0
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_at_the_note_that_a_round_begins_costs_no_call_and_no_dead_letter() {
    for fault in [Fault::Lost, Fault::AnswerLost] {
        assert_eq!(begun_calls(&[fault], true).await, 1, "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_when_a_note_is_taken_back_makes_no_dead_letter() {
    for fault in [Fault::Lost, Fault::AnswerLost] {
        // The first call was not sent. The second one is the same round.
        assert_eq!(begun_calls(&[Fault::None, fault], false).await, 2, "{fault:?}");
    }
}
