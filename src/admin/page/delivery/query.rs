//! The address of the page: which dead letters it lists, and the result of a form.

use maud::{Markup, html};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use crate::admin::page::layout::number;

/// The parameters of the page. An empty one is missing.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(in crate::admin::page) struct DeliveryQuery {
    pub sink: String,
    pub kind: String,
    pub cursor: String,
    /// The change that a form made.
    done: String,
    /// The number of dead letters that it requeued.
    count: String,
}

impl DeliveryQuery {
    /// Returns the first page of the dead letters of a sink and a kind.
    pub(super) fn of(sink: &str, kind: &str) -> DeliveryQuery {
        DeliveryQuery { sink: sink.to_owned(), kind: kind.to_owned(), ..DeliveryQuery::default() }
    }

    /// Returns the path, without the result of a form.
    pub(super) fn path(&self) -> String {
        self.path_with(&[("cursor", &self.cursor)])
    }

    /// Returns the path of the next page.
    pub(super) fn next(&self, cursor: &str) -> String {
        self.path_with(&[("cursor", cursor)])
    }

    /// Returns the path of the first page, with the result of a form.
    pub(super) fn done(&self, done: FormResult, count: usize) -> String {
        let count = if count > 0 { count.to_string() } else { String::new() };
        self.path_with(&[("done", done.name()), ("count", &count)])
    }

    fn path_with(&self, more: &[(&str, &str)]) -> String {
        let mut path = "/delivery".to_owned();
        let own = [("sink", self.sink.as_str()), ("kind", self.kind.as_str())];
        for (name, value) in own.iter().chain(more).filter(|(_, value)| !value.is_empty()) {
            path.push(if path.contains('?') { '&' } else { '?' });
            path.push_str(&format!("{name}={}", segment(value)));
        }
        path
    }

    /// Renders the result of a form.
    pub(super) fn notice(&self) -> Markup {
        let Some(done) = FormResult::ALL.into_iter().find(|done| done.name() == self.done) else {
            return html! {};
        };
        let count = self.count.parse().unwrap_or(0);
        html! { p.notice.good role="status" { (done.text(count)) } }
    }
}

/// Encodes a text as a segment of a path, or as the value of a parameter.
pub(super) fn segment(text: &str) -> impl std::fmt::Display {
    utf8_percent_encode(text, NON_ALPHANUMERIC)
}

/// A change that a form has made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FormResult {
    Paused,
    Resumed,
    Requeued,
    RequeuedAll,
    RequeuedSome,
    Discarded,
}

impl FormResult {
    const ALL: [FormResult; 6] = [
        FormResult::Paused,
        FormResult::Resumed,
        FormResult::Requeued,
        FormResult::RequeuedAll,
        FormResult::RequeuedSome,
        FormResult::Discarded,
    ];

    fn name(self) -> &'static str {
        match self {
            FormResult::Paused => "paused",
            FormResult::Resumed => "resumed",
            FormResult::Requeued => "requeued",
            FormResult::RequeuedAll => "all",
            FormResult::RequeuedSome => "some",
            FormResult::Discarded => "discarded",
        }
    }

    fn text(self, count: u64) -> String {
        match self {
            FormResult::Paused => {
                "Paused: the sink gets nothing until it is resumed. Its events wait.".to_owned()
            }
            FormResult::Resumed => "Resumed: the waiting events are sent.".to_owned(),
            FormResult::Requeued => {
                "Requeued: the event waits for delivery. If its sink does not take it, it is a \
                 dead letter again."
                    .to_owned()
            }
            FormResult::RequeuedAll => format!("{}. They wait for delivery.", requeued(count)),
            FormResult::RequeuedSome => {
                format!("{}. There are more: requeue again to continue.", requeued(count))
            }
            FormResult::Discarded => "Discarded: the event is never sent again.".to_owned(),
        }
    }
}

fn requeued(count: u64) -> String {
    match count {
        1 => "Requeued 1 dead letter".to_owned(),
        count => format!("Requeued {} dead letters", number(count)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_keeps_the_filter_and_shows_only_known_results() {
        let query = DeliveryQuery::of("a&b", "");
        assert_eq!(query.path(), "/delivery?sink=a%26b");
        assert_eq!(query.next("7_x"), "/delivery?sink=a%26b&cursor=7%5Fx");
        assert_eq!(query.done(FormResult::RequeuedAll, 5), "/delivery?sink=a%26b&done=all&count=5");
        assert_eq!(DeliveryQuery::default().path(), "/delivery");
        let done = |done: &str, count: &str| {
            let (done, count) = (done.to_owned(), count.to_owned());
            DeliveryQuery { done, count, ..DeliveryQuery::default() }.notice().into_string()
        };
        assert!(done("all", "1").contains("Requeued 1 dead letter."));
        assert!(done("all", "<b>").contains("Requeued 0 dead letters."));
        assert_eq!(done("<b>", "1"), "");
    }
}
