//! `onceward projector`.

use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use super::ProjectorArgs;
use super::supervisor::Supervisor;
use crate::app::Projection;
use crate::clock::Clock;
use crate::config::{Config, Overrides};
use crate::telemetry::{init_logs, print_error};

/// How often progress is reported while the read model is behind.
const REPORT_PERIOD: Duration = Duration::from_secs(5);

/// The time before the first report. It is long enough to read an empty log.
const FIRST_REPORT: Duration = Duration::from_secs(1);

/// The lag above which progress is reported.
const BEHIND: Duration = Duration::from_secs(10);

/// Follows the event log until SIGTERM or SIGINT. Nothing is lost: the next process repeats an
/// interrupted step.
pub(super) fn run(args: &ProjectorArgs) -> ExitCode {
    if let Err(error) = init_logs(args.log_format) {
        return super::fail(&format!("can't start: {error}"), 1);
    }
    let config = match load(args) {
        Ok(config) => config,
        Err(code) => return code,
    };
    match super::block_on(follow(&config, args.rebuild)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => super::fail(&format!("{error:#}"), 1),
        Err(error) => super::fail(&error, 1),
    }
}

fn load(args: &ProjectorArgs) -> Result<Config, ExitCode> {
    let name = args.config.display().to_string();
    let text = std::fs::read_to_string(&args.config)
        .map_err(|error| super::fail(&format!("can't read {name}: {error}"), 2))?;
    // This process forwards no requests, but a configuration needs an upstream, and the file may
    // have none.
    let overrides = |upstream: Option<&str>| Overrides {
        upstream: upstream.map(str::to_owned),
        store: args.store.clone(),
        ..Overrides::default()
    };
    let config = Config::load(Some((&name, &text)), overrides(None))
        .or_else(|_| Config::load(Some((&name, &text)), overrides(Some("http://localhost"))));
    config.map_err(|faults| {
        print_error(&faults.to_string());
        ExitCode::from(2)
    })
}

async fn follow(config: &Config, rebuild: bool) -> anyhow::Result<()> {
    super::ignore_user_signals()?;
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let supervisor = Supervisor::new(std::env::var_os("NOTIFY_SOCKET"));
    let projection = tokio::select! {
        biased;
        // A signal must end the process even while a store or a disk is slow.
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
        started = Projection::start(config, rebuild) => started?,
    };
    tracing::info!(store = %config.store.url, "following the event log");
    supervisor.following();
    let _watchdog =
        supervisor.watched(std::env::var_os("WATCHDOG_USEC"), std::env::var_os("WATCHDOG_PID"));
    let clock = Clock::system();
    let mut up_to_date = false;
    let mut next_report = Instant::now() + FIRST_REPORT;
    loop {
        tokio::select! {
            biased;
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = sleep_until(next_report) => {}
        }
        next_report = Instant::now() + REPORT_PERIOD;
        let freshness = projection.freshness();
        let lag = freshness.lag_ms(clock.unix_ms()).map(Duration::from_millis);
        let now_up_to_date = lag.is_some_and(|lag| lag < BEHIND);
        if now_up_to_date && !up_to_date {
            tracing::info!(entries = freshness.entries, "the read model is up to date");
        } else if !now_up_to_date {
            let behind =
                lag.map_or("unknown".to_owned(), |lag| humantime::format_duration(lag).to_string());
            tracing::info!(
                entries = freshness.entries,
                behind,
                "the read model is behind the event log"
            );
        }
        up_to_date = now_up_to_date;
    }
    supervisor.stopping();
    Ok(())
}
