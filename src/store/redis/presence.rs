//! Which gateways use a store: each writes its name and the server's time every few seconds, so that nobody copies a store, or
//! copies into one, that is in use.
//!
//! Danger: a gateway that is stopped or cut off for longer than [`GONE_AFTER`] counts as gone. Claims of such a gateway are
//! refused by the epochs of a store that was copied into; a store that was copied still takes them.

use std::sync::{Arc, Weak};
use std::time::Duration;

use redis::Value;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::answer::{time_ms, unexpected};
use super::client::Redis;
use super::layout;
use crate::store::StoreError;

/// How often a gateway writes that it is there.
const PERIOD: Duration = Duration::from_secs(5);

/// A gateway that did not write for so long is gone: several times the period, for servers that don't answer now and then.
const GONE_AFTER: Duration = Duration::from_secs(20);

/// Gateways that are gone for so long are forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(24 * 3600);

/// What stands behind the time of a gateway that has ended.
const LEFT: &str = " left";

/// A gateway that uses a store; writes so until it is dropped.
pub struct Presence {
    store: Weak<Redis>,
    name: String,
    task: AbortOnDropHandle<()>,
}

/// The gateways that use a store or used it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Gateways {
    /// How many use it now.
    pub present: usize,
    /// When one was last heard of, in ms since 1970; 0: never.
    pub last_ms: u64,
}

impl Presence {
    /// Begins to write that a gateway of this process uses the store. Must be called within a tokio runtime.
    pub fn announce(store: &Arc<Redis>) -> Presence {
        // Without randomness two gateways on a machine may share a name, and look like one.
        let name = format!("{}-{:x}", std::process::id(), getrandom::u64().unwrap_or(0));
        let task = tokio::spawn(keep(Arc::downgrade(store), name.clone()));
        Presence { store: Arc::downgrade(store), name, task: AbortOnDropHandle::new(task) }
    }

    /// Writes that the gateway has ended, if the server answers in time.
    pub async fn end(&self) {
        self.task.abort();
        let Some(store) = self.store.upgrade() else { return };
        let deadline = Instant::now() + store.timeout;
        if let Ok(Err(error)) = timeout_at(deadline, store.note_presence(&self.name, LEFT)).await {
            tracing::debug!(%error, "the store was not told that this gateway ends");
        }
    }
}

async fn keep(store: Weak<Redis>, name: String) {
    if let Some(store) = store.upgrade()
        && let Err(error) = store.forget_gone().await
    {
        tracing::debug!(%error, "gateways that are gone were not forgotten");
    }
    loop {
        match store.upgrade() {
            None => return,
            Some(store) => {
                if let Err(error) = store.note_presence(&name, "").await {
                    tracing::debug!(%error, "the store was not told that this gateway uses it");
                }
            }
        }
        sleep(PERIOD).await;
    }
}

impl Redis {
    async fn note_presence(&self, name: &str, suffix: &str) -> Result<(), StoreError> {
        let now_ms = self.now_ms(layout::GATEWAYS_PARTITION).await?;
        let mut note = redis::cmd("HSET");
        note.arg(self.names.gateways_key()).arg(name).arg(format!("{now_ms}{suffix}"));
        self.command(layout::GATEWAYS_PARTITION, &note).await.map(drop)
    }

    /// The gateways by name, and what each wrote last, with the server's time.
    async fn gateways_noted(&self) -> Result<(u64, Vec<(String, String)>), StoreError> {
        let mut reading = redis::pipe();
        reading.cmd("TIME").cmd("HGETALL").arg(self.names.gateways_key());
        let answers = self.pipeline(layout::GATEWAYS_PARTITION, &reading).await?;
        let [time, noted] = <[Value; 2]>::try_from(answers).map_err(|_| unexpected())?;
        let noted: std::collections::BTreeMap<String, String> =
            redis::from_redis_value(noted).map_err(|_| unexpected())?;
        Ok((time_ms(time)?, noted.into_iter().collect()))
    }

    async fn forget_gone(&self) -> Result<(), StoreError> {
        let (now_ms, noted) = self.gateways_noted().await?;
        let is_old = |text: &str| now_ms.saturating_sub(heard_ms(text)) > ms(FORGOTTEN_AFTER);
        let gone: Vec<String> =
            noted.into_iter().filter(|(_, text)| is_old(text)).map(|(name, _)| name).collect();
        if gone.is_empty() {
            return Ok(());
        }
        let mut forget = redis::cmd("HDEL");
        forget.arg(self.names.gateways_key()).arg(gone);
        self.command(layout::GATEWAYS_PARTITION, &forget).await.map(drop)
    }

    /// The gateways that use the store or used it.
    pub(super) async fn gateways(&self) -> Result<Gateways, StoreError> {
        let (now_ms, noted) = self.gateways_noted().await?;
        Ok(gateways_at(now_ms, noted.iter().map(|(_, text)| text.as_str())))
    }
}

fn gateways_at<'a>(now_ms: u64, noted: impl Iterator<Item = &'a str>) -> Gateways {
    noted.fold(Gateways::default(), |seen, text| {
        let heard_ms = heard_ms(text);
        let is_here = !text.ends_with(LEFT) && now_ms.saturating_sub(heard_ms) < ms(GONE_AFTER);
        Gateways {
            present: seen.present + usize::from(is_here),
            last_ms: seen.last_ms.max(heard_ms),
        }
    })
}

fn heard_ms(text: &str) -> u64 {
    text.strip_suffix(LEFT).unwrap_or(text).parse().unwrap_or(0)
}

fn ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_wrote_a_moment_ago_and_did_not_leave_is_present() {
        let seen = |noted: &[&str]| gateways_at(100_000, noted.iter().copied());
        assert_eq!(seen(&[]), Gateways::default());
        assert_eq!(
            seen(&["99000", "80001", "80000", "99500 left", "odd"]),
            Gateways { present: 2, last_ms: 99_500 }
        );
        assert_eq!(
            seen(&["100500"]),
            Gateways { present: 1, last_ms: 100_500 },
            "by a clock that was set back"
        );
    }
}
