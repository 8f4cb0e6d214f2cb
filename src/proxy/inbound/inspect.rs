//! The inspection of a request that a parser has read: by the rules, before anything looks at its
//! route. HTTP/1.1 requests have passed the byte guard already; what their parser hides from the
//! server is put right here.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{ALLOW, HOST, MAX_FORWARDS};
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Response, Uri, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::gate::AnswerBody;
use crate::proxy::inbound::byte_guard::MARK;
use crate::proxy::inbound::guarded_bytes::GuardVerdict;
use crate::proxy::inbound::inflow::{CountedBody, Inflow};
use crate::proxy::inbound::rules::{self, RequestTarget};
use crate::refusal::{ALLOWED_METHODS, Malformation, Refusal};

/// Refuses what no request may be, whatever its route. `limit` is the configured size of a head in bytes.
pub(in crate::proxy) fn check<B>(
    request: &Request<B>,
    verdict: &GuardVerdict,
    limit: usize,
) -> Result<(), Refusal> {
    if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
        // On HTTP/1.1 it is the guard's stand-in for what it refused.
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
        rules::judge(Version::HTTP_2, request.method().as_str().as_bytes(), target, fields, limit)?;
    }
    let hosts = headers.get_all(HOST).iter().map(HeaderValue::as_bytes);
    rules::host(request.version(), hosts, request.uri().authority())
}

/// Gives a URI without a path the form in which it is forwarded (RFC 9112, sections 3.2.1 and 3.2.4):
/// the path is `/`, or the target is `*` where `server_wide` holds.
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

/// Counts an OPTIONS request's `Max-Forwards` down (RFC 9110, section 7.6.2). Returns the answer where
/// the count was zero: the gateway is the last recipient. Other methods may carry the field and
/// don't mean it.
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
    // A count that doesn't fit becomes the largest that does.
    let count = digits.parse::<u32>().unwrap_or(u32::MAX);
    let Some(left) = count.checked_sub(1) else {
        let mut response = Response::new(AnswerBody::whole(Bytes::new()));
        response.headers_mut().insert(ALLOW, HeaderValue::from_static(ALLOWED_METHODS));
        return Ok(Some(response));
    };
    request.headers_mut().insert(MAX_FORWARDS, HeaderValue::from(left));
    Ok(None)
}

/// A client's request body, whose trailers are judged by the rules.
pub struct RequestBody {
    body: CountedBody,
    fault: Arc<OnceLock<Refusal>>,
}

/// The body can't be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum RequestBodyError {
    /// The connection or the stream failed.
    #[error(transparent)]
    Broken(#[from] hyper::Error),
    /// The trailer section breaks the rules.
    #[error(transparent)]
    Refused(#[from] Malformation),
    /// The client reset its stream before the body's end.
    #[error("the stream was reset before the end of the body")]
    Reset,
}

impl RequestBody {
    /// Wraps a body, and returns where its fault will be once one is found.
    /// `inflow`: where its bytes were counted, on HTTP/2.
    pub(in crate::proxy) fn new(
        body: Incoming,
        inflow: Option<Arc<Inflow>>,
    ) -> (RequestBody, Arc<OnceLock<Refusal>>) {
        let fault = Arc::new(OnceLock::new());
        (RequestBody { body: CountedBody::new(body, inflow), fault: fault.clone() }, fault)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)) else {
            // The library reports a reset with NO_ERROR as the body's end. A server may send one (RFC 9113, section
            // 8.1); from a client it means that the rest of the request never comes.
            let cut = self.body.is_framed() && !self.body.is_end_stream();
            return Poll::Ready(cut.then_some(Err(RequestBodyError::Reset)));
        };
        let frame = frame?;
        if let Some(trailers) = frame.trailers_ref() {
            let judged = if trailers.contains_key(MARK) {
                Err(Malformation::Trailer)
            } else {
                rules::trailers(trailers)
            };
            if let Err(why) = judged {
                let _ = self.fault.set(why.into());
                return Poll::Ready(Some(Err(why.into())));
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    //! Targets and counts, as they are forwarded.

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
        let asked = |method: Method, values: &[&str]| {
            let mut request = Request::builder().method(method).uri("/");
            for value in values {
                request = request.header(MAX_FORWARDS, *value);
            }
            let mut request = request.body(()).unwrap();
            let answered = max_forwards::<_, http_body_util::Empty<Bytes>>(&mut request)
                .map(|answer| answer.is_some());
            (
                answered,
                request.headers().get(MAX_FORWARDS).map(|value| value.to_str().unwrap().to_owned()),
            )
        };
        let malformed = || Err(Malformation::MaxForwards.into());
        assert_eq!(asked(Method::OPTIONS, &[]), (Ok(false), None));
        assert_eq!(asked(Method::OPTIONS, &["0"]).0, Ok(true));
        assert_eq!(asked(Method::OPTIONS, &["000"]).0, Ok(true));
        assert_eq!(asked(Method::OPTIONS, &["1"]), (Ok(false), Some("0".into())));
        assert_eq!(
            asked(Method::OPTIONS, &["99999999999999"]),
            (Ok(false), Some("4294967294".into()))
        );
        assert_eq!(asked(Method::OPTIONS, &["+1"]).0, malformed());
        assert_eq!(asked(Method::OPTIONS, &[""]).0, malformed());
        assert_eq!(asked(Method::OPTIONS, &["1", "1"]).0, malformed());
        assert_eq!(asked(Method::POST, &["0"]), (Ok(false), Some("0".into())));
    }
}
