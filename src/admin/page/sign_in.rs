//! Signing in and out. The token is asked for once; what the browser keeps is the name of a session.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use serde::Deserialize;

use super::fault::Fault;
use super::layout::{Here, document, proof};
use super::session::Name;
use super::visitor::{Signed, Visitor};
use crate::admin::Admin;
use crate::admin::auth::{Access, find};

#[derive(Deserialize)]
pub(super) struct Next {
    next: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Credentials {
    token: String,
    next: Option<String>,
}

/// A form whose button says it all.
#[derive(Deserialize)]
pub(super) struct Nothing {}

pub(super) async fn ask(visitor: Visitor, Query(Next { next }): Query<Next>) -> Response {
    let next = local(next.as_deref());
    if visitor.operator.is_some() {
        return Redirect::to(next).into_response();
    }
    asked(StatusCode::OK, &visitor, next, None)
}

pub(super) async fn sign_in(
    State(admin): State<Arc<Admin>>,
    visitor: Visitor,
    headers: HeaderMap,
    Signed(Credentials { token, next }): Signed<Credentials>,
) -> Result<Response, Fault> {
    let next = local(next.as_deref());
    let Access::Tokens(tokens) = &admin.access else {
        return Ok(Redirect::to(next).into_response());
    };
    let Some(token) = find(tokens, token.trim().as_bytes()) else {
        let told = "That is no token of this gateway.";
        return Ok(asked(StatusCode::FORBIDDEN, &visitor, next, Some(told)));
    };
    tracing::info!(operator = token.name(), "signed in to the page");
    let name =
        admin.sessions.open(token.clone(), admin.clock.boot_ms()).map_err(Fault::internal)?;
    Ok(([(header::SET_COOKIE, name.cookie(&headers))], Redirect::to(next)).into_response())
}

pub(super) async fn sign_out(
    State(admin): State<Arc<Admin>>,
    visitor: Visitor,
    headers: HeaderMap,
    Signed(Nothing {}): Signed<Nothing>,
) -> Response {
    admin.sessions.close(&visitor.name);
    ([(header::SET_COOKIE, Name::forget(&headers))], Redirect::to("/sign-in")).into_response()
}

fn asked(status: StatusCode, visitor: &Visitor, next: &str, fault: Option<&str>) -> Response {
    (status, document(None, Here::Elsewhere, "Sign in", form(visitor, next, fault))).into_response()
}

fn form(visitor: &Visitor, next: &str, fault: Option<&str>) -> Markup {
    html! {
        div.panel.narrow {
            h1 { "Sign in" }
            @if let Some(fault) = fault { p.notice.bad #fault role="alert" { (fault) } }
            form method="post" action="/sign-in" {
                (proof(visitor))
                input type="hidden" name="next" value=(next);
                div.field {
                    label for="token" { "Token" }
                    input #token type="password" name="token" required autocomplete="current-password" autofocus
                        aria-describedby=(if fault.is_some() { "fault about" } else { "about" })
                        aria-invalid=[fault.is_some().then_some("true")];
                    p.hint #about { "One of " code { "[admin_auth] tokens" } ". It is asked for once, and not kept in the browser." }
                }
                button type="submit" { "Sign in" }
            }
        }
    }
}

/// Where to go afterwards: a page of this server, never another's (`//other.example` is one).
fn local(next: Option<&str>) -> &str {
    let sound = |next: &&str| {
        next.starts_with('/')
            && !next[1..].starts_with(['/', '\\'])
            && next.bytes().all(|byte| byte.is_ascii_graphic())
    };
    next.filter(sound).unwrap_or("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signing_in_leads_to_this_server_and_nowhere_else() {
        for here in ["/", "/operations?state=uncertain", "/operations/op_1"] {
            assert_eq!(local(Some(here)), here);
        }
        for elsewhere in [
            "//evil.example",
            "/\\evil.example",
            "https://evil.example",
            "",
            "operations",
            "/a\r\nb",
            "/\t/evil",
        ] {
            assert_eq!(local(Some(elsewhere)), "/", "{elsewhere:?}");
        }
        assert_eq!(local(None), "/");
    }
}
