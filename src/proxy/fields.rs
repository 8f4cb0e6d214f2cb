//! Selects the header fields that are forwarded, and sets the gateway's own fields.
//!
//! Danger: if a field of one connection is forwarded, a client can use it to change the framing of
//! another client's request. So hop-by-hop fields, and all fields that `Connection` names, are
//! dropped in both directions (RFC 9110, section 7.6.1). This happens after key and caller were
//! read. The gateway sets its own fields last.

use std::net::IpAddr;

use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::{HeaderMap, Method, Version};

use crate::http_message::{TRACEPARENT, takes_trailers};
use crate::proxy::rules;

/// The other end of a client connection.
#[derive(Debug, Clone)]
pub struct Peer {
    /// The address, as `X-Forwarded-For` shows it.
    pub address: HeaderValue,
    /// Whether the connection uses TLS.
    pub secure: bool,
    /// Whether the peer is a trusted proxy. The gateway accepts the `X-Forwarded-*` fields of a
    /// trusted proxy.
    pub trusted: bool,
}

impl Peer {
    /// Creates a peer with this address.
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

/// Drops the fields that belong to one connection.
fn strip_hop_by_hop(headers: &mut HeaderMap) {
    // Most clients send only `Connection: keep-alive`. Then there are no named fields to search
    // for.
    if let Some(first) = headers.get(CONNECTION) {
        if !first.as_bytes().eq_ignore_ascii_case(b"keep-alive")
            || headers.get_all(CONNECTION).iter().count() > 1
        {
            let named: Vec<HeaderName> = headers
                .get_all(CONNECTION)
                .iter()
                .flat_map(|value| value.as_bytes().split(|b| *b == b','))
                .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
                // The gateway sets `traceparent` itself, so a client must not be able to remove it.
                .filter(|name| *name != TRACEPARENT)
                .collect();
            for name in named {
                headers.remove(name);
            }
        }
        headers.remove(CONNECTION);
    }
    // Searched in one pass, because every removal is a search and most messages have no such field.
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

/// Returns the `Upgrade` value of a request for a WebSocket (RFC 6455, section 4.1). No other
/// upgrade is forwarded. For example, after an upgrade to HTTP/2 without TLS, a client could send
/// requests that the gateway doesn't see.
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

/// A trusted proxy's `X-Forwarded-*` fields about its client.
struct ForwardedByProxy {
    /// The addresses of the client and of all proxies on the way. The address of the trusted proxy
    /// is the last one.
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

/// Returns the entry that a proxy adds to `Via`: the HTTP version of the received message (RFC
/// 9110, section 7.6.3). HTTP/2 and HTTP/3 have no minor version, so it is 0 (section 2.5).
fn via(received: Version) -> HeaderValue {
    HeaderValue::from_static(match received {
        Version::HTTP_09 => "0.9 onceward",
        Version::HTTP_10 => "1.0 onceward",
        Version::HTTP_2 => "2.0 onceward",
        Version::HTTP_3 => "3.0 onceward",
        _ => "1.1 onceward",
    })
}

/// Drops the expectation `100-continue`. The gateway itself answers the expectation, at the latest
/// when it begins to read the body. If the upstream got the expectation too, the client could get a
/// second answer to it.
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

/// Returns whether a request without a body is sent with `Content-Length: 0`: if its client sent
/// that field, or if the method gives content a meaning (RFC 9110, section 8.6). Without the field,
/// many servers answer 411.
pub(super) fn announces_empty_body(method: &Method, headers: &HeaderMap) -> bool {
    matches!(*method, Method::POST | Method::PUT | Method::PATCH)
        || headers.get(CONTENT_LENGTH).is_some_and(|length| length == "0")
}

/// Drops the trailers of an answer that frame a message or belong to one connection, because some
/// recipients merge trailers into the head (RFC 9110, section 6.5.1).
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

/// Prepares a request's fields for the upstream. If the client accepts trailers, the new `TE` field
/// has that value only. Framing fields are dropped, because the framing is computed from the body
/// again. `received` is the HTTP version of the client's request.
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
    // The client's address and scheme come from the connection, or from a trusted proxy. The fields
    // of other clients are replaced.
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

/// Returns whether an HTTP/1.1 response has neither a length nor the coding `chunked`. Its body, if
/// there is one, then ends with the connection (RFC 9112, section 6.3).
pub(super) fn ends_with_connection(headers: &HeaderMap) -> bool {
    match headers.get_all(TRANSFER_ENCODING).iter().next_back() {
        None => !headers.contains_key(CONTENT_LENGTH),
        Some(codings) => {
            let last = codings.as_bytes().rsplit(|byte| *byte == b',').next().unwrap_or_default();
            !last.trim_ascii().eq_ignore_ascii_case(b"chunked")
        }
    }
}

/// Returns whether an answer has a transfer coding besides `chunked`. The gateway can't decode such
/// a coding, and forwards no `TE` value except `trailers`. The transfer-coding field is dropped, so
/// a client would take the coded bytes for the content (RFC 9112, section 7).
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

/// Prepares a response's fields. The remaining fields are end-to-end fields, which may be stored.
/// `bodiless` is true for a 304 and for a response to HEAD: their length field is about a body that
/// they do not have. `received` is the HTTP version of the upstream's response. `Via` names it, in
/// the answer and in every replay.
pub fn from_upstream(headers: &mut HeaderMap, bodiless: bool, received: Version) {
    // If an answer has a length and a transfer coding, one of them is wrong (RFC 9112, section
    // 6.3).
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
