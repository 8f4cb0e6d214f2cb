//! The table of sinks, with the decisions about each.

use maud::{Markup, html};

use super::form_fields::{hidden, reason_field};
use super::look::{DeliveryPage, dead_letters};
use super::query::{DeliveryQuery, segment};
use crate::admin::page::layout::{moment_of, number};
use crate::admin::page::table::head;
use crate::admin::page::visitor::Visitor;
use crate::admin::view::SinkView;

/// Renders the table.
pub(super) fn table(page: &DeliveryPage, visitor: &Visitor) -> Markup {
    if page.sinks.is_empty() {
        return html! {
            p.empty {
                "None. A sink gets events when operations change: name it under "
                code { "[[sinks]]" } ", and choose its events under " code { "[[routes.publish]]" }
                "."
            }
        };
    }
    let columns =
        ["Sink", "State", "Waiting", "Last delivered", "Failing since", "Dead letters", "Actions"];
    let shown = if visitor.may_operate { columns.len() } else { columns.len() - 1 };
    html! {
        table.cards role="table" {
            caption {
                "By name. The last delivery and the failures are those of this gateway since its \
                 start."
            }
            (head(&columns[..shown]))
            tbody role="rowgroup" {
                @for sink in &page.sinks { (row(page, visitor, sink)) }
            }
        }
    }
}

fn row(page: &DeliveryPage, visitor: &Visitor, sink: &SinkView) -> Markup {
    let moment = |time: &Option<String>| {
        html! {
            span { @if let Some(time) = time { (moment_of(time, page.now_ms)) } @else { "–" } }
        }
    };
    html! {
        tr role="row" {
            th scope="row" role="rowheader" {
                div {
                    strong { (sink.name) }
                    @if let Some((kind, url)) = sink.kind.as_ref().zip(sink.url.as_ref()) {
                        span.detail { (kind) " " span.address { (url) } }
                    }
                }
            }
            td role="cell" data-label="State" { (state(page, sink)) }
            td role="cell" data-label="Waiting" {
                div {
                    (number(sink.backlog))
                    @if let Some(oldest) = &sink.oldest {
                        span.detail { "oldest " (moment_of(oldest, page.now_ms)) }
                    }
                }
            }
            td role="cell" data-label="Delivered" { (moment(&sink.last_delivered)) }
            td role="cell" data-label="Failing since" { (moment(&sink.failing_since)) }
            td role="cell" data-label="Dead letters" { (dead_letter_link(sink)) }
            @if visitor.may_operate {
                td.actions role="cell" data-label="Actions" { (actions(page, visitor, sink)) }
            }
        }
    }
}

fn state(page: &DeliveryPage, sink: &SinkView) -> Markup {
    let class = match sink.state.as_str() {
        "running" => "state good",
        "paused" => "state warn",
        _ => "state bad",
    };
    html! {
        div {
            span.standing {
                span class=(class) { (sink.state) }
                @if sink.failing_since.is_some() { " " span.state.bad { "failing" } }
            }
            @if let Some(reason) = &sink.reason {
                span.detail {
                    "“" (reason) "”, by " (sink.paused_by.as_deref().unwrap_or("the gateway"))
                    @if let Some(since) = &sink.paused_at {
                        ", " (moment_of(since, page.now_ms))
                    }
                }
            }
            @if sink.kind.is_none() {
                span.detail { "Its events wait until the configuration names it again." }
            }
        }
    }
}

fn dead_letter_link(sink: &SinkView) -> Markup {
    let count = dead_letters(sink);
    html! {
        div {
            @if count == 0 { "0" } @else {
                a id=(format!("letters-{}", sink.name))
                    href=(format!("{}#dead-letters", DeliveryQuery::of(&sink.name, "").path())) {
                    (number(count)) span.unseen { " of " (sink.name) }
                }
                span.detail {
                    @let counts = &sink.dead_letters;
                    @if counts.receiver > 0 { (number(counts.receiver)) " by receiver" }
                    @if counts.receiver > 0 && counts.gateway > 0 { ", " }
                    @if counts.gateway > 0 { (number(counts.gateway)) " by gateway" }
                }
            }
        }
    }
}

fn actions(page: &DeliveryPage, visitor: &Visitor, sink: &SinkView) -> Markup {
    let path = |action: &str| format!("/delivery/sinks/{}/{action}", segment(&sink.name));
    let id = |action: &str| format!("{action}-{}", sink.name);
    let is_paused = sink.reason.is_some();
    html! {
        div.buttons {
            @if sink.kind.as_deref().is_some_and(|kind| kind != "call") {
                form method="post" action=(path("test")) {
                    (hidden(page, visitor))
                    button.second.small id=(id("test")) type="submit"
                        title="Sends one event of the type onceward.test" {
                        "Test" span.unseen { " " (sink.name) }
                    }
                }
            }
            @if is_paused {
                form method="post" action=(path("resume")) {
                    (hidden(page, visitor))
                    button.second.small id=(id("resume")) type="submit"
                        title="Sends the waiting events" {
                        "Resume" span.unseen { " " (sink.name) }
                    }
                }
            }
            @if dead_letters(sink) > 0 {
                a.button.second.small id=(id("requeue-all")) href=(path("requeue")) {
                    "Requeue all" span.unseen { " of " (sink.name) } "…"
                }
            }
            @if !is_paused && sink.kind.is_some() {
                details.inline {
                    summary id=(id("pause")) { "Pause" span.unseen { " " (sink.name) } }
                    form method="post" action=(path("pause")) {
                        (hidden(page, visitor))
                        p.hint {
                            "No gateway sends to " (sink.name)
                            " until it is resumed. Its events wait, and count against its \
                             limits."
                        }
                        (reason_field(&id("pause-reason")))
                        button.small type="submit" { "Pause " (sink.name) }
                    }
                }
            }
        }
    }
}
