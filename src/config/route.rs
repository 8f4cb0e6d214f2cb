//! `[[routes]]`: the protected requests and their rules.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, Method, StatusCode};

use super::admin::SecretSource;
use super::profiles::{DEFAULT_PROFILE, Profiles};
use super::read::{SourceSpan, Table, Value, closest};
use super::store::{FAIL_OPEN_WARNING, ON_FAILURE, StoreFormat};
use super::texts::duration_text;
use crate::engine::{Dialect, Mode, OnFailure, OnInFlight, OnMismatch, Policy};
use crate::key::Pointer;
use crate::key::path::PathCase;
use crate::outbox::settings::OutboxSettings;
use crate::record::AnnouncedState;

mod cors;
mod fields;
mod identity;
mod path;
mod publish;
mod resource;
mod saga;
mod scope;
mod status;
mod uncertain;

pub(super) use identity::{FRAMING, key_location, read_header, read_key_header};
pub(super) use saga::read_saga_route;
pub use scope::JwksSource;
pub(super) use status::{StepStatuses, read_of_step, read_plain_list};
pub(super) use uncertain::{ProbeSetting, UncertainSetting, read_headers, read_setting};

/// The name of the route that is used if the file has no routes.
pub const IMPLICIT_ROUTE: &str = "default";

/// Shortest lease. With a shorter one, a busy scheduler alone could make operations uncertain.
const LEASE_MIN: Duration = Duration::from_secs(1);
/// The lease must be longer than this many store timeouts. A claim may take one timeout, and
/// reading the claim back another one. A third of the lease must then remain to send the request.
const LEASE_TIMEOUTS: u32 = 3;

const HEADER_EXPECTED: &str = "a header field's name such as \"Idempotency-Key\"";
const MODES: [(&str, Mode); 3] =
    [("enforce", Mode::Enforce), ("shadow", Mode::Shadow), ("off", Mode::Off)];
const CASES: [(&str, PathCase); 2] =
    [("sensitive", PathCase::Sensitive), ("insensitive", PathCase::Insensitive)];
const IN_FLIGHT: [(&str, OnInFlight); 2] =
    [("reject", OnInFlight::Reject), ("wait", OnInFlight::Wait)];
const MISMATCH: [(&str, OnMismatch); 3] = [
    ("reject", OnMismatch::Reject),
    ("replay", OnMismatch::Replay),
    ("supersede", OnMismatch::Supersede),
];
const ERRORS: [(&str, Dialect); 6] = [
    ("problem", Dialect::Problem),
    ("stripe", Dialect::Stripe),
    ("square", Dialect::Square),
    ("paypal", Dialect::PayPal),
    ("acp", Dialect::Acp),
    ("ucp", Dialect::Ucp),
];

/// Settings of one route.
#[derive(Debug, Clone)]
pub struct RouteConfig {
    /// The unique name, which is part of every record's identity.
    pub name: String,
    /// Path patterns, for `matchit`, without a trailing slash. Only the implicit route has several.
    pub paths: Vec<String>,
    /// Methods that the route matches.
    pub methods: Vec<Method>,
    /// The name of the upstream, if it isn't the default one.
    pub upstream: Option<String>,
    /// The profile, which supplies the values that the route doesn't set.
    pub profile: String,
    /// The rules.
    pub policy: Policy,
    /// Header fields of the probe with secret values.
    pub probe_headers: Vec<(HeaderName, SecretSource)>,
    /// Source of the keys that verify the tokens of the scope.
    pub jwks: Option<JwksSource>,
}

/// All routes.
#[derive(Default)]
pub(super) struct ReadRoutes {
    /// The routes without a fault.
    pub routes: Vec<RouteConfig>,
    /// The names of all routes, also of faulty ones.
    pub names: Vec<String>,
}

/// Settings outside a route's own table that the checks of a route need.
pub(super) struct RouteContext<'a> {
    pub profiles: Profiles<'a>,
    /// Names and response timeouts of the named upstreams. The timeout is `None` if it is faulty.
    pub upstreams: Vec<(String, Option<Duration>)>,
    /// The default upstream's response timeout.
    pub response_timeout: Option<Duration>,
    /// The store's timeout, and its span.
    pub store_timeout: (Option<Duration>, SourceSpan),
    pub on_failure: Option<OnFailure>,
    /// Whether the event log is on; `None` if that setting is faulty.
    pub log: Option<bool>,
    /// Whether results are sealed; `None` if the keys are faulty.
    pub encrypted: Option<bool>,
    /// Whether clients show certificates; `None` if that setting is faulty.
    pub client_ca: Option<bool>,
    /// Settings of all events; `None` if they are faulty.
    pub outbox: Option<OutboxSettings>,
    /// The names of the sinks; `None` if not all names are known.
    pub sinks: Option<Vec<String>>,
    /// The format of new records; `None` if the store's settings are faulty.
    pub format: Option<StoreFormat>,
}

impl RouteContext<'_> {
    /// Returns the response timeout of an upstream. `upstream` is `None` if its setting is faulty,
    /// and the inner value is `None` for the default upstream.
    pub(super) fn response_timeout_of(
        &self,
        upstream: Option<&Option<String>>,
    ) -> Option<Duration> {
        let Some(Some(name)) = upstream else { return self.response_timeout };
        self.upstreams.iter().find(|(other, _)| other == name).and_then(|(_, timeout)| *timeout)
    }
}

/// Settings of a route that are not part of its policy.
#[derive(Default)]
struct RouteExtras {
    probe_headers: Vec<(HeaderName, SecretSource)>,
    jwks: Option<JwksSource>,
}

/// Retention times and waiting times.
struct Times {
    wait_timeout: Duration,
    retention: Duration,
    tombstone: Duration,
    unsettled_retention: Duration,
    lease: Duration,
}

/// Reads all routes, or creates the implicit one.
pub(super) fn read_all(root: &Table<'_>, context: &RouteContext<'_>) -> ReadRoutes {
    const EXPECTED: &str = "routes, each under [[routes]]";
    let Some(value) = root.get("routes") else {
        let routes: Vec<RouteConfig> = implicit(root, context).into_iter().collect();
        return ReadRoutes {
            names: routes.iter().map(|route| route.name.clone()).collect(),
            routes,
        };
    };
    let Some(items) = value.list(EXPECTED) else { return ReadRoutes::default() };
    if items.is_empty() {
        value.fault(
            "protects nothing: remove it to protect every POST and PATCH with an Idempotency-Key",
        );
    }
    let mut names: Vec<String> = Vec::new();
    let mut routes = Vec::new();
    for item in &items {
        let Some(table) = item.table(EXPECTED) else { continue };
        routes.extend(read(table, context, &mut names));
    }
    ReadRoutes { routes, names }
}

/// Creates the route of a file without routes. It protects every POST and PATCH with a key.
fn implicit(root: &Table<'_>, context: &RouteContext<'_>) -> Option<RouteConfig> {
    let table = context.profiles.above_profile(root.empty("routes[default]"), DEFAULT_PROFILE)?;
    let policy = read_policy(
        &table,
        IMPLICIT_ROUTE,
        context.response_timeout,
        (&AnnouncedState::OF_ROUTES, context),
        &mut RouteExtras::default(),
    )?;
    Some(RouteConfig {
        name: IMPLICIT_ROUTE.to_owned(),
        paths: vec!["/".to_owned(), "/{*rest}".to_owned()],
        methods: vec![Method::POST, Method::PATCH],
        upstream: None,
        profile: DEFAULT_PROFILE.to_owned(),
        policy,
        probe_headers: Vec::new(),
        jwks: None,
    })
}

fn read(
    table: Table<'_>,
    context: &RouteContext<'_>,
    names: &mut Vec<String>,
) -> Option<RouteConfig> {
    let (table, profile) = above_its_profile(table, context)?;
    let path = read_path(&table, "a route");
    let name = read_name(&table, names, "route");
    let methods = table.get("methods").and_then(|value| read_methods(&value));
    let upstream = read_upstream(&table, context);
    let response_timeout = context.response_timeout_of(upstream.as_ref());
    let mut extras = RouteExtras::default();
    let mut policy = read_policy(
        &table,
        name.as_deref().unwrap_or_default(),
        response_timeout,
        (&AnnouncedState::OF_ROUTES, context),
        &mut extras,
    );
    if let (Some(policy), Some(upstream)) = (&mut policy, &upstream) {
        resource::complete(policy, upstream.as_deref());
    }
    if let (Some(policy), Some(methods), Some(value)) = (&policy, &methods, table.get("cors"))
        && policy.key.required
        && methods.contains(&Method::OPTIONS)
    {
        value.fault(
            "OPTIONS is among the route's methods, and a browser's preflight has no key: remove it \
             from methods",
        );
    }
    if let (Some(policy), Some(methods)) = (&policy, &methods) {
        resource::check(&table, policy, methods);
    }
    table.finish();
    Some(RouteConfig {
        name: name?,
        paths: vec![path?],
        methods: methods?,
        upstream: upstream?,
        profile: profile?.to_owned(),
        policy: policy?,
        probe_headers: extras.probe_headers,
        jwks: extras.jwks,
    })
}

/// Adds the layers of the profile below a table, and returns its name. A table with an unknown
/// profile is read further, to report its other faults.
fn above_its_profile<'a>(
    table: Table<'a>,
    context: &RouteContext<'a>,
) -> Option<(Table<'a>, Option<&'a str>)> {
    let profile = match table.get("profile") {
        None => Some(DEFAULT_PROFILE),
        Some(value) => value
            .text("a profile's name such as \"stripe\"")
            .filter(|name| context.profiles.check(name, &value)),
    };
    let table = context.profiles.above_profile(table, profile.unwrap_or(DEFAULT_PROFILE))?;
    Some((table, profile))
}

/// Reads the pattern of the path. `owner` names the owner of the path, for messages.
fn read_path(table: &Table<'_>, owner: &str) -> Option<String> {
    match table.get("path") {
        Some(value) => value.checked(path::EXPECTED, path::parse),
        None => {
            table.report.note_absence(
                &table.span_of("path"),
                format!("{owner} needs a path: {}", path::EXPECTED),
            );
            None
        }
    }
}

/// Reads the name. The default is the path. `kind` names all owners of names, for messages.
fn read_name(table: &Table<'_>, names: &mut Vec<String>, kind: &str) -> Option<String> {
    let (value, expected) = match (table.get("name"), table.get("path")) {
        (Some(name), _) => (name, "a name without control characters"),
        (None, path) => (path.filter(Value::is_text)?, path::EXPECTED),
    };
    let plain = |text: &str| {
        (!text.is_empty() && !text.chars().any(char::is_control)).then(|| text.to_owned())
    };
    let name = value.parsed(expected, plain)?;
    if names.contains(&name) {
        value.fault(format!(
            "a second {kind} is named {name:?}: both would share the same operations; set another \
             name"
        ));
    }
    names.push(name.clone());
    Some(name)
}

/// Describes a method, for messages.
pub(super) const METHOD_EXPECTED: &str = "a method such as \"POST\"";

/// Parses a method that requests can have.
pub(super) fn method(text: &str) -> Option<Method> {
    let known = text != "CONNECT"
        && !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-');
    Method::from_bytes(text.as_bytes()).ok().filter(|_| known)
}

fn read_methods(value: &Value<'_>) -> Option<Vec<Method>> {
    let methods = value.list_of("a list of methods such as [\"POST\"]", METHOD_EXPECTED, method)?;
    if methods.is_empty() {
        value.fault("expected at least one method");
    }
    Some(methods)
}

/// Reads the name of the upstream. Returns `None` if there is no such upstream.
pub(super) fn read_upstream(
    table: &Table<'_>,
    context: &RouteContext<'_>,
) -> Option<Option<String>> {
    let Some(value) = table.get("upstream") else { return Some(None) };
    let name = value.text("the NAME of an [upstreams.NAME]")?;
    if context.upstreams.iter().any(|(other, _)| other == name) {
        return Some(Some(name.to_owned()));
    }
    let near = closest(name, context.upstreams.iter().map(|(other, _)| other.as_str()));
    let help = near.map_or_else(
        || format!("add [upstreams.{name}]"),
        |near| format!("did you mean \"{near}\"?"),
    );
    table.report.note_with_help(
        &value.span,
        format!("there is no upstream named {name:?}"),
        Some(help),
    );
    None
}

fn read_policy(
    table: &Table<'_>,
    name: &str,
    response_timeout: Option<Duration>,
    (announced, context): (&[AnnouncedState], &RouteContext<'_>),
    extras: &mut RouteExtras,
) -> Option<Policy> {
    let mode = table.get("mode").and_then(|value| value.choice(&MODES, &[]));
    let path_case = table.get("case").and_then(|value| value.choice(&CASES, &[]));
    let times = read_times(table, context);
    let key = identity::read_key(table);
    let by_path = identity::read_by_path(table);
    let echo_key = identity::read_echo_key(table, key.as_ref());
    let scope = scope::read(table, context).map(|(rule, jwks)| {
        extras.jwks = jwks;
        rule
    });
    let caller = identity::read_caller(table, scope.as_ref());
    let fingerprint = identity::read_fingerprint(table);
    let on_in_flight = table.get("on_in_flight").and_then(|value| value.choice(&IN_FLIGHT, &[]));
    let on_mismatch = table.get("on_mismatch").and_then(|value| value.choice(&MISMATCH, &[]));
    let mismatch_status = table.get("mismatch_status").and_then(|value| read_client_error(&value));
    let on_uncertain = uncertain::read(table, &mut extras.probe_headers);
    uncertain::warn_of_paths(table, by_path, on_uncertain.as_ref());
    let upstream_key = uncertain::read_upstream_key(table, key.as_ref());
    let uncertain_after =
        table.get("uncertain_after").map_or(response_timeout, |value| value.duration_or_zero());
    let statuses = status::read(table);
    let drop_headers = read_drop_headers(table);
    let redact = read_redact(table);
    let hidden = redact.as_deref().unwrap_or_default();
    let fields = fields::read(table, hidden, context);
    let publish = publish::read(table, hidden, mode, announced, context);
    let on_failure = read_on_failure(table, context);
    let stripe_should_retry = table.get("stripe_should_retry").and_then(|value| value.boolean());
    let errors = table.get("errors").and_then(|value| value.choice(&ERRORS, &[]));
    let explain = table.get("explain").and_then(|value| value.boolean());
    let cors = cors::read(table);
    let resource = resource::read(table);
    let times = times?;
    Some(Policy {
        route: Arc::from(name),
        mode: mode?,
        path_case: path_case?,
        key: key?,
        by_path: by_path?,
        echo_key: echo_key?,
        upstream_key: upstream_key?,
        scope: scope?,
        caller: caller?,
        fingerprint: fingerprint?,
        on_in_flight: on_in_flight?,
        wait_timeout: times.wait_timeout,
        on_mismatch: on_mismatch?,
        mismatch_status: mismatch_status?,
        on_uncertain: on_uncertain?,
        uncertain_after: uncertain_after?,
        statuses: statuses?,
        drop_headers: drop_headers?,
        redact: redact?,
        retention: times.retention,
        tombstone: times.tombstone,
        unsettled_retention: times.unsettled_retention,
        lease: times.lease,
        on_failure: on_failure?,
        stripe_should_retry: stripe_should_retry?,
        errors: errors?,
        explain: explain?,
        cors: cors?,
        fields: fields?,
        publish: publish?,
        resource: resource?,
    })
}

fn read_drop_headers(table: &Table<'_>) -> Option<Vec<HeaderName>> {
    table.get("drop_headers").and_then(|value| {
        value.list_of("a list of header fields such as [\"Set-Cookie\"]", HEADER_EXPECTED, header)
    })
}

fn read_redact(table: &Table<'_>) -> Option<Vec<Pointer>> {
    table.get("redact").and_then(|value| {
        value.list_of(
            "a list of JSON pointers such as [\"/card/number\"]",
            identity::POINTER_EXPECTED,
            Pointer::parse,
        )
    })
}

/// Reads the route's own setting, or else the store's setting.
fn read_on_failure(table: &Table<'_>, context: &RouteContext<'_>) -> Option<OnFailure> {
    let Some(value) = table.get("on_failure") else { return context.on_failure };
    let chosen = value.choice(&ON_FAILURE, &[]);
    if chosen == Some(OnFailure::FailOpen) {
        table.report.warn(&value.span.path, FAIL_OPEN_WARNING);
    }
    chosen
}

fn read_times(table: &Table<'_>, context: &RouteContext<'_>) -> Option<Times> {
    let wait_timeout = table.get("wait_timeout").and_then(|value| value.duration_or_zero());
    let retention = table.get("retention").and_then(|value| value.duration());
    let tombstone = table.get("tombstone").and_then(|value| value.duration_or_zero());
    let unsettled = table
        .get("unsettled_retention")
        .and_then(|value| value.duration().map(|duration| (duration, value)));
    let lease =
        table.get("lease").and_then(|value| value.duration().map(|duration| (duration, value)));
    if let Some((lease, value)) = &lease {
        check_lease(*lease, value, context);
    }
    let (retention, tombstone, (unsettled, value), (lease, _)) =
        (retention?, tombstone?, unsettled?, lease?);
    let needed = retention + tombstone + lease;
    if value.span.given && unsettled < needed {
        value.fault(format!(
            "shorter than retention, tombstone and lease together ({}): an operation with unknown \
             outcome would disappear before a settled one",
            duration_text(needed)
        ));
    }
    let unsettled_retention = unsettled.max(needed);
    Some(Times { wait_timeout: wait_timeout?, retention, tombstone, unsettled_retention, lease })
}

pub(super) fn check_lease(lease: Duration, value: &Value<'_>, context: &RouteContext<'_>) {
    if lease < LEASE_MIN {
        value.fault(
            "shorter than a second: a short pause of the gateway would make every running \
             operation uncertain",
        );
        return;
    }
    let (Some(timeout), timeout_span) = &context.store_timeout else { return };
    if lease <= *timeout * LEASE_TIMEOUTS {
        let at = if value.span.given { &value.span } else { timeout_span };
        let text = format!(
            "the lease ({}) has to be longer than {LEASE_TIMEOUTS} times the store's timeout ({}): \
             nothing is sent unless a third of the lease remains after claiming",
            duration_text(lease),
            duration_text(*timeout)
        );
        value.report.note(at, text);
    }
}

fn read_client_error(value: &Value<'_>) -> Option<StatusCode> {
    StatusCode::from_u16(u16::try_from(value.number(400, 499)?).ok()?).ok()
}

pub(super) fn header(text: &str) -> Option<HeaderName> {
    HeaderName::from_bytes(text.as_bytes()).ok()
}
