//! The outcome of a gRPC call. The HTTP status of the answer is always 200. The gRPC status is in
//! the trailers, or in the head of an answer without a body.
//!
//! Danger: client libraries resend a request after UNAVAILABLE and similar statuses. If the gateway
//! stored such an answer as the result, duplicates of an executed payment would get an error until
//! the retention ends.

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName};

use crate::record::{Cause, Reply};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// Statuses that a library or an intermediary also generates, whatever the upstream did: UNKNOWN,
/// DEADLINE_EXCEEDED and UNAVAILABLE.
const UNCERTAIN: [u8; 3] = [UNKNOWN, 4, 14];

/// The status UNKNOWN. A malformed status, or a status outside 0 to 16, counts as UNKNOWN.
const UNKNOWN: u8 = 2;

/// The largest defined status.
const STATUS_MAX: u8 = 16;

/// Returns whether an answer is a gRPC answer: `application/grpc`, also with a message format
/// (`+proto`) or parameters. gRPC-Web is excluded, because it writes its trailers into the body.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    const NAME: &[u8] = b"application/grpc";
    let Some(media_type) =
        headers.get(CONTENT_TYPE).map(|value| value.as_bytes().trim_ascii_start())
    else {
        return false;
    };
    let Some((name, rest)) = media_type.split_at_checked(NAME.len()) else { return false };
    name.eq_ignore_ascii_case(NAME)
        && rest.first().is_none_or(|next| matches!(next, b'+' | b';' | b' ' | b'\t'))
}

/// Returns why a gRPC answer leaves the outcome uncertain; `None` if it does not, or if the answer
/// is not gRPC. The reply must have its trailers.
pub fn grpc_uncertainty(reply: &Reply) -> Option<Cause> {
    if !is_grpc(&reply.headers) {
        return None;
    }
    let fields = reply.trailers.iter().chain([&reply.headers]);
    let mut statuses = fields.flat_map(|fields| fields.get_all(GRPC_STATUS));
    // The answer ended before its status.
    let Some(status) = statuses.next() else { return Some(Cause::Broken) };
    let number = status.to_str().ok().and_then(|text| text.parse::<u8>().ok());
    // If statuses contradict each other, different clients read different ones. So the status
    // counts as UNKNOWN.
    let number = number.filter(|_| statuses.all(|other| other == status));
    let status = number.filter(|number| *number <= STATUS_MAX).unwrap_or(UNKNOWN);
    UNCERTAIN.contains(&status).then_some(Cause::Status(status.into()))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{HeaderValue, StatusCode};

    use super::*;
    use crate::record::ReplyBody;

    fn fields(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let fields = fields
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        fields.collect()
    }

    #[test]
    fn grpc_is_known_by_its_media_type() {
        for (media_type, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("Application/gRPC+json", true),
            ("application/grpc; charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/grpc-web+proto", false),
            ("application/grpcx", false),
            ("application/json", false),
            ("", false),
        ] {
            assert_eq!(is_grpc(&fields(&[("content-type", media_type)])), expected, "{media_type}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn the_status_decides_whether_the_outcome_is_known() {
        let status = |number| Some(Cause::Status(number));
        for (head, trailers, expected) in [
            (None, Some("0"), None),
            (Some("0"), None, None),
            // A refusal is a result like any other.
            (None, Some("3"), None),
            (None, Some("16"), None),
            (None, Some("2"), status(2)),
            (None, Some("4"), status(4)),
            (None, Some("14"), status(14)),
            (Some("14"), None, status(14)),
            // Two statuses that contradict each other.
            (Some("0"), Some("14"), status(2)),
            (Some("14"), Some("0"), status(2)),
            (Some("0"), Some("0"), None),
            // An undefined status counts as UNKNOWN.
            (None, Some("17"), status(2)),
            (None, Some("-1"), status(2)),
            (None, Some("ok"), status(2)),
            (None, Some(""), status(2)),
            (None, None, Some(Cause::Broken)),
        ] {
            let of = |status: Option<&'static str>| status.map(|status| ("grpc-status", status));
            let head: Vec<_> = [Some(("content-type", "application/grpc+proto")), of(head)]
                .into_iter()
                .flatten()
                .collect();
            let reply = Reply {
                status: StatusCode::OK,
                headers: fields(&head),
                body: ReplyBody::Whole(Bytes::new()),
                trailers: of(trailers).map(|field| fields(&[field])),
            };
            assert_eq!(grpc_uncertainty(&reply), expected, "{head:?} {trailers:?}");
            let json = Reply { headers: fields(&[("content-type", "application/json")]), ..reply };
            assert_eq!(
                grpc_uncertainty(&json),
                None,
                "whatever another answer's fields are called"
            );
        }
    }
}
