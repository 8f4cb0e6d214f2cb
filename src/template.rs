//! Templates of requests: paths, JSON bodies and texts with values of events.
//!
//! The language is that of minijinja, with strict rules. A value that is undefined fails, and so
//! does a template that takes too many steps or makes too much text. Each `{{ }}` is encoded for
//! its place: a value can never add a segment to a path or a member to a document.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, Output, State, UndefinedBehavior, Value};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::IgnoredAny;

mod json;

use json::write_json;
pub use json::{MalformedJson, json_value};

/// Longest text that a template makes, in bytes.
pub const TEMPLATE_OUTPUT_MAX: usize = 64 << 10;

/// Steps of one rendering. A step is an instruction or 64 bytes of data. The longest output needs
/// some 1000, and an endless loop ends within milliseconds.
const STEPS_MAX: u64 = 20_000;

/// Bytes of a path component that are not encoded: the unreserved ones (RFC 3986, section 2.3).
const COMPONENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The place for which a template makes its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TemplateKind {
    /// A path, perhaps with a query. Each value is one percent-encoded component.
    Path,
    /// A JSON document. Each value is a JSON value.
    Json,
}

/// A template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    kind: TemplateKind,
    source: String,
}

/// Why a template can't be used, or makes no text. No error has a value of an event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The template is malformed.
    #[error("line {line}: {why}")]
    Malformed {
        /// The line, from 1 on.
        line: usize,
        /// What is wrong.
        why: String,
    },
    /// The template uses a value that does not exist.
    #[error("{0}")]
    Undefined(String),
    /// A value can't be used in its place.
    #[error("{0}")]
    Unusable(String),
    /// The template takes too many steps.
    #[error("it takes more than {STEPS_MAX} steps")]
    TooManySteps,
    /// The text is too long.
    #[error("it makes more than {TEMPLATE_OUTPUT_MAX} bytes")]
    TooLong,
    /// The template has quotes around a value.
    #[error("a value is inside quotes: each value is written with its own quotes")]
    Quoted,
    /// The text is no JSON document.
    #[error("it makes no JSON document")]
    NotJson,
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// [`TemplateError::Malformed`].
    pub fn new(kind: TemplateKind, source: &str) -> Result<Template, TemplateError> {
        let source = source.to_owned();
        match kind.environment().template_from_str(&source) {
            Ok(_) => {}
            Err(error) => return Err(malformed(&error)),
        }
        match unknown_name(&source) {
            Some(error) => Err(error),
            None => Ok(Template { kind, source }),
        }
    }

    /// Returns the names that the template uses from its scope, in order.
    pub fn names(&self) -> Vec<String> {
        let template = self.kind.environment().template_from_str(&self.source);
        let names = template.map(|template| template.undeclared_variables(false));
        let mut names: Vec<String> = names.unwrap_or_default().into_iter().collect();
        names.sort();
        names
    }

    /// Returns the members of a name in scope that the template uses, such as `order` of `data`.
    pub fn members_of(&self, name: &str) -> BTreeSet<String> {
        let template = self.kind.environment().template_from_str(&self.source);
        let used = template.map(|template| template.undeclared_variables(true));
        let member = |used: String| {
            let (_, rest) = used.split_once('.').filter(|(first, _)| *first == name)?;
            rest.split('.').next().map(str::to_owned)
        };
        used.unwrap_or_default().into_iter().filter_map(member).collect()
    }

    /// Returns the template as it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Makes the text. `values` are the names in scope.
    ///
    /// # Errors
    /// The template makes no text with these values.
    pub fn render(&self, values: &Value) -> Result<String, TemplateError> {
        let text = self
            .kind
            .environment()
            .render_str(&self.source, values.clone())
            .map_err(|error| failure(&error))?;
        let text = match self.kind {
            TemplateKind::Path => text,
            TemplateKind::Json => without_marks(&text)?,
        };
        if text.len() > TEMPLATE_OUTPUT_MAX {
            return Err(TemplateError::TooLong);
        }
        if self.kind == TemplateKind::Json && serde_json::from_str::<IgnoredAny>(&text).is_err() {
            return Err(TemplateError::NotJson);
        }
        Ok(text)
    }
}

impl TemplateKind {
    fn environment(self) -> &'static Environment<'static> {
        static PATH: LazyLock<Environment<'static>> =
            LazyLock::new(|| environment(write_component));
        static JSON: LazyLock<Environment<'static>> = LazyLock::new(|| environment(write_value));
        match self {
            TemplateKind::Path => &PATH,
            TemplateKind::Json => &JSON,
        }
    }
}

fn environment(
    format: fn(&mut Output, &mut State, &Value) -> Result<(), Error>,
) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(STEPS_MAX));
    // Errors name an undefined value only with this.
    environment.set_debug(true);
    environment.set_formatter(format);
    // Each value of a body is encoded anyway.
    environment.add_filter("tojson", |value: Value| value);
    environment
}

fn malformed(error: &Error) -> TemplateError {
    TemplateError::Malformed {
        line: error.line().unwrap_or(1),
        why: error.detail().unwrap_or("it is malformed").to_owned(),
    }
}

/// Returns the error of a template with an unknown filter, test or function.
///
/// Only a run finds these names. So the template runs once without values. Branches and loops that
/// need a value do not run, and their names are not checked.
fn unknown_name(source: &str) -> Option<TemplateError> {
    static WITHOUT_VALUES: LazyLock<Environment<'static>> = LazyLock::new(|| {
        let mut environment = environment(|_, _, _| Ok(()));
        environment.set_undefined_behavior(UndefinedBehavior::Chainable);
        environment
    });
    let error = WITHOUT_VALUES.render_str(source, minijinja::context! {}).err()?;
    let is_unknown = matches!(
        error.kind(),
        ErrorKind::UnknownFilter | ErrorKind::UnknownTest | ErrorKind::UnknownFunction
    );
    is_unknown.then(|| malformed(&error))
}

/// Writes a value as one component of a path.
fn write_component(out: &mut Output, _: &mut State, value: &Value) -> Result<(), Error> {
    let text = component(value).map_err(|why| Error::new(ErrorKind::BadSerialization, why))?;
    out.write_str(&text)?;
    Ok(())
}

fn component(value: &Value) -> Result<String, &'static str> {
    let text = match value.kind() {
        ValueKind::Bool => value.is_true().to_string(),
        ValueKind::String | ValueKind::Number | ValueKind::Plain => value.to_string(),
        ValueKind::None => return Err("null is no part of a path"),
        _ => return Err("an object or a list is no part of a path"),
    };
    match text.as_str() {
        "" => Err("an empty text is no part of a path"),
        "." | ".." => Err("`.` and `..` are no parts of a path"),
        text => Ok(utf8_percent_encode(text, COMPONENT).to_string()),
    }
}

/// Stands in front of each value in a document, until the document is complete. JSON has no such
/// character, so a value can't have it.
const VALUE_MARK: char = '\0';

/// Removes the marks of values. Inside a text of the template, the quotes of a value would end the
/// text, and the value could add members.
fn without_marks(text: &str) -> Result<String, TemplateError> {
    let (mut plain, mut is_text, mut is_escaped) =
        (String::with_capacity(text.len()), false, false);
    for char in text.chars() {
        if char == VALUE_MARK {
            if is_text {
                return Err(TemplateError::Quoted);
            }
            continue;
        }
        plain.push(char);
        is_text = if char == '"' && !is_escaped { !is_text } else { is_text };
        is_escaped = is_text && char == '\\' && !is_escaped;
    }
    Ok(plain)
}

/// Writes a value as JSON, with its mark.
fn write_value(out: &mut Output, _: &mut State, value: &Value) -> Result<(), Error> {
    let mut text = String::from(VALUE_MARK);
    write_json(&mut text, value, 0).map_err(|why| Error::new(ErrorKind::BadSerialization, why))?;
    out.write_str(&text)?;
    Ok(())
}

/// Returns the failure of a rendering. The texts of other errors than these may have values.
fn failure(error: &Error) -> TemplateError {
    let place = || error.line().map_or(String::new(), |line| format!("line {line}: "));
    match error.kind() {
        ErrorKind::OutOfFuel => TemplateError::TooManySteps,
        ErrorKind::UndefinedError => {
            TemplateError::Undefined(error.detail().unwrap_or("a value is undefined").to_owned())
        }
        ErrorKind::BadSerialization => {
            TemplateError::Unusable(format!("{}{}", place(), error.detail().unwrap_or_default()))
        }
        // Their details have names of the template only.
        ErrorKind::UnknownFilter | ErrorKind::UnknownTest | ErrorKind::UnknownFunction => {
            TemplateError::Unusable(error.detail().unwrap_or_default().to_owned())
        }
        kind => TemplateError::Unusable(format!("{}{kind}", place())),
    }
}

#[cfg(test)]
mod tests;
