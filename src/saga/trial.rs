//! A trial: renders a whole plan against a sample of a request, with made-up answers of the steps.
//! Nothing is sent.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::HeaderName;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::kept::{KeptAnswer, KeptRequest};
use super::plan::{Compensation, FieldSource, Plan, Step, StepRequest};
use super::render::{
    DoneStep, RenderError, RenderScope, RenderedAnswer, RenderedRequest, answer, condition,
    request_of,
};
use crate::template::{Condition, Template, TemplateKind};

/// The id of the saga in a trial.
const SAGA_ID: &str = "made-up-saga";
/// The start of the saga in a trial, in ms since 1970. It is fixed, so that equal trials are equal.
const STARTED_AT_MS: u64 = 1_767_225_600_000;

/// A sample of a saga's request, and perhaps of its steps' answers.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SagaSample {
    /// The body, any JSON value; `None` for an empty body.
    #[serde(default)]
    body: Option<Box<RawValue>>,
    /// Header fields by name.
    #[serde(default)]
    headers: BTreeMap<String, String>,
    /// The parameters of the path, decoded.
    #[serde(default)]
    path: BTreeMap<String, String>,
    /// The parameters of the query, decoded.
    #[serde(default)]
    query: BTreeMap<String, String>,
    /// The answers of steps by name. The answers of the other steps are made up.
    #[serde(default)]
    steps: BTreeMap<String, SampleAnswer>,
}

/// A sample of a step's answer.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SampleAnswer {
    #[serde(default)]
    status: Option<u16>,
    #[serde(default)]
    body: Option<Box<RawValue>>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
}

/// A sample is not what [`SagaSample`] describes.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// The text is no JSON document, or has other members.
    #[error(
        "the sample is a JSON object with the members body, headers, path, query and steps: {0}"
    )]
    Malformed(#[from] serde_json::Error),
    /// The plan has no such step.
    #[error("the sample has an answer of the step {0:?}, which the saga does not have")]
    UnknownStep(String),
}

/// The result of a trial.
#[derive(Debug, Clone, PartialEq)]
pub struct SagaTrial {
    /// The steps, each behind the steps that it waits for.
    pub steps: Vec<StepTrial>,
    /// The answer of the completed saga.
    pub answer: Result<RenderedAnswer, RenderError>,
    /// The answer of the failed saga; `None` for the problem document.
    pub failed: Option<Result<RenderedAnswer, RenderError>>,
}

/// The result of a trial of one step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepTrial {
    /// The position of the step in the plan.
    pub position: usize,
    /// The name of the step.
    pub name: String,
    /// Whether the condition holds; `None`: the step has no condition. The rest of a step with a
    /// condition that is false or fails is not rendered.
    pub when: Option<Result<bool, RenderError>>,
    /// The action.
    pub action: Option<Result<RenderedRequest, RenderError>>,
    /// The compensation.
    pub compensation: Option<Result<RenderedRequest, RenderError>>,
    /// The answer to the action.
    pub answer: Option<KeptAnswer>,
    /// Whether the answer is made up, and not from the sample.
    pub is_made_up: bool,
}

impl SagaSample {
    /// Reads a sample.
    ///
    /// # Errors
    /// The text is no sample.
    pub fn parse(text: &str) -> Result<SagaSample, SampleError> {
        // A list of the members would be read, too.
        if !text.trim_start().starts_with('{') {
            return Err(SampleError::Malformed(serde::de::Error::custom("it is no object")));
        }
        Ok(serde_json::from_str(text)?)
    }

    /// Checks that the saga has all steps of the sample.
    ///
    /// # Errors
    /// It has not.
    pub fn check(&self, plan: &Plan) -> Result<(), SampleError> {
        let is_unknown = |name: &&String| !plan.steps.iter().any(|step| step.name == **name);
        match self.steps.keys().find(is_unknown) {
            Some(name) => Err(SampleError::UnknownStep(name.clone())),
            None => Ok(()),
        }
    }

    /// Returns the request as a saga keeps it, with these header fields.
    fn request(&self, keep: &[HeaderName]) -> KeptRequest {
        let fields = self.headers.iter().filter_map(|(name, value)| {
            let name = name.to_ascii_lowercase();
            keep.iter().any(|kept| kept.as_str() == name).then(|| (name, value.clone()))
        });
        KeptRequest {
            body: body_of(self.body.as_deref()).unwrap_or_default(),
            headers: fields.collect(),
            path: self.path.clone(),
            query: self.query.clone(),
            traceparent: None,
        }
    }
}

impl SagaTrial {
    /// Renders a plan against a sample. `keep_headers` are the fields that the saga keeps.
    pub fn new(plan: &Plan, keep_headers: &[HeaderName], sample: &SagaSample) -> SagaTrial {
        let request = sample.request(keep_headers);
        let keys: Vec<String> = plan.steps.iter().map(|step| made_up_key(&step.name)).collect();
        let answers: Vec<(KeptAnswer, bool)> =
            plan.steps.iter().map(|step| answer_of(plan, step, sample)).collect();
        let scope = |done: &[usize]| RenderScope {
            id: SAGA_ID,
            started_at_ms: STARTED_AT_MS,
            request: &request,
            steps: done
                .iter()
                .map(|at| DoneStep {
                    name: &plan.steps[*at].name,
                    key: &keys[*at],
                    answer: &answers[*at].0,
                })
                .collect(),
        };
        let mut done = Vec::new();
        let mut steps = Vec::new();
        for position in in_order(plan) {
            let step = &plan.steps[position];
            let (answer, is_made_up) = &answers[position];
            let mut trial = StepTrial {
                position,
                name: step.name.clone(),
                when: step.when.as_ref().map(|when| condition(when, &scope(&done))),
                action: None,
                compensation: None,
                answer: None,
                is_made_up: *is_made_up,
            };
            if matches!(trial.when, None | Some(Ok(true))) {
                trial.action = Some(request_of(&step.action, &scope(&done)));
                done.push(position);
                if let Compensation::Request { request, .. } = &step.compensation {
                    trial.compensation = Some(request_of(request, &scope(&done)));
                }
                trial.answer = Some(answer.clone());
            }
            steps.push(trial);
        }
        let whole = scope(&done);
        SagaTrial {
            steps,
            answer: answer(&plan.answer, &whole),
            failed: plan.failed.as_ref().map(|failed| answer(failed, &whole)),
        }
    }

    /// Returns the parts that can't be rendered: the place of each in the configuration, up to the
    /// key that the error begins with, and the error.
    pub fn failures(&self) -> Vec<(String, &RenderError)> {
        let mut found = Vec::new();
        for StepTrial { name, when, action, compensation, .. } in &self.steps {
            let parts = [
                ("", when.as_ref().and_then(|when| when.as_ref().err())),
                ("request.", action.as_ref().and_then(|action| action.as_ref().err())),
                ("compensate.", compensation.as_ref().and_then(|undo| undo.as_ref().err())),
            ];
            let failed = parts.into_iter().filter_map(|(key, error)| Some((key, error?)));
            found.extend(failed.map(|(key, error)| (format!("step {name:?}: {key}"), error)));
        }
        let answers = [("answer.", Some(&self.answer)), ("failed.", self.failed.as_ref())];
        for (key, answer) in answers {
            let error = answer.and_then(|answer| answer.as_ref().err());
            found.extend(error.map(|error| (key.to_owned(), error)));
        }
        found
    }
}

/// Returns the positions of the steps so that each follows the steps that it waits for.
fn in_order(plan: &Plan) -> Vec<usize> {
    let mut order: Vec<usize> = Vec::new();
    let is_next = |order: &[usize], at: &usize| {
        !order.contains(at) && plan.steps[*at].after.iter().all(|before| order.contains(before))
    };
    while let Some(next) = (0..plan.steps.len()).find(|at| is_next(&order, at)) {
        order.push(next);
    }
    order
}

/// Returns the answer of a step, and whether it is made up.
fn answer_of(plan: &Plan, step: &Step, sample: &SagaSample) -> (KeptAnswer, bool) {
    let status = made_up_status(step);
    let Some(given) = sample.steps.get(&step.name) else {
        let body = made_up_body(plan, step);
        let answer = KeptAnswer {
            status,
            body: Some(Bytes::from(body.to_string())),
            location: Some(format!("/made-up/{}", made_up_id(&step.name))),
            etag: Some(format!("\"{}\"", made_up_id(&step.name))),
        };
        return (answer, true);
    };
    let field = |wanted: &str| {
        let mut fields = given.headers.iter();
        fields.find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.clone())
    };
    let answer = KeptAnswer {
        status: given.status.unwrap_or(status),
        body: body_of(given.body.as_deref()),
        location: field("location"),
        etag: field("etag"),
    };
    (answer, false)
}

fn body_of(value: Option<&RawValue>) -> Option<Bytes> {
    value.map(|value| Bytes::copy_from_slice(value.get().as_bytes()))
}

fn made_up_id(step: &str) -> String {
    format!("{step}-1")
}

fn made_up_key(step: &str) -> String {
    format!("made-up-key-of-{step}")
}

/// Returns the first status that means success.
fn made_up_status(step: &Step) -> u16 {
    let first = step.sending.success.first().map_or("200", String::as_str);
    let digits = first.split(' ').next().unwrap_or_default();
    match digits.strip_suffix("xx") {
        Some(class) => class.parse().map_or(200, |class: u16| class * 100),
        None => digits.parse().unwrap_or(200),
    }
}

/// Returns a body with an `id`, and with each member that the templates of the plan name.
fn made_up_body(plan: &Plan, step: &Step) -> Value {
    let id = Value::String(made_up_id(&step.name));
    let mut body = Map::from_iter([("id".to_owned(), id.clone())]);
    let prefix = format!("steps.{}.body.", step.name);
    for reference in references(plan) {
        let Some(path) = reference.strip_prefix(&prefix) else { continue };
        let mut members: Vec<&str> = path.split('.').collect();
        let Some(last) = members.pop() else { continue };
        let mut object = Some(&mut body);
        for member in members {
            let inner = object.and_then(|object| {
                let inner = object.entry(member).or_insert_with(|| Value::Object(Map::new()));
                if !inner.is_object() {
                    *inner = Value::Object(Map::new());
                }
                inner.as_object_mut()
            });
            object = inner;
        }
        if let Some(object) = object {
            object.entry(last).or_insert_with(|| id.clone());
        }
    }
    Value::Object(body)
}

/// Returns what the templates and conditions of a plan use from their scope.
fn references(plan: &Plan) -> Vec<String> {
    let mut found = Vec::new();
    let mut add = |kind, text: &str| {
        found.extend(Template::new(kind, text).iter().flat_map(Template::references));
    };
    for step in &plan.steps {
        let compensation = match &step.compensation {
            Compensation::None => None,
            Compensation::Request { request, .. } => Some(request),
        };
        for StepRequest { path, headers, body, .. } in
            std::iter::once(&step.action).chain(compensation)
        {
            add(TemplateKind::Path, path);
            for source in headers.values() {
                if let FieldSource::Text(text) = source {
                    add(TemplateKind::Header, text);
                }
            }
            body.iter().for_each(|body| add(TemplateKind::Json, body));
        }
    }
    for template in std::iter::once(&plan.answer).chain(&plan.failed) {
        template.body.iter().for_each(|body| add(TemplateKind::Json, body));
    }
    let conditions = plan.steps.iter().filter_map(|step| Condition::new(step.when.as_ref()?).ok());
    found.extend(conditions.flat_map(|condition| condition.references()));
    found
}

#[cfg(test)]
mod tests;
