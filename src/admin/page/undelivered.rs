//! The undelivered events of an operation: those that wait, and dead letters.

use maud::{Markup, html};

use super::delivery::{dead_letter_path, result};
use super::layout::{moment, moment_of, number};
use crate::admin::dead_letters::{ShownWaitingEvent, UndeliveredEvents, undelivered};
use crate::admin::state::Admin;
use crate::admin::view::DeadLetterView;
use crate::key::Slot;

/// Renders the undelivered events. Without sinks and undelivered events, there is no section.
pub(super) async fn section(admin: &Admin, operation: &Slot) -> Markup {
    let found = undelivered(admin, operation).await;
    let has_some = |events: &UndeliveredEvents| {
        !events.waiting.is_empty() || !events.dead_letters.is_empty() || events.is_cut
    };
    if admin.relay.sinks().is_empty() && !found.as_ref().is_ok_and(has_some) {
        return html! {};
    }
    let now_ms = admin.clock.unix_ms();
    html! {
        section.panel aria-labelledby="undelivered" {
            div.head {
                h2 #undelivered { "Undelivered events" }
                p.fresh { "from the store, as it is now" }
            }
            @match &found {
                Ok(events) if has_some(events) => { (list(events, now_ms)) }
                Ok(_) => {
                    p.dim {
                        "None. An event of this operation that waits for its sink, or that its \
                         sink did not take, would be here."
                    }
                }
                Err(refusal) => { p.dim { (refusal.to_string()) "." } }
            }
        }
    }
}

fn list(events: &UndeliveredEvents, now_ms: u64) -> Markup {
    html! {
        ol.timeline {
            @for event in &events.waiting { (waiting(event, now_ms)) }
            @for letter in &events.dead_letters { (buried(letter, now_ms)) }
        }
        @if events.is_cut {
            p.dim { "The search for dead letters ended early: there may be earlier ones." }
        }
    }
}

fn waiting(event: &ShownWaitingEvent, now_ms: u64) -> Markup {
    let attempts = match event.attempts {
        0 => "not attempted yet".to_owned(),
        1 => "1 attempt so far".to_owned(),
        attempts => format!("{} attempts so far", number(u64::from(attempts))),
    };
    html! {
        li.busy {
            span.what { "Waits for " (event.sink) }
            span.when { "since " (moment(event.written_ms, now_ms)) }
            p.dim {
                (event.event_type.as_deref().unwrap_or("unreadable event")) " · " (attempts)
                @if event.round > 0 { " · requeued" }
            }
        }
    }
}

fn buried(letter: &DeadLetterView, now_ms: u64) -> Markup {
    html! {
        li.warn {
            span.what {
                a href=(dead_letter_path(&letter.id)) { "Dead letter of " (letter.sink) }
            }
            span.when { (moment_of(&letter.buried_at, now_ms)) }
            p.dim {
                (letter.head().map_or("unreadable event".to_owned(), |head| head.event_type))
                " · by " (letter.kind) " · " (result(&letter.attempts))
            }
        }
    }
}
