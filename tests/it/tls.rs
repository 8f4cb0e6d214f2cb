//! TLS on both sides: upstreams behind TLS (HTTP/1.1, or HTTP/2 where negotiated), and clients that
//! connect by TLS.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use rustls::{ClientConfig, ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;

use crate::harness::{
    Authority, Gateway, Manner, Origin, PATIENCE, Request, Streams, Upstream, until,
};

const HERE: &str = "127.0.0.1";

/// Starts a gateway that trusts an authority.
fn gateway(authority: &Authority, port: u16, settings: &str) -> Gateway {
    let settings =
        format!("[upstream]\nca_file = \"{}\"\n{settings}", authority.ca_file().display());
    Gateway::to(&format!("https://{HERE}:{port}"), &settings)
}

/// Starts an HTTP/2 upstream and a gateway in front of it.
fn origin() -> (Authority, Origin, Gateway) {
    let authority = Authority::new();
    let origin = Origin::start(authority.server(HERE, &["h2"]));
    let gateway = gateway(&authority, origin.port, "");
    (authority, origin, gateway)
}

fn is_charged_once(gateway: &Gateway, pay: &Request) {
    let first = pay.send(gateway.port);
    assert!(first.status == 201 && !first.replayed(), "{first:?}");
    let second = pay.send(gateway.port);
    assert!(second.replayed() && second.body == first.body, "{second:?}");
}

#[test]
fn a_charge_through_tls_runs_once() {
    let authority = Authority::new();
    let upstream = Upstream::with_tls(authority.server(HERE, &["http/1.1"]));
    let gateway = gateway(&authority, upstream.port, "");
    for key in ["a", "b", "c"] {
        is_charged_once(&gateway, &Request::pay(key, "{}"));
    }
    assert_eq!((upstream.executed(), upstream.connections()), (3, 1), "one handshake for all");
    let seen = upstream.seen().pop().unwrap();
    let hosts: Vec<_> = seen.fields.iter().filter(|(name, _)| name == "host").collect();
    assert_eq!(hosts, [&("host".to_owned(), format!("{HERE}:{}", upstream.port))]);
}

#[test]
fn via_names_the_version_that_an_http2_upstream_answered_by() {
    let (_authority, origin, gateway) = origin();
    let first = Request::pay("k", "{}").send(gateway.port);
    let replay = Request::pay("k", "{}").send(gateway.port);
    assert!(replay.replayed());
    assert_eq!((first.get("via"), replay.get("via")), (Some("2.0 onceward"), Some("2.0 onceward")));
    assert_eq!(origin.seen()[0].get("via"), Some("1.1 onceward"));
}

#[test]
fn an_upstream_without_alpn_speaks_http_1() {
    let authority = Authority::new();
    let upstream = Upstream::with_tls(authority.server(HERE, &[]));
    is_charged_once(&gateway(&authority, upstream.port, ""), &Request::pay("k", "{}"));
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn a_certificate_of_somebody_else_gets_no_request_and_releases_the_key() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    for identity in
        [stranger.server(HERE, &["http/1.1"]), authority.server("elsewhere.example", &["http/1.1"])]
    {
        let upstream = Upstream::with_tls(identity);
        let gateway = gateway(&authority, upstream.port, "");
        let pay = Request::pay("k", "{}");
        let refused = pay.send(gateway.port);
        assert_eq!((refused.status, refused.problem().as_str()), (502, "upstream-unreachable"));
        assert_eq!((refused.get("x-should-retry"), upstream.executed()), (Some("true"), 0));
        assert!(upstream.connections() > 0, "it was asked who it is");
        upstream.identify_as(authority.server(HERE, &["http/1.1"]));
        is_charged_once(&gateway, &pay);
        assert_eq!(upstream.executed(), 1);
    }
}

#[test]
fn an_answer_that_is_lost_behind_tls_is_never_charged_again() {
    let authority = Authority::new();
    let upstream = Upstream::with_tls(authority.server(HERE, &["http/1.1"]));
    let gateway = gateway(&authority, upstream.port, "");
    for (key, script) in [("drop", "drop"), ("cut", "cut"), ("rubbish", "rubbish")] {
        let pay = Request::pay(key, "{}").act(script);
        let lost = pay.send(gateway.port);
        assert_eq!((lost.status, lost.problem().as_str()), (502, "outcome-uncertain"), "{key}");
        assert_eq!(pay.send(gateway.port).status, 409, "{key}");
    }
    assert_eq!(upstream.by_key().values().max(), Some(&1));
}

#[test]
fn http_2_is_spoken_where_it_is_negotiated_and_many_requests_share_a_connection() {
    let (_authority, origin, gateway) = origin();
    is_charged_once(&gateway, &Request::pay("first", "{}"));
    let held: Vec<_> = (0..30).map(|n| Request::pay(&format!("k{n}"), "{}").act("hold")).collect();
    let answers: Vec<_> = held.iter().map(|pay| pay.send_aside(gateway.port)).collect();
    origin.reached(31);
    assert_eq!(origin.connections(), 1, "all are under way at once");
    origin.release();
    for (pay, first) in held.iter().zip(answers) {
        let (first, second) = (first.join().unwrap(), pay.send(gateway.port));
        assert!(first.status == 201 && second.replayed() && second.body == first.body);
    }
    assert_eq!((origin.executed(), origin.connections()), (31, 1));
}

#[test]
fn an_http_2_upstream_gets_one_host() {
    let authority = Authority::new();
    let origin = Origin::start(authority.server(HERE, &["h2"]));
    for (host, seen_as) in
        [("upstream", format!("{HERE}:{}", origin.port)), ("preserve", "pay.example".to_owned())]
    {
        let gateway = gateway(&authority, origin.port, &format!("host = \"{host}\""));
        is_charged_once(&gateway, &Request::pay("k", "{}"));
        let seen = origin.seen().pop().unwrap();
        let hosts: Vec<_> =
            seen.fields.iter().filter(|(name, _)| name == "host" || name == ":authority").collect();
        assert_eq!(hosts, [&(":authority".to_owned(), seen_as)], "{host}");
        assert_eq!(seen.get("x-forwarded-host"), Some("pay.example"));
    }
}

#[test]
fn a_refused_stream_leaves_the_key_free() {
    let (_authority, origin, gateway) = origin();
    let pay = Request::pay("k", "{}");
    let refused = pay.clone().act("refuse").send(gateway.port);
    assert_eq!((refused.status, refused.problem().as_str()), (502, "upstream-unreachable"));
    assert_eq!((origin.faults(), origin.executed()), (1, 0));
    is_charged_once(&gateway, &pay);
    assert_eq!(
        (origin.executed(), origin.connections()),
        (1, 1),
        "the connection is as good as before"
    );
}

#[test]
fn a_goaway_below_the_request_leaves_the_key_free() {
    let (_authority, origin, gateway) = origin();
    let pay = Request::pay("k", "{}");
    origin.behave(Manner::GoAwayBefore);
    let refused = pay.send(gateway.port);
    assert_eq!((refused.status, refused.problem().as_str()), (502, "upstream-unreachable"));
    assert_eq!((origin.faults(), origin.executed()), (1, 0));
    origin.behave(Manner::Serve);
    is_charged_once(&gateway, &pay);
    assert_eq!(origin.executed(), 1);
}

#[test]
fn a_connection_that_ends_after_the_request_leaves_the_outcome_uncertain() {
    let (_authority, origin, gateway) = origin();
    let is_held = |pay: &Request| {
        let lost = pay.send(gateway.port);
        assert_eq!((lost.status, lost.problem().as_str()), (502, "outcome-uncertain"));
        let held = pay.send(gateway.port);
        assert_eq!((held.status, held.problem().as_str()), (409, "outcome-uncertain"));
    };
    is_held(&Request::pay("cut", "{}").act("cut"));
    assert_eq!((origin.faults(), origin.executed()), (1, 1));
    origin.behave(Manner::GoAwayAfter);
    is_held(&Request::pay("gone", "{}"));
    assert_eq!((origin.faults(), origin.executed()), (2, 1));
    origin.behave(Manner::Serve);
    is_charged_once(&gateway, &Request::pay("next", "{}"));
}

#[test]
fn a_goaway_between_requests_costs_nothing_and_lets_those_under_way_finish() {
    let (_authority, origin, gateway) = origin();
    let held = Request::pay("held", "{}").act("hold");
    let first = held.send_aside(gateway.port);
    origin.reached(1);
    origin.retire_connections();
    until("the next request to go elsewhere", || {
        let n = origin.executed();
        is_charged_once(&gateway, &Request::pay(&format!("k{n}"), "{}"));
        origin.connections() == 2
    });
    origin.release();
    assert_eq!(first.join().unwrap().status, 201);
    assert_eq!(gateway.metric("onceward_uncertain_outcomes_total"), 0.0);
}

#[test]
fn requests_beyond_what_a_connection_carries_get_another_one_and_do_not_wait_for_the_slow() {
    let (_authority, origin, gateway) = origin();
    is_charged_once(&gateway, &Request::pay("first", "{}"));
    let pay = |n| Request::pay(&format!("k{n}"), "{}").act("hold").send_aside(gateway.port);
    let held: Vec<_> = (0..100).map(pay).collect();
    origin.reached(101);
    assert!(origin.connections() > 1);
    origin.release();
    assert!(held.into_iter().all(|answer| answer.join().unwrap().status == 201));
    let connections = origin.connections();
    for n in 0..20 {
        is_charged_once(&gateway, &Request::pay(&format!("later{n}"), "{}"));
    }
    assert_eq!(
        (origin.executed(), origin.connections()),
        (121, connections),
        "what stands is used"
    );
}

/// Sends a request by TLS and reads to the end of the connection.
fn by_tls(port: u16, client: &Arc<ClientConfig>, request: &Request) -> std::io::Result<String> {
    let name = ServerName::try_from(HERE).unwrap();
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut stream = StreamOwned::new(ClientConnection::new(client.clone(), name).unwrap(), stream);
    stream.write_all(&request.clone().field("Connection", "close").bytes())?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn listening_by_tls(upstream: &Upstream, dir: &Path, more: &str) -> Gateway {
    let settings = format!(
        "[tls]\ncert = {:?}\nkey = {:?}\n{more}",
        dir.join("cert.pem"),
        dir.join("key.pem")
    );
    Gateway::with(upstream.port, &settings, "")
}

#[test]
fn clients_connect_by_tls_and_the_upstream_is_informed() {
    let (authority, upstream, dir) =
        (Authority::new(), Upstream::start(), tempfile::tempdir().unwrap());
    authority.write(HERE, dir.path());
    let gateway = listening_by_tls(&upstream, dir.path(), "");
    let client = authority.client(&["http/1.1"], None);
    let first = by_tls(gateway.port, &client, &Request::pay("k", "{}")).unwrap();
    assert!(first.starts_with("HTTP/1.1 201"), "{first}");
    let again = by_tls(gateway.port, &client, &Request::pay("k", "{}")).unwrap();
    assert!(again.contains("idempotent-replayed: true"), "{again}");
    assert_eq!(upstream.seen()[0].get("x-forwarded-proto"), Some("https"));
    assert_eq!(upstream.executed(), 1);
    assert!(
        by_tls(gateway.port, &Authority::new().client(&[], None), &Request::pay("l", "{}"))
            .is_err(),
        "another authority"
    );
}

#[test]
fn both_protocols_are_offered() {
    let (authority, upstream, dir) =
        (Authority::new(), Upstream::start(), tempfile::tempdir().unwrap());
    authority.write(HERE, dir.path());
    let gateway = listening_by_tls(&upstream, dir.path(), "");
    for (wanted, got) in [(&["h2", "http/1.1"][..], "h2"), (&["http/1.1"], "http/1.1")] {
        let name = ServerName::try_from(HERE).unwrap();
        let mut client = ClientConnection::new(authority.client(wanted, None), name).unwrap();
        client.complete_io(&mut TcpStream::connect(("127.0.0.1", gateway.port)).unwrap()).unwrap();
        assert_eq!(client.alpn_protocol(), Some(got.as_bytes()));
    }
}

#[test]
fn a_renewed_certificate_is_used_and_a_broken_one_is_not() {
    let (old, new, upstream, dir) =
        (Authority::new(), Authority::new(), Upstream::start(), tempfile::tempdir().unwrap());
    old.write(HERE, dir.path());
    let gateway = listening_by_tls(&upstream, dir.path(), "");
    let pay = Request::pay("k", "{}");
    assert!(by_tls(gateway.port, &old.client(&[], None), &pay).is_ok());
    std::fs::write(dir.path().join("cert.pem"), "half a certif").unwrap();
    until("the change to be seen", || gateway.logs().contains("the current one stays in use"));
    assert!(by_tls(gateway.port, &old.client(&[], None), &pay).is_ok());
    new.write(HERE, dir.path());
    until("the new certificate to be shown", || {
        by_tls(gateway.port, &new.client(&[], None), &pay).is_ok()
    });
}

#[test]
fn a_reload_reads_the_certificate_that_it_names_and_keeps_the_old_one_where_it_cannot_be_used() {
    let (old, new, upstream) = (Authority::new(), Authority::new(), Upstream::start());
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    old.write(HERE, first.path());
    let gateway = listening_by_tls(&upstream, first.path(), "");
    let shown = |by: &Authority| {
        by_tls(gateway.port, &by.client(&[], None), &Request::pay("k", "{}")).is_ok()
    };
    let reload = |cert: &Path| {
        std::fs::write(
            gateway.config(),
            format!("[tls]\ncert = {cert:?}\nkey = {:?}\n", cert.with_file_name("key.pem")),
        )
        .unwrap();
        gateway.ask("POST", "/v1/reload")
    };
    let nowhere = reload(Path::new("/nowhere/cert.pem"));
    assert!(
        nowhere.status == 409 && nowhere.text().contains("can't read /nowhere/cert.pem"),
        "{nowhere:?}"
    );
    assert!(shown(&old));
    new.write(HERE, second.path());
    assert_eq!(reload(&second.path().join("cert.pem")).status, 200);
    assert!(shown(&new) && !shown(&old));
    std::fs::write(gateway.config(), "").unwrap();
    let without = gateway.ask("POST", "/v1/reload");
    assert!(
        without.status == 409 && without.text().contains("tls can't be changed without a restart"),
        "{without:?}"
    );
}

#[test]
fn without_a_certificate_of_its_own_a_client_gets_nowhere() {
    let (authority, upstream, dir) =
        (Authority::new(), Upstream::start(), tempfile::tempdir().unwrap());
    authority.write(HERE, dir.path());
    let clients = Authority::new();
    let gateway =
        listening_by_tls(&upstream, dir.path(), &format!("client_ca = {:?}", clients.ca_file()));
    let own = tempfile::tempdir().unwrap();
    clients.write("shop.example", own.path());
    let pay = Request::pay("k", "{}");
    assert!(by_tls(gateway.port, &authority.client(&[], None), &pay).is_err());
    let answer = by_tls(gateway.port, &authority.client(&[], Some(own.path())), &pay).unwrap();
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    assert_eq!(upstream.executed(), 1);
}

#[test]
fn the_subject_of_a_clients_certificate_is_scope_and_caller_over_both_protocols() {
    let (authority, clients, upstream, dir) =
        (Authority::new(), Authority::new(), Upstream::start(), tempfile::tempdir().unwrap());
    authority.write(HERE, dir.path());
    let settings = format!(
        "[tls]\ncert = {:?}\nkey = {:?}\nclient_ca = {:?}\n",
        dir.path().join("cert.pem"),
        dir.path().join("key.pem"),
        clients.ca_file()
    );
    let routes = "[[routes]]\npath = \"/v1/payments\"\nscope = { client_cert = \"subject\" }";
    let gateway = Gateway::with(upstream.port, &settings, routes);
    // Each client gets a new certificate; the subject stays the same.
    let client = |name: Option<&str>, protocol: &str| {
        let own = tempfile::tempdir().unwrap();
        clients.write_client(name, own.path());
        authority.client(&[protocol], Some(own.path()))
    };
    let by_http_1 = |name, token: &str| {
        let pay = Request::pay("k", "{}").field("Authorization", token);
        by_tls(gateway.port, &client(name, "http/1.1"), &pay).unwrap()
    };
    let by_http_2 = |name, token: &str| {
        Streams::open_by_tls(gateway.port, client(name, "h2")).send(Streams::pay(
            "k",
            "{}",
            &[("authorization", token)],
        ))
    };
    let first = by_http_1(Some("shop-a"), "Bearer 1");
    assert!(first.starts_with("HTTP/1.1 201") && !first.contains("idempotent-replayed"), "{first}");
    let again = by_http_1(Some("shop-a"), "Bearer 2");
    assert!(
        again.starts_with("HTTP/1.1 201") && again.contains("idempotent-replayed: true"),
        "{again}"
    );
    let other = by_http_2(Some("shop-b"), "Bearer 1");
    assert!(
        other.status == 201 && !other.replayed() && !first.ends_with(&other.text()),
        "{other:?}"
    );
    let over_http_2 = by_http_2(Some("shop-a"), "Bearer 3");
    assert!(over_http_2.replayed() && first.ends_with(&over_http_2.text()), "{over_http_2:?}");
    assert_eq!(upstream.executed(), 2);
    assert!(
        by_http_1(None, "Bearer 1").contains("scope-missing"),
        "a certificate that names nobody"
    );
    assert_eq!(by_http_2(None, "Bearer 1").problem(), "scope-missing");
    assert_eq!(upstream.executed(), 2);
}

#[test]
fn a_client_that_is_silent_in_a_handshake_is_disconnected() {
    let (authority, upstream, dir) =
        (Authority::new(), Upstream::start(), tempfile::tempdir().unwrap());
    authority.write(HERE, dir.path());
    let gateway = listening_by_tls(&upstream, dir.path(), "[limits]\nheader_timeout = \"300ms\"\n");
    let mut silent = TcpStream::connect(("127.0.0.1", gateway.port)).unwrap();
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(silent.read(&mut [0; 1]).unwrap(), 0, "closed, and not kept");
}
