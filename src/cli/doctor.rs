//! `onceward doctor`.

use std::process::ExitCode;

use super::DoctorArgs;
use crate::app::{self, Grade, Remark};
use crate::config::{Config, Overrides};
use crate::telemetry::{escape, print_error};

/// Inspects the store's servers, and prints the risks to records.
pub(super) fn doctor(args: &DoctorArgs) -> ExitCode {
    let mut file = None;
    if let Some(path) = &args.config {
        let name = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => file = Some((name, text)),
            Err(error) => return super::fail(&format!("can't read {name}: {error}"), 2),
        }
    }
    // The upstream is not contacted, but a configuration needs one.
    let upstream = file.is_none().then(|| "http://127.0.0.1:9000".to_owned());
    let overrides = Overrides { upstream, store: args.store.clone(), ..Overrides::default() };
    let config = match Config::load(
        file.as_ref().map(|(name, text)| (name.as_str(), text.as_str())),
        overrides,
    ) {
        Ok(config) => config,
        Err(faults) => {
            print_error(&faults.to_string());
            return ExitCode::from(2);
        }
    };
    let _ = super::print_text(&format!("store: {}", config.store.location()));
    let servers = match super::block_on(app::survey(&config)) {
        Ok(Ok(remarks)) => remarks,
        Ok(Err(error)) => {
            return super::fail(&format!("the store can't be inspected: {error:#}"), 1);
        }
        Err(error) => return super::fail(&error, 1),
    };
    let sound = print_servers(servers.as_deref());
    // Without a file, the routes are unknown, so there is nothing to compare.
    let agreed = file.is_none() || check_identities(&config);
    if sound && agreed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints the remarks about the servers. Returns whether all servers are sound.
fn print_servers(remarks: Option<&[Remark]>) -> bool {
    match remarks {
        None => {
            let _ = super::print_text("nothing to inspect: the store has no server");
            true
        }
        Some(remarks) => {
            for remark in remarks {
                let word = match remark.grade {
                    Grade::Sound => "ok  ",
                    Grade::Unsound | Grade::Limited => "WARN",
                    Grade::Unknown => "?   ",
                };
                let advice = if remark.advice.is_empty() {
                    String::new()
                } else {
                    format!("; {}", remark.advice)
                };
                let _ = super::print_text(&escape(&format!("{word}  {}{advice}", remark.text)));
            }
            remarks.iter().all(|remark| remark.grade == Grade::Sound)
        }
    }
}

/// Compares the configuration's identities with the ones in the store, and prints the differences.
/// Returns whether they agree.
fn check_identities(config: &Config) -> bool {
    let secrets = match config.resolve_secrets(|name| std::env::var(name).ok()) {
        Ok(secrets) => secrets,
        Err(faults) => {
            let _ = super::print_text("?     identities can't be compared without the secrets");
            print_error(&faults.to_string());
            return false;
        }
    };
    match super::block_on(app::identity_changes(config, &secrets)) {
        Ok(Ok(None)) => _ = super::print_text("ok    the store keeps no identities yet"),
        Ok(Ok(Some(changes))) if changes.is_empty() => {
            _ = super::print_text("ok    the store's identities agree with this configuration");
        }
        Ok(Ok(Some(changes))) => {
            for change in &changes {
                let _ = super::print_text(&escape(&format!("WARN  {change}")));
            }
            return false;
        }
        Ok(Err(error)) => {
            let _ = super::print_text(&format!("?     identities can't be compared: {error:#}"));
            return false;
        }
        Err(error) => {
            let _ = super::print_text(&format!("?     identities can't be compared: {error}"));
            return false;
        }
    }
    true
}
