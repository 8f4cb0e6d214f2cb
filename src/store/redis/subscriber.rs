//! Receives the messages about changed records for all waiters of this process, and the wake-ups
//! for its relays, over one connection.
//!
//! One connection is enough on a cluster, too. The nodes forward published messages to each other,
//! so every node has the messages of all partitions. No subscription has to follow a partition that
//! moves. The price is a message between the nodes for each settlement.
//!
//! Danger: a message is lost while there is no subscription. So a waiter reads its record as soon
//! as its subscription is confirmed. After the connection was lost, every subscription is confirmed
//! again.

use std::collections::HashSet;
use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use redis::{PushInfo, PushKind, RedisResult, Value};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::backoff::{BACKOFF_MAX, ReconnectBackoff};
use super::connect::Connector;
use super::fault;
use super::layout::KeyNames;
use super::transport::NewConnection;
use super::wakes::OutboxWakes;
use crate::key::Slot;
use crate::store::Hub;

/// Limit for the channels in one SUBSCRIBE, which is about 40 KB long. Without a limit, thousands
/// of waiters would make one very long command after a reconnect.
const CHANNELS_PER_COMMAND: usize = 512;

/// Subscribes to the watched slots, and to wake-ups if they are wanted, for as long as it runs.
/// Connects when the first watcher or relay appears.
pub(super) async fn run(connector: Connector, hub: Hub, wakes: OutboxWakes) {
    // After connecting, the session gets all watched slots from the hub.
    tokio::select! {
        () = hub.any_watched() => {}
        () = wakes.wanted() => {}
    }
    let mut backoff = ReconnectBackoff::default();
    loop {
        let ended = Arc::new(Notify::new());
        let listener = listener(connector.names.clone(), hub.clone(), wakes.clone(), ended.clone());
        match connector.connect(listener).await {
            Ok(NewConnection { connection, driver: _driver, .. }) => {
                let connected_at = Instant::now();
                let mut session = SubscriberSession {
                    connector: &connector,
                    hub: &hub,
                    wakes: &wakes,
                    connection,
                    subscribed: HashSet::new(),
                };
                tokio::select! {
                    error = session.follow() => {
                        let error = fault::of_connecting(&error);
                        tracing::debug!(error, "a subscription failed");
                    }
                    () = ended.notified() => {
                        tracing::debug!("the subscription connection is lost, connecting again");
                    }
                }
                hub.lost();
                wakes.lost();
                if connected_at.elapsed() >= BACKOFF_MAX {
                    backoff = ReconnectBackoff::default();
                }
            }
            Err(reason) => tracing::debug!(reason, "no connection for subscriptions"),
        }
        backoff.wait().await;
    }
}

/// Makes the receiver of the messages that the server sends.
fn listener(
    names: KeyNames,
    hub: Hub,
    wakes: OutboxWakes,
    ended: Arc<Notify>,
) -> impl Fn(PushInfo) + Send + Sync + 'static {
    let outbox_channel = names.outbox_channel();
    move |info| match info.kind {
        PushKind::Message => match &info.data[..] {
            [Value::BulkString(channel), Value::BulkString(message)]
                if *channel == outbox_channel =>
            {
                wakes.received(message);
            }
            [Value::BulkString(channel), ..] => {
                if let Some(slot) = names.slot_of(channel) {
                    hub.notify(&slot);
                }
            }
            _ => {}
        },
        PushKind::Disconnection => ended.notify_one(),
        _ => {}
    }
}

struct SubscriberSession<'a> {
    connector: &'a Connector,
    hub: &'a Hub,
    wakes: &'a OutboxWakes,
    connection: MultiplexedConnection,
    subscribed: HashSet<Slot>,
}

impl SubscriberSession<'_> {
    /// Subscribes and unsubscribes as the hub's watched slots change, until a subscription fails.
    async fn follow(&mut self) -> redis::RedisError {
        let mut changes: HashSet<Slot> = self.hub.follow().into_iter().collect();
        let mut is_woken = false;
        loop {
            if let Err(error) = self.apply(changes).await {
                return error;
            }
            changes = tokio::select! {
                changes = self.hub.next_changes() => changes,
                () = self.wakes.wanted(), if !is_woken => {
                    is_woken = true;
                    if let Err(error) = self.subscribe_to_wakes().await {
                        return error;
                    }
                    HashSet::new()
                }
            };
        }
    }

    async fn subscribe_to_wakes(&mut self) -> RedisResult<()> {
        let mut connection = self.connection.clone();
        let channel = self.connector.names.outbox_channel();
        match within(self.connector, connection.subscribe(channel)).await {
            Ok(()) => {
                self.wakes.confirm();
                Ok(())
            }
            // A user without the right to this channel may have the right to the others.
            Err(error) if !fault::is_transport(&error) => {
                let error = fault::of_command(&error);
                tracing::debug!(%error, "no wake-ups for relays: they read their backlogs instead");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn apply(&mut self, changes: HashSet<Slot>) -> RedisResult<()> {
        let (watched, left): (Vec<Slot>, Vec<Slot>) =
            changes.into_iter().partition(|slot| self.hub.is_watched(slot));
        let left: Vec<Slot> =
            left.into_iter().filter(|slot| self.subscribed.remove(slot)).collect();
        for slots in left.chunks(CHANNELS_PER_COMMAND) {
            let mut connection = self.connection.clone();
            within(self.connector, connection.unsubscribe(channels(&self.connector.names, slots)))
                .await?;
        }
        // If the last watcher of a slot left and another one came before this call, the
        // subscription still exists.
        let (subscribed, missing): (Vec<Slot>, Vec<Slot>) =
            watched.into_iter().partition(|slot| self.subscribed.contains(slot));
        subscribed.iter().for_each(|slot| self.hub.confirm(slot));
        for slots in missing.chunks(CHANNELS_PER_COMMAND) {
            let mut connection = self.connection.clone();
            within(self.connector, connection.subscribe(channels(&self.connector.names, slots)))
                .await?;
            self.subscribed.extend(slots);
            slots.iter().for_each(|slot| self.hub.confirm(slot));
        }
        Ok(())
    }
}

fn channels(names: &KeyNames, slots: &[Slot]) -> Vec<Vec<u8>> {
    slots.iter().map(|slot| names.record_key(slot)).collect()
}

/// Waits for the answer to a subscription. A missing answer is an error, and ends the connection.
async fn within(
    connector: &Connector,
    answer: impl Future<Output = RedisResult<()>>,
) -> RedisResult<()> {
    timeout(connector.timeout, answer)
        .await
        .unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()))
}
