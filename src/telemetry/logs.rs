//! Logs to standard error, plain or JSON, filtered by `ONCEWARD_LOG` (tracing's directive syntax; default `info`).
//!
//! Danger: a library that logs what it reads would log keys and credentials. So of the libraries inside nothing below
//! `info` is logged, whatever the filter says: h2 shows the targets of malformed requests on `debug`.

use std::io::IsTerminal;

use clap::ValueEnum;
use tracing::{Metadata, level_filters::LevelFilter};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt, registry};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Plain,
    /// One JSON object a line.
    Json,
}

/// Starts logging. Call it once; a second call changes nothing.
pub fn init(format: LogFormat) {
    let filter = EnvFilter::try_from_env("ONCEWARD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Plain => lines.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    // An error here means that a subscriber is already set, as in tests.
    let _ = registry().with(lines).with(filter).with(filter_fn(tells_no_secret)).try_init();
}

/// Whether a line is of this crate, or of a level on which libraries show nothing of what they carry.
fn tells_no_secret(line: &Metadata<'_>) -> bool {
    let own = line.target().strip_prefix(env!("CARGO_CRATE_NAME"));
    own.is_some_and(|rest| rest.is_empty() || rest.starts_with("::")) || *line.level() <= LevelFilter::INFO
}
