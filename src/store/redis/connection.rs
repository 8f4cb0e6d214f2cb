//! The shared connection to one server. It is kept open, and replaced when it fails.
//!
//! Danger: a command can wait in a socket long after its caller gave up, and run then. If that
//! command is a claim, a released marker must still be in the slot. The marker lasts longer than
//! the command can wait:
//!
//! - A command that was not written yet is dropped with its caller: the multiplexer skips commands
//!   without a waiting caller.
//! - A command that was written and not acknowledged is dropped with the connection, after
//!   `UNACKNOWLEDGED_MAX`.
//! - A stopped server runs the commands in its own buffers only when it resumes. It stores the
//!   marker at the same time, so the marker's time starts only then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, Pipeline, PushKind, RedisError, Value};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::backoff::{BACKOFF_MAX, ReconnectBackoff};
use super::breaker::Breaker;
use super::connect::Connector;
use super::fault;
use super::lineage::{LastLineage, LineageId};
use super::transport::{Address, NewConnection};
use crate::store::StoreError;

/// The shared connection to a server, in any state. Dropping it closes the connection.
pub(super) struct ServerConnection {
    status: watch::Receiver<ConnectionStatus>,
    timeout: Duration,
    breaker: Breaker,
    _keeper: AbortOnDropHandle<()>,
}

#[derive(Clone)]
enum ConnectionStatus {
    /// The first attempt is in progress, so calls wait for it.
    Connecting,
    Up(LiveConnection),
    /// The last attempt failed for this reason. Until an attempt succeeds, calls fail at once, so
    /// they don't accumulate.
    Down(String),
}

/// One open connection, and the signal that replaces it.
#[derive(Clone)]
struct LiveConnection {
    connection: MultiplexedConnection,
    _driver: Arc<AbortOnDropHandle<()>>,
    address: Address,
    lineage_id: LineageId,
    suspicion: Arc<Suspicion>,
}

/// Signals that a connection may be unusable.
#[derive(Default)]
struct Suspicion {
    raised: Notify,
    /// The connection works but is useless: it leads to a replica, or to a server that was
    /// replaced.
    useless: AtomicBool,
}

impl Suspicion {
    fn mark_useless(&self) {
        self.useless.store(true, Ordering::Relaxed);
        self.raised.notify_one();
    }
}

/// The commands of a call.
#[derive(Clone, Copy)]
pub(super) enum Commands<'a> {
    /// One command. An error of the server is the call's error.
    One(&'a Cmd),
    /// Several commands. The answer is an array, with the server's errors among the values.
    Many(&'a Pipeline),
}

impl ServerConnection {
    /// Starts to connect in the background. Must be called within a tokio runtime.
    pub(super) fn open(connector: Connector) -> ServerConnection {
        let (sender, status) = watch::channel(ConnectionStatus::Connecting);
        let (timeout, breaker) = (connector.timeout, Breaker::new(connector.breakers.clone()));
        ServerConnection {
            status,
            timeout,
            breaker,
            _keeper: AbortOnDropHandle::new(tokio::spawn(keep_connected(connector, sender))),
        }
    }

    /// Returns the number of the server's lineage.
    ///
    /// # Errors
    /// There is no connection.
    pub(super) async fn lineage_id(&self, deadline: Instant) -> Result<LineageId, StoreError> {
        Ok(self.live(deadline).await?.lineage_id)
    }

    /// Returns the address of the connected server.
    ///
    /// # Errors
    /// There is no connection.
    pub(super) async fn address(&self, deadline: Instant) -> Result<Address, StoreError> {
        Ok(self.live(deadline).await?.address)
    }

    /// Sends commands and waits for the answer until the deadline, which includes the wait for a
    /// connection. With a `lineage`, sends nothing to a server of another lineage.
    async fn call(
        &self,
        commands: Commands<'_>,
        lineage: Option<LineageId>,
        deadline: Instant,
    ) -> Result<Value, CallError> {
        let pass = self.breaker.pass().map_err(CallError::Store)?;
        let mut live = match self.live(deadline).await {
            Ok(live) => live,
            Err(error) => {
                if Instant::now() >= deadline {
                    pass.unanswered();
                }
                return Err(CallError::Store(error));
            }
        };
        if lineage.is_some_and(|required| required != live.lineage_id) {
            return Err(CallError::Replaced);
        }
        let answer = async {
            match commands {
                Commands::One(command) => command.query_async::<Value>(&mut live.connection).await,
                // Boxed, because the state of a pipeline's future is large. Single commands, two
                // for each request, must not reserve memory for it.
                Commands::Many(pipeline) => {
                    Box::pin(live.connection.send_packed_commands(pipeline, 0, pipeline.len()))
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
                live.note_error(&error);
                Err(CallError::Redis(error))
            }
            Err(_) => {
                pass.unanswered();
                live.suspicion.raised.notify_one();
                let limit = humantime::format_duration(self.timeout);
                let error = StoreError::MaybeApplied(format!("no answer within {limit}"));
                Err(CallError::Store(error))
            }
        }
    }

    /// Like `call`, but the first error among the answers of [`Commands::Many`] is the call's
    /// error. With a `lineage`, sends nothing to a server of another lineage.
    pub(super) async fn call_strict(
        &self,
        commands: Commands<'_>,
        lineage: Option<LineageId>,
        deadline: Instant,
    ) -> Result<Value, CallError> {
        let answer = self.call(commands, lineage, deadline).await;
        match answer.map_err(|error| error.with_command_name(commands, 0))? {
            Value::Array(values) if matches!(commands, Commands::Many(_)) => {
                for (n, value) in values.iter().enumerate() {
                    if let Value::ServerError(error) = value {
                        let error = RedisError::from(error.clone());
                        self.note_error(&error);
                        return Err(CallError::Redis(error).with_command_name(commands, n));
                    }
                }
                Ok(Value::Array(values))
            }
            value => Ok(value),
        }
    }

    /// Replaces the connection if an error among the answers shows that it is unusable.
    fn note_error(&self, error: &RedisError) {
        if let ConnectionStatus::Up(live) = &*self.status.borrow() {
            live.note_error(error);
        }
    }

    async fn live(&self, deadline: Instant) -> Result<LiveConnection, StoreError> {
        if let ConnectionStatus::Up(live) = &*self.status.borrow() {
            return Ok(live.clone());
        }
        let mut status = self.status.clone();
        let attempted = Box::pin(timeout_at(
            deadline,
            status.wait_for(|status| !matches!(status, ConnectionStatus::Connecting)),
        ))
        .await;
        match attempted.ok().and_then(Result::ok).as_deref() {
            Some(ConnectionStatus::Up(live)) => Ok(live.clone()),
            Some(ConnectionStatus::Down(reason)) => Err(StoreError::NotApplied(reason.clone())),
            _ => Err(StoreError::NotApplied(format!(
                "no connection within {}",
                humantime::format_duration(self.timeout)
            ))),
        }
    }
}

/// A call without a usable answer.
pub(super) enum CallError {
    /// An error that is final for the caller.
    Store(StoreError),
    /// An error of the connection, or an error that the server answered with.
    Redis(RedisError),
    /// The server has another lineage than the call required. Nothing was sent.
    Replaced,
}

impl CallError {
    /// Names the command at this position of the call if the server's ACL refused it.
    fn with_command_name(self, commands: Commands<'_>, position: usize) -> CallError {
        let CallError::Redis(error) = &self else { return self };
        let command = match commands {
            Commands::One(command) => Some(command),
            Commands::Many(pipeline) => pipeline.cmd_iter().nth(position),
        };
        let name = command.and_then(|command| match command.args_iter().next() {
            Some(redis::Arg::Simple(name)) => std::str::from_utf8(name).ok(),
            _ => None,
        });
        match fault::denial(error, name.unwrap_or("a command")) {
            // A denied command does not start. Commands before it in a pipeline may have run.
            Some(denial)
                if matches!(commands, Commands::One(_)) && !fault::is_within_script(error) =>
            {
                CallError::Store(StoreError::NotApplied(denial))
            }
            Some(denial) => CallError::Store(StoreError::MaybeApplied(denial)),
            None => self,
        }
    }
}

impl From<CallError> for StoreError {
    fn from(error: CallError) -> StoreError {
        match error {
            CallError::Store(error) => error,
            CallError::Redis(error) => fault::of_command(&error),
            CallError::Replaced => {
                StoreError::NotApplied("the server was restarted or replaced".into())
            }
        }
    }
}

async fn keep_connected(connector: Connector, status: watch::Sender<ConnectionStatus>) {
    let mut backoff = ReconnectBackoff::default();
    let mut last = LastLineage::default();
    loop {
        let suspicion = Arc::new(Suspicion::default());
        let on_disconnection = suspicion.clone();
        let connecting = connector.connect(move |info| {
            if info.kind == PushKind::Disconnection {
                on_disconnection.raised.notify_one();
            }
        });
        let opened = async {
            let opened = connecting.await?;
            let lineage_id = last.read(&opened.connection, connector.timeout).await?;
            Ok::<_, String>((opened, lineage_id))
        };
        match opened.await {
            Ok((NewConnection { connection, driver, address }, lineage_id)) => {
                connector.confirmation.detect_disk_ack(&connection, connector.timeout).await;
                let opened_at = Instant::now();
                let driver = Arc::new(driver);
                let live =
                    LiveConnection { connection, _driver: driver, address, lineage_id, suspicion };
                status.send_replace(ConnectionStatus::Up(live.clone()));
                connector.replaced.notify_one();
                tokio::select! {
                    () = live.until_unusable(connector.timeout) => {}
                    () = connector.until_replaced(&live.address) => {}
                }
                status.send_replace(ConnectionStatus::Connecting);
                tracing::warn!("the connection to the store is lost, connecting again");
                // If the connection had lasted, connect again at once. Otherwise wait, to spare the
                // server.
                if opened_at.elapsed() >= BACKOFF_MAX {
                    backoff = ReconnectBackoff::default();
                    continue;
                }
            }
            Err(reason) => {
                tracing::debug!(reason, "no connection to the store");
                status.send_replace(ConnectionStatus::Down(reason));
            }
        }
        backoff.wait().await;
    }
}

impl LiveConnection {
    /// Raises the suspicion if an error shows that the connection is unusable.
    fn note_error(&self, error: &RedisError) {
        if fault::is_replica(error) {
            self.suspicion.mark_useless();
        } else if fault::is_transport(error) {
            self.suspicion.raised.notify_one();
        }
    }

    /// Returns when the connection must be replaced. Calls that are in progress on it may still
    /// finish.
    async fn until_unusable(&self, timeout: Duration) {
        let mut connection = self.connection.clone();
        let ping = redis::cmd("PING");
        loop {
            self.suspicion.raised.notified().await;
            let deadline = Instant::now() + timeout;
            let answer = timeout_at(deadline, connection.send_packed_command(&ping)).await;
            // An error of the server is an answer, too.
            if self.suspicion.useless.load(Ordering::Relaxed) || !matches!(answer, Ok(Ok(_))) {
                return;
            }
        }
    }
}
