//! `onceward run`.

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use super::RunArgs;
use super::supervisor::Supervisor;
use crate::app::Gateway;
use crate::config::{Config, Overrides, Secrets};
use crate::telemetry::init_logs;

/// Runs the gateway until SIGTERM or SIGINT: exit 0 where everything was settled, 1 where not, 2 for a faulty
/// configuration.
pub(super) fn run(args: &RunArgs) -> ExitCode {
    init_logs(args.log_format);
    let (config, secrets) = match load(args) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return super::fail(&format!("can't start: {error}"), 1),
    };
    match runtime.block_on(serve(config, secrets)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => super::fail(&format!("{error:#}"), 1),
    }
}

fn load(args: &RunArgs) -> Result<(Config, Secrets), ExitCode> {
    let file = match &args.config {
        Some(path) => {
            let name = path.display().to_string();
            let text = std::fs::read_to_string(path).map_err(|error| super::fail(&format!("can't read {name}: {error}"), 2))?;
            Some((name, text))
        }
        None => None,
    };
    let overrides = Overrides {
        upstream: args.upstream.clone(),
        listen: args.listen.clone(),
        admin: args.admin.clone(),
        store: args.store.clone(),
    };
    let faulty = |faults: crate::config::Faults| {
        eprint!("{faults}");
        ExitCode::from(2)
    };
    let file = file.as_ref().map(|(name, text)| (name.as_str(), text.as_str()));
    let mut config = Config::load(file, overrides).map_err(faulty)?;
    config.accept_new_identities = args.accept_new_identities;
    let secrets = config.resolve_secrets(|name| std::env::var(name).ok()).map_err(faulty)?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    Ok((config, secrets))
}

async fn serve(config: Config, secrets: Secrets) -> anyhow::Result<bool> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let upstream = config.upstream.url.to_string();
    let supervisor = Supervisor::new(std::env::var_os("NOTIFY_SOCKET"));
    let mut gateway = Gateway::start(config, secrets).await?;
    tracing::info!(listen = %gateway.listen, admin = %gateway.admin, upstream, "serving");
    supervisor.waiting();
    let _signs = supervisor.watched(std::env::var_os("WATCHDOG_USEC"), std::env::var_os("WATCHDOG_PID"));
    let disagreed = async {
        match gateway.agreed().await {
            Ok(()) => {
                supervisor.ready();
                std::future::pending().await
            }
            Err(error) => error,
        }
    };
    let error = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        error = disagreed => Some(error),
    };
    supervisor.stopping();
    gateway.stop();
    let settled = gateway.ended().await;
    error.map_or(Ok(settled), Err)
}
