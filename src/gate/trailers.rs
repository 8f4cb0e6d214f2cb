//! Trailers of gRPC answers, which are stored with the answer.

use http::HeaderMap;

use crate::gate::answer::IDEMPOTENT_REPLAYED;

/// Maximum fields of a trailer section: as many as in a head.
const FIELDS_MAX: usize = 128;

/// Maximum bytes of a trailer section: as many as in the head of an answer over HTTP/2. The section
/// is held in memory and stored.
const BYTES_MAX: usize = 16 * 1024;

/// Bytes that count for each field in addition to its name and value (RFC 9113, section 6.5.2).
const FIELD_BYTES: usize = 32;

/// Returns how many bytes trailers take in memory; `None` if they have too many fields or bytes.
pub(super) fn trailer_bytes(trailers: &HeaderMap) -> Option<usize> {
    let bytes =
        trailers.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD_BYTES).sum();
    (trailers.len() <= FIELDS_MAX && bytes <= BYTES_MAX).then_some(bytes)
}

/// Removes a replay mark that the upstream set. Returns `None` if no trailers are left.
pub(super) fn prepare_trailers(mut trailers: HeaderMap) -> Option<HeaderMap> {
    trailers.remove(IDEMPOTENT_REPLAYED);
    Some(trailers).filter(|trailers| !trailers.is_empty())
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn trailers(count: usize, length: usize) -> HeaderMap {
        let value = HeaderValue::try_from("v".repeat(length)).unwrap();
        (0..count)
            .map(|n| (HeaderName::try_from(format!("x{n:03}")).unwrap(), value.clone()))
            .collect()
    }

    #[test]
    fn trailers_are_bounded_by_count_and_by_bytes() {
        assert_eq!(trailer_bytes(&trailers(1, 10)), Some(4 + 10 + 32));
        assert!(
            trailer_bytes(&trailers(128, 1)).is_some()
                && trailer_bytes(&trailers(129, 1)).is_none()
        );
        let fits = BYTES_MAX - 4 - 32;
        assert_eq!(trailer_bytes(&trailers(1, fits)), Some(BYTES_MAX));
        assert_eq!(trailer_bytes(&trailers(1, fits + 1)), None);
    }

    #[test]
    fn a_replay_mark_of_the_upstream_is_removed_from_the_trailers() {
        let mark = (IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
        assert_eq!(prepare_trailers(HeaderMap::from_iter([mark.clone()])), None);
        let usual = trailers(2, 1);
        let with_mark = usual
            .clone()
            .into_iter()
            .filter_map(|(name, value)| Some((name?, value)))
            .chain([mark])
            .collect();
        assert_eq!(prepare_trailers(with_mark), Some(usual));
    }
}
