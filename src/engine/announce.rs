//! Announcements: which changes of an operation make events.
//!
//! A claim stores what it announces. [`announce`] compares each later change with that. It is the
//! only place that decides whether a change makes events, so a change that a gateway, a probe or an
//! operator makes follows the same rules.

use std::sync::Arc;

use http::StatusCode;

use super::admit::ClaimOver;
use crate::record::{AnnouncedState, Announcements, Publication, Record, Settler, State};

/// A change that sinks are notified of.
#[derive(Debug, Clone, PartialEq)]
pub struct Announcement {
    /// The rules of the operation.
    pub announcements: Arc<Announcements>,
    /// The new state.
    pub state: AnnouncedState,
    /// The status of the result, or of the answer that released the operation.
    pub status: Option<StatusCode>,
    /// The source of the result, if the operation is completed.
    pub settled_by: Option<SettledBy>,
}

/// The source of a result, as events name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SettledBy {
    /// The upstream's answer to the attempt.
    Upstream,
    /// The upstream's answer to a probe.
    Probe,
    /// An operator.
    Operator,
    /// The upstream's answer to an attempt that was already counted as lost: the operation was
    /// uncertain before.
    Claimant,
}

impl SettledBy {
    /// Returns the name in events.
    pub fn name(self) -> &'static str {
        match self {
            SettledBy::Upstream => "upstream",
            SettledBy::Probe => "probe",
            SettledBy::Operator => "operator",
            SettledBy::Claimant => "claimant",
        }
    }
}

/// Returns the publication that a claim stores.
///
/// A claim over an uncertain record continues its operation, so it keeps the publication `current`
/// of that record, also if that is `None`. Every other claim begins a new operation, with the
/// publication `new` of the configuration.
pub fn publication_of_claim(
    over: ClaimOver,
    current: Option<&Publication>,
    new: Option<&Publication>,
) -> Option<Publication> {
    match over {
        ClaimOver::Uncertain { .. } => current.cloned(),
        ClaimOver::Nothing | ClaimOver::Marker(_) => new.cloned(),
    }
}

/// Returns the rules for the events of a change that keeps a saga unsettled.
pub fn announcements_of_saga(record: &Record) -> Option<&Arc<Announcements>> {
    match (&record.state, &record.publication) {
        (State::Saga { .. }, Some(Publication::Open(announcements))) => Some(announcements),
        _ => None,
    }
}

/// Returns what a change announces, and gives `record` its publication. `record` is written over
/// `before`. `answered` is the status that the upstream answered to the attempt.
///
/// - Completed: always.
/// - Uncertain: once per operation.
/// - Released: after an answer that shows that nothing was done, and from an uncertain record. A
///   claim that was given up makes no event, because no event announced its operation. A saga that
///   was given up has failed, because its start is an event.
///
/// What happens to a saga before its end is announced by its content: see
/// [`announcements_of_saga`].
///
/// A sealed publication stays in the record: whoever writes the record must refuse to.
pub(super) fn announce(
    record: &mut Record,
    before: &Record,
    answered: Option<StatusCode>,
) -> Option<Announcement> {
    let announcements = match before.publication.as_ref()? {
        Publication::Open(announcements) => announcements,
        sealed @ Publication::Sealed(_) => {
            record.publication = Some(sealed.clone());
            return None;
        }
    };
    let was_uncertain = matches!(before.state, State::Uncertain { .. });
    let is_uncertain = matches!(record.state, State::Uncertain { .. });
    record.publication = record.state.is_unsettled().then(|| {
        let mut announcements = announcements.clone();
        if is_uncertain && !announcements.uncertain_announced {
            Arc::make_mut(&mut announcements).uncertain_announced = true;
        }
        Publication::Open(announcements)
    });
    let announcement = |state, status, settled_by| Announcement {
        announcements: announcements.clone(),
        state,
        status,
        settled_by,
    };
    match &record.state {
        State::Completed { reply, by } => {
            let settled_by = match by {
                Settler::Upstream if was_uncertain => SettledBy::Claimant,
                Settler::Upstream => SettledBy::Upstream,
                Settler::Probe => SettledBy::Probe,
                Settler::Operator => SettledBy::Operator,
            };
            Some(announcement(AnnouncedState::Completed, Some(reply.status), Some(settled_by)))
        }
        State::Uncertain { .. } if announcements.uncertain_announced => None,
        State::Uncertain { .. } => Some(announcement(AnnouncedState::Uncertain, None, None)),
        // It was given up before it ran, and an event has announced its start.
        State::Released if matches!(before.state, State::Saga { .. }) => {
            Some(announcement(AnnouncedState::SagaFailed, None, None))
        }
        State::Released if was_uncertain || answered.is_some() => {
            Some(announcement(AnnouncedState::Released, answered, None))
        }
        State::Released
        | State::InFlight { .. }
        | State::Expired
        | State::Saga { .. }
        | State::Barred
        | State::Lock(_)
        | State::Review { .. }
        | State::Versions { .. } => None,
    }
}
