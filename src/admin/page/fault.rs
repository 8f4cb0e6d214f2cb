//! Why a page can't be shown, or a form was not taken, as a page that says what to do.

use std::sync::Arc;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use maud::html;

use super::layout::{Here, document};
use super::visitor::Visitor;
use crate::admin::problem::AdminRefusal;
use crate::store::{ListError, StoreError};

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// As the API would refuse it.
    #[error(transparent)]
    Refused(#[from] AdminRefusal),
    /// A form that can't be read.
    #[error("the form can't be read: {0}")]
    Form(String),
    /// A form that no page of this process made for this browser.
    #[error(
        "this form was made before the gateway was restarted or you signed in, or not by this page. Nothing was changed: open the page again"
    )]
    Unproven,
    /// Something that should not happen.
    #[error("the page could not be made: {0}")]
    Internal(String),
}

impl Fault {
    /// Something that should not happen.
    pub(super) fn internal(why: impl ToString) -> Fault {
        Fault::Internal(why.to_string())
    }

    fn status(&self) -> StatusCode {
        match self {
            Fault::Refused(refusal) => refusal.status(),
            Fault::Form(_) => StatusCode::BAD_REQUEST,
            Fault::Unproven => StatusCode::FORBIDDEN,
            Fault::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Fault {
        Fault::Refused(error.into())
    }
}

impl From<ListError> for Fault {
    fn from(error: ListError) -> Fault {
        Fault::Refused(error.into())
    }
}

impl Fault {
    /// The page that says so; with a menu for somebody who is known.
    pub(super) fn page(&self, visitor: Option<&Visitor>) -> Response {
        let status = self.status();
        let title = status.canonical_reason().unwrap_or("Error");
        let body = html! {
            h1 { (title) }
            p.notice role="alert" { (self) "." }
            p { a href="/" { "To the overview" } }
        };
        (status, document(visitor, Here::Elsewhere, title, body)).into_response()
    }
}

impl IntoResponse for Fault {
    /// Nobody knows here who looks: the fault goes along for the [guard](super::visitor::guard), who does.
    fn into_response(self) -> Response {
        let fault = Arc::new(self);
        let mut response = fault.page(None);
        response.extensions_mut().insert(fault);
        response
    }
}
