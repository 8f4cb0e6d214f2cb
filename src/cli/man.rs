//! `onceward man DIR`.

use std::path::Path;
use std::process::ExitCode;

/// Writes manual pages for the command and each of its subcommands.
pub(super) fn write(command: &clap::Command, dir: &Path) -> ExitCode {
    let written =
        std::fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(command.clone(), dir));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            super::fail(&format!("can't write manual pages to {}: {error}", dir.display()), 1)
        }
    }
}
