//! Lineages. A lineage identifies the server process that answers, and its history of writes.
//!
//! A restart or a promotion changes the lineage, and may lose writes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tokio::time::timeout;

use super::fault;

/// The number of a lineage within this process. No two lineages share a number.
pub(super) type LineageId = u64;

/// Identifies a server process and its history of writes.
#[derive(PartialEq, Eq)]
struct Lineage {
    /// The server's run id, which changes with every start.
    run: String,
    /// The server's replication id, which changes with every promotion.
    replication: String,
}

impl Lineage {
    /// Reads a server's lineage; `None` where the server doesn't reveal it.
    ///
    /// # Errors
    /// The server doesn't answer.
    async fn read(
        connection: &MultiplexedConnection,
        limit: Duration,
    ) -> Result<Option<Lineage>, String> {
        let mut connection = connection.clone();
        let info = redis::cmd("INFO");
        let answer = timeout(limit, info.query_async::<String>(&mut connection))
            .await
            .map_err(|_| "no answer in time")?;
        let info = match answer {
            Ok(info) => info,
            Err(error) if fault::is_transport(&error) => return Err(fault::of_connecting(&error)),
            Err(_) => return Ok(None),
        };
        let field = |name: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(|value| value.trim().to_owned())
        };
        Ok(field("run_id")
            .zip(field("master_replid"))
            .map(|(run, replication)| Lineage { run, replication }))
    }
}

/// The lineage of the last connection to a server.
#[derive(Default)]
pub(super) struct LastLineage(Option<(Option<Lineage>, LineageId)>);

impl LastLineage {
    /// Reads the lineage of a new connection and returns its number: the last number again if the
    /// lineage is the same. A server that doesn't reveal its lineage gets a new number each time,
    /// because it might be another server.
    ///
    /// # Errors
    /// The server doesn't answer.
    pub(super) async fn read(
        &mut self,
        connection: &MultiplexedConnection,
        limit: Duration,
    ) -> Result<LineageId, String> {
        let lineage = Lineage::read(connection, limit).await?;
        let id = match &self.0 {
            Some((last, id)) if lineage.is_some() && *last == lineage => *id,
            _ => next_lineage_id(),
        };
        self.0 = Some((lineage, id));
        Ok(id)
    }
}

fn next_lineage_id() -> LineageId {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Ordering::Relaxed) + 1
}
