//! `onceward doctor`.

use std::process::ExitCode;

use super::DoctorArgs;
use crate::app::{self, Grade};
use crate::config::{Config, Overrides};

/// Looks at the store's servers and says what puts records at risk.
pub(super) fn doctor(args: &DoctorArgs) -> ExitCode {
    let mut file = None;
    if let Some(path) = &args.config {
        let name = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => file = Some((name, text)),
            Err(error) => return super::fail(&format!("can't read {name}: {error}"), 2),
        }
    }
    // It isn't asked for, and a file that leaves it to a flag is none the worse.
    let upstream = file.is_none().then(|| "http://127.0.0.1:9000".to_owned());
    let overrides = Overrides { upstream, store: args.store.clone(), ..Overrides::default() };
    let config = match Config::load(file.as_ref().map(|(name, text)| (name.as_str(), text.as_str())), overrides) {
        Ok(config) => config,
        Err(faults) => {
            eprint!("{faults}");
            return ExitCode::from(2);
        }
    };
    println!("store: {}", config.store.url);
    match super::block_on(app::survey(&config)) {
        Ok(Ok(None)) => {
            println!("nothing to look at: it has no server");
            ExitCode::SUCCESS
        }
        Ok(Ok(Some(remarks))) => {
            for remark in &remarks {
                let word = match remark.grade {
                    Grade::Sound => "ok  ",
                    Grade::Unsound => "WARN",
                    Grade::Unknown => "?   ",
                };
                let advice = if remark.advice.is_empty() { String::new() } else { format!("; {}", remark.advice) };
                println!("{word}  {}{advice}", remark.text);
            }
            let sound = remarks.iter().all(|remark| remark.grade == Grade::Sound);
            if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Ok(Err(error)) => super::fail(&format!("the store can't be asked: {error:#}"), 1),
        Err(error) => super::fail(&error, 1),
    }
}
