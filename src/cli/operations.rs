//! `onceward operations` and `onceward health`: clients of the admin port.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::{AdminArgs, ChangeArgs, OperationsArgs, Verb};
use crate::admin::client::{Client, ClientError, OperationFilter, PlainDecision};
use crate::admin::{DecisionRequest, OperationView, ResolveRequest, ScopeRequest};
use crate::telemetry::{escape, escape_json};

pub(super) fn health(admin: &AdminArgs, ready: bool) -> ExitCode {
    let client = Client::new(&admin.admin, admin.token.clone());
    let path = if ready { "/readyz" } else { "/healthz" };
    match super::block_on(client.probe(path)) {
        Ok(Ok(word)) => super::print_text(&word),
        Ok(Err(error)) => super::fail(&error, 1),
        Err(error) => super::fail(&error, 1),
    }
}

pub(super) fn operations(args: OperationsArgs) -> ExitCode {
    let client = Client::new(&args.admin.admin, args.admin.token);
    let details = matches!(args.verb, Verb::Show { .. });
    let verb = match prepare(args.verb) {
        Ok(verb) => verb,
        Err(usage) => return super::fail(&usage, 2),
    };
    match super::block_on(carry_out(&client, verb)) {
        Ok(Ok(views)) => print(&views, args.json, details),
        Ok(Err(error)) => super::fail(&error, 1),
        Err(error) => super::fail(&error, 1),
    }
}

/// The reason in the event log if the command has no reason. The admin port refuses a change
/// without one.
const NO_REASON: &str = "none given on the command line";

/// A verb with the contents of its files.
enum PreparedVerb {
    List(OperationFilter, Option<ScopeRequest>, usize),
    Show(String),
    Resolve(ChangeArgs, ResolveRequest),
    Decide(PlainDecision, ChangeArgs),
}

fn prepare(verb: Verb) -> Result<PreparedVerb, String> {
    Ok(match verb {
        Verb::List { state, route, scope, client, limit } => {
            let client = client.map(|file| {
                Ok::<_, String>(ScopeRequest {
                    route: route.clone().unwrap_or_default(),
                    scope: read_client(&file)?,
                })
            });
            PreparedVerb::List(
                OperationFilter { state, route, scope },
                client.transpose()?,
                limit.get(),
            )
        }
        Verb::Show { operation } => PreparedVerb::Show(operation),
        Verb::Release(change) => PreparedVerb::Decide(PlainDecision::Release, change),
        Verb::Retry(change) => PreparedVerb::Decide(PlainDecision::Retry, change),
        Verb::Expire(change) => PreparedVerb::Decide(PlainDecision::Expire, change),
        Verb::Resolve { change, status, body, headers } => {
            let body = match body {
                Some(file) => std::fs::read(&file)
                    .map_err(|error| format!("can't read {}: {error}", file.display()))?,
                None => Vec::new(),
            };
            let field = |text: &String| {
                named(text).ok_or(format!("`{text}` is not a header field: write `Name: value`"))
            };
            let headers = headers.iter().map(field).collect::<Result<BTreeMap<_, _>, _>>()?;
            let request = ResolveRequest {
                status,
                headers,
                body_base64: BASE64.encode(body),
                reason: Some(change.reason()),
            };
            PreparedVerb::Resolve(change, request)
        }
    })
}

/// Splits a line into a name and a value.
fn named(line: &str) -> Option<(String, String)> {
    let (name, value) = line.split_once(':')?;
    Some((name.trim().to_owned(), value.trim().to_owned()))
}

/// Reads the scope values of a client. They are in a file, because histories and process lists show
/// command lines. Errors must not contain them either.
fn read_client(file: &Path) -> Result<BTreeMap<String, String>, String> {
    let from = if file == Path::new("-") { "stdin".to_owned() } else { file.display().to_string() };
    let read = if file == Path::new("-") {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(file)
    };
    let text = read.map_err(|error| format!("can't read {from}: {error}"))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(at, line)| {
            named(line).ok_or(format!("line {} of {from} is not `name: value`", at + 1))
        })
        .collect()
}

/// Runs a verb. Without `--version`, a change uses the version that is read here. It then fails if
/// another operator changes the operation at the same time, but not if somebody changed it earlier.
async fn carry_out(client: &Client, verb: PreparedVerb) -> Result<Vec<OperationView>, ClientError> {
    let view = match verb {
        PreparedVerb::List(mut filter, of, limit) => {
            if let Some(of) = of {
                filter.scope = Some(client.scope(&of).await?.scope);
            }
            let mut all = Vec::new();
            let mut cursor = None;
            loop {
                let page = client.list(&filter, limit.min(1000), cursor.as_deref()).await?;
                all.extend(page.operations);
                cursor = page.cursor;
                if cursor.is_none() || all.len() >= limit {
                    all.truncate(limit);
                    return Ok(all);
                }
            }
        }
        PreparedVerb::Show(operation) => client.show(&operation).await?,
        PreparedVerb::Resolve(change, request) => {
            client.resolve(&change.operation, &version_of(client, &change).await?, &request).await?
        }
        PreparedVerb::Decide(decision, change) => {
            let request = DecisionRequest { reason: Some(change.reason()) };
            let version = version_of(client, &change).await?;
            client.decide(&change.operation, decision, &version, &request).await?
        }
    };
    Ok(vec![view])
}

impl ChangeArgs {
    fn reason(&self) -> String {
        self.reason.clone().unwrap_or_else(|| NO_REASON.to_owned())
    }
}

/// Returns the version that a change is based on.
async fn version_of(client: &Client, change: &ChangeArgs) -> Result<String, ClientError> {
    match &change.version {
        Some(version) => Ok(version.to_string()),
        None => Ok(client.show(&change.operation).await?.version),
    }
}

/// Prints operations, one per line. With `details`, prints their times and versions too.
fn print(views: &[OperationView], json: bool, details: bool) -> ExitCode {
    if json {
        return match serde_json::to_string_pretty(views) {
            Ok(text) => super::print_text(&escape_json(&text)),
            Err(error) => super::fail(&error, 1),
        };
    }
    if views.is_empty() {
        return super::print_text("no operations");
    }
    let mut out = String::new();
    for view in views {
        let detail = match (&view.cause, view.status, &view.settled_by) {
            (Some(cause), ..) if view.retry == Some(true) => {
                format!("{cause}; the next duplicate runs")
            }
            (Some(cause), ..) => cause.clone(),
            (None, Some(status), Some(by)) => format!("status {status}, settled by the {by}"),
            _ => view
                .lease_ends_at
                .as_ref()
                .map(|end| format!("lease until {end}"))
                .unwrap_or_default(),
        };
        let line = format!(
            "{}  {:9}  {}  {}  {detail}",
            view.operation, view.state, view.changed_at, view.route
        );
        out.push_str(&format!("{}\n", escape(&line)));
        if details {
            let times = format!(
                "opened {}, changed {}, version {}",
                view.opened_at, view.changed_at, view.version
            );
            out.push_str(&format!("{}\n", escape(&times)));
            if let Some(sink) = &view.sink {
                out.push_str(&format!("{}\n", escape(&format!("called by the sink {sink}"))));
            }
        }
    }
    super::print_text(out.trim_end())
}
