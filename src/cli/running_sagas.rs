//! `onceward sagas list`, `show`, `retry`, `skip` and `cancel`: clients of the admin port.

use std::num::NonZeroUsize;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::AdminArgs;
use super::table::table;
use crate::admin::client::{Client, ClientError, SagaChange, SagasOf};
use crate::admin::{SagaDecisionRequest, SagaListView, SagaStepView, SagaView, StuckStepView};
use crate::telemetry::escape;

/// The largest page that the admin port returns.
const PAGE_MAX: usize = 200;

#[derive(Debug, Subcommand)]
pub(super) enum RunningSagasVerb {
    /// List the sagas that have not ended, over the admin port of a running gateway.
    List {
        #[command(flatten)]
        port: PortArgs,
        /// Only sagas with this status.
        #[arg(long, value_parser = ["pending", "running", "compensating", "stuck"])]
        status: Option<String>,
        /// Only sagas with this name.
        #[arg(long)]
        name: Option<String>,
        /// At most this many sagas.
        #[arg(long, default_value = "100")]
        limit: NonZeroUsize,
    },
    /// Show one saga, with its steps and the decisions about it.
    Show {
        #[command(flatten)]
        port: PortArgs,
        /// The id, op_...
        id: String,
    },
    /// Try stuck steps again. A step that was refused for good gets another key, any other step
    /// keeps its key.
    Retry {
        #[command(flatten)]
        decision: DecisionArgs,
        /// Only this step; without it, all stuck steps.
        #[arg(long)]
        step: Option<String>,
    },
    /// Record that you did a stuck step by hand, or undid it while the saga goes back. The gateway
    /// never sends it again.
    Skip {
        #[command(flatten)]
        decision: DecisionArgs,
        /// The step.
        #[arg(long)]
        step: String,
    },
    /// Cancel a saga: no further step begins, and everything that was done is undone. If the saga
    /// goes back already, nothing changes.
    Cancel {
        #[command(flatten)]
        decision: DecisionArgs,
    },
}

#[derive(Debug, Args)]
pub(super) struct PortArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct DecisionArgs {
    #[command(flatten)]
    port: PortArgs,
    /// The id, op_...
    id: String,
    /// Why. The event log and the saga keep the reason.
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

pub(super) fn running_sagas(verb: RunningSagasVerb) -> ExitCode {
    match verb {
        RunningSagasVerb::List { port, status, name, limit } => {
            let (client, json) = port.client();
            let filter = SagasOf { status, name };
            let listed = super::block_on(list(&client, &filter, limit.get()));
            finish(listed, |list| print_list(list, json))
        }
        RunningSagasVerb::Show { port, id } => {
            let (client, json) = port.client();
            finish(super::block_on(client.saga(&id)), |saga| print_one(saga, json))
        }
        RunningSagasVerb::Retry { decision, step } => decide(decision, SagaChange::Retry, step),
        RunningSagasVerb::Skip { decision, step } => decide(decision, SagaChange::Skip, Some(step)),
        RunningSagasVerb::Cancel { decision } => decide(decision, SagaChange::Cancel, None),
    }
}

impl PortArgs {
    fn client(self) -> (Client, bool) {
        (Client::new(&self.admin.admin, self.admin.token).patient(), self.json)
    }
}

fn finish<T>(
    done: std::io::Result<Result<T, ClientError>>,
    print: impl FnOnce(&T) -> ExitCode,
) -> ExitCode {
    match done {
        Ok(Ok(view)) => print(&view),
        Ok(Err(error)) => super::fail(&error, 1),
        Err(error) => super::fail(&error, 1),
    }
}

/// Decides about a saga in its present state, and prints it.
fn decide(args: DecisionArgs, change: SagaChange, step: Option<String>) -> ExitCode {
    let DecisionArgs { port, id, reason } = args;
    let (client, json) = port.client();
    let request = SagaDecisionRequest { reason: Some(reason), step };
    let decided = super::block_on(async {
        // If the saga changes after this read, the decision is refused.
        let version = client.saga(&id).await?.version;
        let saga = client.decide_saga(&id, change, &version, &request).await?;
        Ok((saga.version != version, saga))
    });
    finish(decided, |(is_changed, saga)| {
        if !is_changed && !json {
            eprintln!("onceward: nothing to do: the saga goes back already");
        }
        print_one(saga, json)
    })
}

async fn list(
    client: &Client,
    filter: &SagasOf,
    limit: usize,
) -> Result<SagaListView, ClientError> {
    let mut all = SagaListView::default();
    loop {
        let room = (limit - all.sagas.len()).min(PAGE_MAX);
        let page = client.sagas(filter, room, all.cursor.as_deref()).await?;
        all.sagas.extend(page.sagas);
        all.cursor = page.cursor;
        if all.cursor.is_none() || all.sagas.len() >= limit {
            return Ok(all);
        }
    }
}

fn print_list(list: &SagaListView, json: bool) -> ExitCode {
    if json { super::print_json(list) } else { super::print_text(&in_columns(list)) }
}

fn in_columns(list: &SagaListView) -> String {
    if list.sagas.is_empty() {
        return "no sagas".to_owned();
    }
    let row = |saga: &SagaView| {
        let stuck: Vec<&str> = saga.stuck.iter().map(|stuck| &*stuck.step).collect();
        [
            saga.id.clone(),
            saga.name.clone(),
            saga.status.clone(),
            saga.started_at.clone(),
            saga.changed_at.clone(),
            if stuck.is_empty() { "-".to_owned() } else { stuck.join(", ") },
        ]
    };
    let head = ["ID", "NAME", "STATUS", "STARTED", "CHANGED", "STUCK AT"];
    let text = table(head, list.sagas.iter().map(row));
    match list.cursor {
        None => text,
        Some(_) => {
            let count = list.sagas.len();
            format!("{text}\nThere may be more: these are {count}; --limit shows more.")
        }
    }
}

fn print_one(saga: &SagaView, json: bool) -> ExitCode {
    if json { super::print_json(saga) } else { super::print_text(&in_words(saga)) }
}

fn in_words(saga: &SagaView) -> String {
    let mut lines = vec![
        ("id", saga.id.clone()),
        ("name", saga.name.clone()),
        ("status", saga.status.clone()),
        ("started", saga.started_at.clone()),
        ("changed", saga.changed_at.clone()),
        ("version", saga.version.clone()),
    ];
    let answer = saga.answer_status.map(|status| status.to_string());
    let optional = [
        ("lease until", &saga.lease_ends_at),
        ("back for", &saga.back),
        ("stuck since", &saga.stuck_since),
        ("outcome", &saga.outcome),
        ("answered", &answer),
        ("unreadable", &saga.unreadable),
    ];
    lines.extend(optional.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))));
    for stuck in &saga.stuck {
        let operation = stuck.operation.as_ref().map(|id| match key_of(saga, stuck) {
            Some(key) => format!(" ({id}, key {key})"),
            None => format!(" ({id})"),
        });
        let operation = operation.unwrap_or_default();
        let undo = if stuck.direction == "compensation" { "undo of " } else { "" };
        lines.push(("stuck at", format!("{undo}{}: {}{operation}", stuck.step, stuck.reason)));
    }
    for step in &saga.step_summary {
        lines.push(("step", format!("{}: {}", step.name, step.status)));
    }
    for decision in &saga.decisions {
        let step = decision.step.as_ref().map(|step| format!(" {step}")).unwrap_or_default();
        let by = decision.by.as_ref().map(|by| format!(" by {by}")).unwrap_or_default();
        let text =
            format!("{}{step}{by} at {}: {}", decision.decision, decision.at, decision.reason);
        lines.push(("decided", text));
    }
    let lines = lines.into_iter().map(|(name, value)| format!("{name:11}  {}", escape(&value)));
    let mut text = lines.collect::<Vec<_>>().join("\n");
    if !saga.steps.is_empty() {
        text.push_str("\n\n");
        text.push_str(&table(
            ["STEP", "STATUS", "ATTEMPTS", "OPERATION", "COMPENSATION", "OPERATION", "WHY"],
            saga.steps.iter().map(step_row),
        ));
    }
    text
}

/// Returns the key with which the called system knows the operation of a stuck step.
fn key_of<'v>(saga: &'v SagaView, stuck: &StuckStepView) -> Option<&'v String> {
    let step = saga.steps.iter().find(|step| step.name == stuck.step)?;
    match stuck.direction.as_str() {
        "compensation" => step.compensation.as_ref()?.key.as_ref(),
        _ => step.key.as_ref(),
    }
}

fn step_row(step: &SagaStepView) -> [String; 7] {
    let optional = |text: Option<&String>| text.cloned().unwrap_or_else(|| "-".to_owned());
    let undo = step.compensation.as_ref();
    let why = undo.and_then(|undo| undo.why.as_ref()).or(step.why.as_ref());
    [
        step.name.clone(),
        step.status.clone(),
        step.attempts.to_string(),
        optional(step.operation.as_ref()),
        optional(undo.map(|undo| &undo.status)),
        optional(undo.and_then(|undo| undo.operation.as_ref())),
        optional(why),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::{SagaCompensationView, SagaDecisionView};

    fn saga() -> SagaView {
        let compensation = SagaCompensationView {
            status: "undone".into(),
            operation: Some("op_2".into()),
            ..SagaCompensationView::default()
        };
        SagaView {
            id: "op_1".into(),
            name: "checkout".into(),
            status: "stuck".into(),
            stuck: vec![StuckStepView {
                step: "ship".into(),
                reason: "uncertain".into(),
                operation: Some("op_3".into()),
                ..StuckStepView::default()
            }],
            steps: vec![SagaStepView {
                name: "reserve".into(),
                status: "undone".into(),
                key: Some("k-1".into()),
                attempts: 2,
                compensation: Some(compensation),
                ..SagaStepView::default()
            }],
            decisions: vec![SagaDecisionView {
                at: "now".into(),
                decision: "retry".into(),
                step: Some("ship".into()),
                by: Some("eve".into()),
                reason: "it\nis up".into(),
            }],
            ..SagaView::default()
        }
    }

    #[test]
    fn a_list_has_a_head_line_and_names_what_was_left_out() {
        let mut list = SagaListView { sagas: vec![saga()], cursor: None };
        let text = in_columns(&list);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("ID    NAME      STATUS  STARTED"), "{text}");
        assert!(lines[1].starts_with("op_1  checkout  stuck") && lines[1].ends_with("ship"));
        assert_eq!(lines.len(), 2, "{text}");
        list.cursor = Some("1".into());
        assert!(in_columns(&list).ends_with("these are 1; --limit shows more."));
        assert_eq!(in_columns(&SagaListView::default()), "no sagas");
    }

    #[test]
    fn a_saga_is_shown_with_its_steps_decisions_and_the_reason_why_it_is_stuck() {
        let text = in_words(&saga());
        assert!(text.contains("stuck at     ship: uncertain (op_3)\n"), "{text}");
        let mut held = saga();
        held.stuck[0].step = "reserve".into();
        assert!(in_words(&held).contains("stuck at     reserve: uncertain (op_3, key k-1)\n"));
        assert!(text.contains("decided      retry ship by eve at now: it\\nis up\n"), "{text}");
        assert!(text.ends_with("reserve  undone  2         -          undone        op_2       -"));
    }
}
