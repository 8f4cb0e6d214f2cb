//! The middleware that guards the admin port.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::auth::{Access, authorize, names_this_machine};
use super::problem::AdminRefusal;
use super::state::Admin;

/// Middleware that authorizes a request. A token with the role `read` may only use GET and HEAD.
pub(super) async fn guard(
    State(admin): State<Arc<Admin>>,
    request: Request,
    next: Next,
) -> Response {
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD);
    authorized(&admin, request, next, changes).await
}

/// Middleware that authorizes a request to a path that changes nothing. All methods need only the
/// role `read`.
pub(super) async fn readers(
    State(admin): State<Arc<Admin>>,
    request: Request,
    next: Next,
) -> Response {
    authorized(&admin, request, next, false).await
}

async fn authorized(admin: &Admin, mut request: Request, next: Next, changes: bool) -> Response {
    match authorize(&admin.access, request.headers(), changes) {
        Ok((operator, role)) => {
            request.extensions_mut().insert(operator);
            request.extensions_mut().insert(role);
            next.run(request).await
        }
        Err(refusal) => refusal.into_response(),
    }
}

/// Middleware for a path that needs no token. On loopback, every process of this machine may use
/// the path, but only with a local host name: see [`own_host`]. A port that is not on loopback
/// accepts any host name, for example the name of a proxy in front of it.
pub(super) async fn open(
    State(admin): State<Arc<Admin>>,
    request: Request,
    next: Next,
) -> Response {
    if admin.on_loopback && !names_this_machine(request.headers()) {
        return AdminRefusal::FromPage.into_response();
    }
    next.run(request).await
}

/// Middleware that refuses requests for other host names, on every path of a loopback port without
/// tokens. The owner of a web page may have rebound such a name to this machine (DNS rebinding).
/// The page could then read the response.
pub(super) async fn own_host(
    State(admin): State<Arc<Admin>>,
    request: Request,
    next: Next,
) -> Response {
    if matches!(admin.access, Access::Loopback) && !names_this_machine(request.headers()) {
        return AdminRefusal::FromPage.into_response();
    }
    next.run(request).await
}
