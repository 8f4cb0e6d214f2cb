//! Dead letters: their listing, and operators' decisions about them.

use futures_util::StreamExt;
use futures_util::stream;

use super::auth::{Operator, Permission};
use super::decision::Reason;
use super::problem::AdminRefusal;
use super::queries::{invalid, moment};
use super::sinks::require_sink;
use super::state::Admin;
use super::view::{DeadLetterListView, DeadLetterView, EventTitle, RequeueRequest, RequeuedView};
use crate::event::finished;
use crate::key::Slot;
use crate::outbox::call::requeue::RequeueRule;
use crate::store::dead_letters::{
    DeadLetter, DeadLetterCursor, DeadLetterFilter, DeadLetterId, DeadLetterKind, DeadLetterPage,
    RoundChange,
};
use crate::store::outbox::{EventContent, WaitingEvent};

/// Dead letters per request: the default, and the maximum. An event can have some 64 KiB, so a page
/// of operations has more.
const PAGE: usize = 100;
const PAGE_MAX: usize = 200;

/// Reads of the store for one page. A read of a filtered listing can find nothing, although there
/// are more dead letters.
const READS_MAX: usize = 16;

/// Requeues at the same time, so that a store can commit several together.
const REQUEUES_AT_ONCE: usize = 16;

/// The dead letters of a request, as texts.
#[derive(Debug, Clone, Default)]
pub(super) struct DeadLetterQuery {
    pub sink: Option<String>,
    pub kind: Option<String>,
    pub since: Option<String>,
    pub until: Option<String>,
    pub limit: Option<usize>,
    pub cursor: Option<String>,
}

/// A part of the dead letters.
struct DeadLetterSelection {
    filter: DeadLetterFilter,
    cursor: Option<DeadLetterCursor>,
    limit: usize,
}

impl DeadLetterQuery {
    fn selection(self) -> Result<DeadLetterSelection, AdminRefusal> {
        let kind = |name: String| {
            DeadLetterKind::from_name(&name)
                .ok_or_else(|| invalid("kind must be receiver or gateway"))
        };
        Ok(DeadLetterSelection {
            filter: DeadLetterFilter {
                sink: self.sink,
                operation: None,
                kind: self.kind.map(kind).transpose()?,
                since_ms: self.since.as_deref().map(moment).transpose()?,
                until_ms: self.until.as_deref().map(moment).transpose()?,
            },
            cursor: self.cursor.as_deref().map(parse_cursor).transpose()?,
            limit: self.limit.unwrap_or(PAGE).clamp(1, PAGE_MAX),
        })
    }
}

fn write_cursor(cursor: DeadLetterCursor) -> String {
    format!("{}_{}", cursor.buried_ms, cursor.id)
}

fn parse_cursor(text: &str) -> Result<DeadLetterCursor, AdminRefusal> {
    let parsed = text.split_once('_').and_then(|(buried_ms, id)| {
        Some(DeadLetterCursor { buried_ms: buried_ms.parse().ok()?, id: id.parse().ok()? })
    });
    parsed.ok_or_else(|| invalid("cursor is not that of a previous page"))
}

/// Reads dead letters until there are enough, or the store was read often enough.
async fn read(
    admin: &Admin,
    selection: &DeadLetterSelection,
) -> Result<DeadLetterPage, AdminRefusal> {
    let store = &admin.gate.store().dead_letters;
    let DeadLetterSelection { filter, limit, .. } = selection;
    let mut page = DeadLetterPage { letters: Vec::new(), cursor: selection.cursor };
    for _ in 0..READS_MAX {
        let room = limit.saturating_sub(page.letters.len());
        let found = store.dead_letters(filter, page.cursor, room).await?;
        page.letters.extend(found.letters);
        page.cursor = found.cursor;
        if page.cursor.is_none() || page.letters.len() >= *limit {
            break;
        }
    }
    Ok(page)
}

/// A dead letter, and its operation. The event also names the operation, but may be unreadable.
pub(super) struct ShownDeadLetter {
    pub operation: Slot,
    pub view: DeadLetterView,
}

impl ShownDeadLetter {
    fn new(id: DeadLetterId, letter: &DeadLetter, permission: Permission) -> ShownDeadLetter {
        let view = DeadLetterView::new(id, letter, permission == Permission::Operate);
        ShownDeadLetter { operation: letter.key.slot, view }
    }
}

/// Returns a page of dead letters, latest burial first, and the cursor of the next page.
pub(super) async fn shown_dead_letters(
    admin: &Admin,
    permission: Permission,
    query: DeadLetterQuery,
) -> Result<(Vec<ShownDeadLetter>, Option<String>), AdminRefusal> {
    let page = read(admin, &query.selection()?).await?;
    let shown = |letter: &DeadLetter| {
        ShownDeadLetter::new(DeadLetterId::of(&letter.key), letter, permission)
    };
    Ok((page.letters.iter().map(shown).collect(), page.cursor.map(write_cursor)))
}

/// Returns a page of dead letters, latest burial first.
pub(super) async fn dead_letters(
    admin: &Admin,
    permission: Permission,
    query: DeadLetterQuery,
) -> Result<DeadLetterListView, AdminRefusal> {
    let (shown, cursor) = shown_dead_letters(admin, permission, query).await?;
    Ok(DeadLetterListView {
        dead_letters: shown.into_iter().map(|shown| shown.view).collect(),
        cursor,
    })
}

/// Returns a dead letter and its operation.
pub(super) async fn shown_dead_letter(
    admin: &Admin,
    permission: Permission,
    id: &str,
) -> Result<ShownDeadLetter, AdminRefusal> {
    let (id, letter) = find(admin, id).await?;
    Ok(ShownDeadLetter::new(id, &letter, permission))
}

/// Returns a dead letter.
pub(super) async fn dead_letter(
    admin: &Admin,
    permission: Permission,
    id: &str,
) -> Result<DeadLetterView, AdminRefusal> {
    shown_dead_letter(admin, permission, id).await.map(|shown| shown.view)
}

/// An event that waits for its sink, without its contents.
pub(super) struct ShownWaitingEvent {
    pub sink: String,
    /// `None` if the event can't be read.
    pub event_type: Option<String>,
    pub written_ms: u64,
    /// The number of attempts in the present round.
    pub attempts: u32,
    /// The number of times that it was requeued.
    pub round: u32,
}

impl ShownWaitingEvent {
    fn new(event: WaitingEvent) -> ShownWaitingEvent {
        let head = match &event.content {
            EventContent::Plain(content) => {
                finished(content, event.written_ms).ok().and_then(|event| EventTitle::of(&event))
            }
            EventContent::Sealed(_) => None,
        };
        ShownWaitingEvent {
            sink: event.key.sink,
            event_type: head.map(|head| head.event_type),
            written_ms: event.written_ms,
            attempts: event.attempts.count,
            round: event.round,
        }
    }
}

/// The undelivered events of an operation.
pub(super) struct UndeliveredEvents {
    /// By sink, in the order of their delivery.
    pub waiting: Vec<ShownWaitingEvent>,
    /// Latest burial first.
    pub dead_letters: Vec<DeadLetterView>,
    /// Whether the search ended before it had found all dead letters.
    pub is_cut: bool,
}

/// Returns the undelivered events of an operation, without their contents.
pub(super) async fn undelivered(
    admin: &Admin,
    operation: &Slot,
) -> Result<UndeliveredEvents, AdminRefusal> {
    let outbox = &admin.gate.store().outbox;
    let partition = outbox.partition_of(operation);
    let mut waiting = Vec::new();
    for backlog in outbox.backlog().await? {
        if backlog.partition == partition && backlog.waiting > 0 {
            let events = outbox.waiting_of(&backlog.sink, operation).await?;
            waiting.extend(events.into_iter().map(ShownWaitingEvent::new));
        }
    }
    let filter = DeadLetterFilter { operation: Some(*operation), ..DeadLetterFilter::default() };
    let page = read(admin, &DeadLetterSelection { filter, cursor: None, limit: PAGE }).await?;
    let view = |letter: &DeadLetter| {
        ShownDeadLetter::new(DeadLetterId::of(&letter.key), letter, Permission::Read).view
    };
    let (dead_letters, is_cut) = (page.letters.iter().map(view).collect(), page.cursor.is_some());
    Ok(UndeliveredEvents { waiting, dead_letters, is_cut })
}

async fn find(admin: &Admin, id: &str) -> Result<(DeadLetterId, DeadLetter), AdminRefusal> {
    let id = id.parse()?;
    let letter = admin.gate.store().dead_letters.dead_letter(id).await?;
    Ok((id, letter.ok_or(AdminRefusal::DeadLetterUnknown)?))
}

/// Makes a dead letter a waiting event again. `again`: a call is made again although its outcome
/// is unknown.
pub(super) async fn requeue(
    admin: &Admin,
    operator: &Operator,
    id: &str,
    reason: Option<&Reason>,
    again: bool,
) -> Result<(), AdminRefusal> {
    let (id, letter) = find(admin, id).await?;
    let round = requeue_round(admin, &letter, again).await?;
    if !admin.gate.store().dead_letters.requeue(id, round).await? {
        return Err(AdminRefusal::DeadLetterUnknown);
    }
    tracing::info!(
        dead_letter = %id, sink = letter.key.sink, operation = %letter.key.slot,
        operator = operator.0, reason = reason.map(Reason::text), again,
        "dead letter requeued by an operator"
    );
    admin.relay.backlogs_changed();
    Ok(())
}

/// Returns the round of a dead letter that is requeued. A call may go on in its round.
async fn requeue_round(
    admin: &Admin,
    letter: &DeadLetter,
    again: bool,
) -> Result<RoundChange, AdminRefusal> {
    let rule = match RequeueRule::of(letter) {
        RequeueRule::Look(operation) => {
            let held = admin.gate.store().records.remains(&operation).await?;
            RequeueRule::after_look(letter, held.as_ref().map(|held| &held.record.state))
        }
        rule => rule,
    };
    match rule {
        RequeueRule::Begin(round) => Ok(round),
        RequeueRule::Look(_) | RequeueRule::Unknown if again => Ok(RequeueRule::again(letter)),
        RequeueRule::Look(_) | RequeueRule::Unknown => Err(AdminRefusal::OutcomeExpired),
    }
}

/// Removes a dead letter.
pub(super) async fn discard(
    admin: &Admin,
    operator: &Operator,
    id: &str,
    reason: &Reason,
) -> Result<(), AdminRefusal> {
    let (id, letter) = find(admin, id).await?;
    if !admin.gate.store().dead_letters.discard(id).await? {
        return Err(AdminRefusal::DeadLetterUnknown);
    }
    tracing::info!(
        dead_letter = %id, sink = letter.key.sink, operation = %letter.key.slot,
        operator = operator.0, reason = reason.text(),
        "dead letter discarded by an operator"
    );
    admin.relay.backlogs_changed();
    Ok(())
}

/// Makes a part of a sink's dead letters waiting events again.
///
/// All of them were buried before this began: they are listed first. The cursor leads to earlier
/// burials only, so the next request does not find what is buried again meanwhile. If it fails,
/// some may have been requeued; the same request continues.
pub(super) async fn requeue_part(
    admin: &Admin,
    operator: &Operator,
    request: RequeueRequest,
) -> Result<RequeuedView, AdminRefusal> {
    let RequeueRequest { sink, since, until, limit, cursor, again } = request;
    require_sink(admin, &sink).await?;
    let query = DeadLetterQuery {
        sink: Some(sink.clone()),
        kind: None,
        since: since.clone(),
        until: until.clone(),
        limit,
        cursor,
    };
    let page = read(admin, &query.selection()?).await?;
    let store = &admin.gate.store().dead_letters;
    // The earliest first, because it may be an earlier event of the same operation.
    let one = |letter: DeadLetter| async move {
        let round = requeue_round(admin, &letter, again).await?;
        Ok(store.requeue(DeadLetterId::of(&letter.key), round).await?)
    };
    let letters = page.letters.into_iter().rev();
    let mut results = stream::iter(letters).map(one).buffered(REQUEUES_AT_ONCE);
    let (mut requeued, mut refused, mut failure) = (0, 0, None);
    while let Some(result) = results.next().await {
        match result {
            Ok(existed) => requeued += usize::from(existed),
            Err(AdminRefusal::OutcomeExpired) => refused += 1,
            Err(error) => {
                failure = Some(error);
                break;
            }
        }
    }
    tracing::info!(
        sink,
        since,
        until,
        requeued,
        refused,
        again,
        operator = operator.0,
        "dead letters requeued by an operator"
    );
    admin.relay.backlogs_changed();
    match failure {
        Some(error) => Err(error),
        None => Ok(RequeuedView { requeued, refused, cursor: page.cursor.map(write_cursor) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_was_written() {
        let id = "dl_00070123456789abcdef0123456789ab".parse().unwrap();
        let cursor = DeadLetterCursor { buried_ms: 1_795_575_600_000, id };
        assert_eq!(parse_cursor(&write_cursor(cursor)).ok(), Some(cursor));
        for other in ["", "7", "7_", "x_dl_00070123456789abcdef0123456789ab", "7_dl_00"] {
            assert!(parse_cursor(other).is_err(), "{other}");
        }
    }

    #[test]
    fn a_query_is_read_and_nothing_is_passed_over() {
        let query = DeadLetterQuery {
            sink: Some("ledger".into()),
            kind: Some("gateway".into()),
            since: Some("2026-11-25T03:00:00Z".into()),
            limit: Some(5000),
            ..DeadLetterQuery::default()
        };
        let selection = query.selection().ok().unwrap();
        let filter = DeadLetterFilter {
            sink: Some("ledger".into()),
            operation: None,
            kind: Some(DeadLetterKind::Gateway),
            since_ms: Some(1_795_575_600_000),
            until_ms: None,
        };
        assert_eq!((selection.filter, selection.limit), (filter, PAGE_MAX));
        let with = |change: fn(&mut DeadLetterQuery)| {
            let mut query = DeadLetterQuery::default();
            change(&mut query);
            query.selection()
        };
        assert!(with(|query| query.kind = Some("both".into())).is_err());
        assert!(with(|query| query.until = Some("soon".into())).is_err());
        assert!(with(|query| query.cursor = Some("x".into())).is_err());
        assert!(with(|_| {}).is_ok());
    }
}
