//! The addresses of brokers that sinks deliver to. They can have credentials, so each is also
//! accepted as a secret.

use super::store::StoreUrl;
use crate::outbox::settings::SinkTarget;

/// Describes the address of a stream's server.
pub(super) const REDIS_URL_EXPECTED: &str =
    "a server's url: redis://HOST:PORT, rediss://HOST:PORT or unix:///PATH";

/// The text of the fault of a `redis_stream` in a build without the feature `redis`.
pub(super) const WITHOUT_REDIS: &str =
    "this build has no Redis: choose another kind of sink, or build with the feature `redis`";

/// Describes the address of a server of NATS.
pub(super) const NATS_URL_EXPECTED: &str = "a server's url: nats://HOST:PORT or tls://HOST:PORT";

/// The text of the fault of a `nats` in a build without the feature `nats`.
pub(super) const WITHOUT_NATS: &str =
    "this build has no NATS: choose another kind of sink, or build with the feature `nats`";

/// Checks the address of a receiver that is a broker.
///
/// # Errors
/// A description of the fault, without the address.
pub(super) fn broker_url(target: &SinkTarget, text: &str) -> Result<String, String> {
    match target {
        SinkTarget::Webhook(_) | SinkTarget::Call(_) => {
            Err("only a broker's url can be a secret".to_owned())
        }
        SinkTarget::RedisStream(_) => redis_url(text),
        SinkTarget::Nats(_) => nats_url(text),
    }
}

/// Checks the address of a stream's server.
///
/// # Errors
/// A description of the fault, without the address.
pub(super) fn redis_url(text: &str) -> Result<String, String> {
    let is_server = ["redis://", "rediss://", "unix://"].iter().any(|with| text.starts_with(with));
    if !is_server {
        return Err(format!("expected {REDIS_URL_EXPECTED}"));
    }
    StoreUrl::parse(text).map(|_| text.to_owned())
}

/// Checks the address of a server of NATS.
///
/// # Errors
/// A description of the fault, without the address.
#[cfg(feature = "nats")]
pub(super) fn nats_url(text: &str) -> Result<String, String> {
    match crate::outbox::nats::is_server_url(text) {
        true => Ok(text.to_owned()),
        false => Err(format!("expected {NATS_URL_EXPECTED}")),
    }
}

/// Refuses every address, because this build can't use any.
#[cfg(not(feature = "nats"))]
pub(super) fn nats_url(_: &str) -> Result<String, String> {
    Err(WITHOUT_NATS.to_owned())
}
