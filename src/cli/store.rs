//! `onceward store`.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::app::{self, Copied, CopyStep};
use crate::clock::Clock;
use crate::config::{Config, Overrides, StoreUrl};

/// How often progress is reported on a terminal, in ms.
const TERMINAL_PERIOD_MS: u64 = 100;

/// How often progress is reported if stderr is not a terminal, in ms.
const LINE_PERIOD_MS: u64 = 5_000;

/// Copies a store into another one.
pub(super) fn copy(from: &str, to: &str, file: Option<&Path>) -> ExitCode {
    let (from, to) = match (config_of(from, file), config_of(to, file)) {
        (Ok(from), Ok(to)) => (from, to),
        (Err(code), _) | (_, Err(code)) => return code,
    };
    if [&from, &to].iter().any(|config| config.store.url == StoreUrl::Memory) {
        return super::fail(
            &"memory: belongs to one process: it can't be copied, and nothing can be copied into \
              it",
            2,
        );
    }
    if (&from.store.url, &from.store.namespace) == (&to.store.url, &to.store.namespace) {
        return super::fail(&"both stores are the same", 2);
    }
    let progress = ProgressReport::new();
    let copied =
        super::block_on(app::copy_store(&from, &to, &|step, done| progress.report(step, done)));
    progress.end();
    match copied {
        Ok(Ok(copied)) => {
            print!("{}", summary(&from.store.location(), &to.store.location(), copied));
            ExitCode::SUCCESS
        }
        Ok(Err(error)) => super::fail(&error, 1),
        Err(error) => super::fail(&error, 1),
    }
}

/// Returns a configuration with this store, or the exit code for a faulty one.
fn config_of(store: &str, file: Option<&Path>) -> Result<Config, ExitCode> {
    let read = |path: &Path| -> Result<(String, String), ExitCode> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| super::fail(&format!("can't read {name}: {error}"), 2))?;
        Ok((name, text))
    };
    let file = file.map(read).transpose()?;
    // The upstream is not contacted.
    let upstream = file.is_none().then(|| "http://127.0.0.1:9000".to_owned());
    let overrides = Overrides { upstream, store: Some(store.to_owned()), ..Overrides::default() };
    Config::load(file.as_ref().map(|(name, text)| (name.as_str(), text.as_str())), overrides)
        .map_err(|faults| {
            eprint!("{faults}");
            ExitCode::from(2)
        })
}

fn summary(from: &str, to: &str, copied: Copied) -> String {
    let Copied { items, events, waiting, dead_letters, resumed, relinked, breaks } = copied;
    let again = if resumed { ", continuing an interrupted copy" } else { "" };
    let mut text = format!(
        "copied {from} to {to}{again}: {items} records and tombstones, {events} events of the log, \
         {waiting} events that wait for sinks and {dead_letters} dead letters, all compared\n"
    );
    if relinked && events > 0 {
        text += "the event log has other partitions there: its links were recomputed, and an \
                 existing read model must be rebuilt (onceward projection rebuild)\n";
    }
    if breaks > 0 {
        text += &format!(
            "WARN  {breaks} links of the original event log were broken; the new links do not show \
             that\n"
        );
    }
    text
}

/// Prints the progress of a copy. On a terminal, it updates one line. Otherwise, it prints a line
/// every few seconds.
struct ProgressReport {
    clock: Clock,
    terminal: bool,
    /// When progress was last printed, as the machine's uptime in ms; 0: never.
    shown_ms: AtomicU64,
    step: AtomicU64,
}

impl ProgressReport {
    fn new() -> ProgressReport {
        let terminal = std::io::stderr().is_terminal();
        ProgressReport {
            clock: Clock::system(),
            terminal,
            shown_ms: AtomicU64::new(0),
            step: AtomicU64::new(0),
        }
    }

    fn report(&self, step: CopyStep, done: u64) {
        let (number, text) = match step {
            CopyStep::Items => (1, "copying records and tombstones"),
            CopyStep::Events => (2, "copying events"),
            CopyStep::Outbox => (3, "copying waiting events and dead letters"),
            CopyStep::CheckItems => (4, "comparing records and tombstones"),
            CopyStep::CheckEvents => (5, "comparing events"),
            CopyStep::CheckOutbox => (6, "comparing waiting events and dead letters"),
        };
        let now_ms = self.clock.boot_ms();
        let is_new = self.step.swap(number, Ordering::Relaxed) != number;
        let pause_ms = if self.terminal { TERMINAL_PERIOD_MS } else { LINE_PERIOD_MS };
        if !is_new && now_ms.saturating_sub(self.shown_ms.load(Ordering::Relaxed)) < pause_ms {
            return;
        }
        self.shown_ms.store(now_ms, Ordering::Relaxed);
        let mut stderr = std::io::stderr();
        let _ = if self.terminal {
            write!(stderr, "\r\x1b[K{text}: {done}")
        } else {
            writeln!(stderr, "{text}: {done}")
        };
    }

    /// Clears the line on a terminal.
    fn end(&self) {
        if self.terminal && self.step.load(Ordering::Relaxed) > 0 {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
