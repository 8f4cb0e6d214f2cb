//! The one shared connection for commands: kept, given up when it is in doubt, and made anew.
//!
//! Danger: a command can lie in a socket long after its caller gave up, and be carried out then. The released marker
//! outlives that only because the time is bounded: what was not yet written is dropped with its caller (the multiplexer
//! skips commands that nobody waits for), and what was written and not acknowledged dies with the connection after
//! `UNACKNOWLEDGED_MAX`. What a stopped server has in its own buffers it carries out when it goes on; but only then does
//! it carry out the marker as well, and count the marker's time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, Pipeline, PushKind, Value};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::dial::{Dialer, Dialled};
use super::fault;
use crate::store::StoreError;

/// The first pause between two attempts to connect.
const PAUSE_MIN: Duration = Duration::from_millis(50);

/// The longest pause: a server that is back is found within about this time.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The shared connection, whatever state it is in. Ends its work when dropped.
pub(super) struct Links {
    states: watch::Receiver<State>,
    timeout: Duration,
    _keeper: AbortOnDropHandle<()>,
}

#[derive(Clone)]
enum State {
    /// The first attempt is under way: worth waiting for.
    Connecting,
    Up(Link),
    /// The last attempt failed for this reason: until one succeeds, calls fail at once instead of piling up.
    Down(String),
}

/// One connection, and the doubts about it.
#[derive(Clone)]
struct Link {
    connection: MultiplexedConnection,
    _driver: Arc<AbortOnDropHandle<()>>,
    doubt: Arc<Doubt>,
}

#[derive(Default)]
struct Doubt {
    raised: Notify,
    /// It works and is of no use: it leads to a replica.
    useless: AtomicBool,
}

/// What a call sends.
pub(super) enum Ask<'a> {
    One(&'a Cmd),
    Many(&'a Pipeline),
}

impl Links {
    /// Begins to connect. Must be called within a tokio runtime.
    pub(super) fn keep(dialer: Dialer) -> Links {
        let (sender, states) = watch::channel(State::Connecting);
        let timeout = dialer.timeout;
        Links { states, timeout, _keeper: AbortOnDropHandle::new(tokio::spawn(keep(dialer, sender))) }
    }

    /// Sends a command and waits for its answer; together, and with the wait for a connection, within the timeout.
    pub(super) async fn call(&self, ask: Ask<'_>) -> Result<Value, Failure> {
        let deadline = Instant::now() + self.timeout;
        let mut link = self.link(deadline).await.map_err(Failure::Refused)?;
        let answer = async {
            match ask {
                Ask::One(command) => command.query_async::<Value>(&mut link.connection).await,
                Ask::Many(pipeline) => pipeline.query_async::<Vec<Value>>(&mut link.connection).await.map(Value::Array),
            }
        };
        match timeout_at(deadline, answer).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                if fault::is_replica(&error) {
                    link.doubt.useless.store(true, Ordering::Relaxed);
                    link.doubt.raised.notify_one();
                } else if fault::is_transport(&error) {
                    link.doubt.raised.notify_one();
                }
                Err(Failure::Answered(error))
            }
            Err(_) => {
                link.doubt.raised.notify_one();
                let text = format!("no answer within {}", humantime::format_duration(self.timeout));
                Err(Failure::Refused(StoreError::MaybeApplied(text)))
            }
        }
    }

    async fn link(&self, deadline: Instant) -> Result<Link, StoreError> {
        if let State::Up(link) = &*self.states.borrow() {
            return Ok(link.clone());
        }
        let mut states = self.states.clone();
        let settled = timeout_at(deadline, states.wait_for(|state| !matches!(state, State::Connecting))).await;
        match settled.ok().and_then(Result::ok).as_deref() {
            Some(State::Up(link)) => Ok(link.clone()),
            Some(State::Down(reason)) => Err(StoreError::NotApplied(reason.clone())),
            _ => Err(StoreError::NotApplied(format!("no connection within {}", humantime::format_duration(self.timeout)))),
        }
    }
}

/// A call without an answer to use.
pub(super) enum Failure {
    /// There is no more to say about it.
    Refused(StoreError),
    /// The connection or the server answered with an error.
    Answered(redis::RedisError),
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> StoreError {
        match failure {
            Failure::Refused(error) => error,
            Failure::Answered(error) => fault::of_command(&error),
        }
    }
}

async fn keep(dialer: Dialer, states: watch::Sender<State>) {
    let mut pause = Pause::default();
    loop {
        let doubt = Arc::new(Doubt::default());
        let witness = doubt.clone();
        let dialled = dialer.dial(move |info| {
            if info.kind == PushKind::Disconnection {
                witness.raised.notify_one();
            }
        });
        match dialled.await {
            Ok(Dialled { connection, driver }) => {
                let born = Instant::now();
                let link = Link { connection, _driver: Arc::new(driver), doubt };
                states.send_replace(State::Up(link.clone()));
                link.wears_out(dialer.timeout).await;
                states.send_replace(State::Connecting);
                tracing::warn!("the connection to the store is lost, connecting again");
                // One that lasted is replaced at once; one that fails again and again is not hammered.
                if born.elapsed() >= PAUSE_MAX {
                    pause = Pause::default();
                    continue;
                }
            }
            Err(error) => {
                let reason = fault::of_connecting(&error);
                tracing::debug!(reason, "no connection to the store");
                states.send_replace(State::Down(reason));
            }
        }
        pause.pass().await;
    }
}

impl Link {
    /// Returns when the connection is to be replaced. Calls that are still under way on it may finish.
    async fn wears_out(&self, timeout: Duration) {
        let mut connection = self.connection.clone();
        let ping = redis::cmd("PING");
        loop {
            self.doubt.raised.notified().await;
            let deadline = Instant::now() + timeout;
            let answer = timeout_at(deadline, connection.send_packed_command(&ping)).await;
            // An error of the server is an answer, too.
            if self.doubt.useless.load(Ordering::Relaxed) || !matches!(answer, Ok(Ok(_))) {
                return;
            }
        }
    }
}

/// The pauses between attempts: growing, and jittered so that many gateways don't return in step.
#[derive(Default)]
pub(super) struct Pause(u32);

impl Pause {
    /// Waits for the next pause.
    pub(super) async fn pass(&mut self) {
        let most = PAUSE_MIN.saturating_mul(1 << self.0.min(5)).min(PAUSE_MAX);
        self.0 = self.0.saturating_add(1);
        // Without randomness the pause is just not jittered.
        let share = getrandom::u32().unwrap_or(u32::MAX);
        tokio::time::sleep(most.mul_f64(0.5 + 0.5 * f64::from(share) / f64::from(u32::MAX))).await;
    }
}
