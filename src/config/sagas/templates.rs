//! Templates and conditions of a saga: they parse, and they name only what is in their scope.

use http::HeaderName;

use crate::config::read::{Table, closest};
use crate::template::{Condition, Template, TemplateKind};

const BODY_EXPECTED: &str =
    "a template of a JSON document such as '{\"order\": {{ request.body.order }}}'";
const WHEN_EXPECTED: &str = "a condition such as \"request.body.amount > 0\"";

/// The names in scope, with their members.
const REQUEST_MEMBERS: [&str; 4] = ["body", "headers", "path", "query"];
const SAGA_MEMBERS: [&str; 2] = ["id", "started_at"];
const STEP_MEMBERS: [&str; 4] = ["status", "body", "key", "headers"];
const ANSWER_HEADERS: [&str; 2] = ["location", "etag"];
/// Functions of the language that templates may use.
const FUNCTIONS: [&str; 1] = ["range"];

/// The names that a template may use.
#[derive(Debug, Clone)]
pub(super) struct TemplateNames {
    /// The parameters of the saga's path; `None` if they are unknown.
    pub parameters: Option<Vec<String>>,
    /// The header fields that the saga keeps; `None` if they are unknown.
    pub headers: Option<Vec<HeaderName>>,
    /// The names of all steps. A faulty name is `None`.
    pub steps: Vec<Option<String>>,
    /// The names of the steps that are in scope; `None` for all steps.
    pub visible: Option<Vec<String>>,
}

impl TemplateNames {
    /// Checks that everything that a template uses is in scope.
    fn check(&self, references: &[String]) -> Result<(), String> {
        references.iter().try_for_each(|reference| {
            let parts: Vec<&str> = reference.split('.').collect();
            match parts[..] {
                ["request"] | ["saga"] => Ok(()),
                ["request", "path", name, ..] => self.check_parameter(name),
                ["request", "headers", name, ..] => self.check_header(name),
                ["request", member, ..] => is_member("request", member, &REQUEST_MEMBERS),
                ["saga", member, ..] => is_member("saga", member, &SAGA_MEMBERS),
                ["steps"] => Err("steps is used without a name: write steps.NAME".to_owned()),
                ["steps", name] => self.check_step(name),
                ["steps", name, "headers", field, ..] => {
                    self.check_step(name)?;
                    is_member(&format!("steps.{name}.headers"), field, &ANSWER_HEADERS)
                }
                ["steps", name, member, ..] => {
                    self.check_step(name)?;
                    is_member(&format!("steps.{name}"), member, &STEP_MEMBERS)
                }
                [name, ..] if FUNCTIONS.contains(&name) => Ok(()),
                _ => {
                    Err(format!("there is no {reference}: a template has request, saga and steps"))
                }
            }
        })
    }

    fn check_parameter(&self, name: &str) -> Result<(), String> {
        match &self.parameters {
            Some(parameters) if !parameters.iter().any(|other| other == name) => {
                Err(format!("the path has no parameter {{{name}}}"))
            }
            _ => Ok(()),
        }
    }

    fn check_header(&self, name: &str) -> Result<(), String> {
        match &self.headers {
            Some(headers) if !headers.iter().any(|other| other.as_str() == name) => {
                Err(format!("request.headers has no {name}: keep_headers does not list it"))
            }
            _ => Ok(()),
        }
    }

    fn check_step(&self, name: &str) -> Result<(), String> {
        let mut known = self.steps.iter().flatten().map(String::as_str);
        if !known.clone().any(|other| other == name) {
            // The name may be one of the faulty ones.
            if self.steps.contains(&None) {
                return Ok(());
            }
            let near = closest(name, &mut known);
            let near = near.map(|near| format!("; did you mean {near:?}?")).unwrap_or_default();
            return Err(format!("there is no step named {name:?}{near}"));
        }
        match &self.visible {
            Some(visible) if !visible.iter().any(|other| other == name) => Err(format!(
                "the step {name:?} is not before this one, so it may not have an answer yet"
            )),
            _ => Ok(()),
        }
    }

    /// Reads a template. Returns its text.
    pub(super) fn template(&self, kind: TemplateKind, text: &str) -> Result<String, String> {
        let template =
            Template::new(kind, text).map_err(|error| format!("not a template: {error}"))?;
        self.check(&template.references())?;
        Ok(text.to_owned())
    }

    fn condition(&self, text: &str) -> Result<String, String> {
        let condition =
            Condition::new(text).map_err(|error| format!("not a condition: {error}"))?;
        self.check(&condition.references())?;
        Ok(text.to_owned())
    }
}

fn is_member(owner: &str, member: &str, members: &[&str]) -> Result<(), String> {
    if members.contains(&member) {
        return Ok(());
    }
    Err(format!("{owner} has no {member}: it has {}", members.join(", ")))
}

/// Reads `body`. The inner value is `None` if there is none.
pub(super) fn read_body(table: &Table<'_>, names: &TemplateNames) -> Option<Option<String>> {
    let Some(value) = table.get("body") else { return Some(None) };
    value.checked(BODY_EXPECTED, |text| names.template(TemplateKind::Json, text)).map(Some)
}

/// Reads `when`. The inner value is `None` if there is none.
pub(super) fn read_when(table: &Table<'_>, names: &TemplateNames) -> Option<Option<String>> {
    let Some(value) = table.get("when") else { return Some(None) };
    value.checked(WHEN_EXPECTED, |text| names.condition(text)).map(Some)
}
