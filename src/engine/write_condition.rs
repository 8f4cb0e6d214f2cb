//! The condition of a write on a resource, and what it means for the current version (RFC 9110,
//! section 13.1).

use http::HeaderMap;
use http::header::{IF_MATCH, IF_NONE_MATCH, IF_UNMODIFIED_SINCE};

use super::tag::{EntityTag, TagList};

/// The condition of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteCondition {
    /// No condition.
    Absent,
    /// `If-Match: *`: the resource exists.
    Exists,
    /// `If-Match`: the resource has one of these versions.
    Matches(Vec<EntityTag>),
    /// `If-None-Match: *`: the resource does not exist.
    Creates,
}

/// The condition of a write can't be evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCondition {
    /// Both fields are present.
    #[error("has If-Match and If-None-Match; a write needs one of them")]
    Both,
    /// `If-None-Match` has tags.
    #[error("has tags in If-None-Match; a write may only have If-None-Match: *")]
    TagsToCreate,
    /// A list of tags is not well formed.
    #[error("has an If-Match or If-None-Match that is neither * nor a list of tags in quotes")]
    Malformed,
}

/// The current version of a resource, as a look has found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CurrentVersion {
    /// The resource does not exist.
    Missing,
    /// The resource has this version.
    Tagged(EntityTag),
    /// The resource exists, and its representation has no tag.
    Untagged,
    /// The look has failed.
    Unknown,
}

/// What a write may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteVerdict {
    /// It is sent.
    Send,
    /// It is refused: the resource does not exist.
    Missing,
    /// It is refused: the resource exists, with this version if it is known.
    Exists(Option<EntityTag>),
    /// The resource has this version now, which the write does not name.
    Stale(EntityTag),
    /// It can't be compared.
    Unreadable,
}

impl WriteCondition {
    /// Takes the condition of a write from its fields. `If-Unmodified-Since` beside `If-Match` does
    /// not count (RFC 9110, section 13.1.4), so it is removed too.
    ///
    /// # Errors
    /// See [`InvalidCondition`].
    pub fn take(headers: &mut HeaderMap) -> Result<WriteCondition, InvalidCondition> {
        let condition = WriteCondition::of(headers)?;
        headers.remove(IF_NONE_MATCH);
        if headers.remove(IF_MATCH).is_some() {
            headers.remove(IF_UNMODIFIED_SINCE);
        }
        Ok(condition)
    }

    /// Reads the condition of a write.
    ///
    /// # Errors
    /// See [`InvalidCondition`].
    pub fn of(headers: &HeaderMap) -> Result<WriteCondition, InvalidCondition> {
        let list = |name| TagList::of(headers, name).map_err(|_| InvalidCondition::Malformed);
        match (list(&IF_MATCH)?, list(&IF_NONE_MATCH)?) {
            (None, None) => Ok(WriteCondition::Absent),
            (Some(TagList::Any), None) => Ok(WriteCondition::Exists),
            (Some(TagList::Listed(tags)), None) => Ok(WriteCondition::Matches(tags)),
            (None, Some(TagList::Any)) => Ok(WriteCondition::Creates),
            (None, Some(TagList::Listed(_))) => Err(InvalidCondition::TagsToCreate),
            (Some(_), Some(_)) => Err(InvalidCondition::Both),
        }
    }

    /// Decides what the write may do. Pure and total. A weak tag equals no version, because two
    /// versions may share it.
    pub fn verdict(&self, current: &CurrentVersion) -> WriteVerdict {
        match (self, current) {
            (WriteCondition::Absent, _) => WriteVerdict::Send,
            (WriteCondition::Creates, CurrentVersion::Missing) => WriteVerdict::Send,
            (WriteCondition::Creates, CurrentVersion::Tagged(tag)) => {
                WriteVerdict::Exists(Some(tag.clone()))
            }
            (WriteCondition::Creates, CurrentVersion::Untagged) => WriteVerdict::Exists(None),
            (WriteCondition::Creates, CurrentVersion::Unknown) => WriteVerdict::Unreadable,
            (WriteCondition::Exists | WriteCondition::Matches(_), CurrentVersion::Missing) => {
                WriteVerdict::Missing
            }
            (WriteCondition::Exists, _) => WriteVerdict::Send,
            (WriteCondition::Matches(tags), CurrentVersion::Tagged(current)) => {
                match tags.iter().any(|tag| tag.equals_strongly(current)) {
                    true => WriteVerdict::Send,
                    false => WriteVerdict::Stale(current.clone()),
                }
            }
            (WriteCondition::Matches(_), CurrentVersion::Untagged | CurrentVersion::Unknown) => {
                WriteVerdict::Unreadable
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn fields(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let line = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        lines.iter().map(line).collect()
    }

    fn tag(text: &str) -> EntityTag {
        EntityTag::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_write_names_versions_or_creates_and_nothing_else_is_a_condition() {
        let (both, tags, malformed) = (
            Err(InvalidCondition::Both),
            Err(InvalidCondition::TagsToCreate),
            Err(InvalidCondition::Malformed),
        );
        let matches = |tags: &[&str]| {
            Ok(WriteCondition::Matches(tags.iter().map(|text| tag(text)).collect()))
        };
        for (lines, expected) in [
            (&[][..], Ok(WriteCondition::Absent)),
            (&[("if-match", "*")], Ok(WriteCondition::Exists)),
            (&[("if-match", "\"a\"")], matches(&["\"a\""])),
            (&[("if-match", "\"a\", W/\"b\"")], matches(&["\"a\"", "W/\"b\""])),
            (&[("if-match", "\"a\""), ("if-match", "\"b\"")], matches(&["\"a\"", "\"b\""])),
            (&[("if-match", "")], matches(&[])),
            (&[("if-none-match", "*")], Ok(WriteCondition::Creates)),
            (&[("if-none-match", "\"a\"")], tags.clone()),
            (&[("if-none-match", "")], tags),
            (&[("if-match", "\"a\""), ("if-none-match", "*")], both.clone()),
            (&[("if-match", "*"), ("if-none-match", "\"a\"")], both),
            (&[("if-match", "a")], malformed.clone()),
            (&[("if-match", "*, \"a\"")], malformed.clone()),
            (&[("if-none-match", "a")], malformed),
            (&[("if-unmodified-since", "x")], Ok(WriteCondition::Absent)),
        ] {
            assert_eq!(WriteCondition::of(&fields(lines)), expected, "{lines:?}");
        }
    }

    #[test]
    fn the_upstream_gets_no_condition_that_the_gateway_has_evaluated() {
        let lines = [("if-match", "\"a\""), ("if-unmodified-since", "x"), ("accept", "y")];
        let mut headers = fields(&lines);
        WriteCondition::take(&mut headers).unwrap();
        assert_eq!(headers, fields(&[("accept", "y")]));
        let mut headers = fields(&[("if-none-match", "*"), ("if-unmodified-since", "x")]);
        WriteCondition::take(&mut headers).unwrap();
        assert_eq!(headers, fields(&[("if-unmodified-since", "x")]));
    }

    #[test]
    fn every_condition_has_a_verdict_for_every_version() {
        let (a, b) = (tag("\"a\""), tag("\"b\""));
        let versions = [
            CurrentVersion::Missing,
            CurrentVersion::Tagged(a.clone()),
            CurrentVersion::Untagged,
            CurrentVersion::Unknown,
        ];
        let (send, missing, unreadable) =
            (WriteVerdict::Send, WriteVerdict::Missing, WriteVerdict::Unreadable);
        let stale = || WriteVerdict::Stale(a.clone());
        let matches = |tags: &[EntityTag]| WriteCondition::Matches(tags.to_vec());
        for (condition, expected) in [
            (WriteCondition::Absent, [send.clone(), send.clone(), send.clone(), send.clone()]),
            (WriteCondition::Exists, [missing.clone(), send.clone(), send.clone(), send.clone()]),
            (
                WriteCondition::Creates,
                [
                    send.clone(),
                    WriteVerdict::Exists(Some(a.clone())),
                    WriteVerdict::Exists(None),
                    unreadable.clone(),
                ],
            ),
            (
                matches(&[b.clone(), a.clone()]),
                [missing.clone(), send, unreadable.clone(), unreadable.clone()],
            ),
            (matches(&[b]), [missing.clone(), stale(), unreadable.clone(), unreadable.clone()]),
            (
                matches(&[tag("W/\"a\"")]),
                [missing.clone(), stale(), unreadable.clone(), unreadable.clone()],
            ),
            (matches(&[]), [missing, stale(), unreadable.clone(), unreadable]),
        ] {
            for (version, expected) in versions.iter().zip(expected) {
                assert_eq!(condition.verdict(version), expected, "{condition:?} {version:?}");
            }
        }
    }
}
