//! `onceward run`.

use std::process::ExitCode;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::RunArgs;
use super::supervisor::Supervisor;
use crate::admin::ReloadRequest;
use crate::app::{Gateway, ReloadError};
use crate::config::{Config, Overrides, Secrets};
use crate::telemetry::{init_logs, print_error};

/// Runs the gateway until SIGTERM or SIGINT: exit 0 where everything was settled, 1 where not, 2 for a faulty
/// configuration.
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

/// Reads the configuration and the secrets that it names: at the start, and whenever it is told to.
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
    let _signs =
        supervisor.watched(std::env::var_os("WATCHDOG_USEC"), std::env::var_os("WATCHDOG_PID"));
    let mut agreed = std::pin::pin!(gateway.agreed());
    let mut ready = false;
    let error = loop {
        let asked = tokio::select! {
            biased;
            told = signals.next() => match told {
                Told::End => break None,
                Told::Reload => None,
            },
            agreed = &mut agreed, if !ready => match agreed {
                Ok(()) => {
                    ready = true;
                    supervisor.ready();
                    continue;
                }
                Err(error) => break Some(error),
            },
            asked = gateway.reload_asked() => Some(asked),
        };
        supervisor.reloading();
        tokio::select! {
            biased;
            // A store that doesn't answer must not keep the process from ending.
            () = signals.end() => break None,
            () = reload(&gateway, args, asked) => {}
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

/// Reads the configuration again, and says what became of it: to who asked, if it was not a signal, and in the log.
async fn reload(gateway: &Gateway, args: &RunArgs, asked: Option<ReloadRequest>) {
    let by = asked.as_ref().map_or("SIGHUP", |asked| &asked.operator).to_owned();
    let result = gateway.reload(load(args)).await.map_err(|error| error.sentences());
    match &result {
        Ok(()) => tracing::info!(by, "the configuration was read again and is in force"),
        Err(faults) => {
            for fault in faults {
                tracing::error!(
                    by,
                    "the configuration that was read is not taken, and the one in force stays: {fault}"
                );
            }
        }
    }
    if let Some(asked) = asked {
        asked.answer(result);
    }
}

/// What a signal asks for.
enum Told {
    End,
    Reload,
}

/// The signals that the process acts on.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// From now on: what comes before would end the process.
    fn catch() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits until the process is to end.
    async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// What the next one asks for.
    async fn next(&mut self) -> Told {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => Told::End,
            _ = self.interrupt.recv() => Told::End,
            _ = self.hangup.recv() => Told::Reload,
        }
    }
}
