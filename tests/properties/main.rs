//! The invariants of every parser that reads bytes from outside, on plausible bytes and on damaged
//! ones. `tests/fuzz` runs the same invariants in a fuzzer, which finds cases that no generator
//! covers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod invariants;

use proptest::prelude::*;

/// Generates texts of these pieces, with some arbitrary bytes in between.
fn made_of(pieces: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        12 => proptest::sample::select(pieces).prop_map(|piece| piece.as_bytes().to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..6),
    ];
    proptest::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

const KEYS: &[&str] = &[
    "\"",
    "\\",
    "a",
    "B",
    "0",
    "-",
    "_",
    " ",
    ";",
    "=",
    "\t",
    "\"abc\"",
    "order-7",
    "7f9c24e8-3b0a-4d4c-8f0e",
];

const JSON: &[&str] = &[
    "\u{feff}",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"key\"",
    "\"key\":",
    "\"a\":1",
    "{\"a\":1}",
    "[1,2]",
    "9007199254740993",
    "1e400",
    "-0",
    "10.0",
    "true",
    "null",
    "\"\\u0061\"",
    "\"\\\"\"",
    " ",
    "\n",
    "--b\r\n",
    "--b--\r\n",
    "Content-Disposition: form-data; name=\"a\"\r\n\r\n",
];

const FIELDS: &[&str] = &[
    "\n",
    "\n",
    "Connection: close\n",
    "Connection: Idempotency-Key, host , via\n",
    "connection: keep-alive\n",
    "Connection: traceparent, x-forwarded-for\n",
    "TE: trailers\n",
    "Transfer-Encoding: chunked\n",
    "Content-Length: 5\n",
    "Upgrade: h2c\n",
    "Host: a\n",
    "X-Forwarded-For: 1.2.3.4\n",
    "Forwarded: for=1.2.3.4\n",
    "X-Real-IP: 1.2.3.4\n",
    "Via: 1.0 other\n",
    "Idempotency-Key: k\n",
    "Set-Cookie: a=b\n",
    "Set-Cookie: c=d\n",
    "Date: now\n",
    "Proxy-Authorization: x\n",
    "X: \n",
];

const HTTP: &[&str] = &[
    "GET / HTTP/1.1\r\n",
    "POST /a?b HTTP/1.1\r\n",
    "POST /a HTTP/1.0\r\n",
    "GET http://a/b HTTP/1.1\r\n",
    "Host: a\r\n",
    "Host: a\r\n",
    "Content-Length: 5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: gzip, chunked\r\n",
    "Connection: close\r\n",
    "\r\n",
    "\r\n",
    "5\r\nhello\r\n",
    "0\r\n\r\n",
    "hello",
    "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    "\n",
    "\r",
    " ",
    "\0",
];

const TAGS: &[&str] =
    &["\"", "\"a\"", "W/\"a\"", "W/", "*", ",", ", ", " ", "\"a,b\"", "\"b\",\"c\"", "\t"];

const TOML: &[&str] = &[
    "\n",
    "\n",
    "[[routes]]\n",
    "path = \"/v1/{x}\"\n",
    "methods = [\"POST\"]\n",
    "[upstream]\n",
    "url = \"http://a\"\n",
    "[store]\n",
    "url = \"redis://a\"\n",
    "retention = \"1h\"\n",
    "profile = \"stripe\"\n",
    "key = { header = \"K\" }\n",
    "key = { derive = [\"path\"] }\n",
    "lease = ",
    "\"30s\"\n",
    "[limits]\n",
    "in_flight = 1\n",
    "=",
    "\"",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn keys_are_read_in_one_way(bytes in made_of(KEYS)) {
        invariants::key(&bytes);
    }

    #[test]
    fn bodies_are_compared_by_value_or_by_byte(bytes in made_of(JSON)) {
        invariants::body(&bytes);
    }

    #[test]
    fn only_end_to_end_fields_pass(bytes in made_of(FIELDS)) {
        invariants::headers(&bytes);
    }

    #[test]
    fn what_the_guard_lets_pass_reads_one_way(bytes in made_of(HTTP)) {
        invariants::guard(&bytes);
    }

    #[test]
    fn two_representations_have_the_same_tag_only_if_their_bytes_are_equal(
        (one, other) in prop_oneof![
            (made_of(JSON), made_of(JSON)),
            made_of(JSON).prop_map(|body| (body.clone(), body)),
            (made_of(JSON), any::<prop::sample::Index>(), 1..=255u8).prop_map(
                |(body, at, change)| {
                    let mut other = body.clone();
                    if !other.is_empty() {
                        let at = at.index(other.len());
                        other[at] ^= change;
                    }
                    (body, other)
                }
            ),
        ]
    ) {
        invariants::tags(&one, &other);
    }

    #[test]
    fn a_list_of_tags_is_read_in_one_way(bytes in made_of(TAGS)) {
        invariants::tag_list(&bytes);
    }

    #[test]
    fn any_text_is_a_configuration_or_a_list_of_faults(bytes in made_of(TOML)) {
        invariants::config(&bytes);
    }
}

/// The number of positions in a seed at which a byte is changed.
const PLACES_MAX: usize = 150;

/// The fuzzer's seeds have good and bad examples for each parser. This test also damages any one
/// byte of them.
#[test]
fn the_fuzzers_seeds_hold_and_so_do_they_with_any_byte_changed() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fuzz/seeds");
    type Invariant = fn(&[u8]);
    let targets: [(&str, Invariant); 6] = [
        ("key", invariants::key),
        ("body", invariants::body),
        ("record", invariants::record),
        ("config", invariants::config),
        ("headers", invariants::headers),
        ("guard", invariants::guard),
    ];
    for (target, holds) in targets {
        let seeds: Vec<_> = std::fs::read_dir(format!("{folder}/{target}"))
            .unwrap()
            .map(|seed| seed.unwrap().path())
            .collect();
        assert!(seeds.len() >= 3, "{target} has seeds");
        for seed in seeds {
            let mut bytes = std::fs::read(&seed).unwrap();
            holds(&bytes);
            // Changes every position of a short seed, and some positions of a long one.
            for at in (0..bytes.len()).step_by(1 + bytes.len() / PLACES_MAX) {
                for change in [1, 0x20, 0x80] {
                    bytes[at] ^= change;
                    holds(&bytes);
                    bytes[at] ^= change;
                }
            }
        }
    }
}
