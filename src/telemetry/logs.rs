//! The process log on standard error, plain or JSON, filtered by `ONCEWARD_LOG` (tracing's
//! directive syntax; default `info`) or by the filter that an operator sets at run time. A separate
//! thread writes the lines (see `line_queue`): if nobody reads standard error, lines are dropped
//! and counted, and no request waits.
//!
//! Danger: a library that logs its input would log keys and credentials. So events of libraries
//! below `info` are never logged, whatever the filter is. For example, h2 logs the targets of
//! malformed requests on `debug`.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, IsTerminal, Write};
use std::panic::PanicHookInfo;
use std::sync::OnceLock;
use std::time::Duration;

use clap::ValueEnum;
use tracing::{Metadata, level_filters::LevelFilter};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, registry};

use super::escape::{escape_block, escape_log_line};
use super::line_queue::{LineQueue, QueuedLine, Unlocked, log_meter};

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Text for people.
    Plain,
    /// One JSON object a line.
    Json,
}

/// Longest filter at run time, in bytes: each part is compared with every line.
const FILTER_BYTES_MAX: usize = 1024;

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// The filter of the process log. There is one per process, as there is one log.
static FILTER: OnceLock<Handle<EnvFilter, Registry>> = OnceLock::new();

/// Name of the thread that writes the log.
const WRITER_THREAD: &str = "log";

/// Longest wait for the log to be written, when the process ends and when it panics.
const FLUSH_MAX: Duration = Duration::from_secs(1);

/// The queue of the process log, once logging has started.
static QUEUE: OnceLock<LineQueue<LogLine>> = OnceLock::new();

/// A rendered line of the log, with its line break.
struct LogLine(Vec<u8>);

impl QueuedLine for LogLine {
    fn weight(&self) -> usize {
        size_of::<Self>() + self.0.len()
    }

    fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&self.0)
    }
}

/// Queues each rendered event, which the formatter writes in one piece.
struct EventWriter {
    queue: LineQueue<LogLine>,
    format: LogFormat,
    colours: bool,
}

impl Write for EventWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let escaped = escape_log_line(&text, self.colours, self.format == LogFormat::Json);
        self.queue.push(LogLine(escaped.into_bytes()));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Why a filter was not set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// The process doesn't log.
    #[error("this process does not log")]
    NotLogging,
    /// It is too long.
    #[error("a filter has at most {FILTER_BYTES_MAX} bytes")]
    TooLong,
    /// A part of the filter is neither a level nor a target with a level.
    #[error(
        "expected levels ({}) by target, such as \"info,onceward::store=debug\"; found {part:?}",
        LEVELS.join(", ")
    )]
    Malformed {
        /// The part.
        part: String,
    },
}

/// Starts logging, and logs panics in the same way. Call it once; a second call changes nothing.
///
/// # Errors
/// The thread that writes the log can't be started.
pub fn init(format: LogFormat) -> io::Result<()> {
    let filter = EnvFilter::try_from_env("ONCEWARD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // An error of standard error can't be reported anywhere; the lines are counted.
    let (queue, _thread) =
        LineQueue::start(WRITER_THREAD, Unlocked(io::stderr()), log_meter(), |_| {})?;
    let colours = format == LogFormat::Plain && io::stderr().is_terminal();
    let lines = fmt::layer().with_writer({
        let queue = queue.clone();
        move || EventWriter { queue: queue.clone(), format, colours }
    });
    let lines = match format {
        LogFormat::Plain => lines.with_ansi(colours).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    // An error here means that a subscriber is already set, as in tests.
    let (filter, handle) = reload::Layer::new(filter);
    if registry().with(filter).with(lines).with(filter_fn(is_safe_to_log)).try_init().is_ok() {
        let _ = FILTER.set(handle);
        let _ = QUEUE.set(queue);
        std::panic::set_hook(Box::new(log_panic));
    }
    Ok(())
}

/// Writes a panic to standard error through the queue of the log. Waits at most [`FLUSH_MAX`] until
/// it is written, because the process may end.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let mut text = format!("thread '{}' {panic}", thread.name().unwrap_or("unnamed"));
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        text = format!("{text}\nstack backtrace:\n{backtrace}");
    }
    print_error(&text);
    // The writer can't wait for itself.
    if thread.name() != Some(WRITER_THREAD) {
        flush_logs();
    }
}

/// Prints a text to standard error. If the process logs, the text is queued after the lines of the
/// log, so that nothing waits for a reader. Otherwise it is written at once. Escapes characters
/// that a terminal would interpret, and adds a line break if it is missing.
pub fn print_error(text: &str) {
    let line = format!("{}\n", escape_block(text.trim_end_matches('\n'))).into_bytes();
    match QUEUE.get() {
        Some(queue) => queue.push(LogLine(line)),
        // An error about standard error could not be reported anywhere.
        None => drop(io::stderr().write_all(&line)),
    }
}

/// Waits until the log is written, at most a second. Call it before the process ends; otherwise
/// queued lines are lost.
pub fn flush_logs() {
    if let Some(queue) = QUEUE.get() {
        queue.flush(FLUSH_MAX);
    }
}

/// Returns the current filter; `None` if the process doesn't log.
pub fn log_filter() -> Option<String> {
    FILTER.get()?.with_current(ToString::to_string).ok()
}

/// Sets the filter, until the process ends.
///
/// # Errors
/// The filter can't be parsed. A word that is no level is refused, although tracing would treat it
/// as a target. Such a word is usually a mistake, and as a target it would silence everything else.
pub fn set_log_filter(text: &str) -> Result<(), FilterError> {
    let filter = parse(text)?;
    let handle = FILTER.get().ok_or(FilterError::NotLogging)?;
    handle.reload(filter).map_err(|_| FilterError::NotLogging)
}

fn parse(text: &str) -> Result<EnvFilter, FilterError> {
    if text.len() > FILTER_BYTES_MAX {
        return Err(FilterError::TooLong);
    }
    let is_level = |word: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word));
    let is_target = |word: &str| {
        !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"_:".contains(&b))
    };
    let is_clear = |part: &str| match part.split_once('=') {
        Some((target, level)) => is_target(target) && is_level(level),
        None => is_level(part),
    };
    let unclear = |part: &str| FilterError::Malformed { part: part.to_owned() };
    match text.split(',').find(|part| !is_clear(part)) {
        Some(part) => Err(unclear(part)),
        None => EnvFilter::builder().parse(text).map_err(|_| unclear(text)),
    }
}

/// Returns whether an event comes from this crate, or has a level on which libraries log no
/// payload.
fn is_safe_to_log(line: &Metadata<'_>) -> bool {
    let own = line.target().strip_prefix(env!("CARGO_CRATE_NAME"));
    own.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        || *line.level() <= LevelFilter::INFO
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_levels_by_target_and_a_slip_is_refused() {
        for sound in
            ["info", "WARN", "off", "info,onceward::store=debug", "onceward=trace,h2=error"]
        {
            assert!(parse(sound).is_ok(), "{sound}");
        }
        for slip in [
            "",
            "inof",
            "info,",
            "info,onceward",
            "onceward=loud",
            "=debug",
            "info, debug",
            "[span{key=x}]=debug",
            "a\nb=info",
        ] {
            assert!(matches!(parse(slip), Err(FilterError::Malformed { .. })), "{slip}");
        }
        assert_eq!(parse(&"onceward=info,".repeat(100)).unwrap_err(), FilterError::TooLong);
    }

    #[test]
    fn a_process_that_does_not_log_reports_it() {
        assert_eq!((log_filter(), set_log_filter("info")), (None, Err(FilterError::NotLogging)));
    }
}
