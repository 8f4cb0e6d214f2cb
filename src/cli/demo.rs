//! `onceward demo`.

use std::process::ExitCode;

use crate::telemetry::{LogFormat, init_logs};

/// Runs the demo. The exit code is 0 if no order was charged twice through the gateway.
pub(super) fn demo(once: bool) -> ExitCode {
    // Log lines between the tables would only distract. ONCEWARD_LOG enables them.
    if std::env::var_os("ONCEWARD_LOG").is_some()
        && let Err(error) = init_logs(LogFormat::Plain)
    {
        return super::fail(&format!("can't start: {error}"), 1);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return super::fail(&format!("can't start: {error}"), 1),
    };
    let result = runtime.block_on(async {
        super::ignore_user_signals()?;
        crate::demo::run(once).await
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => super::fail(&format!("{error:#}"), 1),
    }
}
