//! The JSON API of the admin port: its paths, handlers and OpenAPI document.

use std::sync::Arc;

use axum::routing::{MethodRouter, get, post};

use super::state::Admin;

mod dead_letters;
mod event_log;
mod log_level;
mod lookup;
mod openapi;
mod operations;
mod outbox;
mod process;
mod projection;
mod read_model;
mod refusals;
mod reload;
mod sagas;
mod sinks;
mod tail;

/// A path, its handlers, and its access rule.
pub(super) type ApiPath = (&'static str, MethodRouter<Arc<Admin>>, PathAccess);

/// The access rule of a path.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum PathAccess {
    /// Everybody, because the responses show nothing about operations.
    Open,
    /// Role `read` for GET and HEAD, role `operate` for other methods.
    Operators,
    /// Role `read` for all methods. The path has its input in a body, but changes nothing.
    Readers,
}

/// Returns all paths of the API.
pub(super) fn paths() -> Vec<ApiPath> {
    use PathAccess::{Open, Operators, Readers};
    vec![
        ("/healthz", get(process::alive), Open),
        ("/readyz", get(process::ready), Open),
        ("/metrics", get(process::metrics), Open),
        ("/v1/openapi.json", get(openapi::document), Open),
        ("/v1/operations", get(operations::list), Operators),
        ("/v1/operations/lookup", post(lookup::lookup), Readers),
        ("/v1/scope", post(lookup::scope), Readers),
        ("/v1/operations/{operation}", get(operations::show), Operators),
        ("/v1/operations/{operation}/timeline", get(read_model::timeline), Operators),
        ("/v1/operations/{operation}/resolve", post(operations::resolve), Operators),
        ("/v1/operations/{operation}/release", post(operations::release), Operators),
        ("/v1/operations/{operation}/retry", post(operations::retry), Operators),
        ("/v1/operations/{operation}/expire", post(operations::expire), Operators),
        ("/v1/sinks", get(sinks::list), Operators),
        ("/v1/sinks/{name}/pause", post(sinks::pause), Operators),
        ("/v1/sinks/{name}/resume", post(sinks::resume), Operators),
        ("/v1/sinks/{name}/test", post(sinks::test), Operators),
        ("/v1/dead-letters", get(dead_letters::list), Operators),
        ("/v1/dead-letters/requeue", post(dead_letters::requeue_many), Operators),
        ("/v1/dead-letters/{id}", get(dead_letters::show), Operators),
        ("/v1/dead-letters/{id}/requeue", post(dead_letters::requeue), Operators),
        ("/v1/dead-letters/{id}/discard", post(dead_letters::discard), Operators),
        ("/v1/sagas", get(sagas::list), Operators),
        ("/v1/sagas/{id}", get(sagas::show), Operators),
        ("/v1/sagas/{id}/retry", post(sagas::retry), Operators),
        ("/v1/sagas/{id}/skip", post(sagas::skip), Operators),
        ("/v1/sagas/{id}/cancel", post(sagas::cancel), Operators),
        ("/v1/outbox/reseal", post(outbox::reseal), Operators),
        ("/v1/statistics", get(read_model::statistics), Operators),
        ("/v1/overview", get(read_model::overview), Operators),
        ("/v1/report", get(read_model::report), Operators),
        ("/v1/projection", get(projection::show), Operators),
        ("/v1/projection/rebuild", post(projection::rebuild), Operators),
        ("/v1/log", get(tail::tail), Operators),
        ("/v1/log/verify", get(event_log::verify_log), Operators),
        ("/v1/log-level", get(log_level::show).put(log_level::change), Operators),
        ("/v1/reload", post(reload::reload), Operators),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use utoipa::OpenApi;

    use super::*;

    #[test]
    fn every_path_of_the_router_is_documented_and_no_other() {
        let document = serde_json::to_value(openapi::ApiDocument::openapi()).unwrap();
        assert_eq!(document["openapi"], "3.1.0");
        let documented: BTreeSet<&str> =
            document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
        let served: BTreeSet<&str> = paths().into_iter().map(|(path, ..)| path).collect();
        assert_eq!(documented, served);
    }
}
