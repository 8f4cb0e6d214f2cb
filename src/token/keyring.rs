//! The keys as they are now: read again from time to time, and when a token names one that is not there.
//!
//! No request waits for them. A reading that fails leaves the keys as they are.

use std::future::Future;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use super::{KeySet, KeySetError};

/// How often keys are read.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Between two readings.
    pub every: Duration,
    /// After one that failed.
    pub after_failure: Duration,
    /// Between two that are made because a token names an unknown key: anybody can send such tokens.
    pub between_misses: Duration,
}

impl Pace {
    /// Of a file, which costs little to look at.
    pub const FILE: Pace = Pace {
        every: Duration::from_secs(5),
        after_failure: Duration::from_secs(5),
        between_misses: Duration::from_secs(5),
    };
    /// Of a server.
    pub const SERVER: Pace = Pace {
        every: Duration::from_secs(5 * 60),
        after_failure: Duration::from_secs(5),
        between_misses: Duration::from_secs(30),
    };
}

/// The keys of an issuer, as they are now. Shared by all routes that believe it.
#[derive(Debug, Default)]
pub struct Keyring {
    current: RwLock<Option<Arc<KeySet>>>,
    missed: Notify,
}

impl Keyring {
    /// With the keys that are known already.
    pub fn new(first: Option<KeySet>) -> Arc<Keyring> {
        Arc::new(Keyring { current: RwLock::new(first.map(Arc::new)), missed: Notify::new() })
    }

    /// The keys; `None` before they could be read for the first time.
    pub fn current(&self) -> Option<Arc<KeySet>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A token names a key that is not there.
    pub fn miss(&self) {
        self.missed.notify_one();
    }

    /// Reads the keys again and again, for ever. `name` is told in logs.
    pub async fn keep<F, R>(self: Arc<Self>, name: String, pace: Pace, read: F)
    where
        F: Fn() -> R,
        R: Future<Output = Result<Bytes, String>>,
    {
        let mut told = None;
        let mut next_miss = Instant::now();
        loop {
            let failure = match read().await {
                Ok(text) => self.take(&text, &name).err().map(|error| error.to_string()),
                Err(error) => Some(error),
            };
            let pause = if failure.is_some() { pace.after_failure } else { pace.every };
            if let Some(error) = failure.as_ref().filter(|_| failure != told) {
                tracing::warn!(
                    keys = name,
                    error,
                    "the keys of tokens can't be read: those that are known stay in use"
                );
            }
            told = failure;
            let missed = async {
                self.missed.notified().await;
                sleep_until(next_miss).await;
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = missed => next_miss = Instant::now() + pace.between_misses,
            }
        }
    }

    fn take(&self, text: &[u8], name: &str) -> Result<(), KeySetError> {
        let keys = KeySet::parse(text)?;
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if current.as_deref() != Some(&keys) {
            tracing::info!(keys = name, "tokens are verified with new keys");
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

    /// A server's answers: what it says now, and how often it was asked.
    type Served = Arc<Mutex<(Result<String, String>, usize)>>;

    fn keeping() -> (Arc<Keyring>, Served) {
        let (ring, served) = (Keyring::new(None), Served::new(Mutex::new((Err("down".into()), 0))));
        let answers = served.clone();
        tokio::spawn(ring.clone().keep("test".into(), Pace::SERVER, move || {
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
