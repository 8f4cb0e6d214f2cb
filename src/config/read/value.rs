//! One value of a file, and its conversion to the expected type.

use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use super::{ConfigSource, FaultCollector, Layer, SourceSpan, Table, closest, is_parsed};

/// Longest duration. Sums of such durations can't overflow.
const DURATION_MAX: Duration = Duration::from_secs(3650 * 24 * 60 * 60);
/// Shortest duration above zero, because stores count in milliseconds.
const DURATION_MIN: Duration = Duration::from_millis(1);
/// Largest size: 1 TiB. It is more than a machine's memory, and can't cause an overflow.
const SIZE_MAX: u64 = 1 << 40;
/// Longest part of a value that a message quotes, in characters.
const QUOTE_MAX: usize = 60;

/// One value and its span.
pub(in crate::config) struct Value<'a> {
    pub report: &'a FaultCollector,
    pub(super) source: &'a ConfigSource<'a>,
    pub span: SourceSpan,
    pub(super) inner: &'a DeValue<'a>,
}

impl<'a> Value<'a> {
    /// Masks the value in excerpts, because it may be a password under a misspelt key.
    pub fn conceal(&self) {
        self.report.hide(self.source.name, &self.span.bytes, self.inner);
    }

    /// Notes a fault at this value.
    pub fn fault(&self, text: impl Into<String>) {
        self.report.note(&self.span, text);
    }

    /// Notes that the value has the wrong type.
    fn mistyped(&self, expected: &str) {
        self.fault(format!("expected {expected}, found {}", kind(self.inner)));
    }

    /// Notes that the value has the right type, but is not one of the expected values. The message
    /// quotes the value.
    fn misspelt(&self, expected: &str, text: &str) {
        let quote: String = text.chars().take(QUOTE_MAX).collect();
        let more = if quote.len() < text.len() { "..." } else { "" };
        self.fault(format!("expected {expected}, found {quote:?}{more}"));
    }

    /// Returns whether the value is a string, without noting a fault.
    pub fn is_text(&self) -> bool {
        matches!(self.inner, DeValue::String(_))
    }

    /// Returns whether the value is a table, without noting a fault.
    pub fn is_table(&self) -> bool {
        matches!(self.inner, DeValue::Table(_))
    }

    /// Reads a string.
    pub fn text(&self, expected: &str) -> Option<&'a str> {
        match self.inner {
            DeValue::String(text) => Some(text),
            _ => {
                self.mistyped(expected);
                None
            }
        }
    }

    /// Reads a string and parses it.
    pub fn parsed<T>(&self, expected: &str, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let text = self.text(expected)?;
        let parsed = parse(text);
        if parsed.is_none() {
            self.misspelt(expected, text);
        }
        parsed
    }

    /// Reads a string and parses it. The parser describes a fault. The message doesn't quote the
    /// text, because it may be a password.
    pub fn checked<T>(
        &self,
        expected: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        parse(self.text(expected)?).map_err(|why| self.fault(why)).ok()
    }

    /// Reads a boolean.
    pub fn boolean(&self) -> Option<bool> {
        match self.inner {
            DeValue::Boolean(value) => Some(*value),
            _ => {
                self.mistyped("true or false");
                None
            }
        }
    }

    /// Reads a whole number within bounds.
    pub fn number(&self, min: u64, max: u64) -> Option<u64> {
        let number = match self.inner {
            DeValue::Integer(integer) => {
                u64::from_str_radix(integer.as_str(), integer.radix()).ok()
            }
            _ => {
                self.mistyped("a whole number");
                return None;
            }
        };
        let number = number.filter(|number| (min..=max).contains(number));
        if number.is_none() {
            self.fault(format!("expected a whole number from {min} to {max}"));
        }
        number
    }

    /// Reads a number from 0 to 1.
    pub fn ratio(&self) -> Option<f64> {
        let ratio = match self.inner {
            DeValue::Integer(integer) => integer.as_str().parse::<f64>().ok(),
            DeValue::Float(float) => float.as_str().parse::<f64>().ok(),
            _ => {
                self.mistyped("a number from 0 to 1");
                return None;
            }
        };
        let ratio = ratio.filter(|ratio| (0.0..=1.0).contains(ratio));
        if ratio.is_none() {
            self.fault("expected a number from 0 to 1");
        }
        ratio
    }

    /// Reads a duration, which may be zero.
    pub fn duration_or_zero(&self) -> Option<Duration> {
        let duration = self.parsed("a duration such as \"30s\"", |text| {
            humantime::parse_duration(text.trim()).ok()
        })?;
        if duration > DURATION_MAX {
            self.fault("longer than the limit of ten years (3650d)");
            return None;
        }
        if !duration.is_zero() && duration < DURATION_MIN {
            self.fault("shorter than a millisecond");
            return None;
        }
        Some(duration)
    }

    /// Reads a duration above zero.
    pub fn duration(&self) -> Option<Duration> {
        let duration = self.duration_or_zero()?;
        if duration.is_zero() {
            self.fault("expected a duration above zero");
            return None;
        }
        Some(duration)
    }

    /// Reads a size in bytes.
    pub fn size(&self, min: u64) -> Option<u64> {
        let size = self
            .parsed("a size such as \"1MiB\"", |text| {
                text.trim().parse::<bytesize::ByteSize>().ok()
            })?
            .as_u64();
        if !(min..=SIZE_MAX).contains(&size) {
            self.fault(format!("expected a size from \"{min}B\" to \"1TiB\""));
            return None;
        }
        Some(size)
    }

    /// Reads one of several words. `later` are words for features that are not built yet.
    pub fn choice<T: Copy>(&self, words: &[(&str, T)], later: &[&str]) -> Option<T> {
        let quoted: Vec<String> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        let expected = quoted.join(" or ");
        let text = self.text(&expected)?;
        if later.contains(&text) {
            self.fault(format!("\"{text}\" is not supported yet; expected {expected}"));
            return None;
        }
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            let near = closest(text, words.iter().map(|(word, _)| *word))
                .map(|word| format!("did you mean \"{word}\"?"));
            self.report.note_with_help(
                &self.span,
                format!("expected {expected}, found {text:?}"),
                near,
            );
        }
        found
    }

    /// Reads a list.
    pub fn list(&self, expected: &str) -> Option<Vec<Value<'a>>> {
        let DeValue::Array(items) = self.inner else {
            self.mistyped(expected);
            return None;
        };
        Some(
            items
                .iter()
                .filter(|item| is_parsed(item))
                .enumerate()
                .map(|(index, item)| self.item(index, item))
                .collect(),
        )
    }

    /// Reads a list of strings and parses each. `None` if one doesn't parse.
    pub fn list_of<T>(
        &self,
        expected: &str,
        item: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<Vec<T>> {
        // This parses all items before it returns the first failure, so that all faults are
        // reported.
        let items: Vec<Option<T>> =
            self.list(expected)?.iter().map(|value| value.parsed(item, &parse)).collect();
        items.into_iter().collect()
    }

    fn item(&self, index: usize, item: &'a Spanned<DeValue<'a>>) -> Value<'a> {
        let span = self.source.span_at(format!("{}[{index}]", self.span.path), item.span());
        Value { report: self.report, source: self.source, span, inner: item.get_ref() }
    }

    /// Reads a table without further layers.
    pub fn table(&self, expected: &str) -> Option<Table<'a>> {
        Some(Table::new(self.report, self.span.path.clone(), vec![self.layer(expected)?]))
    }

    pub(super) fn layer(&self, expected: &str) -> Option<Layer<'a>> {
        match self.inner {
            DeValue::Table(entries) => {
                Some(Layer { source: self.source, entries, span: self.span.bytes.clone() })
            }
            _ => {
                self.mistyped(expected);
                None
            }
        }
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
