//! Kept documents: the parts of the saga's request and of its steps' answers that templates use.
//!
//! Both are stored as JSON, sealed in the saga's record. A body that is UTF-8 is stored as a text,
//! and any other body in base64.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};

use crate::http_message::TRACEPARENT;
use crate::key::path::as_matched;

/// The kept parts of a saga's request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptRequest {
    /// The body.
    #[serde(with = "body_text")]
    pub body: Bytes,
    /// The header fields that the configuration keeps, by name in lower case.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// The decoded parameters of the path.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub path: BTreeMap<String, String>,
    /// The decoded parameters of the query: the first value of each.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub query: BTreeMap<String, String>,
    /// The field `traceparent`, which the requests of the steps continue. Templates can't use it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// The kept parts of a step's answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptAnswer {
    /// The status.
    pub status: u16,
    /// The body; `None` if it is too large to keep.
    #[serde(default, with = "optional_body", skip_serializing_if = "Option::is_none")]
    pub body: Option<Bytes>,
    /// The header field `Location`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    /// The header field `ETag`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
}

impl KeptRequest {
    /// Keeps the parts of a request. `pattern` is the pattern of the saga's path, and `target` the
    /// request's path with its query. Values that are not UTF-8 are left out.
    pub fn new(
        pattern: &str,
        target: (&str, Option<&str>),
        headers: &HeaderMap,
        keep: &[HeaderName],
        body: Bytes,
    ) -> KeptRequest {
        let (path, query) = target;
        KeptRequest {
            body,
            headers: keep.iter().filter_map(|name| kept_field(name, headers)).collect(),
            path: path_parameters(pattern, path),
            query: query_parameters(query.unwrap_or_default()),
            traceparent: headers
                .get(TRACEPARENT)
                .and_then(|it| it.to_str().ok())
                .map(str::to_owned),
        }
    }

    /// Returns the number of bytes that the request adds to the kept data of its saga.
    pub fn kept_bytes(&self) -> usize {
        let maps = [&self.headers, &self.path, &self.query];
        let pairs = maps.into_iter().flatten().map(|(name, value)| name.len() + value.len());
        self.body.len() + pairs.sum::<usize>()
    }
}

impl KeptAnswer {
    /// Returns the number of bytes that the answer adds to the kept data of its saga.
    pub fn kept_bytes(&self) -> usize {
        let texts = [&self.location, &self.etag].into_iter().flatten().map(String::len);
        self.body.as_ref().map_or(0, Bytes::len) + texts.sum::<usize>()
    }
}

/// Returns a header field with its name in lower case. Several fields of one name are joined.
fn kept_field(name: &HeaderName, headers: &HeaderMap) -> Option<(String, String)> {
    let values: Option<Vec<&str>> =
        headers.get_all(name).iter().map(|value| value.to_str().ok()).collect();
    let values = values.filter(|values| !values.is_empty())?;
    Some((name.as_str().to_owned(), values.join(", ")))
}

/// Returns the decoded parameters of a path. Returns nothing if the pattern does not match.
fn path_parameters(pattern: &str, path: &str) -> BTreeMap<String, String> {
    let mut router = matchit::Router::new();
    let bare = as_matched(path);
    if router.insert(pattern, ()).is_err() {
        return BTreeMap::new();
    }
    let Ok(matched) = router.at(&bare) else { return BTreeMap::new() };
    let decoded = |value: &str| Some(percent_decode_str(value).decode_utf8().ok()?.into_owned());
    let pairs = matched.params.iter();
    pairs.filter_map(|(name, value)| Some((name.to_owned(), decoded(value)?))).collect()
}

/// Returns the decoded parameters of a query, as forms are decoded: `+` is a space.
fn query_parameters(query: &str) -> BTreeMap<String, String> {
    let decoded = |text: &str| {
        let spaced = text.replace('+', " ");
        Some(percent_decode_str(&spaced).decode_utf8().ok()?.into_owned())
    };
    let mut parameters = BTreeMap::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if let (Some(name), Some(value)) = (decoded(name), decoded(value)) {
            parameters.entry(name).or_insert(value);
        }
    }
    parameters
}

/// A body as JSON: its text, or its bytes in base64.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum StoredBody {
    Text(String),
    Binary { base64: String },
}

mod body_text {
    //! The form of a body in a stored document.

    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD as BASE64;
    use bytes::Bytes;
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::StoredBody;

    pub(super) fn serialize<S: Serializer>(body: &Bytes, out: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(body) {
            Ok(text) => out.serialize_str(text),
            Err(_) => StoredBody::Binary { base64: BASE64.encode(body) }.serialize(out),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Bytes, D::Error> {
        Ok(match StoredBody::deserialize(input)? {
            StoredBody::Text(text) => Bytes::from(text),
            StoredBody::Binary { base64 } => {
                Bytes::from(BASE64.decode(base64).map_err(D::Error::custom)?)
            }
        })
    }
}

mod optional_body {
    //! The form of a body that may be missing.

    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serializer};

    use super::body_text;

    #[derive(Deserialize)]
    struct Present(#[serde(with = "body_text")] Bytes);

    pub(super) fn serialize<S: Serializer>(
        body: &Option<Bytes>,
        out: S,
    ) -> Result<S::Ok, S::Error> {
        match body {
            Some(body) => body_text::serialize(body, out),
            None => out.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        input: D,
    ) -> Result<Option<Bytes>, D::Error> {
        Ok(Option::<Present>::deserialize(input)?.map(|present| present.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(pattern: &str, path: &str, query: &str) -> KeptRequest {
        let mut headers = HeaderMap::new();
        headers.append("x-region", "eu".parse().unwrap());
        headers.append("x-region", "us".parse().unwrap());
        headers.append("authorization", "Bearer secret".parse().unwrap());
        let keep = [HeaderName::from_static("x-region"), HeaderName::from_static("x-other")];
        KeptRequest::new(pattern, (path, Some(query)), &headers, &keep, Bytes::from("{}"))
    }

    fn pairs(map: &BTreeMap<String, String>) -> Vec<(&str, &str)> {
        map.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }

    #[test]
    fn a_request_keeps_decoded_parameters_and_the_chosen_fields_only() {
        let kept = request("/v1/{shop}/orders/{*rest}", "/v1/a%2Fb%20c/orders/x/%7Ey/", "");
        assert_eq!(pairs(&kept.path), [("rest", "x/~y"), ("shop", "a/b c")]);
        assert_eq!(pairs(&kept.headers), [("x-region", "eu, us")]);
        assert_eq!(kept.kept_bytes(), 2 + "x-region".len() + 6 + 4 + 4 + 4 + 5);
    }

    #[test]
    fn the_first_of_several_values_of_a_query_counts() {
        let kept = request("/p", "/p", "a=1&a=2&b=x+y%2Bz&c&=&d=%FF&%61b=%C3%A4&&e=f=g");
        let expected =
            [("", ""), ("a", "1"), ("ab", "\u{e4}"), ("b", "x y+z"), ("c", ""), ("e", "f=g")];
        assert_eq!(pairs(&kept.query), expected);
        assert_eq!(request("/other", "/p/q", "").path, BTreeMap::new());
    }

    #[test]
    fn documents_are_stored_with_every_byte_of_their_bodies() {
        for body in [&b""[..], b"{\"a\": 1.00}", b"\xff\x00\"", "\u{e4}\n".as_bytes()] {
            let body = Bytes::copy_from_slice(body);
            let request = KeptRequest { body: body.clone(), ..request("/{a}", "/b", "c=d") };
            let text = serde_json::to_string(&request).unwrap();
            assert_eq!(serde_json::from_str::<KeptRequest>(&text).unwrap(), request, "{text}");
            for body in [Some(body.clone()), None] {
                let answer = KeptAnswer { status: 201, body, ..KeptAnswer::default() };
                let text = serde_json::to_string(&answer).unwrap();
                assert_eq!(serde_json::from_str::<KeptAnswer>(&text).unwrap(), answer, "{text}");
            }
        }
        assert!(
            serde_json::from_str::<KeptAnswer>(r#"{"status":200,"body":{"base64":"!"}}"#).is_err()
        );
    }
}
