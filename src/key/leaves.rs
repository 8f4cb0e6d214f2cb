//! Digests of a request's members, one per leaf value, so that a refusal can name the places in
//! which a request differs from the first request.
//!
//! Danger: an amount is quickly guessed from its digest. So digests never leave the store. Each
//! record has its own salt, so that equal values of two records have different digests. Only the
//! places of differences are disclosed, and only to the caller of the first request.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{BodyHash, Document, PartHasher};

/// Most leaves of one request. A request with more is a list or a file, and a pointer into it helps
/// nobody.
pub const LEAVES_MAX: usize = 64;
/// Longest pointer, in bytes.
pub const LEAF_POINTER_BYTES_MAX: usize = 128;

/// Bytes of a digest. Two different values have equal digests with a probability of 2^-128. In that
/// case a refusal does not name their difference.
const DIGEST_BYTES: usize = 16;

/// Random bytes for a record's digests.
pub type Salt = [u8; 16];

/// Digests of the leaves of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafDigests {
    salt: Salt,
    /// Digests by JSON pointer. The parts that are not JSON have the names `method`, `path`,
    /// `query` and `body`, which are no pointers.
    digests: BTreeMap<String, [u8; DIGEST_BYTES]>,
}

/// The parts of a request that have digests.
#[derive(Debug, Clone, Copy)]
pub struct RequestParts<'a> {
    /// The method.
    pub method: &'a str,
    /// The path, as received.
    pub path: &'a str,
    /// The query, as received.
    pub query: Option<&'a str>,
    /// The body.
    pub body: &'a [u8],
    /// The part of the body in the fingerprint. Other parts have no leaves.
    pub how: BodyHash<'a>,
}

impl LeafDigests {
    /// Computes the digests of a request; `None` if it has too many leaves, a pointer that is too
    /// long, or a form body.
    pub fn of(request: &RequestParts<'_>, salt: Salt) -> Option<LeafDigests> {
        let mut leaves = LeafDigests { salt, digests: BTreeMap::new() };
        leaves.add("method", request.method.as_bytes());
        leaves.add("path", request.path.as_bytes());
        if let Some(query) = request.query {
            leaves.add("query", query.as_bytes());
        }
        match request.how {
            BodyHash::None => {}
            BodyHash::Form { .. } => return None,
            BodyHash::Json { is_json: true, ignore } => match Document::parse(request.body) {
                Ok(document) => {
                    for (pointer, leaf) in document.without(ignore).leaves(LEAVES_MAX)? {
                        (pointer.len() <= LEAF_POINTER_BYTES_MAX).then_some(())?;
                        let mut hasher = leaves.hasher();
                        leaf.hash(&mut hasher);
                        leaves.digests.insert(pointer, shortened(hasher));
                    }
                }
                Err(_) => leaves.add("body", request.body),
            },
            BodyHash::Json { is_json: false, .. } | BodyHash::Raw => {
                leaves.add("body", request.body)
            }
        }
        Some(leaves)
    }

    /// Returns the places in which another request differs, sorted; `None` if the other request has
    /// no digests.
    pub fn differing(&self, other: &RequestParts<'_>) -> Option<Vec<String>> {
        let other = LeafDigests::of(other, self.salt)?;
        // If only one of the two bodies has a JSON value, the place of the difference is the whole
        // body.
        if self.digests.contains_key("body") != other.digests.contains_key("body") {
            return Some(vec!["body".to_owned()]);
        }
        let mut differing: Vec<String> = self
            .digests
            .iter()
            .filter(|(at, digest)| other.digests.get(*at) != Some(digest))
            .map(|(at, _)| at.clone())
            .collect();
        differing.extend(other.digests.into_keys().filter(|at| !self.digests.contains_key(at)));
        differing.sort();
        Some(differing)
    }

    /// Encodes the salt, and then for each leaf the length of its pointer, the pointer and the
    /// digest.
    pub fn encode(&self) -> Bytes {
        let mut out =
            BytesMut::with_capacity(self.salt.len() + self.digests.len() * (DIGEST_BYTES + 24));
        out.put_slice(&self.salt);
        for (pointer, digest) in &self.digests {
            out.put_u8(u8::try_from(pointer.len()).unwrap_or(u8::MAX));
            out.put_slice(pointer.as_bytes());
            out.put_slice(digest);
        }
        out.freeze()
    }

    /// Decodes the output of [`LeafDigests::encode`]; `None` for other bytes.
    pub fn decode(mut stored: &[u8]) -> Option<LeafDigests> {
        let (salt, rest) = stored.split_first_chunk::<16>()?;
        stored = rest;
        let mut digests = BTreeMap::new();
        while stored.has_remaining() {
            let length = usize::from(stored.get_u8());
            let (pointer, rest) = stored.split_at_checked(length)?;
            let (digest, rest) = rest.split_first_chunk::<DIGEST_BYTES>()?;
            digests.insert(std::str::from_utf8(pointer).ok()?.to_owned(), *digest);
            stored = rest;
        }
        Some(LeafDigests { salt: *salt, digests })
    }

    fn add(&mut self, name: &str, value: &[u8]) {
        let mut hasher = self.hasher();
        hasher.part(value);
        self.digests.insert(name.to_owned(), shortened(hasher));
    }

    fn hasher(&self) -> PartHasher {
        let mut hasher = PartHasher::new("leaf");
        hasher.part(&self.salt);
        hasher
    }
}

fn shortened(hasher: PartHasher) -> [u8; DIGEST_BYTES] {
    let mut digest = [0; DIGEST_BYTES];
    digest.copy_from_slice(&hasher.finish()[..DIGEST_BYTES]);
    digest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Pointer;

    const SALT: Salt = [7; 16];

    fn request_parts<'a>(body: &'a str, ignore: &'a [Pointer]) -> RequestParts<'a> {
        let how = BodyHash::Json { is_json: true, ignore };
        RequestParts {
            method: "POST",
            path: "/v1/payments",
            query: None,
            body: body.as_bytes(),
            how,
        }
    }

    fn differing(first: &str, second: &str) -> Vec<String> {
        let stored = LeafDigests::of(&request_parts(first, &[]), SALT).unwrap().encode();
        LeafDigests::decode(&stored).unwrap().differing(&request_parts(second, &[])).unwrap()
    }

    #[test]
    fn what_differs_is_named_by_its_pointer() {
        for (first, second, at) in [
            (r#"{"amount":1}"#, r#"{ "amount": 1.0 }"#, vec![]),
            (r#"{"amount":1,"to":"a"}"#, r#"{"to":"b","amount":1}"#, vec!["/to"]),
            (
                r#"{"a":{"b":[1,2]},"c~/d":1}"#,
                r#"{"a":{"b":[1,3,4]},"c~/d":2}"#,
                vec!["/a/b/1", "/a/b/2", "/c~0~1d"],
            ),
            (r#"{"a":1}"#, r#"{"a":{}}"#, vec!["/a"]),
            (r#"{"a":null}"#, r#"{}"#, vec!["", "/a"]),
            (r#"{"a":[]}"#, r#"{}"#, vec!["", "/a"]),
            (r#"{"a":{}}"#, r#"{"b":{}}"#, vec!["/a", "/b"]),
            (r#"{"a":"1"}"#, r#"{"a":1}"#, vec!["/a"]),
            ("9007199254740993", "9007199254740992", vec![""]),
            (r#"{"a":1}"#, "a=1", vec!["body"]),
            ("a=1", "a=2", vec!["body"]),
        ] {
            assert_eq!(differing(first, second), at, "{first} {second}");
        }
    }

    #[test]
    fn method_path_and_query_are_named_and_ignored_members_are_not() {
        let ignore = [Pointer::parse("/sent_at").unwrap(), Pointer::parse("/items/0").unwrap()];
        let (first, second) = (r#"{"sent_at":1,"items":[1,5]}"#, r#"{"sent_at":2,"items":[2,5]}"#);
        let leaves = LeafDigests::of(&request_parts(first, &ignore), SALT).unwrap();
        assert_eq!(leaves.differing(&request_parts(second, &ignore)), Some(vec![]));
        let elsewhere = RequestParts {
            method: "PATCH",
            path: "/v1/refunds",
            query: Some("a=1"),
            ..request_parts(first, &ignore)
        };
        assert_eq!(leaves.differing(&elsewhere).unwrap(), ["method", "path", "query"]);
        let unread = RequestParts { how: BodyHash::None, ..request_parts("x", &[]) };
        assert_eq!(
            LeafDigests::of(&unread, SALT)
                .unwrap()
                .differing(&RequestParts { body: b"y", ..unread }),
            Some(vec![])
        );
    }

    #[test]
    fn too_many_leaves_too_long_pointers_and_forms_are_not_kept() {
        let list = |count: usize| format!("[{}]", vec!["1"; count].join(","));
        assert!(LeafDigests::of(&request_parts(&list(LEAVES_MAX), &[]), SALT).is_some());
        assert_eq!(LeafDigests::of(&request_parts(&list(LEAVES_MAX + 1), &[]), SALT), None);
        let ignored = [Pointer::parse("/0").unwrap()];
        assert!(
            LeafDigests::of(&request_parts(&list(LEAVES_MAX + 1), &ignored), SALT).is_some(),
            "what is ignored is no leaf"
        );
        let member = |length: usize| format!("{{\"{}\":1}}", "m".repeat(length));
        assert!(
            LeafDigests::of(&request_parts(&member(LEAF_POINTER_BYTES_MAX - 1), &[]), SALT)
                .is_some()
        );
        assert_eq!(
            LeafDigests::of(&request_parts(&member(LEAF_POINTER_BYTES_MAX), &[]), SALT),
            None
        );
        let form =
            RequestParts { how: BodyHash::Form { boundary: "b" }, ..request_parts("x", &[]) };
        assert_eq!(LeafDigests::of(&form, SALT), None);
    }

    #[test]
    fn digests_say_nothing_of_values_and_two_records_of_one_value_look_different() {
        let body = r#"{"card":"4242424242424242"}"#;
        let stored = LeafDigests::of(&request_parts(body, &[]), SALT).unwrap().encode();
        assert!(!String::from_utf8_lossy(&stored).contains("4242"));
        assert_ne!(
            stored[16..],
            LeafDigests::of(&request_parts(body, &[]), [8; 16]).unwrap().encode()[16..]
        );
    }

    #[test]
    fn what_is_damaged_is_not_read() {
        let stored = LeafDigests::of(&request_parts(r#"{"a":1}"#, &[]), SALT).unwrap().encode();
        assert_eq!(LeafDigests::decode(&stored[..10]), None);
        assert_eq!(LeafDigests::decode(&stored[..stored.len() - 1]), None);
        assert_eq!(LeafDigests::decode(&[&stored[..], &[1, 0xff]].concat()), None);
    }
}
