//! `onceward demo`.

use std::process::ExitCode;

pub(super) fn demo(_once: bool) -> ExitCode {
    ExitCode::FAILURE
}
