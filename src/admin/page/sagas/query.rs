//! The address of the list: the filter, and the place at which a page begins.

use std::cmp::Reverse;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use crate::admin::problem::AdminRefusal;
use crate::admin::queries::invalid;
use crate::admin::saga_search::ListedSaga;
use crate::key::Slot;
use crate::record::SagaPhase;

/// The statuses of the filter. They are in the clear in the records.
pub(super) const PHASES: [SagaPhase; 3] =
    [SagaPhase::Running, SagaPhase::Compensating, SagaPhase::Stuck];

/// The parameters of the list. An empty one is missing.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(in crate::admin::page) struct SagaListPageQuery {
    pub status: String,
    pub name: String,
    pub cursor: String,
}

/// What the parameters mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SagaSelection {
    pub phase: Option<SagaPhase>,
    pub name: Option<String>,
    /// The last saga of the page before.
    pub last: Option<(Reverse<u64>, Slot)>,
}

impl SagaListPageQuery {
    /// Returns the first page of the sagas with this status and name.
    pub(super) fn of(status: &str, name: &str) -> SagaListPageQuery {
        let (status, name) = (status.to_owned(), name.to_owned());
        SagaListPageQuery { status, name, cursor: String::new() }
    }

    /// Reads the parameters.
    ///
    /// # Errors
    /// There is no such status, or the cursor is malformed.
    pub(super) fn selection(&self) -> Result<SagaSelection, AdminRefusal> {
        let given = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        let phase = given(&self.status).map(|status| {
            let phase = PHASES.into_iter().find(|phase| phase.name() == status);
            phase.ok_or_else(|| invalid("status must be running, compensating or stuck"))
        });
        let last = given(&self.cursor).map(|cursor| {
            let parts = cursor.split_once('-').and_then(|(started_ms, id)| {
                Some((Reverse(started_ms.parse().ok()?), Slot::from_reference(id).ok()?))
            });
            parts.ok_or_else(|| invalid("cursor is not that of a page of this list"))
        });
        Ok(SagaSelection {
            phase: phase.transpose()?,
            name: given(&self.name),
            last: last.transpose()?,
        })
    }

    /// Returns the path.
    pub(super) fn path(&self) -> String {
        self.path_from(&self.cursor)
    }

    /// Returns the path of the page after this saga.
    pub(super) fn next(&self, last: &ListedSaga) -> String {
        self.path_from(&format!("{}-{}", last.started_ms, last.slot))
    }

    fn path_from(&self, cursor: &str) -> String {
        let mut path = "/sagas".to_owned();
        let pairs = [("status", self.status.as_str()), ("name", &self.name), ("cursor", cursor)];
        for (name, value) in pairs.into_iter().filter(|(_, value)| !value.is_empty()) {
            path.push(if path.contains('?') { '&' } else { '?' });
            path.push_str(&format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)));
        }
        path
    }
}

impl SagaSelection {
    /// Returns whether a saga matches the filter.
    pub(super) fn matches(&self, saga: &ListedSaga) -> bool {
        self.phase.is_none_or(|phase| phase == saga.phase)
            && self.name.as_ref().is_none_or(|name| **name == *saga.name)
    }

    /// Returns whether a saga is on a page before this one.
    pub(super) fn is_before(&self, saga: &ListedSaga) -> bool {
        self.last.as_ref().is_some_and(|last| saga.position() <= *last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_keeps_the_filter_and_continues_after_the_last_saga() {
        let query = SagaListPageQuery::of("stuck", "a&b");
        assert_eq!(query.path(), "/sagas?status=stuck&name=a%26b");
        assert_eq!(SagaListPageQuery::default().path(), "/sagas");
        let slot = Slot::from_reference(&format!("op_{}", "0a".repeat(20))).unwrap();
        let saga = |started_ms| ListedSaga {
            slot,
            name: "a&b".into(),
            phase: SagaPhase::Stuck,
            started_ms,
        };
        let next = query.next(&saga(7));
        let cursor = next.split("cursor=").nth(1).unwrap().replace("%2D", "-").replace("%5F", "_");
        let selection = SagaListPageQuery { cursor, ..query }.selection().unwrap();
        let before: Vec<bool> = [8, 7, 6].map(|ms| selection.is_before(&saga(ms))).into();
        assert_eq!(before, [true, true, false], "newest first: {next}");
        assert!(selection.matches(&saga(1)));
        let running = ListedSaga { phase: SagaPhase::Running, ..saga(1) };
        assert!(!selection.matches(&running));
    }

    #[test]
    fn an_unknown_status_and_a_malformed_cursor_are_refused() {
        for query in [
            SagaListPageQuery::of("ended", ""),
            SagaListPageQuery { cursor: "7".to_owned(), ..SagaListPageQuery::default() },
            SagaListPageQuery { cursor: "x-op_1".to_owned(), ..SagaListPageQuery::default() },
        ] {
            assert!(query.selection().is_err(), "{query:?}");
        }
    }
}
