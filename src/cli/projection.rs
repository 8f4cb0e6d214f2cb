//! `onceward projection`: how far the read model is, and having it built anew, over the admin port of a running gateway.

use std::process::ExitCode;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{ProjectionArgs, ProjectionVerb};
use crate::admin::ProjectionView;
use crate::admin::client::{Client, ClientError};
use crate::telemetry::{escape, escape_json, print_error};

/// Between two looks at a rebuild, and between two words of it.
const LOOK_PERIOD: Duration = Duration::from_millis(250);
const WORD_PERIOD: Duration = Duration::from_secs(2);

pub(super) fn projection(args: ProjectionArgs) -> ExitCode {
    let client = Client::new(&args.admin.admin, args.admin.token);
    let asked = async {
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
                .map(|_| "The read model is empty, and being built anew.".to_owned()),
            ProjectionVerb::Rebuild { no_wait: false } => rebuild(&client).await,
        }
    };
    match super::block_on(asked) {
        Ok(Ok(text)) => super::say(&text),
        Ok(Err(error)) => super::fail(&error, 1),
        Err(error) => super::fail(&error, 1),
    }
}

/// Has it built anew, and waits until it holds all that was told before it was asked for.
async fn rebuild(client: &Client) -> Result<String, ClientError> {
    let asked = Instant::now();
    client.rebuild_projection().await?;
    let begun = Instant::now();
    let mut word = begun + WORD_PERIOD;
    loop {
        sleep(LOOK_PERIOD).await;
        let view = client.projection().await?;
        if view.lag_ms.is_some_and(|lag| Duration::from_millis(lag) < begun.elapsed()) {
            let took = humantime::format_duration(Duration::from_millis(
                asked.elapsed().as_millis() as u64,
            ));
            return Ok(format!(
                "Built anew of {} entries of the event log in {took}.",
                view.entries
            ));
        }
        if Instant::now() >= word {
            print_error(&escape(&in_words(&view)));
            word += WORD_PERIOD;
        }
    }
}

fn in_words(view: &ProjectionView) -> String {
    let so_far = match (&view.as_of, view.lag_ms) {
        (Some(as_of), Some(lag)) => {
            format!(
                "all that was told until {as_of}, {} ago",
                humantime::format_duration(Duration::from_millis(lag))
            )
        }
        _ => "nobody knows yet until when".to_owned(),
    };
    format!("{} entries of the event log; {so_far}.", view.entries)
}
