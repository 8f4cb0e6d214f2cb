//! Compressed bodies: a retry that compresses again is the same request, and decompression bombs
//! are harmless.

use std::io::Write;

use flate2::{Compression, GzBuilder};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use crate::harness::{Answer, Gateway, Request, Upstream, until};

const JSON: &str = r#"{"txn":"k","amount":1000,"note":"payment payment payment payment"}"#;

/// `JSON` in brotli.
const BROTLI: &[u8] = &[
    27, 65, 0, 0, 132, 104, 115, 169, 202, 101, 67, 250, 88, 5, 211, 194, 96, 12, 54, 224, 4, 188,
    56, 180, 21, 111, 167, 251, 78, 247, 57, 119, 197, 104, 82, 145, 20, 109, 235, 66, 66, 208, 82,
    224, 3,
];

fn gateway(upstream: &Upstream, route: &str) -> Gateway {
    Gateway::with(upstream.port, "", &format!("[[routes]]\npath = \"/v1/payments\"\n{route}"))
}

fn gzip(content: &[u8], level: u32, time: u32) -> Vec<u8> {
    let mut encoder = GzBuilder::new().mtime(time).write(Vec::new(), Compression::new(level));
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn zlib(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn send(gateway: &Gateway, key: Option<&str>, coding: &str, body: &[u8]) -> Answer {
    let request =
        Request::new("POST", "/v1/payments").field("Content-Type", "application/json").body(body);
    let request =
        if coding.is_empty() { request } else { request.field("Content-Encoding", coding) };
    key.into_iter()
        .fold(request, |request, key| request.field("Idempotency-Key", key))
        .send(gateway.port)
}

/// `JSON` in every coding, and in two of them.
fn spellings() -> Vec<(&'static str, Vec<u8>)> {
    let json = JSON.as_bytes();
    vec![
        ("", json.to_vec()),
        ("gzip", gzip(json, 1, 1)),
        ("X-GZIP", gzip(json, 9, 2)),
        ("identity, gzip", gzip(json, 0, 3)),
        ("deflate", zlib(json)),
        ("br", BROTLI.to_vec()),
        ("zstd", compress_to_vec(json, CompressionLevel::Fastest)),
        ("br, gzip", gzip(BROTLI, 6, 4)),
        ("", JSON.replace(',', " , ").into_bytes()),
        ("gzip", gzip(JSON.replace(',', " , ").as_bytes(), 6, 5)),
    ]
}

#[test]
fn a_retry_that_is_compressed_anew_is_the_same_request() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream, "");
    let first = gzip(JSON.as_bytes(), 6, 0);
    assert_eq!(send(&gateway, Some("k"), "gzip", &first).status, 201);
    let seen = upstream.seen().pop().unwrap();
    assert_eq!(
        (seen.body.as_slice(), seen.get("content-encoding")),
        (&first[..], Some("gzip")),
        "as it came"
    );
    for (coding, body) in spellings() {
        assert!(send(&gateway, Some("k"), coding, &body).replayed(), "{coding}");
    }
    let other = gzip(JSON.replace("1000", "1001").as_bytes(), 6, 0);
    assert_eq!(send(&gateway, Some("k"), "gzip", &other).problem(), "key-reused");
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn a_key_is_read_from_a_compressed_body() {
    let upstream = Upstream::start();
    for route in [
        "key = { body = \"/txn\", required = true }",
        "key = { derive = [\"path\", \"body:/txn\"] }",
        "key = { derive = [\"path\", \"body_hash\"] }",
    ] {
        let gateway = gateway(&upstream, route);
        let before = upstream.executed();
        assert_eq!(
            send(&gateway, None, "gzip", &gzip(JSON.as_bytes(), 6, 0)).status,
            201,
            "{route}"
        );
        for (coding, body) in spellings() {
            assert!(send(&gateway, None, coding, &body).replayed(), "{route}: {coding}");
        }
        assert_eq!(upstream.executed(), before + 1, "{route}");
    }
    let form = gateway(&upstream, "key = { form = \"txn\", required = true }");
    let pay = |time| {
        let request = Request::new("POST", "/v1/payments")
            .field("Content-Type", "application/x-www-form-urlencoded");
        request.field("Content-Encoding", "gzip").body(gzip(b"txn=k", 6, time)).send(form.port)
    };
    assert!(pay(1).status == 201 && pay(2).replayed());
}

#[test]
fn what_can_not_be_decoded_counts_as_its_bytes_and_is_refused_where_the_key_is_in_it() {
    let upstream = Upstream::start();
    let (by_field, in_body) = (
        gateway(&upstream, "fingerprint = { ignore = [\"/txn\"] }"),
        gateway(&upstream, "key = { body = \"/txn\" }"),
    );
    let whole = gzip(JSON.as_bytes(), 6, 0);
    let two_members = [whole.clone(), whole.clone()].concat();
    let bomb = gzip(&vec![b' '; 3 << 20], 9, 0);
    for (n, (coding, body)) in [
        ("compress", JSON.as_bytes()),
        ("gzip, rot13", &whole),
        ("gzip, gzip, gzip, gzip", &whole),
        ("gzip", JSON.as_bytes()),
        ("gzip", &whole[..whole.len() - 1]),
        ("gzip", &two_members),
        ("gzip", &bomb),
        ("br", &whole),
    ]
    .into_iter()
    .enumerate()
    {
        let key = format!("k{n}");
        assert_eq!(send(&by_field, Some(&key), coding, body).status, 201, "{coding}");
        assert!(send(&by_field, Some(&key), coding, body).replayed(), "{coding}");
        let other = [body, b" "].concat();
        assert_eq!(
            send(&by_field, Some(&key), coding, &other).problem(),
            "key-reused",
            "{coding}: other bytes"
        );
        let refused = send(&in_body, None, coding, body);
        assert_eq!(
            (refused.status, refused.problem().as_str()),
            (415, "unsupported-encoding"),
            "{coding}"
        );
        assert_eq!(refused.get("accept-encoding"), Some("gzip, deflate, br, zstd, identity"));
    }
    assert_eq!(upstream.executed(), 8);
}

#[test]
fn a_body_that_can_not_be_decoded_is_never_made_a_key_of() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream, "key = { derive = [\"path\", \"body_hash\"] }");
    let whole = gzip(JSON.as_bytes(), 6, 0);
    assert_eq!(send(&gateway, None, "gzip", &whole).status, 201);
    assert!(send(&gateway, None, "gzip", &gzip(JSON.as_bytes(), 9, 7)).replayed());
    for (coding, body) in [
        ("gzip", [whole.clone(), vec![0]].concat()),
        ("gzip, gzip, gzip, gzip", whole.clone()),
        ("lz4", whole),
    ] {
        assert_eq!(
            send(&gateway, None, coding, &body).problem(),
            "unsupported-encoding",
            "{coding}"
        );
    }
    // Its decoded length exceeds that of any body that was not made to cost time.
    let dense = gzip(&vec![b' '; 900 << 10], 9, 0);
    assert!(dense.len() * 256 < 900 << 10);
    assert_eq!(send(&gateway, None, "gzip", &dense).problem(), "unsupported-encoding");
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn many_bombs_take_no_memory_and_hold_nobody_up() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(
        upstream.port,
        "[limits]\nbuffered_bytes = \"32MiB\"\n",
        "[[routes]]\npath = \"/v1/payments\"\nkey = { body = \"/txn\" }",
    );
    let before = gateway.resident_bytes();
    let bomb = gzip(&vec![b' '; 32 << 20], 6, 0);
    let request =
        Request::new("POST", "/v1/payments").json("").field("Content-Encoding", "gzip").body(bomb);
    let bombs: Vec<_> = (0..24).map(|_| request.send_aside(gateway.port)).collect();
    assert_eq!(send(&gateway, None, "gzip", &gzip(JSON.as_bytes(), 6, 0)).status, 201);
    for refused in bombs {
        let refused = refused.join().unwrap();
        assert!(
            matches!(refused.problem().as_str(), "unsupported-encoding" | "overloaded"),
            "{}",
            refused.text()
        );
    }
    let grown = gateway.resident_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more");
    until("the buffers to be empty", || gateway.metric("onceward_buffered_bytes") == 0.0);
}

#[test]
fn a_watched_route_knows_a_retry_that_is_compressed_anew() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream, "name = \"payments\"\nmode = \"shadow\"");
    let counted = |would: &str| {
        gateway.metric(&format!("onceward_shadow_total{{route=\"payments\",would=\"{would}\"}}"))
    };
    assert_eq!(send(&gateway, Some("k"), "gzip", &gzip(JSON.as_bytes(), 1, 1)).status, 201);
    until("the first to be watched", || counted("execute") == 1.0);
    assert_eq!(send(&gateway, Some("k"), "gzip", &gzip(JSON.as_bytes(), 9, 2)).status, 201);
    until("the second to be watched", || counted("replay") == 1.0);
}
