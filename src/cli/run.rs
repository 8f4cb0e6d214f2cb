//! `onceward run` and `onceward relay`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use clap::builder::FalseyValueParser;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::supervisor::Supervisor;
use crate::admin::ReloadRequest;
use crate::app::{Gateway, ReloadError, Serve};
use crate::config::{Config, Overrides, Secrets, StoreUrl};
use crate::telemetry::{LogFormat, init_logs, print_error};

/// Arguments of `onceward run`. Flags override environment variables, these override the file, and
/// the file overrides the defaults.
#[derive(Debug, Clone, Args)]
pub(super) struct RunArgs {
    /// The configuration file. It is not needed with --upstream.
    #[arg(long, env = "ONCEWARD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The API to protect, for example http://127.0.0.1:9000.
    #[arg(long, env = "ONCEWARD_UPSTREAM", value_name = "URL")]
    upstream: Option<String>,
    /// The address for clients [default: 127.0.0.1:8080].
    #[arg(long, env = "ONCEWARD_LISTEN", value_name = "ADDR")]
    listen: Option<String>,
    /// The address for operators and probes [default: 127.0.0.1:8081].
    #[arg(long, env = "ONCEWARD_ADMIN", value_name = "ADDR")]
    admin: Option<String>,
    /// The store of the records: file:DIR, redis://, rediss://, redis+cluster://,
    /// redis+sentinel://, unix:///path (each with ?namespace=NAME), memory: [default:
    /// file:onceward-data].
    #[arg(long, env = "ONCEWARD_STORE", value_name = "URL", hide_env_values = true)]
    store: Option<String>,
    /// Start although the store has other identities of operations (routes were renamed, scopes or
    /// hashing secrets changed). Danger: duplicates of requests that were answered before run
    /// again.
    #[arg(long, env = "ONCEWARD_ACCEPT_NEW_IDENTITIES", value_parser = FalseyValueParser::new())]
    accept_new_identities: bool,
    /// The format of log lines. ONCEWARD_LOG sets the filter (for example `info` or
    /// `onceward=debug`).
    #[arg(long, env = "ONCEWARD_LOG_FORMAT", value_enum, default_value = "plain")]
    log_format: LogFormat,
}

/// Arguments of `onceward relay`.
#[derive(Debug, Args)]
pub(super) struct RelayArgs {
    /// The configuration file, that of the gateways or another one with the same routes.
    #[arg(long, env = "ONCEWARD_CONFIG", value_name = "FILE")]
    config: PathBuf,
    /// The API, if the gateways get it as a flag and the file does not contain it.
    #[arg(long, env = "ONCEWARD_UPSTREAM", value_name = "URL")]
    upstream: Option<String>,
    /// The address for operators and probes, instead of the one in the file.
    #[arg(long, env = "ONCEWARD_ADMIN", value_name = "ADDR")]
    admin: Option<String>,
    /// The store, instead of the one in the file.
    #[arg(long, env = "ONCEWARD_STORE", value_name = "URL", hide_env_values = true)]
    store: Option<String>,
    /// The format of log lines. ONCEWARD_LOG sets the filter.
    #[arg(long, env = "ONCEWARD_LOG_FORMAT", value_enum, default_value = "plain")]
    log_format: LogFormat,
}

/// Runs the gateway until SIGTERM or SIGINT. The exit code is 0 if all requests were settled, 1 if
/// not, and 2 for a faulty configuration.
pub(super) fn run(args: &RunArgs) -> ExitCode {
    run_as(args, Serve::ClientsAndOperators)
}

/// Delivers events until SIGTERM or SIGINT. The exit codes are those of [`run`].
pub(super) fn relay(args: RelayArgs) -> ExitCode {
    let RelayArgs { config, upstream, admin, store, log_format } = args;
    let args = RunArgs {
        config: Some(config),
        upstream,
        listen: None,
        admin,
        store,
        // It claims nothing by itself: the gateways decide about identities.
        accept_new_identities: false,
        log_format,
    };
    run_as(&args, Serve::OperatorsOnly)
}

fn run_as(args: &RunArgs, parts: Serve) -> ExitCode {
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
    if parts == Serve::OperatorsOnly
        && let StoreUrl::Memory | StoreUrl::File(_) = config.store.url
    {
        let text = "the store must be in Redis: a relay shares it with the gateways, and no other \
                    process can use the store";
        return super::fail(&format!("{text} {}", config.store.url), 2);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return super::fail(&format!("can't start: {error}"), 1),
    };
    match runtime.block_on(serve(config, secrets, args, parts)) {
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

async fn serve(
    config: Config,
    secrets: Secrets,
    args: &RunArgs,
    parts: Serve,
) -> anyhow::Result<bool> {
    super::ignore_user_signals()?;
    let mut signals = Signals::catch()?;
    let upstream = config.upstream.url.to_string();
    let supervisor = Supervisor::new(std::env::var_os("NOTIFY_SOCKET"));
    let no_sinks = config.sinks.is_empty();
    let mut gateway = Gateway::start(config, secrets, parts).await?;
    match gateway.listen {
        Some(listen) => {
            tracing::info!(%listen, admin = %gateway.admin, upstream, "serving");
        }
        None => {
            if no_sinks {
                tracing::warn!("the configuration has no [[sinks]], so nothing is delivered");
            }
            tracing::info!(admin = %gateway.admin, "delivering events");
        }
    }
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
