//! The clocks of the process, and the text form of times. Apart from the timers of tokio, only this
//! module reads the machine's clocks. Other modules get a [`Clock`] as an argument.
//!
//! Danger: if the clock stopped with the process, a gateway could send a payment after the lease of
//! its claim has ended. So durations are measured by a clock that continues while the process is
//! stopped or the machine is suspended.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

/// The last millisecond of the year 9999. RFC 3339 can write no later time.
const LAST_MS: u64 = 253_402_300_799_999;

/// Formats a time in ms since 1970 by RFC 3339, in UTC. A time after the year 9999 is written as
/// the end of that year: a store may contain a forged time, which must not break the programs that
/// show it.
pub fn rfc3339(unix_ms: u64) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(unix_ms.min(LAST_MS)))
        .to_string()
}

/// The clocks of this process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Clock(ClockSource);

#[derive(Clone)]
enum ClockSource {
    System,
    Manual(Arc<ManualClock>),
    Given { boot_ms: StoreClock, unix_ms: StoreClock },
}

impl fmt::Debug for ClockSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ClockSource::System => "System",
            ClockSource::Manual(_) => "Manual",
            ClockSource::Given { .. } => "Given",
        })
    }
}

/// A store's clock, in ms since 1970. It must continue while the process is stopped, and must not
/// jump.
pub type StoreClock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// A clock that tests move.
#[derive(Debug, Default)]
pub struct ManualClock {
    boot_ms: AtomicU64,
    unix_ms: AtomicU64,
}

impl Clock {
    /// Returns the machine's clocks.
    pub fn system() -> Clock {
        Clock(ClockSource::System)
    }

    /// Creates a clock and its handle. The clock moves only through the handle.
    pub fn manual(boot_ms: u64, unix_ms: u64) -> (Clock, Arc<ManualClock>) {
        let manual = Arc::new(ManualClock { boot_ms: boot_ms.into(), unix_ms: unix_ms.into() });
        (Clock(ClockSource::Manual(manual.clone())), manual)
    }

    /// Creates clocks from functions, for simulations with their own time. The function `boot_ms`
    /// must continue while the process is stopped, like [`Clock::boot_ms`].
    pub fn given(
        boot_ms: Arc<dyn Fn() -> u64 + Send + Sync>,
        unix_ms: Arc<dyn Fn() -> u64 + Send + Sync>,
    ) -> Clock {
        Clock(ClockSource::Given { boot_ms, unix_ms })
    }

    /// Returns milliseconds since the machine started, including suspension (`CLOCK_BOOTTIME`). For
    /// durations.
    pub fn boot_ms(&self) -> u64 {
        match &self.0 {
            ClockSource::System => {
                #[cfg(any(target_os = "linux", target_os = "android"))]
                let id = rustix::time::ClockId::Boottime;
                // On other systems, the monotonic clock comes closest. On macOS it continues during
                // sleep.
                #[cfg(not(any(target_os = "linux", target_os = "android")))]
                let id = rustix::time::ClockId::Monotonic;
                millis(rustix::time::clock_gettime(id))
            }
            ClockSource::Manual(manual) => manual.boot_ms.load(Ordering::SeqCst),
            ClockSource::Given { boot_ms, .. } => boot_ms(),
        }
    }

    /// Returns milliseconds since 1970 by the machine's wall clock. This time is for people, for
    /// `Date` fields and for tokens, which have times by the issuer's clock. Leases and retention
    /// never use it.
    pub fn unix_ms(&self) -> u64 {
        match &self.0 {
            ClockSource::System => {
                millis(rustix::time::clock_gettime(rustix::time::ClockId::Realtime))
            }
            ClockSource::Manual(manual) => manual.unix_ms.load(Ordering::SeqCst),
            ClockSource::Given { unix_ms, .. } => unix_ms(),
        }
    }
}

impl Clock {
    /// Returns the clock of a store in this process: the current wall clock, continued by the boot
    /// clock. If somebody sets the wall clock afterwards, no record expires early.
    pub fn anchored(&self) -> StoreClock {
        let clock = self.clone();
        let (boot_ms, unix_ms) = (self.boot_ms(), self.unix_ms());
        Arc::new(move || unix_ms + clock.boot_ms().saturating_sub(boot_ms))
    }
}

/// Returns microseconds of the monotonic clock. The service manager uses them to distinguish
/// reloads.
pub fn monotonic_us() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000
        + u64::try_from(time.tv_nsec).unwrap_or(0) / 1000
}

fn millis(time: rustix::time::Timespec) -> u64 {
    u64::try_from(time.tv_sec).unwrap_or(0) * 1000
        + u64::try_from(time.tv_nsec).unwrap_or(0) / 1_000_000
}

impl ManualClock {
    /// Advances both clocks.
    pub fn pass_ms(&self, ms: u64) {
        self.boot_ms.fetch_add(ms, Ordering::SeqCst);
        self.unix_ms.fetch_add(ms, Ordering::SeqCst);
    }

    /// Sets only the wall clock, as an operator or a time server does.
    pub fn set_unix_ms(&self, ms: u64) {
        self.unix_ms.store(ms, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_can_be_written_also_one_that_somebody_made_up() {
        assert_eq!(rfc3339(1_795_575_600_001), "2026-11-25T03:00:00.001Z");
        assert_eq!(rfc3339(LAST_MS), "9999-12-31T23:59:59.999Z");
        assert_eq!(rfc3339(u64::MAX), rfc3339(LAST_MS));
    }
}
