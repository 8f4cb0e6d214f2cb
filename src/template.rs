//! Templates of requests: paths, header fields and JSON bodies with values of other documents, and
//! conditions on such values.
//!
//! The language is that of minijinja, with strict rules. A value that is undefined fails, and so
//! does a template that takes too many steps or makes too much text. Each `{{ }}` is encoded for
//! its place: a value can never add a segment to a path, a line to a header field or a member to a
//! document.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, UndefinedBehavior, Value, filters};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::IgnoredAny;

mod condition;
mod json;
mod literals;

pub use condition::Condition;
pub use json::{MalformedJson, json_numbers, json_value};
use json::{calculable, digits_of, noting_calculations, write_json};
use literals::point_equality;

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
    /// The value of a header field. It has no control character.
    Header,
    /// A JSON document. Each value is a JSON value.
    Json,
}

/// A template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    kind: TemplateKind,
    source: String,
}

/// Why a template can't be used, or makes no text. No error has a value of a document.
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
    /// The text has a control character, which could begin another header field.
    #[error("it makes a control character, which a header field can't have")]
    ControlCharacter,
    /// A number keeps its digits as a text, so a calculation or comparison would use the text.
    #[error("a number such as 10.00 is compared or calculated with: write `| float` behind it")]
    Calculation,
    /// The value of a condition is neither true nor false.
    #[error("it is neither true nor false")]
    NotBoolean,
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// [`TemplateError::Malformed`].
    pub fn new(kind: TemplateKind, source: &str) -> Result<Template, TemplateError> {
        let source = source.to_owned();
        kind.environment().template_from_str(&source).map_err(|error| malformed(&error))?;
        if let Some(error) = unknown_name(&source) {
            return Err(error);
        }
        if let Some(line) = point_equality(&source) {
            let why = "a number such as 1.5 is compared: write `| float` behind the other side";
            return Err(TemplateError::Malformed { line, why: why.to_owned() });
        }
        Ok(Template { kind, source })
    }

    /// Returns a template that was read before, by [`Template::new`]. To read it again would take
    /// longer than to render it.
    pub fn known(kind: TemplateKind, source: &str) -> Template {
        Template { kind, source: source.to_owned() }
    }

    /// Returns the names that the template uses from its scope, in order.
    pub fn names(&self) -> Vec<String> {
        let template = self.kind.environment().template_from_str(&self.source);
        let names = template.map(|template| template.undeclared_variables(false));
        let mut names: Vec<String> = names.unwrap_or_default().into_iter().collect();
        names.sort();
        names
    }

    /// Returns what the template uses from its scope, in order: names with their attributes, such
    /// as `data.order.id`. An attribute in brackets is left out, with all behind it.
    pub fn references(&self) -> Vec<String> {
        let template = self.kind.environment().template_from_str(&self.source);
        let found = template.map(|template| template.undeclared_variables(true));
        let mut found: Vec<String> = found.unwrap_or_default().into_iter().collect();
        found.sort();
        found
    }

    /// Returns the members of a name in scope that the template uses, such as `order` of `data`.
    pub fn members_of(&self, name: &str) -> BTreeSet<String> {
        let member = |used: &String| {
            let (_, rest) = used.split_once('.').filter(|(first, _)| *first == name)?;
            rest.split('.').next().map(str::to_owned)
        };
        self.references().iter().filter_map(member).collect()
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
        let environment = self.kind.environment();
        let (text, calculated) =
            noting_calculations(|| environment.render_str(&self.source, values.clone()));
        let text = text.map_err(|error| failure(&error))?;
        if calculated {
            return Err(TemplateError::Calculation);
        }
        let text = match self.kind {
            TemplateKind::Path | TemplateKind::Header => text,
            TemplateKind::Json => without_marks(&text)?,
        };
        if text.len() > TEMPLATE_OUTPUT_MAX {
            return Err(TemplateError::TooLong);
        }
        match self.kind {
            TemplateKind::Json if serde_json::from_str::<IgnoredAny>(&text).is_err() => {
                Err(TemplateError::NotJson)
            }
            TemplateKind::Header if text.chars().any(char::is_control) => {
                Err(TemplateError::ControlCharacter)
            }
            TemplateKind::Path | TemplateKind::Header | TemplateKind::Json => Ok(text),
        }
    }
}

impl TemplateKind {
    fn environment(self) -> &'static Environment<'static> {
        static PATH: LazyLock<Environment<'static>> =
            LazyLock::new(|| environment(write_component));
        static HEADER: LazyLock<Environment<'static>> = LazyLock::new(|| environment(write_text));
        static JSON: LazyLock<Environment<'static>> = LazyLock::new(|| environment(write_value));
        match self {
            TemplateKind::Path => &PATH,
            TemplateKind::Header => &HEADER,
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
    // The built-in filters don't convert numbers with digits.
    environment.add_filter(
        "float",
        |state: &State, value: &Value, default: Option<Value>, options: Kwargs| {
            filters::float(state, &calculable(value), default, options)
        },
    );
    environment.add_filter(
        "int",
        |state: &State, value: &Value, default: Option<Value>, base: Option<u32>, more: Kwargs| {
            filters::int(state, &calculable(value), default, base, more)
        },
    );
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
    let text = scalar(value)
        .ok_or("null, an object or a list is no part of a path")
        .and_then(|text| component(&text))
        .map_err(|why| Error::new(ErrorKind::BadSerialization, why))?;
    out.write_str(&text)?;
    Ok(())
}

/// Writes a value as a part of a header field. The complete text is checked at the end.
fn write_text(out: &mut Output, _: &mut State, value: &Value) -> Result<(), Error> {
    const WHY: &str = "null, an object or a list is no part of a header field";
    let text = scalar(value).ok_or_else(|| Error::new(ErrorKind::BadSerialization, WHY))?;
    out.write_str(&text)?;
    Ok(())
}

/// Returns the text of a string, number or boolean.
fn scalar(value: &Value) -> Option<String> {
    if let Some(digits) = digits_of(value) {
        return Some(digits.to_owned());
    }
    match value.kind() {
        ValueKind::Bool => Some(value.is_true().to_string()),
        ValueKind::String | ValueKind::Number => Some(value.to_string()),
        _ => None,
    }
}

fn component(text: &str) -> Result<String, &'static str> {
    match text {
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
