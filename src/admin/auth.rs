//! Authentication and authorization of the admin port: tokens, roles, and protection against
//! requests from web pages.

use axum::http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::problem::AdminRefusal;

/// A bearer token, stored as its SHA-256 hash.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    name: String,
    operate: bool,
    hash: [u8; 32],
}

impl Token {
    /// Creates a token with this name. `operate` allows changes.
    pub fn new(name: &str, operate: bool, secret: &[u8]) -> Token {
        Token { name: name.to_owned(), operate, hash: Sha256::digest(secret).into() }
    }

    /// Returns the name of the token's holder.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Returns whether the token allows changes.
    pub(super) fn may_operate(&self) -> bool {
        self.operate
    }
}

/// The access rule of the admin port.
#[derive(Clone)]
pub enum Access {
    /// Everybody on this machine, through a listener on loopback. Requests from web pages are
    /// refused.
    Loopback,
    /// Holders of one of these tokens.
    Tokens(Vec<Token>),
}

/// The name under which a change is logged.
#[derive(Clone)]
pub(super) struct Operator(pub String);

/// What the role of a request's sender permits. It decides what the answer shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Permission {
    /// Queries, without the contents of events.
    Read,
    /// Everything.
    Operate,
}

/// Returns the operator of a request and the permission, or the reason why the request is
/// refused. A request with `changes` needs the role `operate`.
pub(super) fn authorize(
    access: &Access,
    headers: &HeaderMap,
    changes: bool,
) -> Result<(Operator, Permission), AdminRefusal> {
    match access {
        Access::Loopback if is_from_a_page(headers) => Err(AdminRefusal::FromPage),
        Access::Loopback => Ok((Operator("loopback".into()), Permission::Operate)),
        Access::Tokens(tokens) => match bearer(headers).and_then(|secret| find(tokens, secret)) {
            Some(token) if token.operate => Ok((Operator(token.name.clone()), Permission::Operate)),
            Some(token) if !changes => Ok((Operator(token.name.clone()), Permission::Read)),
            Some(_) => Err(AdminRefusal::ReadOnly),
            None => Err(AdminRefusal::TokenMissing),
        },
    }
}

/// Returns the secret of a bearer token (RFC 6750, section 2.1).
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let sent = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, secret) = sent.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(secret)
}

/// Returns the token with this secret. Compares every token in constant time, so that the duration
/// reveals nothing about a similar secret.
pub(super) fn find<'t>(tokens: &'t [Token], secret: &[u8]) -> Option<&'t Token> {
    let hash: [u8; 32] = Sha256::digest(secret).into();
    tokens.iter().fold(
        None,
        |found, token| if bool::from(token.hash.ct_eq(&hash)) { Some(token) } else { found },
    )
}

/// Returns whether a browser sent the request for a web page. Such a request has an origin, or a
/// host name that was rebound to this machine. This function does not guard the paths of the admin
/// port's own pages.
fn is_from_a_page(headers: &HeaderMap) -> bool {
    let by_a_page = headers.contains_key(header::ORIGIN)
        || headers.get("sec-fetch-site").is_some_and(|site| site != "none");
    by_a_page || !names_this_machine(headers)
}

/// Returns whether the request is for an IP address or `localhost`. The owner of any other name may
/// have rebound it to this machine.
pub(super) fn names_this_machine(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST) else { return true };
    let Ok(authority) = axum::http::uri::Authority::try_from(host.as_bytes()) else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok()
}
