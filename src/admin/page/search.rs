//! The list of operations, and how to find one in it.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use serde::Deserialize;

use super::fault::Fault;
use super::layout::{Here, document, moment, proof, shown, state, state_word};
use super::visitor::{Signed, Visitor};
use crate::admin::Admin;
use crate::admin::lookup::find_by_key;
use crate::engine::Mode;
use crate::gate::scope_names;
use crate::key::Slot;
use crate::record::{Held, State as Standing};
use crate::store::Listing;

/// Rows of a page.
const ROWS: usize = 50;

/// The states that can be asked for.
const STATES: [&str; 5] = ["in_flight", "uncertain", "completed", "released", "expired"];

/// What stands before the name of a part of the scope in the form.
const SCOPE_FIELD: &str = "scope.";

#[derive(Deserialize, Default)]
pub(super) struct Asked {
    #[serde(default)]
    reference: String,
    #[serde(default)]
    state: String,
    cursor: Option<String>,
}

pub(super) async fn show(
    State(admin): State<Arc<Admin>>,
    visitor: Visitor,
    Query(asked): Query<Asked>,
) -> Result<Response, Fault> {
    let reference = asked.reference.trim();
    if Slot::from_reference(reference).is_ok() {
        return Ok(Redirect::to(&format!("/operations/{reference}")).into_response());
    }
    let content = page(&admin, &visitor, &asked, html! {}).await?;
    Ok(shown(&visitor, Here::Operations, "Operations", content))
}

/// Finds one operation by its key, which was typed into a form and is in no URL.
pub(super) async fn look_up(
    State(admin): State<Arc<Admin>>,
    visitor: Visitor,
    Signed(mut form): Signed<BTreeMap<String, String>>,
) -> Result<Response, Fault> {
    let mut take = |name: &str| form.remove(name).unwrap_or_default();
    let (route, key) = (take("route"), take("key"));
    let said = form.into_iter().filter_map(|(name, value)| Some((name.strip_prefix(SCOPE_FIELD)?.to_owned(), value)));
    match find_by_key(&admin, &route, key.trim(), &said.collect()).await {
        Ok((slot, _)) => Ok(Redirect::to(&format!("/operations/{slot}")).into_response()),
        Err(refusal) => {
            let notice = html! { p.notice.bad role="alert" { "Not found: " (refusal.to_string()) "." } };
            let content = page(&admin, &visitor, &Asked::default(), notice).await?;
            let status: StatusCode = refusal.class().0;
            Ok((status, document(Some(&visitor), Here::Operations, "Operations", content)).into_response())
        }
    }
}

async fn page(admin: &Admin, visitor: &Visitor, asked: &Asked, notice: Markup) -> Result<Markup, Fault> {
    let listing = if matches!(asked.state.as_str(), "in_flight" | "uncertain") { Listing::Unsettled } else { Listing::All };
    let found = admin.gate.store().list(listing, asked.cursor.as_deref(), ROWS).await?;
    let wanted = |(_, held): &&(Slot, Held)| asked.state.is_empty() || held.record.state.name() == asked.state;
    let rows: Vec<_> = found.records.iter().filter(wanted).collect();
    Ok(html! {
        (notice)
        h1 { "Operations" }
        (search(asked))
        (by_key(admin, visitor))
        section.panel.flush aria-label="Operations" {
            @if rows.is_empty() { p.empty { "None here." } } @else { (table(&rows)) }
            @if let Some(cursor) = &found.cursor { (more(asked, cursor)) }
        }
    })
}

fn search(asked: &Asked) -> Markup {
    html! {
        form.panel method="get" action="/operations" role="search" aria-label="Operations" {
            div.row {
                div.field.wide {
                    label for="reference" { "Reference" }
                    input #reference name="reference" value=(asked.reference) placeholder="op_…" autocomplete="off" spellcheck="false";
                }
                div.field {
                    label for="state" { "State" }
                    select #state name="state" {
                        option value="" { "any" }
                        @for name in STATES { option value=(name) selected[asked.state == name] { (state_word(name)) } }
                    }
                }
                div.buttons { button type="submit" { "Search" } }
            }
        }
    }
}

/// The form for a key: the routes that have one to look up, and all names that their scopes have.
fn by_key(admin: &Admin, visitor: &Visitor) -> Markup {
    let mut routes: Vec<_> = admin.policies.values().filter(|policy| policy.mode == Mode::Enforce).collect();
    routes.sort_by_key(|policy| policy.route.clone());
    let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for policy in &routes {
        for name in scope_names(policy) {
            names.entry(name).or_default().push(policy.route.to_string());
        }
    }
    if routes.is_empty() {
        return html! {};
    }
    html! {
        details.panel #by-key {
            summary { "Find by idempotency key" }
            form method="post" action="/operations/lookup" {
                (proof(visitor))
                div.row {
                    div.field {
                        label for="route" { "Route" }
                        select #route name="route" { @for policy in &routes { option value=(policy.route) { (policy.route) } } }
                    }
                    div.field.wide {
                        label for="key" { "Key" }
                        input #key name="key" required autocomplete="off" spellcheck="false" aria-describedby="key-hint";
                    }
                    @for (name, routes) in &names {
                        div.field {
                            label for=(format!("scope-{name}")) { (name) span.hint { " (scope of " (routes.join(", ")) ")" } }
                            input id=(format!("scope-{name}")) name=(format!("{SCOPE_FIELD}{name}")) autocomplete="off" spellcheck="false";
                        }
                    }
                    div.buttons { button type="submit" { "Find" } }
                }
                p.hint #key-hint { "It is hashed here, as the gateway does, and stored nowhere. It stands in no address and no log." }
            }
        }
    }
}

fn table(rows: &[&(Slot, Held)]) -> Markup {
    html! {
        table.cards role="table" {
            caption { "Operations in the store, in no order" }
            thead role="rowgroup" {
                tr role="row" {
                    th scope="col" role="columnheader" { "Operation" }
                    th scope="col" role="columnheader" { "State" }
                    th scope="col" role="columnheader" { "Route" }
                    th scope="col" role="columnheader" { "Last change" }
                }
            }
            tbody role="rowgroup" {
                @for (slot, held) in rows {
                    tr role="row" {
                        th scope="row" role="rowheader" {
                            a.ref id=(slot) href=(format!("/operations/{slot}")) { (slot) }
                        }
                        td role="cell" data-label="State" {
                            span { (state(held.record.state.name())) @if let Some(status) = status(held) { " " (status) } }
                        }
                        td role="cell" data-label="Route" { (held.record.route) }
                        td role="cell" data-label="Last change" { span { (moment(held.written_ms, held.now_ms)) } }
                    }
                }
            }
        }
    }
}

fn status(held: &Held) -> Option<u16> {
    match &held.record.state {
        Standing::Completed { reply, .. } => Some(reply.status.as_u16()),
        _ => None,
    }
}

fn more(asked: &Asked, cursor: &str) -> Markup {
    let value = |text: &str| percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string();
    html! { p.more { a href=(format!("/operations?state={}&cursor={}", value(&asked.state), value(cursor))) rel="next" { "Further operations" } } }
}
