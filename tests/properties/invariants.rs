//! Invariants for arbitrary bytes: one function for each parser that reads bytes from outside. The
//! property tests beside this file call them with plausible bytes, and the fuzz targets in
//! `tests/fuzz` with any bytes.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST, IF_MATCH, VIA};
use http::{HeaderMap, HeaderName, HeaderValue, Version};
use onceward::config::{Config, Overrides};
use onceward::engine::{EntityTag, TagList, VersionSource};
use onceward::key::{
    BodyHash, Document, Fingerprint, Key, KeySyntax, Member, Pointer, element, fingerprint,
    key_field_value, with_member,
};
use onceward::proxy::{Peer, Scan, Scanner, from_upstream, to_upstream};
use onceward::record::{HEAD_BYTES, decode, encode};

/// An accepted key is printable, not empty and within its limit. Quoted, it is the same key under
/// every syntax.
pub fn key(value: &[u8]) {
    const MAX: usize = 20;
    let syntaxes = [
        KeySyntax::Lenient,
        KeySyntax::Strict,
        KeySyntax::Bare,
        KeySyntax::Uuid,
        KeySyntax::UuidV4,
        KeySyntax::Word,
    ];
    for syntax in syntaxes {
        let Ok(key) = Key::parse(value, syntax, MAX) else { continue };
        assert!((1..=MAX).contains(&key.as_str().len()));
        assert!(key.as_str().bytes().all(|b| (0x20..=0x7e).contains(&b)));
        let quoted = format!("\"{}\"", key.as_str().replace('\\', "\\\\").replace('"', "\\\""));
        assert!(
            Key::parse(quoted.as_bytes(), KeySyntax::Strict, MAX).unwrap() == key,
            "quoted it is the same key"
        );
        assert!(
            Key::parse(value, KeySyntax::Lenient, MAX).unwrap() == key,
            "no syntax reads another key"
        );
        assert!(
            Key::parse(key_field_value(key.as_str(), syntax).as_bytes(), syntax, MAX)
                == Ok(key.clone()),
            "upstreams get it back"
        );
        assert_eq!(format!("{key:?}"), "Key(..)", "keys are not shown");
    }
}

/// White space between the parts of a JSON document changes nothing, and a change of any other byte
/// changes the fingerprint. A member that is inserted is found again, and nothing else moves.
pub fn body(body: &[u8]) {
    let json = |body: &[u8]| json_fingerprint(body);
    match Document::parse(body) {
        Ok(_) => assert_eq!(json(body), json(&spaced(body)), "layout is not value"),
        Err(_) => assert_ne!(
            json(body),
            json(&[body, b" "].concat()),
            "what is no clear document is compared as bytes"
        ),
    }
    let pointer = Pointer::parse("/key").unwrap();
    if let Some(changed) = with_member(body, &pointer, "a \"key\"") {
        let document = Document::parse(&changed).expect("it is a document still");
        assert!(matches!(document.member(&pointer), Member::Text("a \"key\"")));
        let ignoring = |body: &[u8]| {
            let how = BodyHash::Json { is_json: true, ignore: std::slice::from_ref(&pointer) };
            fingerprint("POST", "/", None, &Bytes::copy_from_slice(body), how)
        };
        assert_eq!(ignoring(body), ignoring(&changed), "beside it nothing changes");
    }
    let whole = Bytes::copy_from_slice(body);
    if let Ok(Some(element)) = element(&whole, &pointer) {
        assert!(
            body.windows(element.len()).any(|window| window == element),
            "a member is cut out as it stands"
        );
    }
    // Forms only need a fingerprint.
    let form = BodyHash::Form { boundary: "b" };
    assert_eq!(
        fingerprint("POST", "/", None, &whole, form),
        fingerprint("POST", "/", None, &whole, form)
    );
}

fn json_fingerprint(body: &[u8]) -> Fingerprint {
    fingerprint(
        "POST",
        "/",
        None,
        &Bytes::copy_from_slice(body),
        BodyHash::Json { is_json: true, ignore: &[] },
    )
}

/// Returns the same document with a space after every structural character.
fn spaced(document: &[u8]) -> Vec<u8> {
    let (mut out, mut in_text, mut escaped) = (Vec::new(), false, false);
    for byte in document {
        out.push(*byte);
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'{' | b'}' | b'[' | b']' | b':' | b',' if !in_text => out.push(b' '),
            _ => {}
        }
    }
    out
}

/// Bytes from the store are a record or an error. A record that is written again is the same
/// record.
pub fn record(bytes: &[u8]) {
    let Some((head, payload)) = bytes.split_first_chunk::<HEAD_BYTES>() else { return };
    let Ok(record) = decode(head, Bytes::copy_from_slice(payload)) else { return };
    let again = encode(&record);
    assert_eq!(again.head, *head, "what stores compare is what is read");
    assert_eq!(decode(&again.head, again.payload).as_ref(), Ok(&record));
}

/// Any text is a configuration or a list of faults, and the faults can be printed. An accepted
/// configuration is accepted again, with the same result.
pub fn config(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    let load = || Config::load(Some(("any.toml", text)), Overrides::default());
    match load() {
        Ok(config) => assert_eq!(config.describe(), load().unwrap().describe()),
        Err(faults) => assert!(!faults.0.is_empty() && !faults.to_string().is_empty()),
    }
}

/// Fields of one connection are not forwarded, in either direction. All other fields pass
/// unchanged, except those that the gateway itself sets. Lines are `name: value`.
pub fn headers(lines: &[u8]) {
    let mut given = HeaderMap::new();
    for line in lines.split(|byte| *byte == b'\n').take(100) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (
            HeaderName::from_bytes(&line[..colon]),
            HeaderValue::from_bytes(line[colon + 1..].trim_ascii()),
        );
        if let (Ok(name), Ok(value)) = (name, value) {
            given.append(name, value);
        }
    }
    let peer = Peer::new(IpAddr::V4(Ipv4Addr::LOCALHOST), true, false);
    let mut forwarded = given.clone();
    to_upstream(
        &mut forwarded,
        HeaderValue::from_static("upstream"),
        None,
        Some(&peer),
        Version::HTTP_2,
    );
    assert_eq!(forwarded.get_all(HOST).iter().collect::<Vec<_>>(), ["upstream"]);
    assert_eq!(forwarded.get_all("x-forwarded-for").iter().collect::<Vec<_>>(), ["127.0.0.1"]);
    assert_eq!(forwarded.get_all("x-forwarded-proto").iter().collect::<Vec<_>>(), ["https"]);
    assert_eq!(forwarded.get_all(VIA).iter().next_back().unwrap(), "2.0 onceward");
    const ABOUT_CLIENTS: [&str; 3] = ["forwarded", "x-real-ip", "x-forwarded-host"];
    assert!(
        !ABOUT_CLIENTS.iter().chain([&"content-length"]).any(|name| forwarded.contains_key(*name))
    );
    // The gateway announces trailers itself, if the client accepts them.
    let taken = |name: &str| forwarded.get_all(name).iter().cloned().collect::<Vec<_>>();
    assert!(matches!((&*taken("te"), &*taken("connection")), ([], []) | ([_], [_])));
    assert!(
        taken("te")
            .iter()
            .all(|value| value == "trailers" && onceward::http_message::takes_trailers(&given))
    );
    assert!(taken("connection").iter().all(|value| value == "te"));
    const SET: [&str; 11] = [
        "te",
        "connection",
        "host",
        "x-forwarded-for",
        "x-forwarded-proto",
        "via",
        "content-length",
        "forwarded",
        "x-real-ip",
        "x-forwarded-host",
        "expect",
    ];
    passes_only_end_to_end(&given, &forwarded, &SET);

    let mut answered = given.clone();
    from_upstream(&mut answered, false, Version::HTTP_11);
    assert!(!answered.contains_key(CONTENT_LENGTH));
    passes_only_end_to_end(&given, &answered, &["content-length", "via"]);
}

fn passes_only_end_to_end(given: &HeaderMap, passed: &HeaderMap, set: &[&str]) {
    const OF_ONE_CONNECTION: [&str; 9] = [
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "proxy-authenticate",
        "proxy-authorization",
    ];
    let named: Vec<String> = given
        .get_all("connection")
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(|name| String::from_utf8_lossy(name.trim_ascii()).to_ascii_lowercase())
        .filter(|name| name != "traceparent")
        .collect();
    let stays =
        |name: &str| !OF_ONE_CONNECTION.contains(&name) && !named.iter().any(|named| named == name);
    for name in passed.keys().map(HeaderName::as_str) {
        assert!(set.contains(&name) || stays(name), "{name} belongs to one connection");
    }
    let lines = |headers: &HeaderMap| {
        let mut lines: HashMap<String, Vec<HeaderValue>> = HashMap::new();
        for (name, value) in
            headers.iter().filter(|(name, _)| stays(name.as_str()) && !set.contains(&name.as_str()))
        {
            lines.entry(name.to_string()).or_default().push(value.clone());
        }
        lines
    };
    assert_eq!(lines(given), lines(passed), "what is end-to-end passes as it was");
}

/// The guard's verdict does not depend on how the bytes are split. The first head that it accepts
/// has one interpretation: it parses, and has at most one length. (The host is checked after the
/// parser.)
pub fn guard(bytes: &[u8]) {
    let whole = scan(bytes, usize::MAX);
    for piece in [1, 7, 64] {
        assert_eq!(scan(bytes, piece), whole, "in pieces of {piece}");
    }
    assert!(whole.safe <= bytes.len());
    // Bytes of a body may follow the head; they mean nothing to a parser of heads.
    let mut fields = [httparse::EMPTY_HEADER; 200];
    let mut request = httparse::Request::new(&mut fields);
    if whole.safe == 0 {
        return;
    }
    match request.parse(&bytes[..whole.safe]) {
        Ok(httparse::Status::Complete(_)) => {}
        // An empty line before a request may pass without a head.
        Ok(httparse::Status::Partial) => {
            return assert!(bytes[..whole.safe].iter().all(|byte| b"\r\n".contains(byte)));
        }
        Err(error) => panic!("a head that no parser takes: {error}"),
    }
    let count = |name: &str| {
        request.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name)).count()
    };
    assert!(count("content-length") + count("transfer-encoding") <= 1, "one length");
    assert!(
        request.headers.iter().all(|field| !field.name.is_empty() && !field.value.contains(&b'\r'))
    );
}

fn scan(bytes: &[u8], piece: usize) -> Scan {
    let mut scanner = Scanner::new(1024);
    let (mut start, mut end) = (0, 0);
    while end < bytes.len() {
        end = end.saturating_add(piece).min(bytes.len());
        let found = scanner.scan(&bytes[start..end]);
        start += found.safe;
        if found.refused.is_some() {
            return Scan { safe: start, ..found };
        }
    }
    Scan { safe: start, refused: None }
}

/// Two representations have the same tag if and only if their bytes are equal.
pub fn tags(one: &[u8], other: &[u8]) {
    let tag = |body| EntityTag::of_representation(&VersionSource::Hash, body).unwrap();
    let (first, second) = (tag(one), tag(other));
    assert_eq!(first == second, one == other);
    assert_eq!(first.equals_strongly(&second), one == other);
    assert_eq!(first.equals_weakly(&second), one == other);
    let field = first.to_field().unwrap();
    assert_eq!(field.len(), 45, "43 characters in quotes");
    assert_eq!(EntityTag::parse(field.as_bytes()), Some(first));
}

/// A list of tags that was read is the same list when it is written again.
pub fn tag_list(bytes: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
    let read =
        |value: HeaderValue| TagList::of(&HeaderMap::from_iter([(IF_MATCH, value)]), &IF_MATCH);
    let Ok(Some(TagList::Listed(tags))) = read(value) else { return };
    let written: Vec<HeaderValue> = tags.iter().map(|tag| tag.to_field().unwrap()).collect();
    let written = written.iter().map(HeaderValue::as_bytes).collect::<Vec<_>>().join(&b", "[..]);
    let again = read(HeaderValue::from_bytes(&written).unwrap());
    assert_eq!(again, Ok(Some(TagList::Listed(tags))));
}
