//! `onceward projection`: the position of the read model, and its rebuild, over the admin port of a
//! running gateway.

use std::process::ExitCode;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{ProjectionArgs, ProjectionVerb};
use crate::admin::ProjectionView;
use crate::admin::client::{Client, ClientError};
use crate::telemetry::{escape, escape_json, print_error};

/// How often the command polls a rebuild, and how often it reports the progress.
const POLL_PERIOD: Duration = Duration::from_millis(250);
const REPORT_PERIOD: Duration = Duration::from_secs(2);

pub(super) fn projection(args: ProjectionArgs) -> ExitCode {
    let client = Client::new(&args.admin.admin, args.admin.token);
    let result = async {
        match args.verb {
            ProjectionVerb::Status { json: false } => {
                client.projection().await.map(|view| escape(&in_words(&view)).into_owned())
            }
            ProjectionVerb::Status { json: true } => {
                let json = |view| serde_json::to_string_pretty(&view).unwrap_or_default();
                client.projection().await.map(|view| escape_json(&json(view)).into_owned())
            }
            ProjectionVerb::Rebuild { no_wait: true } => client
                .rebuild_projection()
                .await
                .map(|_| "The read model is empty, and is being rebuilt.".to_owned()),
            ProjectionVerb::Rebuild { no_wait: false } => rebuild(&client).await,
        }
    };
    match super::block_on(result) {
        Ok(Ok(text)) => super::print_text(&text),
        Ok(Err(error)) => super::fail(&error, 1),
        Err(error) => super::fail(&error, 1),
    }
}

/// Rebuilds the read model, and waits until it has all entries that were written before the
/// request.
async fn rebuild(client: &Client) -> Result<String, ClientError> {
    let requested = Instant::now();
    client.rebuild_projection().await?;
    let begun = Instant::now();
    let mut next_report = begun + REPORT_PERIOD;
    loop {
        sleep(POLL_PERIOD).await;
        let view = client.projection().await?;
        if view.lag_ms.is_some_and(|lag| Duration::from_millis(lag) < begun.elapsed()) {
            let took = humantime::format_duration(Duration::from_millis(
                requested.elapsed().as_millis() as u64,
            ));
            return Ok(format!(
                "Rebuilt from {} entries of the event log in {took}.",
                view.entries
            ));
        }
        if Instant::now() >= next_report {
            print_error(&escape(&in_words(&view)));
            next_report += REPORT_PERIOD;
        }
    }
}

fn in_words(view: &ProjectionView) -> String {
    let so_far = match (&view.as_of, view.lag_ms) {
        (Some(as_of), Some(lag)) => {
            format!(
                "complete until {as_of}, {} ago",
                humantime::format_duration(Duration::from_millis(lag))
            )
        }
        _ => "it is not known yet until when they are complete".to_owned(),
    };
    format!("{} entries of the event log; {so_far}.", view.entries)
}
