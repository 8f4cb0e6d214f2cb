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
///
/// # Errors
/// A template fails. If a member of the event's data is missing, the error has the reason.
pub(super) fn rendered(target: &CallTarget, event: &[u8]) -> Result<CallRequest, RequestError> {
    let event = std::str::from_utf8(event).map_err(|_| RequestError::Event)?;
    let event = json_value(event).map_err(|_| RequestError::Event)?;
    let data = event.get_attr("data").map_err(|_| RequestError::Event)?;
    let values = Value::from_pairs([("event", event), ("data", data.clone())]);
    let render =
        |template: &Template| template.render(&values).map_err(|error| with_reason(error, &data));
    let body = target.body.as_ref().map(render).transpose();
    Ok(CallRequest {
        route: target.route.clone(),
        method: target.method.to_string(),
        target: render(&target.path).map_err(RequestError::Path)?,
        body: body.map_err(RequestError::Body)?,
    })
}

/// Adds to the error of an undefined member the reason that the event has for it.
fn with_reason(error: TemplateError, data: &Value) -> TemplateError {
    let TemplateError::Undefined(text) = error else { return error };
    let reason = || {
        let (_, rest) = text.split_once("`data.")?;
        let name = rest.split(['.', '[', '`']).next()?;
        let reason = data.get_attr("missing").ok()?.get_attr(name).ok()?;
        reason.as_str().map(|reason| format!("{text} (the event has the reason: {reason})"))
    };
    TemplateError::Undefined(reason().unwrap_or(text))
}
