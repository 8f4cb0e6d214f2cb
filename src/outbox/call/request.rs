//! The request of a round, made from the event by the templates of the sink.

use minijinja::Value;

use crate::outbox::caller::CallRequest;
use crate::outbox::settings::CallTarget;
use crate::template::{Template, TemplateError, json_value};

/// Why an event makes no request. No error has a value of the event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum RequestError {
    /// The event is no JSON document that templates can read.
    #[error("the event can't be read by templates")]
    Event,
    /// The template of the path fails.
    #[error("the path of the call can't be made: {0}")]
    Path(TemplateError),
    /// The template of the body fails.
    #[error("the body of the call can't be made: {0}")]
    Body(TemplateError),
}

/// Makes the request of a round.
pub(super) fn rendered(target: &CallTarget, event: &[u8]) -> Result<CallRequest, RequestError> {
    let event = std::str::from_utf8(event).map_err(|_| RequestError::Event)?;
    let event = json_value(event).map_err(|_| RequestError::Event)?;
    let data = event.get_attr("data").map_err(|_| RequestError::Event)?;
    let values = Value::from_pairs([("event", event), ("data", data)]);
    let body = target.body.as_ref().map(|body: &Template| body.render(&values)).transpose();
    Ok(CallRequest {
        route: target.route.clone(),
        method: target.method.to_string(),
        target: target.path.render(&values).map_err(RequestError::Path)?,
        body: body.map_err(RequestError::Body)?,
    })
}
