//! The gateways that use a store. Each gateway writes its name and the server's time every few
//! seconds. So a copy can refuse a store that is in use.
//!
//! Danger: a gateway that is stopped or cut off for longer than [`GONE_AFTER`] counts as gone.
//! After a copy, the target refuses the claims of such a gateway by their epoch. The source still
//! accepts them.

use std::sync::{Arc, Weak};
use std::time::Duration;

use redis::Value;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::answer::{time_ms, unexpected};
use super::client::Redis;
use super::layout;
use crate::store::StoreError;

/// How often a gateway writes its entry.
const PERIOD: Duration = Duration::from_secs(5);

/// A gateway with an older entry counts as gone. Several periods, because a server may fail to
/// answer now and then.
const GONE_AFTER: Duration = Duration::from_secs(20);

/// Age at which an entry is removed.
const REMOVED_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Suffix of the entry of a gateway that has ended.
const LEFT: &str = " left";

/// The presence of a gateway in a store. Writes the gateway's entry until it is dropped.
pub struct Presence {
    store: Weak<Redis>,
    name: String,
    task: AbortOnDropHandle<()>,
}

/// The gateways with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Gateways {
    /// Gateways that use the store now.
    pub present: usize,
    /// Time of the latest entry, in ms since 1970; 0 without an entry.
    pub last_ms: u64,
}

impl Presence {
    /// Starts to write the entry of a gateway of this process. Must be called within a tokio
    /// runtime.
    pub fn announce(store: &Arc<Redis>) -> Presence {
        // If the system gives no random number, two gateways on a machine may share a name, and
        // count as one.
        let name = format!("{}-{:x}", std::process::id(), getrandom::u64().unwrap_or(0));
        let task = tokio::spawn(keep(Arc::downgrade(store), name.clone()));
        Presence { store: Arc::downgrade(store), name, task: AbortOnDropHandle::new(task) }
    }

    /// Marks the gateway as ended, if the server answers in time.
    pub async fn end(&self) {
        self.task.abort();
        let Some(store) = self.store.upgrade() else { return };
        let deadline = Instant::now() + store.timeout;
        if let Ok(Err(error)) = timeout_at(deadline, store.write_entry(&self.name, LEFT)).await {
            tracing::debug!(%error, "this gateway's end was not written to the store");
        }
    }
}

async fn keep(store: Weak<Redis>, name: String) {
    if let Some(store) = store.upgrade()
        && let Err(error) = store.remove_gone().await
    {
        tracing::debug!(%error, "entries of gone gateways were not removed");
    }
    loop {
        match store.upgrade() {
            None => return,
            Some(store) => {
                if let Err(error) = store.write_entry(&name, "").await {
                    tracing::debug!(%error, "this gateway's entry was not written to the store");
                }
            }
        }
        sleep(PERIOD).await;
    }
}

impl Redis {
    async fn write_entry(&self, name: &str, suffix: &str) -> Result<(), StoreError> {
        let now_ms = self.now_ms(layout::GATEWAYS_PARTITION).await?;
        let mut note = redis::cmd("HSET");
        note.arg(self.names.gateways_key()).arg(name).arg(format!("{now_ms}{suffix}"));
        self.command(layout::GATEWAYS_PARTITION, &note).await.map(drop)
    }

    /// Returns the server's time, and the entries by gateway name.
    async fn entries(&self) -> Result<(u64, Vec<(String, String)>), StoreError> {
        let mut reading = redis::pipe();
        reading.cmd("TIME").cmd("HGETALL").arg(self.names.gateways_key());
        let answers = self.pipeline(layout::GATEWAYS_PARTITION, &reading).await?;
        let [time, entries] = <[Value; 2]>::try_from(answers).map_err(|_| unexpected())?;
        let entries: std::collections::BTreeMap<String, String> =
            redis::from_redis_value(entries).map_err(|_| unexpected())?;
        Ok((time_ms(time)?, entries.into_iter().collect()))
    }

    async fn remove_gone(&self) -> Result<(), StoreError> {
        let (now_ms, entries) = self.entries().await?;
        let is_old = |text: &str| now_ms.saturating_sub(written_ms(text)) > ms(REMOVED_AFTER);
        let gone: Vec<String> =
            entries.into_iter().filter(|(_, text)| is_old(text)).map(|(name, _)| name).collect();
        if gone.is_empty() {
            return Ok(());
        }
        let mut forget = redis::cmd("HDEL");
        forget.arg(self.names.gateways_key()).arg(gone);
        self.command(layout::GATEWAYS_PARTITION, &forget).await.map(drop)
    }

    /// Returns the number of gateways that use the store, and the time of the latest entry.
    pub(super) async fn gateways(&self) -> Result<Gateways, StoreError> {
        let (now_ms, entries) = self.entries().await?;
        Ok(gateways_at(now_ms, entries.iter().map(|(_, text)| text.as_str())))
    }
}

fn gateways_at<'a>(now_ms: u64, entries: impl Iterator<Item = &'a str>) -> Gateways {
    entries.fold(Gateways::default(), |found, text| {
        let written_ms = written_ms(text);
        let is_here = !text.ends_with(LEFT) && now_ms.saturating_sub(written_ms) < ms(GONE_AFTER);
        Gateways {
            present: found.present + usize::from(is_here),
            last_ms: found.last_ms.max(written_ms),
        }
    })
}

fn written_ms(text: &str) -> u64 {
    text.strip_suffix(LEFT).unwrap_or(text).parse().unwrap_or(0)
}

fn ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_that_wrote_a_moment_ago_and_did_not_leave_is_present() {
        let at_100_s = |entries: &[&str]| gateways_at(100_000, entries.iter().copied());
        assert_eq!(at_100_s(&[]), Gateways::default());
        assert_eq!(
            at_100_s(&["99000", "80001", "80000", "99500 left", "odd"]),
            Gateways { present: 2, last_ms: 99_500 }
        );
        assert_eq!(
            at_100_s(&["100500"]),
            Gateways { present: 1, last_ms: 100_500 },
            "by a clock that was set back"
        );
    }
}
