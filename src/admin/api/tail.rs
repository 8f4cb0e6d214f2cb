//! `GET /v1/log`: reads the event log page by page, and waits for new events.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::extract::{Query, State};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until};

use crate::admin::problem::AdminRefusal;
use crate::admin::queries::moment;
use crate::admin::state::Admin;
use crate::admin::view::{EventView, LoggedView};
use crate::store::StoreError;
use crate::store::log::reader::{LogPage, LogReader, position_before};
use crate::store::log::{LogEntry, Position};

/// Events of one page: the default, and the maximum, which is about a megabyte.
const EVENTS: usize = 100;
const EVENTS_MAX: usize = 1000;

/// The longest wait for an event, in seconds. It is about half of the usual timeout of clients and
/// proxies.
const WAIT_S_MAX: u64 = 5;

/// The pause between two reads of a log without new entries. A read is one command to each server.
/// The pause is so short that a reader does not notice it.
const PERIOD: Duration = Duration::from_millis(250);

/// How many requests may read repeatedly while they wait. Together they are a small part of the
/// store's work. Further requests read only once, at the beginning of their wait.
const WATCHING_MAX: usize = 16;

/// The longest cursor, in bytes: twice the size of the positions of all partitions.
const CURSOR_BYTES_MAX: usize = 16 << 10;

static WATCHING: Semaphore = Semaphore::const_new(WATCHING_MAX);

/// The shortest time between two reads, over all requests. Each read visits every partition.
/// Without this limit, a client that follows a busy log would read without a pause, because it gets
/// each page at once and then requests the next one.
const READ_INTERVAL: Duration = Duration::from_millis(16);

static READ_TURNS: ReadTurns = ReadTurns(Mutex::new(None));

/// Starts reads in the order of their requests, at least [`READ_INTERVAL`] apart.
struct ReadTurns(Mutex<Option<Instant>>);

impl ReadTurns {
    async fn wait(&self) {
        let turn = {
            let (mut next, now) =
                (self.0.lock().unwrap_or_else(PoisonError::into_inner), Instant::now());
            let turn = next.map_or(now, |next| next.max(now));
            *next = Some(turn + READ_INTERVAL);
            turn
        };
        sleep_until(turn).await;
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct TailQuery {
    after: Option<String>,
    since: Option<String>,
    limit: Option<usize>,
    wait: Option<u64>,
}

/// Returns a page of the event log: the events after a cursor, since a time, or only new ones.
#[utoipa::path(
    get, path = "/v1/log", tag = "event log",
    params(
        ("after" = Option<String>, Query,
            description = "The `cursor` of the previous page; without it and `since`, from now \
                on"),
        ("since" = Option<String>, Query,
            description = "Instead of `after`: events from this time on, by the store's clock \
                (RFC 3339)"),
        ("limit" = Option<usize>, Query,
            description = "Most events of the page: 1 to 1000, by default 100"),
        ("wait" = Option<u64>, Query,
            description = "Seconds to wait for a first event: 0 to 5, by default 0"),
    ),
    responses((status = 200, body = LoggedView,
        description = "The events. A page without events is the end of the log; a page with \
            fewer than `limit` may not be"), super::refusals::TailRefusals),
)]
pub(super) async fn tail(
    State(admin): State<Arc<Admin>>,
    Query(query): Query<TailQuery>,
) -> Result<Json<LoggedView>, AdminRefusal> {
    if !admin.gate.event_log_enabled() {
        return Err(AdminRefusal::LogOff);
    }
    let reader = LogReader::new(admin.gate.store().log.clone());
    let from = match (query.after, query.since) {
        (Some(cursor), None) => read_cursor(&cursor)?,
        (None, Some(since)) => position_before(moment(&since)?),
        (None, None) => reader.end().await?,
        (Some(_), Some(_)) => {
            return Err(AdminRefusal::Invalid(
                "`after` and `since` exclude each other: leave out one of them".to_owned(),
            ));
        }
    };
    let limit = query.limit.unwrap_or(EVENTS).clamp(1, EVENTS_MAX);
    let wait = Duration::from_secs(query.wait.unwrap_or(0).min(WAIT_S_MAX));
    READ_TURNS.wait().await;
    let mut page = reader.page(&from, reader.in_order(&from, limit).await?).await?;
    if page.entries.is_empty() && !page.trimmed && !wait.is_zero() {
        // If the timeout drops a read, no entries are lost: the next request reads them again from
        // the cursor.
        if let Ok(entries) = tokio::time::timeout(wait, watch(&reader, &from, limit)).await {
            page = reader.page(&from, entries?).await?;
        }
    }
    Ok(Json(view(&page)))
}

/// Reads repeatedly until there are entries.
async fn watch(
    reader: &LogReader,
    from: &Position,
    limit: usize,
) -> Result<Vec<LogEntry>, StoreError> {
    let Ok(_watching) = WATCHING.acquire().await else { return std::future::pending().await };
    loop {
        tokio::time::sleep(PERIOD).await;
        READ_TURNS.wait().await;
        let entries = reader.in_order(from, limit).await?;
        if !entries.is_empty() {
            return Ok(entries);
        }
    }
}

fn view(page: &LogPage) -> LoggedView {
    LoggedView {
        events: page.entries.iter().map(EventView::from).collect(),
        cursor: write_cursor(&page.position),
        trimmed: page.trimmed,
    }
}

fn write_cursor(position: &Position) -> String {
    URL_SAFE_NO_PAD.encode(position.to_string())
}

fn read_cursor(cursor: &str) -> Result<Position, AdminRefusal> {
    let invalid =
        || AdminRefusal::Invalid("`after` must be the `cursor` of a previous page".to_owned());
    if cursor.len() > CURSOR_BYTES_MAX {
        return Err(invalid());
    }
    let text = URL_SAFE_NO_PAD
        .decode(cursor)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(invalid)?;
    text.parse().map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::key::{PARTITIONS, SLOT_BYTES, Slot, Space};
    use crate::record::Lifetime;
    use crate::store::Records;
    use crate::store::log::{EntryId, EventLog};
    use crate::store::memory::Memory;
    use crate::store::suite::{claim, slot};

    #[test]
    fn the_cursor_of_all_partitions_is_read_again_and_fits() {
        let position = Position(
            (0..PARTITIONS).map(|n| (n, EntryId { ms: 9_999_999_999_999, seq: 9999 })).collect(),
        );
        let cursor = write_cursor(&position);
        assert!(
            cursor.len() < CURSOR_BYTES_MAX / 2
                && cursor.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
        );
        assert_eq!(read_cursor(&cursor).unwrap(), position);
        assert_eq!(read_cursor("").unwrap(), Position::default(), "of a log without an entry");
        for none in
            ["nowhere!", &URL_SAFE_NO_PAD.encode("7:now"), &"A".repeat(CURSOR_BYTES_MAX + 1)]
        {
            assert!(read_cursor(none).is_err(), "{none}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn looks_are_a_pace_apart_and_nobody_waits_for_those_that_nobody_took() {
        let (looks, began) = (ReadTurns(Mutex::new(None)), Instant::now());
        for n in 0..3 {
            looks.wait().await;
            assert!(
                (n * READ_INTERVAL..(n + 1) * READ_INTERVAL).contains(&began.elapsed()),
                "{n}: {:?}",
                began.elapsed()
            );
        }
        tokio::time::advance(10 * READ_INTERVAL).await;
        let later = Instant::now();
        looks.wait().await;
        assert!(later.elapsed() < READ_INTERVAL);
        looks.wait().await;
        assert!(later.elapsed() >= READ_INTERVAL, "what was not taken is not saved");
    }

    #[tokio::test]
    async fn a_piece_has_no_more_than_was_asked_for_and_the_next_goes_on_behind_it() {
        let store = Arc::new(Memory::new(Arc::new(|| 1000)));
        let reader = LogReader::new(store.clone());
        let lifetime = Lifetime { keep: Duration::from_secs(60), due: None, tombstone: None };
        for n in 1..=5 {
            store
                .write(
                    &slot(Space::Enforced, n),
                    None,
                    &claim(1, 1),
                    lifetime,
                    crate::store::Events::logged(&|| br#"{"kind":"claimed"}"#.into()),
                )
                .await
                .unwrap();
        }
        let piece = async |from: &Position| {
            let page = reader.page(from, reader.in_order(from, 3).await.unwrap()).await.unwrap();
            let piece = view(&page);
            let position = read_cursor(&piece.cursor).unwrap();
            (piece, position)
        };
        let (first, position) = piece(&position_before(1000)).await;
        let (second, position) = piece(&position).await;
        let operations: Vec<String> = first
            .events
            .iter()
            .chain(&second.events)
            .map(|event| event.operation.clone())
            .collect();
        assert_eq!(
            operations,
            (1..=5).map(|n| slot(Space::Enforced, n).to_string()).collect::<Vec<_>>()
        );
        assert_eq!((first.events.len(), first.trimmed, second.trimmed), (3, false, false));
        assert!(piece(&position).await.0.events.is_empty());
        assert!(piece(&position_before(1001)).await.0.events.is_empty());
    }

    #[tokio::test]
    async fn a_gap_behind_a_cursor_is_reported_once() {
        let clock = Arc::new(AtomicU64::new(1000));
        let stores = clock.clone();
        let store = Arc::new(Memory::new(Arc::new(move || stores.load(Ordering::SeqCst))));
        let reader = LogReader::new(store.clone());
        let lifetime = Lifetime { keep: Duration::from_secs(60), due: None, tombstone: None };
        let append = async |n, ms| {
            clock.store(ms, Ordering::SeqCst);
            store
                .write(
                    &slot(Space::Enforced, n),
                    None,
                    &claim(1, 1),
                    lifetime,
                    crate::store::Events::logged(&|| br#"{"kind":"claimed"}"#.into()),
                )
                .await
                .unwrap();
        };
        let piece = async |from: &Position| {
            let page = reader.page(from, reader.in_order(from, 1).await.unwrap()).await.unwrap();
            let piece = view(&page);
            (piece.events.len(), piece.trimmed, read_cursor(&piece.cursor).unwrap())
        };
        for (n, ms) in [(1, 1000), (2, 2000), (3, 3000), (4, 9000)] {
            append(n, ms).await;
        }
        let (_, _, first) = piece(&position_before(0)).await;
        let (_, _, third) = piece(&piece(&first).await.2).await;
        assert_eq!(store.trim(Duration::from_secs(5)).await.unwrap().entries, 3);
        let (events, trimmed, last) = piece(&first).await;
        assert_eq!((events, trimmed), (1, true), "the second and the third are gone");
        assert_eq!(piece(&last).await, (0, false, last.clone()), "it was reported");
        assert_eq!(piece(&third).await, (1, false, last.clone()), "all that is gone had been read");
        append(5, 10_000).await;
        clock.store(20_000, Ordering::SeqCst);
        store.trim(Duration::from_secs(5)).await.unwrap();
        let (events, trimmed, end) = piece(&last).await;
        assert_eq!((events, trimmed), (0, true), "nothing is left");
        assert_eq!(piece(&end).await, (0, false, end.clone()), "it was reported");
    }

    #[test]
    fn the_view_of_an_entry_takes_its_operation_and_time_from_the_log() {
        let slot = Slot::from_hash(Space::Enforced, [7; SLOT_BYTES]);
        let view_of = |event: &'static [u8]| {
            let id = EntryId { ms: 1000, seq: 2 };
            EventView::from(&LogEntry { partition: 9, id, slot, event: event.into(), link: None })
        };
        let event = view_of(
            br#"{"kind":"of a later version","operation":"op_another",
                "at":"never","route":"r","card":"canary"}"#,
        );
        assert_eq!((event.operation, event.entry.as_str()), (slot.to_string(), "9:1000-2"));
        assert_eq!(
            (event.moment.kind.as_str(), event.moment.at.as_str()),
            ("of a later version", "1970-01-01T00:00:01.000Z")
        );
        let forged = EntryId { ms: u64::MAX, seq: 0 };
        let event = EventView::from(&LogEntry {
            partition: 9,
            id: forged,
            slot,
            event: Default::default(),
            link: None,
        });
        assert_eq!(event.moment.at, "9999-12-31T23:59:59.999Z");
        for unreadable in [&b"\xff"[..], b"", b"[]"] {
            assert_eq!(view_of(unreadable).moment.kind, "unreadable");
        }
    }
}
