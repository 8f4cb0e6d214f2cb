//! The last versions of a resource, which a merge compares.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::policy::Policy;
use super::settle::Next;
use super::tag::EntityTag;
use crate::key::MemberDigests;
use crate::record::{Extras, Fence, Lifetime, PrivateContent, Record, State, Version};

/// Most versions that are kept for one resource.
pub const TAGS_MAX: usize = 8;
/// Most bytes that they take together. Larger representations are kept in fewer versions.
const HISTORY_BYTES_MAX: usize = 256 << 10;
/// The format of the encoded history.
const FORMAT: u8 = 1;

/// The last tags of a resource that clients got, the oldest first, each with the digests of its
/// version.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TagHistory(Vec<KeptTag>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct KeptTag {
    /// The value of the `ETag` field.
    tag: Bytes,
    /// Encoded [`MemberDigests`].
    digests: Bytes,
}

impl TagHistory {
    /// Adds a version as the newest. A tag that the history has already becomes the newest, too.
    /// Returns `false` if the version is too large to be kept.
    pub fn keep(&mut self, tag: &EntityTag, digests: &MemberDigests) -> bool {
        let Some(field) = tag.to_field() else { return false };
        let added =
            KeptTag { tag: Bytes::copy_from_slice(field.as_bytes()), digests: digests.encode() };
        if added.bytes() > HISTORY_BYTES_MAX {
            return false;
        }
        self.0.retain(|kept| kept.tag != added.tag);
        self.0.push(added);
        while self.0.len() > TAGS_MAX
            || self.0.iter().map(KeptTag::bytes).sum::<usize>() > HISTORY_BYTES_MAX
        {
            self.0.remove(0);
        }
        true
    }

    /// Returns whether the history has this tag.
    #[cfg(test)]
    fn has(&self, tag: &EntityTag) -> bool {
        let field = tag.to_field();
        self.0.iter().any(|kept| field.as_ref().is_some_and(|field| kept.tag == field.as_bytes()))
    }

    /// Returns the digests of the newest version with one of these tags.
    pub fn find(&self, tags: &[EntityTag]) -> Option<MemberDigests> {
        let is_named = |kept: &&KeptTag| {
            EntityTag::parse(&kept.tag)
                .is_some_and(|kept| tags.iter().any(|tag| tag.equals_strongly(&kept)))
        };
        let kept = self.0.iter().rev().find(is_named)?;
        MemberDigests::decode(&kept.digests)
    }

    /// Encodes the format, and then for each version the lengths and the bytes of its tag and of
    /// its digests.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(FORMAT);
        for KeptTag { tag, digests } in &self.0 {
            for part in [tag, digests] {
                out.put_u32(u32::try_from(part.len()).unwrap_or(u32::MAX));
                out.put_slice(part);
            }
        }
        out.freeze()
    }

    /// Decodes the output of [`TagHistory::encode`]; `None` for other bytes.
    pub fn decode(mut stored: Bytes) -> Option<TagHistory> {
        if !stored.has_remaining() || stored.get_u8() != FORMAT {
            return None;
        }
        let mut text = || {
            let length = stored.try_get_u32().ok()? as usize;
            (length <= stored.len()).then(|| stored.split_to(length))
        };
        let mut history = TagHistory::default();
        while let Some(tag) = text() {
            history.0.push(KeptTag { tag, digests: text()? });
        }
        (!stored.has_remaining() && history.0.len() <= TAGS_MAX).then_some(history)
    }
}

impl KeptTag {
    fn bytes(&self) -> usize {
        self.tag.len() + self.digests.len()
    }
}

/// Returns the record of a resource's versions, over the version of the record that it replaces.
/// `fence` and `fresh` are random.
pub fn kept_versions(
    history: &TagHistory,
    over: Option<Version>,
    (fence, fresh): (Fence, Version),
    now_unix_ms: u64,
    policy: &Policy,
    keep: Duration,
) -> Next {
    let content = PrivateContent::Open(history.encode());
    Next {
        record: Record {
            version: over.map_or(fresh, Version::next),
            fence,
            route: policy.route.clone(),
            fingerprint: None,
            caller: None,
            opened_unix_ms: now_unix_ms,
            kept: None,
            publication: None,
            extras: Extras::default(),
            state: State::Versions { content },
        },
        lifetime: Lifetime { keep, due: None, tombstone: None },
        announcement: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(text: &str) -> EntityTag {
        EntityTag::parse(format!("\"{text}\"").as_bytes()).unwrap()
    }

    fn digests(value: usize) -> MemberDigests {
        MemberDigests::of(format!("{{\"n\":{value}}}").as_bytes(), [3; 16]).unwrap()
    }

    #[test]
    fn the_last_eight_tags_are_kept_once_each() {
        let mut history = TagHistory::default();
        for n in 0..10 {
            assert!(history.keep(&tag(&n.to_string()), &digests(n)));
            assert!(history.keep(&tag(&n.to_string()), &digests(n)), "it is there once");
        }
        let history = TagHistory::decode(history.encode()).unwrap();
        assert_eq!(history.find(&[tag("1")]), None);
        assert_eq!(history.find(&[tag("1"), tag("2")]), Some(digests(2)));
        assert_eq!(history.find(&[tag("2"), tag("9")]), Some(digests(9)), "the newest");
        let weak = EntityTag::parse(b"W/\"9\"").unwrap();
        assert_eq!(history.find(&[weak]), None, "a weak tag names no version");
        assert!(history.has(&tag("9")) && !history.has(&tag("0")));
    }

    #[test]
    fn a_tag_that_is_given_out_again_is_the_newest() {
        let mut history = TagHistory::default();
        for n in (0..8).chain([0, 8]) {
            history.keep(&tag(&n.to_string()), &digests(n));
        }
        assert!(history.has(&tag("0")) && !history.has(&tag("1")));
    }

    #[test]
    fn large_versions_leave_room_for_fewer() {
        let member = |n: usize| format!("\"{}{n}\":1", "x".repeat(240));
        let members: Vec<String> = (0..500).map(member).collect();
        let large = format!("{{{}}}", members.join(","));
        let digests = MemberDigests::of(large.as_bytes(), [3; 16]).unwrap();
        let mut history = TagHistory::default();
        for n in 0..4 {
            assert!(history.keep(&tag(&n.to_string()), &digests));
        }
        assert!(history.encode().len() <= HISTORY_BYTES_MAX + 100);
        assert!(history.has(&tag("3")) && !history.has(&tag("0")));
    }

    #[test]
    fn other_bytes_are_no_history() {
        let mut history = TagHistory::default();
        history.keep(&tag("a"), &digests(1));
        let encoded = history.encode();
        for length in 0..encoded.len() {
            let cut = TagHistory::decode(encoded.slice(..length));
            assert!(cut.is_none_or(|cut| cut == TagHistory::default()), "{length}");
        }
        assert_eq!(TagHistory::decode(Bytes::from_static(b"\x02")), None);
        assert_eq!(TagHistory::decode([&encoded[..], b"\x01"].concat().into()), None);
    }
}
