//! Bodies in each coding: whole, cut off, longer than their coding, and larger than the limit.

use std::io::Write;

use flate2::write::{DeflateEncoder, ZlibEncoder};
use flate2::{Compression, GzBuilder};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use super::*;

const LIMIT: usize = 1 << 20;

const JSON: &[u8] = br#"{"txn":"k","amount":1000,"note":"payment payment payment payment"}"#;

/// `JSON` in brotli, at quality 5 with a window of 4 MiB, and at quality 11 with a window of 16
/// MiB.
const BROTLI_JSON: [&[u8]; 2] = [
    &[
        27, 65, 0, 0, 132, 104, 115, 169, 202, 101, 67, 250, 88, 5, 211, 194, 96, 12, 54, 224, 4,
        188, 56, 180, 21, 111, 167, 251, 78, 247, 57, 119, 197, 104, 82, 145, 20, 109, 235, 66, 66,
        208, 82, 224, 3,
    ],
    &[
        31, 65, 0, 240, 157, 7, 118, 3, 253, 2, 17, 110, 69, 137, 255, 8, 149, 222, 58, 44, 123,
        125, 115, 205, 141, 174, 69, 222, 232, 240, 166, 72, 153, 27, 108, 192, 1, 115, 26, 110,
        62, 205, 122, 245, 208, 147, 14, 224, 16, 186, 243, 7, 41, 133, 86, 167, 22, 230, 218, 224,
        1,
    ],
];

/// 16 MiB of spaces in brotli.
const BROTLI_BOMB: &[u8] = &[
    203, 255, 255, 63, 0, 36, 64, 226, 177, 64, 114, 239, 255, 248, 255, 255, 7, 128, 4, 64, 28,
    22, 128, 238, 253, 223,
];

/// Decodes an input. Returns the content or the error, the number of steps, and the memory of the
/// output.
fn decoded(coding: Coding, input: &[u8]) -> (Result<Vec<u8>, Undecodable>, usize, usize) {
    let mut decoder = match Decoder::begin(coding, input, LIMIT) {
        Ok(decoder) => decoder,
        Err(why) => return (Err(why), 0, 0),
    };
    for steps in 1.. {
        match decoder.step(input) {
            Ok(true) => {
                let most = decoder.output_bytes();
                return (Ok(decoder.into_output()), steps, most);
            }
            Ok(false) => {}
            Err(why) => return (Err(why), steps, decoder.output_bytes()),
        }
    }
    unreachable!("every step reads or writes something")
}

fn gzip(content: &[u8], level: u32, time: u32) -> Vec<u8> {
    let mut encoder = GzBuilder::new()
        .mtime(time)
        .filename("a")
        .comment("b")
        .extra("c")
        .write(Vec::new(), Compression::new(level));
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn zlib(content: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn deflate(content: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn zstd(content: &[u8]) -> Vec<u8> {
    compress_to_vec(content, CompressionLevel::Fastest)
}

/// A zstd frame with a window of 8 MiB and this many blocks of 128 KiB of one byte.
fn zstd_of_blocks(blocks: usize) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 13 << 3];
    (1..blocks).for_each(|_| frame.extend([2, 0, 0x10, b' ']));
    frame.extend([3, 0, 0x10, b' ']);
    frame
}

/// Bytes that no coding makes smaller.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..length).map(|_| next()).collect()
}

fn samples() -> Vec<(Coding, Vec<u8>)> {
    let [brotli, brotli_large] = BROTLI_JSON;
    vec![
        (Coding::Gzip, gzip(JSON, 1, 1)),
        (Coding::Gzip, gzip(JSON, 9, 1_700_000_000)),
        (Coding::Gzip, gzip(JSON, 0, 0)),
        (Coding::Deflate, zlib(JSON)),
        (Coding::Deflate, deflate(JSON)),
        (Coding::Brotli, brotli.to_vec()),
        (Coding::Brotli, brotli_large.to_vec()),
        (Coding::Zstd, zstd(JSON)),
    ]
}

#[test]
fn each_coding_is_decoded_to_the_original_content() {
    for (coding, input) in samples() {
        assert_eq!(decoded(coding, &input).0.as_deref(), Ok(JSON), "{coding:?}");
    }
    let large = noise(LIMIT);
    for (coding, input) in [
        (Coding::Gzip, gzip(&large, 6, 0)),
        (Coding::Deflate, zlib(&large)),
        (Coding::Zstd, zstd(&large)),
    ] {
        let (content, steps, _) = decoded(coding, &input);
        assert!(
            content.as_deref() == Ok(&large[..]) && steps >= LIMIT / STEP_OUTPUT_BYTES / 4,
            "{coding:?} in {steps} steps"
        );
    }
}

#[test]
fn a_body_that_is_cut_off_or_continues_is_not_decoded() {
    for (coding, input) in samples() {
        for end in 0..input.len() {
            assert_eq!(
                decoded(coding, &input[..end]).0,
                Err(Undecodable::Broken),
                "{coding:?} cut off at {end}"
            );
        }
        let behind = [&input[..], b"\0"].concat();
        assert_eq!(decoded(coding, &behind).0, Err(Undecodable::Broken), "{coding:?} and a byte");
        let twice = [&input[..], &input[..]].concat();
        assert_eq!(decoded(coding, &twice).0, Err(Undecodable::Broken), "{coding:?} twice");
        assert_eq!(decoded(coding, JSON).0, Err(Undecodable::Broken), "not {coding:?}");
    }
}

#[test]
fn a_body_with_a_wrong_checksum_or_size_is_not_decoded() {
    for (coding, mut input) in [
        (Coding::Gzip, gzip(JSON, 6, 0)),
        (Coding::Deflate, zlib(JSON)),
        (Coding::Zstd, zstd(JSON)),
    ] {
        let last = input.len() - 1;
        input[last] ^= 1;
        assert_eq!(decoded(coding, &input).0, Err(Undecodable::Broken), "{coding:?}");
    }
    let mut lying = zstd_of_blocks(1);
    lying[4] = 0x80;
    lying.splice(6..6, 131_071_u32.to_le_bytes());
    assert_eq!(decoded(Coding::Zstd, &lying).0, Err(Undecodable::Broken));
    lying.splice(6..10, 131_072_u32.to_le_bytes());
    assert!(decoded(Coding::Zstd, &lying).0.is_ok());
}

#[test]
fn decoding_a_bomb_stops_at_the_limit() {
    let zeros = vec![0; 4 << 20];
    for (coding, input) in [
        (Coding::Gzip, gzip(&zeros, 9, 0)),
        (Coding::Deflate, zlib(&zeros)),
        (Coding::Brotli, BROTLI_BOMB.to_vec()),
        (Coding::Zstd, zstd_of_blocks(128)),
    ] {
        let (content, steps, most) = decoded(coding, &input);
        assert_eq!(content, Err(Undecodable::TooLarge), "{coding:?}");
        assert!(most <= 2 * LIMIT && steps > 1, "{coding:?}: {most} bytes in {steps} steps");
    }
    let fits = zstd_of_blocks(8);
    assert_eq!(
        decoded(Coding::Zstd, &fits).0.map(|content| content.len()),
        Ok(LIMIT),
        "as large as the limit"
    );
}

#[test]
fn a_zstd_frame_with_a_larger_window_than_the_content_coding_allows_is_not_decoded() {
    let mut frame = zstd_of_blocks(1);
    frame[5] = (13 << 3) | 1;
    assert_eq!(decoded(Coding::Zstd, &frame).0, Err(Undecodable::Broken), "9 MiB");
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 0];
    assert_eq!(decoded(Coding::Zstd, &skippable).0, Err(Undecodable::Broken));
    assert_eq!(zstd_window(&zstd_of_blocks(1)), Some(8 << 20));
    assert!(Decoder::workspace_bytes(Coding::Zstd, &zstd_of_blocks(1), LIMIT) > 8 << 20);
}
