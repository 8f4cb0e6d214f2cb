//! `onceward log tail`: prints events of the event log as they are written.
//!
//! The command ends when stdout has no reader, by a signal, or if the gateway refuses a request.
//! There is nothing to clean up. If the gateway or its store does not answer, the command waits, so
//! a restart of the gateway does not end it.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;
use std::time::Duration;

use http::StatusCode;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::time::sleep;

use crate::admin::client::{Client, ClientError};
use crate::admin::{EventView, SagaChangeView};
use crate::entropy::{Entropy, EntropyError};
use crate::telemetry::{escape, escape_json, print_error};

/// How long one request waits at the gateway for the next event, in seconds.
const WAIT_S: u64 = 5;

/// The pause before a failed request is repeated. It doubles each time, up to the maximum. It has
/// jitter, because many clients may wait for the same gateway.
const PAUSE: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// How often the command checks whether stdout still has a reader. Printing would detect this too,
/// but there may be no event for days.
const READER_PERIOD: Duration = Duration::from_millis(250);

/// Why the command ended.
#[derive(Debug, thiserror::Error)]
enum TailEnd {
    #[error(transparent)]
    Gateway(#[from] ClientError),
    #[error("can't print: {0}")]
    Output(#[from] std::io::Error),
    #[error(transparent)]
    Entropy(#[from] EntropyError),
}

pub(super) fn tail(client: &Client, since: Option<Duration>, json: bool) -> ExitCode {
    let ended = async {
        tokio::select! {
            ended = follow(client, since.map(super::since), json) => ended,
            () = reader_leaves() => std::io::Error::from(ErrorKind::BrokenPipe).into(),
        }
    };
    match super::block_on(ended) {
        Ok(TailEnd::Output(error)) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Ok(ended) => super::fail(&ended, 1),
        Err(error) => super::fail(&error, 1),
    }
}

/// Follows the log until an error that waiting can't resolve.
async fn follow(client: &Client, mut since: Option<String>, json: bool) -> TailEnd {
    let entropy = match Entropy::from_system() {
        Ok(entropy) => entropy,
        Err(error) => return error.into(),
    };
    let (mut cursor, mut pause, mut gap_reported) = (None, PAUSE, false);
    loop {
        let piece = match client.tail(cursor.as_deref(), since.as_deref(), WAIT_S).await {
            Ok(piece) => piece,
            // If there was no response yet, the address is probably wrong, so the command ends.
            Err(error) if cursor.is_some() && may_pass(&error) => {
                if pause == PAUSE {
                    print_error(&format!(
                        "onceward: {error}; trying again, to continue after the last event"
                    ));
                }
                sleep(entropy.jitter(pause)).await;
                pause = (pause * 2).min(PAUSE_MAX);
                continue;
            }
            Err(error) => return error.into(),
        };
        if piece.trimmed && !gap_reported {
            print_error(
                "onceward: some of the events since then are no longer in the event log, and are \
                 left out",
            );
        }
        // If entries were removed from several partitions, several pages in a row may report a gap.
        // One message is enough until the end of the log is reached.
        gap_reported = (gap_reported || piece.trimmed) && !piece.events.is_empty();
        for event in &piece.events {
            if let Err(error) = print(event, json) {
                return error.into();
            }
        }
        (cursor, since, pause) = (Some(piece.cursor), None, PAUSE);
    }
}

/// Returns whether the same request may succeed later: the gateway is unreachable, or failed. A 501
/// (the log is disabled) is as final as a refusal.
fn may_pass(error: &ClientError) -> bool {
    match error {
        ClientError::Unreachable { .. } => true,
        ClientError::Refused { status, .. } => {
            status.is_server_error() && *status != StatusCode::NOT_IMPLEMENTED
        }
    }
}

/// Waits until stdout has no reader.
async fn reader_leaves() {
    let stdout = std::io::stdout();
    loop {
        let mut watched = [PollFd::new(&stdout, PollFlags::empty())];
        let looked = poll(&mut watched, Some(&Timespec::default()));
        if looked.is_ok() && watched[0].revents().intersects(PollFlags::ERR | PollFlags::HUP) {
            return;
        }
        sleep(READER_PERIOD).await;
    }
}

fn print(event: &EventView, json: bool) -> std::io::Result<()> {
    let line = if json { serde_json::to_string(event)? } else { in_words(event) };
    let line = if json { escape_json(&line) } else { escape(&line) };
    writeln!(std::io::stdout(), "{line}")
}

/// Formats an event as a line: time, operation, kind, route, and all other members of the event.
fn in_words(event: &EventView) -> String {
    let moment = &event.moment;
    let events = moment.saga.as_ref().map(|saga| saga.events.join("+"));
    let kind = events.filter(|events| !events.is_empty()).unwrap_or_else(|| moment.kind.clone());
    let mut line = format!("{}  {}  {kind:9}  {}", moment.at, event.operation, event.route);
    if let Some(status) = moment.status {
        line.push_str(&format!("  status {status}"));
    }
    if let Some(saga) =
        moment.saga.as_ref().map(SagaChangeView::in_words).filter(|it| !it.is_empty())
    {
        line.push_str(&format!("  {saga}"));
    }
    if let Some(cause) = &moment.cause {
        line.push_str(&format!("  {cause}"));
    }
    if let Some(operator) = &moment.operator {
        line.push_str(&format!(
            "  by {operator}: {}",
            moment.reason.as_deref().unwrap_or("no reason given")
        ));
    }
    if let Some(tag) = &moment.overwrote {
        line.push_str(&format!("  overwrote {tag}"));
    }
    for (name, value) in &moment.fields {
        line.push_str(&format!("  {name}={value}"));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::MomentView;

    #[test]
    fn a_refusal_that_stays_one_ends_it_and_trouble_is_waited_for() {
        let refused = |status| may_pass(&ClientError::Refused { status, detail: String::new() });
        use StatusCode as S;
        assert!(
            [S::INTERNAL_SERVER_ERROR, S::BAD_GATEWAY, S::SERVICE_UNAVAILABLE]
                .into_iter()
                .all(refused)
        );
        let finally =
            [S::BAD_REQUEST, S::UNAUTHORIZED, S::FORBIDDEN, S::NOT_FOUND, S::NOT_IMPLEMENTED];
        assert!(!finally.into_iter().any(refused));
        assert!(may_pass(&ClientError::Unreachable {
            address: "a:1".into(),
            why: "refused".into()
        }));
    }

    #[test]
    fn an_event_is_one_line_that_no_terminal_takes_for_a_command() {
        let moment = MomentView {
            at: "2026-11-25T19:00:00.000Z".into(),
            kind: "resolved".into(),
            status: Some(201),
            operator: Some("ann".into()),
            reason: Some("seen\n\u{1b}[2J".into()),
            fields: [("order".to_owned(), "A-\u{202e}17".to_owned())].into(),
            ..MomentView::default()
        };
        let event = EventView {
            operation: "op_1".into(),
            route: "payments".into(),
            moment,
            ..EventView::default()
        };
        let line = escape(&in_words(&event)).into_owned();
        assert_eq!(
            line,
            "2026-11-25T19:00:00.000Z  op_1  resolved   payments  status 201  by ann: \
             seen\\n\\u{1b}[2J  order=A-\\u{202e}17"
        );
    }
}
