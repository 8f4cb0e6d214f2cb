//! Conditions: expressions on the values of documents that are true or false.

use std::sync::LazyLock;

use minijinja::value::ValueKind;
use minijinja::{Environment, UndefinedBehavior, Value};

use super::{STEPS_MAX, TemplateError, failure, malformed};

/// A condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    source: String,
}

impl Condition {
    /// Reads a condition.
    ///
    /// # Errors
    /// [`TemplateError::Malformed`].
    pub fn new(source: &str) -> Result<Condition, TemplateError> {
        let source = source.to_owned();
        environment().compile_expression(&source).map_err(|error| malformed(&error))?;
        Ok(Condition { source })
    }

    /// Returns what the condition uses from its scope, in the form of
    /// [`Template::references`](super::Template::references).
    pub fn references(&self) -> Vec<String> {
        let expression = environment().compile_expression(&self.source);
        let found = expression.map(|expression| expression.undeclared_variables(true));
        let mut found: Vec<String> = found.unwrap_or_default().into_iter().collect();
        found.sort();
        found
    }

    /// Returns whether the condition holds. `values` are the names in scope, with numbers from
    /// [`json_numbers`](super::json_numbers).
    ///
    /// # Errors
    /// A value is undefined, the work is too much, or the result is neither true nor false.
    pub fn holds(&self, values: &Value) -> Result<bool, TemplateError> {
        let expression =
            environment().compile_expression(&self.source).map_err(|error| malformed(&error))?;
        let value = expression.eval(values.clone()).map_err(|error| failure(&error))?;
        match value.kind() {
            ValueKind::Bool => Ok(value.is_true()),
            _ => Err(TemplateError::NotBoolean),
        }
    }
}

fn environment() -> &'static Environment<'static> {
    static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(|| {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_fuel(Some(STEPS_MAX));
        // Errors name an undefined value only with this.
        environment.set_debug(true);
        environment
    });
    &ENVIRONMENT
}
