//! Tests of configurations.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;

mod brokers;
mod files;
mod refusals;
mod rendering;
mod resources;
mod sagas;
mod sinks;
mod values;

/// Loads a file that has no upstream of its own.
fn load(text: &str) -> Result<Config, Faults> {
    let upstream = Some("http://127.0.0.1:9000".to_owned());
    Config::load(Some(("test.toml", text)), Overrides { upstream, ..Overrides::default() })
}

/// Loads a file with one route. `lines` are the lines under its `[[routes]]`.
fn load_route(lines: &str) -> Result<Config, Faults> {
    load(&format!("[[routes]]\npath = \"/p\"\n{lines}"))
}

fn route(lines: &str) -> RouteConfig {
    load_route(lines).unwrap_or_else(|faults| panic!("{faults}")).routes.remove(0)
}

/// Returns the only fault of a text, as `key: text`.
fn fault_of(loaded: Result<Config, Faults>) -> String {
    let faults = loaded.expect_err("accepted").0;
    assert_eq!(faults.len(), 1, "{}", Faults(faults.clone()));
    format!("{}: {}", faults[0].key, faults[0].text)
}
