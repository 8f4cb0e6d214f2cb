//! Spans of the gateway's own work, such as the steps of sagas. They may be longer than any request
//! and any process.

use std::time::Duration;

use super::spans::{Span, SpanKind};

/// A span of the gateway's own work. It must contain no keys, bodies or header fields.
#[derive(Debug, Clone)]
pub struct InternalSpan(Span);

impl InternalSpan {
    /// Creates a span with the ids of its trace, of itself and of its parent.
    pub fn new((trace, id, parent): ([u8; 16], [u8; 8], Option<[u8; 8]>)) -> InternalSpan {
        InternalSpan(Span::new(trace, id, parent, String::new(), SpanKind::Internal))
    }

    /// Sets the name.
    pub fn named(&mut self, name: String) -> &mut InternalSpan {
        self.0.name = name;
        self
    }

    /// Sets beginning and end, in ms since 1970.
    pub fn lasted(&mut self, from_ms: u64, to_ms: u64) -> &mut InternalSpan {
        let length = Duration::from_millis(to_ms.saturating_sub(from_ms));
        self.0.lasted(from_ms.saturating_mul(1_000_000), Duration::ZERO, length);
        self
    }

    /// Adds a text attribute.
    pub fn text(&mut self, name: &'static str, value: &str) -> &mut InternalSpan {
        self.0.text(name, value);
        self
    }

    /// Adds a number attribute.
    pub fn number(&mut self, name: &'static str, value: i64) -> &mut InternalSpan {
        self.0.number(name, value);
        self
    }

    /// Marks the work as failed.
    pub fn failed(&mut self) -> &mut InternalSpan {
        self.0.failed = true;
        self
    }

    pub(super) fn into_span(self) -> Span {
        self.0
    }
}
