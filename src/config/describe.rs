//! A configuration in words, as `onceward check` prints it.

use std::fmt::Write;

use humantime::format_duration;

use super::route::key_place;
use super::{Config, Route, Upstream};
use crate::engine::{Mode, OnFailure};

/// What is configured, for people. Passwords are masked.
pub(super) fn describe(config: &Config) -> String {
    let mut text = String::new();
    // Writing to a string can't fail.
    let _ = write_all(&mut text, config);
    text
}

fn write_all(text: &mut String, config: &Config) -> std::fmt::Result {
    writeln!(text, "listen    {}", config.listen)?;
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
    writeln!(text, "store     {}, {on_failure}, timeout {}", config.store.url, format_duration(config.store.timeout))?;
    writeln!(text, "routes    (the first match wins; what matches none passes through)")?;
    for (index, route) in config.routes.iter().enumerate() {
        write_route(text, index + 1, route)?;
    }
    Ok(())
}

fn write_upstream(text: &mut String, label: &str, upstream: &Upstream) -> std::fmt::Result {
    writeln!(text, "{label:<9} {}, response within {}", upstream.url, format_duration(upstream.response_timeout))
}

fn write_route(text: &mut String, number: usize, route: &Route) -> std::fmt::Result {
    let methods: Vec<&str> = route.methods.iter().map(http::Method::as_str).collect();
    let mode = match route.policy.mode {
        Mode::Enforce => "enforce",
        Mode::Shadow => "shadow",
        Mode::Off => "off",
    };
    let need = if route.policy.key.required { "required" } else { "optional" };
    let upstream = route.upstream.as_deref().unwrap_or(super::DEFAULT_UPSTREAM);
    writeln!(text, "  {number}. {:?} {} {}", route.name, methods.join(","), route.paths.join(" "))?;
    writeln!(
        text,
        "     {mode}, profile {}, key {} ({need}), kept {}, upstream {upstream}",
        route.profile,
        key_place(&route.policy.key),
        format_duration(route.policy.retention)
    )
}
