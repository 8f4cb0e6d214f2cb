//! Receivers that are brokers: `redis_stream` and `nats`.

use std::path::PathBuf;

use super::Receiver;
use crate::config::admin::SecretSource;
use crate::config::broker::{
    NATS_URL_EXPECTED, REDIS_URL_EXPECTED, WITHOUT_NATS, WITHOUT_REDIS, nats_url, redis_url,
};
use crate::config::read::{Table, Value};
use crate::config::texts::file_name;
use crate::outbox::settings::{NatsTarget, RedisStreamTarget, SinkTarget};

/// Describes `redis_stream`.
pub(super) const REDIS_STREAM_EXPECTED: &str =
    "a table such as { url = \"redis://127.0.0.1:6379\", stream = \"payments\" }";

/// Describes `nats`.
pub(super) const NATS_EXPECTED: &str =
    "a table such as { url = \"nats://127.0.0.1:4222\", subject = \"payments\" }";

/// Keys of `redis_stream`.
pub(super) const REDIS_STREAM_KEYS: [&str; 4] = ["url", "stream", "max_length", "ca_file"];
/// Keys of `nats`.
pub(super) const NATS_KEYS: [&str; 4] = ["url", "subject", "credentials", "ca_file"];

/// Longest subject, in bytes: a line of the protocol has at most 4 KiB.
const SUBJECT_BYTES_MAX: usize = 256;
const SUBJECT_EXPECTED: &str =
    "a subject such as \"payments.created\", without white space, * and >";

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

/// Reads `nats`.
pub(super) fn read_nats(value: &Value<'_>) -> Option<Receiver> {
    let table = value.table(NATS_EXPECTED)?;
    if cfg!(not(feature = "nats")) {
        value.fault(WITHOUT_NATS);
        return None;
    }
    let url = read_url(&table, "a nats", NATS_URL_EXPECTED, nats_url);
    let subject = read_subject(&table);
    let file = |name| match table.get(name) {
        Some(value) => value.parsed("a file's name", file_name).map(Some),
        None => Some(None),
    };
    let (credentials, ca_file) = (file("credentials"), file("ca_file"));
    table.finish();
    let (url, url_source) = url?.split();
    let target =
        NatsTarget { url, subject: subject?, credentials: credentials?, ca_file: ca_file? };
    Some(Receiver::broker(SinkTarget::Nats(target), url_source))
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

fn read_subject(table: &Table<'_>) -> Option<String> {
    let Some(value) = table.get("subject") else {
        let text = "a nats needs subject, which a stream of the server takes";
        table.report.note_absence(&table.span_of("subject"), text);
        return None;
    };
    value.parsed(SUBJECT_EXPECTED, |text| {
        let is_plain = |c: char| !c.is_whitespace() && !c.is_control() && !matches!(c, '*' | '>');
        let is_sound = text.len() <= SUBJECT_BYTES_MAX
            && text.chars().all(is_plain)
            && text.split('.').all(|part| !part.is_empty());
        is_sound.then(|| text.to_owned())
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
