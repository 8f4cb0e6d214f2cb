//! The error pages. They show why a page can't be shown or why a form was refused, with advice.

use std::sync::Arc;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use maud::html;

use super::layout::{MenuEntry, document};
use super::visitor::Visitor;
use crate::admin::problem::AdminRefusal;
use crate::store::{ListError, StoreError};

/// The reason why a page can't be shown.
#[derive(Debug, thiserror::Error)]
pub(super) enum PageError {
    /// A refusal that the API has too.
    #[error(transparent)]
    Refused(#[from] AdminRefusal),
    /// A form that can't be parsed.
    #[error("the form can't be read: {0}")]
    Form(String),
    /// A form without a valid proof for this browser and process.
    #[error(
        "this form was made before the gateway restarted or you signed in, or by another page. \
         Nothing was changed: open the page again"
    )]
    Unproven,
    /// An error that should not happen.
    #[error("the page could not be rendered: {0}")]
    Internal(String),
}

impl PageError {
    /// Creates an error that should not happen.
    pub(super) fn internal(why: impl ToString) -> PageError {
        PageError::Internal(why.to_string())
    }

    fn status(&self) -> StatusCode {
        match self {
            PageError::Refused(refusal) => refusal.status(),
            PageError::Form(_) => StatusCode::BAD_REQUEST,
            PageError::Unproven => StatusCode::FORBIDDEN,
            PageError::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl From<StoreError> for PageError {
    fn from(error: StoreError) -> PageError {
        PageError::Refused(error.into())
    }
}

impl From<ListError> for PageError {
    fn from(error: ListError) -> PageError {
        PageError::Refused(error.into())
    }
}

impl PageError {
    /// Renders the error page. It has a menu if the visitor is known.
    pub(super) fn page(&self, visitor: Option<&Visitor>) -> Response {
        let status = self.status();
        let title = status.canonical_reason().unwrap_or("Error");
        let body = html! {
            h1 { (title) }
            p.notice role="alert" { (self) "." }
            p { a href="/" { "To the overview" } }
        };
        (status, document(visitor, MenuEntry::Elsewhere, title, body)).into_response()
    }
}

impl IntoResponse for PageError {
    /// Passes the error on to the [guard](super::guard), which adds the visitor's menu to the page.
    fn into_response(self) -> Response {
        let fault = Arc::new(self);
        let mut response = fault.page(None);
        response.extensions_mut().insert(fault);
        response
    }
}
