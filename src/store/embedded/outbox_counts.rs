//! The counts of the outbox, by sink.

use redb::{ReadTransaction, ReadableTable, TableDefinition, WriteTransaction};

use crate::store::dead_letters::{DeadLetter, DeadLetterKind};
use crate::store::local_relays::PARTITION;
use crate::store::outbox::SinkBacklog;

/// Counts of each sink: waiting events, dead letters by receiver and by gateway, bytes of all.
const COUNTS: TableDefinition<&str, (u64, u64, u64, u64)> = TableDefinition::new("outbox_counts");

/// Creates the table if it does not exist yet.
pub(super) fn prepare(txn: &WriteTransaction) -> Result<(), redb::Error> {
    txn.open_table(COUNTS)?;
    Ok(())
}

/// See [`crate::store::Outbox::backlog`].
pub(super) fn backlog(txn: &ReadTransaction) -> Result<Vec<SinkBacklog>, redb::Error> {
    let mut backlog = Vec::new();
    for entry in txn.open_table(COUNTS)?.iter()? {
        let (sink, counts) = entry?;
        let (waiting, dead_by_receiver, dead_by_gateway, bytes) = counts.value();
        backlog.push(SinkBacklog {
            partition: PARTITION,
            sink: sink.value().to_owned(),
            waiting,
            dead_by_receiver,
            dead_by_gateway,
            bytes,
        });
    }
    Ok(backlog)
}

/// Changes the counts of a dead letter: their number, and the bytes.
pub(super) fn count_dead(
    txn: &WriteTransaction,
    letter: &DeadLetter,
    change: impl Fn(u64, u64) -> (u64, u64),
) -> Result<(), redb::Error> {
    count(txn, &letter.key.sink, |counts| {
        let dead = match letter.burial.kind {
            DeadLetterKind::Receiver => &mut counts.1,
            DeadLetterKind::Gateway => &mut counts.2,
        };
        (*dead, counts.3) = change(*dead, counts.3);
    })
}

/// Changes the counts of a sink.
pub(super) fn count(
    txn: &WriteTransaction,
    sink: &str,
    change: impl Fn(&mut (u64, u64, u64, u64)),
) -> Result<(), redb::Error> {
    let mut counts = txn.open_table(COUNTS)?;
    let mut next = counts.get(sink)?.map(|counts| counts.value()).unwrap_or_default();
    change(&mut next);
    match next {
        (0, 0, 0, _) => _ = counts.remove(sink)?,
        next => _ = counts.insert(sink, next)?,
    }
    Ok(())
}
