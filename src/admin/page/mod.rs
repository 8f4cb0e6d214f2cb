//! The pages of the admin port, which show the history of operations and offer decisions about
//! them. They are rendered here as HTML and work without scripts. With scripts, parts of the pages
//! are refreshed.
//!
//! Danger: a page settles payments in the name of its visitor. [`guard`] identifies the visitor,
//! and accepts forms only from these pages. [`crate::admin::session`] keeps tokens out of browsers.
//! The header fields below keep other sites' content out of the pages, and the pages out of other
//! sites' frames.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};

use super::state::Admin;

mod actions;
mod assets;
mod chart;
mod delivery;
mod error;
mod guard;
mod layout;
mod operation;
mod overview;
mod sagas;
mod search;
mod sign_in;
mod table;
mod timeline;
mod uncertain;
mod undelivered;
mod visitor;

/// Content security policy: own files only, no other scripts, no embedding in other pages.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; form-action 'self'; base-uri 'none'; \
                      frame-ancestors 'none'";

/// Header fields of every page. Browsers may send the referrer to this server only. Without any
/// referrer, browsers would send no origin with a form.
const FIELDS: [(HeaderName, &str); 6] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Returns the router of the pages.
pub(super) fn router(admin: &Arc<Admin>) -> Router<Arc<Admin>> {
    let pages = Router::new()
        .route("/", get(overview::show))
        .route("/uncertain", get(uncertain::show))
        .route("/operations", get(search::show))
        .route("/operations/lookup", post(search::look_up))
        .route("/operations/scope", post(search::of_client))
        .route("/operations/{operation}", get(operation::show))
        .route("/operations/{operation}/{action}", post(operation::act))
        .route("/delivery", get(delivery::show))
        .route("/delivery/sinks/{sink}/requeue", get(delivery::ask).post(delivery::requeue_all))
        .route("/delivery/sinks/{sink}/{action}", post(delivery::change_sink))
        .route("/delivery/dead-letters/{id}", get(delivery::show_dead_letter))
        .route("/delivery/dead-letters/{id}/{action}", post(delivery::change_dead_letter))
        .route("/sagas", get(sagas::show))
        .route("/sagas/{id}", get(sagas::show_one))
        .route("/sagas/{id}/{decision}", post(sagas::decide))
        .route("/sign-out", post(sign_in::sign_out))
        .route_layer(middleware::from_fn(guard::require_sign_in))
        .route("/sign-in", get(sign_in::ask).post(sign_in::sign_in))
        .route_layer(middleware::from_fn_with_state(admin.clone(), guard::guard))
        .layer(middleware::from_fn(no_store));
    pages.route("/assets/{name}", get(assets::serve)).layer(middleware::from_fn(security_headers))
}

/// Middleware that forbids caching, because a page is for one visitor and is soon out of date.
async fn no_store(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Middleware that adds the header fields of every page.
async fn security_headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    for (name, value) in FIELDS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}
