//! What upstreams get and give: lengths of empty bodies, answers before the end of an upload, large heads, addresses.

use crate::harness::{Authority, Connection, Gateway, Origin, Request, Upstream};

const HERE: &str = "127.0.0.1";

/// Protects three methods; requests without a key pass through.
const THREE: &str = "[[routes]]\nname = \"p\"\npath = \"/v1/payments\"\nmethods = [\"POST\", \"PUT\", \"PATCH\"]\n";

/// A gateway in front of an upstream that speaks HTTP/2 behind TLS.
fn before_http2(port: u16, authority: &Authority, routes: &str) -> Gateway {
    let settings = format!("[upstream]\nca_file = \"{}\"", authority.ca_file().display());
    Gateway::to_routes(&format!("https://{HERE}:{port}"), &settings, routes)
}

#[test]
fn an_empty_body_is_announced_to_the_upstream() {
    let authority = Authority::new();
    let (plain, http2) = (Upstream::start(), Origin::start(authority.server(HERE, &["h2"])));
    let gateways = [Gateway::with(plain.port, "", THREE), before_http2(http2.port, &authority, THREE)];
    for (version, gateway) in gateways.iter().enumerate() {
        let seen = || if version == 0 { plain.seen() } else { http2.seen() };
        // What the client says of its body, and whether the upstream hears of a length.
        for (method, says, announced) in [
            ("POST", true, true),
            ("POST", false, true),
            ("PUT", true, true),
            ("PATCH", true, true),
            ("DELETE", true, true),
            ("DELETE", false, false),
            ("GET", false, false),
            ("OPTIONS", false, false),
        ] {
            for key in [None, Some(format!("{method}-{says}"))] {
                let name = key.as_deref().map_or(String::new(), |key| format!("Idempotency-Key: {key}\r\n"));
                let length = if says { "Content-Length: 0\r\n" } else { "" };
                let mut client = Connection::open(gateway.port);
                client.write(format!("{method} /v1/payments HTTP/1.1\r\nHost: a\r\n{name}{length}\r\n").as_bytes());
                assert_eq!(client.read_for(method).status, 201, "{method}");
                let seen = seen().pop().unwrap();
                let expected = if announced { vec!["0"] } else { vec![] };
                assert_eq!(seen.all("content-length"), expected, "version {version}: {method} {says} {key:?}");
            }
        }
    }
    // A retry on the connection that stands is framed as before.
    assert_eq!(Request::pay("next", "{}").send(gateways[0].port).status, 201);
    assert_eq!(plain.seen().pop().unwrap().all("content-length"), ["2"]);
}
