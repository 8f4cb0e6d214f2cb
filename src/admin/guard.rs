//! The middleware that guards the admin port.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::auth::{Access, authorize, names_this_machine};
use super::problem::AdminRefusal;
use super::state::Admin;

/// Middleware that authorizes a request; a token with the role `read` may only use GET and HEAD.
pub(super) async fn guard(
    State(admin): State<Arc<Admin>>,
    request: Request,
    next: Next,
) -> Response {
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD);
    authorized(&admin, request, next, changes).await
}

/// Middleware that authorizes a request to a path that changes nothing, whatever its method.
pub(super) async fn readers(
    State(admin): State<Arc<Admin>>,
    request: Request,
    next: Next,
) -> Response {
    authorized(&admin, request, next, false).await
}

async fn authorized(admin: &Admin, mut request: Request, next: Next, changes: bool) -> Response {
    match authorize(&admin.access, request.headers(), changes) {
        Ok(operator) => {
            request.extensions_mut().insert(operator);
            next.run(request).await
        }
        Err(refusal) => refusal.into_response(),
    }
}

/// Middleware for a path that needs no token. On loopback every process of this machine may use it,
/// under a local host name only: see [`own_host`]. A port beyond loopback accepts any host name,
/// such as that of a proxy in front of it.
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
/// tokens. A web page may have rebound such a name to this machine (DNS rebinding), and would read
/// the response.
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
