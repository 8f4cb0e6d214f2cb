//! `onceward run`.

use std::process::ExitCode;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::RunArgs;
use super::supervisor::Supervisor;
use crate::admin::ReloadRequest;
use crate::app::{Gateway, ReloadError};
use crate::config::{Config, Overrides, Secrets};
use crate::telemetry::{init_logs, print_error};

/// Runs the gateway until SIGTERM or SIGINT. The exit code is 0 if all requests were settled, 1 if
/// not, and 2 for a faulty configuration.
pub(super) fn run(args: &RunArgs) -> ExitCode {
    if let Err(error) = init_logs(args.log_format) {
        return super::fail(&format!("can't start: {error}"), 1);
    }
    let (config, secrets) = match load(args) {
        Ok(loaded) => loaded,
        Err(ReloadError::Faulty(faults)) => {
            print_error(&faults.to_string());
            return ExitCode::from(2);
        }
        Err(error) => return super::fail(&error, 2),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return super::fail(&format!("can't start: {error}"), 1),
    };
    match runtime.block_on(serve(config, secrets, args)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => super::fail(&format!("{error:#}"), 1),
    }
}

/// Reads the configuration and its secrets, at the start and for every reload.
fn load(args: &RunArgs) -> Result<(Config, Secrets), ReloadError> {
    let file = match &args.config {
        Some(path) => {
            let name = path.display().to_string();
            let read = std::fs::read_to_string(path);
            let text = read.map_err(|error| ReloadError::Unreadable {
                file: name.clone(),
                why: error.to_string(),
            })?;
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
    let file = file.as_ref().map(|(name, text)| (name.as_str(), text.as_str()));
    let mut config = Config::load(file, overrides)?;
    config.accept_new_identities = args.accept_new_identities;
    let secrets = config.resolve_secrets(|name| std::env::var(name).ok())?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    Ok((config, secrets))
}

async fn serve(config: Config, secrets: Secrets, args: &RunArgs) -> anyhow::Result<bool> {
    super::ignore_user_signals()?;
    let mut signals = Signals::catch()?;
    let upstream = config.upstream.url.to_string();
    let supervisor = Supervisor::new(std::env::var_os("NOTIFY_SOCKET"));
    let mut gateway = Gateway::start(config, secrets).await?;
    tracing::info!(listen = %gateway.listen, admin = %gateway.admin, upstream, "serving");
    supervisor.waiting();
    let _watchdog =
        supervisor.watched(std::env::var_os("WATCHDOG_USEC"), std::env::var_os("WATCHDOG_PID"));
    let mut checked = std::pin::pin!(gateway.identities_checked());
    let mut ready = false;
    let error = loop {
        let request = tokio::select! {
            biased;
            action = signals.next() => match action {
                SignalAction::End => break None,
                SignalAction::Reload => None,
            },
            checked = &mut checked, if !ready => match checked {
                Ok(()) => {
                    ready = true;
                    supervisor.ready();
                    continue;
                }
                Err(error) => break Some(error),
            },
            request = gateway.reload_request() => Some(request),
        };
        supervisor.reloading();
        tokio::select! {
            biased;
            // A signal must end the process even while the store does not answer.
            () = signals.end() => break None,
            () = reload(&gateway, args, request) => {}
        }
        if ready {
            supervisor.ready();
        } else {
            supervisor.waiting();
        }
    };
    supervisor.stopping();
    gateway.stop();
    let settled = gateway.ended().await;
    error.map_or(Ok(settled), Err)
}

/// Reads the configuration again, logs the result, and sends it to the operator who requested the
/// reload.
async fn reload(gateway: &Gateway, args: &RunArgs, request: Option<ReloadRequest>) {
    let by = request.as_ref().map_or("SIGHUP", |request| &request.operator).to_owned();
    let result = gateway.reload(load(args)).await.map_err(|error| error.sentences());
    match &result {
        Ok(()) => tracing::info!(by, "configuration reloaded"),
        Err(faults) => {
            for fault in faults {
                tracing::error!(
                    by,
                    "configuration refused; the current one stays in force: {fault}"
                );
            }
        }
    }
    if let Some(request) = request {
        request.answer(result);
    }
}

/// The action that a signal requests.
enum SignalAction {
    End,
    Reload,
}

/// The signals that the process handles.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Installs the handlers. Before that, a signal ends the process at once.
    fn catch() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for a signal that ends the process.
    async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Returns the action of the next signal.
    async fn next(&mut self) -> SignalAction {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => SignalAction::End,
            _ = self.interrupt.recv() => SignalAction::End,
            _ = self.hangup.recv() => SignalAction::Reload,
        }
    }
}
