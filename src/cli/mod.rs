//! The command line: its arguments and commands.

use std::io::{IsTerminal, Write};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use self::dead_letters::DeadLettersArgs;
use self::outbox::OutboxArgs;
use self::run::{RelayArgs, RunArgs};
use self::sagas::SagasArgs;
use self::sinks::SinksArgs;
use crate::clock::{Clock, rfc3339};
use crate::telemetry::{LogFormat, escape_block, escape_json, flush_logs, print_error};

mod check;
mod dead_letters;
mod demo;
mod doctor;
mod log;
mod man;
mod operations;
mod outbox;
mod projection;
mod projector;
mod report;
mod run;
mod running_sagas;
mod sagas;
mod sinks;
mod store;
mod supervisor;
mod table;
mod tail;

/// Forwards every payment request once and replays its answer to every duplicate.
#[derive(Debug, Parser)]
#[command(name = "onceward", version, about, long_about = LONG_ABOUT, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const LONG_ABOUT: &str = "\
Onceward stands in front of a payment API. Clients send an Idempotency-Key with each request.
Onceward forwards the first request with a key, stores the response, and replays it to every retry.
If the outcome is unknown (a connection broke after the request was sent), the operation is held as
uncertain instead of being run again.";

const EXAMPLES: &str = "\
Examples:
  onceward demo                                   see a double charge happen, and not happen
  onceward run --upstream http://127.0.0.1:9000   protect every POST and PATCH that has a key
  onceward check --config onceward.toml           list every fault of a configuration
  onceward operations list --state uncertain      list operations that must be settled by hand";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway.
    Run(RunArgs),
    /// Deliver events in a process of its own, for gateways with relay = false under [outbox]. The
    /// store must be in Redis.
    Relay(RelayArgs),
    /// Show a double charge without the gateway, and none with it, on a toy payment API.
    Demo(DemoArgs),
    /// Validate a configuration. This needs no store and no upstream.
    Check(CheckArgs),
    /// Check whether the store's servers can keep records safely. Exit 0 if they can, else 1.
    Doctor(DoctorArgs),
    /// Copy a store into another one.
    Store(StoreArgs),
    /// Look up and settle operations, over the admin port of a running gateway.
    Operations(OperationsArgs),
    /// Look up, pause, resume and test the sinks of events, over the admin port of a running
    /// gateway.
    Sinks(SinksArgs),
    /// Look up dead letters (events that their sinks did not take), and requeue or discard them,
    /// over the admin port of a running gateway.
    DeadLetters(DeadLettersArgs),
    /// Seal waiting events and dead letters under another key, over the admin port of a running
    /// gateway.
    Outbox(OutboxArgs),
    /// List, show, retry, skip and cancel sagas over the admin port of a running gateway, and test
    /// the templates of sagas.
    Sagas(SagasArgs),
    /// Report what enforcing would have replayed and refused on routes in shadow mode, by route and
    /// client, over the admin port of a running gateway with an event log.
    Report(ReportArgs),
    /// Show how far behind the read model is, or rebuild it from the event log, over the admin port
    /// of a running gateway.
    Projection(ProjectionArgs),
    /// Keep the read model up to date in a separate process, for gateways on this machine that have
    /// project = false under [read_model].
    Projector(ProjectorArgs),
    /// Follow or verify the event log, or change the log filter, over the admin port of a running
    /// gateway.
    Log(LogArgs),
    /// Check whether a running gateway is alive (exit 0) or not (exit 1); for containers.
    Health(HealthArgs),
    /// Print a completion script.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write manual pages.
    Man {
        /// The directory for the pages.
        dir: PathBuf,
    },
}

#[derive(Debug, Args)]
struct DoctorArgs {
    /// The configuration file.
    #[arg(long, env = "ONCEWARD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The store, instead of the one in the file.
    #[arg(long, env = "ONCEWARD_STORE", value_name = "URL", hide_env_values = true)]
    store: Option<String>,
}

#[derive(Debug, Args)]
struct StoreArgs {
    #[command(subcommand)]
    verb: StoreVerb,
}

#[derive(Debug, Subcommand)]
enum StoreVerb {
    /// Copy a store that no gateway uses into an empty one: for backups, and for moves between a
    /// file and Redis. Afterwards both stores are compared. To continue an interrupted copy, run
    /// the same command again. Exit 0 if done, 1 if refused or failed, 2 for invalid arguments.
    Copy {
        /// The store to copy: file:DIR, redis://.. and so on, with ?namespace=NAME in Redis. It is
        /// not changed.
        from: String,
        /// The empty store to copy into. No gateway can use it until the copy is complete.
        to: String,
        /// A configuration file with a [store] section for the connection to either of them:
        /// ca_file, ack, timeout.
        #[arg(long, env = "ONCEWARD_CONFIG", value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
struct DemoArgs {
    /// Exit at the end. By default the gateway keeps running, with a page for the browser and with
    /// curl commands to try.
    #[arg(long)]
    once: bool,
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// The configuration file.
    #[arg(long, env = "ONCEWARD_CONFIG", value_name = "FILE")]
    config: PathBuf,
    /// The API to protect, if `run` gets it as a flag and the file does not contain it.
    #[arg(long, env = "ONCEWARD_UPSTREAM", value_name = "URL")]
    upstream: Option<String>,
}

#[derive(Debug, Clone, Args)]
struct AdminArgs {
    /// The admin port of a running gateway.
    #[arg(
        long,
        env = "ONCEWARD_ADMIN",
        value_name = "ADDR",
        default_value = "127.0.0.1:8081",
        global = true
    )]
    admin: String,
    /// The bearer token, if the admin port requires one.
    #[arg(
        long,
        env = "ONCEWARD_ADMIN_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true,
        global = true
    )]
    token: Option<String>,
}

#[derive(Debug, Args)]
struct HealthArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Check whether the gateway can serve, not only whether it is alive.
    #[arg(long)]
    ready: bool,
}

#[derive(Debug, Args)]
struct ReportArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// The time range of the report, such as 90m, 24h or 7d. Hours are counted whole.
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "24h",
        value_parser = humantime::parse_duration
    )]
    since: Duration,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ProjectionArgs {
    #[command(flatten)]
    admin: AdminArgs,
    #[command(subcommand)]
    verb: ProjectionVerb,
}

#[derive(Debug, Subcommand)]
enum ProjectionVerb {
    /// Show the position and the lag of the read model.
    Status {
        /// Print JSON instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Empty the read model, rebuild it, and wait until it is complete. Requests are not affected.
    /// Until then, searches and statistics miss entries that are not applied yet.
    Rebuild {
        /// Don't wait for the end of the rebuild.
        #[arg(long)]
        no_wait: bool,
    },
}

#[derive(Debug, Args)]
struct ProjectorArgs {
    /// The configuration file of the gateways.
    #[arg(long, env = "ONCEWARD_CONFIG", value_name = "FILE")]
    config: PathBuf,
    /// The store, instead of the one in the file.
    #[arg(long, env = "ONCEWARD_STORE", value_name = "URL", hide_env_values = true)]
    store: Option<String>,
    /// Empty the read model first, and rebuild it from the event log.
    #[arg(long)]
    rebuild: bool,
    /// The format of log lines. ONCEWARD_LOG sets the filter.
    #[arg(long, env = "ONCEWARD_LOG_FORMAT", value_enum, default_value = "plain")]
    log_format: LogFormat,
}

#[derive(Debug, Args)]
struct LogArgs {
    #[command(flatten)]
    admin: AdminArgs,
    #[command(subcommand)]
    verb: LogVerb,
}

#[derive(Debug, Subcommand)]
enum LogVerb {
    /// Recompute the links between the entries of the event log. Exit 0 if the log is unaltered, 1
    /// if an entry was changed, inserted or removed.
    Verify,
    /// Print each new change of an operation from the event log, until the command is interrupted.
    /// If the gateway stops, wait until it runs again.
    Tail {
        /// Begin with the changes of the last 90m, 24h, 7d or another duration.
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        since: Option<Duration>,
        /// Print JSON, one object per line.
        #[arg(long)]
        json: bool,
    },
    /// Show the log filter, or change it until the gateway's process ends.
    Level {
        /// Levels by target, such as `info,onceward::store=debug`.
        filter: Option<String>,
    },
}

#[derive(Debug, Args)]
struct OperationsArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Print JSON instead of text.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

/// The states of operations that the store lists.
const STATES: [&str; 7] =
    ["in_flight", "uncertain", "completed", "released", "expired", "saga", "barred"];

#[derive(Debug, Subcommand)]
enum Verb {
    /// List operations.
    List {
        /// Only operations in this state.
        #[arg(long, value_parser = STATES)]
        state: Option<String>,
        /// Only operations on this route.
        #[arg(long, value_name = "NAME")]
        route: Option<String>,
        /// Only operations of the scope with this mark. Operations, reports and the access log show
        /// the mark of their scope.
        #[arg(long, value_name = "MARK")]
        scope: Option<String>,
        /// Only operations of the client in this file (`-` for stdin). The file has a line `name:
        /// value` for each name of the scope of --route. For a route without a scope, it has the
        /// field that distinguishes its clients, such as `authorization`.
        #[arg(long, value_name = "FILE", requires = "route", conflicts_with = "scope")]
        client: Option<PathBuf>,
        /// At most this many operations.
        #[arg(long, default_value = "100")]
        limit: NonZeroUsize,
    },
    /// Show one operation, by the reference in a problem's `operation` member.
    Show {
        /// The reference, op_...
        operation: String,
    },
    /// Record that an uncertain operation was executed. Duplicates get this response.
    Resolve {
        #[command(flatten)]
        change: ChangeArgs,
        /// The status that duplicates get.
        #[arg(long)]
        status: u16,
        /// A file with the body that duplicates get.
        #[arg(long, value_name = "FILE")]
        body: Option<PathBuf>,
        /// A header field that duplicates get, as `Name: value`; may be repeated.
        #[arg(long = "header", value_name = "FIELD")]
        headers: Vec<String>,
    },
    /// Record that an uncertain operation was not executed, and let its next duplicate run (the
    /// same request by the same caller).
    Retry(ChangeArgs),
    /// Record that an uncertain operation was not executed, and free its key for any request.
    Release(ChangeArgs),
    /// Delete the result of a completed operation before the end of its retention. Until the key
    /// would have been new again, duplicates are refused (409) and never run.
    Expire(ChangeArgs),
}

/// The arguments of every change of an operation.
#[derive(Debug, Args)]
struct ChangeArgs {
    /// The reference, op_...
    operation: String,
    /// Why. The reason is stored with the change in the event log, and logged by the gateway.
    #[arg(long)]
    reason: Option<String>,
    /// The version that you decided on, from `show --json`. If the operation has changed since,
    /// nothing is done. By default, the version is read just before the change.
    #[arg(long = "version", value_name = "VERSION")]
    version: Option<u64>,
}

/// Parses the command line, and runs the command.
///
/// Exit codes: 0 done, 1 refused or failed, 2 usage or a faulty configuration.
pub fn main() -> ExitCode {
    let code = run_command(Cli::parse().command);
    flush_logs();
    code
}

fn run_command(command: Command) -> ExitCode {
    match command {
        Command::Run(args) => run::run(&args),
        Command::Relay(args) => run::relay(args),
        Command::Demo(args) => demo::demo(args.once),
        Command::Check(args) => check::check(&args.config, args.upstream),
        Command::Doctor(args) => doctor::doctor(&args),
        Command::Store(StoreArgs { verb: StoreVerb::Copy { from, to, config } }) => {
            store::copy(&from, &to, config.as_deref())
        }
        Command::Operations(args) => operations::operations(args),
        Command::Sinks(args) => sinks::sinks(args),
        Command::DeadLetters(args) => dead_letters::dead_letters(args),
        Command::Outbox(args) => outbox::outbox(args),
        Command::Sagas(args) => sagas::sagas(args),
        Command::Report(args) => report::report(args),
        Command::Projection(args) => projection::projection(args),
        Command::Projector(args) => projector::run(&args),
        Command::Log(args) => log::log(args),
        Command::Health(args) => operations::health(&args.admin, args.ready),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "onceward", &mut std::io::stdout());
            ExitCode::SUCCESS
        }
        Command::Man { dir } => man::write(&Cli::command(), &dir),
    }
}

/// Prints a text, in which the caller has escaped all fields. A closed stdout is not an error.
fn print_text(text: &str) -> ExitCode {
    let _ = writeln!(std::io::stdout(), "{}", escape_block(text));
    ExitCode::SUCCESS
}

/// Returns the time `ago` before now, in RFC 3339.
fn since(ago: Duration) -> String {
    let ago_ms = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
    rfc3339(Clock::system().unix_ms().saturating_sub(ago_ms))
}

/// Parses a time: a duration before now (24h, 7d), or a time in RFC 3339. Returns it in RFC 3339.
fn moment(text: &str) -> Result<String, String> {
    if let Ok(ago) = humantime::parse_duration(text) {
        return Ok(since(ago));
    }
    let time = humantime::parse_rfc3339_weak(text);
    time.map(|_| text.to_owned())
        .map_err(|_| "write a duration such as 24h or 7d, or a time such as 2026-11-25T03:00:00Z")
        .map_err(str::to_owned)
}

/// Prints an object or a list as JSON, and returns the exit code.
fn print_json(value: &impl serde::Serialize) -> ExitCode {
    match serde_json::to_string_pretty(value) {
        Ok(text) => print_text(&escape_json(&text)),
        Err(error) => fail(&error, 1),
    }
}

/// Asks a question on the terminal. Without a terminal, the answer is yes, because a script has
/// decided already.
fn confirmed(question: &str) -> bool {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return true;
    }
    let _ = write!(std::io::stderr(), "{} [y/N] ", escape_block(question));
    let mut answer = String::new();
    let read = stdin.read_line(&mut answer);
    read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
}

/// Prints an error, and returns the exit code.
fn fail(error: &dyn std::fmt::Display, code: u8) -> ExitCode {
    print_error(&format!("onceward: {error}"));
    ExitCode::from(code)
}

/// Ignores SIGUSR1 and SIGUSR2 from now on, because by default they end a process. Needs a runtime.
///
/// # Errors
/// The operating system refuses a signal handler.
fn ignore_user_signals() -> std::io::Result<()> {
    // The handler stays installed when its stream is dropped.
    drop(signal(SignalKind::user_defined1())?);
    drop(signal(SignalKind::user_defined2())?);
    Ok(())
}

fn block_on<F: Future>(future: F) -> std::io::Result<F::Output> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future))
}
