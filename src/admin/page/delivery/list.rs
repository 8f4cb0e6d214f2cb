//! The page: the sinks, and a page of dead letters.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};

use super::look::DeliveryPage;
use super::query::DeliveryQuery;
use super::{dead_letters, sinks};
use crate::admin::page::error::PageError;
use crate::admin::page::layout::{MenuEntry, live, shown};
use crate::admin::page::visitor::Visitor;
use crate::admin::problem::AdminRefusal;
use crate::admin::state::Admin;

/// Shows the page.
pub(in crate::admin::page) async fn show(
    State(admin): State<Arc<Admin>>,
    visitor: Visitor,
    Query(query): Query<DeliveryQuery>,
) -> Result<Response, PageError> {
    let notice = query.notice();
    page(&admin, visitor, query, notice).await
}

/// Shows the page after a form that changed nothing.
pub(super) async fn refused(
    admin: &Admin,
    visitor: Visitor,
    query: DeliveryQuery,
    refusal: AdminRefusal,
) -> Result<Response, PageError> {
    let notice = html! {
        p.notice.bad role="alert" {
            strong { "Nothing was changed." } " " (refusal.to_string()) "."
        }
    };
    let response = page(admin, visitor, query, notice).await?;
    Ok((refusal.status(), response).into_response())
}

/// Renders the page below a notice.
pub(super) async fn page(
    admin: &Admin,
    mut visitor: Visitor,
    query: DeliveryQuery,
    notice: Markup,
) -> Result<Response, PageError> {
    let page = DeliveryPage::read(admin, &visitor, query).await?;
    // The relay's last look may be half a minute old.
    visitor.dead_letters = page.dead_letters();
    let content = html! {
        (notice)
        @if page.query.cursor.is_empty() {
            (live(&page.query.path(), &page.announcement(), content(&page, &visitor)))
        } @else { (content(&page, &visitor)) }
    };
    Ok(shown(&visitor, MenuEntry::Delivery, "Delivery", content))
}

fn content(page: &DeliveryPage, visitor: &Visitor) -> Markup {
    html! {
        div.head {
            h1 { "Delivery" }
            p.fresh { "from the store, as it is now" }
        }
        section.panel.flush aria-labelledby="sinks" {
            h2 #sinks { "Sinks" }
            (sinks::table(page, visitor))
        }
        section.panel.flush aria-labelledby="dead-letters" {
            h2 #dead-letters { "Dead letters" }
            (dead_letters::section(page, visitor))
        }
    }
}
