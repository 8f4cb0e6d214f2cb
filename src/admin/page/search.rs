//! The list of operations, and the forms to find one.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::error::PageError;
use super::guard::Signed;
use super::layout::{MenuEntry, behind, document, live, proof, shown, state_word};
use super::table;
use super::visitor::Visitor;
use crate::admin::problem::AdminRefusal;
use crate::admin::queries::{filter, find_by_key, from_store, lag_ms, mark_of, search};
use crate::admin::state::Admin;
use crate::admin::view::OperationListView;
use crate::engine::{Mode, Policy};
use crate::gate::{scope_names, tenant_names};
use crate::key::Slot;

/// Rows of a page.
const ROWS: usize = 50;

/// The states of the filter: in the store, and in the read model.
const STORED: [&str; 7] =
    ["in_flight", "uncertain", "completed", "released", "expired", "saga", "barred"];
const STATES: [&str; 8] =
    ["in_flight", "uncertain", "completed", "released", "expired", "saga", "barred", "gone"];

/// The prefix of the form fields with parts of the scope.
const SCOPE_FIELD: &str = "scope.";

/// The search parameters, by the names of the form's fields. Empty parameters are removed.
#[derive(Default)]
struct SearchQuery(Vec<(String, String)>);

impl SearchQuery {
    fn of(pairs: Vec<(String, String)>) -> SearchQuery {
        let pairs = pairs.into_iter().map(|(name, value)| (name, value.trim().to_owned()));
        SearchQuery(pairs.filter(|(_, value)| !value.is_empty()).collect())
    }

    fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(other, _)| other == name).map_or("", |(_, value)| value)
    }

    /// All parameters except the cursor.
    fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .filter(|(name, _)| *name != "cursor")
    }

    /// Returns the URL of the page of this search that begins after a cursor.
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
) -> Result<Response, PageError> {
    let query = SearchQuery::of(pairs);
    let text = query.get("text");
    if Slot::from_reference(text).is_ok() {
        return Ok(Redirect::to(&format!("/operations/{text}")).into_response());
    }
    let (status, content) = page(&admin, &visitor, &query, html! {}).await;
    Ok((status, shown(&visitor, MenuEntry::Operations, "Operations", content)).into_response())
}

/// Finds an operation by its key. The key comes from a form, so that no URL contains it.
pub(super) async fn look_up(
    State(admin): State<Arc<Admin>>,
    visitor: Visitor,
    Signed(mut form): Signed<BTreeMap<String, String>>,
) -> Result<Response, PageError> {
    let mut take = |name: &str| form.remove(name).unwrap_or_default();
    let (route, key, path) = (take("route"), take("key"), take("path"));
    match find_by_key(&admin, &route, (key.trim(), path.trim()), &scope_parts(form)).await {
        Ok((slot, _)) => Ok(Redirect::to(&format!("/operations/{slot}")).into_response()),
        Err(refusal) => not_found(&admin, &visitor, &refusal).await,
    }
}

/// Redirects to the operations of a client. The client's credentials come from a form, and the URL
/// contains only the scope's mark.
pub(super) async fn of_client(
    State(admin): State<Arc<Admin>>,
    visitor: Visitor,
    Signed(mut form): Signed<BTreeMap<String, String>>,
) -> Result<Response, PageError> {
    let route = form.remove("route").unwrap_or_default();
    match mark_of(&admin, &route, &scope_parts(form)) {
        Ok(mark) => {
            Ok(Redirect::to(&SearchQuery(vec![("scope".to_owned(), mark)]).path(""))
                .into_response())
        }
        Err(refusal) => not_found(&admin, &visitor, &refusal).await,
    }
}

/// Returns the parts of the scope from a form.
fn scope_parts(form: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let parts = form
        .into_iter()
        .filter_map(|(name, value)| Some((name.strip_prefix(SCOPE_FIELD)?.to_owned(), value)));
    parts.collect()
}

async fn not_found(
    admin: &Admin,
    visitor: &Visitor,
    refusal: &AdminRefusal,
) -> Result<Response, PageError> {
    let notice = html! { p.notice.bad role="alert" { "Not found: " (refusal.to_string()) "." } };
    let (_, content) = page(admin, visitor, &SearchQuery::default(), notice).await;
    Ok((refusal.status(), document(Some(visitor), MenuEntry::Operations, "Operations", content))
        .into_response())
}

async fn page(
    admin: &Admin,
    visitor: &Visitor,
    query: &SearchQuery,
    notice: Markup,
) -> (axum::http::StatusCode, Markup) {
    let found = list(admin, query).await;
    let status = found.as_ref().err().map_or(axum::http::StatusCode::OK, AdminRefusal::status);
    let content = html! {
        (notice)
        div.head {
            h1 { "Operations" }
            @if admin.read_model.is_some() { (behind(lag_ms(admin))) }
        }
        (form(admin, query))
        (by_key(admin, visitor))
        @if admin.read_model.is_some() { (by_client(admin, visitor)) }
        @match &found {
            Ok(found) if query.get("cursor").is_empty() => {
                (live(&query.path(""), "", results(admin, query, found)))
            }
            Ok(found) => { (results(admin, query, found)) }
            Err(refusal) => { p.notice.bad role="alert" { (refusal.to_string()) "." } }
        }
    };
    (status, content)
}

/// Runs the search in the read model, or in the store if there is no read model.
async fn list(admin: &Admin, query: &SearchQuery) -> Result<OperationListView, AdminRefusal> {
    let cursor = Some(query.get("cursor")).filter(|cursor| !cursor.is_empty());
    if admin.read_model.is_none() {
        // The store can't search. If it listed everything, that would look like the result of the
        // search.
        if query.pairs().any(|(name, _)| name != "state") {
            return Err(AdminRefusal::ReadModelOff);
        }
        let state = Some(query.get("state")).filter(|state| !state.is_empty());
        return from_store(admin, state, cursor, ROWS).await;
    }
    // The form's times have no time zone and no seconds, so both are added.
    let times: Vec<_> = query.pairs().map(|(name, value)| (name, timed(name, value))).collect();
    let filter = filter(times.iter().map(|(name, value)| (*name, value.as_str())))?;
    let (operations, cursor) = search(admin, filter, cursor.map(str::to_owned), ROWS).await?;
    Ok(OperationListView {
        operations,
        cursor,
        source: "read_model".to_owned(),
        lag_ms: lag_ms(admin),
    })
}

fn timed(name: &str, value: &str) -> String {
    match name {
        "from" | "until" if value.len() == "2026-11-25T03:00".len() => format!("{value}:00Z"),
        "from" | "until" if !value.ends_with('Z') => format!("{value}Z"),
        _ => value.to_owned(),
    }
}

fn results(admin: &Admin, query: &SearchQuery, found: &OperationListView) -> Markup {
    let caption = if found.source == "store" {
        "Operations in the store, in no order"
    } else {
        "Operations, newest first"
    };
    html! {
        section.panel.flush aria-label="Results" {
            @if found.operations.is_empty() { p.empty { (empty_text(query, found)) } }
            @else { (table::operations(caption, &found.operations, admin.clock.unix_ms())) }
            @if let Some(cursor) = &found.cursor {
                p.more { a #further href=(query.path(cursor)) rel="next" { "Next page" } }
            }
        }
    }
}

fn empty_text(query: &SearchQuery, found: &OperationListView) -> &'static str {
    match (found.cursor.is_some(), query.pairs().next().is_some()) {
        (true, _) => "None on this page.",
        (false, true) => {
            "None. A search finds whole values, as they are in the request or the response."
        }
        (false, false) => "None yet.",
    }
}

fn form(admin: &Admin, query: &SearchQuery) -> Markup {
    let searchable = admin.read_model.is_some();
    let states: Vec<_> = if searchable { &STATES[..] } else { &STORED[..] }
        .iter()
        .map(|name| (*name, state_word(name)))
        .collect();
    html! {
        form.panel method="get" action="/operations" role="search" aria-label="Operations" {
            div.row {
                div.field.full {
                    label for="text" {
                        @if searchable {
                            "Reference, order or other field, scope"
                        } @else { "Reference" }
                    }
                    input #text name="text" type="search" value=(query.get("text"))
                        autocomplete="off" spellcheck="false";
                }
                (choice("state", "State", &states, query))
                @if searchable {
                    @let routes = routes(admin);
                    @let routes: Vec<_> =
                        routes.iter().map(|policy| (&*policy.route, &*policy.route)).collect();
                    (choice("route", "Route", &routes, query))
                    div.field {
                        label for="status" { "Status" }
                        input #status name="status" inputmode="numeric" pattern="[1-5][0-9][0-9]"
                            value=(query.get("status")) autocomplete="off";
                    }
                    (time("from", "Opened from (UTC)", query))
                    (time("until", "Opened before (UTC)", query))
                }
                @for kept in ["scope"] {
                    @if !query.get(kept).is_empty() {
                        div.field {
                            label for=(kept) { "Scope" }
                            input id=(kept) name=(kept) value=(query.get(kept)) autocomplete="off";
                        }
                    }
                }
                div.buttons {
                    button type="submit" { "Search" }
                    @if query.pairs().next().is_some() { a href="/operations" { "Clear" } }
                }
            }
            @if !searchable {
                p.hint {
                    "To search by order, amount, route or time, and to see what happened to an \
                     operation, set "
                    code { "enabled = true" } " under " code { "[log]" } "."
                }
            }
        }
    }
}

fn choice(name: &str, label: &str, options: &[(&str, &str)], query: &SearchQuery) -> Markup {
    html! {
        div.field {
            label for=(name) { (label) }
            select id=(name) name=(name) {
                option value="" { "any" }
                @for (value, word) in options {
                    option value=(value) selected[query.get(name) == *value] { (word) }
                }
            }
        }
    }
}

fn time(name: &str, label: &str, query: &SearchQuery) -> Markup {
    html! {
        div.field {
            label for=(name) { (label) }
            input id=(name) name=(name) type="datetime-local" value=(query.get(name));
        }
    }
}

fn routes(admin: &Admin) -> Vec<&Policy> {
    let mut routes: Vec<_> =
        admin.policies.values().filter(|policy| policy.mode == Mode::Enforce).collect();
    routes.sort_by_key(|policy| policy.route.clone());
    routes
}

/// Renders the form for a look-up by key: the routes, and all names of their scopes.
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
                        input #key name="key" required autocomplete="off" spellcheck="false"
                            aria-describedby="key-hint";
                    }
                    @let by_path = routes.iter().filter(|policy| policy.by_path);
                    @let by_path: Vec<&str> = by_path.map(|policy| &*policy.route).collect();
                    @if !by_path.is_empty() {
                        div.field {
                            label for="path" {
                                "Path" span.hint { " (of " (by_path.join(", ")) ")" }
                            }
                            input #path name="path" autocomplete="off" spellcheck="false";
                        }
                    }
                    (parts("scope", "scope of", &routes, scope_names))
                    div.buttons { button type="submit" { "Find" } }
                }
                p.hint #key-hint {
                    "The key is hashed here, as in the gateway, and not stored. It appears in no \
                     URL and no log."
                }
            }
        }
    }
}

/// Renders the form for a client's credentials, such as a tenant's name or an API key.
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
                    "Enter the values that the client's requests on that route have in these \
                     places; for a route without a scope, one of them. "
                    "They are hashed here and not stored: the URL and the list show the hash."
                }
            }
        }
    }
}

/// Renders the choice of a route. `form` is the prefix of the fields' ids.
fn of_route(form: &str, routes: &[&Policy]) -> Markup {
    let id = format!("{form}-route");
    html! {
        div.field {
            label for=(id) { "Route" }
            select id=(id) name="route" {
                @for policy in routes { option value=(policy.route) { (policy.route) } }
            }
        }
    }
}

/// Renders a field for each name that one of the routes has. The names of the routes follow `word`.
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
                input id=(id) name=(format!("{SCOPE_FIELD}{name}")) autocomplete="off"
                    spellcheck="false";
            }
        }
    }
}
