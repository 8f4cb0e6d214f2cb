//! Tags and conditions, against the examples and rules of RFC 9110.

use http::HeaderValue;

use super::*;
use crate::key::Pointer;

fn tag(text: &str) -> EntityTag {
    EntityTag::parse(text.as_bytes()).unwrap()
}

/// Returns the fields of a request; each pair is one line.
fn fields(lines: &[(&'static str, &str)]) -> HeaderMap {
    let line = |(name, value): &(&'static str, &str)| {
        (HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap())
    };
    lines.iter().map(line).collect()
}

fn list(lines: &[&str]) -> Result<Option<TagList>, MalformedTagList> {
    let lines: Vec<_> = lines.iter().map(|line| ("if-match", *line)).collect();
    TagList::of(&fields(&lines), &IF_MATCH)
}

#[test]
fn tags_are_compared_as_the_examples_of_the_standard_are() {
    // RFC 9110, section 8.8.3.2.
    for (one, other, strongly, weakly) in [
        ("W/\"1\"", "W/\"1\"", false, true),
        ("W/\"1\"", "W/\"2\"", false, false),
        ("W/\"1\"", "\"1\"", false, true),
        ("\"1\"", "\"1\"", true, true),
    ] {
        let (one, other) = (tag(one), tag(other));
        for (one, other) in [(&one, &other), (&other, &one)] {
            assert_eq!(one.equals_strongly(other), strongly, "{one:?} {other:?}");
            assert_eq!(one.equals_weakly(other), weakly, "{one:?} {other:?}");
        }
    }
}

#[test]
fn a_tag_has_the_form_of_the_standard() {
    for good in ["\"\"", "\"xyzzy\"", "W/\"xyzzy\"", "\"a,b\"", "\"W/\"", "\"\u{e9}\"", " \"a\" "] {
        let tag = tag(good);
        assert_eq!(tag.to_field().unwrap().as_bytes(), good.trim().as_bytes());
    }
    for bad in [
        "", "a", "\"", "\"a", "a\"", "w/\"a\"", "W/ \"a\"", "W/a", "\"a b\"", "\"a\tb\"",
        "\"a\"b\"", "\"a\" x", "\"\x7f\"", "*", "'a'",
    ] {
        assert_eq!(EntityTag::parse(bad.as_bytes()), None, "{bad}");
    }
}

#[test]
fn a_list_is_read_line_by_line_and_a_malformed_one_is_no_list() {
    let some = |tags: &[&str]| Ok(Some(TagList::Listed(tags.iter().map(|it| tag(it)).collect())));
    for (lines, expected) in [
        (&[][..], Ok(None)),
        (&["*"], Ok(Some(TagList::Any))),
        (&[" * "], Ok(Some(TagList::Any))),
        (&[""], some(&[])),
        (&["\"a\""], some(&["\"a\""])),
        (&["\"a\", W/\"b\""], some(&["\"a\"", "W/\"b\""])),
        (&["\"a\",\"b\""], some(&["\"a\"", "\"b\""])),
        (&["\"a,b\" ,\t\"c\""], some(&["\"a,b\"", "\"c\""])),
        (&["\"a\"", "\"b\""], some(&["\"a\"", "\"b\""])),
        (&[", ,\"a\",,", "", ","], some(&["\"a\""])),
        (&["*", "*"], Err(MalformedTagList)),
        (&["*, \"a\""], Err(MalformedTagList)),
        (&["\"a\"", "*"], Err(MalformedTagList)),
        (&["\"a\" \"b\""], Err(MalformedTagList)),
        (&["\"a\"\"b\""], Err(MalformedTagList)),
        (&["a"], Err(MalformedTagList)),
        (&["\"a\", b"], Err(MalformedTagList)),
        (&["\"a"], Err(MalformedTagList)),
    ] {
        assert_eq!(list(lines), expected, "{lines:?}");
    }
}

#[test]
fn a_read_is_answered_in_the_order_of_the_standard() {
    use ReadVerdict::{Failed, NotModified, Whole};
    let (own, match_own) = ("\"1\"", ("if-match", "\"1\""));
    let long_ago = "Sat, 29 Oct 1994 19:43:31 GMT";
    for (lines, verdict) in [
        (&[][..], Whole),
        // Section 13.1.2: compared weakly.
        (&[("if-none-match", own)], NotModified),
        (&[("if-none-match", "W/\"1\"")], NotModified),
        (&[("if-none-match", "\"2\", W/\"1\"")], NotModified),
        (&[("if-none-match", "\"2\""), ("if-none-match", own)], NotModified),
        (&[("if-none-match", "*")], NotModified),
        (&[("if-none-match", "\"2\"")], Whole),
        (&[("if-none-match", "")], Whole),
        (&[("if-none-match", "1")], Whole),
        (&[("if-none-match", "\"1\" \"2\"")], Whole),
        // Section 13.1.1: compared strongly.
        (&[match_own], Whole),
        (&[("if-match", "\"2\", \"1\"")], Whole),
        (&[("if-match", "*")], Whole),
        (&[("if-match", "W/\"1\"")], Failed),
        (&[("if-match", "\"2\"")], Failed),
        (&[("if-match", "")], Failed),
        (&[("if-match", "1")], Failed),
        // Section 13.2.2: If-Match comes first, and a true one does not end the evaluation.
        (&[("if-match", "\"2\""), ("if-none-match", own)], Failed),
        (&[match_own, ("if-none-match", own)], NotModified),
        (&[match_own, ("if-none-match", "\"2\"")], Whole),
        // The dates of a representation are not known to the gateway.
        (&[("if-modified-since", "Fri, 31 Dec 2100 00:00:00 GMT")], Whole),
        (&[("if-unmodified-since", long_ago)], Whole),
        (&[("if-none-match", own), ("if-modified-since", long_ago)], NotModified),
        (&[("if-none-match", "\"2\""), ("if-range", own), ("range", "bytes=0-1")], Whole),
    ] {
        let mut headers = fields(lines);
        headers.insert("accept", HeaderValue::from_static("*/*"));
        let conditions = ReadConditions::take(&mut headers);
        assert_eq!(conditions.verdict(&tag(own)), verdict, "{lines:?}");
        assert_eq!(headers.len(), 1, "the upstream gets no condition: {headers:?}");
    }
}

#[test]
fn the_tag_of_a_body_is_its_digest() {
    // The digest of "abc" in FIPS 180-2, appendix B.1.
    let made = EntityTag::of_representation(&VersionSource::Hash, b"abc").unwrap();
    assert_eq!(made, tag("\"ungWv48Bz-pBQUDeXa4iI7ADYaOWF3qctBD_YfIAFa0\""));
}

#[test]
fn the_tag_of_a_member_is_that_of_its_value() {
    let source = VersionSource::Member(Pointer::parse("/v").unwrap());
    let of = |body: &str| EntityTag::of_representation(&source, body.as_bytes());
    for (one, other, equal) in [
        ("{\"v\":1}", "{ \"a\":2, \"v\":1.0 }", true),
        ("{\"v\":{\"a\":1,\"b\":2}}", "{\"v\":{\"b\":2,\"a\":1}}", true),
        ("{\"v\":\"a\"}", "{\"v\":\"\\u0061\"}", true),
        ("{\"v\":1}", "{\"v\":2}", false),
        ("{\"v\":1}", "{\"v\":\"1\"}", false),
        ("{\"v\":9007199254740993}", "{\"v\":9007199254740992}", false),
        ("{\"v\":[1,2]}", "{\"v\":[2,1]}", false),
        ("{\"v\":\"\"}", "{\"v\":false}", false),
    ] {
        assert!(of(one).is_some() && of(other).is_some());
        assert_eq!(of(one) == of(other), equal, "{one} {other}");
    }
    for without in ["{}", "{\"v\":null}", "[1]", "", "{\"v\":1", "{\"v\":1,\"v\":1}"] {
        assert_eq!(of(without), None, "{without}");
    }
}
