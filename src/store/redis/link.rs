//! A server's shared connection for commands: kept, given up when it is in doubt, and made anew.
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
use redis::{Cmd, Pipeline, PushKind, RedisError, Value};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::breaker::Breaker;
use super::dial::{Address, Dialer, Dialled};
use super::epoch::{Generation, Lineage, new_generation};
use super::{fault, sentinel};
use crate::store::StoreError;

/// The first pause between two attempts to connect.
const PAUSE_MIN: Duration = Duration::from_millis(50);

/// The longest pause: a server that is back is found within about this time.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The shared connection, whatever state it is in. Ends its work when dropped.
pub(super) struct Links {
    states: watch::Receiver<State>,
    timeout: Duration,
    breaker: Breaker,
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
    address: Address,
    generation: Generation,
    doubt: Arc<Doubt>,
}

#[derive(Default)]
struct Doubt {
    raised: Notify,
    /// It works and is of no use: it leads to a replica, or to a server that was replaced.
    useless: AtomicBool,
}

impl Doubt {
    fn leave(&self) {
        self.useless.store(true, Ordering::Relaxed);
        self.raised.notify_one();
    }
}

/// What a call sends.
#[derive(Clone, Copy)]
pub(super) enum Ask<'a> {
    /// A command; an error of the server is the call's.
    One(&'a Cmd),
    /// Commands; the answer is an array, which has the errors of the server among the values.
    Many(&'a Pipeline),
}

impl Links {
    /// Begins to connect. Must be called within a tokio runtime.
    pub(super) fn keep(dialer: Dialer) -> Links {
        let (sender, states) = watch::channel(State::Connecting);
        let (timeout, breaker) = (dialer.timeout, Breaker::new(dialer.breakers.clone()));
        Links {
            states,
            timeout,
            breaker,
            _keeper: AbortOnDropHandle::new(tokio::spawn(keep(dialer, sender))),
        }
    }

    /// The server's history of writes.
    ///
    /// # Errors
    /// There is no connection.
    pub(super) async fn generation(&self, deadline: Instant) -> Result<Generation, StoreError> {
        Ok(self.link(deadline).await?.generation)
    }

    /// The address of the server that is connected.
    ///
    /// # Errors
    /// There is no connection.
    pub(super) async fn address(&self, deadline: Instant) -> Result<Address, StoreError> {
        Ok(self.link(deadline).await?.address)
    }

    /// Sends a command and waits for its answer, until the deadline; the wait for a connection counts. Where `under` names a
    /// history of writes, nothing is sent to a server that has another.
    pub(super) async fn call(
        &self,
        ask: Ask<'_>,
        under: Option<Generation>,
        deadline: Instant,
    ) -> Result<Value, Failure> {
        let pass = self.breaker.pass().map_err(Failure::Refused)?;
        let mut link = match self.link(deadline).await {
            Ok(link) => link,
            Err(error) => {
                if Instant::now() >= deadline {
                    pass.unanswered();
                }
                return Err(Failure::Refused(error));
            }
        };
        if under.is_some_and(|under| under != link.generation) {
            return Err(Failure::Replaced);
        }
        let answer = async {
            match ask {
                Ask::One(command) => command.query_async::<Value>(&mut link.connection).await,
                // Boxed: commands alone, of which a request needs two, must not carry what a pipeline takes.
                Ask::Many(pipeline) => {
                    Box::pin(link.connection.send_packed_commands(pipeline, 0, pipeline.len()))
                        .await
                        .map(Value::Array)
                }
            }
        };
        match timeout_at(deadline, answer).await {
            Ok(Ok(value)) => {
                pass.answered();
                Ok(value)
            }
            Ok(Err(error)) => {
                if !fault::is_transport(&error) {
                    pass.answered();
                }
                link.judge(&error);
                Err(Failure::Answered(error))
            }
            Err(_) => {
                pass.unanswered();
                link.doubt.raised.notify_one();
                Err(Failure::Refused(StoreError::MaybeApplied(self.no_answer())))
            }
        }
    }

    /// What is said of a call that the server didn't answer in time.
    pub(super) fn no_answer(&self) -> String {
        format!("no answer within {}", humantime::format_duration(self.timeout))
    }

    /// An error that stood among the answers of [`Ask::Many`].
    pub(super) fn told_of(&self, error: &RedisError) {
        if let State::Up(link) = &*self.states.borrow() {
            link.judge(error);
        }
    }

    async fn link(&self, deadline: Instant) -> Result<Link, StoreError> {
        if let State::Up(link) = &*self.states.borrow() {
            return Ok(link.clone());
        }
        let mut states = self.states.clone();
        let settled = Box::pin(timeout_at(
            deadline,
            states.wait_for(|state| !matches!(state, State::Connecting)),
        ))
        .await;
        match settled.ok().and_then(Result::ok).as_deref() {
            Some(State::Up(link)) => Ok(link.clone()),
            Some(State::Down(reason)) => Err(StoreError::NotApplied(reason.clone())),
            _ => Err(StoreError::NotApplied(format!(
                "no connection within {}",
                humantime::format_duration(self.timeout)
            ))),
        }
    }
}

/// A call without an answer to use.
pub(super) enum Failure {
    /// There is no more to say about it.
    Refused(StoreError),
    /// The connection or the server answered with an error.
    Answered(RedisError),
    /// The server has another history of writes than the call went by: nothing was sent.
    Replaced,
}

impl Failure {
    /// Names the command at this place of what was sent, where the server's ACL refused it.
    pub(super) fn naming(self, ask: Ask<'_>, place: usize) -> Failure {
        let Failure::Answered(error) = &self else { return self };
        let command = match ask {
            Ask::One(command) => Some(command),
            Ask::Many(pipeline) => pipeline.cmd_iter().nth(place),
        };
        let name = command.and_then(|command| match command.args_iter().next() {
            Some(redis::Arg::Simple(name)) => std::str::from_utf8(name).ok(),
            _ => None,
        });
        match fault::denial(error, name.unwrap_or("a command")) {
            // A command that is denied is not begun; those before it in a pipeline may be done.
            Some(denial) if matches!(ask, Ask::One(_)) && !fault::is_within_script(error) => {
                Failure::Refused(StoreError::NotApplied(denial))
            }
            Some(denial) => Failure::Refused(StoreError::MaybeApplied(denial)),
            None => self,
        }
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> StoreError {
        match failure {
            Failure::Refused(error) => error,
            Failure::Answered(error) => fault::of_command(&error),
            Failure::Replaced => {
                StoreError::NotApplied("the server was restarted or replaced".into())
            }
        }
    }
}

async fn keep(dialer: Dialer, states: watch::Sender<State>) {
    let mut pause = Pause::default();
    let mut history = History::default();
    loop {
        let doubt = Arc::new(Doubt::default());
        let witness = doubt.clone();
        let dialled = dialer.dial(move |info| {
            if info.kind == PushKind::Disconnection {
                witness.raised.notify_one();
            }
        });
        let dialled = async {
            let dialled = dialled.await?;
            let generation = history.read(&dialled.connection, dialer.timeout).await?;
            Ok::<_, String>((dialled, generation))
        };
        match dialled.await {
            Ok((Dialled { connection, driver, address }, generation)) => {
                dialer.confirmation.learn(&connection, dialer.timeout).await;
                let born = Instant::now();
                let link =
                    Link { connection, _driver: Arc::new(driver), address, generation, doubt };
                states.send_replace(State::Up(link.clone()));
                dialer.replaced.notify_one();
                tokio::select! {
                    () = link.wears_out(dialer.timeout) => {}
                    () = sentinel::replaced(&dialer, &link.address) => {}
                }
                states.send_replace(State::Connecting);
                tracing::warn!("the connection to the store is lost, connecting again");
                // One that lasted is replaced at once; one that fails again and again is not hammered.
                if born.elapsed() >= PAUSE_MAX {
                    pause = Pause::default();
                    continue;
                }
            }
            Err(reason) => {
                tracing::debug!(reason, "no connection to the store");
                states.send_replace(State::Down(reason));
            }
        }
        pause.pass().await;
    }
}

/// The history of writes that a server was last seen to have.
#[derive(Default)]
struct History(Option<(Option<Lineage>, Generation)>);

impl History {
    /// Asks a server for its own, and numbers it. One that doesn't tell might be another each time.
    async fn read(
        &mut self,
        connection: &MultiplexedConnection,
        limit: Duration,
    ) -> Result<Generation, String> {
        let lineage = Lineage::of(connection, limit).await?;
        let generation = match &self.0 {
            Some((known, generation)) if lineage.is_some() && *known == lineage => *generation,
            _ => new_generation(),
        };
        self.0 = Some((lineage, generation));
        Ok(generation)
    }
}

impl Link {
    /// What an error of the server says about the connection.
    fn judge(&self, error: &RedisError) {
        if fault::is_replica(error) {
            self.doubt.leave();
        } else if fault::is_transport(error) {
            self.doubt.raised.notify_one();
        }
    }

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
        tokio::time::sleep(jittered(most)).await;
    }
}

/// At least half of a span.
pub(super) fn jittered(most: Duration) -> Duration {
    // Without randomness it is just not jittered.
    let share = getrandom::u32().unwrap_or(u32::MAX);
    most.mul_f64(0.5 + 0.5 * f64::from(share) / f64::from(u32::MAX))
}
