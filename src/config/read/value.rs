//! One value of a file: what it is, or what was expected instead.

use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use super::{Layer, Place, Report, Source, Table, closest, is_parsed};

/// Longest duration that means anything here; also keeps sums of durations far from overflowing.
const DURATION_MAX: Duration = Duration::from_secs(3650 * 24 * 60 * 60);
/// Shortest duration besides none: stores count in milliseconds.
const DURATION_MIN: Duration = Duration::from_millis(1);
/// Largest size: far beyond any machine's memory, far below overflow.
const SIZE_MAX: u64 = 1 << 40;
/// Longest piece of a value that a message repeats, in characters.
const QUOTE_MAX: usize = 60;

/// One value, and where it stands.
pub(in crate::config) struct Value<'a> {
    pub report: &'a Report,
    pub(super) source: &'a Source<'a>,
    pub place: Place,
    pub(super) inner: &'a DeValue<'a>,
}

impl<'a> Value<'a> {
    /// Masks it in what is shown: it might be a password in the wrong place.
    pub fn conceal(&self) {
        self.report.hide(self.source.name, &self.place.span, self.inner);
    }

    /// Notes a fault here.
    pub fn fault(&self, text: impl Into<String>) {
        self.report.note(&self.place, text);
    }

    /// Notes that it is of the wrong type.
    fn mistyped(&self, expected: &str) {
        self.fault(format!("expected {expected}, found {}", kind(self.inner)));
    }

    /// Notes that it is of the right type and still not what was expected. The text is repeated.
    fn misspelt(&self, expected: &str, text: &str) {
        let quote: String = text.chars().take(QUOTE_MAX).collect();
        let more = if quote.len() < text.len() { "..." } else { "" };
        self.fault(format!("expected {expected}, found {quote:?}{more}"));
    }

    /// Whether it is a string; asks nothing of it.
    pub fn is_text(&self) -> bool {
        matches!(self.inner, DeValue::String(_))
    }

    /// A string.
    pub fn text(&self, expected: &str) -> Option<&'a str> {
        match self.inner {
            DeValue::String(text) => Some(text),
            _ => {
                self.mistyped(expected);
                None
            }
        }
    }

    /// A string that parses.
    pub fn parsed<T>(&self, expected: &str, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let text = self.text(expected)?;
        let parsed = parse(text);
        if parsed.is_none() {
            self.misspelt(expected, text);
        }
        parsed
    }

    /// A string that parses, or says itself why it doesn't. The text is not repeated: it may hold a password.
    pub fn checked<T>(
        &self,
        expected: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        parse(self.text(expected)?).map_err(|why| self.fault(why)).ok()
    }

    /// A boolean.
    pub fn boolean(&self) -> Option<bool> {
        match self.inner {
            DeValue::Boolean(value) => Some(*value),
            _ => {
                self.mistyped("true or false");
                None
            }
        }
    }

    /// A whole number within bounds.
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

    /// A part of a whole.
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

    /// A duration, none included.
    pub fn duration_or_zero(&self) -> Option<Duration> {
        let duration = self.parsed("a duration such as \"30s\"", |text| {
            humantime::parse_duration(text.trim()).ok()
        })?;
        if duration > DURATION_MAX {
            self.fault("longer than ten years (3650d), which can't be meant");
            return None;
        }
        if !duration.is_zero() && duration < DURATION_MIN {
            self.fault("shorter than a millisecond, which can't be counted");
            return None;
        }
        Some(duration)
    }

    /// A duration above zero.
    pub fn duration(&self) -> Option<Duration> {
        let duration = self.duration_or_zero()?;
        if duration.is_zero() {
            self.fault("expected a duration above zero");
            return None;
        }
        Some(duration)
    }

    /// A size in bytes.
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

    /// One of some words. `later` are the ones that are known and not built yet.
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
                &self.place,
                format!("expected {expected}, found {text:?}"),
                near,
            );
        }
        found
    }

    /// A list.
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

    /// A list of strings that parse; none if one doesn't.
    pub fn list_of<T>(
        &self,
        expected: &str,
        item: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<Vec<T>> {
        // Each is read before any is missed, so that all faults are reported.
        let items: Vec<Option<T>> =
            self.list(expected)?.iter().map(|value| value.parsed(item, &parse)).collect();
        items.into_iter().collect()
    }

    fn item(&self, index: usize, item: &'a Spanned<DeValue<'a>>) -> Value<'a> {
        let place = self.source.place(format!("{}[{index}]", self.place.path), item.span());
        Value { report: self.report, source: self.source, place, inner: item.get_ref() }
    }

    /// A table of its own, over nothing.
    pub fn table(&self, expected: &str) -> Option<Table<'a>> {
        Some(Table::new(self.report, self.place.path.clone(), vec![self.layer(expected)?]))
    }

    pub(super) fn layer(&self, expected: &str) -> Option<Layer<'a>> {
        match self.inner {
            DeValue::Table(entries) => {
                Some(Layer { source: self.source, entries, span: self.place.span.clone() })
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
