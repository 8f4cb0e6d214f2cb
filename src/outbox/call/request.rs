//! The request of a round, made from the event by the templates of the sink.

use minijinja::Value;

use crate::key::path::is_opaque_throughout;
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
    /// A server could read the path as another one.
    #[error(
        "the path of the call can't be made: a value in it has a `/`, `\\`, `;`, `?`, `#` or `%`, or \
         is `.` or `..`, so that a server could read another path"
    )]
    Ambiguous,
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
    let path = render(&target.path).map_err(RequestError::Path)?;
    if !is_opaque_throughout(path.split_once('?').map_or(&*path, |(path, _)| path)) {
        return Err(RequestError::Ambiguous);
    }
    Ok(CallRequest {
        route: target.route.clone(),
        method: target.method.to_string(),
        target: path,
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

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method};

    use super::*;
    use crate::template::TemplateKind;

    #[test]
    fn a_value_that_a_server_could_read_as_more_than_a_segment_makes_no_request() {
        let path =
            Template::new(TemplateKind::Path, "/v1/orders/{{ data.order }}?of={{ data.order }}");
        let (route, headers) = ("shipments".to_owned(), HeaderMap::new());
        let target =
            CallTarget { route, method: Method::POST, path: path.unwrap(), body: None, headers };
        let made = |order: &str| {
            let event = serde_json::json!({ "data": { "order": order } }).to_string();
            rendered(&target, event.as_bytes()).map(|request| request.target)
        };
        assert_eq!(made("A 7").as_deref(), Ok("/v1/orders/A%207?of=A%207"));
        for order in ["1/capture", "x;admin=1", "a\\b", "1?force=1", "%2F", "a#b"] {
            assert_eq!(made(order), Err(RequestError::Ambiguous), "{order}");
        }
    }
}
