//! `onceward sinks`: a client of the admin port.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::AdminArgs;
use super::table::table;
use crate::admin::client::{Client, ClientError};
use crate::admin::{ReasonRequest, SinkListView, SinkTestView, SinkView};
use crate::telemetry::escape;

#[derive(Debug, Args)]
pub(super) struct SinksArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Print JSON instead of text.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: SinksVerb,
}

#[derive(Debug, Subcommand)]
enum SinksVerb {
    /// List the sinks: those of the configuration, and those that it no longer names but for which
    /// something waits. The times of deliveries are those of the gateway that is asked.
    List,
    /// Pause a sink: no gateway of the store sends it anything until it is resumed. Its events
    /// wait.
    Pause {
        /// The name of the sink.
        name: String,
        /// Why. The list of sinks shows the reason, and the gateway logs it.
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// Resume a sink. The age of its waiting events is counted anew.
    Resume {
        /// The name of the sink.
        name: String,
    },
    /// Send a test event to a sink, once, even if the sink is paused, and print what came back.
    /// Exit 0 if the receiver took it, else 1.
    Test {
        /// The name of the sink.
        name: String,
    },
}

/// The answer of the admin port.
enum SinksAnswer {
    All(SinkListView),
    One(SinkView),
    Tested(SinkTestView),
}

pub(super) fn sinks(args: SinksArgs) -> ExitCode {
    // A test may take as long as the sink's timeout.
    let client = Client::new(&args.admin.admin, args.admin.token).patient();
    match super::block_on(carry_out(&client, args.verb)) {
        Ok(Ok(answer)) => print(&answer, args.json),
        Ok(Err(error)) => super::fail(&error, 1),
        Err(error) => super::fail(&error, 1),
    }
}

async fn carry_out(client: &Client, verb: SinksVerb) -> Result<SinksAnswer, ClientError> {
    Ok(match verb {
        SinksVerb::List => SinksAnswer::All(client.sinks().await?),
        SinksVerb::Pause { name, reason } => {
            let request = ReasonRequest { reason: Some(reason) };
            SinksAnswer::One(client.pause_sink(&name, &request).await?)
        }
        SinksVerb::Resume { name } => SinksAnswer::One(client.resume_sink(&name).await?),
        SinksVerb::Test { name } => SinksAnswer::Tested(client.test_sink(&name).await?),
    })
}

fn print(answer: &SinksAnswer, json: bool) -> ExitCode {
    match answer {
        SinksAnswer::All(list) if json => super::print_json(list),
        SinksAnswer::All(SinkListView { sinks }) if sinks.is_empty() => {
            super::print_text("no sinks: the configuration has no [[sinks]], and nothing waits")
        }
        SinksAnswer::All(list) => super::print_text(&in_columns(&list.sinks)),
        SinksAnswer::One(sink) if json => super::print_json(sink),
        SinksAnswer::One(sink) => super::print_text(&in_columns(std::slice::from_ref(sink))),
        SinksAnswer::Tested(test) => {
            let printed =
                if json { super::print_json(test) } else { super::print_text(&result_of(test)) };
            if test.delivered { printed } else { ExitCode::from(1) }
        }
    }
}

fn in_columns(sinks: &[SinkView]) -> String {
    const HEAD: [&str; 9] = [
        "NAME",
        "KIND",
        "STATE",
        "WAITING",
        "OLDEST",
        "DEAD LETTERS",
        "LAST DELIVERED",
        "FAILING SINCE",
        "REASON",
    ];
    let optional = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let reason = |sink: &SinkView| match (&sink.reason, &sink.paused_by) {
        (Some(reason), Some(by)) => format!("{reason} (by {by})"),
        (reason, _) => optional(reason),
    };
    let row = |sink: &SinkView| {
        [
            sink.name.clone(),
            optional(&sink.kind),
            sink.state.clone(),
            sink.backlog.to_string(),
            optional(&sink.oldest),
            (sink.dead_letters.receiver + sink.dead_letters.gateway).to_string(),
            optional(&sink.last_delivered),
            optional(&sink.failing_since),
            reason(sink),
        ]
    };
    table(HEAD, sinks.iter().map(row))
}

/// Describes the result of a test.
fn result_of(test: &SinkTestView) -> String {
    let SinkTestView { sink, event, status, answer, error, .. } = test;
    let (sink, event) = (escape(sink), escape(event));
    let status = status.map(|status| format!("status {status}"));
    if test.delivered {
        let status = status.map(|status| format!(": {status}")).unwrap_or_default();
        return format!("delivered {event} to {sink}{status}");
    }
    let answer = answer.as_ref().filter(|answer| !answer.is_empty());
    let parts = status.into_iter().chain(error.clone()).chain(answer.cloned());
    let parts: Vec<String> = parts.map(|part| escape(&part).into_owned()).collect();
    format!("not delivered to {sink}: {}", parts.join(": "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::DeadLetterCounts;

    #[test]
    fn a_sink_is_one_line_and_its_pause_names_who_and_why() {
        let sink = SinkView {
            name: "ledger".into(),
            kind: Some("webhook".into()),
            state: "paused".into(),
            reason: Some("moves\ntoday".into()),
            paused_by: Some("ann".into()),
            backlog: 7,
            dead_letters: DeadLetterCounts { receiver: 2, gateway: 1 },
            ..SinkView::default()
        };
        let text = in_columns(&[sink]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].starts_with("NAME    KIND     STATE   WAITING"), "{text}");
        assert!(lines[1].starts_with("ledger  webhook  paused  7 "), "{text}");
        assert!(
            lines[1].contains("  3  ") && lines[1].ends_with("moves\\ntoday (by ann)"),
            "{text}"
        );
    }

    #[test]
    fn a_test_is_described_by_what_came_back() {
        let delivered = SinkTestView {
            sink: "ledger".into(),
            event: "ev_1".into(),
            delivered: true,
            status: Some(204),
            answer: None,
            error: None,
        };
        assert_eq!(result_of(&delivered), "delivered ev_1 to ledger: status 204");
        let answer = Some("no\u{1b}[2J".into());
        let refused =
            SinkTestView { delivered: false, status: Some(500), answer, ..delivered.clone() };
        assert_eq!(result_of(&refused), "not delivered to ledger: status 500: no\\u{1b}[2J");
        let error = Some("connection refused".into());
        let failed = SinkTestView { delivered: false, status: None, error, ..delivered };
        assert_eq!(result_of(&failed), "not delivered to ledger: connection refused");
    }
}
