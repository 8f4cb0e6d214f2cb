//! The page on the admin port: what happened to a payment, and what can be done about it. Made here as HTML, and whole without
//! scripts; with them, pieces of it are fetched anew.
//!
//! Danger: it settles payments in the name of whoever looks at it. [`visitor`] says who that is and which requests come from
//! it; [`session`] keeps tokens out of browsers; the headers below keep other content out of it and it out of other pages.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};

use super::Admin;

mod actions;
mod assets;
mod chart;
mod fault;
mod layout;
mod operation;
mod overview;
mod search;
mod session;
mod sign_in;
mod table;
mod timeline;
mod uncertain;
mod visitor;

pub use session::{NoRandomness, Sessions};

/// What a page may load, run and be put into: its own files, no script but those, and nothing at all.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// Fields of every page. A referrer stays on this server, but is there: without one, browsers don't say where a form is from.
const FIELDS: [(HeaderName, &str); 6] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// The page's routes.
pub(super) fn router(admin: &Arc<Admin>) -> Router<Arc<Admin>> {
    let pages = Router::new()
        .route("/", get(overview::show))
        .route("/uncertain", get(uncertain::show))
        .route("/operations", get(search::show))
        .route("/operations/lookup", post(search::look_up))
        .route("/operations/scope", post(search::of_client))
        .route("/operations/{operation}", get(operation::show))
        .route("/operations/{operation}/{action}", post(operation::act))
        .route("/sign-out", post(sign_in::sign_out))
        .route_layer(middleware::from_fn(visitor::signed_in))
        .route("/sign-in", get(sign_in::ask).post(sign_in::sign_in))
        .route_layer(middleware::from_fn_with_state(admin.clone(), visitor::guard))
        .layer(middleware::from_fn(not_kept));
    pages.route("/assets/{name}", get(assets::serve)).layer(middleware::from_fn(fenced))
}

/// What a page says is of one moment and for one person.
async fn not_kept(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn fenced(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    for (name, value) in FIELDS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}
