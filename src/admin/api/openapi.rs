//! The OpenAPI 3.1 document of the admin API, generated from the handlers.

use axum::Json;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::{Modify, OpenApi, ToSchema};

/// The document.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Onceward, admin API",
        description = "For operators, on the admin port. Every path under /v1/ except this \
                       document requires `Authorization: Bearer` with a token of `[admin_auth]`; a \
                       port on loopback without tokens requires none. The role `read` allows \
                       queries, `operate` also changes. A change of an operation names the version \
                       that it was decided on."
    ),
    paths(
        super::process::alive,
        super::process::ready,
        super::process::metrics,
        document,
        super::operations::list,
        super::operations::show,
        super::operations::resolve,
        super::operations::retry,
        super::operations::release,
        super::operations::expire,
        super::lookup::lookup,
        super::lookup::scope,
        super::sinks::list,
        super::sinks::pause,
        super::sinks::resume,
        super::sinks::test,
        super::dead_letters::list,
        super::dead_letters::requeue_many,
        super::dead_letters::show,
        super::dead_letters::requeue,
        super::dead_letters::discard,
        super::sagas::list,
        super::sagas::show,
        super::sagas::retry,
        super::sagas::skip,
        super::sagas::cancel,
        super::outbox::reseal,
        super::read_model::timeline,
        super::read_model::statistics,
        super::read_model::overview,
        super::read_model::report,
        super::projection::show,
        super::projection::rebuild,
        super::tail::tail,
        super::event_log::verify_log,
        super::reload::reload,
        super::log_level::show,
        super::log_level::change,
    ),
    components(schemas(ProblemDocument)),
    modifiers(&TokenScheme)
)]
pub(super) struct ApiDocument;

/// Adds the token scheme to every path that can answer 401, so that generated clients send the
/// token. The token is optional, because a port on loopback needs none.
struct TokenScheme;

impl Modify for TokenScheme {
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

/// A refusal (RFC 9457).
#[derive(ToSchema)]
#[allow(dead_code, reason = "the schema of problem documents, which `problem.rs` writes")]
struct ProblemDocument {
    /// `urn:onceward:problem:` and the name of the kind.
    r#type: String,
    /// The name of the status.
    title: String,
    /// The status.
    status: u16,
    /// The text of the refusal, with advice.
    detail: String,
}

/// Returns this document.
#[utoipa::path(
    get, path = "/v1/openapi.json", tag = "process",
    responses((status = 200, description = "OpenAPI 3.1"))
)]
pub(super) async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(ApiDocument::openapi())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;
    use crate::admin::problem_kind::ProblemKind;

    fn text() -> serde_json::Value {
        serde_json::to_value(ApiDocument::openapi()).unwrap()
    }

    #[test]
    fn a_generated_client_sends_the_token_where_one_is_required_and_finds_versions() {
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
        let mut documented = BTreeSet::new();
        for path in document["paths"].as_object().unwrap().values() {
            for method in path.as_object().unwrap().values() {
                for (status, response) in method["responses"].as_object().unwrap() {
                    let words = response["description"].as_str().unwrap().split("; ");
                    for name in words.filter_map(|word| word.strip_prefix('`')?.split_once("`: ")) {
                        let kind = ProblemKind::ALL
                            .into_iter()
                            .find(|kind| kind.name() == name.0)
                            .unwrap();
                        assert_eq!(kind.status().as_str(), status, "{kind:?}");
                        documented.insert(kind.name());
                    }
                }
            }
        }
        // Refusals that do not belong to a single path.
        documented.extend(
            [
                ProblemKind::NotFound,
                ProblemKind::MethodNotAllowed,
                ProblemKind::RequestTimeout,
                ProblemKind::Overloaded,
            ]
            .map(ProblemKind::name),
        );
        assert_eq!(documented, ProblemKind::ALL.map(ProblemKind::name).into());
    }
}
