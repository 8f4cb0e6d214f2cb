//! The data of the page.

use std::collections::BTreeMap;

use super::query::DeliveryQuery;
use crate::admin::dead_letters::{DeadLetterQuery, ShownDeadLetter, shown_dead_letters};
use crate::admin::page::layout::number;
use crate::admin::page::visitor::Visitor;
use crate::admin::problem::AdminRefusal;
use crate::admin::queries::views_of;
use crate::admin::sinks::sinks as sink_views;
use crate::admin::state::Admin;
use crate::admin::view::{OperationView, SinkView};

/// Dead letters of a page.
const ROWS: usize = 50;

/// The data of the page, from one look at the store.
pub(super) struct DeliveryPage {
    pub query: DeliveryQuery,
    pub sinks: Vec<SinkView>,
    pub letters: Vec<ShownDeadLetter>,
    /// The cursor of the next page.
    pub cursor: Option<String>,
    /// The read model's views of the operations, by reference.
    pub operations: BTreeMap<String, OperationView>,
    pub now_ms: u64,
}

impl DeliveryPage {
    /// Looks at the store.
    pub(super) async fn read(
        admin: &Admin,
        visitor: &Visitor,
        query: DeliveryQuery,
    ) -> Result<DeliveryPage, AdminRefusal> {
        let given = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let selection = DeadLetterQuery {
            sink: given(&query.sink),
            kind: given(&query.kind),
            cursor: given(&query.cursor),
            limit: Some(ROWS),
            ..DeadLetterQuery::default()
        };
        let (letters, cursor) = shown_dead_letters(admin, visitor.permission(), selection).await?;
        let sinks = sink_views(admin).await?;
        let references = letters.iter().map(|letter| letter.operation.to_string()).collect();
        let operations = views_of(admin, references).await;
        let now_ms = admin.clock.unix_ms();
        Ok(DeliveryPage { query, sinks, letters, cursor, operations, now_ms })
    }

    /// Returns the number of dead letters of all sinks.
    pub(super) fn dead_letters(&self) -> u64 {
        self.sinks.iter().map(dead_letters).sum()
    }

    /// Returns the state as a short text, for screen readers.
    pub(super) fn announcement(&self) -> String {
        let dead = self.dead_letters();
        let paused = self.sinks.iter().filter(|sink| sink.reason.is_some()).count();
        let dead = match dead {
            0 => "No dead letters".to_owned(),
            1 => "1 dead letter".to_owned(),
            dead => format!("{} dead letters", number(dead)),
        };
        match paused {
            0 => dead,
            1 => format!("{dead}, 1 sink paused"),
            paused => format!("{dead}, {paused} sinks paused"),
        }
    }
}

/// Returns the number of a sink's dead letters.
pub(super) fn dead_letters(sink: &SinkView) -> u64 {
    sink.dead_letters.receiver + sink.dead_letters.gateway
}
