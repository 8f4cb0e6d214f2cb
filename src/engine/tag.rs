//! Entity tags, and the conditions of requests that compare them (RFC 9110, sections 8.8.3 and 13).
//!
//! Danger: a tag stands for one version of a resource. If two versions had the same tag, a client
//! would keep an old version, or overwrite a version that it never saw. So a tag is a whole
//! SHA-256, and a list of tags that is not well formed matches no version.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use http::header::{
    IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use sha2::{Digest, Sha256};

use super::resource::VersionSource;
use crate::key::{Document, PartHasher};

/// The fields of a request that make it conditional, or ask for a part of a representation.
pub static CONDITIONAL_FIELDS: [HeaderName; 6] =
    [IF_MATCH, IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE, IF_RANGE, RANGE];

/// An entity tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntityTag {
    is_weak: bool,
    /// The opaque tag, with its quotes.
    opaque: Box<[u8]>,
}

/// The value of `If-Match` or `If-None-Match`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TagList {
    /// `*`: every version.
    Any,
    /// These tags; none in an empty list.
    Listed(Vec<EntityTag>),
}

/// A list of tags is not well formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the list of entity tags is not well formed")]
pub struct MalformedTagList;

/// The conditions of a read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadConditions {
    if_match: Option<TagList>,
    if_none_match: Option<TagList>,
}

/// How the read of a resource that has a representation is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadVerdict {
    /// With the representation.
    Whole,
    /// With 304: the client has this version.
    NotModified,
    /// With 412: the client wants another version.
    Failed,
}

impl EntityTag {
    /// Returns the strong tag of a representation. Returns `None` if its body has no such member,
    /// or if the upstream makes the tags. A member that is `null` counts as absent.
    pub fn of_representation(source: &VersionSource, body: &[u8]) -> Option<EntityTag> {
        match source {
            VersionSource::Hash => Some(EntityTag::of_digest(&Sha256::digest(body))),
            VersionSource::Member(pointer) => {
                let mut hasher = PartHasher::new("resource version");
                let document = Document::parse(body).ok()?;
                document
                    .hash_member(&mut hasher, pointer)
                    .then(|| EntityTag::of_digest(&hasher.finish()))
            }
            VersionSource::Upstream => None,
        }
    }

    fn of_digest(digest: &[u8]) -> EntityTag {
        let opaque = format!("\"{}\"", BASE64URL.encode(digest));
        EntityTag { is_weak: false, opaque: opaque.into_bytes().into() }
    }

    /// Parses the value of an `ETag` field.
    pub fn parse(value: &[u8]) -> Option<EntityTag> {
        let (tag, rest) = EntityTag::split_from(value.trim_ascii())?;
        rest.is_empty().then_some(tag)
    }

    /// Splits a tag from the start of a text.
    fn split_from(text: &[u8]) -> Option<(EntityTag, &[u8])> {
        let (is_weak, text) = match text.strip_prefix(b"W/") {
            Some(text) => (true, text),
            None => (false, text),
        };
        let inside = text.strip_prefix(b"\"")?;
        let length = inside.iter().position(|byte| *byte == b'"')?;
        // `etagc` has no space, no control characters and no DEL.
        let is_valid = |byte: &u8| *byte > b' ' && *byte != 0x7f;
        if !inside[..length].iter().all(is_valid) {
            return None;
        }
        let (opaque, rest) = text.split_at(length + 2);
        Some((EntityTag { is_weak, opaque: opaque.into() }, rest))
    }

    /// Compares strongly (RFC 9110, section 8.8.3.2): a weak tag equals no tag.
    pub fn equals_strongly(&self, other: &EntityTag) -> bool {
        !self.is_weak && !other.is_weak && self.opaque == other.opaque
    }

    /// Compares weakly: a weak tag equals the strong tag with the same text.
    pub fn equals_weakly(&self, other: &EntityTag) -> bool {
        self.opaque == other.opaque
    }

    /// Returns the value of an `ETag` field. Each byte of a tag is permitted in a field value, so
    /// this returns `None` for no tag.
    pub fn to_field(&self) -> Option<HeaderValue> {
        let weak: &[u8] = if self.is_weak { b"W/" } else { b"" };
        HeaderValue::from_bytes(&[weak, &self.opaque].concat()).ok()
    }
}

impl TagList {
    /// Parses the lines of a field. Returns `None` if there is no line.
    ///
    /// # Errors
    /// [`MalformedTagList`] if the lines together are neither `*` nor a list of tags.
    pub fn of(headers: &HeaderMap, name: &HeaderName) -> Result<Option<TagList>, MalformedTagList> {
        let lines: Vec<&[u8]> =
            headers.get_all(name).iter().map(|value| value.as_bytes().trim_ascii()).collect();
        if lines.is_empty() {
            return Ok(None);
        }
        if lines == [b"*"] {
            return Ok(Some(TagList::Any));
        }
        let mut tags = Vec::new();
        for line in lines {
            read_line(line, &mut tags)?;
        }
        Ok(Some(TagList::Listed(tags)))
    }

    /// Returns whether a tag in the list equals this tag in the strong comparison, or the list is
    /// `*`.
    pub fn has_strongly(&self, tag: &EntityTag) -> bool {
        self.has(|listed| listed.equals_strongly(tag))
    }

    /// Returns whether a tag in the list equals this tag in the weak comparison, or the list is
    /// `*`.
    pub fn has_weakly(&self, tag: &EntityTag) -> bool {
        self.has(|listed| listed.equals_weakly(tag))
    }

    fn has(&self, equals: impl Fn(&EntityTag) -> bool) -> bool {
        match self {
            TagList::Any => true,
            TagList::Listed(tags) => tags.iter().any(equals),
        }
    }
}

/// Reads the tags of one line. Elements may be empty (RFC 9110, section 5.6.1.2), and a comma may
/// be part of a tag.
fn read_line(line: &[u8], tags: &mut Vec<EntityTag>) -> Result<(), MalformedTagList> {
    let mut rest = line;
    loop {
        while let Some((b' ' | b'\t' | b',', after)) = rest.split_first() {
            rest = after;
        }
        if rest.is_empty() {
            return Ok(());
        }
        let (tag, after) = EntityTag::split_from(rest).ok_or(MalformedTagList)?;
        tags.push(tag);
        rest = after.trim_ascii_start();
        if !matches!(rest.first(), None | Some(b',')) {
            return Err(MalformedTagList);
        }
    }
}

impl ReadConditions {
    /// Takes the conditions of a read from its fields. Also removes the other
    /// [`CONDITIONAL_FIELDS`], which compare dates or ask for a part.
    pub fn take(headers: &mut HeaderMap) -> ReadConditions {
        // A list that is not well formed matches nothing: the client gets no 304 for it.
        let list = |name| TagList::of(headers, name).unwrap_or(Some(TagList::Listed(Vec::new())));
        let (if_match, if_none_match) = (list(&IF_MATCH), list(&IF_NONE_MATCH));
        for name in &CONDITIONAL_FIELDS {
            headers.remove(name);
        }
        ReadConditions { if_match, if_none_match }
    }

    /// Decides how the read of a representation with this tag is answered, in the order of RFC
    /// 9110, section 13.2.2.
    pub fn verdict(&self, current: &EntityTag) -> ReadVerdict {
        match (&self.if_match, &self.if_none_match) {
            (Some(wanted), _) if !wanted.has_strongly(current) => ReadVerdict::Failed,
            (_, Some(known)) if known.has_weakly(current) => ReadVerdict::NotModified,
            _ => ReadVerdict::Whole,
        }
    }
}

#[cfg(test)]
mod tests;
