//! The command line: what can be asked of the program, and how it answers.

use std::io::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::FalseyValueParser;
use clap::{Args, CommandFactory, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::clock::{Clock, rfc3339};
use crate::telemetry::{LogFormat, escape_block, flush_logs, print_error};

mod check;
mod demo;
mod doctor;
mod log;
mod man;
mod operations;
mod projection;
mod projector;
mod report;
mod run;
mod store;
mod supervisor;
mod tail;

/// Forwards every payment request once and replays its answer to every duplicate.
#[derive(Debug, Parser)]
#[command(name = "onceward", version, about, long_about = LONG_ABOUT, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const LONG_ABOUT: &str = "\
Onceward stands in front of a payment API. Clients send an Idempotency-Key with each request; Onceward forwards the
first request with a key, stores the response, and replays it to every retry. What it can't know (a connection that
broke after the request was sent) it holds as uncertain instead of running it again.";

const EXAMPLES: &str = "\
Examples:
  onceward demo                                   see a double charge happen, and not happen
  onceward run --upstream http://127.0.0.1:9000   protect every POST and PATCH that carries an Idempotency-Key
  onceward check --config onceward.toml           find every fault of a configuration
  onceward operations list --state uncertain      what has to be settled by hand";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway.
    Run(RunArgs),
    /// Show a double charge without the gateway, and none with it, on a toy payment API.
    Demo(DemoArgs),
    /// Validate a configuration; needs no store and no upstream.
    Check(CheckArgs),
    /// Look at the store's servers: whether they can keep what they are asked to keep. Exit 0 if all is sound, else 1.
    Doctor(DoctorArgs),
    /// Copy a store into another one.
    Store(StoreArgs),
    /// Look up and settle operations, over the admin port of a running gateway.
    Operations(OperationsArgs),
    /// Tell what enforcing would have replayed and refused on routes in shadow mode, by route and client, over the admin port of a
    /// running gateway that has an event log.
    Report(ReportArgs),
    /// Look how far the read model is, or have it built anew from the event log, over the admin port of a running gateway.
    Projection(ProjectionArgs),
    /// Keep the read model up to date in a process of its own, for gateways on this machine whose [read_model] has
    /// project = false.
    Projector(ProjectorArgs),
    /// Follow or verify the event log, or change what is logged, over the admin port of a running gateway.
    Log(LogArgs),
    /// Ask a running gateway whether it is alive (exit 0) or not (exit 1); for containers.
    Health(HealthArgs),
    /// Print a completion script.
    Completions {
        /// For this shell.
        shell: clap_complete::Shell,
    },
    /// Write manual pages.
    Man {
        /// Into this directory.
        dir: PathBuf,
    },
}

#[derive(Debug, Args)]
struct DoctorArgs {
    /// The configuration file.
    #[arg(long, env = "ONCEWARD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The store, instead of the file's.
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
    /// Copy a store that no gateway uses into an empty one: for back-ups, and for moves between a file and Redis. Everything is
    /// compared afterwards; an interrupted copy goes on where it ended when the same command is run again. Exit 0 if done, 1 if
    /// refused or failed, 2 for faulty arguments.
    Copy {
        /// The store that is copied: file:DIR, redis://.. and so on, with ?namespace=NAME in Redis. It is not changed.
        from: String,
        /// The empty store that is copied into. No gateway can use it until the copy is complete.
        to: String,
        /// A configuration file whose [store] has what else it takes to reach either of them: ca_file, ack, timeout.
        #[arg(long, env = "ONCEWARD_CONFIG", value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

/// Where the gateway's parts are; flags beat environment, which beats the file, which beats the defaults.
#[derive(Debug, Clone, Args)]
struct RunArgs {
    /// The configuration file; none is needed with --upstream.
    #[arg(long, env = "ONCEWARD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The API to protect, for example http://127.0.0.1:9000.
    #[arg(long, env = "ONCEWARD_UPSTREAM", value_name = "URL")]
    upstream: Option<String>,
    /// Where clients connect [default: 127.0.0.1:8080].
    #[arg(long, env = "ONCEWARD_LISTEN", value_name = "ADDR")]
    listen: Option<String>,
    /// Where operators and probes connect [default: 127.0.0.1:8081].
    #[arg(long, env = "ONCEWARD_ADMIN", value_name = "ADDR")]
    admin: Option<String>,
    /// Where records are kept: file:DIR, redis://, rediss://, redis+cluster://, redis+sentinel://, unix:///path (each with
    /// ?namespace=NAME), memory: [default: file:onceward-data].
    #[arg(long, env = "ONCEWARD_STORE", value_name = "URL", hide_env_values = true)]
    store: Option<String>,
    /// Start although operations get other identities than those that the store keeps (routes renamed, scopes or hashing
    /// secrets changed): duplicates of what was answered before run again.
    #[arg(long, env = "ONCEWARD_ACCEPT_NEW_IDENTITIES", value_parser = FalseyValueParser::new())]
    accept_new_identities: bool,
    /// How log lines look. What is logged is set by ONCEWARD_LOG (for example `info` or `onceward=debug`).
    #[arg(long, env = "ONCEWARD_LOG_FORMAT", value_enum, default_value = "plain")]
    log_format: LogFormat,
}

#[derive(Debug, Args)]
struct DemoArgs {
    /// Exit by itself instead of staying up to be tried, with a page for the browser and curl lines.
    #[arg(long)]
    once: bool,
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// The configuration file.
    #[arg(long, env = "ONCEWARD_CONFIG", value_name = "FILE")]
    config: PathBuf,
    /// The API to protect, where `run` gets it the same way and the file doesn't name it.
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
    /// The bearer token, where the admin port wants one.
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
    /// Ask whether it can serve, not only whether it lives.
    #[arg(long)]
    ready: bool,
}

#[derive(Debug, Args)]
struct ReportArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// How far back, such as 90m, 24h or 7d; hours are counted whole.
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = humantime::parse_duration)]
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
    /// Tell how far it is.
    Status {
        /// Print JSON instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Empty it and build it anew, and wait until that is done. Payments are not concerned; searches and statistics miss
    /// what was not applied yet.
    Rebuild {
        /// Don't wait.
        #[arg(long)]
        no_wait: bool,
    },
}

#[derive(Debug, Args)]
struct ProjectorArgs {
    /// The configuration file of the gateways.
    #[arg(long, env = "ONCEWARD_CONFIG", value_name = "FILE")]
    config: PathBuf,
    /// The store, instead of the file's.
    #[arg(long, env = "ONCEWARD_STORE", value_name = "URL", hide_env_values = true)]
    store: Option<String>,
    /// Empty the read model first, and build it anew from the event log.
    #[arg(long)]
    rebuild: bool,
    /// How log lines look. What is logged is set by ONCEWARD_LOG.
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
    /// Recompute the links between the entries of the event log: exit 0 if each is as it was written, 1 if one was changed,
    /// put in or taken out.
    Verify,
    /// Print each change of an operation as the event log is told of it, from now on, until it is interrupted. A gateway that
    /// goes away meanwhile is waited for.
    Tail {
        /// Begin with what was told so long ago, such as 90m, 24h or 7d.
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        since: Option<Duration>,
        /// Print JSON, one object a line.
        #[arg(long)]
        json: bool,
    },
    /// Show what the process logs, or change it until it ends.
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

#[derive(Debug, Subcommand)]
enum Verb {
    /// List operations.
    List {
        /// Only those in this state.
        #[arg(long, value_parser = ["in_flight", "uncertain", "completed", "released", "expired"])]
        state: Option<String>,
        /// Only those on this route.
        #[arg(long, value_name = "NAME")]
        route: Option<String>,
        /// Only those of the scope with this mark, as operations, reports and the access log show it.
        #[arg(long, value_name = "MARK")]
        scope: Option<String>,
        /// Only those of the client that this file tells of (`-`: what comes on stdin): a line `name: value` for each name that the
        /// scope of --route has; where it has none, for the field by which it tells clients apart, such as `authorization`.
        #[arg(long, value_name = "FILE", requires = "route", conflicts_with = "scope")]
        client: Option<PathBuf>,
        /// At most this many.
        #[arg(long, default_value = "100")]
        limit: NonZeroUsize,
    },
    /// Show one operation, by the reference that a problem's `operation` member gives.
    Show {
        /// The reference, op_...
        operation: String,
    },
    /// State the result of an uncertain operation: it was executed, and duplicates get this answer.
    Resolve {
        #[command(flatten)]
        change: ChangeArgs,
        /// The status that duplicates get.
        #[arg(long)]
        status: u16,
        /// A file with the body that duplicates get.
        #[arg(long, value_name = "FILE")]
        body: Option<PathBuf>,
        /// A header field that duplicates get, as `Name: value`; may be given more than once.
        #[arg(long = "header", value_name = "FIELD")]
        headers: Vec<String>,
    },
    /// State that an uncertain operation was not executed, and let its next duplicate run: the same request, by the same
    /// caller.
    Retry(ChangeArgs),
    /// State that an uncertain operation was not executed, and free its key for any request.
    Release(ChangeArgs),
    /// Throw the result of a completed operation away before its time. Its duplicates are refused (409), and never run, until
    /// the key would have been new again.
    Expire(ChangeArgs),
}

/// What every change of an operation is given.
#[derive(Debug, Args)]
struct ChangeArgs {
    /// The reference, op_...
    operation: String,
    /// Why. It is kept with the change in the event log, and in the gateway's log.
    #[arg(long)]
    reason: Option<String>,
    /// The version that you decided on, as `show --json` has it: if the operation has changed since, nothing is done. Without
    /// it, the version is read right before.
    #[arg(long = "version", value_name = "VERSION")]
    version: Option<u64>,
}

/// Reads the command line and does what it says.
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
        Command::Demo(args) => demo::demo(args.once),
        Command::Check(args) => check::check(&args.config, args.upstream),
        Command::Doctor(args) => doctor::doctor(&args),
        Command::Store(StoreArgs { verb: StoreVerb::Copy { from, to, config } }) => {
            store::copy(&from, &to, config.as_deref())
        }
        Command::Operations(args) => operations::operations(args),
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

/// Prints a text, whose fields are escaped already; a reader that has gone away is no error.
fn say(text: &str) -> ExitCode {
    let _ = writeln!(std::io::stdout(), "{}", escape_block(text));
    ExitCode::SUCCESS
}

/// The moment that was so long ago, as the admin port reads it (RFC 3339).
fn since(ago: Duration) -> String {
    let ago_ms = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
    rfc3339(Clock::system().unix_ms().saturating_sub(ago_ms))
}

/// Prints an error as every command does.
fn fail(error: &dyn std::fmt::Display, code: u8) -> ExitCode {
    print_error(&format!("onceward: {error}"));
    ExitCode::from(code)
}

/// Ignores SIGUSR1 and SIGUSR2 from now on, which end a process that does nothing about them. Needs a runtime.
///
/// # Errors
/// The operating system refuses a handler.
fn ignore_user_signals() -> std::io::Result<()> {
    // A handler stays when its stream is dropped.
    drop(signal(SignalKind::user_defined1())?);
    drop(signal(SignalKind::user_defined2())?);
    Ok(())
}

fn block_on<F: Future>(future: F) -> std::io::Result<F::Output> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future))
}
