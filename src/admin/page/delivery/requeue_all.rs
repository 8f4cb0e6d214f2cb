//! The requeue of all dead letters of a sink: the confirmation, and the change.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Redirect, Response};
use maud::html;
use serde::Deserialize;
use tokio::time::Instant;

use super::list::refused;
use super::look::dead_letters;
use super::query::{DeliveryQuery, FormResult, segment};
use crate::admin::dead_letters::requeue_part;
use crate::admin::page::error::PageError;
use crate::admin::page::guard::Signed;
use crate::admin::page::layout::{MenuEntry, number, proof, shown};
use crate::admin::page::visitor::Visitor;
use crate::admin::problem::AdminRefusal;
use crate::admin::sinks::sinks;
use crate::admin::state::Admin;
use crate::admin::view::RequeueRequest;

/// Time after which no further part is requeued. A request has a limit of 45 s.
const TIME_MAX: Duration = Duration::from_secs(20);

/// Dead letters of one part.
const PART: usize = 200;

/// The form has no fields besides the proof.
#[derive(Deserialize)]
pub(in crate::admin::page) struct ConfirmedRequeue {}

/// Shows what the requeue does, and asks for the confirmation.
pub(in crate::admin::page) async fn ask(
    State(admin): State<Arc<Admin>>,
    visitor: Visitor,
    Path(name): Path<String>,
) -> Result<Response, PageError> {
    let views = sinks(&admin).await?;
    let sink = views.iter().find(|sink| sink.name == name).ok_or(AdminRefusal::SinkUnknown)?;
    let count = dead_letters(sink);
    let letters = match count {
        1 => "1 dead letter".to_owned(),
        count => format!("{} dead letters", number(count)),
    };
    let content = html! {
        h1 { "Requeue all dead letters of " (sink.name) "?" }
        section.panel aria-label="Confirmation" {
            @if count == 0 {
                p { "No dead letter matches: nothing would be requeued." }
            } @else {
                p {
                    strong { (letters) } " will wait for delivery: "
                    (number(sink.dead_letters.receiver)) " by receiver, "
                    (number(sink.dead_letters.gateway)) " by gateway. "
                    "Each event is sent again with the same id and new attempts, at most as fast \
                     as the sink's rate allows. A receiver that knows the id can leave it out."
                }
            }
            @match sink.state.as_str() {
                "running" => {}
                "paused" => { p { "The sink is paused: they wait until it is resumed." } }
                _ => { p { "The sink is not configured: they wait until it is." } }
            }
            @if visitor.may_operate {
                form method="post" action=(format!("/delivery/sinks/{}/requeue", segment(&name))) {
                    (proof(&visitor))
                    div.buttons {
                        @if count > 0 { button type="submit" { "Requeue " (letters) } }
                        a href="/delivery" { "Cancel" }
                    }
                }
            } @else {
                p.dim { "Your token may read, but not change anything." }
            }
        }
    };
    Ok(shown(&visitor, MenuEntry::Delivery, "Requeue all", content))
}

/// Requeues the dead letters, part by part.
pub(in crate::admin::page) async fn carry_out(
    State(admin): State<Arc<Admin>>,
    visitor: Visitor,
    Path(sink): Path<String>,
    Signed(ConfirmedRequeue {}): Signed<ConfirmedRequeue>,
) -> Result<Response, PageError> {
    match requeue_parts(&admin, &visitor, &sink).await {
        Ok((count, is_all)) => {
            let done = if is_all { FormResult::RequeuedAll } else { FormResult::RequeuedSome };
            Ok(Redirect::to(&DeliveryQuery::default().done(done, count)).into_response())
        }
        Err(refusal) => refused(&admin, visitor, DeliveryQuery::default(), refusal).await,
    }
}

/// Returns the number of requeued dead letters, and whether there are no more.
async fn requeue_parts(
    admin: &Admin,
    visitor: &Visitor,
    sink: &str,
) -> Result<(usize, bool), AdminRefusal> {
    let operator = visitor.operator_of_change()?;
    let (began, mut count, mut cursor) = (Instant::now(), 0, None);
    loop {
        let request = RequeueRequest {
            sink: sink.to_owned(),
            limit: Some(PART),
            cursor,
            ..RequeueRequest::default()
        };
        let part = match requeue_part(admin, operator, request).await {
            Ok(part) => part,
            // The number that is known is shown; the next try shows the refusal.
            Err(_) if count > 0 => return Ok((count, false)),
            Err(refusal) => return Err(refusal),
        };
        count += part.requeued;
        cursor = part.cursor;
        if cursor.is_none() || began.elapsed() >= TIME_MAX {
            return Ok((count, cursor.is_none()));
        }
    }
}
