//! A gateway's process: it runs, is stopped for a while, or is dead.
//!
//! A stopped process sends and receives nothing: its store commands are not sent, answers reach it
//! only when it runs again, and its requests, sweeper and reconciler are not polled. Its clock
//! continues. The simulation can't stop the tasks that the gate itself spawns. Their timers fire on
//! time, and the tasks then wait at the first step that would leave the process, as in a process
//! with only some threads stopped.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use onceward::key::Slot;
use onceward::store::outbox::OutboxWake;
use onceward::store::{Hub, Watch};
use tokio::sync::broadcast;
use tokio::time::{Instant, sleep_until};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stand {
    Runs,
    Stopped,
    Dead,
}

pub struct Process {
    pub gateway: usize,
    /// The number of starts of this gateway.
    pub life: usize,
    /// The waiters of this process for each record. Each has a hub of its own, because the wake
    /// order of a shared hub is not under the simulation's control.
    watched: Mutex<Vec<(Slot, Hub)>>,
    /// The wake-ups of its relays.
    pub wakes: broadcast::Sender<OutboxWake>,
    /// The error of the wall clock, in ms.
    pub wall_off_ms: AtomicI64,
    state: Mutex<State>,
}

struct State {
    stand: Stand,
    /// The beginning and end of the current stop.
    stopped: Option<(Instant, Instant)>,
    stopped_before: Duration,
    cut_off_until: Option<Instant>,
    wakers: Vec<Waker>,
}

impl Process {
    pub fn start(gateway: usize, life: usize, wall_off_ms: i64) -> Arc<Process> {
        let state = State {
            stand: Stand::Runs,
            stopped: None,
            stopped_before: Duration::ZERO,
            cut_off_until: None,
            wakers: Vec::new(),
        };
        Arc::new(Process {
            gateway,
            life,
            watched: Mutex::default(),
            wakes: broadcast::Sender::new(16),
            wall_off_ms: AtomicI64::new(wall_off_ms),
            state: Mutex::new(state),
        })
    }

    pub fn stand(&self) -> Stand {
        self.state.lock().unwrap().stand
    }

    pub fn wall_off_ms(&self) -> i64 {
        self.wall_off_ms.load(Ordering::Relaxed)
    }

    /// Stops it for a while.
    pub fn stop(self: &Arc<Process>, span: Duration) -> bool {
        let now = Instant::now();
        {
            let mut state = self.state.lock().unwrap();
            if state.stand != Stand::Runs {
                return false;
            }
            state.stand = Stand::Stopped;
            state.stopped = Some((now, now + span));
        }
        let process = self.clone();
        tokio::spawn(async move {
            sleep_until(now + span).await;
            process.go_on();
        });
        true
    }

    /// Resumes it if it is stopped.
    pub fn go_on(&self) {
        let mut state = self.state.lock().unwrap();
        if state.stand == Stand::Stopped {
            state.stand = Stand::Runs;
            if let Some((since, _)) = state.stopped.take() {
                state.stopped_before += since.elapsed();
            }
            state.wakers.drain(..).for_each(Waker::wake);
        }
    }

    /// Kills it for good.
    pub fn die(&self) {
        let mut state = self.state.lock().unwrap();
        state.stand = Stand::Dead;
        state.wakers.drain(..).for_each(Waker::wake);
    }

    /// Returns the total time for which it was stopped.
    pub fn stopped_for(&self) -> Duration {
        let state = self.state.lock().unwrap();
        state.stopped_before + state.stopped.map_or(Duration::ZERO, |(since, _)| since.elapsed())
    }

    /// Watches a record for one request.
    pub fn watch(&self, slot: &Slot) -> Watch {
        let hub = Hub::local();
        let watch = hub.watch(slot);
        self.watched.lock().unwrap().push((*slot, hub));
        watch
    }

    /// Wakes the waiters for a record.
    pub fn notify(&self, slot: &Slot) {
        let mut watched = self.watched.lock().unwrap();
        watched.retain(|(slot, hub)| hub.is_watched(slot));
        watched.iter().filter(|(one, _)| one == slot).for_each(|(_, hub)| hub.notify(slot));
    }

    pub fn cut_off(&self, span: Duration) {
        self.state.lock().unwrap().cut_off_until = Some(Instant::now() + span);
    }

    pub fn reconnect(&self) {
        self.state.lock().unwrap().cut_off_until = None;
    }

    /// The end of the time without a connection between it and the store.
    pub fn cut_off_until(&self) -> Option<Instant> {
        self.state.lock().unwrap().cut_off_until.filter(|until| *until > Instant::now())
    }

    fn look(&self, cx: &Context<'_>) -> Stand {
        let mut state = self.state.lock().unwrap();
        if state.stand != Stand::Dead
            && !state.wakers.iter().any(|waker| waker.will_wake(cx.waker()))
        {
            state.wakers.push(cx.waker().clone());
        }
        state.stand
    }

    /// Returns when the process runs: at once, later, or never.
    pub async fn runs(&self) {
        if self.stand() == Stand::Runs {
            return;
        }
        poll_fn(|cx| if self.look(cx) == Stand::Runs { Poll::Ready(()) } else { Poll::Pending })
            .await;
    }

    /// Runs something in this process. Returns `None` if the process died first.
    pub async fn within<F: Future>(&self, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        poll_fn(|cx| match self.look(cx) {
            Stand::Runs => future.as_mut().poll(cx).map(Some),
            Stand::Stopped => Poll::Pending,
            Stand::Dead => Poll::Ready(None),
        })
        .await
    }
}
