//! The page of one saga: why it is stuck, its graph, its timeline, and the possible decisions.

use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use serde::Deserialize;

use super::decisions::{self, EnteredDecision, parse, state_digest};
use super::graph::{graph, graph_id};
use super::steps::{summary, table};
use super::timeline::{stuck_words, timeline};
use super::words::state;
use crate::admin::page::error::PageError;
use crate::admin::page::guard::Signed;
use crate::admin::page::layout::{MenuEntry, document, live, moment_of, shown};
use crate::admin::page::table::fields;
use crate::admin::page::visitor::Visitor;
use crate::admin::problem::AdminRefusal;
use crate::admin::queries::views_of;
use crate::admin::sagas::{DecidableSaga, decidable_saga, decide_at};
use crate::admin::state::Admin;
use crate::admin::view::{OperationView, SagaDecisionRequest, SagaView, StuckStepView};
use crate::record::Version;
use crate::saga::log::SagaDecisionKind;

#[derive(Deserialize)]
pub(in crate::admin::page) struct SagaPageQuery {
    /// The decision that a form made.
    done: Option<String>,
}

/// The fields of a form. A missing field is empty.
#[derive(Deserialize)]
pub(in crate::admin::page) struct SagaForm {
    /// The digest of the state that the page showed.
    #[serde(default)]
    version: String,
    reason: String,
    #[serde(default)]
    step: String,
}

/// Returns the path of a saga's page.
pub(in crate::admin::page) fn path(id: &impl std::fmt::Display) -> String {
    format!("/sagas/{id}")
}

/// Shows the page.
pub(in crate::admin::page) async fn show(
    State(admin): State<Arc<Admin>>,
    visitor: Visitor,
    Path(id): Path<String>,
    Query(query): Query<SagaPageQuery>,
) -> Result<Response, PageError> {
    let saga = decidable_saga(&admin, id.trim()).await?;
    let done = query.done.as_deref().and_then(parse);
    let notice = html! {
        @if let Some(done) = done { p.notice.good role="status" { (decisions::done(done)) } }
    };
    let content = page(&admin, &visitor, &saga, notice, None).await;
    Ok(shown(&visitor, MenuEntry::Sagas, &title(&saga.view), content))
}

/// Takes a decision from a form.
pub(in crate::admin::page) async fn decide(
    State(admin): State<Arc<Admin>>,
    visitor: Visitor,
    Path((id, decision)): Path<(String, String)>,
    Signed(sent): Signed<SagaForm>,
) -> Result<Response, PageError> {
    let kind = parse(&decision).ok_or(AdminRefusal::NotFound)?;
    match carry_out(&admin, &visitor, &id, kind, &sent).await {
        Ok(saga) => {
            Ok(Redirect::to(&format!("{}?done={}", path(&saga.id), kind.name())).into_response())
        }
        Err(refusal) => refused(&admin, &visitor, &id, kind, sent, refusal).await,
    }
}

async fn carry_out(
    admin: &Admin,
    visitor: &Visitor,
    id: &str,
    kind: SagaDecisionKind,
    sent: &SagaForm,
) -> Result<SagaView, AdminRefusal> {
    /// Writes of the saga's owner between a look and the decision on it. More than one is rare.
    const LOOKS_MAX: usize = 4;
    let operator = visitor.operator_of_change()?;
    let request = SagaDecisionRequest {
        reason: Some(sent.reason.clone()),
        step: Some(sent.step.clone()).filter(|step| !step.is_empty()),
    };
    for _ in 0..LOOKS_MAX {
        let saga = decidable_saga(admin, id).await?.view;
        if state_digest(&saga) != sent.version {
            break;
        }
        let version = saga.version.parse().map(Version);
        let version = version.map_err(|_| AdminRefusal::VersionInvalid)?;
        match decide_at(admin, operator, id, kind, version, request.clone()).await {
            Err(AdminRefusal::SagaMoved) => {}
            decided => return decided,
        }
    }
    Err(AdminRefusal::SagaMoved)
}

/// Renders the current state of the saga, the refusal, and the form with the entered values.
async fn refused(
    admin: &Admin,
    visitor: &Visitor,
    id: &str,
    kind: SagaDecisionKind,
    sent: SagaForm,
    refusal: AdminRefusal,
) -> Result<Response, PageError> {
    let Ok(saga) = decidable_saga(admin, id).await else { return Err(refusal.into()) };
    let notice = html! {
        p.notice.bad role="alert" {
            strong { "Nothing was changed." } " " (refusal.to_string())
            ". The saga is " (saga.view.status) " now, as shown below."
        }
    };
    let tried = EnteredDecision { kind, step: sent.step, reason: sent.reason };
    let content = page(admin, visitor, &saga, notice, Some(&tried)).await;
    let page = document(Some(visitor), MenuEntry::Sagas, "Nothing was changed", content);
    Ok((refusal.status(), page).into_response())
}

fn title(saga: &SagaView) -> String {
    format!("Saga {}", saga.name)
}

async fn page(
    admin: &Admin,
    visitor: &Visitor,
    saga: &DecidableSaga,
    notice: Markup,
    tried: Option<&EnteredDecision>,
) -> Markup {
    let view = &saga.view;
    let projected = views_of(admin, vec![view.id.clone()]).await.remove(&view.id);
    let content = html! {
        div.head {
            h1 { (title(view)) " " (state(status(view))) }
            p.fresh { "from the store, as it is now" }
        }
        section.panel aria-label="Facts" {
            p.named { span.ref { (view.id) } }
            @if let Some(projected) = &projected { (fields(projected)) }
            (facts(view, projected.as_ref(), saga.now_ms))
        }
        (stuck(view))
        (decisions::section(visitor, saga, tried))
        (steps(view, saga.now_ms))
    };
    let announcement = format!("{} is {}", title(view), status(view));
    html! {
        (notice)
        (live(&path(&view.id), &announcement, content))
    }
}

/// Returns the status as people name it: an ended saga is completed or failed.
fn status(saga: &SagaView) -> &str {
    saga.outcome.as_deref().unwrap_or(&saga.status)
}

fn facts(saga: &SagaView, projected: Option<&OperationView>, now_ms: u64) -> Markup {
    let time = |name: &str, time: Option<&String>| {
        html! {
            @if let Some(time) = time { div { dt { (name) } dd { (moment_of(time, now_ms)) } } }
        }
    };
    let ended = saga.answer_status.map(|_| &saga.changed_at);
    html! {
        dl.facts {
            div {
                dt { "Operation of the client" }
                dd { a #record href=(format!("/operations/{}", saga.id)) { "result and history" } }
            }
            (time("Started", Some(&saga.started_at)))
            (time("Stuck since", saga.stuck_since.as_ref()))
            (time("Goes back since", saga.back_at.as_ref()))
            (time("Ended", ended))
            @if let Some(status) = saga.answer_status { div { dt { "Answer" } dd { (status) } } }
            @if let Some(duplicates) = projected.and_then(|projected| projected.duplicates) {
                div { dt { "Duplicates" } dd { (duplicates) } }
            }
        }
    }
}

/// Renders why the saga is stuck, or why this gateway can't read it.
fn stuck(saga: &SagaView) -> Markup {
    html! {
        @if let Some(why) = &saga.unreadable {
            p.notice.bad { "The steps can't be shown: " (why) "." }
        }
        @if !saga.stuck.is_empty() {
            div.notice {
                strong { "The saga can neither go on nor go back by itself." }
                ul.reasons {
                    @for (at, stuck) in saga.stuck.iter().enumerate() { (reason(saga, at, stuck)) }
                }
            }
        }
    }
}

/// Renders why a step stops its saga, with a link to the step in the graph, which may be wide.
fn reason(saga: &SagaView, at: usize, stuck: &StuckStepView) -> Markup {
    let step = saga.steps.iter().position(|step| step.name == stuck.step);
    html! {
        li {
            (stuck_words(stuck)) ". "
            @if let Some(step) = step {
                a id=(format!("why-{at}")) href=(format!("#{}", graph_id(step))) {
                    "Show " (stuck.step) " in the graph"
                }
            }
        }
    }
}

fn steps(saga: &SagaView, now_ms: u64) -> Markup {
    let timeline = html! {
        section.panel aria-labelledby="timeline" {
            h2 #timeline { "Timeline" }
            (timeline(saga, now_ms))
        }
    };
    html! {
        @if saga.steps.is_empty() {
            @if !saga.step_summary.is_empty() {
                section.panel aria-labelledby="steps" {
                    h2 #steps { "Steps" }
                    (summary(&saga.step_summary))
                    p.dim {
                        "The graph, the references of the operations and the times were erased \
                         with the saga's content at its end."
                    }
                }
            }
            (timeline)
        } @else {
            div.beside {
                section.panel aria-labelledby="graph" {
                    h2 #graph { "Graph" }
                    (graph(saga))
                }
                (timeline)
            }
            section.panel.flush aria-labelledby="steps" {
                h2 #steps { "Steps" }
                (table(saga, now_ms))
            }
        }
    }
}
