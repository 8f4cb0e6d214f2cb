//! A reader of TOML tables that lie over each other: it answers what is asked for, notes every fault with its place,
//! and at the end reports the keys that nobody asked for.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fault::{Excerpt, Fault, Faults};

mod value;

pub(super) use value::Value;

/// Most edits by which a wrong key may differ from the one it is taken for.
const EDITS_MAX: usize = 2;

/// A file, parsed; or the text of a flag.
pub(super) struct Source<'a> {
    name: &'a str,
    text: &'a str,
    root: DeTable<'a>,
    /// Whether it is one of ours, so that a fault in it should not be blamed on the operator.
    builtin: bool,
}

/// Where faults and warnings are gathered.
#[derive(Default)]
pub(super) struct Report {
    noted: RefCell<Vec<Noted>>,
    /// Lines (by file and the byte they start at) that don't parse: what else is wrong with them only confuses.
    broken: RefCell<BTreeSet<(String, usize)>>,
    hidden: RefCell<Vec<(String, Range<usize>)>>,
    warnings: RefCell<Vec<String>>,
}

/// A fault before its excerpt is cut.
struct Noted {
    at: Place,
    text: String,
    help: Option<String>,
    /// Whether something is not there, which a syntax error elsewhere can be the cause of.
    absence: bool,
}

/// A key's path, and where it stands. Without a file it stands nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub path: String,
    file: Option<String>,
    span: Range<usize>,
    /// Whether the operator wrote it.
    pub given: bool,
}

impl<'a> Source<'a> {
    /// Parses a file as far as it can be parsed; what can't is reported.
    pub fn parse(name: &'a str, text: &'a str, builtin: bool, report: &Report) -> Source<'a> {
        let (root, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let span = error.span().unwrap_or(0..0);
            let line_start = line_start(text, span.start);
            let at =
                Place { path: String::new(), file: Some(name.to_owned()), span, given: !builtin };
            // One misplaced byte can be an error to several rules of the grammar: the first says it best.
            if report.broken.borrow_mut().insert((name.to_owned(), line_start)) {
                report.note(&at, error.message());
            }
        }
        Source { name, text, root: root.into_inner(), builtin }
    }

    /// A source without anything in it.
    pub fn empty() -> Source<'a> {
        Source { name: "", text: "", root: DeTable::new(), builtin: false }
    }
}

fn line_start(text: &str, at: usize) -> usize {
    let before = text.as_bytes().get(..at).unwrap_or(text.as_bytes());
    before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1)
}

impl Report {
    /// Notes a fault.
    pub fn note(&self, at: &Place, text: impl Into<String>) {
        self.push(at, text.into(), None, false);
    }

    /// Notes a fault and what to do about it.
    pub fn note_with_help(&self, at: &Place, text: impl Into<String>, help: Option<String>) {
        self.push(at, text.into(), help, false);
    }

    /// Notes that something is not there.
    pub fn note_absence(&self, at: &Place, text: impl Into<String>) {
        self.push(at, text.into(), None, true);
    }

    /// Masks a value, or all that are in it, wherever a line with it is shown.
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

    fn push(&self, at: &Place, text: String, help: Option<String>, absence: bool) {
        self.noted.borrow_mut().push(Noted { at: at.clone(), text, help, absence });
    }

    /// Notes something legal that is worth a thought.
    pub fn warn(&self, path: &str, text: &str) {
        self.warnings.borrow_mut().push(format!("{path}: {text}"));
    }

    /// The warnings, if there is no fault.
    pub fn finish(self, sources: &[&Source<'_>]) -> Result<Vec<String>, Faults> {
        let broken = self.broken.into_inner();
        let mut noted = self.noted.into_inner();
        let text_of = |file: &str| {
            sources.iter().find(|source| source.name == file).map_or("", |source| source.text)
        };
        noted.retain(|fault| {
            let Some(file) = &fault.at.file else { return !fault.absence || broken.is_empty() };
            let line = (file.clone(), line_start(text_of(file), fault.at.span.start));
            fault.at.path.is_empty()
                || !(broken.contains(&line) || fault.absence && !broken.is_empty())
        });
        if noted.is_empty() {
            return Ok(self.warnings.into_inner());
        }
        noted.sort_by(|a, b| (&a.at.file, a.at.span.start).cmp(&(&b.at.file, b.at.span.start)));
        noted.dedup_by(|a, b| a.at == b.at && a.text == b.text);
        let hidden = self.hidden.into_inner();
        let fault = |noted: Noted| {
            let excerpt = noted.at.file.as_ref().map(|file| {
                let hidden: Vec<_> = hidden
                    .iter()
                    .filter(|(of, _)| of == file)
                    .map(|(_, range)| range.clone())
                    .collect();
                Excerpt::of(file, text_of(file), &noted.at.span, &hidden)
            });
            Fault { key: noted.at.path, text: noted.text, help: noted.help, excerpt }
        };
        Err(Faults(noted.into_iter().map(fault).collect()))
    }
}

impl Place {
    /// A value that was given by a flag or the environment.
    pub fn flag(name: &str) -> Place {
        Place { path: name.to_owned(), file: None, span: 0..0, given: true }
    }
}

/// A table as the operator wrote it, over the ones that it takes missing values from.
pub(super) struct Table<'a> {
    pub report: &'a Report,
    path: String,
    layers: Vec<Layer<'a>>,
    asked: RefCell<BTreeSet<&'static str>>,
}

#[derive(Clone)]
struct Layer<'a> {
    source: &'a Source<'a>,
    entries: &'a DeTable<'a>,
    span: Range<usize>,
}

impl<'a> Table<'a> {
    /// The roots of some files, the nearest first.
    pub fn roots(
        report: &'a Report,
        sources: impl IntoIterator<Item = &'a Source<'a>>,
    ) -> Table<'a> {
        let layer = |source: &'a Source<'a>| Layer { source, entries: &source.root, span: 0..0 };
        Table::new(report, String::new(), sources.into_iter().map(layer).collect())
    }

    fn new(report: &'a Report, path: String, layers: Vec<Layer<'a>>) -> Table<'a> {
        Table { report, path, layers, asked: RefCell::default() }
    }

    /// The same table, with the missing values of another's.
    pub fn over(mut self, other: &Table<'a>) -> Table<'a> {
        self.layers.extend(other.layers.iter().cloned());
        self
    }

    /// An empty table, for what the operator didn't write.
    pub fn nothing(&self, path: &str) -> Table<'a> {
        Table::new(self.report, path.to_owned(), Vec::new())
    }

    /// The path of one of its keys.
    pub fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Where the table itself stands.
    pub fn place(&self) -> Place {
        self.layers
            .iter()
            .find(|layer| !layer.source.builtin && !layer.source.name.is_empty())
            .map_or_else(
                || Place { path: self.path.clone(), file: None, span: 0..0, given: false },
                |layer| layer.source.place(self.path.clone(), layer.span.clone()),
            )
    }

    /// Where one of its keys stands, or else the table.
    pub fn place_of(&self, name: &'static str) -> Place {
        match self.get(name) {
            Some(value) => value.place,
            None => Place { path: self.path_of(name), ..self.place() },
        }
    }

    /// A value, from the nearest layer that has it.
    pub fn get(&self, name: &'static str) -> Option<Value<'a>> {
        self.layers.iter().find_map(|layer| self.get_in(layer, name))
    }

    /// The values of all layers that have it, the nearest first.
    pub fn get_all(&self, name: &'static str) -> Vec<Value<'a>> {
        self.layers.iter().filter_map(|layer| self.get_in(layer, name)).collect()
    }

    /// The values of the nearest layer that has any of these.
    pub fn get_together<const N: usize>(&self, names: [&'static str; N]) -> [Option<Value<'a>>; N] {
        let all = |layer: &Layer<'a>| names.map(|name| self.get_in(layer, name));
        let found = self.layers.iter().map(all).find(|values| values.iter().any(Option::is_some));
        found.unwrap_or_else(|| names.map(|_| None))
    }

    fn get_in(&self, layer: &Layer<'a>, name: &'static str) -> Option<Value<'a>> {
        self.asked.borrow_mut().insert(name);
        let value = layer.entries.get(name).filter(|value| is_parsed(value))?;
        let place = layer.source.place(self.path_of(name), value.span());
        Some(Value { report: self.report, source: layer.source, place, inner: value.get_ref() })
    }

    /// A table inside, layer over layer; empty if there is none.
    pub fn table(&self, name: &'static str, expected: &str) -> Table<'a> {
        let layers =
            self.get_all(name).into_iter().filter_map(|value| value.layer(expected)).collect();
        Table::new(self.report, self.path_of(name), layers)
    }

    /// The tables inside, where their names are for the operator to choose.
    pub fn entries(&self, expected: &str) -> Vec<(String, Table<'a>)> {
        let Some(layer) = self.layers.first() else { return Vec::new() };
        let mut tables = Vec::new();
        for (name, value) in layer.entries.iter().filter(|(_, value)| is_parsed(value)) {
            let place = layer.source.place(self.path_of(name.get_ref()), value.span());
            let value =
                Value { report: self.report, source: layer.source, place, inner: value.get_ref() };
            tables.extend(value.table(expected).map(|table| (name.get_ref().to_string(), table)));
        }
        tables
    }

    /// What is inside, where the names are for the operator to choose.
    pub fn values(&self) -> Vec<(String, Value<'a>)> {
        let Some(layer) = self.layers.first() else { return Vec::new() };
        let parsed = layer.entries.iter().filter(|(_, value)| is_parsed(value));
        let mut values = Vec::new();
        for (name, value) in parsed {
            let place = layer.source.place(self.path_of(name.get_ref()), value.span());
            let value =
                Value { report: self.report, source: layer.source, place, inner: value.get_ref() };
            values.push((name.get_ref().to_string(), value));
        }
        values
    }

    /// Reports the keys that nobody asked for. Called when everything was.
    pub fn finish(self) {
        let asked = self.asked.borrow();
        for layer in &self.layers {
            for (key, value) in
                layer.entries.iter().filter(|(key, _)| !asked.contains(key.get_ref().as_ref()))
            {
                let at = layer.source.place(self.path_of(key.get_ref()), key.span());
                let near = closest(key.get_ref(), asked.iter().copied());
                // It might be a password in the wrong place.
                if near.is_none() {
                    self.report.hide(layer.source.name, &value.span(), value.get_ref());
                }
                let help = near.map(|name| format!("did you mean `{name}`?"));
                self.report.note_with_help(&at, "no such key", help);
            }
        }
    }
}

impl Source<'_> {
    fn place(&self, path: String, span: Range<usize>) -> Place {
        Place { path, file: Some(self.name.to_owned()), span, given: !self.builtin }
    }
}

/// Whether a value is the file's, and not what the parser puts in the place of one that doesn't parse.
fn is_parsed(value: &Spanned<DeValue<'_>>) -> bool {
    !value.span().is_empty()
}

/// The name that was probably meant.
pub(super) fn closest<'n>(text: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let near = names
        .map(|name| (strsim::levenshtein(text, name), name))
        .filter(|(edits, name)| *edits <= EDITS_MAX.min(name.len() / 2));
    near.min_by_key(|(edits, _)| *edits).map(|(_, name)| name)
}
