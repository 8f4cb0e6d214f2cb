//! Checks a parsed request by the rules, before its route is looked up. HTTP/1.1 requests have
//! already passed the byte guard. Their parser changes some targets, which are restored here.

use bytes::Bytes;
use http::header::{ALLOW, HOST, MAX_FORWARDS};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, Version};

use crate::gate::{AnswerBody, Hold};
use crate::proxy::inbound::byte_guard::{FIELD_BYTES, MARK};
use crate::proxy::inbound::guarded_bytes::GuardVerdict;
use crate::proxy::inbound::inflow::text_bytes;
use crate::proxy::rules::{self, FIELDS_MAX, RequestTarget};
use crate::refusal::{ALLOWED_METHODS, Malformation, Refusal};

/// Refuses requests that are invalid on every route. `limit` is the configured size of a head in
/// bytes.
pub(in crate::proxy) fn check<B>(
    request: &Request<B>,
    verdict: &GuardVerdict,
    limit: usize,
) -> Result<(), Refusal> {
    if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
        // On HTTP/1.1 this is the guard's stand-in for a request that it refused.
        return Err(verdict.refused().cloned().unwrap_or(Refusal::MethodNotAllowed));
    }
    let headers = request.headers();
    if request.version() == Version::HTTP_2 {
        if headers.contains_key(MARK) {
            return Err(Malformation::Target.into());
        }
        let path = request.uri().path_and_query().map_or("", PathAndQuery::as_str);
        let target = RequestTarget::Pseudo {
            scheme: request.uri().scheme_str().map(str::as_bytes),
            path: path.as_bytes(),
        };
        let fields =
            headers.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()));
        rules::check_head(
            Version::HTTP_2,
            request.method().as_str().as_bytes(),
            target,
            fields,
            limit,
        )?;
    }
    let hosts = headers.get_all(HOST).iter().map(HeaderValue::as_bytes);
    rules::host(request.version(), hosts, request.uri().authority())
}

/// Changes a URI without a path into the forwarded form (RFC 9112, sections 3.2.1 and 3.2.4). The
/// path becomes `/`, or with `server_wide` the target becomes `*`.
pub(in crate::proxy) fn complete_target<B>(request: &mut Request<B>, server_wide: bool) {
    let uri = request.uri();
    let target = match uri.path_and_query().map(PathAndQuery::as_str) {
        _ if server_wide => "*".to_owned(),
        Some(query) if query.starts_with('?') => format!("/{query}"),
        _ => return,
    };
    let mut parts = uri.clone().into_parts();
    if let Ok(target) = PathAndQuery::try_from(target) {
        parts.path_and_query = Some(target);
    }
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
}

/// Counts an OPTIONS request's `Max-Forwards` down (RFC 9110, section 7.6.2). If the count is zero,
/// the gateway is the last recipient, and this returns the answer. On other methods the field has
/// no meaning.
pub(in crate::proxy) fn max_forwards<B, R>(
    request: &mut Request<B>,
) -> Result<Option<Response<AnswerBody<R>>>, Refusal> {
    if request.method() != Method::OPTIONS {
        return Ok(None);
    }
    let mut values = request.headers().get_all(MAX_FORWARDS).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let digits = value
        .to_str()
        .ok()
        .filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()));
    let (Some(digits), None) = (digits, values.next()) else {
        return Err(Malformation::MaxForwards.into());
    };
    // A count that is too large becomes the largest one.
    let count = digits.parse::<u32>().unwrap_or(u32::MAX);
    let Some(left) = count.checked_sub(1) else {
        let mut response = Response::new(AnswerBody::whole(Bytes::new()));
        response.headers_mut().insert(ALLOW, HeaderValue::from_static(ALLOWED_METHODS));
        return Ok(Some(response));
    };
    request.headers_mut().insert(MAX_FORWARDS, HeaderValue::from(left));
    Ok(None)
}

/// Memory of a request in addition to its fields, its bodies and its upstream connection, in bytes.
const REQUEST_BYTES: usize = 4 * 1024;

/// Takes memory for a request's head. The limits of an HTTP/1.1 head apply to both versions of
/// HTTP. A refused head is dropped at once, except its `Host`, which the refusal may need.
pub(in crate::proxy) fn admit_head<B>(
    request: &mut Request<B>,
    bytes_max: usize,
    memory: &mut Hold,
) -> Result<(), Refusal> {
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    let (fields, bytes) = (request.headers().len(), target + text_bytes(request.headers()));
    // The text counts twice: as received, and as written to the upstream.
    let cost = REQUEST_BYTES + FIELD_BYTES * fields + 2 * bytes;
    let refused = if fields > FIELDS_MAX || bytes > bytes_max {
        Refusal::HeaderTooLarge { limit: bytes_max }
    } else if !memory.grow(cost) {
        Refusal::Overloaded
    } else {
        return Ok(());
    };
    let host = request.headers_mut().remove(HOST);
    *request.headers_mut() = HeaderMap::new();
    if let Some(host) = host {
        request.headers_mut().insert(HOST, host);
    }
    Err(refused)
}

#[cfg(test)]
mod tests {
    //! Forwarded targets, and counts of `Max-Forwards`.

    use super::*;

    #[test]
    fn a_uri_without_a_path_is_completed() {
        for (uri, server_wide, target) in [
            ("/a?b", false, "/a?b"),
            ("http://a", false, "/"),
            ("http://a", true, "*"),
            ("http://a?b=/", false, "/?b=/"),
            ("*", false, "*"),
        ] {
            let mut request = Request::options(uri).body(()).unwrap();
            complete_target(&mut request, server_wide);
            assert_eq!(request.uri().path_and_query().unwrap().as_str(), target, "{uri}");
            assert_eq!(
                request.uri().authority().is_some(),
                uri.starts_with("http"),
                "{uri}: the host stays"
            );
        }
    }

    #[test]
    fn max_forwards_is_counted_down_for_options_alone() {
        let counted = |method: Method, values: &[&str]| {
            let mut request = Request::builder().method(method).uri("/");
            for value in values {
                request = request.header(MAX_FORWARDS, *value);
            }
            let mut request = request.body(()).unwrap();
            let result = max_forwards::<_, http_body_util::Empty<Bytes>>(&mut request)
                .map(|answer| answer.is_some());
            (
                result,
                request.headers().get(MAX_FORWARDS).map(|value| value.to_str().unwrap().to_owned()),
            )
        };
        let malformed = || Err(Malformation::MaxForwards.into());
        assert_eq!(counted(Method::OPTIONS, &[]), (Ok(false), None));
        assert_eq!(counted(Method::OPTIONS, &["0"]).0, Ok(true));
        assert_eq!(counted(Method::OPTIONS, &["000"]).0, Ok(true));
        assert_eq!(counted(Method::OPTIONS, &["1"]), (Ok(false), Some("0".into())));
        assert_eq!(
            counted(Method::OPTIONS, &["99999999999999"]),
            (Ok(false), Some("4294967294".into()))
        );
        assert_eq!(counted(Method::OPTIONS, &["+1"]).0, malformed());
        assert_eq!(counted(Method::OPTIONS, &[""]).0, malformed());
        assert_eq!(counted(Method::OPTIONS, &["1", "1"]).0, malformed());
        assert_eq!(counted(Method::POST, &["0"]), (Ok(false), Some("0".into())));
    }
}
