//! Reads the counts of the outbox and the ages of its events, over all partitions.
//!
//! A gateway reads the counts every second, even if it is idle. So one server gets one MGET for all
//! of its partitions. On a cluster a command has keys of one partition only.

use std::collections::{BTreeMap, BTreeSet};

use redis::Value;

use super::answer::unexpected;
use super::client::Redis;
use crate::store::StoreError;
use crate::store::outbox::SinkBacklog;

/// The sums of a sink in one partition: waiting events, dead letters of kind `receiver` and of kind
/// `gateway`, and the bytes of all. The order is that of the lines.
type Sums = [i64; 4];

impl Redis {
    /// Reads a text of each partition. Leaves out partitions without it.
    pub(super) async fn of_each_partition(
        &self,
        key: impl Fn(u16) -> Vec<u8>,
    ) -> Result<Vec<(u16, Vec<u8>)>, StoreError> {
        let mut found = Vec::new();
        for group in self.servers.wait_until_complete(self.deadline()).await? {
            let mut reading = redis::pipe();
            if self.servers.is_cluster() {
                for partition in &group.partitions {
                    reading.cmd("GET").arg(key(*partition));
                }
            } else {
                let keys: Vec<Vec<u8>> = group.partitions.iter().map(|one| key(*one)).collect();
                reading.cmd("MGET").arg(keys);
            }
            let mut answers = self.pipeline_to(&group, &reading).await?;
            if let [Value::Array(_)] = answers[..]
                && let Some(Value::Array(values)) = answers.pop()
            {
                answers = values;
            }
            for (partition, answer) in group.partitions.iter().zip(answers) {
                match answer {
                    Value::Nil => {}
                    Value::BulkString(value) => found.push((*partition, value)),
                    _ => return Err(unexpected()),
                }
            }
        }
        found.sort_unstable_by_key(|(partition, _)| *partition);
        Ok(found)
    }

    /// Implements [`crate::store::Outbox::backlog`].
    pub(super) async fn counted_backlog(&self) -> Result<Vec<SinkBacklog>, StoreError> {
        let texts = self.of_each_partition(|partition| self.names.outbox_counts_key(partition));
        let mut all = Vec::new();
        for (partition, text) in texts.await? {
            for (sink, sums) in sums_of(&text) {
                // Another program can have removed a part of the outbox.
                let [waiting, dead_by_receiver, dead_by_gateway, bytes] =
                    sums.map(|sum| u64::try_from(sum).unwrap_or(0));
                if waiting + dead_by_receiver + dead_by_gateway > 0 {
                    let sink = sink.to_owned();
                    all.push(SinkBacklog {
                        partition,
                        sink,
                        waiting,
                        dead_by_receiver,
                        dead_by_gateway,
                        bytes,
                    });
                }
            }
        }
        Ok(all)
    }

    /// Implements [`crate::store::Outbox::oldest_waiting_ms`].
    pub(super) async fn oldest_written_ms(
        &self,
        sink: &str,
        partitions: &BTreeSet<u16>,
    ) -> Result<Option<u64>, StoreError> {
        let mut oldest: Option<u64> = None;
        for group in self.servers.groups() {
            let mut reading = redis::pipe();
            for one in group.partitions.iter().filter(|one| partitions.contains(one)) {
                // An operation that was never attempted is due at the time of its change.
                let due_key = self.names.outbox_due_key(*one, sink);
                let old_key = self.names.outbox_old_key(*one, sink);
                for key in [due_key, old_key] {
                    reading.cmd("ZRANGE").arg(key).arg(0).arg(0).arg("WITHSCORES");
                }
            }
            if reading.is_empty() {
                continue;
            }
            for answer in self.pipeline_to(&group, &reading).await? {
                let first: Vec<(Vec<u8>, f64)> =
                    redis::from_redis_value(answer).map_err(|_| unexpected())?;
                let written_ms = first.first().map(|(_, written_ms)| *written_ms as u64);
                oldest = oldest.into_iter().chain(written_ms).min();
            }
        }
        Ok(oldest)
    }
}

/// Sums the lines of a partition's counts. Leaves out lines that another program wrote.
fn sums_of(text: &[u8]) -> BTreeMap<&str, Sums> {
    let mut all: BTreeMap<&str, Sums> = BTreeMap::new();
    for line in text.split(|byte| *byte == b'\n') {
        let Some((numbers, sink)) =
            std::str::from_utf8(line).ok().and_then(|line| line.split_once(' '))
        else {
            continue;
        };
        let sums = all.entry(sink).or_default();
        for (sum, number) in sums.iter_mut().zip(numbers.split(',')) {
            *sum = sum.saturating_add(number.parse().unwrap_or(0));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_sink_are_summed_and_others_left_out() {
        let text = b"1,0,0,10 ledger\n1,0,0,5 mail\n-1,1,0,0 ledger\nodd\n\xff,1 x\n2,0,0,7 a b\n";
        let expected = [("a b", [2, 0, 0, 7]), ("ledger", [0, 1, 0, 10]), ("mail", [1, 0, 0, 5])];
        assert_eq!(sums_of(text), BTreeMap::from(expected));
    }
}
