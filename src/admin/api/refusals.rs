//! The refusals of each path, for the OpenAPI document.

use std::collections::BTreeMap;

use serde_json::json;
use utoipa::IntoResponses;
use utoipa::openapi::{Content, RefOr, Response, ResponseBuilder};

use crate::admin::problem_kind::{ProblemKind, TYPE_PREFIX};

/// Defines the refusals of each group of paths.
macro_rules! refusals {
    ($($name:ident: $($kind:ident),+;)+) => {
        $(
            pub(super) struct $name;

            impl IntoResponses for $name {
                fn responses() -> BTreeMap<String, RefOr<Response>> {
                    problems(&[$(ProblemKind::$kind),+])
                }
            }
        )+
    };
}

refusals! {
    VerifyRefusals: Unauthorized, RequestInvalid, LogOff, StoreUnavailable;
    ListRefusals: Unauthorized, RequestInvalid, StateUnknown, StoreUnavailable, ReadModelOff,
        ReadModelUnavailable;
    ShowRefusals: Unauthorized, RequestInvalid, OperationUnknown, StoreUnavailable;
    LookupRefusals: Unauthorized, RequestInvalid, LookupInvalid, RouteUnknown, OperationUnknown,
        BodyTooLarge, StoreUnavailable;
    ScopeRefusals: Unauthorized, RequestInvalid, LookupInvalid, RouteUnknown, BodyTooLarge;
    ReadModelRefusals: Unauthorized, RequestInvalid, ReadModelOff, ReadModelUnavailable;
    ProjectionRefusals: Unauthorized, ReadModelOff;
    RebuildRefusals: Unauthorized, Forbidden, ReadModelOff, ReadModelUnavailable;
    TailRefusals: Unauthorized, RequestInvalid, LogOff, StoreUnavailable;
    TimelineRefusals: Unauthorized, RequestInvalid, OperationUnknown, ReadModelOff,
        ReadModelUnavailable;
    ChangeRefusals: Unauthorized, Forbidden, RequestInvalid, IfMatchInvalid, IfMatchRequired,
        OperationUnknown, OperationMoved, InFlight, OperationSettled, OperationNotCompleted,
        OutcomeUncertain, BodyTooLarge, StoreUnavailable;
    SinkListRefusals: Unauthorized, StoreUnavailable;
    SinkTestRefusals: SinkNotTestable, Unauthorized, Forbidden, SinkUnknown, StoreUnavailable;
    SinkChangeRefusals: Unauthorized, Forbidden, RequestInvalid, SinkUnknown, BodyTooLarge,
        StoreUnavailable;
    DeadLetterListRefusals: Unauthorized, RequestInvalid, StoreUnavailable;
    DeadLetterShowRefusals: Unauthorized, DeadLetterUnknown, StoreUnavailable;
    DeadLetterRequeueRefusals: Unauthorized, Forbidden, RequestInvalid, DeadLetterUnknown,
        OutcomeExpired, BodyTooLarge, StoreUnavailable;
    DeadLetterChangeRefusals: Unauthorized, Forbidden, RequestInvalid, DeadLetterUnknown,
        BodyTooLarge, StoreUnavailable;
    ResealRefusals: Unauthorized, Forbidden, RequestInvalid, BodyTooLarge, EncryptionOff,
        StoreUnavailable;
    SagaListRefusals: Unauthorized, RequestInvalid, StoreUnavailable;
    SagaShowRefusals: Unauthorized, SagaUnknown, StoreUnavailable;
    SagaDecisionRefusals: Unauthorized, Forbidden, RequestInvalid, IfMatchInvalid, IfMatchRequired,
        SagaUnknown, SagaEnded, SagaMoved, SagaDecisionDenied, BodyTooLarge, StoreUnavailable;
    LogLevelRefusals: Unauthorized, LogLevelUnavailable;
    LogLevelChangeRefusals: Unauthorized, Forbidden, RequestInvalid, LogLevelRefused,
        LogLevelUnavailable;
    ReloadRefusals: Unauthorized, Forbidden, ReloadRefused, ReloadUnavailable;
}

/// Returns the refusals by status, each with its type and its meaning.
fn problems(kinds: &[ProblemKind]) -> BTreeMap<String, RefOr<Response>> {
    let mut by_status: BTreeMap<String, Vec<ProblemKind>> = BTreeMap::new();
    for kind in kinds {
        by_status.entry(kind.status().as_str().to_owned()).or_default().push(*kind);
    }
    let response = |kinds: &[ProblemKind]| {
        let meanings: Vec<String> =
            kinds.iter().map(|kind| format!("`{}`: {}", kind.name(), kind.meaning())).collect();
        let types: Vec<String> =
            kinds.iter().map(|kind| format!("{TYPE_PREFIX}{}", kind.name())).collect();
        let mut content =
            Content::new(Some(utoipa::openapi::Ref::from_schema_name("ProblemDocument")));
        content.example = types
            .first()
            .map(|first| json!({ "type": first, "status": kinds[0].status().as_u16() }));
        ResponseBuilder::new()
            .description(meanings.join("; "))
            .content("application/problem+json", content)
            .build()
    };
    by_status.into_iter().map(|(status, kinds)| (status, response(&kinds).into())).collect()
}
