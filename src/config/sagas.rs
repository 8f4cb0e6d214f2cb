//! `[[sagas]]`: routes that run several steps, which are completed or undone as a whole.

use std::time::Duration;

use http::{HeaderName, Method};

use self::order::StepOrder;
use self::step::{StepContext, read_step};
use self::templates::{TemplateNames, read_body};
use super::Config;
use super::read::{Table, Value};
use super::route::{RouteConfig, RouteContext, read_header, read_saga_route};
use crate::engine::{CallerRule, KeySource};
use crate::saga::log::StepDirection;
use crate::saga::plan::{AnswerTemplate, Plan, STEPS_MAX, Step};
use crate::saga::step_route::step_route_name;

mod order;
mod step;
mod templates;

const EXPECTED: &str = "sagas, each under [[sagas]]";
const STEPS_EXPECTED: &str = "steps, each under [[sagas.steps]]";
const KEEP_EXPECTED: &str = "a list of header fields such as [\"X-Request-Id\"]";
const ANSWER_EXPECTED: &str =
    "a table such as { status = 201, body = '{\"order\": {{ steps.reserve.body.id }}}' }";
const KEY_HELP: &str = "make a key with `openssl rand -base64 32`, put it into an environment \
                        variable such as ONCEWARD_KEY, and add [encryption] with keys = [{ id = \
                        \"1\", env = \"ONCEWARD_KEY\" }]";

/// Time after which no step begins, if the saga sets no `timeout`.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(600);
/// How long a gateway owns a saga without a renewal. If the gateway dies, another one continues the
/// saga after this time.
const OWNER_LEASE: Duration = Duration::from_secs(10);
/// The lease is at least this many timeouts of the store: a renewal begins when two thirds of the
/// lease remain, and must not come too late after one lost call.
const STORE_TIMEOUTS_IN_LEASE: u32 = 4;
/// Status of the answer, if the saga sets none.
const ANSWER_STATUS_DEFAULT: u16 = 200;
/// Statuses of answers without a body (RFC 9110, section 6.4.1).
const STATUSES_WITHOUT_BODY: [u16; 2] = [204, 205];

/// One saga.
#[derive(Debug, Clone)]
pub struct SagaConfig {
    /// The plan, which each saga keeps from its start.
    pub plan: Plan,
    /// The requests that begin the saga. The policy stores every answer and always requires a key.
    pub route: RouteConfig,
    /// Header fields of the request that the saga keeps for its templates.
    pub keep_headers: Vec<HeaderName>,
}

impl Config {
    /// Returns the routes of requests that begin sagas, and then all others. The first match wins,
    /// and a route may cover every path.
    pub fn all_routes(&self) -> impl Iterator<Item = &RouteConfig> {
        self.sagas.iter().map(|saga| &saga.route).chain(&self.routes)
    }
}

/// The requests that a route or a saga has.
struct TakenPath {
    owner: String,
    path: String,
    methods: Vec<Method>,
}

/// Reads `[[sagas]]`. `routes` are the routes without a fault, and `names` the names of all routes.
pub(super) fn read_all(
    root: &Table<'_>,
    context: &RouteContext<'_>,
    routes: &[RouteConfig],
    names: &mut Vec<String>,
) -> Option<Vec<SagaConfig>> {
    let Some(value) = root.get("sagas") else { return Some(Vec::new()) };
    let items = value.list(EXPECTED)?;
    if items.is_empty() {
        return Some(Vec::new());
    }
    if context.encrypted == Some(false) {
        value.report.note_with_help(
            &value.span,
            "needs [encryption]: a saga keeps its request and the answers of its steps",
            Some(KEY_HELP.to_owned()),
        );
    }
    if context.format.is_some_and(|format| !format.has_sagas()) {
        value.fault("needs format = 3 under [store]: records of older formats can't be sagas");
    }
    let taken = |route: &RouteConfig| {
        let owner = format!("the route {:?}", route.name);
        let of_path = |path: &String| TakenPath {
            owner: owner.clone(),
            path: unnamed(path),
            methods: route.methods.clone(),
        };
        route.paths.iter().map(of_path).collect::<Vec<_>>()
    };
    let mut taken: Vec<TakenPath> = routes.iter().flat_map(taken).collect();
    // This reads all sagas before it returns the first failure, so that all faults are reported.
    let sagas: Vec<Option<SagaConfig>> =
        items.iter().map(|item| read(item, context, names, &mut taken)).collect();
    for (item, saga) in items.iter().zip(&sagas) {
        saga.iter().for_each(|saga| check_step_names(item, &saga.plan, names));
    }
    sagas.into_iter().collect()
}

/// Refuses steps with operations under the name of a route or of a saga. The gateway finds the
/// rules of an operation by this name.
fn check_step_names(item: &Value<'_>, plan: &Plan, names: &[String]) {
    let directions = [StepDirection::Action, StepDirection::Compensation];
    for step in &plan.steps {
        let of_step = directions.map(|it| step_route_name(&plan.saga, &step.name, it));
        if let Some(name) = of_step.iter().find(|name| names.contains(name)) {
            item.fault(format!(
                "the operations of the step {:?} have the name {name:?}, as a route has: set another \
                 name for the route",
                step.name
            ));
        }
    }
}

fn read(
    item: &Value<'_>,
    context: &RouteContext<'_>,
    names: &mut Vec<String>,
    taken: &mut Vec<TakenPath>,
) -> Option<SagaConfig> {
    let (table, mut route) = read_saga_route(item.table(EXPECTED)?, context, names)?;
    if let Some(route) = &mut route {
        let (store_timeout, _) = context.store_timeout;
        let least = store_timeout.unwrap_or_default() * STORE_TIMEOUTS_IN_LEASE;
        route.policy.lease = OWNER_LEASE.max(least);
    }
    if let Some(route) = &route {
        check_path(&table, route, taken);
    }
    let keep_headers = read_keep_headers(&table, route.as_ref());
    let timeout = match table.get("timeout") {
        Some(value) => value.duration(),
        None => Some(TIMEOUT_DEFAULT),
    };
    let names = TemplateNames {
        parameters: route.as_ref().map(|route| parameters(&route.paths[0])),
        headers: keep_headers.clone(),
        steps: Vec::new(),
        visible: None,
    };
    let (steps, names) = read_steps(&table, context, names);
    let answer = read_answer(&table, "answer", (200, 299), &names).map(|answer| {
        answer.unwrap_or(AnswerTemplate { status: ANSWER_STATUS_DEFAULT, body: None })
    });
    let failed = read_answer(&table, "failed", (400, 599), &names);
    table.finish();
    let route = route?;
    let plan = Plan {
        saga: route.name.clone(),
        timeout_ms: millis(timeout?),
        steps: steps?,
        answer: answer?,
        failed: failed?,
    };
    Some(SagaConfig { plan, route, keep_headers: keep_headers? })
}

/// Refuses a path that a route or an earlier saga has for one of the same methods.
fn check_path(table: &Table<'_>, route: &RouteConfig, taken: &mut Vec<TakenPath>) {
    for path in &route.paths {
        let pattern = unnamed(path);
        let same = taken.iter().find(|other| {
            other.path == pattern && other.methods.iter().any(|it| route.methods.contains(it))
        });
        if let Some(TakenPath { owner, .. }) = same {
            let text = format!("{owner} has this path: a request can begin one of them only");
            table.report.note(&table.span_of("path"), text);
        }
        taken.push(TakenPath {
            owner: format!("the saga {:?}", route.name),
            path: pattern,
            methods: route.methods.clone(),
        });
    }
}

/// Returns a pattern without the names of its parameters.
fn unnamed(pattern: &str) -> String {
    let segment = |segment: &str| match segment.split_once('{') {
        Some((before, rest)) => {
            let (name, after) = rest.split_once('}').unwrap_or((rest, ""));
            format!("{before}{{{}}}{after}", if name.starts_with('*') { "*" } else { "" })
        }
        None => segment.to_owned(),
    };
    pattern.split('/').map(segment).collect::<Vec<_>>().join("/")
}

/// Returns the names of a pattern's parameters.
fn parameters(pattern: &str) -> Vec<String> {
    let inside = pattern.split('{').skip(1).filter_map(|rest| rest.split('}').next());
    inside.map(|name| name.trim_start_matches('*').to_owned()).collect()
}

fn read_keep_headers(table: &Table<'_>, route: Option<&RouteConfig>) -> Option<Vec<HeaderName>> {
    let Some(value) = table.get("keep_headers") else { return Some(Vec::new()) };
    let key = match route.map(|route| &route.policy.key.source) {
        Some(KeySource::Sent { header: Some(name), .. }) => Some(name),
        _ => None,
    };
    let is_caller = |name: &HeaderName| match route.map(|route| &route.policy.caller) {
        Some(CallerRule::Headers(names)) => names.contains(name),
        _ => false,
    };
    let mut kept: Vec<Option<HeaderName>> = Vec::new();
    for item in value.list(KEEP_EXPECTED)? {
        let name = read_header(&item).filter(|name| {
            if is_credential(name) || is_caller(name) {
                item.fault(format!(
                    "{name:?} can be a credential, and a saga stores what it keeps"
                ));
                return false;
            }
            if key == Some(name) {
                item.fault(format!("{name:?} has the key, which is only stored as a hash"));
                return false;
            }
            true
        });
        kept.push(name);
    }
    kept.into_iter().collect()
}

/// Returns whether a header field can have a credential.
fn is_credential(name: &HeaderName) -> bool {
    const PARTS: [&str; 8] = [
        "authorization",
        "cookie",
        "token",
        "secret",
        "password",
        "credential",
        "api-key",
        "apikey",
    ];
    PARTS.iter().any(|part| name.as_str().contains(part))
}

/// Reads the steps. Also returns the names for the templates of answers.
fn read_steps(
    table: &Table<'_>,
    context: &RouteContext<'_>,
    names: TemplateNames,
) -> (Option<Vec<Step>>, TemplateNames) {
    let Some(items) = listed_steps(table) else { return (None, names) };
    let found = order::read_names(&items);
    let names = TemplateNames { steps: found.clone(), ..names };
    let order = StepOrder::read(&items, &found);
    let mut steps = Vec::new();
    for (at, item) in items.iter().enumerate() {
        let step = StepContext { context, names: &names, order: order.as_ref(), at };
        steps.push(read_step(item, found[at].as_deref(), &step));
    }
    let steps = order.and_then(|_| steps.into_iter().collect());
    (steps, names)
}

/// Returns the tables of the steps.
fn listed_steps<'a>(table: &Table<'a>) -> Option<Vec<Value<'a>>> {
    let Some(value) = table.get("steps") else {
        let text = format!("a saga needs {STEPS_EXPECTED}");
        table.report.note_absence(&table.span_of("steps"), text);
        return None;
    };
    let items = value.list(STEPS_EXPECTED)?;
    if items.is_empty() {
        value.fault("expected at least one step");
        return None;
    }
    if items.len() > STEPS_MAX {
        value.fault(format!("expected at most {STEPS_MAX} steps, found {}", items.len()));
        return None;
    }
    Some(items)
}

/// Reads `answer` or `failed`. The inner value is `None` if the saga sets none.
fn read_answer(
    table: &Table<'_>,
    name: &'static str,
    (least, most): (u64, u64),
    names: &TemplateNames,
) -> Option<Option<AnswerTemplate>> {
    let Some(value) = table.get(name) else { return Some(None) };
    let answer = value.table(ANSWER_EXPECTED)?;
    let status = match answer.get("status") {
        Some(value) => value.number(least, most).and_then(|status| u16::try_from(status).ok()),
        None => {
            let text = format!("needs status, from {least} to {most}");
            answer.report.note_absence(&answer.span_of("status"), text);
            None
        }
    };
    let body = read_body(&answer, names);
    answer.finish();
    let (status, body) = (status?, body?);
    if body.is_some() && STATUSES_WITHOUT_BODY.contains(&status) {
        value.fault(format!("an answer with the status {status} has no body: remove it"));
        return None;
    }
    Some(Some(AnswerTemplate { status, body }))
}

/// Returns a duration in ms.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
