//! `onceward dead-letters`: a client of the admin port.

use std::num::NonZeroUsize;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::AdminArgs;
use super::table::table;
use crate::admin::client::{Client, ClientError, DeadLettersOf};
use crate::admin::{
    DeadLetterAttemptsView, DeadLetterListView, DeadLetterView, ReasonRequest, RequeueOneRequest,
    RequeueRequest, RequeuedView,
};
use crate::telemetry::{escape, escape_json, print_error};

/// The largest page that the admin port returns.
const PAGE_MAX: usize = 200;

#[derive(Debug, Args)]
pub(super) struct DeadLettersArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Print JSON instead of text.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: DeadLettersVerb,
}

#[derive(Debug, Subcommand)]
enum DeadLettersVerb {
    /// List dead letters, latest burial first.
    List {
        /// Only dead letters of this sink.
        #[arg(long, value_name = "NAME")]
        sink: Option<String>,
        /// Only dead letters of this kind. receiver: the receiver did not take the event. gateway:
        /// the gateway can't send it.
        #[arg(long, value_parser = ["receiver", "gateway"])]
        kind: Option<String>,
        /// Only what was buried since then: a duration before now, such as 24h or 7d, or a time
        /// (RFC 3339).
        #[arg(long, value_name = "TIME", value_parser = super::moment)]
        since: Option<String>,
        /// At most this many dead letters.
        #[arg(long, default_value = "100")]
        limit: NonZeroUsize,
    },
    /// Show one dead letter, with its event and its attempts.
    Show {
        /// The id, dl_...
        id: String,
    },
    /// Send dead letters again, in a new round of attempts: those with these ids, or those of a
    /// sink that were buried before this command began.
    Requeue {
        /// The ids, dl_...
        #[arg(required_unless_present = "sink", conflicts_with = "sink")]
        ids: Vec<String>,
        /// The dead letters of this sink.
        #[arg(long, value_name = "NAME")]
        sink: Option<String>,
        /// Only what was buried since then: a duration before now, such as 24h or 7d, or a time
        /// (RFC 3339).
        #[arg(long, value_name = "TIME", requires = "sink", value_parser = super::moment)]
        since: Option<String>,
        /// Only what was buried before then, in the same form.
        #[arg(long, value_name = "TIME", requires = "sink", value_parser = super::moment)]
        until: Option<String>,
        /// Also make calls again with an outcome that nobody knows any more (outcome-expired).
        /// The called system may execute such a call a second time.
        #[arg(long)]
        again: bool,
        /// Don't ask on the terminal before the dead letters of a sink are requeued.
        #[arg(long)]
        yes: bool,
    },
    /// Remove dead letters. Their events are never sent again.
    Discard {
        /// The ids, dl_...
        #[arg(required = true)]
        ids: Vec<String>,
        /// Why. The gateway logs the reason.
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// Don't ask on the terminal.
        #[arg(long)]
        yes: bool,
    },
}

pub(super) fn dead_letters(args: DeadLettersArgs) -> ExitCode {
    let client = Client::new(&args.admin.admin, args.admin.token).patient();
    let json = args.json;
    let done = match args.verb {
        DeadLettersVerb::List { sink, kind, since, limit } => {
            let filter = DeadLettersOf { sink, kind, since };
            let listed = super::block_on(list(&client, &filter, limit.get()));
            listed.map(|listed| listed.map(|list| print_list(&list, json)))
        }
        DeadLettersVerb::Show { id } => {
            let shown = super::block_on(client.dead_letter(&id));
            shown.map(|shown| shown.map(|letter| print_one(&letter, json)))
        }
        DeadLettersVerb::Requeue { sink: Some(sink), since, until, again, yes, .. } => {
            let question = format!("Requeue the dead letters of {sink}?");
            if !yes && !super::confirmed(&question) {
                return super::fail(&"nothing was requeued", 1);
            }
            let request = RequeueRequest { sink, since, until, again, ..RequeueRequest::default() };
            let requeued = super::block_on(requeue_part(&client, request));
            requeued.map(|requeued| requeued.map(|sum| print_requeued(&sum, json)))
        }
        DeadLettersVerb::Requeue { ids, again, .. } => {
            let request = RequeueOneRequest { again, ..RequeueOneRequest::default() };
            return each(&ids, "requeued", json, async |id| {
                client.requeue(id, &request).await.map(drop)
            });
        }
        DeadLettersVerb::Discard { ids, reason, yes } => {
            let question = format!("Discard {} dead letters? They are never sent.", ids.len());
            if !yes && !super::confirmed(&question) {
                return super::fail(&"nothing was discarded", 1);
            }
            let request = ReasonRequest { reason: Some(reason) };
            return each(&ids, "discarded", json, async |id| {
                client.discard(id, &request).await.map(drop)
            });
        }
    };
    match done {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => super::fail(&error, 1),
        Err(error) => super::fail(&error, 1),
    }
}

/// Decides about dead letters one by one. Goes on after a refusal, because the others are
/// unrelated, and exits with 1 then.
fn each(
    ids: &[String],
    done: &str,
    json: bool,
    decide: impl AsyncFn(&str) -> Result<(), ClientError>,
) -> ExitCode {
    let decided = super::block_on(async {
        let mut count = 0;
        for id in ids {
            match decide(id).await {
                Ok(()) => count += 1,
                Err(error) => print_error(&format!("onceward: {}: {error}", escape(id))),
            }
        }
        count
    });
    match decided {
        Ok(count) => {
            let printed = print_count(done, count, json);
            if count == ids.len() { printed } else { ExitCode::from(1) }
        }
        Err(error) => super::fail(&error, 1),
    }
}

async fn list(
    client: &Client,
    filter: &DeadLettersOf,
    limit: usize,
) -> Result<DeadLetterListView, ClientError> {
    let mut all = DeadLetterListView { dead_letters: Vec::new(), cursor: None };
    loop {
        let room = (limit - all.dead_letters.len()).min(PAGE_MAX);
        let page = client.dead_letters(filter, room, all.cursor.as_deref()).await?;
        all.dead_letters.extend(page.dead_letters);
        all.cursor = page.cursor;
        if all.cursor.is_none() || all.dead_letters.len() >= limit {
            return Ok(all);
        }
    }
}

/// Requeues the dead letters of a sink, part by part. Returns their numbers.
async fn requeue_part(
    client: &Client,
    mut request: RequeueRequest,
) -> Result<RequeuedView, ClientError> {
    let mut sum = RequeuedView::default();
    loop {
        let part = client.requeue_part(&request).await.inspect_err(|_| {
            if sum.requeued > 0 {
                let count = sum.requeued;
                print_error(&format!("onceward: {count} were requeued before this failure"));
            }
        })?;
        sum.requeued += part.requeued;
        sum.refused += part.refused;
        request.cursor = part.cursor;
        if request.cursor.is_none() {
            return Ok(sum);
        }
        print_error(&format!("onceward: {} requeued so far", sum.requeued));
    }
}

/// Prints how many were requeued. Exits with 1 if some need `--again`.
fn print_requeued(sum: &RequeuedView, json: bool) -> ExitCode {
    let printed = print_count("requeued", sum.requeued, json);
    if sum.refused == 0 {
        return printed;
    }
    print_error(&format!(
        "onceward: {} {} stayed: nobody knows the outcome of the call (outcome-expired); look at \
         the called system, and use --again only for calls that it did not execute",
        sum.refused,
        plural(sum.refused)
    ));
    ExitCode::from(1)
}

fn print_count(done: &str, count: usize, json: bool) -> ExitCode {
    if json {
        return super::print_text(&format!("{{\"{done}\":{count}}}"));
    }
    super::print_text(&format!("{done} {count} {}", plural(count)))
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "dead letter" } else { "dead letters" }
}

fn print_list(list: &DeadLetterListView, json: bool) -> ExitCode {
    if json {
        return super::print_json(list);
    }
    super::print_text(&in_columns(list))
}

fn in_columns(list: &DeadLetterListView) -> String {
    if list.dead_letters.is_empty() {
        return "no dead letters".to_owned();
    }
    let row = |letter: &DeadLetterView| {
        [
            letter.id.clone(),
            letter.buried_at.clone(),
            letter.sink.clone(),
            letter.kind.clone(),
            letter.attempts.count.to_string(),
            member(letter, "type").unwrap_or_else(|| "-".to_owned()),
            member(letter, "subject").unwrap_or_else(|| "-".to_owned()),
            why(&letter.attempts),
        ]
    };
    let head = ["ID", "BURIED", "SINK", "KIND", "ATTEMPTS", "TYPE", "OPERATION", "WHY"];
    let text = table(head, list.dead_letters.iter().map(row));
    match list.cursor {
        None => text,
        Some(_) => format!(
            "{text}\nThere may be more: these are the latest {}; --limit shows more.",
            list.dead_letters.len()
        ),
    }
}

/// Returns a member of a dead letter's event that is a text.
fn member(letter: &DeadLetterView, name: &str) -> Option<String> {
    let event: serde_json::Value = serde_json::from_str(letter.event.as_ref()?.get()).ok()?;
    event.get(name)?.as_str().map(str::to_owned)
}

/// Describes the last attempt.
fn why(attempts: &DeadLetterAttemptsView) -> String {
    match (attempts.status, &attempts.error) {
        (Some(status), _) => format!("status {status}"),
        (None, Some(error)) => error.clone(),
        (None, None) => "-".to_owned(),
    }
}

fn print_one(letter: &DeadLetterView, json: bool) -> ExitCode {
    if json { super::print_json(letter) } else { super::print_text(&in_words(letter)) }
}

fn in_words(letter: &DeadLetterView) -> String {
    let attempts = &letter.attempts;
    let optional = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let lines = [
        ("id", letter.id.clone()),
        ("sink", letter.sink.clone()),
        ("kind", letter.kind.clone()),
        ("buried at", letter.buried_at.clone()),
        ("attempts", attempts.count.to_string()),
        ("first", optional(&attempts.first)),
        ("last", optional(&attempts.last)),
        ("status", optional(&attempts.status.map(|status| status.to_string()))),
        ("answer", optional(&attempts.answer)),
        ("error", optional(&attempts.error)),
    ];
    let lines = lines.map(|(name, value)| format!("{name:9}  {}", escape(&value)));
    let event = letter.event.as_ref().map_or("-".into(), |event| escape_json(event.get()));
    format!("{}\n{:9}  {event}", lines.join("\n"), "event")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter() -> DeadLetterView {
        let event = r#"{"type":"onceward.operation.completed","subject":"op_1","data":{"a":1.50}}"#;
        DeadLetterView {
            id: "dl_1".into(),
            event: serde_json::value::RawValue::from_string(event.to_owned()).ok(),
            sink: "ledger".into(),
            kind: "receiver".into(),
            attempts: DeadLetterAttemptsView {
                count: 2,
                status: Some(500),
                answer: Some("no\nway".into()),
                ..DeadLetterAttemptsView::default()
            },
            buried_at: "2026-11-25T03:00:00.000Z".into(),
        }
    }

    #[test]
    fn a_list_has_a_head_line_and_names_what_was_left_out() {
        let mut list = DeadLetterListView { dead_letters: vec![letter()], cursor: None };
        let text = in_columns(&list);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("ID    BURIED "), "{text}");
        assert!(
            lines[1].contains("  onceward.operation.completed  op_1       status 500"),
            "{text}"
        );
        assert_eq!(lines.len(), 2, "{text}");
        list.cursor = Some("1_dl_1".into());
        assert!(in_columns(&list).ends_with("these are the latest 1; --limit shows more."));
        list.dead_letters.clear();
        list.cursor = None;
        assert_eq!(in_columns(&list), "no dead letters");
    }

    #[test]
    fn one_is_shown_with_its_event_as_it_was_sent() {
        let text = in_words(&letter());
        assert!(text.contains("answer     no\\nway\n"), "{text}");
        assert!(text.ends_with("\"data\":{\"a\":1.50}}"), "{text}");
        let mut sealed = letter();
        sealed.event = None;
        assert!(in_words(&sealed).ends_with("event      -"));
    }
}
