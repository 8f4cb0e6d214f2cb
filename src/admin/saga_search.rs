//! Searches for sagas that have not ended: all of them newest first, and the saga of a step.

use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};

use super::problem::AdminRefusal;
use super::state::Admin;
use super::view::{SagaView, document_of};
use crate::gate::InternalCaller;
use crate::key::Slot;
use crate::record::{Held, Record, SagaPhase, State};
use crate::saga::document::SagaDocument;
use crate::saga::log::StepDirection;
use crate::saga::references::step_operation;
use crate::store::{ListError, Listing, StoreError};

/// Most sagas that one search reads. A record has a few KiB, at most some 300.
pub(super) const SCANNED_MAX: usize = 2000;

/// Records per call to the store.
const SCAN: usize = 100;

/// Most sagas that a search for the saga of a step reads whole.
const OPENED_MAX: usize = 200;

/// Reads at the same time. With the largest records, they need some megabytes.
const READS_AT_ONCE: usize = 16;

/// A saga that has not ended, as its record has it in the clear.
pub(super) struct ListedSaga {
    pub slot: Slot,
    pub name: Arc<str>,
    pub phase: SagaPhase,
    /// When it began, in ms since 1970.
    pub started_ms: u64,
}

/// The sagas of a store that have not ended.
pub(super) struct SagaScan {
    /// Newest first.
    pub sagas: Vec<ListedSaga>,
    /// Whether the scan ended before it had read all.
    pub is_cut: bool,
}

/// A saga in the store that has not ended.
pub(super) struct OpenedSaga {
    pub slot: Slot,
    pub held: Held,
}

/// The step that an operation belongs to.
pub(super) struct StepOfSaga {
    /// The name of the saga in the configuration.
    pub saga: String,
    /// The step and the direction of its operation, as the route of the operation has them.
    pub step: String,
    /// The saga; `None` if it has ended, or was not found among the newest ones.
    pub id: Option<Slot>,
}

impl SagaScan {
    /// Reads the sagas from the store.
    pub(super) async fn read(admin: &Admin) -> Result<SagaScan, ListError> {
        let records = &admin.gate.store().records;
        let (mut sagas, mut scanned, mut cursor) = (Vec::new(), 0, None);
        loop {
            let page = records.list(Listing::Sagas, cursor.as_deref(), SCAN).await?;
            scanned += page.records.len();
            sagas.extend(page.records.iter().filter_map(|(slot, held)| listed(*slot, held)));
            cursor = page.cursor;
            if cursor.is_none() || scanned >= SCANNED_MAX {
                break;
            }
        }
        sagas.sort_by_key(ListedSaga::position);
        // A record that changes during the scan may be listed twice.
        sagas.dedup_by_key(|saga| saga.slot);
        Ok(SagaScan { sagas, is_cut: cursor.is_some() })
    }

    /// Returns the stuck sagas, newest first.
    pub(super) fn stuck(&self) -> impl Iterator<Item = &ListedSaga> {
        self.sagas.iter().filter(|saga| saga.phase == SagaPhase::Stuck)
    }
}

impl ListedSaga {
    /// Returns the key of the order: newest first.
    pub(super) fn position(&self) -> (std::cmp::Reverse<u64>, Slot) {
        (std::cmp::Reverse(self.started_ms), self.slot)
    }
}

impl OpenedSaga {
    /// Returns the view with the steps.
    pub(super) fn view(&self, admin: &Admin) -> SagaView {
        SagaView::new(&admin.gate, &self.slot, &self.held)
    }

    fn has_operation(&self, admin: &Admin, operation: &Slot) -> bool {
        let Ok(Some(document)) = document_of(&self.held) else { return false };
        let is_of = |document: &SagaDocument, step, direction| {
            step_operation(&admin.gate, document, step, direction).slot == Some(*operation)
        };
        (0..document.plan.steps.len()).any(|step| {
            is_of(&document, step, StepDirection::Action)
                || is_of(&document, step, StepDirection::Compensation)
        })
    }
}

fn listed(slot: Slot, held: &Held) -> Option<ListedSaga> {
    let State::Saga { phase, .. } = held.record.state else { return None };
    let Record { route, opened_unix_ms, .. } = &held.record;
    Some(ListedSaga { slot, name: route.clone(), phase, started_ms: *opened_unix_ms })
}

/// Returns whether the store has sagas that have not ended.
pub(super) async fn has_stored_sagas(admin: &Admin) -> Result<bool, ListError> {
    let page = admin.gate.store().records.list(Listing::Sagas, None, 1).await?;
    // Further records are behind the cursor.
    Ok(!page.records.is_empty() || page.cursor.is_some())
}

/// Reads these sagas whole, in their order. Those that have ended since are left out. A listing
/// returns sealed contents, and a read returns them open.
pub(super) async fn open(
    admin: &Admin,
    slots: impl IntoIterator<Item = Slot>,
) -> Result<Vec<OpenedSaga>, StoreError> {
    let records = &admin.gate.store().records;
    let read = |slot: Slot| async move {
        let held = records.load(&slot).await?;
        let running = held.filter(|held| matches!(held.record.state, State::Saga { .. }));
        Ok::<_, StoreError>(running.map(|held| OpenedSaga { slot, held }))
    };
    let slots: Vec<Slot> = slots.into_iter().collect();
    let reads = stream::iter(slots).map(read).buffered(READS_AT_ONCE);
    let opened: Vec<Option<OpenedSaga>> = reads.try_collect().await?;
    Ok(opened.into_iter().flatten().collect())
}

/// Returns the step that an operation belongs to; `None` for an operation of a client.
pub(super) async fn step_of_saga(
    admin: &Admin,
    operation: &Slot,
    record: &Record,
) -> Result<Option<StepOfSaga>, AdminRefusal> {
    let Some((saga, step)) = names_of_step(admin, record) else { return Ok(None) };
    let scan = SagaScan::read(admin).await?;
    let mut candidates: Vec<&ListedSaga> =
        scan.sagas.iter().filter(|candidate| *candidate.name == *saga).collect();
    // A person looks for the saga of an operation because it is stuck.
    candidates.sort_by_key(|candidate| candidate.phase != SagaPhase::Stuck);
    candidates.truncate(OPENED_MAX);
    let mut id = None;
    for chunk in candidates.chunks(READS_AT_ONCE) {
        let opened = open(admin, chunk.iter().map(|candidate| candidate.slot)).await?;
        if let Some(found) = opened.iter().find(|opened| opened.has_operation(admin, operation)) {
            id = Some(found.slot);
            break;
        }
    }
    Ok(Some(StepOfSaga { saga, step, id }))
}

/// Returns the names of the saga and of the step from the route of an operation that a saga called.
fn names_of_step(admin: &Admin, record: &Record) -> Option<(String, String)> {
    let route = &*record.route;
    let splits = route.match_indices('/').map(|(at, _)| (&route[..at], &route[at + 1..]));
    let mut splits = splits.filter(|(saga, step)| {
        let is_called = admin.gate.is_called_by(record, InternalCaller::Saga(saga));
        // A released record has no caller.
        is_called || (record.caller.is_none() && admin.sagas.contains(*saga) && !step.is_empty())
    });
    splits.next().map(|(saga, step)| (saga.to_owned(), step.to_owned()))
}
