//! Who may use the operator's part of the admin port.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::Admin;
use super::problem::AdminRefusal;

/// A bearer token, kept as its hash.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    name: String,
    operate: bool,
    hash: [u8; 32],
}

impl Token {
    /// A token of this name; `operate` allows changes.
    pub fn new(name: &str, operate: bool, secret: &[u8]) -> Token {
        Token { name: name.to_owned(), operate, hash: Sha256::digest(secret).into() }
    }

    /// Who holds it.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether it allows changes.
    pub(super) fn may_operate(&self) -> bool {
        self.operate
    }
}

/// Who may come in.
#[derive(Clone)]
pub enum Access {
    /// Anybody on this machine, by a listener on loopback, except web pages.
    Loopback,
    /// Holders of one of these.
    Tokens(Vec<Token>),
}

/// Who did it, for the audit line.
#[derive(Clone)]
pub(super) struct Operator(pub String);

/// Lets a request pass, or refuses it: who may read only asks by GET and HEAD.
pub(super) async fn guard(
    State(admin): State<Arc<Admin>>,
    request: Request,
    next: Next,
) -> Response {
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD);
    passed(&admin, request, next, changes).await
}

/// The same for a path that changes nothing, whatever its method.
pub(super) async fn readers(
    State(admin): State<Arc<Admin>>,
    request: Request,
    next: Next,
) -> Response {
    passed(&admin, request, next, false).await
}

async fn passed(admin: &Admin, mut request: Request, next: Next, changes: bool) -> Response {
    match admit(&admin.access, request.headers(), changes) {
        Ok(operator) => {
            request.extensions_mut().insert(operator);
            next.run(request).await
        }
        Err(refusal) => refusal.into_response(),
    }
}

/// Lets anybody pass by a path without a token. On loopback that is anybody on this machine: see [`own_host`]. Paths that need a
/// token may be asked for by any name, such as a proxy's in front of the port.
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

/// Refuses, on every path of a port on loopback without tokens, a request for another host name: a web page may have rebound
/// that name to this machine (DNS rebinding), and would read the answer.
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

fn admit(access: &Access, headers: &HeaderMap, changes: bool) -> Result<Operator, AdminRefusal> {
    match access {
        Access::Loopback if is_from_a_page(headers) => Err(AdminRefusal::FromPage),
        Access::Loopback => Ok(Operator("loopback".into())),
        Access::Tokens(tokens) => match bearer(headers).and_then(|secret| find(tokens, secret)) {
            Some(token) if token.operate || !changes => Ok(Operator(token.name.clone())),
            Some(_) => Err(AdminRefusal::ReadOnly),
            None => Err(AdminRefusal::TokenMissing),
        },
    }
}

/// The secret of a bearer token (RFC 6750, section 2.1).
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let sent = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, secret) = sent.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(secret)
}

/// The token with this secret. Every one is compared, in constant time: how long it takes tells nothing about which is near.
pub(super) fn find<'t>(tokens: &'t [Token], secret: &[u8]) -> Option<&'t Token> {
    let hash: [u8; 32] = Sha256::digest(secret).into();
    tokens.iter().fold(
        None,
        |found, token| if bool::from(token.hash.ct_eq(&hash)) { Some(token) } else { found },
    )
}

/// Whether a browser sent this for a page: it names an origin, or a host name that was rebound to this machine. The page
/// has paths of its own, and none of them is here.
fn is_from_a_page(headers: &HeaderMap) -> bool {
    let by_a_page = headers.contains_key(header::ORIGIN)
        || headers.get("sec-fetch-site").is_some_and(|site| site != "none");
    by_a_page || !names_this_machine(headers)
}

/// Whether a request is for an address or `localhost`: any other name may have been rebound to this machine by whose it is.
pub(super) fn names_this_machine(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST) else { return true };
    let Ok(authority) = axum::http::uri::Authority::try_from(host.as_bytes()) else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok()
}
