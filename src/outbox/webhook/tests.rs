//! Webhooks against real servers, and the published example of a signature.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::request::Parts;
use hyper::Response;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::outbox::settings::WEBHOOK_SECRET_BYTES_MIN;

const NOW: u64 = 1_614_265_330;
/// A limit that no attempt of these tests reaches, unless its server is silent.
const LONG: Duration = Duration::from_secs(60);
const EVENT: &[u8] = br#"{"test": 2432232314}"#;
const EXAMPLE_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const EXAMPLE_ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
const EXAMPLE_SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

/// A request as a server got it.
struct Arrival {
    head: Parts,
    body: Bytes,
    /// The number of its connection, from 0.
    connection: usize,
}

type Arrivals = Arc<Mutex<Vec<Arrival>>>;

/// Serves one connection: `answer` gets the number of the request, from 0.
async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    connection: usize,
    arrivals: Arrivals,
    answer: impl Fn(usize) -> Response<String>,
) {
    let service = service_fn(|request: Request<Incoming>| async {
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let mut arrivals = arrivals.lock().unwrap();
        arrivals.push(Arrival { head, body, connection });
        Ok::<_, hyper::Error>(answer(arrivals.len() - 1))
    });
    hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await
        .ok();
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn server(
    answer: impl Fn(usize) -> Response<String> + Clone + Send + Sync + 'static,
) -> (SocketAddr, Arrivals) {
    let ((listener, address), arrivals) = (listener().await, Arrivals::default());
    let kept = arrivals.clone();
    tokio::spawn(async move {
        for connection in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            let answer = answer.clone();
            tokio::spawn(serve(stream, connection, kept.clone(), answer));
        }
    });
    (address, arrivals)
}

/// A server that reads one request from each connection, writes `head`, then `again` for ever.
async fn raw_server(head: &'static str, again: Option<&'static str>) -> SocketAddr {
    let (listener, address) = listener().await;
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                // A close with unread bytes would be a reset.
                let mut request = Vec::new();
                while !request.ends_with(EVENT) && stream.read_buf(&mut request).await? > 0 {}
                stream.write_all(head.as_bytes()).await?;
                while let Some(again) = again {
                    stream.write_all(again.as_bytes()).await?;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Ok::<_, std::io::Error>(())
            });
        }
    });
    address
}

fn status(code: u16) -> Response<String> {
    Response::builder().status(code).body(String::new()).unwrap()
}

fn target(url: impl Into<String>) -> WebhookTarget {
    WebhookTarget {
        url: url.into().parse().unwrap(),
        secrets: vec![webhook_secret(EXAMPLE_SECRET).unwrap()],
        headers: HeaderMap::new(),
        ca_file: None,
    }
}

fn to(address: SocketAddr) -> Webhook {
    Webhook::new(&target(format!("http://{address}/hooks?tenant=hidden"))).unwrap()
}

fn delivery() -> Delivery {
    Delivery { event_id: EXAMPLE_ID.to_owned(), round: 2, event: Bytes::from_static(EVENT) }
}

async fn sent(webhook: &Webhook) -> AttemptResult {
    webhook.attempt(&delivery(), NOW, LONG).await
}

async fn error_of(webhook: &Webhook, within: Duration) -> String {
    match webhook.attempt(&delivery(), NOW, within).await {
        AttemptResult::Failed { error } => {
            assert!(!error.contains("hidden") && !error.contains("/hooks"), "{error}");
            error
        }
        other => unreachable!("{other:?}"),
    }
}

fn delivered(status: u16) -> AttemptResult {
    AttemptResult::Delivered { status: Some(status) }
}

/// HMAC-SHA-256 by its definition (RFC 2104), so that the product's library is not its own judge.
/// The key has at most 64 bytes.
fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    let padded = |pad: u8| {
        let mut block = [pad; 64];
        block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
        block
    };
    let inner = Sha256::new().chain_update(padded(0x36)).chain_update(text).finalize();
    Sha256::new().chain_update(padded(0x5c)).chain_update(inner).finalize().to_vec()
}

fn expected_signature(secret: &[u8], id: &str, body: &[u8]) -> String {
    let text = [format!("{id}.{NOW}.").as_bytes(), body].concat();
    format!("v1,{}", BASE64.encode(hmac(secret, &text)))
}

#[test]
fn the_published_example_of_standard_webhooks_has_its_signature() {
    let secret = webhook_secret(EXAMPLE_SECRET).unwrap();
    let keys = WebhookKeys::new(std::slice::from_ref(&secret)).unwrap();
    assert_eq!(keys.signature(EXAMPLE_ID, NOW, EVENT), EXAMPLE_SIGNATURE);
    assert_eq!(expected_signature(&secret, EXAMPLE_ID, EVENT), EXAMPLE_SIGNATURE);
}

#[test]
fn a_secret_is_base64_after_its_prefix_and_else_the_bytes_of_the_text() {
    let bytes: Vec<u8> = (0..25).map(|byte| byte * 10).collect();
    let padded = BASE64.encode(&bytes);
    assert!(padded.ends_with("=="));
    let unpadded = padded.trim_end_matches('=');
    for text in [format!("whsec_{padded}"), format!("whsec_{unpadded}")] {
        assert_eq!(webhook_secret(&text), Ok(bytes.clone()), "{text}");
    }
    let raw = "r".repeat(WEBHOOK_SECRET_BYTES_MIN);
    assert_eq!(webhook_secret(&raw), Ok(raw.clone().into_bytes()));
    for (text, error) in [
        (&raw[1..], WebhookSecretError::TooShort { bytes: 23 }),
        ("", WebhookSecretError::TooShort { bytes: 0 }),
        ("whsec_", WebhookSecretError::TooShort { bytes: 0 }),
        ("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", WebhookSecretError::TooShort { bytes: 22 }),
        ("whsec_not base64, but long enough", WebhookSecretError::Base64),
    ] {
        assert_eq!(webhook_secret(text), Err(error), "{text}");
    }
    let error = webhook_secret("short").unwrap_err().to_string();
    assert_eq!(error, "the secret has 5 bytes; expected at least 24");
}

#[test]
fn an_address_that_can_not_be_used_is_refused() {
    let refused = |url: &str| Webhook::new(&target(url)).err();
    for (url, error) in [
        ("ftp://host/x", WebhookError::Scheme),
        ("/x", WebhookError::Scheme),
        ("http://user:password@host/x", WebhookError::Credentials),
        ("http://:80/x", WebhookError::Host),
        ("http://host:70000/x", WebhookError::Host),
        ("https://-/x", WebhookError::Host),
    ] {
        assert_eq!(refused(url), Some(error), "{url}");
    }
    for url in ["http://host", "http://host:/x", "http://[::1]:81/x", "https://127.0.0.1/x"] {
        assert_eq!(refused(url), None, "{url}");
    }
    let with_ca = |url: &str| WebhookTarget { ca_file: Some("absent.pem".into()), ..target(url) };
    let error = Webhook::new(&with_ca("https://host")).err().unwrap().to_string();
    assert!(error.starts_with("can't read absent.pem: "), "{error}");
    let error = Webhook::new(&with_ca("http://host")).err();
    assert_eq!(error, Some(WebhookError::CaFileUnused));
    let unsigned = WebhookTarget { secrets: Vec::new(), ..target("http://host") };
    assert_eq!(Webhook::new(&unsigned).err(), Some(WebhookError::NoSecret));
}

#[tokio::test]
async fn a_request_has_the_event_and_a_signature_with_each_secret() {
    let (address, arrivals) = server(|_| status(202)).await;
    let secrets = [webhook_secret(EXAMPLE_SECRET).unwrap(), b"another secret of a rotation".into()];
    let mut target = target(format!("http://{address}/hooks?tenant=a"));
    target.secrets = secrets.to_vec();
    target.headers.insert("authorization", HeaderValue::from_static("Bearer t"));
    target.headers.append("x-tag", HeaderValue::from_static("one"));
    target.headers.append("x-tag", HeaderValue::from_static("two"));
    // The configuration refuses these. They must not replace the signature in any case.
    target.headers.insert("host", HeaderValue::from_static("other"));
    target.headers.insert("webhook-signature", HeaderValue::from_static("other"));
    let webhook = Webhook::new(&target).unwrap();
    assert!(webhook.fields["authorization"].is_sensitive());
    assert_eq!(sent(&webhook).await, delivered(202));

    let arrivals = arrivals.lock().unwrap();
    let Arrival { head, body, .. } = &arrivals[0];
    let fields = &head.headers;
    assert_eq!((head.method.as_str(), head.uri.to_string()), ("POST", "/hooks?tenant=a".into()));
    assert_eq!(&body[..], EVENT);
    let agent = format!("onceward/{}", env!("CARGO_PKG_VERSION"));
    for (name, value) in [
        ("content-type", "application/cloudevents+json"),
        ("content-length", "20"),
        ("host", &*address.to_string()),
        ("user-agent", &*agent),
        ("authorization", "Bearer t"),
        ("webhook-id", EXAMPLE_ID),
        ("webhook-timestamp", "1614265330"),
    ] {
        assert_eq!(fields[name], value, "{name}");
        assert_eq!(fields.get_all(name).iter().count(), 1, "{name}");
    }
    assert_eq!(fields.get_all("x-tag").iter().collect::<Vec<_>>(), ["one", "two"]);
    let signatures = secrets.map(|secret| expected_signature(&secret, EXAMPLE_ID, EVENT));
    assert_eq!(signatures[0], EXAMPLE_SIGNATURE);
    assert_eq!(fields["webhook-signature"], signatures.join(" "));
}

#[tokio::test]
async fn attempts_one_after_another_use_one_connection_whatever_the_answers() {
    let (address, arrivals) = server(|number| match number {
        0 => status(200),
        1 => Response::builder().status(500).body("x".repeat(ANSWER_READ_MAX)).unwrap(),
        _ => status(204),
    })
    .await;
    let webhook = to(address);
    assert_eq!(sent(&webhook).await, delivered(200));
    let refused =
        AttemptResult::Refused { status: 500, answer: vec![b'x'; 256].into(), retry_after: None };
    assert_eq!(sent(&webhook).await, refused);
    for _ in 0..20 {
        assert_eq!(sent(&webhook).await, delivered(204));
    }
    assert!(arrivals.lock().unwrap().iter().all(|arrival| arrival.connection == 0));
}

#[tokio::test]
async fn attempts_at_the_same_time_use_connections_of_their_own_and_leave_them_open() {
    let (address, arrivals) = server(|_| status(200)).await;
    let webhook = to(address);
    for _ in 0..3 {
        let all = futures_util::future::join_all((0..4).map(|_| sent(&webhook))).await;
        assert!(all.iter().all(AttemptResult::is_delivered));
    }
    let arrivals = arrivals.lock().unwrap();
    assert!(arrivals.iter().all(|arrival| arrival.connection < 4));
    assert_eq!(arrivals.len(), 12);
}

#[tokio::test]
async fn an_answer_above_the_limit_costs_its_connection_only() {
    let (address, arrivals) =
        server(|_| Response::builder().status(400).body("y".repeat(10 * ANSWER_READ_MAX)).unwrap())
            .await;
    let webhook = to(address);
    let refused =
        AttemptResult::Refused { status: 400, answer: vec![b'y'; 256].into(), retry_after: None };
    for _ in 0..2 {
        assert_eq!(sent(&webhook).await, refused);
    }
    let connections: Vec<_> = arrivals.lock().unwrap().iter().map(|a| a.connection).collect();
    assert_eq!(connections, [0, 1]);
}

#[tokio::test]
async fn a_connection_that_the_receiver_closed_costs_no_attempt() {
    // It answers once, and closes without a notice in the answer.
    let address = raw_server("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", None).await;
    let webhook = to(address);
    for _ in 0..5 {
        assert_eq!(sent(&webhook).await, delivered(200));
        while !webhook.connections.idle_are_closed() {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn a_redirect_is_a_refusal_and_is_not_followed() {
    let (address, arrivals) = server(|_| {
        Response::builder().status(302).header("location", "/other").body("moved".into()).unwrap()
    })
    .await;
    let refused = AttemptResult::Refused {
        status: 302,
        answer: Bytes::from_static(b"moved"),
        retry_after: None,
    };
    assert_eq!(sent(&to(address)).await, refused);
    let arrivals = arrivals.lock().unwrap();
    assert_eq!((arrivals.len(), arrivals[0].head.uri.path()), (1, "/hooks"));
}

#[test]
fn retry_after_counts_for_429_and_503_in_seconds_or_as_a_date() {
    let of = |status: u16, text: &str| {
        let fields = HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]);
        retry_after(StatusCode::from_u16(status).unwrap(), &fields, NOW)
    };
    let s = |seconds| Some(Duration::from_secs(seconds));
    for (status, text, expected) in [
        (429, "120", s(120)),
        (503, "0", s(0)),
        (503, "Thu, 25 Feb 2021 15:03:10 GMT", s(60)),
        (429, "Thursday, 25-Feb-21 15:03:10 GMT", s(60)),
        (429, "Thu, 25 Feb 2021 15:01:10 GMT", s(0)),
        (500, "120", None),
        (302, "120", None),
        (429, "soon", None),
        (429, "-1", None),
        (429, "+1", None),
        (429, "", None),
        (429, "99999999999999999999999", None),
    ] {
        assert_eq!(of(status, text), expected, "{status} {text}");
    }
    assert_eq!(retry_after(StatusCode::TOO_MANY_REQUESTS, &HeaderMap::new(), NOW), None);
}

#[tokio::test]
async fn a_refusal_has_the_time_that_the_receiver_wants() {
    let (address, _) = server(|_| {
        Response::builder().status(429).header("retry-after", "7").body("slow".into()).unwrap()
    })
    .await;
    let expected = AttemptResult::Refused {
        status: 429,
        answer: Bytes::from_static(b"slow"),
        retry_after: Some(Duration::from_secs(7)),
    };
    assert_eq!(sent(&to(address)).await, expected);
}

#[tokio::test]
async fn an_answer_that_never_ends_does_not_hold_the_attempt() {
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let webhook = to(raw_server(head, Some("1\r\nx\r\n")).await);
    let began = Instant::now();
    assert_eq!(sent(&webhook).await, delivered(200));
    assert!((ANSWER_TIME_MAX..LONG / 4).contains(&began.elapsed()));

    // What arrived of a refusal is kept.
    let head = "HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwhy?\r\n";
    let webhook = to(raw_server(head, Some("1\r\n!\r\n")).await);
    let AttemptResult::Refused { status: 500, answer, .. } = sent(&webhook).await else {
        unreachable!()
    };
    assert!(answer.starts_with(b"why?!"), "{answer:?}");
}

#[tokio::test]
async fn a_receiver_that_is_silent_or_sends_its_head_for_ever_fails_in_time() {
    let (listener, silent) = listener().await;
    let within = Duration::from_millis(300);
    for address in [silent, raw_server("HTTP/1.1 200 OK\r\n", Some("X-A: b\r\n")).await] {
        let began = Instant::now();
        assert_eq!(error_of(&to(address), within).await, "no answer within 300 ms");
        assert!((within..LONG / 4).contains(&began.elapsed()));
    }
    assert_eq!(ExchangeFailure::Late(Duration::from_secs(15)).to_string(), "no answer within 15 s");
    // The connection of the attempt is closed: the server reads a request, and then the end.
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut request = Vec::new();
    stream.read_to_end(&mut request).await.ok();
    assert!(request.ends_with(EVENT));
}

#[tokio::test]
async fn each_failure_has_its_own_text() {
    let closed = listener().await.1;
    assert_eq!(error_of(&to(closed), LONG).await, "connection refused");
    // A label of more than 63 bytes needs no name server to be refused.
    let unknown = Webhook::new(&target(format!("http://{}/hooks", "a".repeat(64)))).unwrap();
    let error = error_of(&unknown, LONG).await;
    assert!(error.starts_with("name not found: "), "{error}");
    for (answer, expected) in [
        ("", "the connection broke"),
        ("HTTP/1.1 200 OK\r\nX-A: ", "the connection broke"),
        ("SSH-2.0-OpenSSH_9.6\r\n", "the answer is not HTTP/1.1"),
    ] {
        let webhook = to(raw_server(answer, None).await);
        assert_eq!(error_of(&webhook, LONG).await, expected, "{answer}");
    }
    let endless = raw_server("HTTP/1.1 200 OK\r\nX-A: ", Some("a".repeat(16 << 10).leak())).await;
    assert_eq!(error_of(&to(endless), LONG).await, "the answer's head is too large");
    let odd = Delivery { event_id: "a\nb".to_owned(), ..delivery() };
    let result = to(closed).attempt(&odd, NOW, LONG).await;
    let error = "the event's id can't be a header field".to_owned();
    assert_eq!(result, AttemptResult::Failed { error });
}

/// A server with a certificate for `localhost`. Returns its port and the certificate in PEM.
async fn tls_server(arrivals: Arrivals) -> (u16, String) {
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = rustls_pki_types::PrivatePkcs8KeyDer::from(own.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key.into())
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let (acceptor, (listener, address)) = (TlsAcceptor::from(Arc::new(config)), listener().await);
    tokio::spawn(async move {
        for connection in 0.. {
            let (stream, _): (TcpStream, _) = listener.accept().await.unwrap();
            if let Ok(stream) = acceptor.accept(stream).await {
                tokio::spawn(serve(stream, connection, arrivals.clone(), |_| status(200)));
            }
        }
    });
    (address.port(), own.cert.pem())
}

#[tokio::test]
async fn tls_trusts_the_ca_file_and_nothing_else() {
    let arrivals = Arrivals::default();
    let (port, pem) = tls_server(arrivals.clone()).await;
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let trusting = |host: &str, pem: &str| {
        let file = dir.path().join("ca.pem");
        std::fs::write(&file, pem).unwrap();
        let ca_file = Some(file);
        let target = target(format!("https://{host}:{port}/hooks?hidden"));
        Webhook::new(&WebhookTarget { ca_file, ..target })
    };
    let webhook = trusting("localhost", &pem).unwrap();
    for _ in 0..2 {
        assert_eq!(sent(&webhook).await, delivered(200));
    }
    let connections: Vec<_> = arrivals.lock().unwrap().iter().map(|a| a.connection).collect();
    assert_eq!(connections, [0, 0]);

    for (host, pem) in [("localhost", other.cert.pem()), ("127.0.0.1", pem)] {
        let error = error_of(&trusting(host, &pem).unwrap(), LONG).await;
        assert!(error.starts_with("TLS: invalid peer certificate"), "{error}");
    }
    assert_eq!(arrivals.lock().unwrap().len(), 2, "nothing reached the server without trust");
    assert_eq!(
        trusting("localhost", "").err(),
        Some(WebhookError::Trust(TrustError::NoneFound)),
        "the system's authorities are no substitute"
    );
    let (plain, _) = server(|_| status(200)).await;
    let to_plain = WebhookTarget {
        ca_file: Some(dir.path().join("ca.pem")),
        ..target(format!("https://{plain}"))
    };
    std::fs::write(dir.path().join("ca.pem"), other.cert.pem()).unwrap();
    let error = error_of(&Webhook::new(&to_plain).unwrap(), LONG).await;
    assert!(error.starts_with("TLS: "), "{error}");
}
