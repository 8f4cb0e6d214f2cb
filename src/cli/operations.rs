//! `onceward operations` and `onceward health`: clients of the admin port.

use std::collections::BTreeMap;
use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::{AdminArgs, OperationsArgs, Verb};
use crate::admin::client::{Client, ClientError};
use crate::admin::{OperationView, ReleaseRequest, ResolveRequest};

pub(super) fn health(admin: &AdminArgs, ready: bool) -> ExitCode {
    let client = Client::new(&admin.admin, admin.token.clone());
    let path = if ready { "/readyz" } else { "/healthz" };
    match super::block_on(client.probe(path)) {
        Ok(Ok(word)) => super::say(&word),
        Ok(Err(error)) => super::fail(&error, 1),
        Err(error) => super::fail(&error, 1),
    }
}

pub(super) fn operations(args: OperationsArgs) -> ExitCode {
    let client = Client::new(&args.admin.admin, args.admin.token);
    let verb = match prepare(args.verb) {
        Ok(verb) => verb,
        Err(usage) => return super::fail(&usage, 2),
    };
    match super::block_on(carry_out(&client, verb)) {
        Ok(Ok(views)) => print(&views, args.json),
        Ok(Err(error)) => super::fail(&error, 1),
        Err(error) => super::fail(&error, 1),
    }
}

/// A verb whose files are read.
enum Prepared {
    List(Option<String>, usize),
    Show(String),
    Resolve(String, ResolveRequest),
    Release(String, ReleaseRequest),
    Retry(String, ReleaseRequest),
    Expire(String, ReleaseRequest),
}

fn prepare(verb: Verb) -> Result<Prepared, String> {
    match verb {
        Verb::List { state, limit } => Ok(Prepared::List(state, limit)),
        Verb::Show { operation } => Ok(Prepared::Show(operation)),
        Verb::Release { operation, reason } => Ok(Prepared::Release(operation, ReleaseRequest { reason })),
        Verb::Retry { operation, reason } => Ok(Prepared::Retry(operation, ReleaseRequest { reason })),
        Verb::Expire { operation, reason } => Ok(Prepared::Expire(operation, ReleaseRequest { reason })),
        Verb::Resolve { operation, status, body, headers, reason } => {
            let body = match body {
                Some(file) => std::fs::read(&file).map_err(|error| format!("can't read {}: {error}", file.display()))?,
                None => Vec::new(),
            };
            let field = |text: &String| {
                let (name, value) = text.split_once(':').ok_or(format!("`{text}` is not a header field: write `Name: value`"))?;
                Ok::<_, String>((name.trim().to_owned(), value.trim().to_owned()))
            };
            let headers = headers.iter().map(field).collect::<Result<BTreeMap<_, _>, _>>()?;
            let request = ResolveRequest { status, headers, body_base64: BASE64.encode(body), reason };
            Ok(Prepared::Resolve(operation, request))
        }
    }
}

/// Carries a verb out. A change names the version that was just read, so that it loses against another operator's.
async fn carry_out(client: &Client, verb: Prepared) -> Result<Vec<OperationView>, ClientError> {
    match verb {
        Prepared::List(state, limit) => {
            let mut all = Vec::new();
            let mut cursor = None;
            loop {
                let page = client.list(state.as_deref(), limit.clamp(1, 1000), cursor.as_deref()).await?;
                all.extend(page.operations);
                cursor = page.cursor;
                if cursor.is_none() || all.len() >= limit {
                    all.truncate(limit);
                    return Ok(all);
                }
            }
        }
        Prepared::Show(operation) => Ok(vec![client.show(&operation).await?]),
        Prepared::Resolve(operation, request) => {
            let seen = client.show(&operation).await?;
            Ok(vec![client.resolve(&seen, &request).await?])
        }
        Prepared::Release(operation, request) => {
            let seen = client.show(&operation).await?;
            Ok(vec![client.release(&seen, &request).await?])
        }
        Prepared::Retry(operation, request) => {
            let seen = client.show(&operation).await?;
            Ok(vec![client.retry(&seen, &request).await?])
        }
        Prepared::Expire(operation, request) => {
            let seen = client.show(&operation).await?;
            Ok(vec![client.expire(&seen, &request).await?])
        }
    }
}

fn print(views: &[OperationView], json: bool) -> ExitCode {
    if json {
        return match serde_json::to_string_pretty(views) {
            Ok(text) => super::say(&text),
            Err(error) => super::fail(&error, 1),
        };
    }
    if views.is_empty() {
        return super::say("no operations");
    }
    let mut out = String::new();
    for view in views {
        let detail = match (&view.cause, view.status, &view.settled_by) {
            (Some(cause), ..) if view.retry == Some(true) => format!("{cause}; the next duplicate runs"),
            (Some(cause), ..) => cause.clone(),
            (None, Some(status), Some(by)) => format!("status {status}, settled by the {by}"),
            _ => view.lease_ends_at.as_ref().map(|end| format!("lease until {end}")).unwrap_or_default(),
        };
        out.push_str(&format!("{}  {:9}  {}  {}  {detail}\n", view.operation, view.state, view.changed_at, view.route));
    }
    super::say(out.trim_end())
}
