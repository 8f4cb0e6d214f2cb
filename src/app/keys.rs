//! The keys that verify tokens. They are read at the start and refreshed. Routes with the same
//! source share them.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tokio_util::task::AbortOnDropHandle;

use super::settings::{read, scheme};
use crate::config::{Config, JwksSource};
use crate::proxy::{Forward, Http2, RequestBody, Upstream, UpstreamSettings, fetch};
use crate::token::{KEY_SET_BYTES_MAX, KeySet, Keyring, RefreshIntervals};

/// The longest time to connect to a key server, and the longest time until its response. No request
/// waits for a key server.
const CONNECT_MAX: Duration = Duration::from_secs(5);
const FETCH_MAX: Duration = Duration::from_secs(10);
/// The longest time that a connection stays idle. It is short, because key servers are queried
/// rarely.
const IDLE_MAX: Duration = Duration::from_secs(4);
/// The longest use of a connection. A new connection resolves the server's name again.
const AGE_MAX: Duration = Duration::from_secs(300);

/// The keyrings, by the route's name.
#[derive(Default)]
pub(super) struct Keyrings {
    pub by_route: HashMap<String, Arc<Keyring>>,
    shared: Vec<Arc<SharedKeyring>>,
}

/// The keyring of one source, and the task that refreshes it.
struct SharedKeyring {
    place: JwksSource,
    keyring: Arc<Keyring>,
    _refresher: AbortOnDropHandle<()>,
}

/// Reads all keys from files, and starts to query the key servers. Keyrings of sources that are
/// also in `before` are reused. So the keys of a server are available at once, and tokens are not
/// refused until the next query.
///
/// # Errors
/// A file can't be read or has no usable key, or a server has a name that no certificate could
/// cover.
pub(super) async fn keyrings(config: &Config, before: &Keyrings) -> Result<Keyrings> {
    let mut keyrings = Keyrings::default();
    for route in config.all_routes() {
        let Some(place) = &route.jwks else { continue };
        let known = keyrings
            .shared
            .iter()
            .chain(&before.shared)
            .find(|shared| shared.place == *place)
            .cloned();
        let shared = match known {
            Some(shared) => shared,
            None => {
                let (keyring, refresher) = open(place).await?;
                Arc::new(SharedKeyring { place: place.clone(), keyring, _refresher: refresher })
            }
        };
        keyrings.by_route.insert(route.name.clone(), shared.keyring.clone());
        keyrings.shared.push(shared);
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
            let refresher =
                keyring.clone().keep(name, RefreshIntervals::FILE, move || contents(file.clone()));
            (keyring, AbortOnDropHandle::new(tokio::spawn(refresher)))
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
            let refresher = keyring.clone().keep(url.to_string(), RefreshIntervals::SERVER, ask);
            (keyring, AbortOnDropHandle::new(tokio::spawn(refresher)))
        }
    })
}

/// Reads a file up to the largest size of a key set, and one byte more.
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
