//! `onceward check`.

use std::path::Path;
use std::process::ExitCode;

use crate::config::{Config, Overrides};
use crate::telemetry::{escape, print_error};

/// Validates a file, and prints a summary of the configuration.
pub(super) fn check(file: &Path, upstream: Option<String>) -> ExitCode {
    let name = file.display().to_string();
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) => return super::fail(&format!("can't read {name}: {error}"), 2),
    };
    let read = Config::load(Some((&name, &text)), Overrides { upstream, ..Overrides::default() });
    match read.and_then(|config| config.check_client_certificates().map(|()| config)) {
        Ok(config) => {
            let _ = super::print_text(config.describe().trim_end());
            for warning in &config.warnings {
                print_error(&format!("warning: {warning}"));
            }
            super::print_text(&format!("{} is valid", escape(&name)))
        }
        Err(faults) => {
            print_error(&faults.to_string());
            ExitCode::from(2)
        }
    }
}
