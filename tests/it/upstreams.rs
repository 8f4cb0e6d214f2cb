//! Requests to upstreams and their answers: lengths of empty bodies, early answers, large heads,
//! addresses.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;

use crate::harness::frame_origin::STATUS_200;
use crate::harness::frames::{CONTINUATION, END_HEADERS, END_STREAM, HEADERS, block, frame};
use crate::harness::{
    Answer, Authority, Connection, FrameOrigin, Gateway, Origin, ROUTES, Request, Upstream, until,
};

const HERE: &str = "127.0.0.1";

/// Protects three methods; requests without a key pass through.
const THREE: &str =
    "[[routes]]\nname = \"p\"\npath = \"/v1/payments\"\nmethods = [\"POST\", \"PUT\", \"PATCH\"]\n";

/// Starts a gateway in front of an upstream with HTTP/2 over TLS.
fn before_http2(port: u16, authority: &Authority, routes: &str) -> Gateway {
    let settings = format!("[upstream]\nca_file = \"{}\"", authority.ca_file().display());
    Gateway::to_routes(&format!("https://{HERE}:{port}"), &settings, routes)
}

#[test]
fn an_empty_body_is_announced_to_the_upstream() {
    let authority = Authority::new();
    let (plain, http2) = (Upstream::start(), Origin::start(authority.server(HERE, &["h2"])));
    let gateways =
        [Gateway::with(plain.port, "", THREE), before_http2(http2.port, &authority, THREE)];
    for (version, gateway) in gateways.iter().enumerate() {
        let seen = || if version == 0 { plain.seen() } else { http2.seen() };
        // The method, whether the client sends a length, and whether the upstream gets one.
        for (method, sized, announced) in [
            ("POST", true, true),
            ("POST", false, true),
            ("PUT", true, true),
            ("PATCH", true, true),
            ("DELETE", true, true),
            ("DELETE", false, false),
            ("GET", false, false),
            ("OPTIONS", false, false),
        ] {
            for key in [None, Some(format!("{method}-{sized}"))] {
                let name = key
                    .as_deref()
                    .map_or(String::new(), |key| format!("Idempotency-Key: {key}\r\n"));
                let length = if sized { "Content-Length: 0\r\n" } else { "" };
                let mut client = Connection::open(gateway.port);
                client.write(
                    format!("{method} /v1/payments HTTP/1.1\r\nHost: a\r\n{name}{length}\r\n")
                        .as_bytes(),
                );
                assert_eq!(client.read_for(method).status, 201, "{method}");
                let seen = seen().pop().unwrap();
                let expected = if announced { vec!["0"] } else { vec![] };
                assert_eq!(
                    seen.all("content-length"),
                    expected,
                    "version {version}: {method} {sized} {key:?}"
                );
            }
        }
    }
    // A retry on the existing connection has the same framing.
    assert_eq!(Request::pay("next", "{}").send(gateways[0].port).status, 201);
    assert_eq!(plain.seen().pop().unwrap().all("content-length"), ["2"]);
}

/// Starts an upstream that sends this answer and nothing else; `|` is the end of a line.
fn answers(text: String) -> u16 {
    let listener = TcpListener::bind((HERE, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut head = vec![];
            while !head.ends_with(b"{}") {
                let mut byte = [0];
                if stream.read_exact(&mut byte).is_err() {
                    break;
                }
                head.push(byte[0]);
            }
            let _ = stream.write_all(text.replace('|', "\r\n").as_bytes());
        }
    });
    port
}

/// Returns this number of extra fields with this total size in bytes.
fn fields(count: usize, bytes: usize) -> Vec<(String, String)> {
    (0..count)
        .map(|n| (format!("x-{n:04}"), "v".repeat((bytes / count).saturating_sub(8).max(1))))
        .collect()
}

fn http1(fields: &[(String, String)]) -> String {
    let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}|")).collect();
    format!("HTTP/1.1 201 X|Content-Length: 2|{fields}|ok")
}

/// Checks the cause that the log gives an operator for an uncertain payment.
#[track_caller]
fn is_in_doubt(gateway: &Gateway, cause: &str) {
    let first = Request::pay("k", "{}").send(gateway.port);
    assert_eq!(
        (first.status, first.problem().as_str()),
        (502, "outcome-uncertain"),
        "{cause}: {first:?}"
    );
    gateway.logged(&format!("cause=\"{cause}\""));
    let listed = gateway.ask("GET", "/v1/operations").json();
    assert_eq!(listed["operations"][0]["cause"], cause, "{listed}");
}

#[track_caller]
fn is_stored(gateway: &Gateway, fields: &[(String, String)]) {
    let (first, second) =
        (Request::pay("k", "{}").send(gateway.port), Request::pay("k", "{}").send(gateway.port));
    assert!(second.replayed(), "{second:?}");
    for (name, value) in fields {
        assert_eq!(
            (first.get(name), second.get(name)),
            (Some(value.as_str()), Some(value.as_str()))
        );
    }
}

const TOO_MANY: &str = "the upstream's answer has more than 256 header fields";
const TOO_LARGE: &str =
    "the header of the upstream's answer is too large (HTTP/1.1: 408 KiB, HTTP/2: 64 KiB)";
const MALFORMED: &str =
    "the header of the upstream's answer is not well-formed HTTP, or many times too large";

#[test]
fn many_fields_of_an_answer_pass_and_what_is_too_much_is_named() {
    // Content-Length counts as one of them.
    let gateway = |text: String| Gateway::start(answers(text));
    for fields in [fields(255, 0), fields(100, 60_000)] {
        is_stored(&gateway(http1(&fields)), &fields);
    }
    is_in_doubt(&gateway(http1(&fields(256, 0))), TOO_MANY);
    is_in_doubt(&gateway(http1(&fields(200, 600_000))), TOO_LARGE);
    is_in_doubt(&gateway("HTTP/1.1 201 X|Content-Length: 2|x y: z||ok".to_owned()), MALFORMED);
    is_in_doubt(&gateway("\0\x01 this is no HTTP||".to_owned()), MALFORMED);
    // White space before a colon is removed (RFC 9112, section 5.1).
    let spaced = gateway("HTTP/1.1 201 X|Content-Length : 2|X-A \t: b||ok".to_owned());
    is_stored(&spaced, &[("x-a".to_owned(), "b".to_owned())]);
}

#[test]
fn many_fields_of_an_http_2_answer_pass_and_what_is_too_much_is_named() {
    let authority = Authority::new();
    let answered = |fields: &[(String, String)]| {
        let origin = FrameOrigin::start(authority.server(HERE, &["h2"]), &[]);
        let all: Vec<(&str, &str)> =
            fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let block = [STATUS_200, &block(&all)].concat();
        origin.answer_by(move |stream| {
            let mut frames = vec![];
            // A frame takes 16 KiB.
            for (n, piece) in block.chunks(16 << 10).enumerate() {
                let last = if (n + 1) << 14 >= block.len() { END_HEADERS } else { 0 };
                let (kind, flags) = if n == 0 { (HEADERS, END_STREAM) } else { (CONTINUATION, 0) };
                frames.extend(frame(kind, flags | last, stream, piece));
            }
            frames
        });
        let gateway = before_http2(origin.port, &authority, THREE);
        (origin, gateway)
    };
    for fields in [fields(256, 0), fields(256, 60_000), fields(4, 60_000)] {
        is_stored(&answered(&fields).1, &fields);
    }
    is_in_doubt(&answered(&fields(257, 0)).1, TOO_MANY);
    is_in_doubt(&answered(&fields(20, 90_000)).1, TOO_LARGE);
    is_in_doubt(&answered(&[("Upper".to_owned(), "case".to_owned())]).1, MALFORMED);
}

#[test]
fn an_answer_that_names_the_upstream_names_the_clients_address_where_that_is_wanted() {
    let upstream = Upstream::start();
    let own = format!("http://{HERE}:{}", upstream.port);
    let act = |status: u16| {
        format!(
            "status {status}, field Location={own}/v1/payments/7?a=b, field Content-Location={own}/c, field Link=<{own}>"
        )
    };
    let rewriting = "trusted_proxies = [\"127.0.0.2\"]\n[upstream]\nrewrite_location = true\n";
    let (plain, rewriting) =
        (Gateway::start(upstream.port), Gateway::with(upstream.port, rewriting, ROUTES));
    let named = |answer: &Answer| {
        ["location", "content-location", "link"].map(|name| answer.get(name).unwrap().to_owned())
    };
    let at = |address: &str| {
        [format!("{address}/v1/payments/7?a=b"), format!("{address}/c"), format!("<{own}>")]
    };

    assert_eq!(
        named(&Request::pay("k", "{}").act(&act(201)).send(plain.port)),
        at(&own),
        "off by default"
    );
    // A replay has the address of the first answer, whatever address the duplicate used.
    let pay = Request::pay("k", "{}").act(&act(201));
    assert_eq!(named(&pay.send(rewriting.port)), at("http://pay.example"));
    let second = pay.clone().host("other.example:8443").send(rewriting.port);
    assert!(second.replayed() && named(&second) == at("http://pay.example"), "{second:?}");
    // This also applies to a released answer and to one that passes through.
    let released = Request::pay("released", "{}").host("other.example:8443").act(&act(307));
    for _ in 0..2 {
        assert_eq!(named(&released.send(rewriting.port)), at("http://other.example:8443"));
    }
    let passed = Request::new("GET", "/others").act(&act(301));
    assert_eq!(named(&passed.send(rewriting.port)), at("http://pay.example"));
    // A trusted proxy sends the address that its client used.
    let behind =
        passed.field("X-Forwarded-Proto", "https").field("X-Forwarded-Host", "shop.example");
    assert_eq!(named(&behind.send(rewriting.port)), at("http://pay.example"));
    let mut proxy = Connection::from("127.0.0.2", rewriting.port);
    assert_eq!(named(&proxy.exchange(&behind)), at("https://shop.example"));
}

#[test]
fn connections_that_are_too_old_are_replaced_however_busy_they_are() {
    let upstream = Upstream::start();
    let settings = "[upstream]\nidle_timeout = \"60s\"\nmax_connection_age = \"1s\"\n";
    let gateway = Gateway::with(upstream.port, settings, ROUTES);
    let mut client = Connection::open(gateway.port);
    let mut sent = 0;
    until("three connections", || {
        sent += 1;
        assert_eq!(client.exchange(&Request::pay(&format!("k{sent}"), "{}")).status, 201);
        upstream.connections() == 3
    });
    assert!(sent > 5 && upstream.executed() == sent, "{sent} requests");
    // Active requests on an old connection are answered on it.
    let slow = Request::pay("slow", "{}").act("wait 1500").send(gateway.port);
    assert!(slow.status == 201 && !slow.replayed(), "{slow:?}");
}

#[test]
fn an_upstream_that_asks_for_a_certificate_gets_the_configured_one_and_a_reload_reads_it_anew() {
    let (authority, other, dir) =
        (Authority::new(), Authority::new(), tempfile::tempdir().unwrap());
    let named = Upstream::with_tls(authority.server_for_clients(HERE, &["http/1.1"]));
    let default = Origin::start(authority.server_for_clients(HERE, &["h2"]));
    let at = |name: &str| dir.path().join(name).display().to_string();
    let files = format!(
        "ca_file = \"{}\"\ncert = \"{}\"\nkey = \"{}\"\n",
        authority.ca_file().display(),
        at("cert.pem"),
        at("key.pem")
    );
    let settings = format!(
        "[upstream]\n{files}[upstreams.named]\nurl = \"https://{HERE}:{}\"\n{files}",
        named.port
    );
    let routes =
        format!("{ROUTES}[[routes]]\nname = \"n\"\npath = \"/named\"\nupstream = \"named\"\n");
    // A certificate of another authority is refused.
    other.write("gateway.example", dir.path());
    let gateway =
        Gateway::to_routes(&format!("https://{HERE}:{}", default.port), &settings, &routes);
    let pay = |key: &str| Request::pay(key, "{}").send(gateway.port).status;
    let named_pay = |key: &str| {
        Request::new("POST", "/named")
            .field("Idempotency-Key", key)
            .json("{}")
            .send(gateway.port)
            .status
    };
    assert!(pay("stranger") == 502 && named_pay("stranger") == 502);
    assert_eq!((default.executed(), named.executed()), (0, 0));

    authority.write("gateway.example", dir.path());
    let reloads = |result: &str| {
        gateway.metric(&format!("onceward_config_reloads_total{{result=\"{result}\"}}"))
    };
    gateway.signal("HUP");
    until("the new certificate", || reloads("applied") == 1.0);
    assert!(pay("known") == 201 && named_pay("known") == 201);

    // A half-finished renewal changes nothing: neither a reload nor new connections use it.
    std::fs::write(dir.path().join("key.pem"), "no key").unwrap();
    gateway.signal("HUP");
    until("the reload to be refused", || reloads("refused") == 1.0);
    gateway.logged("the file has no private key in PEM");
    assert!(pay("still-known") == 201 && named_pay("still-known") == 201);
}

#[test]
fn a_check_names_certificates_that_are_missing_or_do_not_fit() {
    let (authority, dir) = (Authority::new(), tempfile::tempdir().unwrap());
    authority.write("one.example", dir.path());
    std::fs::rename(dir.path().join("cert.pem"), dir.path().join("other.pem")).unwrap();
    authority.write("two.example", dir.path());
    let at = |name: &str| dir.path().join(name).display().to_string();
    let check = |settings: &str| {
        let config = dir.path().join("onceward.toml");
        std::fs::write(&config, settings).unwrap();
        let done = Command::new(env!("CARGO_BIN_EXE_onceward"))
            .args(["check", "--config"])
            .arg(config)
            .output()
            .unwrap();
        (done.status.code(), String::from_utf8(done.stderr).unwrap())
    };
    let showing = |cert: &str, key: &str| {
        check(&format!(
            "[upstream]\nurl = \"https://a\"\ncert = \"{}\"\nkey = \"{}\"\n",
            at(cert),
            at(key)
        ))
    };
    assert_eq!(showing("cert.pem", "key.pem"), (Some(0), String::new()));
    for (cert, key, expected) in [
        ("none.pem", "key.pem", "upstream.cert: can't read"),
        ("cert.pem", "none.pem", "upstream.key: can't read"),
        ("key.pem", "key.pem", "the file has no certificate in PEM"),
        ("cert.pem", "cert.pem", "the file has no private key in PEM"),
        ("other.pem", "key.pem", "upstream.cert: the certificate in"),
    ] {
        let (code, text) = showing(cert, key);
        assert!(code == Some(2) && text.contains(expected), "{cert} {key}: {text}");
    }
    let store = format!(
        "[store]\nurl = \"rediss://a\"\ncert = \"{}\"\nkey = \"{}\"\n",
        at("none.pem"),
        at("key.pem")
    );
    let (code, text) = check(&format!("[upstream]\nurl = \"http://a\"\n{store}"));
    assert!(code == Some(2) && text.contains("store.cert: can't read"), "{text}");
}
