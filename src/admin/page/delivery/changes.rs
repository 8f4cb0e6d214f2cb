//! The forms of the page: pause, resume and test a sink; requeue and discard a dead letter.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use serde::Deserialize;

use super::list::{page, refused};
use super::query::{DeliveryQuery, FormResult};
use crate::admin::dead_letters::{discard, requeue};
use crate::admin::decision::Reason;
use crate::admin::page::error::PageError;
use crate::admin::page::guard::Signed;
use crate::admin::page::visitor::Visitor;
use crate::admin::problem::AdminRefusal;
use crate::admin::sinks::{pause_sink, resume_sink, test_sink};
use crate::admin::state::Admin;
use crate::admin::view::SinkTestView;

/// The fields of a form. A missing field is empty.
#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
pub(in crate::admin::page) struct ChangeForm {
    reason: String,
    /// Not empty if a call with an unknown outcome is made again.
    again: String,
    /// The filter of the list to return to.
    sink: String,
    kind: String,
}

impl ChangeForm {
    fn query(&self) -> DeliveryQuery {
        DeliveryQuery::of(&self.sink, &self.kind)
    }
}

/// Pauses, resumes or tests a sink.
pub(in crate::admin::page) async fn change_sink(
    State(admin): State<Arc<Admin>>,
    visitor: Visitor,
    Path((sink, action)): Path<(String, String)>,
    Signed(sent): Signed<ChangeForm>,
) -> Result<Response, PageError> {
    if action == "test" {
        return match test(&admin, &visitor, &sink).await {
            Ok(result) => page(&admin, visitor, sent.query(), test_notice(&result)).await,
            Err(refusal) => refused(&admin, visitor, sent.query(), refusal).await,
        };
    }
    let done = change(&admin, &visitor, &sink, &action, &sent.reason).await;
    answer(&admin, visitor, &sent, done).await
}

async fn test(admin: &Admin, visitor: &Visitor, sink: &str) -> Result<SinkTestView, AdminRefusal> {
    test_sink(admin, visitor.operator_of_change()?, sink).await
}

async fn change(
    admin: &Admin,
    visitor: &Visitor,
    sink: &str,
    action: &str,
    reason: &str,
) -> Result<FormResult, AdminRefusal> {
    let operator = visitor.operator_of_change()?;
    match action {
        "pause" => {
            pause_sink(admin, operator, sink, &Reason::parse(Some(reason))?).await?;
            Ok(FormResult::Paused)
        }
        "resume" => {
            let reason = Reason::parse_optional(Some(reason))?;
            resume_sink(admin, operator, sink, reason.as_ref()).await?;
            Ok(FormResult::Resumed)
        }
        _ => Err(AdminRefusal::NotFound),
    }
}

/// Requeues or discards a dead letter.
pub(in crate::admin::page) async fn change_dead_letter(
    State(admin): State<Arc<Admin>>,
    visitor: Visitor,
    Path((id, action)): Path<(String, String)>,
    Signed(sent): Signed<ChangeForm>,
) -> Result<Response, PageError> {
    let done = decide(&admin, &visitor, &id, &action, &sent).await;
    answer(&admin, visitor, &sent, done).await
}

async fn decide(
    admin: &Admin,
    visitor: &Visitor,
    id: &str,
    action: &str,
    sent: &ChangeForm,
) -> Result<FormResult, AdminRefusal> {
    let operator = visitor.operator_of_change()?;
    let reason = &sent.reason;
    match action {
        "requeue" => {
            let reason = Reason::parse_optional(Some(reason))?;
            requeue(admin, operator, id, reason.as_ref(), !sent.again.is_empty()).await?;
            Ok(FormResult::Requeued)
        }
        "discard" => {
            discard(admin, operator, id, &Reason::parse(Some(reason))?).await?;
            Ok(FormResult::Discarded)
        }
        _ => Err(AdminRefusal::NotFound),
    }
}

/// Redirects to the list after a change, or shows why there was none.
async fn answer(
    admin: &Admin,
    visitor: Visitor,
    sent: &ChangeForm,
    done: Result<FormResult, AdminRefusal>,
) -> Result<Response, PageError> {
    match done {
        Ok(done) => Ok(Redirect::to(&sent.query().done(done, 0)).into_response()),
        Err(refusal) => refused(admin, visitor, sent.query(), refusal).await,
    }
}

fn test_notice(result: &SinkTestView) -> Markup {
    let status = result.status.map(|status| format!(": status {status}")).unwrap_or_default();
    html! {
        @if result.delivered {
            p.notice.good role="status" {
                "The test event " span.ref { (result.event) } " was delivered to " (result.sink)
                (status) "."
            }
        } @else {
            p.notice.bad role="alert" {
                "The test event " span.ref { (result.event) } " was not delivered to "
                (result.sink) (status)
                @if let Some(answer) = result.answer.as_ref().filter(|answer| !answer.is_empty()) {
                    ", “" (answer) "”"
                }
                @if let Some(error) = &result.error { ": " (error) }
                "."
            }
        }
    }
}
