//! Receives the messages about changed records for all waiters of this process, over one
//! connection.
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
use crate::key::Slot;
use crate::store::Hub;

/// Limit for the channels in one SUBSCRIBE, which is about 40 KB long. Without a limit, thousands
/// of waiters would make one very long command after a reconnect.
const CHANNELS_PER_COMMAND: usize = 512;

/// Subscribes to the watched slots for as long as it runs. Connects when the first watcher appears.
pub(super) async fn run(connector: Connector, hub: Hub) {
    // Wait for the first watcher. After connecting, the session gets all watched slots from the
    // hub.
    hub.any_watched().await;
    let mut backoff = ReconnectBackoff::default();
    loop {
        let ended = Arc::new(Notify::new());
        match connector.connect(listener(connector.names.clone(), hub.clone(), ended.clone())).await
        {
            Ok(NewConnection { connection, driver: _driver, .. }) => {
                let connected_at = Instant::now();
                let mut session = SubscriberSession {
                    connector: &connector,
                    hub: &hub,
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
    ended: Arc<Notify>,
) -> impl Fn(PushInfo) + Send + Sync + 'static {
    move |info| match info.kind {
        PushKind::Message => {
            if let Some(Value::BulkString(channel)) = info.data.first()
                && let Some(slot) = names.slot_of(channel)
            {
                hub.notify(&slot);
            }
        }
        PushKind::Disconnection => ended.notify_one(),
        _ => {}
    }
}

struct SubscriberSession<'a> {
    connector: &'a Connector,
    hub: &'a Hub,
    connection: MultiplexedConnection,
    subscribed: HashSet<Slot>,
}

impl SubscriberSession<'_> {
    /// Subscribes and unsubscribes as the hub's watched slots change, until a subscription fails.
    async fn follow(&mut self) -> redis::RedisError {
        let mut changes: HashSet<Slot> = self.hub.follow().into_iter().collect();
        loop {
            if let Err(error) = self.apply(changes).await {
                return error;
            }
            changes = self.hub.next_changes().await;
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
