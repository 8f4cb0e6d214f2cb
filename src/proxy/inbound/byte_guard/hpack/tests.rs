//! The examples of RFC 7541, and the findings in blocks. The findings depend neither on the
//! encoding nor on the pieces in which a block arrives.

use proptest::prelude::*;

use super::*;

fn hex(digits: &str) -> Vec<u8> {
    let digits: Vec<u8> = digits.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// Returns whether the target is refused, and whether there are pseudo-header fields.
fn read(reader: &mut BlockReader, block: &[u8]) -> (bool, bool) {
    assert_eq!(reader.read(block), Ok(block.len()), "{block:x?}");
    let block = reader.finish();
    (block.target_refused, block.pseudo)
}

#[test]
fn fields_and_their_literal_bytes_are_counted() {
    // Blocks of RFC 7541, appendix C, and others: bytes, fields, bytes of text.
    let blocks: [(&[u8], usize, usize); 8] = [
        (b"\x40\x0acustom-key\x0dcustom-header", 1, 23),
        (b"\x04\x0c/sample/path", 1, 12),
        (b"\x10\x08password\x06secret", 1, 14),
        (b"\x82\x86\x84\x41\x0fwww.example.com", 4, 15),
        (b"\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff", 4, 12),
        (b"\x3f\xe1\x1f\x82", 1, 0),
        (b"\0\x01a\0\x82", 2, 1),
        (b"\x90\x90\x90", 3, 0),
    ];
    for (bytes, fields, text) in blocks {
        let mut reader = BlockReader::default();
        assert_eq!(reader.read(bytes), Ok(bytes.len()));
        let block = reader.finish();
        assert_eq!((block.fields, block.text_bytes), (fields, text), "{}", bytes.escape_ascii());
        assert_eq!(block.cost(), text + fields * FIELD_BYTES);
        assert_eq!(reader.block().cost(), 0, "the next block begins with nothing");
    }
}

#[test]
fn the_examples_of_the_rfc_leave_the_table_that_it_shows() {
    // Appendix C.4: the same table as C.3, with strings in Huffman code.
    for requests in [
        [
            "828684410f7777772e6578616d706c652e636f6d",
            "828684be58086e6f2d6361636865",
            "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
        ],
        [
            "828684418cf1e3c2e5f23a6ba0ab90f4ff",
            "828684be5886a8eb10649cbf",
            "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
        ],
    ] {
        let mut reader = BlockReader::default();
        for (request, (entries, bytes)) in requests.iter().zip([(1, 57), (2, 110), (3, 164)]) {
            assert_eq!(read(&mut reader, &hex(request)), (false, true));
            assert_eq!((reader.entries.len(), reader.bytes), (entries, bytes), "{request}");
        }
    }
}

#[test]
fn strings_in_huffman_code_are_decoded() {
    for (code, text) in [
        ("f1e3c2e5f23a6ba0ab90f4ff", "www.example.com"),
        ("a8eb10649cbf", "no-cache"),
        ("9d29ad171863c78f0b97c8e9ae82ae43d3", "https://www.example.com"),
        ("63febf", "/#"),
        ("", ""),
    ] {
        assert_eq!(huffman(&hex(code)).unwrap(), text.as_bytes(), "{code}");
    }
    for code in ["ff", "ffff", "a8eb10649cbfff", "a8eb10649cbe", "ffffffffff"] {
        assert_eq!(huffman(&hex(code)), Err(CorruptBlock), "{code}");
    }
}

#[test]
fn a_fragment_is_found_however_the_path_is_written() {
    let refused = (true, true);
    let mut reader = BlockReader::default();
    assert_eq!(read(&mut reader, &hex("04 02 2f23")), refused, "by its name's index");
    assert_eq!(read(&mut reader, &hex("14 83 63febf")), refused, "in Huffman code");
    assert_eq!(
        read(&mut reader, &hex("00 05 3a70617468 02 2f23")),
        refused,
        "with its name in letters"
    );
    assert_eq!(read(&mut reader, &hex("44 02 2f23")), refused, "and put into the table");
    assert_eq!(read(&mut reader, &hex("be")), refused, "from where it is repeated");
    assert_eq!(read(&mut reader, &hex("0f2f 01 2f")), (false, true));
    assert_eq!(read(&mut reader, &hex("06 03 667470")), refused, "another scheme");
    assert_eq!(
        read(&mut reader, &hex("0f01 02 2f23")),
        (false, false),
        "in an ordinary field it is nothing"
    );
}

#[test]
fn blocks_that_the_library_would_not_read_are_corrupt() {
    for block in ["80", "be", "3fe21f", "00 00 00", "7fffffffffffff", "04 81 ff"] {
        assert_eq!(BlockReader::default().read(&hex(block)), Err(CorruptBlock), "{block}");
    }
}

#[test]
fn entries_leave_the_table_when_it_is_full_or_made_smaller() {
    let mut reader = BlockReader::default();
    let long = [&hex("40 01 78 7f a11e")[..], &[b'v'; 4000]].concat();
    read(&mut reader, &long);
    assert_eq!((reader.entries.len(), reader.bytes), (1, 4033));
    read(&mut reader, &hex("40 01 79 01 31"));
    assert_eq!((reader.entries.len(), reader.bytes), (2, 4067));
    read(&mut reader, &hex("40 01 7a 01 31"));
    assert_eq!((reader.entries.len(), reader.bytes), (2, 68), "the oldest went");
    read(&mut reader, &hex("20"));
    assert_eq!((reader.entries.len(), reader.bytes), (0, 0));
}

proptest! {
    #[test]
    fn what_is_found_does_not_depend_on_how_a_block_is_cut(
        bytes in proptest::collection::vec(any::<u8>(), 0..60),
        cut in any::<proptest::sample::Index>(),
    ) {
        let mut whole = BlockReader::default();
        let expected = whole.read(&bytes).map(|at| (at, whole.finish()));
        let mut cut_in_two = BlockReader::default();
        let end = cut.index(bytes.len() + 1);
        let found = cut_in_two.read(&bytes[..end]);
        let found = found.and_then(|at| cut_in_two.read(&bytes[at..]).map(|more| at + more));
        prop_assert_eq!(found.map(|at| (at, cut_in_two.finish())), expected);
    }
}

#[test]
fn nothing_of_an_unfinished_field_is_decoded() {
    // This name is not valid Huffman code. Decoding it would be an error.
    let name = b"\x40\x84\xff\xff\xff\xff";
    let mut reader = BlockReader::default();
    assert_eq!(reader.read(name), Ok(0), "the value has not begun");
    assert_eq!(reader.read(&[&name[..], b"\x02a"].concat()), Ok(0), "nor ended");
    assert_eq!(reader.read(&[&name[..], b"\x01a"].concat()), Err(CorruptBlock));
}
