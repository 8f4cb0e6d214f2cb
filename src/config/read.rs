//! Layered TOML tables: a value comes from the first layer that has it. Faults are collected with
//! their positions. At the end, keys that the reader never requested are reported as unknown.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fault::{Excerpt, Fault, Faults};
use super::secret::url_path_in;

mod value;

pub(super) use value::Value;

/// The maximum of edits between an unknown key and the key that a message suggests.
const EDITS_MAX: usize = 2;

/// A parsed file.
pub(super) struct ConfigSource<'a> {
    name: &'a str,
    text: &'a str,
    root: DeTable<'a>,
    /// Whether the file is built in. A fault in such a file is not the operator's fault.
    builtin: bool,
}

/// Collects faults and warnings.
#[derive(Default)]
pub(super) struct FaultCollector {
    noted: RefCell<Vec<NotedFault>>,
    /// Lines that don't parse, by file and first byte. Only the first fault of such a line is
    /// reported.
    broken: RefCell<BTreeSet<(String, usize)>>,
    hidden: RefCell<Vec<(String, Range<usize>)>>,
    warnings: RefCell<Vec<String>>,
}

/// A fault without its excerpt.
struct NotedFault {
    at: SourceSpan,
    text: String,
    help: Option<String>,
    /// Whether the fault is a missing value. A syntax error in another place can be the cause.
    absence: bool,
}

/// The path of a key, and the byte range of its value in a file. Values of flags have no file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SourceSpan {
    pub path: String,
    file: Option<String>,
    bytes: Range<usize>,
    /// Whether the operator wrote the value.
    pub given: bool,
}

impl<'a> ConfigSource<'a> {
    /// Parses as much of a file as possible, and reports the rest.
    pub fn parse(
        name: &'a str,
        text: &'a str,
        builtin: bool,
        report: &FaultCollector,
    ) -> ConfigSource<'a> {
        let (root, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let bytes = error.span().unwrap_or(0..0);
            let line_start = line_start(text, bytes.start);
            let at = SourceSpan {
                path: String::new(),
                file: Some(name.to_owned()),
                bytes,
                given: !builtin,
            };
            // The line may belong to a sink, and then the path of its url may be a credential.
            let line = text[line_start..].split('\n').next().unwrap_or_default();
            let paths =
                url_path_in(line).map(|path| path.start + line_start..path.end + line_start);
            report.hidden.borrow_mut().extend(paths.map(|path| (name.to_owned(), path)));
            // One misplaced byte can violate several rules of the grammar. The first message is the
            // clearest.
            if report.broken.borrow_mut().insert((name.to_owned(), line_start)) {
                report.note(&at, error.message());
            }
        }
        ConfigSource { name, text, root: root.into_inner(), builtin }
    }

    /// Returns an empty source.
    pub fn empty() -> ConfigSource<'a> {
        ConfigSource { name: "", text: "", root: DeTable::new(), builtin: false }
    }
}

fn line_start(text: &str, at: usize) -> usize {
    let before = text.as_bytes().get(..at).unwrap_or(text.as_bytes());
    before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1)
}

impl FaultCollector {
    /// Notes a fault.
    pub fn note(&self, at: &SourceSpan, text: impl Into<String>) {
        self.push(at, text.into(), None, false);
    }

    /// Notes a fault with a suggestion.
    pub fn note_with_help(&self, at: &SourceSpan, text: impl Into<String>, help: Option<String>) {
        self.push(at, text.into(), help, false);
    }

    /// Notes that a value is missing.
    pub fn note_absence(&self, at: &SourceSpan, text: impl Into<String>) {
        self.push(at, text.into(), None, true);
    }

    /// Masks a value, and all values inside it, in excerpts.
    fn hide(&self, file: &str, span: &Range<usize>, value: &DeValue<'_>) {
        match value {
            DeValue::Table(entries) => {
                entries.values().for_each(|inner| self.hide(file, &inner.span(), inner.get_ref()))
            }
            DeValue::Array(items) => {
                items.iter().for_each(|inner| self.hide(file, &inner.span(), inner.get_ref()))
            }
            _ => self.hidden.borrow_mut().push((file.to_owned(), span.clone())),
        }
    }

    fn push(&self, at: &SourceSpan, text: String, help: Option<String>, absence: bool) {
        self.noted.borrow_mut().push(NotedFault { at: at.clone(), text, help, absence });
    }

    /// Notes a valid value that the operator should reconsider.
    pub fn warn(&self, path: &str, text: &str) {
        self.warnings.borrow_mut().push(format!("{path}: {text}"));
    }

    /// Returns the warnings, or all faults with their excerpts.
    pub fn finish(self, sources: &[&ConfigSource<'_>]) -> Result<Vec<String>, Faults> {
        let broken = self.broken.into_inner();
        let mut noted = self.noted.into_inner();
        let text_of = |file: &str| {
            sources.iter().find(|source| source.name == file).map_or("", |source| source.text)
        };
        noted.retain(|fault| {
            let Some(file) = &fault.at.file else { return !fault.absence || broken.is_empty() };
            let line = (file.clone(), line_start(text_of(file), fault.at.bytes.start));
            fault.at.path.is_empty()
                || !(broken.contains(&line) || fault.absence && !broken.is_empty())
        });
        if noted.is_empty() {
            return Ok(self.warnings.into_inner());
        }
        noted.sort_by(|a, b| (&a.at.file, a.at.bytes.start).cmp(&(&b.at.file, b.at.bytes.start)));
        noted.dedup_by(|a, b| a.at == b.at && a.text == b.text);
        let hidden = self.hidden.into_inner();
        let fault = |noted: NotedFault| {
            let excerpt = noted.at.file.as_ref().map(|file| {
                let hidden: Vec<_> = hidden
                    .iter()
                    .filter(|(of, _)| of == file)
                    .map(|(_, range)| range.clone())
                    .collect();
                Excerpt::of(file, text_of(file), &noted.at.bytes, &hidden)
            });
            Fault { key: noted.at.path, text: noted.text, help: noted.help, excerpt }
        };
        Err(Faults(noted.into_iter().map(fault).collect()))
    }
}

impl SourceSpan {
    /// Returns the span of a value from a flag or an environment variable.
    pub fn flag(name: &str) -> SourceSpan {
        SourceSpan { path: name.to_owned(), file: None, bytes: 0..0, given: true }
    }
}

/// A table of the operator, and below it the layers that supply missing values.
pub(super) struct Table<'a> {
    pub report: &'a FaultCollector,
    path: String,
    layers: Vec<Layer<'a>>,
    requested: RefCell<BTreeSet<&'static str>>,
}

#[derive(Clone)]
struct Layer<'a> {
    source: &'a ConfigSource<'a>,
    entries: &'a DeTable<'a>,
    span: Range<usize>,
}

impl<'a> Table<'a> {
    /// Creates the root table from files. The first file is the top layer.
    pub fn roots(
        report: &'a FaultCollector,
        sources: impl IntoIterator<Item = &'a ConfigSource<'a>>,
    ) -> Table<'a> {
        let layer =
            |source: &'a ConfigSource<'a>| Layer { source, entries: &source.root, span: 0..0 };
        Table::new(report, String::new(), sources.into_iter().map(layer).collect())
    }

    fn new(report: &'a FaultCollector, path: String, layers: Vec<Layer<'a>>) -> Table<'a> {
        Table { report, path, layers, requested: RefCell::default() }
    }

    /// Adds the layers of another table below this one.
    pub fn over(mut self, other: &Table<'a>) -> Table<'a> {
        self.layers.extend(other.layers.iter().cloned());
        self
    }

    /// Creates an empty table for a key that the operator didn't write.
    pub fn empty(&self, path: &str) -> Table<'a> {
        Table::new(self.report, path.to_owned(), Vec::new())
    }

    /// Returns the path of a key in this table.
    pub fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Returns the span of the table itself.
    pub fn span(&self) -> SourceSpan {
        self.layers
            .iter()
            .find(|layer| !layer.source.builtin && !layer.source.name.is_empty())
            .map_or_else(
                || SourceSpan { path: self.path.clone(), file: None, bytes: 0..0, given: false },
                |layer| layer.source.span_at(self.path.clone(), layer.span.clone()),
            )
    }

    /// Returns the span of a key's value. Without a value, returns the span of the table.
    pub fn span_of(&self, name: &'static str) -> SourceSpan {
        match self.get(name) {
            Some(value) => value.span,
            None => SourceSpan { path: self.path_of(name), ..self.span() },
        }
    }

    /// Returns a value from the first layer that has it.
    pub fn get(&self, name: &'static str) -> Option<Value<'a>> {
        self.layers.iter().find_map(|layer| self.get_in(layer, name))
    }

    /// Returns the values of all layers that have the key, in order.
    pub fn get_all(&self, name: &'static str) -> Vec<Value<'a>> {
        self.layers.iter().filter_map(|layer| self.get_in(layer, name)).collect()
    }

    /// Returns the values of the first layer that has any of these keys.
    pub fn get_together<const N: usize>(&self, names: [&'static str; N]) -> [Option<Value<'a>>; N] {
        let all = |layer: &Layer<'a>| names.map(|name| self.get_in(layer, name));
        let found = self.layers.iter().map(all).find(|values| values.iter().any(Option::is_some));
        found.unwrap_or_else(|| names.map(|_| None))
    }

    fn get_in(&self, layer: &Layer<'a>, name: &'static str) -> Option<Value<'a>> {
        self.requested.borrow_mut().insert(name);
        let value = layer.entries.get(name).filter(|value| is_parsed(value))?;
        let span = layer.source.span_at(self.path_of(name), value.span());
        Some(Value { report: self.report, source: layer.source, span, inner: value.get_ref() })
    }

    /// Returns an inner table with all its layers. Returns an empty table if no layer has it.
    pub fn table(&self, name: &'static str, expected: &str) -> Table<'a> {
        let layers =
            self.get_all(name).into_iter().filter_map(|value| value.layer(expected)).collect();
        Table::new(self.report, self.path_of(name), layers)
    }

    /// Returns all inner tables with their names, which the operator chooses.
    pub fn entries(&self, expected: &str) -> Vec<(String, Table<'a>)> {
        let Some(layer) = self.layers.first() else { return Vec::new() };
        let mut tables = Vec::new();
        for (name, value) in layer.entries.iter().filter(|(_, value)| is_parsed(value)) {
            let span = layer.source.span_at(self.path_of(name.get_ref()), value.span());
            let value =
                Value { report: self.report, source: layer.source, span, inner: value.get_ref() };
            tables.extend(value.table(expected).map(|table| (name.get_ref().to_string(), table)));
        }
        tables
    }

    /// Returns all inner values with their names, which the operator chooses.
    pub fn values(&self) -> Vec<(String, Value<'a>)> {
        let Some(layer) = self.layers.first() else { return Vec::new() };
        let parsed = layer.entries.iter().filter(|(_, value)| is_parsed(value));
        let mut values = Vec::new();
        for (name, value) in parsed {
            let span = layer.source.span_at(self.path_of(name.get_ref()), value.span());
            let value =
                Value { report: self.report, source: layer.source, span, inner: value.get_ref() };
            values.push((name.get_ref().to_string(), value));
        }
        values
    }

    /// Reports the keys that were never requested. Called after all reads.
    pub fn finish(self) {
        let requested = self.requested.borrow();
        for layer in &self.layers {
            for (key, value) in
                layer.entries.iter().filter(|(key, _)| !requested.contains(key.get_ref().as_ref()))
            {
                let at = layer.source.span_at(self.path_of(key.get_ref()), key.span());
                let near = closest(key.get_ref(), requested.iter().copied());
                // The value may be a password under a misspelt key.
                if near.is_none() {
                    self.report.hide(layer.source.name, &value.span(), value.get_ref());
                }
                let help = near.map(|name| format!("did you mean `{name}`?"));
                self.report.note_with_help(&at, "no such key", help);
            }
        }
    }
}

impl ConfigSource<'_> {
    fn span_at(&self, path: String, bytes: Range<usize>) -> SourceSpan {
        SourceSpan { path, file: Some(self.name.to_owned()), bytes, given: !self.builtin }
    }
}

/// Returns whether a value is from the file. If the parser can't parse a value, it inserts an empty
/// one.
fn is_parsed(value: &Spanned<DeValue<'_>>) -> bool {
    !value.span().is_empty()
}

/// Returns the known name that the operator probably meant.
pub(super) fn closest<'n>(text: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let near = names
        .map(|name| (strsim::levenshtein(text, name), name))
        .filter(|(edits, name)| *edits <= EDITS_MAX.min(name.len() / 2));
    near.min_by_key(|(edits, _)| *edits).map(|(_, name)| name)
}
