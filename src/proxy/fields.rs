//! Which header fields pass, and which the gateway sets.
//!
//! Danger: a field that belongs to one connection and is forwarded lets a client reframe another's request. So
//! hop-by-hop fields and all that `Connection` names are dropped in both directions (RFC 9110, section 7.6.1), after key
//! and caller were read, and what the gateway sets is set last.

use std::net::IpAddr;

use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::{HeaderMap, Method, Version};

use crate::http_message::{TRACEPARENT, takes_trailers};
use crate::proxy::rules;

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub struct Peer {
    /// The address, as `X-Forwarded-For` shows it.
    pub address: HeaderValue,
    /// Whether it came by TLS.
    pub secure: bool,
    /// Whether it is a trusted proxy: its statements about its clients are accepted.
    pub trusted: bool,
}

impl Peer {
    /// A peer at an address, which came by TLS or not, and is believed or not.
    pub fn new(address: IpAddr, secure: bool, trusted: bool) -> Peer {
        let text = HeaderValue::try_from(address.to_canonical().to_string());
        Peer { address: text.unwrap_or(HeaderValue::from_static("unknown")), secure, trusted }
    }
}

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
pub(super) const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(super) const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(super) const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// Drops what belongs to one connection.
fn strip_hop_by_hop(headers: &mut HeaderMap) {
    // Nothing hop-by-hop is named by `Connection: keep-alive`, which is what most clients send.
    if let Some(first) = headers.get(CONNECTION) {
        if !first.as_bytes().eq_ignore_ascii_case(b"keep-alive")
            || headers.get_all(CONNECTION).iter().count() > 1
        {
            let named: Vec<HeaderName> = headers
                .get_all(CONNECTION)
                .iter()
                .flat_map(|value| value.as_bytes().split(|b| *b == b','))
                .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
                // Set by the gateway; the client's own value is dropped.
                .filter(|name| *name != TRACEPARENT)
                .collect();
            for name in named {
                headers.remove(name);
            }
        }
        headers.remove(CONNECTION);
    }
    // Looked for in one pass: most messages have none of them, and every removal would be a search.
    static FIELDS: [HeaderName; 8] = [
        KEEP_ALIVE,
        PROXY_CONNECTION,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
    ];
    if headers.keys().any(|name| FIELDS.contains(name)) {
        for name in &FIELDS {
            headers.remove(name);
        }
    }
}

/// Whether a request asks to become a WebSocket (RFC 6455, section 4.1). No other upgrade is passed on: behind one to
/// HTTP/2 without TLS a client could send any number of requests that nobody here sees.
pub(super) fn upgrade(version: Version, headers: &HeaderMap) -> Option<HeaderValue> {
    if version != Version::HTTP_11 {
        return None;
    }
    let mut protocols = headers.get_all(UPGRADE).iter();
    let protocol = protocols
        .next()
        .filter(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"websocket"))?;
    if protocols.next().is_some() {
        return None;
    }
    let asks = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
        .any(|name| name.trim_ascii().eq_ignore_ascii_case(b"upgrade"));
    asks.then(|| protocol.clone())
}

/// Joins the lines into which HTTP/2 clients may split their cookies (RFC 9113, section 8.2.3).
pub(super) fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().count() < 2 {
        return;
    }
    let joined = headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect::<Vec<_>>()
        .join(&b"; "[..]);
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        headers.insert(COOKIE, joined);
    }
}

/// The statements of a trusted proxy about its client.
struct ForwardedByProxy {
    /// Those who passed the request on, the proxy itself at the end.
    chain: Option<HeaderValue>,
    scheme: Option<HeaderValue>,
    host: Option<HeaderValue>,
}

fn forwarded(headers: &HeaderMap, peer: &Peer) -> ForwardedByProxy {
    let lines = headers
        .get_all(FORWARDED_FOR)
        .iter()
        .map(HeaderValue::as_bytes)
        .chain([peer.address.as_bytes()]);
    let chain = HeaderValue::from_bytes(&lines.collect::<Vec<_>>().join(&b", "[..])).ok();
    let scheme =
        headers.get(FORWARDED_PROTO).filter(|scheme| *scheme == "http" || *scheme == "https");
    ForwardedByProxy { chain, scheme: scheme.cloned(), host: headers.get(FORWARDED_HOST).cloned() }
}

/// The entry that a proxy adds to `Via`: the version that it received the message by (RFC 9110,
/// section 7.6.3), with the minor version 0 where a major version has none (section 2.5).
fn via(received: Version) -> HeaderValue {
    HeaderValue::from_static(match received {
        Version::HTTP_09 => "0.9 onceward",
        Version::HTTP_10 => "1.0 onceward",
        Version::HTTP_2 => "2.0 onceward",
        Version::HTTP_3 => "3.0 onceward",
        _ => "1.1 onceward",
    })
}

/// Drops the expectation `100-continue`. The gateway has answered it, or answers it when it begins to
/// read the body: an upstream that gets it would wait for nobody, or answer it once more.
fn drop_continue(headers: &mut HeaderMap) {
    if !headers.contains_key(EXPECT) {
        return;
    }
    let others: Vec<HeaderValue> =
        headers.get_all(EXPECT).iter().filter(|value| !is_continue(value)).cloned().collect();
    headers.remove(EXPECT);
    for value in others {
        headers.append(EXPECT, value);
    }
}

fn is_continue(value: &HeaderValue) -> bool {
    value
        .as_bytes()
        .split(|byte| *byte == b',')
        .all(|member| member.trim_ascii().eq_ignore_ascii_case(b"100-continue"))
}

/// Whether a request without a body is sent with `Content-Length: 0`: where its client sent that, and where the method gives
/// content a meaning (RFC 9110, section 8.6). Many servers answer 411 without it.
pub(super) fn announces_empty_body(method: &Method, headers: &HeaderMap) -> bool {
    matches!(*method, Method::POST | Method::PUT | Method::PATCH)
        || headers.get(CONTENT_LENGTH).is_some_and(|length| length == "0")
}

/// Drops the trailers of an answer that frame a message or belong to one connection: some recipients merge trailers into the
/// head (RFC 9110, section 6.5.1).
pub(super) fn strip_trailers(trailers: &mut HeaderMap) {
    let forbidden: Vec<HeaderName> = trailers
        .keys()
        .filter(|name| rules::trailer_name(name.as_str().as_bytes()).is_err())
        .cloned()
        .collect();
    for name in forbidden {
        trailers.remove(name);
    }
}

/// Prepares a request's fields for the upstream. Of `TE` it keeps that the client takes trailers. Framing fields are dropped: it
/// is recomputed from the body. `received`:
/// the version that the client sent it by.
pub fn to_upstream(
    headers: &mut HeaderMap,
    host: HeaderValue,
    original_host: Option<HeaderValue>,
    peer: Option<&Peer>,
    received: Version,
) {
    let trailers = takes_trailers(headers);
    strip_hop_by_hop(headers);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
    drop_continue(headers);
    headers.remove(CONTENT_LENGTH);
    let believed = peer.filter(|peer| peer.trusted);
    let forwarded = believed.map(|peer| forwarded(headers, peer));
    static FOREIGN: [HeaderName; 3] = [FORWARDED, REAL_IP, FORWARDED_HOST];
    if headers.keys().any(|name| FOREIGN.contains(name)) {
        for name in &FOREIGN {
            headers.remove(name);
        }
    }
    headers.insert(HOST, host);
    // Nobody's word about who sent this is believed but the connection's own, and that of trusted proxies.
    match peer {
        Some(peer) => headers.insert(FORWARDED_FOR, peer.address.clone()),
        None => headers.remove(FORWARDED_FOR),
    };
    let scheme = if peer.is_some_and(|peer| peer.secure) { "https" } else { "http" };
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static(scheme));
    if let Some(host) = original_host {
        headers.insert(FORWARDED_HOST, host);
    }
    if let Some(ForwardedByProxy { chain, scheme, host }) = forwarded {
        let fields = [(FORWARDED_FOR, chain), (FORWARDED_PROTO, scheme), (FORWARDED_HOST, host)];
        for (name, value) in fields.into_iter().filter_map(|(name, value)| Some((name, value?))) {
            headers.insert(name, value);
        }
    }
    headers.append(VIA, via(received));
}

/// Whether the body of an HTTP/1.1 response, if it has one, ends where its connection does: it is neither chunked nor
/// counted (RFC 9112, section 6.3).
pub(super) fn ends_with_connection(headers: &HeaderMap) -> bool {
    match headers.get_all(TRANSFER_ENCODING).iter().next_back() {
        None => !headers.contains_key(CONTENT_LENGTH),
        Some(codings) => {
            let last = codings.as_bytes().rsplit(|byte| *byte == b',').next().unwrap_or_default();
            !last.trim_ascii().eq_ignore_ascii_case(b"chunked")
        }
    }
}

/// Whether an answer has a transfer coding besides `chunked`. The gateway announces none (of `TE` only `trailers` is forwarded), so nothing
/// undoes it, and without its field the coded bytes would pass for the content (RFC 9112, section 7).
pub(super) fn is_coded(headers: &HeaderMap) -> bool {
    let codings = headers
        .get_all(TRANSFER_ENCODING)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let mut codings = codings.map(<[u8]>::trim_ascii).filter(|coding| !coding.is_empty());
    codings.any(|coding| {
        !coding.eq_ignore_ascii_case(b"chunked") && !coding.eq_ignore_ascii_case(b"identity")
    })
}

/// Prepares a response's fields: what is left is end-to-end and may be stored. `bodiless`: a response to HEAD, or a 304,
/// with a length field for a body that is not there. `received`: the version that the upstream sent it by, which
/// `Via` names in the answer and in every replay of it.
pub fn from_upstream(headers: &mut HeaderMap, bodiless: bool, received: Version) {
    // A length beside a transfer coding is a lie about one of them (RFC 9112, section 6.3).
    if !bodiless || headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
    }
    strip_hop_by_hop(headers);
    headers.append(VIA, via(received));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_chunked_answers_are_taken_without_their_coding() {
        for (codings, coded) in [
            (&[][..], false),
            (&["chunked"], false),
            (&["Chunked"], false),
            (&["identity"], false),
            (&["gzip, chunked"], true),
            (&["gzip", "chunked"], true),
            (&["chunked, gzip"], true),
            (&["x"], true),
        ] {
            let mut headers = HeaderMap::new();
            for coding in codings {
                headers.append(TRANSFER_ENCODING, HeaderValue::from_static(coding));
            }
            assert_eq!(is_coded(&headers), coded, "{codings:?}");
        }
    }
}
