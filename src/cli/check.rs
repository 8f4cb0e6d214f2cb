//! `onceward check`.

use std::path::Path;
use std::process::ExitCode;

use crate::config::{Config, Overrides};

/// Validates a file and says what it means.
pub(super) fn check(file: &Path, upstream: Option<String>) -> ExitCode {
    let name = file.display().to_string();
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) => return super::fail(&format!("can't read {name}: {error}"), 2),
    };
    match Config::load(Some((&name, &text)), Overrides { upstream, ..Overrides::default() }) {
        Ok(config) => {
            print!("{}", config.describe());
            for warning in &config.warnings {
                eprintln!("warning: {warning}");
            }
            println!("{name} is valid");
            ExitCode::SUCCESS
        }
        Err(faults) => {
            eprint!("{faults}");
            ExitCode::from(2)
        }
    }
}
