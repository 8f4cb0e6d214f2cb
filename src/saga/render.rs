//! Rendering: makes the requests, conditions and answers of a plan from the kept documents.
//!
//! Danger: a gateway may render the same request again after a crash, and the gate compares it with
//! the first one. So everything here is a pure function of the plan and the kept documents.

use http::uri::PathAndQuery;
use minijinja::Value;

use super::kept::{KeptAnswer, KeptRequest};
use super::plan::{AnswerTemplate, FieldSource, StepRequest};
use crate::clock::rfc3339;
use crate::key::path::is_opaque_throughout;
use crate::template::{
    Condition, MalformedJson, Template, TemplateError, TemplateKind, json_numbers, json_value,
};

/// The names in the scope of templates and conditions: `request`, `saga` and `steps`.
#[derive(Debug, Clone)]
pub struct RenderScope<'s> {
    /// The id of the saga.
    pub id: &'s str,
    /// The start of the saga, in ms since 1970.
    pub started_at_ms: u64,
    /// The request of the saga.
    pub request: &'s KeptRequest,
    /// The steps that are done. A step that is skipped or not done has no name in the scope.
    pub steps: Vec<DoneStep<'s>>,
}

/// A step that is done, as templates see it.
#[derive(Debug, Clone, Copy)]
pub struct DoneStep<'s> {
    /// The name.
    pub name: &'s str,
    /// The key of the action.
    pub key: &'s str,
    /// The answer to the action.
    pub answer: &'s KeptAnswer,
}

/// A request of a step without its key, and without the header fields that come from the gateway's
/// environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenderedRequest {
    /// The method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Header fields, by name in lower case.
    pub headers: Vec<(String, String)>,
    /// The body, a JSON document.
    pub body: Option<String>,
}

/// The answer of a saga.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenderedAnswer {
    /// The status.
    pub status: u16,
    /// The body, a JSON document; `None` for the default body.
    pub body: Option<String>,
}

/// Why a part of a plan can't be rendered. No error has a value of a document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// The template of the path fails.
    #[error("path: {0}")]
    Path(TemplateError),
    /// The rendered path can't be sent, or a server could resolve it to another one.
    #[error(
        "path: it makes no path that can be sent: it begins with one slash, and a value in it has \
         no `/`, `\\`, `;`, `?`, `#` or `%`, and is not `.` or `..`, so that no server reads another \
         path"
    )]
    Target,
    /// The template of a header field fails.
    #[error("headers.{name}: {error}")]
    Header {
        /// The name of the field.
        name: String,
        /// The failure.
        error: TemplateError,
    },
    /// The template of the body fails.
    #[error("body: {0}")]
    Body(TemplateError),
    /// The condition fails.
    #[error("when: {0}")]
    When(TemplateError),
}

/// Makes a request of a step.
///
/// # Errors
/// A part of the request can't be rendered. Nothing must be sent.
pub fn request_of(
    template: &StepRequest,
    scope: &RenderScope<'_>,
) -> Result<RenderedRequest, RenderError> {
    let values = scope.values(json_value);
    let target =
        rendered(TemplateKind::Path, &template.path, &values).map_err(RenderError::Path)?;
    if !is_target(&target) {
        return Err(RenderError::Target);
    }
    let mut headers = Vec::new();
    for (name, source) in &template.headers {
        if let FieldSource::Text(text) = source {
            let value = rendered(TemplateKind::Header, text, &values)
                .map_err(|error| RenderError::Header { name: name.clone(), error })?;
            headers.push((name.clone(), value));
        }
    }
    let body = rendered_body(template.body.as_deref(), &values)?;
    Ok(RenderedRequest { method: template.method.clone(), target, headers, body })
}

/// Returns whether the condition of a step holds.
///
/// # Errors
/// The condition is neither true nor false.
pub fn condition(when: &str, scope: &RenderScope<'_>) -> Result<bool, RenderError> {
    let condition = Condition::new(when).map_err(RenderError::When)?;
    condition.holds(&scope.values(json_numbers)).map_err(RenderError::When)
}

/// Makes the answer of a saga.
///
/// # Errors
/// The body can't be rendered.
pub fn answer(
    template: &AnswerTemplate,
    scope: &RenderScope<'_>,
) -> Result<RenderedAnswer, RenderError> {
    let body = rendered_body(template.body.as_deref(), &scope.values(json_value))?;
    Ok(RenderedAnswer { status: template.status, body })
}

fn rendered_body(source: Option<&str>, values: &Value) -> Result<Option<String>, RenderError> {
    let body = source.map(|source| rendered(TemplateKind::Json, source, values));
    body.transpose().map_err(RenderError::Body)
}

/// Renders a template of a plan, which the configuration has read.
fn rendered(kind: TemplateKind, source: &str, values: &Value) -> Result<String, TemplateError> {
    Template::known(kind, source).render(values)
}

/// Returns whether a text is a path that can be sent as it is, and that no server resolves to
/// another one.
pub fn is_target(text: &str) -> bool {
    let Ok(target) = text.parse::<PathAndQuery>() else { return false };
    text.starts_with('/')
        && !text.starts_with("//")
        && target.as_str() == text
        && is_opaque_throughout(target.path())
}

/// Reads a JSON document as a value.
type ReadDocument = fn(&str) -> Result<Value, MalformedJson>;

impl RenderScope<'_> {
    /// Returns the names in scope with their values. A body that is no JSON document is undefined,
    /// and so is a body that was not kept.
    fn values(&self, read: ReadDocument) -> Value {
        let document =
            |body: &[u8]| std::str::from_utf8(body).ok().and_then(|text| read(text).ok());
        let KeptRequest { body, headers, path, query, traceparent: _ } = self.request;
        let texts = |map: &std::collections::BTreeMap<String, String>| {
            Value::from_pairs(map.iter().map(|(name, value)| (name.clone(), value.clone())))
        };
        let mut request =
            vec![("headers", texts(headers)), ("path", texts(path)), ("query", texts(query))];
        request.extend(document(body).map(|body| ("body", body)));
        let step = |step: &DoneStep<'_>| {
            let KeptAnswer { status, body, location, etag } = step.answer;
            let fields = [("location", location), ("etag", etag)];
            let fields = fields.into_iter().filter_map(|(name, text)| Some((name, text.clone()?)));
            let mut members = vec![
                ("status", Value::from(*status)),
                ("key", Value::from(step.key)),
                ("headers", Value::from_pairs(fields)),
            ];
            members.extend(body.as_deref().and_then(document).map(|body| ("body", body)));
            (step.name.to_owned(), Value::from_pairs(members))
        };
        let started_at = Value::from(rfc3339(self.started_at_ms));
        let saga = [("id", Value::from(self.id)), ("started_at", started_at)];
        Value::from_pairs([
            ("request", Value::from_pairs(request)),
            ("saga", Value::from_pairs(saga)),
            ("steps", Value::from_pairs(self.steps.iter().map(step))),
        ])
    }
}

#[cfg(test)]
mod tests;
