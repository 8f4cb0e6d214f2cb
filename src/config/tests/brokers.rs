//! Tests of sinks that are brokers.

use super::*;
use crate::outbox::settings::{NatsTarget, RedisStreamTarget, SinkTarget};

/// Returns a file with a sink that has this receiver.
fn sink(receiver: &str) -> String {
    format!("[[sinks]]\nname = \"ledger\"\n{receiver}\n")
}

/// Returns a file with a stream. `rest` are further keys.
fn stream(url: &str, rest: &str) -> String {
    sink(&format!("redis_stream = {{ url = {url}, stream = \"payments\"{rest} }}"))
}

fn target(text: &str) -> SinkTarget {
    let mut config = load(text).unwrap_or_else(|faults| panic!("{text}\n{faults}"));
    config.sinks.remove(0).settings.target
}

fn with_secret(text: &str, secret: &str) -> Result<Config, Faults> {
    let mut config = load(text)?;
    let secrets = config.resolve_secrets(|_| Some(secret.to_owned()))?;
    config.add_secrets(&secrets);
    Ok(config)
}

#[test]
#[cfg(feature = "redis")]
fn a_stream_has_the_values_of_the_file() {
    let text = stream("\"rediss://a:1/2\"", ", max_length = 0, ca_file = \"ca.pem\"");
    let expected = RedisStreamTarget {
        url: "rediss://a:1/2".to_owned(),
        stream: "payments".to_owned(),
        max_length: 0,
        ca_file: Some("ca.pem".into()),
    };
    assert_eq!(target(&text), SinkTarget::RedisStream(expected));
}

#[test]
#[cfg(feature = "redis")]
fn a_stream_is_trimmed_unless_the_file_forbids_it() {
    let SinkTarget::RedisStream(target) = target(&stream("\"redis://a\"", "")) else { panic!() };
    assert_eq!((target.max_length, target.ca_file), (1_000_000, None));
}

#[test]
#[cfg(feature = "redis")]
fn authorities_of_a_stream_are_for_rediss() {
    let warnings = load(&stream("\"redis://a\"", ", ca_file = \"ca.pem\"")).unwrap().warnings;
    assert_eq!(warnings, ["sinks[0].redis_stream.ca_file: not used: the url is not rediss://"]);
}

#[test]
#[cfg(feature = "redis")]
fn faulty_streams_are_refused() {
    let url = |url: &str| stream(&format!("\"{url}\""), "");
    let key = "sinks[0].redis_stream";
    for (text, at, piece) in [
        (sink("redis_stream = \"redis://a\""), "", "expected a table such as"),
        (sink("redis_stream = { stream = \"s\" }"), ".url", "a redis_stream needs a server's url"),
        (sink("redis_stream = { url = \"redis://a\" }"), ".stream", "the key of the stream"),
        (url("redis+cluster://a,b"), ".url", "redis://HOST:PORT, rediss://HOST:PORT or unix:"),
        (url("memory:"), ".url", "redis://HOST:PORT"),
        (url("redis://a:port"), ".url", "not a valid Redis url"),
        (url("rediss://a/#insecure"), ".url", "#insecure is not supported"),
        (stream("{}", ""), ".url.env", "the secret of the url of a redis_stream"),
        (stream("{ env = \"U\", x = 1 }", ""), ".url.x", "no such key"),
        (stream("1", ""), ".url", "found an integer"),
        (stream("\"redis://a\"", ", max_length = -1"), ".max_length", "from 0 to"),
        (stream("\"redis://a\"", ", maxlen = 1"), ".maxlen", "no such key"),
        (url("redis://a").replace("payments", ""), ".stream", "1 to 512 bytes"),
    ] {
        let fault = fault_of(load(&text));
        let is_right = fault.starts_with(&format!("{key}{at}: ")) && fault.contains(piece);
        assert!(is_right, "{text}\n{fault}");
    }
}

#[test]
#[cfg(not(feature = "redis"))]
fn a_build_without_redis_refuses_a_stream() {
    let fault = fault_of(load(&stream("\"redis://a\"", "")));
    assert!(fault.starts_with("sinks[0].redis_stream: this build has no Redis"), "{fault}");
}

#[test]
#[cfg(feature = "redis")]
fn the_url_of_a_stream_can_be_a_secret() {
    let text = stream("{ env = \"LEDGER_REDIS\" }", "");
    let before = load(&text).unwrap().describe();
    let line = "sink      ledger: redis_stream (url from LEDGER_REDIS), timeout 15s";
    assert!(before.contains(line), "{before}");
    let config = with_secret(&text, "redis://me:c4n4ry@a:7/1").unwrap();
    let SinkTarget::RedisStream(target) = &config.sinks[0].settings.target else { panic!() };
    assert_eq!(target.url, "redis://me:c4n4ry@a:7/1");
}

#[test]
#[cfg(feature = "redis")]
fn a_faulty_secret_url_is_refused_where_it_is_named() {
    let fault = fault_of(with_secret(&stream("{ env = \"U\" }", ""), "http://me:c4n4ry@a"));
    assert!(fault.starts_with("sinks[0].redis_stream.url: expected a server's url"), "{fault}");
    assert!(!fault.contains("c4n4ry"), "{fault}");
}

#[test]
#[cfg(feature = "redis")]
fn a_broker_is_shown_as_scheme_host_and_port() {
    for (url, shown) in [
        ("redis://me:c4n4ry@a:7/1?protocol=resp3", "redis://a:7"),
        ("rediss://:c4n4ry@[::1]:7", "rediss://[::1]:7"),
        ("unix:///run/a.sock?pass=c4n4ry@", "unix:///run/a.sock"),
    ] {
        for config in [
            load(&stream(&format!("\"{url}\""), "")).unwrap(),
            with_secret(&stream("{ env = \"U\" }", ""), url).unwrap(),
        ] {
            let described = config.describe();
            assert!(described.contains(&format!("redis_stream {shown}, timeout")), "{described}");
            assert!(!format!("{described}{config:?}").contains("c4n4ry"), "{config:?}");
        }
    }
}

/// Returns a file with a stream of NATS. `rest` are further keys.
fn nats(url: &str, rest: &str) -> String {
    sink(&format!("nats = {{ url = {url}, subject = \"payments.made\"{rest} }}"))
}

#[test]
#[cfg(feature = "nats")]
fn a_stream_of_nats_has_the_values_of_the_file() {
    let files = ", credentials = \"a.creds\", ca_file = \"ca.pem\"";
    let expected = NatsTarget {
        url: "tls://a:1".to_owned(),
        subject: "payments.made".to_owned(),
        credentials: Some("a.creds".into()),
        ca_file: Some("ca.pem".into()),
    };
    assert_eq!(target(&nats("\"tls://a:1\"", files)), SinkTarget::Nats(expected));
    let SinkTarget::Nats(bare) = target(&nats("\"nats://a\"", "")) else { panic!() };
    assert_eq!((bare.credentials, bare.ca_file), (None, None));
}

#[test]
#[cfg(feature = "nats")]
fn faulty_streams_of_nats_are_refused() {
    let url = |url: &str| nats(&format!("\"{url}\""), "");
    let subject = |subject: &str| url("nats://a").replace("payments.made", subject);
    let key = "sinks[0].nats";
    for (text, at, piece) in [
        (sink("nats = \"nats://a\""), "", "expected a table such as"),
        (sink("nats = { subject = \"s\" }"), ".url", "a nats needs a server's url"),
        (sink("nats = { url = \"nats://a\" }"), ".subject", "a nats needs subject"),
        (url("a:4222"), ".url", "nats://HOST:PORT or tls://HOST:PORT"),
        (url("ws://a"), ".url", "nats://HOST:PORT"),
        (url("nats://"), ".url", "nats://HOST:PORT"),
        (url("nats://a:0"), ".url", "nats://HOST:PORT"),
        (url("nats://a/payments"), ".url", "nats://HOST:PORT"),
        (url("nats://a?x"), ".url", "nats://HOST:PORT"),
        (nats("{ env = \"U\", file = \"f\" }", ""), ".url.env", "has env or file, not both"),
        (subject("a b"), ".subject", "without white space"),
        (subject("a.*"), ".subject", "without white space, * and >"),
        (subject("a..b"), ".subject", "expected a subject"),
        (subject(""), ".subject", "expected a subject"),
        (nats("\"nats://a\"", ", credentials = \"\""), ".credentials", "a file's name"),
        (nats("\"nats://a\"", ", stream = \"s\""), ".stream", "no such key"),
    ] {
        let fault = fault_of(load(&text));
        let is_right = fault.starts_with(&format!("{key}{at}: ")) && fault.contains(piece);
        assert!(is_right, "{text}\n{fault}");
    }
}

#[test]
#[cfg(not(feature = "nats"))]
fn a_build_without_nats_refuses_its_streams() {
    let fault = fault_of(load(&nats("\"nats://a\"", "")));
    assert!(fault.starts_with("sinks[0].nats: this build has no NATS"), "{fault}");
}

#[test]
#[cfg(feature = "nats")]
fn a_server_of_nats_is_shown_as_scheme_host_and_port() {
    for (url, shown) in
        [("nats://me:c4n4ry@a:7/", "nats://a:7"), ("tls://c4n4ry@[::1]", "tls://[::1]")]
    {
        for config in [
            load(&nats(&format!("\"{url}\""), "")).unwrap(),
            with_secret(&nats("{ env = \"U\" }", ""), url).unwrap(),
        ] {
            let described = config.describe();
            assert!(described.contains(&format!("nats {shown}, timeout")), "{described}");
            assert!(!format!("{described}{config:?}").contains("c4n4ry"), "{config:?}");
        }
    }
}
