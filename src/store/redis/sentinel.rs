//! Asks sentinels for the address of the current primary.
//!
//! Danger: a sentinel that is cut off from the others keeps naming the old primary. And a primary
//! that was replaced while it was out of reach still acts as a primary. So the store also asks the
//! server itself for its role, and asks the sentinels again for as long as the connection lasts.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, RedisConnectionInfo, Value};
use tokio::time::timeout;

use super::answer::UNREADABLE;
use super::fault;
use super::transport::{Address, NewConnection, Transport};

/// How often the store asks the sentinels whether the primary has changed. This limits the time for
/// which a gateway writes to a primary that was replaced and has not noticed it yet.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The sentinels of a primary.
pub(super) struct Sentinels {
    addresses: Vec<Address>,
    login: RedisConnectionInfo,
    /// The sentinels' name of the primary.
    name: String,
    /// Index of the sentinel that answered last.
    first: AtomicUsize,
}

impl Sentinels {
    /// Makes a list of sentinels that share a login; `name` is their name of the primary.
    pub(super) fn new(
        addresses: Vec<Address>,
        login: RedisConnectionInfo,
        name: String,
    ) -> Sentinels {
        Sentinels { addresses, login, name, first: AtomicUsize::new(0) }
    }

    /// Returns the address of the primary, from the first sentinel that names one.
    ///
    /// # Errors
    /// No sentinel names one; the text is the failure of the last sentinel.
    pub(super) async fn primary(&self, transport: &Transport) -> Result<Address, String> {
        let mut why = String::from("there are no sentinels");
        let first = self.first.load(Ordering::Relaxed);
        for n in 0..self.addresses.len() {
            let at = (first + n) % self.addresses.len();
            let Some(address) = self.addresses.get(at) else { continue };
            match self.primary_by(transport, address).await {
                Ok(primary) => {
                    self.first.store(at, Ordering::Relaxed);
                    return Ok(primary);
                }
                Err(error) => why = format!("sentinel {address}: {error}"),
            }
        }
        Err(why)
    }

    /// Asks one sentinel for the address of the primary.
    async fn primary_by(
        &self,
        transport: &Transport,
        sentinel: &Address,
    ) -> Result<Address, String> {
        let opened = transport.connect(sentinel.clone(), &self.login, |_| {}).await?;
        let mut query = redis::cmd("SENTINEL");
        query.arg("GET-MASTER-ADDR-BY-NAME").arg(&self.name);
        match answer(&opened.connection, &query, transport.timeout()).await? {
            Value::Nil => Err("it has no primary of this name".into()),
            value => {
                let (host, port): (String, u16) =
                    redis::from_redis_value(value).map_err(|_| UNREADABLE)?;
                Ok(Address::Tcp(host, port))
            }
        }
    }

    /// Returns when the sentinels name another primary than the one at `address`.
    pub(super) async fn until_replaced(&self, transport: &Transport, address: &Address) {
        loop {
            tokio::time::sleep(CHECK_INTERVAL).await;
            if self.primary(transport).await.is_ok_and(|primary| primary != *address) {
                return;
            }
        }
    }
}

/// Checks that the server is a primary.
///
/// # Errors
/// The server is a replica, or doesn't answer.
pub(super) async fn require_primary(opened: &NewConnection, limit: Duration) -> Result<(), String> {
    match answer(&opened.connection, &redis::cmd("ROLE"), limit).await? {
        Value::Array(parts) => match parts.first() {
            Some(Value::BulkString(role)) if role == b"master" => Ok(()),
            _ => Err(format!("the sentinels name {}, which is a replica", opened.address)),
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
