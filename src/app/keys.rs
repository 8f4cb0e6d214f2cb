//! The keys that tokens are verified with: read once, kept as new as they are, shared by the routes that name the same.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tokio_util::task::AbortOnDropHandle;

use super::{read, scheme};
use crate::config::{Config, JwksSource};
use crate::proxy::{Forward, Http2, RequestBody, Upstream, UpstreamSettings, fetch};
use crate::token::{KEY_SET_BYTES_MAX, KeySet, Keyring, RefreshIntervals};

/// How long connecting to a server of keys, and the whole answer, may take. Nobody waits for it.
const CONNECT_MAX: Duration = Duration::from_secs(5);
const FETCH_MAX: Duration = Duration::from_secs(10);
/// Servers of keys are asked rarely.
const IDLE_MAX: Duration = Duration::from_secs(4);
/// Its name is looked up again by then.
const AGE_MAX: Duration = Duration::from_secs(300);

/// The keys by the route's name.
#[derive(Default)]
pub(super) struct Keyrings {
    pub by_route: HashMap<String, Arc<Keyring>>,
    kept: Vec<Arc<Kept>>,
}

/// Keys, and the task that reads them again.
struct Kept {
    place: JwksSource,
    keyring: Arc<Keyring>,
    _keeper: AbortOnDropHandle<()>,
}

/// Reads all keys that are in files, and begins to ask for the others. Those of places that were named `before` are taken over
/// as they are: a server's keys are there at once, and its tokens are not refused until it is asked again.
///
/// # Errors
/// A file that can't be read or has no usable key, a server that nobody could vouch for.
pub(super) async fn keyrings(config: &Config, before: &Keyrings) -> Result<Keyrings> {
    let mut keyrings = Keyrings::default();
    for route in &config.routes {
        let Some(place) = &route.jwks else { continue };
        let known =
            keyrings.kept.iter().chain(&before.kept).find(|kept| kept.place == *place).cloned();
        let kept = match known {
            Some(kept) => kept,
            None => {
                let (keyring, keeper) = open(place).await?;
                Arc::new(Kept { place: place.clone(), keyring, _keeper: keeper })
            }
        };
        keyrings.by_route.insert(route.name.clone(), kept.keyring.clone());
        keyrings.kept.push(kept);
    }
    Ok(keyrings)
}

async fn open(place: &JwksSource) -> Result<(Arc<Keyring>, AbortOnDropHandle<()>)> {
    Ok(match place {
        JwksSource::File(file) => {
            let name = file.display().to_string();
            let text = contents(file.clone()).await.map_err(anyhow::Error::msg);
            let keys = text.and_then(|text| Ok(KeySet::parse(&text)?));
            let keyring = Keyring::new(Some(
                keys.with_context(|| format!("the keys of tokens (jwks) in {name}"))?,
            ));
            let file = file.clone();
            let keeper =
                keyring.clone().keep(name, RefreshIntervals::FILE, move || contents(file.clone()));
            (keyring, AbortOnDropHandle::new(tokio::spawn(keeper)))
        }
        JwksSource::Server { url, path, ca_file } => {
            let settings = UpstreamSettings {
                scheme: scheme(url),
                authority: url.authority.clone(),
                connect_timeout: CONNECT_MAX,
                idle_timeout: IDLE_MAX,
                max_connection_age: AGE_MAX,
                http2: Http2::Negotiated,
                preserve_host: false,
                rewrite_location: false,
                identity: None,
                ca_pem: match ca_file {
                    Some(file) => Some(read(file).await?),
                    None => None,
                },
            };
            let server: Forward<RequestBody> = Forward::new([Arc::new(
                Upstream::new(settings).with_context(|| format!("jwks {url}"))?,
            )]);
            let (keyring, path) = (Keyring::new(None), path.clone());
            let ask = move || {
                let (server, path) = (server.clone(), path.clone());
                async move {
                    fetch(&server, &path, KEY_SET_BYTES_MAX, FETCH_MAX)
                        .await
                        .map_err(|error| error.to_string())
                }
            };
            let keeper = keyring.clone().keep(url.to_string(), RefreshIntervals::SERVER, ask);
            (keyring, AbortOnDropHandle::new(tokio::spawn(keeper)))
        }
    })
}

/// A file, as far as keys may go and one byte further.
async fn contents(file: PathBuf) -> Result<Bytes, String> {
    let reading = async {
        let mut text = Vec::new();
        tokio::fs::File::open(&file)
            .await?
            .take(KEY_SET_BYTES_MAX as u64 + 1)
            .read_to_end(&mut text)
            .await?;
        std::io::Result::Ok(Bytes::from(text))
    };
    reading.await.map_err(|error| format!("can't read {}: {error}", file.display()))
}
