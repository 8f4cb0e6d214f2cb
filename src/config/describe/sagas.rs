//! Description of sagas.

use std::collections::BTreeMap;
use std::fmt::{Result, Write};
use std::time::Duration;

use crate::config::SagaConfig;
use crate::config::route::key_location;
use crate::config::texts::duration_text;
use crate::engine::OnInFlight;
use crate::saga::plan::{
    Compensation, FieldSource, Plan, Step, StepRequest, StepSending, StepUncertain,
};

/// Describes all sagas. Secrets are named, not shown.
pub(super) fn write_sagas(text: &mut String, sagas: &[SagaConfig]) -> Result {
    if sagas.is_empty() {
        return Ok(());
    }
    writeln!(text, "sagas     (completed or undone as a whole)")?;
    for (index, saga) in sagas.iter().enumerate() {
        write_saga(text, index + 1, saga)?;
    }
    Ok(())
}

fn write_saga(text: &mut String, number: usize, saga: &SagaConfig) -> Result {
    let SagaConfig { plan, route, keep_headers } = saga;
    let methods: Vec<&str> = route.methods.iter().map(http::Method::as_str).collect();
    let policy = &route.policy;
    writeln!(text, "  {number}. {:?} {} {}", route.name, methods.join(","), route.paths.join(" "))?;
    let duplicates = match policy.on_in_flight {
        OnInFlight::Wait => "duplicates wait",
        OnInFlight::Reject => "duplicates are refused",
    };
    writeln!(
        text,
        "     profile {}, key {} (required), kept {}, timeout {}, clients wait {}, {duplicates}",
        route.profile,
        key_location(&policy.key),
        duration_text(policy.retention),
        millis_text(plan.timeout_ms),
        duration_text(policy.wait_timeout)
    )?;
    if !keep_headers.is_empty() {
        let names: Vec<&str> = keep_headers.iter().map(http::HeaderName::as_str).collect();
        writeln!(text, "     keeps headers {}", names.join(", "))?;
    }
    let failed = plan
        .failed
        .as_ref()
        .map_or("a problem document".to_owned(), |failed| failed.status.to_string());
    writeln!(text, "     answers {} if completed, {failed} if failed", plan.answer.status)?;
    for (at, step) in plan.steps.iter().enumerate() {
        write_step(text, plan, at, step)?;
    }
    for rule in policy.publish.iter().flat_map(|publish| &publish.rules) {
        super::write_rule(text, rule)?;
    }
    Ok(())
}

fn write_step(text: &mut String, plan: &Plan, at: usize, step: &Step) -> Result {
    let StepSending { upstream, timeout_ms, key_header, .. } = &step.sending;
    let pivot = if step.pivot { ", pivot" } else { "" };
    let names = step.after.iter().filter_map(|at| plan.steps.get(*at));
    let names: Vec<&str> = names.map(|step| step.name.as_str()).collect();
    let begins =
        if names.is_empty() { "at once".to_owned() } else { format!("after {}", names.join(", ")) };
    let when = step.when.as_ref().map(|when| format!(", if {when}")).unwrap_or_default();
    writeln!(text, "     {}. {}: {begins}{pivot}{when}", at + 1, step.name)?;
    let StepRequest { method, path, headers, .. } = &step.action;
    writeln!(text, "        {method} {path} to {upstream}{}", fields_text(headers))?;
    writeln!(text, "        key {key_header}, timeout {}", millis_text(*timeout_ms))?;
    match &step.compensation {
        Compensation::None => writeln!(text, "        never undone")?,
        Compensation::Request { request, gone } => {
            let gone = match gone.as_slice() {
                [] => String::new(),
                statuses => format!(", gone {}", statuses.join(", ")),
            };
            writeln!(text, "        undone by {}{gone}", request_text(request))?;
        }
    }
    write_statuses(text, &step.sending)?;
    let uncertain = match &step.sending.on_uncertain {
        StepUncertain::Hold => "held".to_owned(),
        StepUncertain::Forward => "sent again".to_owned(),
        StepUncertain::Probe(probe) => {
            format!("probed by {} {}{}", probe.method, probe.path, fields_text(&probe.headers))
        }
    };
    writeln!(
        text,
        "        uncertain outcomes are {uncertain}; {} attempts if nothing was done",
        step.retry.attempts
    )
}

fn write_statuses(text: &mut String, sending: &StepSending) -> Result {
    writeln!(text, "        statuses: success {}", sending.success.join(", "))?;
    for (name, list) in [("failure", &sending.failure), ("release", &sending.release_status)] {
        if !list.is_empty() {
            writeln!(text, "                  {name} {}", list.join(", "))?;
        }
    }
    let all = [sending.uncertain_status.as_slice(), &["all others".to_owned()]].concat();
    writeln!(text, "                  uncertain {}", all.join(", "))
}

/// Describes a request. A literal header field may be private, so only names are shown.
fn request_text(request: &StepRequest) -> String {
    format!("{} {}{}", request.method, request.path, fields_text(&request.headers))
}

fn fields_text(fields: &BTreeMap<String, FieldSource>) -> String {
    let field = |(name, source): (&String, &FieldSource)| match source {
        FieldSource::Text(_) => name.clone(),
        FieldSource::Env(variable) => format!("{name} (from {variable})"),
        FieldSource::File(file) => format!("{name} (from the file {file})"),
    };
    let fields: Vec<String> = fields.iter().map(field).collect();
    if fields.is_empty() { String::new() } else { format!(" with {}", fields.join(", ")) }
}

fn millis_text(millis: u64) -> String {
    duration_text(Duration::from_millis(millis))
}
