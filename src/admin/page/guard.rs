//! The middleware of the pages: finds the visitor, and accepts forms only from these pages.
//!
//! Danger: any site can make the operator's browser send requests to this server. So a page is sent
//! only to requests of this server's pages, and to people who follow a link. A form is accepted
//! only from a page of this server ([`is_from_here`]), and only with the proof that the page was
//! made for this browser ([`Signed`]).

use std::sync::Arc;
use std::time::Duration;

use axum::Form;
use axum::extract::{FromRequest, FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::error::PageError;
use super::visitor::Visitor;
use crate::admin::auth::{Access, Operator, names_this_machine};
use crate::admin::problem::AdminRefusal;
use crate::admin::saga_search::has_stored_sagas;
use crate::admin::session::SessionName;
use crate::admin::state::Admin;

/// A form with a valid proof that a page of this process made it for this browser.
pub(super) struct Signed<T>(pub T);

#[derive(Deserialize)]
struct FormWithProof<T> {
    proof: String,
    #[serde(flatten)]
    form: T,
}

/// Middleware that adds the visitor to a request for a page, or refuses the request.
pub(super) async fn guard(
    State(admin): State<Arc<Admin>>,
    mut request: Request,
    next: Next,
) -> Response {
    let headers = request.headers();
    let looks = matches!(*request.method(), Method::GET | Method::HEAD);
    let rebound = matches!(admin.access, Access::Loopback) && !names_this_machine(headers);
    if rebound || !is_from_here(headers, looks) {
        return AdminRefusal::FromPage.into_response();
    }
    let (visitor, cookie) = match visitor(&admin, headers) {
        Ok(found) => found,
        Err(error) => return error.into_response(),
    };
    let is_refresh = request.headers().contains_key("hx-request");
    let has_sagas = has_sagas(&admin, &visitor, is_refresh).await;
    let visitor = Visitor { has_sagas, ..visitor };
    request.extensions_mut().insert(visitor.clone());
    let mut response = next.run(request).await;
    if let Some(error) = response.extensions_mut().remove::<Arc<PageError>>()
        && visitor.operator.is_some()
    {
        response = error.page(Some(&visitor));
    }
    if let Some(cookie) = cookie.and_then(|cookie| HeaderValue::try_from(cookie).ok())
        && !response.headers().contains_key(header::SET_COOKIE)
    {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    response
}

/// Returns whether the menu has the sagas. A gateway without sagas in its configuration asks the
/// store, because it finishes those of others. A refresh does not ask: it leaves the menu as it is.
async fn has_sagas(admin: &Admin, visitor: &Visitor, is_refresh: bool) -> bool {
    /// A page does not wait longer for its menu.
    const WAIT_MAX: Duration = Duration::from_millis(500);
    if !admin.sagas.is_empty() {
        return true;
    }
    if visitor.operator.is_none() || is_refresh {
        return false;
    }
    let asked = tokio::time::timeout(WAIT_MAX, has_stored_sagas(admin)).await;
    matches!(asked, Ok(Ok(true)))
}

/// Returns the visitor. Also returns the cookie to set, if the request has none.
fn visitor(admin: &Admin, headers: &HeaderMap) -> Result<(Visitor, Option<String>), PageError> {
    let sessions = &admin.sessions;
    let (name, cookie) = match SessionName::of(headers) {
        Some(name) => (name, None),
        None => {
            let name = sessions.name().map_err(PageError::internal)?;
            let cookie = name.cookie(headers);
            (name, Some(cookie))
        }
    };
    let proof = sessions.proof(&name);
    let sums = admin.relay.backlogs().sums();
    let dead_letters = sums.values().map(|sum| sum.dead_letters()).sum();
    let visitor = match &admin.access {
        Access::Loopback => Visitor {
            operator: Some(Operator("loopback".into())),
            may_operate: true,
            has_session: false,
            proof,
            name,
            dead_letters,
            has_sagas: false,
        },
        Access::Tokens(tokens) => {
            // The sessions of a token end when the token is removed from the configuration.
            let token = sessions
                .holder(&name, admin.clock.boot_ms())
                .filter(|token| tokens.contains(token));
            Visitor {
                may_operate: token.as_ref().is_some_and(|token| token.may_operate()),
                has_session: token.is_some(),
                operator: token.map(|token| Operator(token.name().to_owned())),
                proof,
                name,
                dead_letters,
                has_sagas: false,
            }
        }
    };
    Ok((visitor, cookie))
}

/// Middleware that redirects visitors without a session to the sign-in page. After the sign-in,
/// they get the requested page.
pub(super) async fn require_sign_in(request: Request, next: Next) -> Response {
    let visitor = request.extensions().get::<Visitor>();
    if visitor.is_some_and(|visitor| visitor.operator.is_some()) {
        return next.run(request).await;
    }
    let here = request.uri().path_and_query().map_or("/", |here| here.as_str());
    let here = if request.method() == Method::GET { here } else { "/" };
    let there = format!(
        "/sign-in?next={}",
        percent_encoding::utf8_percent_encode(here, percent_encoding::NON_ALPHANUMERIC)
    );
    if request.headers().contains_key("hx-request") {
        // A refreshed part of a page can't show the sign-in form, so the whole page is redirected.
        return ([("hx-redirect", "/sign-in")], "").into_response();
    }
    Redirect::to(&there).into_response()
}

/// Returns whether a page of this server or a person sent the request. It uses fields that browsers
/// set and pages can't change.
fn is_from_here(headers: &HeaderMap, looks: bool) -> bool {
    if let Some(origin) = headers.get(header::ORIGIN) {
        let Some(host) = headers.get(header::HOST) else { return false };
        let authority = origin
            .to_str()
            .ok()
            .and_then(|origin| origin.split_once("://"))
            .map(|(_, authority)| authority);
        if !authority
            .is_some_and(|authority| authority.as_bytes().eq_ignore_ascii_case(host.as_bytes()))
        {
            return false;
        }
    }
    let is = |name: &str, word: &str| headers.get(name).is_some_and(|value| value == word);
    match headers.get("sec-fetch-site").map(HeaderValue::as_bytes) {
        None | Some(b"same-origin" | b"none") => true,
        // Another site has a link to this page, for example a runbook. The link opens the page as a
        // whole document, and the other site can't read it.
        Some(_) => looks && is("sec-fetch-mode", "navigate") && is("sec-fetch-dest", "document"),
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Visitor {
    type Rejection = PageError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Visitor, PageError> {
        parts
            .extensions
            .get::<Visitor>()
            .cloned()
            .ok_or_else(|| PageError::internal("a page outside of the guard"))
    }
}

impl<T: DeserializeOwned> FromRequest<Arc<Admin>> for Signed<T> {
    type Rejection = PageError;

    async fn from_request(request: Request, admin: &Arc<Admin>) -> Result<Signed<T>, PageError> {
        let visitor = request
            .extensions()
            .get::<Visitor>()
            .cloned()
            .ok_or_else(|| PageError::internal("a page outside of the guard"))?;
        let sent = Form::<FormWithProof<T>>::from_request(request, admin).await;
        let Form(FormWithProof { proof, form }) =
            sent.map_err(|rejection| PageError::Form(rejection.body_text()))?;
        if !admin.sessions.proves(&visitor.name, &proof) {
            return Err(PageError::Unproven);
        }
        Ok(Signed(form))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_here(fields: &[(&'static str, &'static str)], looks: bool) -> bool {
        let fields = fields.iter().chain(&[("host", "127.0.0.1:8081")]);
        is_from_here(
            &fields
                .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)))
                .collect(),
            looks,
        )
    }

    #[test]
    fn forms_come_from_pages_of_this_very_server() {
        assert!(from_here(
            &[("origin", "http://127.0.0.1:8081"), ("sec-fetch-site", "same-origin")],
            false
        ));
        assert!(from_here(&[], false), "no browser: the proof still has to be there");
        for origin in [
            "http://127.0.0.1:8082",
            "http://127.0.0.1",
            "https://evil.example",
            "null",
            "",
            "http://127.0.0.1:8081/",
        ] {
            assert!(!from_here(&[("origin", origin)], false), "{origin}");
        }
        for site in ["same-site", "cross-site", "new-word"] {
            let fields = [
                ("sec-fetch-site", site),
                ("sec-fetch-mode", "navigate"),
                ("sec-fetch-dest", "document"),
            ];
            assert!(!from_here(&fields, false), "{site}");
        }
    }

    #[test]
    fn links_to_it_may_be_followed_and_it_may_not_be_fetched_or_framed() {
        let link = [
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-mode", "navigate"),
            ("sec-fetch-dest", "document"),
        ];
        assert!(from_here(&link, true));
        assert!(from_here(&[("sec-fetch-site", "none")], true));
        for other in [("sec-fetch-mode", "cors"), ("sec-fetch-mode", "no-cors")] {
            assert!(!from_here(&[link[0], other, link[2]], true), "{other:?}");
        }
        for dest in ["iframe", "image", "object", "empty"] {
            assert!(!from_here(&[link[0], link[1], ("sec-fetch-dest", dest)], true), "{dest}");
        }
    }
}
