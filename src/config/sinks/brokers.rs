//! Receivers that are brokers: `redis_stream`.

use std::path::PathBuf;

use super::Receiver;
use crate::config::admin::SecretSource;
use crate::config::broker::{REDIS_URL_EXPECTED, WITHOUT_REDIS, redis_url};
use crate::config::read::{Table, Value};
use crate::config::texts::file_name;
use crate::outbox::settings::{RedisStreamTarget, SinkTarget};

/// Describes `redis_stream`.
pub(super) const REDIS_STREAM_EXPECTED: &str =
    "a table such as { url = \"redis://127.0.0.1:6379\", stream = \"payments\" }";

/// Keys of `redis_stream`.
pub(super) const REDIS_STREAM_KEYS: [&str; 4] = ["url", "stream", "max_length", "ca_file"];

/// Longest key of a stream, in bytes.
const STREAM_BYTES_MAX: usize = 512;
/// Number of entries to which a stream is trimmed if the file sets none.
const MAX_LENGTH: u64 = 1_000_000;
/// Highest number of entries to which a stream is trimmed: more than a server can hold.
const MAX_LENGTH_MAX: u64 = 1_000_000_000_000;

/// The address of a broker.
enum BrokerUrl {
    /// It is in the file.
    Known(String),
    /// It is a secret.
    Secret(SecretSource),
}

/// Reads `redis_stream`.
pub(super) fn read_redis_stream(value: &Value<'_>) -> Option<Receiver> {
    let table = value.table(REDIS_STREAM_EXPECTED)?;
    if cfg!(not(feature = "redis")) {
        value.fault(WITHOUT_REDIS);
        return None;
    }
    let url = read_url(&table, "a redis_stream", REDIS_URL_EXPECTED, redis_url);
    let stream = read_stream(&table);
    let max_length =
        table.get("max_length").map_or(Some(MAX_LENGTH), |value| value.number(0, MAX_LENGTH_MAX));
    let ca_file = read_ca_file(&table, url.as_ref(), "rediss://");
    table.finish();
    let (url, url_source) = url?.split();
    let target =
        RedisStreamTarget { url, stream: stream?, max_length: max_length?, ca_file: ca_file? };
    Some(Receiver::broker(SinkTarget::RedisStream(target), url_source))
}

impl BrokerUrl {
    /// Returns the address, which is empty if it is a secret, and its source.
    fn split(self) -> (String, Option<SecretSource>) {
        match self {
            BrokerUrl::Known(url) => (url, None),
            BrokerUrl::Secret(source) => (String::new(), Some(source)),
        }
    }
}

fn read_stream(table: &Table<'_>) -> Option<String> {
    let Some(value) = table.get("stream") else {
        let text = "a redis_stream needs stream, the key of the stream";
        table.report.note_absence(&table.span_of("stream"), text);
        return None;
    };
    let expected = format!("a key of 1 to {STREAM_BYTES_MAX} bytes");
    value.parsed(&expected, |text| {
        (1..=STREAM_BYTES_MAX).contains(&text.len()).then(|| text.to_owned())
    })
}

/// Reads an address: a text, or the source of a secret.
fn read_url(
    table: &Table<'_>,
    owner: &str,
    expected: &str,
    check: impl Fn(&str) -> Result<String, String>,
) -> Option<BrokerUrl> {
    let Some(value) = table.get("url") else {
        table.report.note_absence(&table.span_of("url"), format!("{owner} needs {expected}"));
        return None;
    };
    if !value.is_table() {
        return value.checked(expected, check).map(BrokerUrl::Known);
    }
    let source = value.table(expected)?;
    let read = SecretSource::read_from(&source, &format!("the url of {owner}"));
    source.finish();
    read.map(BrokerUrl::Secret)
}

fn read_ca_file(
    table: &Table<'_>,
    url: Option<&BrokerUrl>,
    scheme: &str,
) -> Option<Option<PathBuf>> {
    let Some(value) = table.get("ca_file") else { return Some(None) };
    let file = value.parsed("a file's name", file_name)?;
    if matches!(url, Some(BrokerUrl::Known(url)) if !url.starts_with(scheme)) {
        let text = format!("not used: the url is not {scheme}");
        table.report.warn(&table.path_of("ca_file"), &text);
    }
    Some(Some(file))
}
