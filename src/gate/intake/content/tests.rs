//! The codings that are decoded, their order, and the memory that decoding takes.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use http::HeaderValue;
use prometheus_client::metrics::gauge::Gauge;

use super::*;
use crate::gate::budget::Budget;

const LIMIT: usize = 1 << 20;

fn fields(lines: &[&'static str]) -> HeaderMap {
    lines.iter().map(|line| (CONTENT_ENCODING, HeaderValue::from_static(line))).collect()
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn codings_are_read_from_all_lines_in_their_order() {
    use Coding::{Brotli, Deflate, Gzip, Zstd};
    for (lines, expected) in [
        (&[][..], Some(vec![])),
        (&["identity"], Some(vec![])),
        (&["GZip"], Some(vec![Gzip])),
        (&["x-gzip, , br"], Some(vec![Gzip, Brotli])),
        (&["deflate", "identity,zstd"], Some(vec![Deflate, Zstd])),
        (&["gzip", "gzip", "gzip"], Some(vec![Gzip, Gzip, Gzip])),
        (&["gzip, gzip", "gzip, gzip"], None),
        (&["gzip, compress"], None),
        (&["gzip;q=1"], None),
    ] {
        assert_eq!(codings(&fields(lines)), expected, "{lines:?}");
        assert_eq!(can_decode(&fields(lines)), expected.is_some());
    }
}

#[tokio::test]
async fn decoded_bytes_take_memory_and_the_decoder_gives_its_own_memory_back() {
    let gauge = Gauge::default();
    let content: Vec<u8> =
        (0..100_000_u32).map(|n| b'a' + (n.wrapping_mul(2_654_435_761) >> 24) as u8 % 26).collect();
    let body = Bytes::from(gzip(&gzip(&content)));
    let headers = fields(&["gzip, gzip"]);
    let budget = Budget::new(16 << 20, 16 << 20, gauge.clone());
    let mut hold = budget.hold();
    let read = Content::read(&headers, &body, LIMIT, &mut hold).await.unwrap();
    assert!(read.is_decoded() && read.bytes() == &content);
    assert!((100_000..400_000).contains(&gauge.get()), "{} held", gauge.get());
    assert_eq!(Content::read_at_once(&headers, &body, LIMIT, &mut budget.hold()), Ok(read));
    drop(hold);
    assert_eq!(gauge.get(), 0);
    for room in [1000, 110_000] {
        let scarce = Budget::new(room, room, gauge.clone());
        assert_eq!(
            Content::read(&headers, &body, LIMIT, &mut scarce.hold()).await,
            Err(Refusal::Overloaded),
            "{room}"
        );
        assert_eq!(gauge.get(), 0);
    }
}

#[tokio::test]
async fn a_body_that_can_not_be_decoded_stays_as_the_client_sent_it() {
    let budget = Budget::new(16 << 20, 16 << 20, Gauge::default());
    let body = Bytes::from(gzip(b"content"));
    let empty = Bytes::new();
    for (lines, body, limit, decoded) in [
        (&["gzip"][..], &body, 7, true),
        (&["gzip"], &body, 6, false),
        (&["br"], &body, LIMIT, false),
        (&["rot13"], &body, LIMIT, false),
        (&["gzip, rot13"], &body, LIMIT, false),
        (&["rot13"], &empty, LIMIT, true),
        (&["gzip"], &empty, LIMIT, true),
        (&[], &body, LIMIT, true),
    ] {
        let read = Content::read(&fields(lines), body, limit, &mut budget.hold()).await.unwrap();
        assert_eq!(read.is_decoded(), decoded, "{lines:?} {limit}");
        assert!(decoded || read.bytes() == body);
    }
}
