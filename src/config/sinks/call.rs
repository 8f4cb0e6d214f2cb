//! Receivers that are APIs behind the gateway: `call`.

use http::{HeaderMap, HeaderName, Method};

use super::{CallPlace, Receiver, can_be_set};
use crate::config::read::{FaultCollector, Table, Value, closest};
use crate::config::route::{RouteConfig, read_headers};
use crate::engine::{KeySource, Mode};
use crate::event::RESERVED_MEMBERS;
use crate::outbox::caller::CALL_KEY_BYTES;
use crate::outbox::settings::{CallTarget, SinkTarget};
use crate::template::{Template, TemplateKind};

/// Describes `call`.
pub(super) const CALL_EXPECTED: &str = "a table such as { route = \"shipments\", method = \
                                        \"POST\", path = \"/v1/shipments\", body = \
                                        '{\"order\": {{ data.order }}}' }";

/// Keys of `call`.
pub(super) const CALL_KEYS: [&str; 5] = ["route", "method", "path", "body", "headers"];

/// The names in the scope of templates.
const SCOPE: [&str; 3] = ["data", "event", "range"];

const PATH_EXPECTED: &str = "a template of a path such as \"/v1/orders/{{ data.order }}/ship\"";
const BODY_EXPECTED: &str = "a template of a JSON document such as '{\"order\": {{ data.order }}}'";
const METHOD_EXPECTED: &str = "a method such as \"POST\"";

/// Reads `call`.
pub(super) fn read_call(value: &Value<'_>) -> Option<Receiver> {
    let table = value.table(CALL_EXPECTED)?;
    let route = required(&table, "route", "the name of a route")
        .and_then(|value| Some((value.text("the name of a route")?.to_owned(), value.span)));
    let method = match table.get("method") {
        Some(value) => value.parsed(METHOD_EXPECTED, |text| text.parse().ok()),
        None => Some(Method::POST),
    };
    let path = required(&table, "path", PATH_EXPECTED)
        .and_then(|value| value.checked(PATH_EXPECTED, path_template));
    let body = match table.get("body") {
        Some(value) => {
            let template = |text: &str| template(TemplateKind::Json, text);
            value.checked(BODY_EXPECTED, template).map(Some)
        }
        None => Some(None),
    };
    let mut secret_headers = Vec::new();
    let headers = match table.get("headers") {
        Some(_) => read_headers(
            &table.table("headers", "a table of header fields"),
            "a call",
            |name: &HeaderName| can_be_set(name),
            &mut secret_headers,
        ),
        None => Some(HeaderMap::new()),
    };
    let path_of_route = table.path_of("route");
    table.finish();
    let ((route, at), method, headers) = (route?, method?, headers?);
    let (path, body) = (path?, body?);
    let members = |template: &Template| template.members_of("data");
    let used = body.as_ref().map(members).unwrap_or_default().into_iter().chain(members(&path));
    let secret_names = secret_headers.iter().map(|(name, _)| name);
    let place = CallPlace {
        route: route.clone(),
        at,
        call: path_of_route,
        method: method.clone(),
        headers: headers.keys().chain(secret_names).cloned().collect(),
        members: used.collect(),
    };
    let target = CallTarget { route, method, path, body, headers };
    Some(Receiver {
        target: SinkTarget::Call(target),
        secrets: Vec::new(),
        secret_headers,
        url_source: None,
        call: Some(place),
    })
}

fn required<'a>(table: &Table<'a>, name: &'static str, expected: &str) -> Option<Value<'a>> {
    let value = table.get(name);
    if value.is_none() {
        let text = format!("a call needs {name}: {expected}");
        table.report.note_absence(&table.span_of(name), text);
    }
    value
}

fn path_template(text: &str) -> Result<Template, String> {
    if !text.starts_with('/') {
        return Err(format!("expected {PATH_EXPECTED}: it begins with /"));
    }
    template(TemplateKind::Path, text)
}

fn template(kind: TemplateKind, text: &str) -> Result<Template, String> {
    let template = Template::new(kind, text).map_err(|error| format!("not a template: {error}"))?;
    match template.names().iter().find(|name| !SCOPE.contains(&name.as_str())) {
        Some(name) => Err(format!("there is no {name}: a template has data and event")),
        None => Ok(template),
    }
}

/// Checks that each call has a route that protects it, and warns of circles. The names are those of
/// all routes, also of faulty ones. `encrypted` is `None` if the keys are faulty.
pub(in crate::config) fn check_calls(
    report: &FaultCollector,
    calls: &[(String, CallPlace)],
    (routes, names): (&[RouteConfig], &[String]),
    encrypted: Option<bool>,
) {
    for (sink, place) in calls {
        if encrypted == Some(false) {
            report.note(
                &place.at,
                "a call needs [encryption]: its request is kept until the event is delivered",
            );
        }
        let Some(route) = routes.iter().find(|route| route.name == place.route) else {
            // A faulty route has its own faults.
            if names.contains(&place.route) {
                continue;
            }
            let near = closest(&place.route, routes.iter().map(|route| route.name.as_str()));
            let help = near.map(|near| format!("did you mean \"{near}\"?"));
            let text = format!("there is no route named {:?}", place.route);
            report.note_with_help(&place.at, text, help);
            continue;
        };
        if route.policy.mode != Mode::Enforce {
            report.note(&place.at, "the route does not enforce: a call could run twice there");
        }
        if !route.methods.contains(&place.method) {
            let text = format!("the route does not cover the method {}", place.method);
            report.note(&place.at, text);
        }
        match &route.policy.key.source {
            KeySource::Sent { header: Some(name), .. } if place.headers.contains(name) => {
                let text = format!("headers can't have {name}: it is the key of the call");
                report.note(&place.at, text);
            }
            KeySource::Sent { header: Some(_), .. } => {}
            _ => report.note(&place.at, "the route has no header field for the key of the call"),
        }
        let key = &route.policy.key;
        if !(key.min_length..=key.max_length).contains(&CALL_KEY_BYTES) {
            let text =
                format!("the route refuses the keys of calls, which have {CALL_KEY_BYTES} bytes");
            report.note(&place.at, text);
        }
        for member in never_published(sink, place, routes) {
            let text = format!(
                "no rule that publishes to this sink has data.{member}: its calls fail, unless the \
                 template does without it"
            );
            report.warn(&place.call, &text);
        }
        if let Some(circle) = circle(sink, calls, routes) {
            let text = format!(
                "the calls are a circle ({}): each 9th event of a circle becomes a dead letter",
                circle.join(" -> ")
            );
            report.warn(&place.call, &text);
        }
    }
}

/// Returns the members that the templates of a sink use, and that no event for it ever has. Without
/// a rule for the sink, nothing is known.
fn never_published<'p>(
    sink: &str,
    place: &'p CallPlace,
    routes: &[RouteConfig],
) -> Vec<&'p String> {
    let rules = routes.iter().flat_map(|route| &route.policy.publish);
    let rules: Vec<_> = rules
        .flat_map(|publish| &publish.rules)
        .filter(|rule| rule.to.iter().any(|to| to == sink))
        .collect();
    let has = |member: &str| {
        RESERVED_MEMBERS.contains(&member)
            || rules.iter().flat_map(|rule| &rule.members).any(|chosen| chosen.name == member)
    };
    place.members.iter().filter(|member| !rules.is_empty() && !has(member)).collect()
}

/// Returns the sinks of a circle of calls that begins and ends at this sink.
fn circle(
    from: &str,
    calls: &[(String, CallPlace)],
    routes: &[RouteConfig],
) -> Option<Vec<String>> {
    let called = |sink: &str| {
        let (_, place) = calls.iter().find(|(name, _)| name == sink)?;
        routes.iter().find(|route| route.name == place.route)
    };
    // Breadth first: each sink is visited once, so this ends.
    let mut paths = vec![vec![from.to_owned()]];
    let mut visited = Vec::new();
    while !paths.is_empty() {
        let path = paths.remove(0);
        let Some(route) = path.last().and_then(|sink| called(sink)) else { continue };
        let rules = route.policy.publish.iter().flat_map(|publish| &publish.rules);
        for next in rules.flat_map(|rule| &rule.to) {
            let longer = [&path[..], std::slice::from_ref(next)].concat();
            if next == from {
                return Some(longer);
            }
            if !visited.contains(next) {
                visited.push(next.clone());
                paths.push(longer);
            }
        }
    }
    None
}
