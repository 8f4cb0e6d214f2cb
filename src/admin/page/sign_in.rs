//! Sign-in and sign-out. The visitor enters the token once. The browser stores only the name of a
//! session.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use serde::Deserialize;

use super::error::PageError;
use super::guard::Signed;
use super::layout::{MenuEntry, document, proof};
use super::visitor::Visitor;
use crate::admin::auth::{Access, find};
use crate::admin::session::SessionName;
use crate::admin::state::Admin;

#[derive(Deserialize)]
pub(super) struct SignInQuery {
    next: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Credentials {
    token: String,
    next: Option<String>,
}

/// A form without fields.
#[derive(Deserialize)]
pub(super) struct EmptyForm {}

pub(super) async fn ask(
    visitor: Visitor,
    Query(SignInQuery { next }): Query<SignInQuery>,
) -> Response {
    let next = local(next.as_deref());
    if visitor.operator.is_some() {
        return Redirect::to(next).into_response();
    }
    sign_in_page(StatusCode::OK, &visitor, next, None)
}

pub(super) async fn sign_in(
    State(admin): State<Arc<Admin>>,
    visitor: Visitor,
    headers: HeaderMap,
    Signed(Credentials { token, next }): Signed<Credentials>,
) -> Result<Response, PageError> {
    let next = local(next.as_deref());
    let Access::Tokens(tokens) = &admin.access else {
        return Ok(Redirect::to(next).into_response());
    };
    let Some(token) = find(tokens, token.trim().as_bytes()) else {
        let error = "This gateway has no such token.";
        return Ok(sign_in_page(StatusCode::FORBIDDEN, &visitor, next, Some(error)));
    };
    tracing::info!(operator = token.name(), "signed in to the page");
    let name =
        admin.sessions.open(token.clone(), admin.clock.boot_ms()).map_err(PageError::internal)?;
    Ok(([(header::SET_COOKIE, name.cookie(&headers))], Redirect::to(next)).into_response())
}

pub(super) async fn sign_out(
    State(admin): State<Arc<Admin>>,
    visitor: Visitor,
    headers: HeaderMap,
    Signed(EmptyForm {}): Signed<EmptyForm>,
) -> Response {
    admin.sessions.close(&visitor.name);
    ([(header::SET_COOKIE, SessionName::forget(&headers))], Redirect::to("/sign-in"))
        .into_response()
}

fn sign_in_page(
    status: StatusCode,
    visitor: &Visitor,
    next: &str,
    fault: Option<&str>,
) -> Response {
    (status, document(None, MenuEntry::Elsewhere, "Sign in", form(visitor, next, fault)))
        .into_response()
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
                    input #token type="password" name="token" required
                        autocomplete="current-password" autofocus
                        aria-describedby=(if fault.is_some() { "fault about" } else { "about" })
                        aria-invalid=[fault.is_some().then_some("true")];
                    p.hint #about {
                        "One of " code { "[admin_auth] tokens" }
                        ". It is not stored in the browser."
                    }
                }
                button type="submit" { "Sign in" }
            }
        }
    }
}

/// Returns the path of the page to show after the sign-in. It must be on this server:
/// `//other.example` would be another server.
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
