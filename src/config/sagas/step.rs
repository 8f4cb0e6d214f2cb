//! `[[sagas.steps]]`: the steps of a saga.

use std::collections::BTreeMap;
use std::time::Duration;

use http::{HeaderMap, HeaderName, Method};

use super::order::StepOrder;
use super::templates::{TemplateNames, read_body, read_when};
use super::{is_credential, millis};
use crate::config::admin::SecretSource;
use crate::config::profiles::DEFAULT_PROFILE;
use crate::config::read::{Table, Value};
use crate::config::route::{
    METHOD_EXPECTED, ProbeSetting, RouteContext, StepStatuses, UncertainSetting, check_lease,
    header, method, read_key_header, read_of_step, read_plain_list, read_setting, read_upstream,
};
use crate::config::sinks::{at_most, can_be_set, conceal_others, read_pauses};
use crate::config::upstream::DEFAULT_UPSTREAM;
use crate::saga::plan::{
    Compensation, FieldSource, PlannedProbe, Step, StepRequest, StepRetry, StepSending,
    StepUncertain,
};
use crate::saga::render::is_target;
use crate::template::TemplateKind;

const EXPECTED: &str = "a step, a table under [[sagas.steps]]";
const REQUEST_EXPECTED: &str = "a table such as { method = \"POST\", path = \"/v1/reservations\", \
                                body = '{\"sku\": {{ request.body.sku }}}' }";
const COMPENSATE_EXPECTED: &str = "a table such as { method = \"DELETE\", path = \
                                   \"/v1/reservations/{{ steps.reserve.body.id }}\" }, or \"none\"";
const PATH_EXPECTED: &str =
    "a template of a path such as \"/v1/reservations/{{ steps.reserve.body.id }}\"";
const KEY_EXPECTED: &str = "a table such as { header = \"Idempotency-Key\" }";
const RETRY_EXPECTED: &str = "a table such as { first = \"200ms\", max = \"30s\", attempts = 8 }";

/// Keys of a step that are read as on a route, with the defaults of a route.
const AS_ON_A_ROUTE: [&str; 6] =
    ["release_status", "uncertain_status", "on_uncertain", "probe", "uncertain_after", "lease"];

/// Keys of a step that are read by this module, besides its name and its order.
const STEP_KEYS: [&str; 9] =
    ["request", "compensate", "upstream", "key", "timeout", "success", "failure", "retry", "when"];
/// Keys of a step that are read with the order of all steps.
const ORDER_KEYS: [&str; 3] = ["name", "after", "pivot"];
/// Keys of a request and of a compensation.
const REQUEST_KEYS: [&str; 5] = ["method", "path", "headers", "body", "gone"];

/// The header field in which an upstream gets the key, if the step sets none.
const KEY_HEADER_DEFAULT: &str = "idempotency-key";
/// Limit for one attempt, if the step sets none.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);
/// Longest limit for one attempt: 5 minutes, as for a sink.
const TIMEOUT_MAX: Duration = Duration::from_secs(300);
/// Pauses and attempts, if the step sets none.
const RETRY_FIRST_DEFAULT: Duration = Duration::from_millis(200);
const RETRY_MAX_DEFAULT: Duration = Duration::from_secs(30);
const ATTEMPTS_DEFAULT: u64 = 8;
/// Highest limit for the attempts. The timeout of the saga ends them earlier.
const ATTEMPTS_MAX: u64 = 1_000_000;

/// What the reading of a step needs besides the step's own table.
pub(super) struct StepContext<'c, 'a> {
    pub context: &'c RouteContext<'a>,
    pub names: &'c TemplateNames,
    /// The order of the steps; `None` if it is faulty.
    pub order: Option<&'c StepOrder>,
    /// The position of the step.
    pub at: usize,
}

impl StepContext<'_, '_> {
    /// Returns the names for the templates of the action or of the compensation.
    fn names_in(&self, is_compensation: bool) -> TemplateNames {
        let visible = self.order.map(|order| {
            let steps = self.names.steps.iter().enumerate();
            let visible = steps.filter(|(other, _)| {
                order.is_before(*other, self.at) || is_compensation && *other == self.at
            });
            visible.filter_map(|(_, name)| name.clone()).collect()
        });
        TemplateNames { visible, ..self.names.clone() }
    }
}

/// Reads a step. `name` is `None` if it is faulty.
pub(super) fn read_step<'a>(
    item: &Value<'a>,
    name: Option<&str>,
    step: &StepContext<'_, 'a>,
) -> Option<Step> {
    // Another type than a table has its fault already.
    let table = if item.is_table() { item.table(EXPECTED)? } else { return None };
    for name in ORDER_KEYS.into_iter().chain(AS_ON_A_ROUTE) {
        let _ = table.get(name);
    }
    // A misspelt key may have a credential.
    conceal_others(&table, &[&STEP_KEYS[..], &ORDER_KEYS, &AS_ON_A_ROUTE].concat());
    if let Some(value) = table.get("store_status") {
        value.fault("a step has success and failure instead of store_status");
    }
    let as_route = step.context.profiles.above_profile(item.table(EXPECTED)?, DEFAULT_PROFILE)?;
    let names = step.names_in(false);
    let when = read_when(&table, &names);
    let key = read_key(&table);
    let own = key.as_ref().and_then(|name| HeaderName::try_from(name).ok());
    let action = read_action(&table, &names, own.as_ref());
    let compensation = read_compensation(&table, step, own.as_ref());
    let sending = read_sending(&table, &as_route, key, step.context);
    let retry = read_retry(&table);
    table.finish();
    let order = step.order?;
    Some(Step {
        name: name?.to_owned(),
        after: order.after[step.at].clone(),
        when: when?,
        pivot: order.pivot == Some(step.at),
        action: action?,
        compensation: compensation?,
        sending: sending?,
        retry: retry?,
    })
}

/// Reads the name of the header field for the key, in lower case.
fn read_key(table: &Table<'_>) -> Option<String> {
    let Some(value) = table.get("key") else { return Some(KEY_HEADER_DEFAULT.to_owned()) };
    let key = value.table(KEY_EXPECTED)?;
    let name = match key.get("header") {
        Some(value) => read_key_header(&value).map(|name| name.as_str().to_owned()),
        None => Some(KEY_HEADER_DEFAULT.to_owned()),
    };
    key.finish();
    name
}

fn read_action(
    table: &Table<'_>,
    names: &TemplateNames,
    key: Option<&HeaderName>,
) -> Option<StepRequest> {
    let Some(value) = table.get("request") else {
        let text = format!("a step needs request: {REQUEST_EXPECTED}");
        table.report.note_absence(&table.span_of("request"), text);
        return None;
    };
    let request = value.table(REQUEST_EXPECTED)?;
    let action = read_request(&request, names, key, "a step's request");
    request.finish();
    action
}

fn read_compensation(
    table: &Table<'_>,
    step: &StepContext<'_, '_>,
    key: Option<&HeaderName>,
) -> Option<Compensation> {
    let must_be_undone = step.order.map(|order| order.must_be_undone(step.at));
    let Some(value) = table.get("compensate") else {
        if must_be_undone == Some(true) {
            table.report.note_with_help(
                &table.span(),
                "needs compensate: this step may have to be undone",
                Some(format!("add compensate: {COMPENSATE_EXPECTED} if nothing has to be undone")),
            );
            return None;
        }
        return Some(Compensation::None);
    };
    if value.is_text() {
        return value.choice(&[("none", ())], &[]).map(|()| Compensation::None);
    }
    if must_be_undone == Some(false) {
        table
            .report
            .warn(&value.span.path, "not used: the pivot and the steps after it are never undone");
    }
    let inside = value.table(COMPENSATE_EXPECTED)?;
    let request = read_request(&inside, &step.names_in(true), key, "a compensation");
    let gone = read_plain_list(&inside, "gone");
    inside.finish();
    Some(Compensation::Request { request: request?, gone: gone? })
}

/// Reads method, path, header fields and body. `owner` names the request, for messages.
fn read_request(
    table: &Table<'_>,
    names: &TemplateNames,
    key: Option<&HeaderName>,
    owner: &str,
) -> Option<StepRequest> {
    conceal_others(table, &REQUEST_KEYS);
    let method = match table.get("method") {
        Some(value) => value.parsed(METHOD_EXPECTED, method),
        None => Some(Method::POST),
    };
    let path = match table.get("path") {
        Some(value) => value.checked(PATH_EXPECTED, |text| path_template(text, names)),
        None => {
            let text = format!("{owner} needs path: {PATH_EXPECTED}");
            table.report.note_absence(&table.span_of("path"), text);
            None
        }
    };
    let headers = read_fields(table, names, key, owner);
    let body = read_body(table, names);
    let method = method?.as_str().to_owned();
    Some(StepRequest { method, path: path?, headers: headers?, body: body? })
}

fn path_template(text: &str, names: &TemplateNames) -> Result<String, String> {
    let has_values = text.contains("{{") || text.contains("{%");
    if !text.starts_with('/') || text.starts_with("//") || !has_values && !is_target(text) {
        return Err(format!(
            "expected {PATH_EXPECTED}: it begins with one slash, and has no fragment and no `.` or \
             `..` as a segment"
        ));
    }
    names.template(TemplateKind::Path, text)
}

/// Reads the header fields of a request. A value is a template, or the source of a secret.
fn read_fields(
    table: &Table<'_>,
    names: &TemplateNames,
    key: Option<&HeaderName>,
    owner: &str,
) -> Option<BTreeMap<String, FieldSource>> {
    let Some(value) = table.get("headers") else { return Some(BTreeMap::new()) };
    let (mut fields, mut sound) = (BTreeMap::new(), true);
    for (written, value) in value.table("a table of header fields")?.values() {
        let name = header(&written).filter(|name| can_be_set(name) && Some(name) != key);
        let Some(name) = name else {
            value.conceal();
            value.fault(format!(
                "{written:?} is not the name of a header field that can be set for {owner}"
            ));
            sound = false;
            continue;
        };
        let source = read_field(&value, &name, names, owner);
        sound &= source.is_some();
        if let Some(source) = source
            && fields.insert(name.as_str().to_owned(), source).is_some()
        {
            value.fault("the same header field a second time");
            sound = false;
        }
    }
    sound.then_some(fields)
}

fn read_field(
    value: &Value<'_>,
    name: &HeaderName,
    names: &TemplateNames,
    owner: &str,
) -> Option<FieldSource> {
    const FIELD_EXPECTED: &str = "a template, or a table such as { env = \"STOCK_TOKEN\" }";
    if !value.is_text() {
        if !value.is_table() {
            value.conceal();
        }
        let table = value.table(FIELD_EXPECTED)?;
        let source = SecretSource::read_from(&table, &format!("a field for {owner}"));
        table.finish();
        return Some(field_source(&source?));
    }
    if is_credential(name) {
        value.conceal();
        let help = "put it into an environment variable, and write { env = \"NAME\" }, or into a \
                    file, and write { file = \"FILE\" }";
        value.report.note_with_help(
            &value.span,
            "can be a credential: the plan is stored with each saga, so it names a credential only",
            Some(help.to_owned()),
        );
        return None;
    }
    let template = |text: &str| names.template(TemplateKind::Header, text);
    value.checked(FIELD_EXPECTED, template).map(FieldSource::Text)
}

/// Returns the source of a secret as the plan names it.
fn field_source(source: &SecretSource) -> FieldSource {
    match source {
        SecretSource::Env(name) => FieldSource::Env(name.clone()),
        SecretSource::File(file) => FieldSource::File(file.display().to_string()),
    }
}

/// Reads how a step is sent. `as_route` is the step's table above the defaults of a route.
fn read_sending(
    table: &Table<'_>,
    as_route: &Table<'_>,
    key: Option<String>,
    context: &RouteContext<'_>,
) -> Option<StepSending> {
    let upstream = read_upstream(table, context);
    let response_timeout = context.response_timeout_of(upstream.as_ref());
    let timeout = match table.get("timeout") {
        Some(value) => at_most(&value, TIMEOUT_MAX, "five minutes (5m)"),
        None => Some(TIMEOUT_DEFAULT),
    };
    // The readers of the lists mark these as read in the other table only.
    let (_, _) = (table.get("success"), table.get("failure"));
    let statuses = read_of_step(as_route);
    let on_uncertain = read_uncertain(as_route);
    let uncertain_after =
        as_route.get("uncertain_after").map_or(response_timeout, |value| value.duration_or_zero());
    let lease = as_route.get("lease").and_then(|value| {
        let lease = value.duration()?;
        check_lease(lease, &value, context);
        Some(lease)
    });
    let StepStatuses { success, failure, release, uncertain } = statuses?;
    Some(StepSending {
        upstream: upstream?.unwrap_or_else(|| DEFAULT_UPSTREAM.to_owned()),
        key_header: key?,
        timeout_ms: millis(timeout?),
        success,
        failure,
        release_status: release,
        uncertain_status: uncertain,
        on_uncertain: on_uncertain?,
        uncertain_after_ms: millis(uncertain_after?),
        lease_ms: millis(lease?),
    })
}

fn read_uncertain(table: &Table<'_>) -> Option<StepUncertain> {
    let mut secret = Vec::new();
    let setting = match read_setting(table, &mut secret)? {
        UncertainSetting::Hold => return Some(StepUncertain::Hold),
        UncertainSetting::Forward => return Some(StepUncertain::Forward),
        UncertainSetting::Probe(setting) => setting,
    };
    let ProbeSetting { probe, found, absent } = setting;
    let headers = probe_fields(table, &probe.headers, &secret)?;
    Some(StepUncertain::Probe(PlannedProbe {
        method: probe.method.as_str().to_owned(),
        path: probe.path,
        found,
        absent,
        found_if: probe.found_if.map(|pointer| pointer.to_string()),
        map_status: probe.map_status.map(|status| status.as_u16()),
        headers,
    }))
}

/// Returns the header fields of a probe as the plan has them.
fn probe_fields(
    table: &Table<'_>,
    texts: &HeaderMap,
    secret: &[(HeaderName, SecretSource)],
) -> Option<BTreeMap<String, FieldSource>> {
    let (mut fields, mut sound) = (BTreeMap::new(), true);
    for (name, value) in texts {
        if is_credential(name) {
            let text = format!(
                "{name:?} can be a credential: name it by env or file, because the plan is stored"
            );
            table.report.note(&table.span_of("probe"), text);
            sound = false;
        }
        let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
        fields.insert(name.as_str().to_owned(), FieldSource::Text(text));
    }
    let secret =
        secret.iter().map(|(name, source)| (name.as_str().to_owned(), field_source(source)));
    fields.extend(secret);
    sound.then_some(fields)
}

fn read_retry(table: &Table<'_>) -> Option<StepRetry> {
    let retry = table.table("retry", RETRY_EXPECTED);
    let (first, max) = read_pauses(&retry, RETRY_FIRST_DEFAULT, RETRY_MAX_DEFAULT);
    let attempts = match retry.get("attempts") {
        Some(value) => value.number(1, ATTEMPTS_MAX),
        None => Some(ATTEMPTS_DEFAULT),
    };
    retry.finish();
    Some(StepRetry {
        first_ms: millis(first?),
        max_ms: millis(max?),
        attempts: u32::try_from(attempts?).ok()?,
    })
}
