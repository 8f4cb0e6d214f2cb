//! Asking sentinels which server is the primary now.
//!
//! Danger: a sentinel that is cut off from the others, and a primary that was replaced while it was away, both go on naming
//! the old primary. So the server itself is asked for its role, and the sentinels are asked again while its connection
//! stands.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, RedisConnectionInfo, Value};
use tokio::time::timeout;

use super::dial::{Address, Dialer, Dialled};
use super::fault;

/// How often the sentinels are asked again whether the primary is still the one that is connected: bounds for how long a
/// gateway writes to a primary that was replaced and doesn't know it yet.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// The sentinels of a primary.
pub(super) struct Sentinels {
    addresses: Vec<Address>,
    greeting: RedisConnectionInfo,
    /// What they call the primary.
    name: String,
    /// The one that answered last.
    first: AtomicUsize,
}

impl Sentinels {
    /// Those at these addresses, greeted so; `name` is what they call the primary.
    pub(super) fn new(
        addresses: Vec<Address>,
        greeting: RedisConnectionInfo,
        name: String,
    ) -> Sentinels {
        Sentinels { addresses, greeting, name, first: AtomicUsize::new(0) }
    }

    /// Where the primary is, by the first sentinel that says so.
    ///
    /// # Errors
    /// What the last one asked answered instead.
    pub(super) async fn primary(&self, dialer: &Dialer) -> Result<Address, String> {
        let mut why = String::from("there are no sentinels");
        let first = self.first.load(Ordering::Relaxed);
        for n in 0..self.addresses.len() {
            let at = (first + n) % self.addresses.len();
            let Some(address) = self.addresses.get(at) else { continue };
            match self.primary_by(dialer, address).await {
                Ok(primary) => {
                    self.first.store(at, Ordering::Relaxed);
                    return Ok(primary);
                }
                Err(error) => why = format!("sentinel {address}: {error}"),
            }
        }
        Err(why)
    }

    /// Where the primary is by this sentinel.
    pub(super) async fn primary_by(
        &self,
        dialer: &Dialer,
        sentinel: &Address,
    ) -> Result<Address, String> {
        let dialled =
            dialer.greeting_with(&self.greeting).dial_to(sentinel.clone(), |_| {}).await?;
        let mut ask = redis::cmd("SENTINEL");
        ask.arg("GET-MASTER-ADDR-BY-NAME").arg(&self.name);
        match answer(&dialled.connection, &ask, dialer.timeout).await? {
            Value::Nil => Err("it knows no primary of this name".into()),
            value => {
                let (host, port): (String, u16) =
                    redis::from_redis_value(value).map_err(|_| "its answer can't be read")?;
                Ok(Address::Tcp(host, port))
            }
        }
    }
}

/// Returns when the sentinels name another primary than the one at `address`. Without sentinels, never.
pub(super) async fn replaced(dialer: &Dialer, address: &Address) {
    let Some(sentinels) = dialer.sentinels() else { return std::future::pending().await };
    loop {
        tokio::time::sleep(ASK_AGAIN).await;
        if sentinels.primary(dialer).await.is_ok_and(|primary| primary != *address) {
            return;
        }
    }
}

/// Refuses a server that is no primary.
pub(super) async fn insist_on_primary(dialled: &Dialled, limit: Duration) -> Result<(), String> {
    match answer(&dialled.connection, &redis::cmd("ROLE"), limit).await? {
        Value::Array(parts) => match parts.first() {
            Some(Value::BulkString(role)) if role == b"master" => Ok(()),
            _ => Err(format!("the sentinels name {}, which is a replica", dialled.address)),
        },
        _ => Err("its answer to ROLE can't be read".into()),
    }
}

async fn answer(
    connection: &MultiplexedConnection,
    command: &Cmd,
    limit: Duration,
) -> Result<Value, String> {
    let mut connection = connection.clone();
    match timeout(limit, command.query_async(&mut connection)).await {
        Ok(answer) => answer.map_err(|error| fault::of_connecting(&error)),
        Err(_) => Err("no answer in time".into()),
    }
}
