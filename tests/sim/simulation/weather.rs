//! Random faults of gateways and the store: stops, deaths, partitions, stalls.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::history::Occurrence;
use super::process::Stand;
use super::world::World;

/// Longest stall of the store: the time for which a connection lives without an answer.
const STALL_MAX_MS: u64 = 20_000;

impl World {
    /// Causes faults until the calm, and starts dead gateways again.
    pub async fn weather(self: Arc<World>) {
        let calm = Instant::now() + self.plan.calm;
        while Instant::now() < calm && !self.is_quiet() {
            sleep(self.dice.span(100, 4000)).await;
            self.restart();
            if self.plan.loses {
                self.hang_and_lose().await;
            } else if self.plan.weather {
                self.turn();
            }
            if self.plan.sinks.is_some() && self.dice.chance(150) {
                let place = self.dice.below(self.plan.gateways);
                self.restart_relay(self.gateway(place));
            }
        }
        self.clear_up();
    }

    /// No client has come for a while, so little can still go wrong.
    fn is_quiet(&self) -> bool {
        const QUIET: Duration = Duration::from_secs(10);
        self.book().quiet_since.is_some_and(|since| since.elapsed() > QUIET)
    }

    fn turn(&self) {
        let place = self.dice.below(self.plan.gateways);
        let process = self.gateway(place).process;
        match self.dice.below(8) {
            0 => self.stop(&process, None),
            1 if self.plan.rates.die > 0 => self.kill(&process, None),
            2 | 3 => {
                let span = self.dice.span(100, 12_000);
                process.cut_off(span);
                self.trouble(Some(place), "cut off from the store", span);
                self.count("gateway: is cut off");
            }
            4 => {
                let span = if self.dice.chance(300) {
                    self.dice.span(1, STALL_MAX_MS)
                } else {
                    self.dice.span(1, 2000)
                };
                self.stall(span);
            }
            5 => {
                let off_ms = self.dice.below(7_200_000) as i64 - 3_600_000;
                process.wall_off_ms.store(off_ms, std::sync::atomic::Ordering::Relaxed);
                self.trouble(Some(place), "its wall clock is set", Duration::ZERO);
                self.count("gateway: its wall clock is set");
            }
            _ => {}
        }
    }

    /// Hangs the store for a while. It then either continues, or is replaced by one that lacks its
    /// last writes.
    async fn hang_and_lose(&self) {
        let begun_ms = self.store_ms();
        let span = if self.dice.chance(300) {
            self.dice.span(1, STALL_MAX_MS)
        } else {
            self.dice.span(1, 2000)
        };
        let loses = self.dice.chance(700);
        self.stall(span);
        // Before the commands that wait for the end of the stall are carried out.
        sleep(span.saturating_sub(Duration::from_millis(1))).await;
        if loses {
            self.lose(begun_ms);
        }
    }

    fn stall(&self, span: Duration) {
        let until = Instant::now() + span;
        {
            let mut book = self.book();
            if book.stalled_until.is_some_and(|before| before > Instant::now()) {
                return;
            }
            book.stalled_until = Some(until);
            book.stalled_for += span;
        }
        self.trouble(None, "the store stalls", span);
        self.count("store: begins to stall");
    }

    pub fn trouble(&self, gateway: Option<usize>, what: &'static str, span: Duration) {
        self.note(gateway, None, Occurrence::Trouble { what, for_ms: span.as_millis() as u64 });
    }

    /// Ends all faults. Commands and requests in progress keep their fate.
    fn clear_up(self: &Arc<World>) {
        {
            let mut book = self.book();
            book.calm = true;
            book.stalled_until = None;
        }
        self.restart();
        for place in 0..self.plan.gateways {
            let process = self.gateway(place).process;
            process.reconnect();
            process.go_on();
            debug_assert_eq!(process.stand(), Stand::Runs);
        }
        self.trouble(None, "none any more", Duration::ZERO);
    }
}
