//! The list of operations, and how to find one in it.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::fault::Fault;
use super::layout::{Here, behind, document, live, proof, shown, state_word};
use super::table;
use super::visitor::{Signed, Visitor};
use crate::admin::Admin;
use crate::admin::lookup::{find_by_key, mark_of};
use crate::admin::model::{filter, lag_ms, search};
use crate::admin::operations::from_store;
use crate::admin::problem::AdminRefusal;
use crate::admin::view::{Listed, OperationView};
use crate::engine::{Mode, Policy};
use crate::gate::{scope_names, tenant_names};
use crate::key::Slot;

/// Rows of a page.
const ROWS: usize = 50;

/// The states that can be asked for: of the store, and of the read model.
const STORED: [&str; 5] = ["in_flight", "uncertain", "completed", "released", "expired"];
const STATES: [&str; 6] = ["in_flight", "uncertain", "completed", "released", "expired", "gone"];

/// What stands before the name of a part of the scope in the form.
const SCOPE_FIELD: &str = "scope.";

/// What was asked for, by the names of the form's fields. Those that are empty ask for nothing.
#[derive(Default)]
struct Asked(Vec<(String, String)>);

impl Asked {
    fn of(pairs: Vec<(String, String)>) -> Asked {
        let pairs = pairs.into_iter().map(|(name, value)| (name, value.trim().to_owned()));
        Asked(pairs.filter(|(_, value)| !value.is_empty()).collect())
    }

    fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(other, _)| other == name).map_or("", |(_, value)| value)
    }

    /// All but where the page begins.
    fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .filter(|(name, _)| *name != "cursor")
    }

    /// The address of this search, behind a cursor.
    fn path(&self, cursor: &str) -> String {
        let mut path = "/operations".to_owned();
        for (name, value) in self.pairs().chain((!cursor.is_empty()).then_some(("cursor", cursor)))
        {
            path.push(if path.contains('?') { '&' } else { '?' });
            path.push_str(&format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)));
        }
        path
    }
}

pub(super) async fn show(
    State(admin): State<Arc<Admin>>,
    visitor: Visitor,
    Query(pairs): Query<Vec<(String, String)>>,
) -> Result<Response, Fault> {
    let asked = Asked::of(pairs);
    let text = asked.get("text");
    if Slot::from_reference(text).is_ok() {
        return Ok(Redirect::to(&format!("/operations/{text}")).into_response());
    }
    let (status, content) = page(&admin, &visitor, &asked, html! {}).await;
    Ok((status, shown(&visitor, Here::Operations, "Operations", content)).into_response())
}

/// Finds one operation by its key, which was typed into a form and is in no URL.
pub(super) async fn look_up(
    State(admin): State<Arc<Admin>>,
    visitor: Visitor,
    Signed(mut form): Signed<BTreeMap<String, String>>,
) -> Result<Response, Fault> {
    let mut take = |name: &str| form.remove(name).unwrap_or_default();
    let (route, key, path) = (take("route"), take("key"), take("path"));
    match find_by_key(&admin, &route, (key.trim(), path.trim()), &said(form)).await {
        Ok((slot, _)) => Ok(Redirect::to(&format!("/operations/{slot}")).into_response()),
        Err(refusal) => not_found(&admin, &visitor, &refusal).await,
    }
}

/// Leads to the operations of a client, by what it is known by: that was typed into a form, and in the URL is only its mark.
pub(super) async fn of_client(
    State(admin): State<Arc<Admin>>,
    visitor: Visitor,
    Signed(mut form): Signed<BTreeMap<String, String>>,
) -> Result<Response, Fault> {
    let route = form.remove("route").unwrap_or_default();
    match mark_of(&admin, &route, &said(form)) {
        Ok(mark) => {
            Ok(Redirect::to(&Asked(vec![("scope".to_owned(), mark)]).path("")).into_response())
        }
        Err(refusal) => not_found(&admin, &visitor, &refusal).await,
    }
}

/// What a form says of whose operations are meant.
fn said(form: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let parts = form
        .into_iter()
        .filter_map(|(name, value)| Some((name.strip_prefix(SCOPE_FIELD)?.to_owned(), value)));
    parts.collect()
}

async fn not_found(
    admin: &Admin,
    visitor: &Visitor,
    refusal: &AdminRefusal,
) -> Result<Response, Fault> {
    let notice = html! { p.notice.bad role="alert" { "Not found: " (refusal.to_string()) "." } };
    let (_, content) = page(admin, visitor, &Asked::default(), notice).await;
    Ok((refusal.status(), document(Some(visitor), Here::Operations, "Operations", content))
        .into_response())
}

async fn page(
    admin: &Admin,
    visitor: &Visitor,
    asked: &Asked,
    notice: Markup,
) -> (axum::http::StatusCode, Markup) {
    let found = list(admin, asked).await;
    let status = found.as_ref().err().map_or(axum::http::StatusCode::OK, AdminRefusal::status);
    let content = html! {
        (notice)
        div.head {
            h1 { "Operations" }
            @if admin.read_model.is_some() { (behind(lag_ms(admin))) }
        }
        (form(admin, asked))
        (by_key(admin, visitor))
        @if admin.read_model.is_some() { (by_client(admin, visitor)) }
        @match &found {
            Ok(found) if asked.get("cursor").is_empty() => { (live(&asked.path(""), "", results(admin, asked, found))) }
            Ok(found) => { (results(admin, asked, found)) }
            Err(refusal) => { p.notice.bad role="alert" { (refusal.to_string()) "." } }
        }
    };
    (status, content)
}

/// What is asked for: from the read model, or where there is none what the store can tell.
async fn list(admin: &Admin, asked: &Asked) -> Result<Listed, AdminRefusal> {
    let cursor = Some(asked.get("cursor")).filter(|cursor| !cursor.is_empty());
    if admin.read_model.is_none() {
        // All that there is would look like all that was found.
        if asked.pairs().any(|(name, _)| name != "state") {
            return Err(AdminRefusal::ReadModelOff);
        }
        let state = Some(asked.get("state")).filter(|state| !state.is_empty());
        return from_store(admin, state, cursor, ROWS).await;
    }
    // A form's times have no zone and no seconds.
    let times: Vec<_> = asked.pairs().map(|(name, value)| (name, timed(name, value))).collect();
    let filter = filter(times.iter().map(|(name, value)| (*name, value.as_str())))?;
    let (operations, cursor) = search(admin, filter, cursor.map(str::to_owned), ROWS).await?;
    Ok(Listed { operations, cursor, source: "read_model".to_owned(), lag_ms: lag_ms(admin) })
}

fn timed(name: &str, value: &str) -> String {
    match name {
        "from" | "until" if value.len() == "2026-11-25T03:00".len() => format!("{value}:00Z"),
        "from" | "until" if !value.ends_with('Z') => format!("{value}Z"),
        _ => value.to_owned(),
    }
}

fn results(admin: &Admin, asked: &Asked, found: &Listed) -> Markup {
    let caption = if found.source == "store" {
        "Operations in the store, in no order"
    } else {
        "Operations, newest first"
    };
    html! {
        section.panel.flush aria-label="Results" {
            @if found.operations.is_empty() { p.empty { (none(asked, found)) } }
            @else { (table::operations(caption, &found.operations, admin.clock.unix_ms())) }
            @if let Some(cursor) = &found.cursor { p.more { a #further href=(asked.path(cursor)) rel="next" { "Further operations" } } }
        }
    }
}

fn none(asked: &Asked, found: &Listed) -> &'static str {
    match (found.cursor.is_some(), asked.pairs().next().is_some()) {
        (true, _) => "None on this page.",
        (false, true) => {
            "None. What is searched for has to be the whole value, as it stands in the request or the answer."
        }
        (false, false) => "None yet.",
    }
}

fn form(admin: &Admin, asked: &Asked) -> Markup {
    let searchable = admin.read_model.is_some();
    let states: Vec<_> = if searchable { &STATES[..] } else { &STORED[..] }
        .iter()
        .map(|name| (*name, state_word(name)))
        .collect();
    html! {
        form.panel method="get" action="/operations" role="search" aria-label="Operations" {
            div.row {
                div.field.full {
                    label for="text" { @if searchable { "Reference, order or other field, scope" } @else { "Reference" } }
                    input #text name="text" type="search" value=(asked.get("text")) autocomplete="off" spellcheck="false";
                }
                (choice("state", "State", &states, asked))
                @if searchable {
                    @let routes = routes(admin);
                    @let routes: Vec<_> = routes.iter().map(|policy| (&*policy.route, &*policy.route)).collect();
                    (choice("route", "Route", &routes, asked))
                    div.field {
                        label for="status" { "Status" }
                        input #status name="status" inputmode="numeric" pattern="[1-5][0-9][0-9]" value=(asked.get("status")) autocomplete="off";
                    }
                    (time("from", "Begun from (UTC)", asked))
                    (time("until", "Begun before (UTC)", asked))
                }
                @for kept in ["scope"] {
                    @if !asked.get(kept).is_empty() {
                        div.field { label for=(kept) { "Scope" } input id=(kept) name=(kept) value=(asked.get(kept)) autocomplete="off"; }
                    }
                }
                div.buttons {
                    button type="submit" { "Search" }
                    @if asked.pairs().next().is_some() { a href="/operations" { "Clear" } }
                }
            }
            @if !searchable {
                p.hint {
                    "To search by order, amount, route or time, and to see what happened to an operation, set "
                    code { "enabled = true" } " under " code { "[log]" } "."
                }
            }
        }
    }
}

fn choice(name: &str, label: &str, options: &[(&str, &str)], asked: &Asked) -> Markup {
    html! {
        div.field {
            label for=(name) { (label) }
            select id=(name) name=(name) {
                option value="" { "any" }
                @for (value, word) in options { option value=(value) selected[asked.get(name) == *value] { (word) } }
            }
        }
    }
}

fn time(name: &str, label: &str, asked: &Asked) -> Markup {
    html! {
        div.field {
            label for=(name) { (label) }
            input id=(name) name=(name) type="datetime-local" value=(asked.get(name));
        }
    }
}

fn routes(admin: &Admin) -> Vec<&Policy> {
    let mut routes: Vec<_> =
        admin.policies.values().filter(|policy| policy.mode == Mode::Enforce).collect();
    routes.sort_by_key(|policy| policy.route.clone());
    routes
}

/// The form for a key: the routes that have one to look up, and all names that their scopes have.
fn by_key(admin: &Admin, visitor: &Visitor) -> Markup {
    let routes = routes(admin);
    if routes.is_empty() {
        return html! {};
    }
    html! {
        details.panel #by-key {
            summary { "Find by idempotency key" }
            form method="post" action="/operations/lookup" {
                (proof(visitor))
                div.row {
                    (of_route("key", &routes))
                    div.field.wide {
                        label for="key" { "Key" }
                        input #key name="key" required autocomplete="off" spellcheck="false" aria-describedby="key-hint";
                    }
                    @let by_path: Vec<&str> = routes.iter().filter(|policy| policy.by_path).map(|policy| &*policy.route).collect();
                    @if !by_path.is_empty() {
                        div.field {
                            label for="path" { "Path" span.hint { " (of " (by_path.join(", ")) ")" } }
                            input #path name="path" autocomplete="off" spellcheck="false";
                        }
                    }
                    (parts("scope", "scope of", &routes, scope_names))
                    div.buttons { button type="submit" { "Find" } }
                }
                p.hint #key-hint { "It is hashed here, as the gateway does, and stored nowhere. It stands in no address and no log." }
            }
        }
    }
}

/// The form for what a client is known by: a tenant's name, an API key.
fn by_client(admin: &Admin, visitor: &Visitor) -> Markup {
    let routes = routes(admin);
    if routes.iter().all(|policy| tenant_names(policy).is_empty()) {
        return html! {};
    }
    html! {
        details.panel #by-client {
            summary { "Find a client's operations" }
            form method="post" action="/operations/scope" {
                (proof(visitor))
                div.row {
                    (of_route("client", &routes))
                    (parts("client", "of", &routes, tenant_names))
                    div.buttons { button type="submit" { "Find" } }
                }
                p.hint {
                    "Write what its requests on that route have in these places; of a route without a scope, one of them. "
                    "It is hashed here and stored nowhere: the address and the list have the hash."
                }
            }
        }
    }
}

/// The choice of a route in a form, whose fields' ids begin with `form`.
fn of_route(form: &str, routes: &[&Policy]) -> Markup {
    let id = format!("{form}-route");
    html! {
        div.field {
            label for=(id) { "Route" }
            select id=(id) name="route" { @for policy in routes { option value=(policy.route) { (policy.route) } } }
        }
    }
}

/// A field for each name that one of the routes has, with which ones: what they are to them is said in a word.
fn parts(
    form: &str,
    word: &str,
    routes: &[&Policy],
    names_of: fn(&Policy) -> Vec<String>,
) -> Markup {
    let mut names: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for policy in routes {
        for name in names_of(policy) {
            names.entry(name).or_default().push(&policy.route);
        }
    }
    html! {
        @for (name, routes) in &names {
            @let id = format!("{form}-{name}");
            div.field {
                label for=(id) { (name) span.hint { " (" (word) " " (routes.join(", ")) ")" } }
                input id=(id) name=(format!("{SCOPE_FIELD}{name}")) autocomplete="off" spellcheck="false";
            }
        }
    }
}

/// For the queue: what the read model knows of operations that the store has.
pub(super) async fn known(
    admin: &Admin,
    references: Vec<String>,
) -> BTreeMap<String, OperationView> {
    let told = crate::admin::model::ask(admin, move |model, now_ms| {
        references
            .iter()
            .map(|reference| model.search(&by_reference(reference), now_ms, None, 1))
            .collect::<Result<Vec<_>, _>>()
    });
    let found = told.await.unwrap_or_default();
    let views = found.iter().flat_map(|found| &found.operations).map(OperationView::from);
    views.map(|view| (view.operation.clone(), view)).collect()
}

fn by_reference(reference: &str) -> crate::read_model::Filter {
    crate::read_model::Filter { text: Some(reference.to_owned()), ..Default::default() }
}
