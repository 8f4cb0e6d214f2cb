//! `onceward demo`.

use std::process::ExitCode;

use crate::telemetry::{LogFormat, init_logs};

/// Tells the story of a double charge; exit 0 where it went as promised.
pub(super) fn demo(once: bool) -> ExitCode {
    // Log lines between the tables would only hide them; who wants them asks.
    if std::env::var_os("ONCEWARD_LOG").is_some()
        && let Err(error) = init_logs(LogFormat::Plain)
    {
        return super::fail(&format!("can't start: {error}"), 1);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return super::fail(&format!("can't start: {error}"), 1),
    };
    let told = runtime.block_on(async {
        super::ignore_user_signals()?;
        crate::demo::tell(once).await
    });
    match told {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => super::fail(&format!("{error:#}"), 1),
    }
}
