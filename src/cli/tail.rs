//! `onceward log tail`: prints what the event log is told, as it is told.
//!
//! It ends when its reader goes away, by a signal, or with an error; there is nothing to clean up.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::admin::EventView;
use crate::admin::client::{Client, ClientError};

/// How long the gateway may wait for the next event before it answers, in seconds.
const WAIT_S: u64 = 5;

/// Why it ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Gateway(#[from] ClientError),
    #[error("can't print: {0}")]
    Output(#[from] std::io::Error),
}

pub(super) fn tail(client: &Client, since: Option<Duration>, json: bool) -> ExitCode {
    match super::block_on(follow(client, since.map(super::since), json)) {
        Ok(Ended::Output(error)) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Ok(ended) => super::fail(&ended, 1),
        Err(error) => super::fail(&error, 1),
    }
}

/// Follows the log for as long as nothing is in its way.
async fn follow(client: &Client, mut since: Option<String>, json: bool) -> Ended {
    let mut cursor = None;
    loop {
        if reader_is_gone() {
            return std::io::Error::from(ErrorKind::BrokenPipe).into();
        }
        let piece = match client.tail(cursor.as_deref(), since.as_deref(), WAIT_S).await {
            Ok(piece) => piece,
            Err(error) => return error.into(),
        };
        for event in &piece.events {
            if let Err(error) = print(event, json) {
                return error.into();
            }
        }
        (cursor, since) = (Some(piece.cursor), None);
    }
}

/// Whether nobody reads what is printed any more. Printing tells, too, but there may be nothing to print for days.
fn reader_is_gone() -> bool {
    let stdout = std::io::stdout();
    let mut watched = [PollFd::new(&stdout, PollFlags::empty())];
    let looked = poll(&mut watched, Some(&Timespec::default()));
    looked.is_ok() && watched[0].revents().intersects(PollFlags::ERR | PollFlags::HUP)
}

fn print(event: &EventView, json: bool) -> std::io::Result<()> {
    let line = if json { serde_json::to_string(event)? } else { super::printable(&in_words(event)) };
    writeln!(std::io::stdout(), "{line}")
}

/// An event as a line of text: when, which operation, what, where, and whatever else is known.
fn in_words(event: &EventView) -> String {
    let told = &event.moment;
    let mut line = format!("{}  {}  {:9}  {}", told.at, event.operation, told.kind, event.route);
    if let Some(status) = told.status {
        line.push_str(&format!("  status {status}"));
    }
    if let Some(cause) = &told.cause {
        line.push_str(&format!("  {cause}"));
    }
    if let Some(operator) = &told.operator {
        line.push_str(&format!("  by {operator}: {}", told.reason.as_deref().unwrap_or("no reason given")));
    }
    for (name, value) in &told.fields {
        line.push_str(&format!("  {name}={value}"));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::MomentView;

    #[test]
    fn an_event_is_one_line_that_no_terminal_takes_for_a_command() {
        let moment = MomentView {
            at: "2026-11-25T19:00:00.000Z".into(),
            kind: "resolved".into(),
            status: Some(201),
            operator: Some("ann".into()),
            reason: Some("seen\n\u{1b}[2J".into()),
            fields: [("order".to_owned(), "A-17".to_owned())].into(),
            ..MomentView::default()
        };
        let event = EventView { operation: "op_1".into(), route: "payments".into(), moment, ..EventView::default() };
        let line = super::super::printable(&in_words(&event));
        assert_eq!(
            line,
            "2026-11-25T19:00:00.000Z  op_1  resolved   payments  status 201  by ann: seen\u{fffd}\u{fffd}[2J  order=A-17"
        );
    }
}
