//! `onceward store`.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::app::{self, Copied, CopyStep};
use crate::clock::Clock;
use crate::config::{Config, Overrides, StoreUrl};

/// Between two reports on a terminal, in ms: often enough to look alive.
const REPORT_MS: u64 = 100;

/// Between two reports elsewhere, in ms.
const LINE_MS: u64 = 5_000;

/// Copies a store into another one.
pub(super) fn copy(from: &str, to: &str, file: Option<&Path>) -> ExitCode {
    let (from, to) = match (config_of(from, file), config_of(to, file)) {
        (Ok(from), Ok(to)) => (from, to),
        (Err(code), _) | (_, Err(code)) => return code,
    };
    if [&from, &to].iter().any(|config| config.store.url == StoreUrl::Memory) {
        return super::fail(
            &"memory: belongs to one process: it can't be copied, and nothing can be copied into it",
            2,
        );
    }
    if (&from.store.url, &from.store.namespace) == (&to.store.url, &to.store.namespace) {
        return super::fail(&"both stores are the same", 2);
    }
    let progress = Progress::new();
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

/// A configuration whose store is this one; the exit code where there is none.
fn config_of(store: &str, file: Option<&Path>) -> Result<Config, ExitCode> {
    let read = |path: &Path| -> Result<(String, String), ExitCode> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| super::fail(&format!("can't read {name}: {error}"), 2))?;
        Ok((name, text))
    };
    let file = file.map(read).transpose()?;
    // It isn't asked for.
    let upstream = file.is_none().then(|| "http://127.0.0.1:9000".to_owned());
    let overrides = Overrides { upstream, store: Some(store.to_owned()), ..Overrides::default() };
    Config::load(file.as_ref().map(|(name, text)| (name.as_str(), text.as_str())), overrides)
        .map_err(|faults| {
            eprint!("{faults}");
            ExitCode::from(2)
        })
}

fn summary(from: &str, to: &str, copied: Copied) -> String {
    let Copied { items, events, resumed, relinked, breaks } = copied;
    let again = if resumed { ", carrying on an interrupted copy" } else { "" };
    let mut text = format!(
        "copied {from} to {to}{again}: {items} records and tombstones and {events} events, all compared\n"
    );
    if relinked && events > 0 {
        text += "the event log is divided otherwise there: its links were made anew, and a read model that is kept has to be built \
                 anew (onceward projection rebuild)\n";
    }
    if breaks > 0 {
        text += &format!(
            "WARN  {breaks} links of the original event log were broken, which the new ones do not show\n"
        );
    }
    text
}

/// Shows how far it is: in one line on a terminal, in a line now and then elsewhere.
struct Progress {
    clock: Clock,
    terminal: bool,
    /// When something was last shown, by the machine's uptime; 0: never.
    shown_ms: AtomicU64,
    step: AtomicU64,
}

impl Progress {
    fn new() -> Progress {
        let terminal = std::io::stderr().is_terminal();
        Progress {
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
            CopyStep::CheckItems => (3, "comparing records and tombstones"),
            CopyStep::CheckEvents => (4, "comparing events"),
        };
        let now_ms = self.clock.boot_ms();
        let is_new = self.step.swap(number, Ordering::Relaxed) != number;
        let pause_ms = if self.terminal { REPORT_MS } else { LINE_MS };
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

    /// Leaves the line free on a terminal.
    fn end(&self) {
        if self.terminal && self.step.load(Ordering::Relaxed) > 0 {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
