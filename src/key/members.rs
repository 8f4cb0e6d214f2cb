//! Digests of the members of a representation, and the rule that compares a merge patch (RFC 7396)
//! with two versions of it.
//!
//! Danger: a value is quickly guessed from its digest. So each version has its own salt, and only
//! the places of conflicts are disclosed.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::canonical::{Members, Node};
use super::{Document, PartHasher, Salt};

/// Most members of a representation with digests, at all depths together.
pub const MEMBERS_MAX: usize = 512;
/// Longest representation with digests, in bytes. Each member's digest covers all that is below it,
/// so the cost grows with the depth, too.
const REPRESENTATION_BYTES_MAX: usize = 1 << 20;
/// Longest pointer to a member, in bytes. Its length is stored in one byte.
const POINTER_BYTES_MAX: usize = 255;
/// Most members that a conflict names.
const CONFLICTS_MAX: usize = 32;
/// Bytes of a digest. Two different values have equal digests with a probability of 2^-128.
const DIGEST_BYTES: usize = 16;

/// Digests of all members of a JSON object, at every depth. An array is one value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberDigests {
    salt: Salt,
    /// By JSON pointer.
    members: BTreeMap<String, MemberDigest>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct MemberDigest {
    /// Of the whole value.
    value: [u8; DIGEST_BYTES],
    is_object: bool,
}

/// What becomes of a patch for an earlier version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MergeVerdict {
    /// It changes no member that has changed since: it can be applied to the current version.
    Apply,
    /// It changes these members, which have changed since. Sorted pointers, at most 32.
    Conflict(Vec<String>),
    /// The patch or a version can't be compared.
    Unclear,
}

impl MemberDigests {
    /// Computes the digests of a representation. Returns `None` if it is not a JSON object with
    /// one unambiguous value, has more than [`MEMBERS_MAX`] members, or is too long.
    pub fn of(representation: &[u8], salt: Salt) -> Option<MemberDigests> {
        if representation.len() > REPRESENTATION_BYTES_MAX {
            return None;
        }
        let document = Document::parse(representation).ok()?;
        let mut digests = MemberDigests { salt, members: BTreeMap::new() };
        digests.add("", document.members()?)?;
        Some(digests)
    }

    fn add(&mut self, above: &str, members: Members<'_, '_>) -> Option<()> {
        for (name, value) in members {
            let pointer = pointer(above, name);
            if pointer.len() > POINTER_BYTES_MAX || self.members.len() >= MEMBERS_MAX {
                return None;
            }
            let below = value.members();
            let digest = MemberDigest { value: self.digest(&value), is_object: below.is_some() };
            self.members.insert(pointer.clone(), digest);
            self.add(&pointer, below.unwrap_or_default())?;
        }
        Some(())
    }

    fn digest(&self, value: &Node<'_, '_>) -> [u8; DIGEST_BYTES] {
        let mut hasher = PartHasher::new("resource member");
        hasher.part(&self.salt);
        value.hash(&mut hasher);
        let mut digest = [0; DIGEST_BYTES];
        digest.copy_from_slice(&hasher.finish()[..DIGEST_BYTES]);
        digest
    }

    /// Decides whether a merge patch, which was made for the version with these digests, may be
    /// applied to the current version. Pure and total.
    ///
    /// It may if no member that it names has changed: below such a member any change counts, and
    /// above it only that a value became an object, or stopped being one. A patch with duplicate
    /// members has no unambiguous value, and is never applied.
    pub fn merge(&self, patch: &[u8], current: &[u8]) -> MergeVerdict {
        let Ok(patch) = Document::parse(patch) else { return MergeVerdict::Unclear };
        let (Some(named), Some(current)) = (patch.members(), MemberDigests::of(current, self.salt))
        else {
            return MergeVerdict::Unclear;
        };
        let mut conflicts = Vec::new();
        self.compare("", named, &current, &mut conflicts);
        if conflicts.is_empty() {
            return MergeVerdict::Apply;
        }
        conflicts.sort();
        conflicts.truncate(CONFLICTS_MAX);
        MergeVerdict::Conflict(conflicts)
    }

    fn compare(
        &self,
        above: &str,
        named: Members<'_, '_>,
        current: &MemberDigests,
        conflicts: &mut Vec<String>,
    ) {
        for (name, value) in named {
            let pointer = pointer(above, name);
            let (before, now) = (self.members.get(&pointer), current.members.get(&pointer));
            let is_object = |member: Option<&MemberDigest>| member.is_some_and(|it| it.is_object);
            match value.members() {
                // The patch changes members of the object, and leaves its others.
                Some(below) if is_object(before) && is_object(now) => {
                    self.compare(&pointer, below, current, conflicts);
                }
                // It replaces, adds or removes the whole value.
                Some(_) | None if before != now => conflicts.push(pointer),
                Some(_) | None => {}
            }
        }
    }

    /// Encodes the salt, and then for each member the length of its pointer, the pointer, whether
    /// it is an object, and the digest.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.salt.len() + self.members.len() * 48);
        out.put_slice(&self.salt);
        for (pointer, digest) in &self.members {
            out.put_u8(u8::try_from(pointer.len()).unwrap_or(u8::MAX));
            out.put_slice(pointer.as_bytes());
            out.put_u8(u8::from(digest.is_object));
            out.put_slice(&digest.value);
        }
        out.freeze()
    }

    /// Decodes the output of [`MemberDigests::encode`]; `None` for other bytes.
    pub fn decode(stored: &[u8]) -> Option<MemberDigests> {
        let (salt, mut rest) = stored.split_first_chunk::<16>()?;
        let mut members = BTreeMap::new();
        while rest.has_remaining() {
            let length = usize::from(rest.get_u8());
            let (pointer, after) = rest.split_at_checked(length)?;
            let (is_object, after) = after.split_first()?;
            let (value, after) = after.split_first_chunk::<DIGEST_BYTES>()?;
            let is_object = [false, true].get(usize::from(*is_object))?;
            let digest = MemberDigest { value: *value, is_object: *is_object };
            let pointer = std::str::from_utf8(pointer).ok()?.to_owned();
            if members.len() >= MEMBERS_MAX || members.insert(pointer, digest).is_some() {
                return None;
            }
            rest = after;
        }
        Some(MemberDigests { salt: *salt, members })
    }
}

/// Returns the pointer to a member (RFC 6901).
fn pointer(above: &str, name: &str) -> String {
    format!("{above}/{}", name.replace('~', "~0").replace('/', "~1"))
}

#[cfg(test)]
mod tests;
