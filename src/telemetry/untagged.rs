//! Why representations of resources are relayed without a tag, as metrics count them.

/// The reason why a representation has no tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UntaggedReason {
    /// It is longer than the limit.
    TooLarge,
    /// It has no length and no end within the limit.
    Streamed,
    /// Tags are made of a member, and it does not have that member.
    NoMember,
    /// No memory was left to read it.
    NoMemory,
}

impl UntaggedReason {
    pub(super) const ALL: [UntaggedReason; 4] = [
        UntaggedReason::TooLarge,
        UntaggedReason::Streamed,
        UntaggedReason::NoMember,
        UntaggedReason::NoMemory,
    ];

    /// Returns the value of the label `reason`.
    pub fn name(self) -> &'static str {
        match self {
            UntaggedReason::TooLarge => "too_large",
            UntaggedReason::Streamed => "streamed",
            UntaggedReason::NoMember => "no_member",
            UntaggedReason::NoMemory => "no_memory",
        }
    }
}
