//! Sinks that are brokers, against real servers.

use std::time::Duration;

use bytes::Bytes;
use onceward::outbox::delivery::{AttemptResult, Delivery};
use onceward::outbox::nats::Nats;
use onceward::outbox::redis_stream::RedisStream;
use onceward::outbox::settings::{NatsTarget, RedisStreamTarget, SinkSettings, SinkTarget};
use onceward::outbox::sink::Sink;

use crate::harness::{Authority, NatsServer, NatsUser, PATIENCE, RedisServer, free_port};

const PASSWORD: &str = "c4n4ry";

/// Returns an event in its first round.
fn event(id: &str) -> Delivery {
    let event = format!(
        r#"{{"specversion":"1.0","id":"{id}","type":"com.example.p\u00e4id","subject":"op_1","data":{{"type":"x"}}}}"#
    );
    Delivery { event_id: id.to_owned(), round: 0, event: Bytes::from(event) }
}

fn delivered() -> AttemptResult {
    AttemptResult::Delivered { status: None }
}

#[track_caller]
fn error_of(result: AttemptResult) -> String {
    match result {
        AttemptResult::Failed { error } => {
            assert!(!error.contains(PASSWORD), "{error}");
            error
        }
        other => panic!("{other:?}"),
    }
}

fn stream_target(url: &str) -> RedisStreamTarget {
    let stream = "payments".to_owned();
    RedisStreamTarget { url: url.to_owned(), stream, max_length: 1_000_000, ca_file: None }
}

fn stream(url: &str) -> RedisStream {
    RedisStream::new(&stream_target(url)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_of_a_redis_stream_has_the_event_and_its_attributes() {
    let redis = RedisServer::start();
    let event = event("ev_1");
    assert_eq!(stream(&redis.url()).attempt(&event, PATIENCE).await, delivered());
    let entries = redis.cli(&["xrange", "payments", "-", "+"]);
    let lines: Vec<&str> = entries.lines().skip(1).collect();
    let whole = std::str::from_utf8(&event.event).unwrap();
    let attributes = ["id", "ev_1", "type", "com.example.p\u{e4}id", "subject", "op_1"];
    assert_eq!(lines, [&attributes[..], &["event", whole]].concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_stream_is_trimmed_to_about_its_length() {
    let redis = RedisServer::with(free_port(), &["--stream-node-max-entries", "10"]);
    let target = RedisStreamTarget { max_length: 20, ..stream_target(&redis.url()) };
    let trimmed = RedisStream::new(&target).unwrap();
    for _ in 0..100 {
        assert_eq!(trimmed.attempt(&event("ev_1"), PATIENCE).await, delivered());
    }
    let length: u32 = redis.cli(&["xlen", "payments"]).parse().unwrap();
    assert!((20..=30).contains(&length), "{length}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_stream_without_a_length_is_never_trimmed() {
    let redis = RedisServer::with(free_port(), &["--stream-node-max-entries", "10"]);
    let target = RedisStreamTarget { max_length: 0, ..stream_target(&redis.url()) };
    let untrimmed = RedisStream::new(&target).unwrap();
    for _ in 0..100 {
        assert_eq!(untrimmed.attempt(&event("ev_1"), PATIENCE).await, delivered());
    }
    assert_eq!(redis.cli(&["xlen", "payments"]), "100");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_attempt_after_a_restart_of_redis_delivers() {
    let mut redis = RedisServer::start();
    let stream = stream(&redis.url());
    assert_eq!(stream.attempt(&event("ev_1"), PATIENCE).await, delivered());
    redis.kill();
    error_of(stream.attempt(&event("ev_2"), PATIENCE).await);
    let error = error_of(stream.attempt(&event("ev_2"), PATIENCE).await);
    assert!(error.starts_with("can't connect: "), "{error}");
    redis.restart(&[]);
    assert_eq!(stream.attempt(&event("ev_2"), PATIENCE).await, delivered());
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_at_the_same_time_share_a_connection_to_redis() {
    let redis = RedisServer::start();
    let stream = stream(&redis.url());
    let attempts = (0..200).map(|number| {
        let stream = &stream;
        async move { stream.attempt(&event(&format!("ev_{number}")), PATIENCE).await }
    });
    let results = futures_util::future::join_all(attempts).await;
    assert!(results.iter().all(AttemptResult::is_delivered), "{results:?}");
    let clients = redis.cli(&["client", "list"]);
    let own = clients.lines().filter(|line| line.contains("cmd=xadd")).count();
    assert_eq!(own, 1, "{clients}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_does_not_answer_fails_an_attempt_in_its_time() {
    let redis = RedisServer::start();
    let stream = stream(&redis.url());
    assert_eq!(stream.attempt(&event("ev_1"), PATIENCE).await, delivered());
    redis.signal("STOP");
    let error = error_of(stream.attempt(&event("ev_2"), Duration::from_millis(200)).await);
    assert_eq!(error, "no answer within 200ms");
    // The connection that did not answer is not used again.
    let error = error_of(stream.attempt(&event("ev_2"), Duration::from_millis(200)).await);
    assert_eq!(error, "no connection within 200ms");
    redis.signal("CONT");
    assert_eq!(stream.attempt(&event("ev_2"), PATIENCE).await, delivered());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_another_type_is_named_as_the_cause() {
    let redis = RedisServer::start();
    redis.cli(&["set", "payments", "1"]);
    let error = error_of(stream(&redis.url()).attempt(&event("ev_1"), PATIENCE).await);
    let expected =
        "the server answered WRONGTYPE: the key of the stream has a value of another type";
    assert_eq!(error, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_credentials_of_a_redis_are_used_and_not_shown() {
    let redis = RedisServer::start();
    redis.cli(&["acl", "setuser", "ledger", "on", ">right", "~payments", "+xadd", "+client"]);
    let url = |password: &str| format!("redis://ledger:{password}@127.0.0.1:{}", redis.port);
    assert_eq!(stream(&url("right")).attempt(&event("ev_1"), PATIENCE).await, delivered());
    let wrong = stream_target(&url(PASSWORD));
    let error = error_of(RedisStream::new(&wrong).unwrap().attempt(&event("ev_1"), PATIENCE).await);
    assert!(error.contains("user name or password are wrong"), "{error}");
    assert!(!format!("{wrong:?}").contains(PASSWORD), "{wrong:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_stream_over_tls_trusts_only_the_given_authority() {
    let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
    authority.write("localhost", dir.path());
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let port = free_port();
    let _redis = RedisServer::with(
        free_port(),
        &[
            &["--tls-port", &port.to_string(), "--tls-auth-clients", "no"][..],
            &["--tls-cert-file", &file("cert.pem"), "--tls-key-file", &file("key.pem")],
            &["--tls-ca-cert-file", authority.ca_file().to_str().unwrap()],
        ]
        .concat(),
    );
    let trusting = |authority: &Authority| {
        let ca_file = Some(authority.ca_file().to_owned());
        let url = format!("rediss://localhost:{port}");
        RedisStream::new(&RedisStreamTarget { ca_file, ..stream_target(&url) }).unwrap()
    };
    assert_eq!(trusting(&authority).attempt(&event("ev_1"), PATIENCE).await, delivered());
    let error = error_of(trusting(&Authority::new()).attempt(&event("ev_1"), PATIENCE).await);
    assert!(error.contains("invalid peer certificate"), "{error}");
}

fn nats_target(url: &str) -> NatsTarget {
    let subject = "payments".to_owned();
    NatsTarget { url: url.to_owned(), subject, credentials: None, ca_file: None }
}

fn nats(url: &str) -> Nats {
    Nats::new(&nats_target(url)).unwrap()
}

/// Returns a server with a stream PAY, which takes the subject `payments`.
fn nats_server(lines: &str) -> NatsServer {
    let server = NatsServer::with(lines);
    server.create_stream("PAY", "payments");
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_nats_has_the_event_its_id_and_its_format() {
    let server = nats_server("");
    let event = event("ev_1");
    assert_eq!(nats(&server.url()).attempt(&event, PATIENCE).await, delivered());
    let (headers, payload) = server.message("PAY", 1);
    let mut lines: Vec<&str> = headers.lines().filter(|line| !line.is_empty()).collect();
    lines.sort_unstable();
    let expected = ["Content-Type: application/cloudevents+json", "NATS/1.0", "Nats-Msg-Id: ev_1"];
    assert_eq!(lines, expected);
    assert_eq!(payload.as_bytes(), event.event);
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_stores_a_repeated_event_once_and_a_requeued_one_again() {
    let server = nats_server("");
    let nats = nats(&server.url());
    let first = event("ev_1");
    assert_eq!(nats.attempt(&first, PATIENCE).await, delivered());
    assert_eq!(nats.attempt(&first, PATIENCE).await, delivered(), "the stream has it");
    assert_eq!(server.messages("PAY"), 1);
    let requeued = Delivery { round: 1, ..first };
    assert_eq!(nats.attempt(&requeued, PATIENCE).await, delivered());
    assert_eq!(server.messages("PAY"), 2);
    assert!(server.message("PAY", 2).0.contains("Nats-Msg-Id: ev_1.1\r\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subject_that_no_stream_of_nats_takes_is_named() {
    let server = NatsServer::start();
    server.create_stream("OTHER", "refunds");
    let error = error_of(nats(&server.url()).attempt(&event("ev_1"), PATIENCE).await);
    assert_eq!(error, "no stream takes the subject payments");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_nats_that_refuses_an_event_is_shown_with_its_reason() {
    let server = NatsServer::start();
    let config = r#"{"name":"PAY","subjects":["payments"],"max_msgs":1,"discard":"new"}"#;
    server.api("STREAM.CREATE.PAY", config);
    let nats = nats(&server.url());
    assert_eq!(nats.attempt(&event("ev_1"), PATIENCE).await, delivered());
    let error = error_of(nats.attempt(&event("ev_2"), PATIENCE).await);
    assert_eq!(error, "the stream refused the event: maximum messages exceeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_attempt_after_a_restart_of_nats_delivers() {
    let mut server = nats_server("");
    let nats = nats(&server.url());
    assert_eq!(nats.attempt(&event("ev_1"), PATIENCE).await, delivered());
    server.kill();
    let error = error_of(nats.attempt(&event("ev_2"), Duration::from_millis(300)).await);
    assert!(error.starts_with("no connection within 300ms") || error.contains("broke"), "{error}");
    server.restart();
    assert_eq!(server.messages("PAY"), 1, "its streams are ready");
    assert_eq!(nats.attempt(&event("ev_2"), PATIENCE).await, delivered());
    assert_eq!(server.messages("PAY"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_at_the_same_time_share_a_connection_to_nats() {
    let server = nats_server("");
    let nats = nats(&server.url());
    let attempts = (0..200).map(|number| {
        let nats = &nats;
        async move { nats.attempt(&event(&format!("ev_{number}")), PATIENCE).await }
    });
    let results = futures_util::future::join_all(attempts).await;
    assert!(results.iter().all(AttemptResult::is_delivered), "{results:?}");
    assert_eq!(server.messages("PAY"), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nats_that_is_away_fails_an_attempt_with_the_reason() {
    let nats = nats(&format!("nats://127.0.0.1:{}", free_port()));
    let error = error_of(nats.attempt(&event("ev_1"), PATIENCE).await);
    assert!(error.starts_with("can't connect: ") && error.contains("refused"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nats_that_does_not_answer_fails_an_attempt_in_its_time() {
    let server = nats_server("");
    let nats = nats(&server.url());
    assert_eq!(nats.attempt(&event("ev_1"), PATIENCE).await, delivered());
    server.pause();
    let error = error_of(nats.attempt(&event("ev_2"), Duration::from_millis(200)).await);
    assert_eq!(error, "no acknowledgement within 200ms");
    server.resume();
    assert_eq!(nats.attempt(&event("ev_3"), PATIENCE).await, delivered());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_credentials_in_a_url_of_nats_are_used_and_not_shown() {
    let server = NatsServer::with("authorization { user: ledger, password: \"a b\" }");
    let url = |password: &str| format!("nats://ledger:{password}@127.0.0.1:{}", server.port);
    // Without a stream, only a user who is logged in gets this answer.
    let error = error_of(nats(&url("a%20b")).attempt(&event("ev_1"), PATIENCE).await);
    assert_eq!(error, "no stream takes the subject payments");
    let wrong = nats_target(&url(PASSWORD));
    let error = error_of(Nats::new(&wrong).unwrap().attempt(&event("ev_1"), PATIENCE).await);
    assert_eq!(error, "can't connect: the server refused the credentials");
    assert!(!format!("{wrong:?}").contains(PASSWORD), "{wrong:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_of_credentials_of_nats_is_read_for_each_connection() {
    let (right, wrong) = (NatsUser::of_operator(1), NatsUser::of_operator(2));
    let server = NatsServer::with(&right.config);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ledger.creds");
    let target = NatsTarget { credentials: Some(file.clone()), ..nats_target(&server.url()) };
    std::fs::write(&file, wrong.credentials).unwrap();
    let nats = Nats::new(&target).unwrap();
    let error = error_of(nats.attempt(&event("ev_1"), PATIENCE).await);
    assert_eq!(error, "can't connect: the server refused the credentials");
    std::fs::write(&file, right.credentials).unwrap();
    // Without a stream, only a user who is logged in gets this answer.
    let error = error_of(nats.attempt(&event("ev_1"), PATIENCE).await);
    assert_eq!(error, "no stream takes the subject payments");
    std::fs::write(&file, PASSWORD).unwrap();
    let error = Nats::new(&target).map(drop).unwrap_err().to_string();
    assert!(error.contains("no JWT") && !error.contains(PASSWORD), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_over_tls_trusts_only_the_given_authority() {
    let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
    authority.write("localhost", dir.path());
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (cert, key) = (file("cert.pem"), file("key.pem"));
    let server = NatsServer::with(&format!("tls {{ cert_file: {cert:?}, key_file: {key:?} }}"));
    let attempt = async |scheme: &str, authority: &Authority| {
        let ca_file = Some(authority.ca_file().to_owned());
        let url = format!("{scheme}://localhost:{}", server.port);
        let nats = Nats::new(&NatsTarget { ca_file, ..nats_target(&url) }).unwrap();
        error_of(nats.attempt(&event("ev_1"), PATIENCE).await)
    };
    for scheme in ["tls", "nats"] {
        let error = attempt(scheme, &authority).await;
        assert_eq!(error, "no stream takes the subject payments");
        let error = attempt(scheme, &Authority::new()).await;
        assert!(error.contains("invalid peer certificate"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_ca_file_nothing_is_sent_to_a_nats_without_tls() {
    let server = nats_server("");
    let authority = Authority::new();
    let ca_file = Some(authority.ca_file().to_owned());
    let nats = Nats::new(&NatsTarget { ca_file, ..nats_target(&server.url()) }).unwrap();
    error_of(nats.attempt(&event("ev_1"), PATIENCE).await);
    assert_eq!(server.messages("PAY"), 0);
}

#[test]
fn a_sink_is_set_up_without_its_broker() {
    let at = format!("127.0.0.1:{}", free_port());
    let redis = SinkTarget::RedisStream(stream_target(&format!("redis://{at}")));
    let nats = SinkTarget::Nats(nats_target(&format!("nats://{at}")));
    for target in [redis, nats] {
        Sink::new(SinkSettings::new("ledger", target)).unwrap();
    }
}
