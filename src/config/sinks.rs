//! `[[sinks]]`: the receivers of events.

use std::collections::BTreeSet;
use std::time::Duration;

use http::{HeaderMap, HeaderName, Method, Uri};

use self::brokers::{
    NATS_EXPECTED, NATS_KEYS, REDIS_STREAM_EXPECTED, REDIS_STREAM_KEYS, read_nats,
    read_redis_stream,
};
use self::call::{CALL_EXPECTED, CALL_KEYS, read_call};
use super::admin::{SecretSource, SinkSecrets};
use super::read::{SourceSpan, Table, Value};
use super::route::{FRAMING, read_headers};
use super::texts::file_name;
use super::upstream::UpstreamUrl;
use crate::outbox::settings::{RetryRule, SINKS_MAX, SinkSettings, SinkTarget, WebhookTarget};

mod brokers;
pub(super) mod call;

const EXPECTED: &str = "sinks, each under [[sinks]]";
const NAME_EXPECTED: &str = "1 to 64 lower-case letters, digits and -";
const WEBHOOK_EXPECTED: &str = "a table such as { url = \"https://ledger.internal/hooks\", \
                                secrets = [{ env = \"LEDGER_WEBHOOK_SECRET\" }] }";
const URL_EXPECTED: &str = "a url such as \"https://ledger.internal/hooks\"";
const SECRETS_EXPECTED: &str = "a list of secrets such as [{ env = \"LEDGER_WEBHOOK_SECRET\" }]";
const RETRY_EXPECTED: &str = "a table such as { first = \"5s\", max = \"1h\", age = \"3d\" }";

/// Kinds of sinks.
const KINDS: [&str; 4] = ["webhook", "nats", "redis_stream", "call"];
/// Keys of a sink besides its kind.
const SINK_KEYS: [&str; 7] =
    ["name", "timeout", "concurrency", "rate", "retry", "max_backlog", "max_bytes"];
/// Keys of `webhook`.
const WEBHOOK_KEYS: [&str; 4] = ["url", "secrets", "headers", "ca_file"];

/// Longest name, in bytes. It is stored with every event, and labels the sink's metrics.
const NAME_BYTES_MAX: usize = 64;
/// Most secrets of a webhook. A rotation needs two, and each makes a field of every request longer.
const SECRETS_MAX: usize = 8;
/// Longest limit of an attempt: 5 minutes. The lease of a partition is twice as long, and only
/// after it another gateway can continue the work of one that died.
const TIMEOUT_MAX: Duration = Duration::from_secs(300);
/// Most attempts of a process at the same time: each needs a connection and buffers.
const CONCURRENCY_MAX: u64 = 1024;
/// Highest rate, in attempts per second. A higher limit would never take effect.
const RATE_MAX: u64 = 1_000_000;
/// Longest pause between two attempts: 7 days. After a longer pause, an operator would rather
/// requeue the event.
const PAUSE_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Highest limit for the attempts. A higher limit would never take effect, because of `age`.
const ATTEMPTS_MAX: u64 = 1_000_000;
/// Highest limit for waiting events: more than a store can hold.
const BACKLOG_MAX: u64 = 1_000_000_000;
/// Smallest limit for the bytes of waiting events. An event without chosen members has about 700.
const BYTES_MIN: u64 = 4 << 10;

/// Fields that describe the event, and that the sink sets itself.
const OWN_FIELDS: [&str; 3] = ["content-encoding", "content-type", "host"];
/// Beginning of the fields that identify and sign a webhook.
const WEBHOOK_FIELDS: &str = "webhook-";
/// Fields for the next proxy only, in addition to [`FRAMING`].
const PROXY_FIELDS: [&str; 2] = ["proxy-authenticate", "proxy-authorization"];

/// One sink.
#[derive(Debug, Clone)]
pub struct SinkConfig {
    /// The settings. They have the secrets only after [`super::Config::add_secrets`].
    pub settings: SinkSettings,
    /// The sources of the secrets that sign webhooks.
    pub secrets: Vec<SecretSource>,
    /// Header fields with secret values.
    pub secret_headers: Vec<(HeaderName, SecretSource)>,
    /// The source of the receiver's url, if the url is a secret.
    pub url_source: Option<SecretSource>,
}

/// All sinks.
pub(super) struct ReadSinks {
    /// The sinks; `None` if one is faulty.
    pub sinks: Option<Vec<SinkConfig>>,
    /// The names of all sinks, also of faulty ones; `None` if not all names are known.
    pub names: Option<Vec<String>>,
    /// The routes of the sinks that call, by the names of the sinks.
    pub calls: Vec<(String, CallPlace)>,
}

/// The route of a sink that calls, and its place in the file.
#[derive(Debug, Clone)]
pub(super) struct CallPlace {
    /// The name of the route.
    pub route: String,
    /// The place.
    pub at: SourceSpan,
    /// The path of the key.
    pub call: String,
    /// The method of the request.
    pub method: Method,
    /// The fields that the sink adds.
    pub headers: Vec<HeaderName>,
    /// The members of the event's data that the templates use.
    pub members: BTreeSet<String>,
}

/// A receiver, and the secrets that it needs.
struct Receiver {
    target: SinkTarget,
    secrets: Vec<SecretSource>,
    secret_headers: Vec<(HeaderName, SecretSource)>,
    url_source: Option<SecretSource>,
    call: Option<CallPlace>,
}

impl Receiver {
    /// Returns a broker. Its url may be a secret.
    fn broker(target: SinkTarget, url_source: Option<SecretSource>) -> Receiver {
        let (secrets, secret_headers) = (Vec::new(), Vec::new());
        Receiver { target, secrets, secret_headers, url_source, call: None }
    }
}

impl SinkConfig {
    /// Returns scheme, host and port, or the source of a secret url. Everything else in a url may
    /// be a credential.
    pub fn location(&self) -> String {
        let known = self.settings.target.location();
        match &self.url_source {
            Some(SecretSource::Env(name)) if known.is_empty() => format!("(url from {name})"),
            Some(SecretSource::File(file)) if known.is_empty() => {
                format!("(url from {})", file.display())
            }
            _ => known,
        }
    }

    /// Adds the secrets to the settings.
    pub(super) fn add_secrets(&mut self, secrets: &SinkSecrets) {
        match &mut self.settings.target {
            SinkTarget::Webhook(webhook) => {
                webhook.secrets.clone_from(&secrets.signing);
                webhook.headers.extend(secrets.headers.clone());
            }
            SinkTarget::Call(call) => call.headers.extend(secrets.headers.clone()),
            SinkTarget::RedisStream(_) | SinkTarget::Nats(_) => {}
        }
        if let Some(url) = &secrets.url {
            self.settings.target.set_url(url.expose());
        }
    }
}

/// Reads `[[sinks]]`.
pub(super) fn read_all(root: &Table<'_>) -> ReadSinks {
    let Some(value) = root.get("sinks") else {
        return ReadSinks { sinks: Some(Vec::new()), names: Some(Vec::new()), calls: Vec::new() };
    };
    let Some(items) = value.list(EXPECTED) else {
        value.conceal();
        return ReadSinks { sinks: None, names: None, calls: Vec::new() };
    };
    if items.len() > SINKS_MAX {
        value.fault(format!("expected at most {SINKS_MAX} sinks, found {}", items.len()));
    }
    let (mut names, mut calls) = (Vec::new(), Vec::new());
    // This reads all sinks before it returns the first failure, so that all faults are reported.
    let sinks: Vec<Option<SinkConfig>> =
        items.iter().map(|item| read(item, &mut names, &mut calls)).collect();
    ReadSinks {
        names: (names.len() == items.len()).then_some(names),
        sinks: sinks.into_iter().collect(),
        calls,
    }
}

fn read(
    item: &Value<'_>,
    names: &mut Vec<String>,
    calls: &mut Vec<(String, CallPlace)>,
) -> Option<SinkConfig> {
    let Some(table) = item.table(EXPECTED) else {
        item.conceal();
        return None;
    };
    // Other kinds and misspelt keys may contain the receiver's url.
    conceal_others(&table, &[&SINK_KEYS[..], &KINDS].concat());
    let name = read_name(&table, names);
    let receiver = read_receiver(&table);
    let number = |name, min, max, default| match table.get(name) {
        Some(value) => value.number(min, max),
        None => Some(default),
    };
    // The settings of this sink only supply the defaults.
    let target = SinkTarget::Webhook(WebhookTarget {
        url: Uri::default(),
        secrets: Vec::new(),
        headers: HeaderMap::new(),
        ca_file: None,
    });
    let default = SinkSettings::new("", target);
    let timeout = read_timeout(&table, default.timeout);
    let concurrency = number("concurrency", 1, CONCURRENCY_MAX, default.concurrency as u64);
    let rate = number("rate", 0, RATE_MAX, default.rate.into());
    let retry = read_retry(table.table("retry", RETRY_EXPECTED), default.retry);
    let max_backlog = number("max_backlog", 1, BACKLOG_MAX, default.max_backlog);
    let max_bytes =
        table.get("max_bytes").map_or(Some(default.max_bytes), |value| value.size(BYTES_MIN));
    table.finish();
    let Receiver { target, secrets, secret_headers, url_source, call } = receiver?;
    calls.extend(name.clone().zip(call));
    let settings = SinkSettings {
        name: name?,
        target,
        timeout: timeout?,
        concurrency: usize::try_from(concurrency?).ok()?,
        rate: u32::try_from(rate?).ok()?,
        retry: retry?,
        max_backlog: max_backlog?,
        max_bytes: max_bytes?,
    };
    Some(SinkConfig { settings, secrets, secret_headers, url_source })
}

fn read_name(table: &Table<'_>, names: &mut Vec<String>) -> Option<String> {
    let plain = |text: &str| {
        let is_plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
        let sound = (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_plain);
        sound.then(|| text.to_owned())
    };
    let Some(value) = table.get("name") else {
        table
            .report
            .note_absence(&table.span_of("name"), "a sink needs a name, which routes refer to");
        return None;
    };
    let name = value.parsed(NAME_EXPECTED, plain)?;
    if names.contains(&name) {
        value.fault(format!("a second sink is named {name:?}: events refer to sinks by name"));
    }
    names.push(name.clone());
    Some(name)
}

/// Reads the receiver. The name of its key is the kind.
fn read_receiver(table: &Table<'_>) -> Option<Receiver> {
    let found = KINDS.into_iter().filter_map(|kind| table.get(kind).map(|value| (kind, value)));
    let found: Vec<(&str, Value<'_>)> = found.collect();
    found.iter().for_each(|(kind, value)| conceal_url(kind, value));
    match found.as_slice() {
        [("webhook", value)] => read_webhook(value.table(WEBHOOK_EXPECTED)?),
        [("nats", value)] => read_nats(value),
        [("redis_stream", value)] => read_redis_stream(value),
        [(_, value)] => read_call(value),
        [] => {
            table.report.note_absence(
                &table.span_of("webhook"),
                format!(
                    "a sink needs a receiver: webhook = {WEBHOOK_EXPECTED}, or nats = \
                     {NATS_EXPECTED}, or redis_stream = {REDIS_STREAM_EXPECTED}, or call = \
                     {CALL_EXPECTED}"
                ),
            );
            None
        }
        [(one, _), (other, value), ..] => {
            value.fault(format!("a sink has one receiver: remove {one} or {other}"));
            None
        }
    }
}

/// Masks the url of a receiver in excerpts, and everything that may be one: it can have a
/// credential.
fn conceal_url(kind: &str, receiver: &Value<'_>) {
    let table = if receiver.is_table() { receiver.table(WEBHOOK_EXPECTED) } else { None };
    let Some(table) = table else { return receiver.conceal() };
    match kind {
        "webhook" => conceal_others(&table, &WEBHOOK_KEYS),
        "nats" => conceal_others(&table, &NATS_KEYS),
        "redis_stream" => conceal_others(&table, &REDIS_STREAM_KEYS),
        _ => conceal_others(&table, &CALL_KEYS),
    }
    if let Some(url) = table.get("url") {
        url.conceal();
    }
}

/// Masks the values of all keys except these.
pub(super) fn conceal_others(table: &Table<'_>, known: &[&str]) {
    let values = table.values();
    let others = values.iter().filter(|(name, _)| !known.contains(&name.as_str()));
    others.for_each(|(_, value)| value.conceal());
}

fn read_webhook(table: Table<'_>) -> Option<Receiver> {
    let url = table.get("url").map(|value| value.checked(URL_EXPECTED, webhook_url));
    if url.is_none() {
        table.report.note_absence(&table.span_of("url"), format!("a webhook needs {URL_EXPECTED}"));
    }
    let secrets = read_secrets(&table);
    let mut secret_headers = Vec::new();
    let headers = match table.get("headers") {
        Some(_) => read_headers(
            &table.table("headers", "a table of header fields"),
            "a webhook",
            can_be_set,
            &mut secret_headers,
        ),
        None => Some(HeaderMap::new()),
    };
    let ca_file = table
        .get("ca_file")
        .map_or(Some(None), |value| value.parsed("a file's name", file_name).map(Some));
    let is_plain = |url: &Uri| url.scheme_str() == Some("http");
    if matches!(ca_file, Some(Some(_)))
        && url.as_ref().and_then(Option::as_ref).is_some_and(is_plain)
    {
        table.report.warn(&table.path_of("ca_file"), "not used: the url is not https");
    }
    table.finish();
    let target =
        WebhookTarget { url: url??, secrets: Vec::new(), headers: headers?, ca_file: ca_file? };
    let (target, secrets) = (SinkTarget::Webhook(target), secrets?);
    Some(Receiver { target, secrets, secret_headers, url_source: None, call: None })
}

/// Parses the address of a webhook.
fn webhook_url(text: &str) -> Result<Uri, String> {
    let expected = || format!("expected {URL_EXPECTED}: http or https, a host, and perhaps a path");
    let uri: Uri = text.parse().map_err(|_| expected())?;
    let path = uri.path_and_query().ok_or_else(expected)?.as_str();
    if text.contains('#') {
        return Err("a webhook's url has no fragment: it would not be sent".to_owned());
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err("a webhook's url has no credentials: set a field under headers".to_owned());
    }
    UpstreamUrl::parse(text.strip_suffix(path).unwrap_or(text)).map_err(|_| expected())?;
    Ok(uri)
}

fn read_secrets(webhook: &Table<'_>) -> Option<Vec<SecretSource>> {
    let Some(value) = webhook.get("secrets") else {
        webhook
            .report
            .note_absence(&webhook.span_of("secrets"), format!("needs {SECRETS_EXPECTED}"));
        return None;
    };
    let Some(items) = value.list(SECRETS_EXPECTED) else {
        value.conceal();
        return None;
    };
    if items.is_empty() || items.len() > SECRETS_MAX {
        value.fault(format!("expected 1 to {SECRETS_MAX} secrets, which sign every request"));
        return None;
    }
    let mut found: Vec<SecretSource> = Vec::new();
    let mut sound = true;
    for item in &items {
        let source = item.table("a table with env or file").and_then(|table| {
            let source = SecretSource::read_from(&table, "a webhook");
            table.finish();
            source
        });
        match source {
            Some(source) if found.contains(&source) => {
                item.fault("the same secret a second time");
                sound = false;
            }
            Some(source) => found.push(source),
            None => {
                item.conceal();
                sound = false;
            }
        }
    }
    sound.then_some(found)
}

/// Returns whether an operator may set a field of a webhook's requests.
pub(super) fn can_be_set(name: &HeaderName) -> bool {
    let name = name.as_str();
    !name.starts_with(WEBHOOK_FIELDS)
        && !OWN_FIELDS.contains(&name)
        && !FRAMING.contains(&name)
        && !PROXY_FIELDS.contains(&name)
}

fn read_timeout(table: &Table<'_>, default: Duration) -> Option<Duration> {
    let Some(value) = table.get("timeout") else { return Some(default) };
    at_most(&value, TIMEOUT_MAX, "five minutes (5m)")
}

/// Reads a duration above zero with a limit.
pub(super) fn at_most(value: &Value<'_>, max: Duration, name: &str) -> Option<Duration> {
    let duration = value.duration()?;
    if duration > max {
        value.fault(format!("longer than the limit of {name}"));
        return None;
    }
    Some(duration)
}

/// Reads `first` and `max`, the longest pauses after the first attempt and after any attempt.
pub(super) fn read_pauses(
    table: &Table<'_>,
    default_first: Duration,
    default_max: Duration,
) -> (Option<Duration>, Option<Duration>) {
    let first = table.get("first");
    let pause = |value: &Value<'_>| at_most(value, PAUSE_MAX, "seven days (7d)");
    let max = table.get("max").map_or(Some(default_max), |value| pause(&value));
    let chosen_first = match (&first, max) {
        (Some(value), _) => pause(value),
        // A short `max` alone is no contradiction.
        (None, max) => Some(max.map_or(default_first, |max| default_first.min(max))),
    };
    if let (Some(value), Some(first), Some(max)) = (&first, chosen_first, max)
        && first > max
    {
        value.fault("longer than max, the longest pause after any attempt");
    }
    (chosen_first, max)
}

fn read_retry(table: Table<'_>, default: RetryRule) -> Option<RetryRule> {
    let (first, max) = read_pauses(&table, default.first, default.max);
    let attempts = table
        .get("attempts")
        .map_or(Some(default.attempts.into()), |value| value.number(0, ATTEMPTS_MAX));
    let age = table.get("age").map_or(Some(default.age), |value| value.duration());
    table.finish();
    Some(RetryRule {
        first: first?,
        max: max?,
        attempts: u32::try_from(attempts?).ok()?,
        age: age?,
    })
}
