//! The changes of the outbox that relays and operators make.

use std::time::Duration;

use crate::store::dead_letters::{Burial, DeadLetterId, RoundChange};
use crate::store::outbox::{DeliveryAttempts, EventContent, EventKey, RelayFence};
use crate::store::outbox_contents::StoredContents;

/// A change of the outbox.
pub(super) enum OutboxChange {
    /// See [`crate::store::Outbox::own_partition`].
    Own { fence: RelayFence, over: Option<RelayFence> },
    /// See [`crate::store::Outbox::postpone`].
    Postpone {
        fence: RelayFence,
        event: EventKey,
        round: u32,
        attempts: DeliveryAttempts,
        pause: Duration,
    },
    /// See [`crate::store::Outbox::replace_content`].
    ReplaceContent { fence: RelayFence, event: EventKey, round: u32, content: EventContent },
    /// See [`crate::store::Outbox::remove`].
    Remove { fence: RelayFence, event: EventKey, round: u32 },
    /// See [`crate::store::Outbox::bury`].
    Bury { fence: RelayFence, event: EventKey, round: u32, burial: Burial },
    /// See [`crate::store::DeadLetters::requeue`].
    Requeue { id: DeadLetterId, round: RoundChange },
    /// See [`crate::store::DeadLetters::discard`].
    Discard { id: DeadLetterId },
    /// See [`crate::store::OutboxContents::replace_contents`].
    Replace { before: StoredContents, after: StoredContents },
}
