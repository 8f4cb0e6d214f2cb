//! The page of one dead letter: its attempts, its content, and the possible decisions.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use maud::{Markup, html};

use super::dead_letters::{event_type, path};
use super::form_fields::reason_field;
use crate::admin::dead_letters::{ShownDeadLetter, shown_dead_letter};
use crate::admin::page::error::PageError;
use crate::admin::page::layout::{MenuEntry, moment_of, number, proof, shown};
use crate::admin::page::table::fields;
use crate::admin::page::visitor::Visitor;
use crate::admin::queries::views_of;
use crate::admin::state::Admin;
use crate::admin::view::{DeadLetterView, OperationView};
use crate::event::REASON_BYTES_MAX;

/// Shows the page.
pub(in crate::admin::page) async fn show(
    State(admin): State<Arc<Admin>>,
    visitor: Visitor,
    Path(id): Path<String>,
) -> Result<Response, PageError> {
    let letter = shown_dead_letter(&admin, visitor.permission(), id.trim()).await?;
    let operation = letter.operation.to_string();
    let operation = views_of(&admin, vec![operation.clone()]).await.remove(&operation);
    let content = html! {
        div.head {
            h1 { "Dead letter" }
            p.fresh { "from the store, as it is now" }
        }
        section.panel aria-label="Facts" {
            p.named { (event_type(&letter.view)) }
            @if let Some(operation) = &operation { (fields(operation)) }
            (facts(&letter, operation.as_ref(), admin.clock.unix_ms()))
        }
        (actions(&visitor, &letter.view))
        (contents(&visitor, &letter.view))
    };
    Ok(shown(&visitor, MenuEntry::Delivery, "Dead letter", content))
}

fn facts(shown: &ShownDeadLetter, operation: Option<&OperationView>, now_ms: u64) -> Markup {
    let letter = &shown.view;
    let attempts = &letter.attempts;
    let kind = match letter.kind.as_str() {
        "receiver" => "receiver: it refused the event, or did not take it in time",
        _ => "gateway: it can't send the event",
    };
    let time = |name: &str, time: &Option<String>| {
        html! {
            @if let Some(time) = time { div { dt { (name) } dd { (moment_of(time, now_ms)) } } }
        }
    };
    html! {
        dl.facts {
            div {
                dt { "Operation" }
                dd {
                    a.ref href=(format!("/operations/{}", shown.operation)) { (shown.operation) }
                }
            }
            @if let Some(operation) = operation { div { dt { "Route" } dd { (operation.route) } } }
            div { dt { "Sink" } dd { (letter.sink) } }
            div { dt { "Why" } dd { (kind) } }
            @if let Some(error) = &attempts.error { div { dt { "Error" } dd { (error) } } }
            @if let Some(status) = attempts.status {
                div { dt { "Last status" } dd { (status) } }
            }
            div { dt { "Attempts" } dd { (number(u64::from(attempts.count))) } }
            (time("First attempt", &attempts.first))
            (time("Last attempt", &attempts.last))
            (time("Buried", &Some(letter.buried_at.clone())))
            div { dt { "Id" } dd { span.ref { (letter.id) } } }
            @if let Some(head) = letter.head() {
                div { dt { "Event id" } dd { span.ref { (head.id) } } }
            }
        }
    }
}

fn actions(visitor: &Visitor, letter: &DeadLetterView) -> Markup {
    html! {
        section.panel aria-labelledby="actions" {
            h2 #actions { "What you can do" }
            @if !visitor.may_operate {
                p.dim {
                    "Your token may read, but not change anything. An operator with the role "
                    code { "operate" } " can requeue and discard it, and sees its contents."
                }
            } @else {
                details.action {
                    summary {
                        strong { "Requeue" }
                        span.dim {
                            "Use it if the receiver takes the event now. It is sent again with \
                             the same id and new attempts."
                        }
                    }
                    form method="post" action=(format!("{}/requeue", path(&letter.id))) {
                        (proof(visitor))
                        div.field {
                            label for="requeue-reason" { "Reason (optional)" }
                            input #requeue-reason name="reason" maxlength=(REASON_BYTES_MAX)
                                autocomplete="off";
                        }
                        @if letter.is_outcome_expired() {
                            p.warning {
                                "The call began, and nobody knows its outcome any more. Look at \
                                 the called system first: it may have executed the call."
                            }
                            label {
                                input type="checkbox" name="again" value="again" required;
                                " The called system did not execute the call: make it again"
                            }
                        }
                        button type="submit" { "Requeue" }
                    }
                }
                details.action {
                    summary {
                        strong { "Discard" }
                        span.dim {
                            "Use it if the receiver does not need the event any more. It is \
                             removed, and never sent again."
                        }
                    }
                    form method="post" action=(format!("{}/discard", path(&letter.id))) {
                        (proof(visitor))
                        (reason_field("discard-reason"))
                        button type="submit" { "Discard" }
                    }
                }
            }
        }
    }
}

/// Renders the event and the last answer. The role `read` gets neither.
fn contents(visitor: &Visitor, letter: &DeadLetterView) -> Markup {
    if !visitor.may_operate {
        return html! {};
    }
    html! {
        @if let Some(answer) = letter.attempts.answer.as_ref().filter(|text| !text.is_empty()) {
            section.panel aria-labelledby="answer" {
                h2 #answer { "Beginning of the last answer" }
                pre.wrapped { (answer) }
            }
        }
        section.panel aria-labelledby="event" {
            h2 #event { "Event" }
            @match &letter.event {
                Some(event) => { pre.wrapped { code { (indented(event.get())) } } }
                None => {
                    p.dim {
                        "It can't be read: it is malformed, or sealed under a key that this \
                         gateway does not have."
                    }
                }
            }
        }
    }
}

/// Returns a JSON text with a line for each member. Unlike a parsed value, it keeps the spelling of
/// numbers.
fn indented(json: &str) -> String {
    let (mut out, mut depth) = (String::with_capacity(json.len() * 2), 0_usize);
    let (mut is_text, mut is_escaped) = (false, false);
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n("  ", depth));
    };
    let mut chars = json.chars().peekable();
    while let Some(char) = chars.next() {
        if is_text {
            out.push(char);
            is_text = is_escaped || char != '"';
            is_escaped = !is_escaped && char == '\\';
            continue;
        }
        match char {
            '"' => {
                is_text = true;
                out.push(char);
            }
            '{' | '[' => {
                out.push(char);
                while chars.next_if(char::is_ascii_whitespace).is_some() {}
                match chars.next_if(|next| matches!(next, '}' | ']')) {
                    Some(end) => out.push(end),
                    None => {
                        depth += 1;
                        line(&mut out, depth);
                    }
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                line(&mut out, depth);
                out.push(char);
            }
            ',' => {
                out.push(char);
                line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            other if other.is_ascii_whitespace() => {}
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_indented_event_keeps_its_texts_and_numbers() {
        let json = r#"{"a": 12.340,"b":[],"c":{ },"d":["x, {\"y\": 1}\\", -0.0],"e":null}"#;
        let expected = concat!(
            "{\n  \"a\": 12.340,\n  \"b\": [],\n  \"c\": {},\n  \"d\": [\n",
            "    \"x, {\\\"y\\\": 1}\\\\\",\n    -0.0\n  ],\n  \"e\": null\n}"
        );
        assert_eq!(indented(json), expected);
        assert_eq!(indented("]]"), "\n]\n]", "malformed texts do no harm");
    }
}
