//! Description of a configuration, as `onceward check` prints it.

use std::fmt::Write;

use http::HeaderName;

use super::route::key_location;
use super::store::StoreFormat;
use super::texts::duration_text;
use super::{Config, RouteConfig, SinkConfig, StoreUrl, UpstreamConfig};
use crate::engine::{
    Mode, OnFailure, Origins, PublishRule, ResourceRule, StatusRules, Verdict, VersionSource,
};
use crate::record::AnnouncedState;

mod sagas;

/// Describes a configuration. Passwords are masked.
pub(super) fn describe(config: &Config) -> String {
    let mut text = String::new();
    // Writing to a string can't fail.
    let _ = write_all(&mut text, config);
    text
}

fn write_all(text: &mut String, config: &Config) -> std::fmt::Result {
    let announced = if config.proxy_protocol {
        ", trusted proxies announce clients (PROXY protocol)"
    } else {
        ""
    };
    writeln!(text, "listen    {}{announced}", config.listen)?;
    match config.admin_tokens.len() {
        0 => writeln!(text, "admin     {}, without tokens", config.admin)?,
        1 => writeln!(text, "admin     {}, 1 token", config.admin)?,
        many => writeln!(text, "admin     {}, {many} tokens", config.admin)?,
    }
    write_upstream(text, "upstream", &config.upstream)?;
    for upstream in &config.upstreams {
        write_upstream(text, &format!("upstream  {}:", upstream.name), upstream)?;
    }
    let on_failure = match config.store.on_failure {
        OnFailure::FailClosed => "fail_closed",
        OnFailure::FailOpen => "fail_open",
    };
    let format = match config.store.format {
        StoreFormat::One => "",
        StoreFormat::Two => ", format 2",
        StoreFormat::Three => ", format 3",
    };
    let timeout = duration_text(config.store.timeout);
    writeln!(
        text,
        "store     {}, {on_failure}, timeout {timeout}{format}",
        config.store.location()
    )?;
    if let Some(keep) = config.log_keep {
        writeln!(
            text,
            "log       of every change, kept for {}; {}",
            duration_text(keep),
            read_model_text(config)
        )?;
    }
    if let Some(log) = &config.access_log {
        writeln!(text, "requests  logged to {}", log.path.display())?;
    }
    if let Some(tracing) = &config.tracing {
        writeln!(
            text,
            "traces    exported to {}{}, ratio {} of those that begin here",
            tracing.url, tracing.path, tracing.sample_ratio
        )?;
    }
    for sink in &config.sinks {
        write_sink(text, sink)?;
    }
    if !config.outbox.relay {
        writeln!(text, "outbox    delivered by other processes")?;
    }
    writeln!(text, "routes    (the first match wins; what matches none passes through)")?;
    for (index, route) in config.routes.iter().enumerate() {
        write_route(text, index + 1, route)?;
    }
    sagas::write_sagas(text, &config.sagas)
}

/// Describes the location of the read model.
fn read_model_text(config: &Config) -> String {
    let Some(model) = &config.read_model else { return "no read model".to_owned() };
    let place = match (&model.path, &config.store.url) {
        (Some(path), _) => path.display().to_string(),
        (None, StoreUrl::File(_)) => "the store's folder".to_owned(),
        (None, StoreUrl::Memory) => "memory".to_owned(),
        (None, _) => "$STATE_DIRECTORY, or else memory".to_owned(),
    };
    let by = if model.project { "" } else { ", updated by onceward projector" };
    format!("read model in {place}{by}")
}

fn write_upstream(text: &mut String, label: &str, upstream: &UpstreamConfig) -> std::fmt::Result {
    writeln!(
        text,
        "{label:<9} {}, response within {}",
        upstream.url,
        duration_text(upstream.response_timeout)
    )
}

fn write_sink(text: &mut String, sink: &SinkConfig) -> std::fmt::Result {
    let settings = &sink.settings;
    let rate = match settings.rate {
        0 => String::new(),
        rate => format!(", at most {rate} attempts per second"),
    };
    let attempts = match settings.retry.attempts {
        0 => String::new(),
        1 => " or 1 attempt".to_owned(),
        attempts => format!(" or {attempts} attempts"),
    };
    writeln!(
        text,
        "sink      {}: {} {}, timeout {}{rate}, given up after {}{attempts}",
        settings.name,
        settings.target.kind(),
        sink.location(),
        duration_text(settings.timeout),
        duration_text(settings.retry.age)
    )
}

fn write_rule(text: &mut String, rule: &PublishRule) -> std::fmt::Result {
    let state = |state: &AnnouncedState| match state {
        AnnouncedState::Completed if !rule.statuses.is_empty() => {
            let statuses: Vec<String> = rule.statuses.iter().copied().map(String::from).collect();
            format!("completed ({})", statuses.join(", "))
        }
        state => state.name().to_owned(),
    };
    let states: Vec<String> = rule.on.iter().map(state).collect();
    let kind = rule.kind.as_deref().map(|kind| format!(" as {kind}")).unwrap_or_default();
    writeln!(text, "     publishes {} to {}{kind}", states.join(", "), rule.to.join(", "))
}

fn write_route(text: &mut String, number: usize, route: &RouteConfig) -> std::fmt::Result {
    let methods: Vec<&str> = route.methods.iter().map(http::Method::as_str).collect();
    let mode = match route.policy.mode {
        Mode::Enforce => "enforce",
        Mode::Shadow => "shadow",
        Mode::Off => "off",
    };
    let need = if route.policy.key.required { "required" } else { "optional" };
    let on_each_path = if route.policy.by_path { " on each path" } else { "" };
    let upstream = route.upstream.as_deref().unwrap_or(super::DEFAULT_UPSTREAM);
    writeln!(text, "  {number}. {:?} {} {}", route.name, methods.join(","), route.paths.join(" "))?;
    writeln!(
        text,
        "     {mode}, profile {}, key {} ({need}){on_each_path}, kept {}, upstream {upstream}",
        route.profile,
        key_location(&route.policy.key),
        duration_text(route.policy.retention)
    )?;
    if let Some(rule) = &route.policy.resource {
        write_resource(text, rule)?;
    }
    write_statuses(text, &route.policy.statuses)?;
    let fields: Vec<&str> = route.policy.fields.iter().map(|field| field.name.as_str()).collect();
    if !fields.is_empty() {
        writeln!(text, "     fields {}", fields.join(", "))?;
    }
    for rule in route.policy.publish.iter().flat_map(|publish| &publish.rules) {
        write_rule(text, rule)?;
    }
    if let Some(cors) = &route.policy.cors {
        let origins = match &cors.origins {
            Origins::Any => "every origin".to_owned(),
            Origins::Listed(origins) => origins
                .iter()
                .filter_map(|origin| origin.to_str().ok())
                .collect::<Vec<_>>()
                .join(", "),
        };
        let credentials = if cors.credentials { ", with credentials" } else { "" };
        writeln!(text, "     cors {origins}{credentials}")?;
    }
    Ok(())
}

fn write_resource(text: &mut String, rule: &ResourceRule) -> std::fmt::Result {
    let versions = match &rule.versions {
        VersionSource::Hash => "by hash".to_owned(),
        VersionSource::Member(pointer) => format!("by body {pointer}"),
        VersionSource::Upstream => {
            return writeln!(text, "     resource with the upstream's own versions");
        }
    };
    let per: Vec<&str> = rule.per.iter().map(HeaderName::as_str).collect();
    let per = if per.is_empty() { String::new() } else { format!(", per {}", per.join(", ")) };
    writeln!(
        text,
        "     resource with versions {versions} of at most {} bytes, read as {}{per}",
        rule.bytes,
        rule.accept.to_str().unwrap_or("?")
    )
}

/// Writes the effective status lists, which are merged from the route, its profile and the
/// defaults.
fn write_statuses(text: &mut String, statuses: &StatusRules) -> std::fmt::Result {
    let listed = |verdict| statuses.listed(verdict).join(", ");
    writeln!(text, "     statuses: store {}", listed(Verdict::Store))?;
    writeln!(text, "               release {}", listed(Verdict::Release))?;
    let uncertain = [listed(Verdict::Uncertain), "all others".to_owned()]
        .into_iter()
        .filter(|list| !list.is_empty());
    writeln!(text, "               uncertain {}", uncertain.collect::<Vec<_>>().join(", "))
}
