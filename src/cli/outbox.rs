//! `onceward outbox`: a client of the admin port.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::AdminArgs;
use crate::admin::client::{Client, ClientError};
use crate::admin::{ResealRequest, ResealedView};
use crate::telemetry::print_error;

#[derive(Debug, Args)]
pub(super) struct OutboxArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Print JSON instead of text.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: OutboxVerb,
}

#[derive(Debug, Subcommand)]
enum OutboxVerb {
    /// Seal all waiting events and dead letters under the first key of [encryption], so that the
    /// other keys can be removed. To continue an interrupted command, run it again. Exit 0 if
    /// everything is sealed under the first key, 1 if not.
    Reseal,
}

pub(super) fn outbox(args: OutboxArgs) -> ExitCode {
    let client = Client::new(&args.admin.admin, args.admin.token).patient();
    let OutboxVerb::Reseal = args.verb;
    match super::block_on(reseal(&client)) {
        Ok(Ok(done)) => {
            let printed = print_done(&done, args.json);
            if done.unreadable == 0 { printed } else { super::fail(&unreadable(&done), 1) }
        }
        Ok(Err(error)) => super::fail(&error, 1),
        Err(error) => super::fail(&error, 1),
    }
}

/// Seals the outbox, part by part. Returns the sums.
async fn reseal(client: &Client) -> Result<ResealedView, ClientError> {
    let mut sums = ResealedView::default();
    loop {
        let request = ResealRequest { cursor: sums.cursor.take() };
        let part = client.reseal_part(&request).await.inspect_err(|_| {
            if sums.resealed > 0 {
                let count = sums.resealed;
                print_error(&format!("onceward: {count} were sealed anew before this failure"));
            }
        })?;
        sums.resealed += part.resealed;
        sums.unreadable += part.unreadable;
        sums.cursor = part.cursor;
        if sums.cursor.is_none() {
            return Ok(sums);
        }
        print_error(&format!("onceward: {} sealed anew so far", sums.resealed));
    }
}

fn print_done(done: &ResealedView, json: bool) -> ExitCode {
    let ResealedView { resealed, unreadable, .. } = done;
    if json {
        let text = format!("{{\"resealed\":{resealed},\"unreadable\":{unreadable}}}");
        return super::print_text(&text);
    }
    let events = if *resealed == 1 { "event" } else { "events" };
    super::print_text(&format!("sealed {resealed} {events} anew"))
}

fn unreadable(done: &ResealedView) -> String {
    format!(
        "{} can't be opened, because their key is not configured: put it back, and run \
         this command again",
        done.unreadable
    )
}
