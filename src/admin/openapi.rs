//! What the admin API takes and answers, as an OpenAPI 3.1 document made from the handlers themselves.

use std::collections::BTreeMap;

use axum::Json;
use serde_json::json;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Content, RefOr, Response, ResponseBuilder};
use utoipa::{IntoResponses, Modify, OpenApi, ToSchema};

use super::problem::{Kind, TYPE_PREFIX};

/// The document.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Onceward, admin API",
        description = "For operators, on the admin port. On loopback it asks for no token; elsewhere, and wherever \
                       `[admin_auth]` has tokens, every path under /v1/ but this one wants one as `Authorization: Bearer`. The \
                       role `read` looks, `operate` changes. A change names the version that it was decided on."
    ),
    paths(
        super::alive,
        super::ready,
        super::metrics,
        document,
        super::operations::list,
        super::operations::show,
        super::operations::resolve,
        super::operations::retry,
        super::operations::release,
        super::operations::expire,
        super::lookup::lookup,
        super::lookup::scope,
        super::model::timeline,
        super::model::statistics,
        super::model::overview,
        super::model::report,
        super::projection::show,
        super::projection::rebuild,
        super::tail::tail,
        super::log::verify_log,
        super::reload::reload,
        super::log_level::show,
        super::log_level::change,
    ),
    components(schemas(ProblemDocument)),
    modifiers(&Tokens)
)]
struct Document;

/// Says where a token is wanted, so that clients made from the document send it: on every path that can refuse for want of one.
/// On loopback none is, so it says that it may be left away.
struct Tokens;

impl Modify for Tokens {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        const NAME: &str = "token";
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        document.components.get_or_insert_default().add_security_scheme(NAME, scheme);
        let paths = document.paths.paths.values_mut();
        let operations =
            paths.flat_map(|path| [&mut path.get, &mut path.put, &mut path.post]).flatten();
        for operation in
            operations.filter(|operation| operation.responses.responses.contains_key("401"))
        {
            operation.security =
                Some(vec![SecurityRequirement::new(NAME, [""; 0]), SecurityRequirement::default()]);
        }
    }
}

/// Why a request was refused (RFC 9457).
#[derive(ToSchema)]
#[allow(dead_code, reason = "it is told of, not made: problems are written where they arise")]
struct ProblemDocument {
    /// `urn:onceward:problem:` and the kind.
    r#type: String,
    /// The status in words.
    title: String,
    /// The status.
    status: u16,
    /// What happened, and what to do.
    detail: String,
}

/// This document.
#[utoipa::path(
    get, path = "/v1/openapi.json", tag = "process", responses((status = 200, description = "OpenAPI 3.1"))
)]
pub(super) async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}

/// What each group of paths may refuse with.
macro_rules! refusals {
    ($($name:ident: $($kind:ident),+;)+) => {
        $(
            pub(super) struct $name;

            impl IntoResponses for $name {
                fn responses() -> BTreeMap<String, RefOr<Response>> {
                    problems(&[$(Kind::$kind),+])
                }
            }
        )+
    };
}

refusals! {
    Looked: Unauthorized, RequestInvalid, LogOff, StoreUnavailable;
    Listing: Unauthorized, RequestInvalid, StateUnknown, StoreUnavailable, ReadModelOff, ReadModelUnavailable;
    Found: Unauthorized, RequestInvalid, OperationUnknown, StoreUnavailable;
    LookedUp: Unauthorized, RequestInvalid, LookupInvalid, RouteUnknown, OperationUnknown, BodyTooLarge, StoreUnavailable;
    Scoped: Unauthorized, RequestInvalid, LookupInvalid, RouteUnknown, BodyTooLarge;
    Asked: Unauthorized, RequestInvalid, ReadModelOff, ReadModelUnavailable;
    Projection: Unauthorized, ReadModelOff;
    Rebuilt: Unauthorized, Forbidden, ReadModelOff, ReadModelUnavailable;
    Tailed: Unauthorized, RequestInvalid, LogOff, StoreUnavailable;
    Told: Unauthorized, RequestInvalid, OperationUnknown, ReadModelOff, ReadModelUnavailable;
    Changed: Unauthorized, Forbidden, RequestInvalid, IfMatchInvalid, IfMatchRequired, OperationUnknown, OperationMoved,
        InFlight, OperationSettled, OperationNotCompleted, OutcomeUncertain, BodyTooLarge, StoreUnavailable;
    LogLevel: Unauthorized, LogLevelUnavailable;
    LogLevelChanged: Unauthorized, Forbidden, RequestInvalid, LogLevelRefused, LogLevelUnavailable;
    Reloaded: Unauthorized, Forbidden, ReloadRefused, ReloadUnavailable;
}

/// Kinds of problems by their status, each with its type and what it means.
fn problems(kinds: &[Kind]) -> BTreeMap<String, RefOr<Response>> {
    let mut by_status: BTreeMap<String, Vec<Kind>> = BTreeMap::new();
    for kind in kinds {
        by_status.entry(kind.status().as_str().to_owned()).or_default().push(*kind);
    }
    let response = |kinds: &[Kind]| {
        let told: Vec<String> =
            kinds.iter().map(|kind| format!("`{}`: {}", kind.name(), kind.meaning())).collect();
        let types: Vec<String> =
            kinds.iter().map(|kind| format!("{TYPE_PREFIX}{}", kind.name())).collect();
        let mut content =
            Content::new(Some(utoipa::openapi::Ref::from_schema_name("ProblemDocument")));
        content.example = types
            .first()
            .map(|first| json!({ "type": first, "status": kinds[0].status().as_u16() }));
        ResponseBuilder::new()
            .description(told.join("; "))
            .content("application/problem+json", content)
            .build()
    };
    by_status.into_iter().map(|(status, kinds)| (status, response(&kinds).into())).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn text() -> serde_json::Value {
        serde_json::to_value(Document::openapi()).unwrap()
    }

    #[test]
    fn every_path_of_the_router_is_told_of_and_no_other() {
        let document = text();
        assert_eq!(document["openapi"], "3.1.0");
        let told: BTreeSet<&str> =
            document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
        let served: BTreeSet<&str> = super::super::paths().collect();
        assert_eq!(told, served);
    }

    #[test]
    fn a_client_that_is_made_of_it_sends_the_token_where_one_is_wanted_and_knows_where_versions_are()
     {
        let document = text();
        let (name, scheme) =
            document["components"]["securitySchemes"].as_object().unwrap().iter().next().unwrap();
        assert_eq!((&scheme["type"], &scheme["scheme"]), (&"http".into(), &"bearer".into()));
        let wanted = json!([{ name: [] }, {}]);
        for (path, methods) in document["paths"].as_object().unwrap() {
            for method in methods.as_object().unwrap().values() {
                let refuses = method["responses"].as_object().unwrap().contains_key("401");
                assert_eq!(refuses.then_some(&wanted), method.get("security"), "{path}");
                if method["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
                    == "#/components/schemas/OperationView"
                {
                    assert!(method["responses"]["200"]["headers"]["ETag"].is_object(), "{path}");
                }
            }
        }
    }

    #[test]
    fn every_operation_has_a_name_of_its_own() {
        let document = text();
        let methods = document["paths"]
            .as_object()
            .unwrap()
            .values()
            .flat_map(|path| path.as_object().unwrap().values());
        let names: Vec<&str> =
            methods.map(|method| method["operationId"].as_str().unwrap()).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{names:?}");
    }

    #[test]
    fn the_documented_problems_are_those_that_there_are() {
        let document = text();
        let mut told = BTreeSet::new();
        for path in document["paths"].as_object().unwrap().values() {
            for method in path.as_object().unwrap().values() {
                for (status, response) in method["responses"].as_object().unwrap() {
                    let words = response["description"].as_str().unwrap().split("; ");
                    for name in words.filter_map(|word| word.strip_prefix('`')?.split_once("`: ")) {
                        let kind =
                            Kind::ALL.into_iter().find(|kind| kind.name() == name.0).unwrap();
                        assert_eq!(kind.status().as_str(), status, "{kind:?}");
                        told.insert(kind.name());
                    }
                }
            }
        }
        // What belongs to no path.
        told.extend(
            [Kind::NotFound, Kind::MethodNotAllowed, Kind::RequestTimeout, Kind::Overloaded]
                .map(Kind::name),
        );
        assert_eq!(told, Kind::ALL.map(Kind::name).into());
    }
}
