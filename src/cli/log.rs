//! `onceward log`: verifies and follows the event log, and changes the log filter, over the admin
//! port of a running gateway.

use std::process::ExitCode;

use super::{LogArgs, LogVerb};
use crate::admin::LogLevelView;
use crate::admin::client::{Client, ClientError};
use crate::telemetry::escape;

pub(super) fn log(args: LogArgs) -> ExitCode {
    let client = Client::new(&args.admin.admin, args.admin.token);
    match args.verb {
        LogVerb::Verify => print_verification(&client),
        LogVerb::Tail { since, json } => super::tail::tail(&client, since, json),
        LogVerb::Level { filter } => level(&client, filter),
    }
}

fn level(client: &Client, filter: Option<String>) -> ExitCode {
    let result = async {
        match filter {
            Some(filter) => client.set_log_level(&LogLevelView { filter }).await,
            None => client.log_level().await,
        }
    };
    match super::block_on(result) {
        Ok(Ok(view)) => super::print_text(&escape(&view.filter)),
        Ok(Err(error)) => super::fail(&error, 1),
        Err(error) => super::fail(&error, 1),
    }
}

fn print_verification(client: &Client) -> ExitCode {
    match super::block_on(verify(client)) {
        Ok(Ok((entries, 0))) => {
            super::print_text(&format!("{entries} entries, each as it was written"))
        }
        Ok(Ok((entries, breaks))) => super::fail(
            &format!("{entries} entries; the log is not as it was written in {breaks} places"),
            1,
        ),
        Ok(Err(error)) => super::fail(&error, 1),
        Err(error) => super::fail(&error, 1),
    }
}

/// Verifies the whole log, and prints each broken link. Returns the numbers of entries and of
/// breaks.
async fn verify(client: &Client) -> Result<(usize, usize), ClientError> {
    let (mut entries, mut breaks, mut cursor) = (0, 0, None);
    loop {
        let piece = client.verify_log(cursor.as_deref()).await?;
        entries += piece.entries;
        breaks += piece.breaks.len();
        for at in piece.breaks {
            let line = format!("partition {}, entry {}: {}", at.partition, at.entry, at.fault);
            let _ = super::print_text(&escape(&line));
        }
        cursor = piece.cursor;
        if cursor.is_none() {
            return Ok((entries, breaks));
        }
    }
}
