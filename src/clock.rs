//! Time, passed in: the one room that reads clocks. And how a time is written.
//!
//! Danger: a clock that stands still while the process is stopped would let a gateway send a payment on a claim
//! that is long over. So spans are measured by a clock that runs on through a stop of the process or a suspended machine.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

/// The last millisecond that RFC 3339 can write: it gives years four digits.
const LAST_MS: u64 = 253_402_300_799_999;

/// A time, in ms since 1970, as RFC 3339 writes it, in UTC. What is later than the year 9999 is written as its end: times are
/// read from stores, and whoever can write there must not be able to stop what shows them.
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

/// A store's clock: milliseconds since 1970 that only run forward.
pub type StoreClock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// A clock that tests move by hand.
#[derive(Debug, Default)]
pub struct ManualClock {
    boot_ms: AtomicU64,
    unix_ms: AtomicU64,
}

impl Clock {
    /// The machine's clocks.
    pub fn system() -> Clock {
        Clock(ClockSource::System)
    }

    /// A clock that only moves when told, with the handle that moves it.
    pub fn manual(boot_ms: u64, unix_ms: u64) -> (Clock, Arc<ManualClock>) {
        let manual = Arc::new(ManualClock { boot_ms: boot_ms.into(), unix_ms: unix_ms.into() });
        (Clock(ClockSource::Manual(manual.clone())), manual)
    }

    /// Clocks from elsewhere, for simulations that have a time of their own. The first must run on while the process is
    /// stopped, as [`Clock::boot_ms`] does.
    pub fn given(
        boot_ms: Arc<dyn Fn() -> u64 + Send + Sync>,
        unix_ms: Arc<dyn Fn() -> u64 + Send + Sync>,
    ) -> Clock {
        Clock(ClockSource::Given { boot_ms, unix_ms })
    }

    /// Milliseconds since the machine started, suspension included (`CLOCK_BOOTTIME`). For spans of time.
    pub fn boot_ms(&self) -> u64 {
        match &self.0 {
            ClockSource::System => {
                #[cfg(any(target_os = "linux", target_os = "android"))]
                let id = rustix::time::ClockId::Boottime;
                // Elsewhere the monotonic clock is the nearest there is; on macOS it runs on through sleep.
                #[cfg(not(any(target_os = "linux", target_os = "android")))]
                let id = rustix::time::ClockId::Monotonic;
                millis(rustix::time::clock_gettime(id))
            }
            ClockSource::Manual(manual) => manual.boot_ms.load(Ordering::SeqCst),
            ClockSource::Given { boot_ms, .. } => boot_ms(),
        }
    }

    /// Milliseconds since 1970 by this machine's wall clock. For people, `Date` fields and the
    /// times in tokens, which are their issuer's; never for leases or retention.
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
    /// The clock of a store in this process: the wall clock as it is now, run on by the other one. A wall clock that is
    /// set while the process runs expires nothing early.
    pub fn anchored(&self) -> StoreClock {
        let clock = self.clone();
        let (boot_ms, unix_ms) = (self.boot_ms(), self.unix_ms());
        Arc::new(move || unix_ms + clock.boot_ms().saturating_sub(boot_ms))
    }
}

/// Microseconds of the monotonic clock, by which a service manager tells one reload from another.
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
    /// Lets time pass on both clocks.
    pub fn pass_ms(&self, ms: u64) {
        self.boot_ms.fetch_add(ms, Ordering::SeqCst);
        self.unix_ms.fetch_add(ms, Ordering::SeqCst);
    }

    /// Sets the wall clock alone, as an operator or a time server does.
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
