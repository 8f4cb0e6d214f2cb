//! The current keys of an issuer. They are read again at intervals, and when a token names an
//! unknown key.
//!
//! No request waits for a read. A failed read leaves the keys unchanged.

use std::future::Future;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use super::{KeySet, KeySetError};

/// Intervals between reads of the keys.
#[derive(Debug, Clone, Copy)]
pub struct RefreshIntervals {
    /// After a successful read.
    pub every: Duration,
    /// After a failed read.
    pub after_failure: Duration,
    /// Between reads that an unknown key triggers: anybody can send tokens that name unknown keys.
    pub between_misses: Duration,
}

impl RefreshIntervals {
    /// Intervals for a file, which is cheap to read.
    pub const FILE: RefreshIntervals = RefreshIntervals {
        every: Duration::from_secs(5),
        after_failure: Duration::from_secs(5),
        between_misses: Duration::from_secs(5),
    };
    /// Intervals for a server.
    pub const SERVER: RefreshIntervals = RefreshIntervals {
        every: Duration::from_secs(5 * 60),
        after_failure: Duration::from_secs(5),
        between_misses: Duration::from_secs(30),
    };
}

/// The current keys of an issuer, shared by all routes that trust it.
#[derive(Debug, Default)]
pub struct Keyring {
    current: RwLock<Option<Arc<KeySet>>>,
    missed: Notify,
}

impl Keyring {
    /// Creates a keyring, with the keys that are already known.
    pub fn new(first: Option<KeySet>) -> Arc<Keyring> {
        Arc::new(Keyring { current: RwLock::new(first.map(Arc::new)), missed: Notify::new() })
    }

    /// Returns the keys; `None` before the first successful read.
    pub fn current(&self) -> Option<Arc<KeySet>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Requests a read, because a token names an unknown key.
    pub fn miss(&self) {
        self.missed.notify_one();
    }

    /// Reads the keys in a loop, for ever. `name` identifies them in logs.
    pub async fn keep<F, R>(self: Arc<Self>, name: String, intervals: RefreshIntervals, read: F)
    where
        F: Fn() -> R,
        R: Future<Output = Result<Bytes, String>>,
    {
        let mut last_failure = None;
        let mut next_miss = Instant::now();
        loop {
            let failure = match read().await {
                Ok(text) => self.take(&text, &name).err().map(|error| error.to_string()),
                Err(error) => Some(error),
            };
            let pause = if failure.is_some() { intervals.after_failure } else { intervals.every };
            if let Some(error) = failure.as_ref().filter(|_| failure != last_failure) {
                tracing::warn!(
                    keys = name,
                    error,
                    "token keys not read: the current keys stay in use"
                );
            }
            last_failure = failure;
            let missed = async {
                self.missed.notified().await;
                sleep_until(next_miss).await;
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = missed => next_miss = Instant::now() + intervals.between_misses,
            }
        }
    }

    fn take(&self, text: &[u8], name: &str) -> Result<(), KeySetError> {
        let keys = KeySet::parse(text)?;
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if current.as_deref() != Some(&keys) {
            tracing::info!(keys = name, "token keys replaced");
            *current = Some(Arc::new(keys));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::sync::Mutex;

    fn set(id: &str) -> String {
        let x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
        format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"{id}","x":"{x}"}}]}}"#)
    }

    /// The current answer of a server, and the number of requests that it received.
    type Served = Arc<Mutex<(Result<String, String>, usize)>>;

    fn keeping() -> (Arc<Keyring>, Served) {
        let (ring, served) = (Keyring::new(None), Served::new(Mutex::new((Err("down".into()), 0))));
        let answers = served.clone();
        tokio::spawn(ring.clone().keep("test".into(), RefreshIntervals::SERVER, move || {
            let mut served = answers.lock().unwrap();
            served.1 += 1;
            std::future::ready(served.0.clone().map(Bytes::from))
        }));
        (ring, served)
    }

    async fn pass(seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }

    fn known(ring: &Keyring, id: &str) -> bool {
        ring.current().is_some_and(|keys| *keys == KeySet::parse(set(id).as_bytes()).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_reading_that_fails_is_repeated_and_leaves_the_keys_as_they_are() {
        let (ring, served) = keeping();
        pass(12).await;
        assert!(ring.current().is_none() && served.lock().unwrap().1 == 3);
        served.lock().unwrap().0 = Ok(set("a"));
        pass(5).await;
        assert!(known(&ring, "a"));
        for broken in
            [Err("down".to_owned()), Ok("<html>".to_owned()), Ok(r#"{"keys":[]}"#.to_owned())]
        {
            served.lock().unwrap().0 = broken;
            pass(600).await;
            assert!(known(&ring, "a"));
        }
        served.lock().unwrap().0 = Ok(set("b"));
        pass(5).await;
        assert!(known(&ring, "b"));
    }

    #[tokio::test(start_paused = true)]
    async fn an_unknown_key_is_looked_for_at_once_and_then_not_too_often() {
        let (ring, served) = keeping();
        served.lock().unwrap().0 = Ok(set("a"));
        pass(60).await;
        let asked = || served.lock().unwrap().1;
        let before = asked();
        served.lock().unwrap().0 = Ok(set("b"));
        ring.miss();
        pass(1).await;
        assert!(known(&ring, "b") && asked() == before + 1);
        for _ in 0..28 {
            ring.miss();
            pass(1).await;
        }
        assert_eq!(asked(), before + 1);
        pass(2).await;
        assert_eq!(asked(), before + 2, "all of them are one reading");
    }
}
