//! Reads of versioned resources: their tags, 304, and the answers that get no tag.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use crate::harness::{Answer, Gateway, Request, Upstream};

const PATH: &str = "/v1/subscriptions/s1";
const OK: &str = "status 200, field Cache-Control=private";

fn gateway(upstream: &Upstream, resource: &str) -> Gateway {
    let route = format!(
        "[[routes]]\nname = \"subscriptions\"\npath = \"/v1/subscriptions/{{id}}\"\n\
         methods = [\"GET\", \"HEAD\"]\nresource = {{ {resource} }}"
    );
    Gateway::with(upstream.port, "", &route)
}

fn get(gateway: &Gateway, script: &str) -> Answer {
    Request::new("GET", PATH).act(script).send(gateway.port)
}

fn tag_of(bytes: &[u8]) -> String {
    format!("\"{}\"", URL_SAFE_NO_PAD.encode(Sha256::digest(bytes)))
}

/// A script that answers with these bytes, whatever they contain.
fn script_of(bytes: &[u8]) -> String {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{OK}, hex {digits}")
}

fn untagged(gateway: &Gateway, reason: &str) -> f64 {
    gateway.metric(&format!(
        "onceward_resource_untagged_total{{route=\"subscriptions\",reason=\"{reason}\"}}"
    ))
}

#[test]
fn a_read_has_a_tag_and_a_client_that_has_the_version_gets_304() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream, "versions = \"hash\"");
    let script = "status 200, field Cache-Control=private, field Cache-Control=max-age=5, \
                  field Vary=Accept, field Expires=Thu 01 Dec 1994 16:00:00 GMT, \
                  field Content-Location=/v1/subscriptions/s1, field X-Other=1, \
                  field Last-Modified=Thu 01 Dec 1994 16:00:00 GMT, \
                  field Date=Thu 01 Dec 1994 16:00:00 GMT, body {\"plan\":1}";
    let read = get(&gateway, script);
    let tag = tag_of(b"{\"plan\":1}");
    assert_eq!((read.status, read.get("etag")), (200, Some(tag.as_str())));
    assert_eq!((tag.len(), read.text().as_str()), (45, "{\"plan\":1}"), "43 characters and quotes");
    assert_eq!(read.get("x-other"), Some("1"));

    let known = Request::new("GET", PATH)
        .field("If-None-Match", "\"other\"")
        .field("If-None-Match", &format!("W/{tag}"))
        .act(script)
        .send(gateway.port);
    assert_eq!(known.status, 304);
    let mut fields = known.fields.clone();
    fields.sort();
    let expected = [
        ("cache-control", "max-age=5"),
        ("cache-control", "private"),
        ("content-location", "/v1/subscriptions/s1"),
        ("date", "Thu 01 Dec 1994 16:00:00 GMT"),
        ("etag", &tag),
        ("expires", "Thu 01 Dec 1994 16:00:00 GMT"),
        ("vary", "Accept"),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(fields, expected, "exactly the fields of RFC 9110, section 15.4.5");

    let moved = Request::new("GET", PATH)
        .field("If-None-Match", &tag)
        .act("status 200, body {\"plan\":2}")
        .send(gateway.port);
    assert_eq!((moved.status, moved.text().as_str()), (200, "{\"plan\":2}"));
    assert_ne!(moved.get("etag"), Some(tag.as_str()));
    let outcome = |outcome: &str| {
        gateway.metric(&format!(
            "onceward_requests_total{{route=\"subscriptions\",outcome=\"{outcome}\"}}"
        ))
    };
    assert_eq!((outcome("passed"), outcome("not_modified")), (2.0, 1.0));
    assert_eq!(gateway.metric("onceward_store_seconds_count{call=\"claim\"}"), 0.0, "no record");
}

#[test]
fn a_connection_goes_on_after_304_and_after_head() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream, "versions = \"hash\"");
    let mut connection = crate::harness::Connection::open(gateway.port);
    let read = |method: &str| Request::new(method, PATH).act("status 200, body {}");
    for request in [
        read("HEAD"),
        read("GET").field("If-None-Match", &tag_of(b"{}")),
        read("HEAD").field("If-None-Match", &tag_of(b"{}")),
    ] {
        connection.exchange(&request);
        assert_eq!(connection.exchange(&read("GET")).text(), "{}");
    }
}

#[test]
fn head_is_answered_as_get_without_its_body() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream, "versions = \"hash\"");
    for script in [
        "status 200, field Date=Thu 01 Dec 1994 16:00:00 GMT, body {\"plan\":1}",
        "status 404, field Date=Thu 01 Dec 1994 16:00:00 GMT, body {\"error\":1}",
        "status 204, field Date=Thu 01 Dec 1994 16:00:00 GMT",
    ] {
        let head = Request::new("HEAD", PATH).act(script).send(gateway.port);
        let mut get = get(&gateway, script);
        get.body.clear();
        get.fields.sort();
        let mut fields = head.fields.clone();
        fields.sort();
        assert_eq!((head.status, fields), (get.status, get.fields), "{script}");
    }
    let head = Request::new("HEAD", PATH).act("status 200, body {}").send(gateway.port);
    assert_eq!((head.get("content-length"), head.get("etag")), (Some("2"), Some(&*tag_of(b"{}"))));
    let known = Request::new("HEAD", PATH)
        .field("If-None-Match", "*")
        .act("status 200, body {}")
        .send(gateway.port);
    assert_eq!((known.status, known.get("content-length")), (304, None));
    assert!(upstream.seen().iter().all(|seen| seen.line.starts_with("GET ")));
}

#[test]
fn the_upstream_gets_a_plain_read_of_the_whole_representation() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream, "accept = \"application/vnd.plan+json\"");
    let read = Request::new("GET", PATH)
        .field("Accept", "text/html")
        .field("Accept-Encoding", "gzip")
        .field("Range", "bytes=0-3")
        .field("If-Range", "\"a\"")
        .field("If-Match", "*")
        .field("If_None_Match", "\"a\"")
        .field("If-None-Match", "\"a\"")
        .field("If-Modified-Since", "Thu, 01 Dec 1994 16:00:00 GMT")
        .field("If-Unmodified-Since", "Thu, 01 Dec 2044 16:00:00 GMT")
        .field("Idempotency-Key", "k")
        .field("Authorization", "Bearer ada")
        .act("status 200, body {\"plan\":1}")
        .send(gateway.port);
    assert_eq!((read.status, read.text().as_str()), (200, "{\"plan\":1}"), "Range is ignored");
    let seen = upstream.seen().pop().unwrap();
    let hidden = seen.fields.iter().map(|(name, _)| name.replace('_', "-"));
    let hidden: Vec<_> =
        hidden.filter(|name| name.starts_with("if-") || name.ends_with("range")).collect();
    assert_eq!(hidden, Vec::<String>::new());
    assert_eq!(seen.all("accept"), ["application/vnd.plan+json"]);
    assert_eq!(seen.all("accept-encoding"), ["identity"]);
    assert_eq!(seen.get("authorization"), Some("Bearer ada"), "the reader's own credentials");
}

#[test]
fn the_gateways_tag_replaces_the_upstreams_own() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream, "versions = \"hash\"");
    let script = "status 200, field ETag=W/\"7\", field ETag=\"8\", body {}";
    let read = get(&gateway, script);
    let tags: Vec<_> = read.fields.iter().filter(|(name, _)| name == "etag").collect();
    assert_eq!(tags, [&("etag".to_owned(), tag_of(b"{}"))]);
    let known = Request::new("GET", PATH).field("If-None-Match", "W/\"7\"").act(script);
    assert_eq!(known.send(gateway.port).status, 200, "the upstream's tag is no tag of the gateway");
}

#[test]
fn a_tag_of_a_member_changes_with_the_member_alone() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream, "versions = { body = \"/meta/version\" }");
    let tag =
        |body: &str| get(&gateway, &script_of(body.as_bytes())).get("etag").map(str::to_owned);
    let first = tag("{\"meta\":{\"version\":1},\"seen\":1}").unwrap();
    assert_eq!(first.len(), 45);
    assert_eq!(tag("{\"seen\":2,\"meta\":{\"version\":1.0}}"), Some(first.clone()));
    assert_ne!(tag("{\"meta\":{\"version\":2},\"seen\":1}"), Some(first.clone()));
    assert_ne!(tag("{\"meta\":{\"version\":\"1\"},\"seen\":1}"), Some(first));
    for body in ["{\"meta\":{}}", "{\"meta\":{\"version\":null}}", "[1,2]", "no JSON", ""] {
        let before = untagged(&gateway, "no_member");
        let read = get(&gateway, &script_of(body.as_bytes()));
        assert_eq!((read.get("etag"), read.text().as_str()), (None, body));
        assert_eq!(untagged(&gateway, "no_member"), before + 1.0, "{body}");
    }
}

#[test]
fn an_upstream_that_always_compresses_is_relayed_as_it_answers() {
    use std::io::Write;
    let zipped = |level| {
        let mut encoder =
            flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(level));
        encoder
            .write_all(b"{\"version\":1,\"text\":\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"}")
            .unwrap();
        encoder.finish().unwrap()
    };
    let (stored, small) = (zipped(0), zipped(9));
    let upstream = Upstream::start();
    let script = |bytes: &[u8]| format!("{}, field Content-Encoding=gzip", script_of(bytes));
    let hashing = gateway(&upstream, "versions = \"hash\"");
    let read = get(&hashing, &script(&small));
    assert_eq!((read.get("etag"), &read.body), (Some(&*tag_of(&small)), &small));
    assert_eq!(read.get("content-encoding"), Some("gzip"));
    let of_member = gateway(&upstream, "versions = { body = \"/version\" }");
    let (first, second) = (get(&of_member, &script(&stored)), get(&of_member, &script(&small)));
    assert!(first.get("etag").is_some() && first.body == stored && second.body == small);
    assert_eq!(first.get("etag"), second.get("etag"), "the member is read from the content");
}

#[test]
fn a_representation_that_is_too_large_or_has_no_end_is_relayed_whole_without_a_tag() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream, "bytes = \"1KiB\"");
    let fits = get(&gateway, "status 200, large 1024");
    assert_eq!((fits.get("etag").map(str::len), fits.body.len()), (Some(45), 1024));

    let large = get(&gateway, "status 200, field ETag=\"7\", large 1025");
    assert_eq!((large.get("etag"), &large.body), (None, &vec![b'x'; 1025]));
    assert_eq!(untagged(&gateway, "too_large"), 1.0);
    let head = Request::new("HEAD", PATH).act("status 200, large 1025").send(gateway.port);
    assert_eq!((head.get("etag"), head.get("content-length")), (None, Some("1025")));
    assert_eq!(untagged(&gateway, "too_large"), 2.0);

    let whole = "9".repeat(1300);
    let (first, rest) = whole.split_at(1000);
    let chunked = format!("chunked 3e8|{first}|12c|{rest}|0||");
    let streamed = Request::new("GET", PATH)
        .field("If-None-Match", "*")
        .act(&format!("status 200, {chunked}"))
        .send(gateway.port);
    assert_eq!((streamed.status, streamed.get("etag"), streamed.text()), (200, None, whole));
    assert_eq!(untagged(&gateway, "streamed"), 1.0);
    let events = get(&gateway, "events");
    assert!(events.get("etag").is_none() && events.text().starts_with("data: "));
    assert_eq!(untagged(&gateway, "streamed"), 2.0);

    let short = get(&gateway, "status 200, chunked 2|{}|0||");
    assert_eq!((short.get("etag"), short.text().as_str()), (Some(&*tag_of(b"{}")), "{}"));
}

#[test]
fn other_statuses_are_relayed_unchanged() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream, "versions = \"hash\"");
    for status in [201, 203, 206, 404, 410, 500] {
        let read = Request::new("GET", PATH)
            .field("If-None-Match", "*")
            .act(&format!("status {status}, field ETag=W/\"7\", body {{\"error\":1}}"))
            .send(gateway.port);
        assert_eq!((read.status, read.get("etag")), (status, Some("W/\"7\"")));
        assert_eq!(read.text(), "{\"error\":1}");
    }
}

#[test]
fn a_read_that_breaks_off_is_answered_with_502() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream, "versions = \"hash\"");
    let read = get(&gateway, "status 200, body {\"plan\":1}, cut");
    assert_eq!((read.status, read.problem().as_str()), (502, "upstream-failed"));
    assert_eq!(read.get("etag"), None);
}

#[test]
fn an_upstream_with_tags_of_its_own_compares_them_itself() {
    let upstream = Upstream::start();
    let gateway = gateway(&upstream, "versions = \"upstream\"");
    let read = Request::new("GET", PATH)
        .field("If-None-Match", "\"6\"")
        .field("Accept-Encoding", "gzip")
        .act("status 200, field ETag=\"7\", body {}")
        .send(gateway.port);
    assert_eq!((read.status, read.get("etag"), read.text().as_str()), (200, Some("\"7\""), "{}"));
    let known = Request::new("HEAD", PATH).field("If-None-Match", "\"7\"").act("status 304");
    assert_eq!(known.send(gateway.port).status, 304);
    let seen = upstream.seen();
    assert_eq!(
        (seen[0].get("if-none-match"), seen[0].get("accept-encoding")),
        (Some("\"6\""), Some("gzip"))
    );
    assert!(seen[1].line.starts_with("HEAD ") && seen[1].get("if-none-match") == Some("\"7\""));
}

#[test]
fn a_page_of_a_listed_origin_can_read_the_tag() {
    let upstream = Upstream::start();
    let gateway =
        gateway(&upstream, "versions = \"hash\" }\ncors = { origins = [\"https://shop.example\"]");
    let read = |fields: &[(&str, &str)], script: &str| {
        let mut request = Request::new("GET", PATH).field("Origin", "https://shop.example");
        for (name, value) in fields {
            request = request.field(name, value);
        }
        request.act(script).send(gateway.port)
    };
    let exposed = |answer: &Answer| {
        let lines =
            answer.fields.iter().filter(|(name, _)| name == "access-control-expose-headers");
        lines.flat_map(|(_, value)| value.split(", ")).filter(|name| *name == "ETag").count()
    };
    let allowing = "status 200, field Access-Control-Allow-Origin=https://shop.example, body {}";
    let first = read(&[], allowing);
    assert_eq!((first.status, exposed(&first)), (200, 1));
    assert_eq!(exposed(&read(&[], "status 200, body {}")), 0, "the upstream allows no page");
    for (condition, tag, status) in [("If-None-Match", "*", 304), ("If-Match", "\"other\"", 412)] {
        let own = read(&[(condition, tag)], "status 200, body {}");
        assert_eq!((own.status, exposed(&own)), (status, 1));
        assert_eq!(own.get("access-control-allow-origin"), Some("https://shop.example"));
    }
}

#[test]
fn reads_of_a_resource_are_not_published_as_protected() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(
        upstream.port,
        "",
        "[[routes]]\nname = \"plans\"\npath = \"/v1/plans\"\nmethods = [\"GET\", \"POST\"]\n\
         resource = {}\n[[routes]]\nname = \"items\"\npath = \"/v1/items\"\nmethods = [\"GET\"]\n\
         resource = {}",
    );
    let published = Request::new("GET", "/.well-known/idempotency").send(gateway.port).json();
    let routes = published["routes"].as_array().unwrap();
    assert_eq!(routes.len(), 1, "{published}");
    assert_eq!(routes[0]["methods"], serde_json::json!(["POST"]));
}
