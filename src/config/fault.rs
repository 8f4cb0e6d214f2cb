//! Faults of a configuration, formatted like compiler errors. A fault has key, expected value,
//! file, line and caret.

use std::fmt;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};

use super::secret::{MASK, secrets_in};

/// One fault. Its texts contain no password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The key's path, such as `routes[1].lease`; empty for a syntax error.
    pub key: String,
    /// The fault, and the expected value.
    pub text: String,
    /// The remedy, if it is clear.
    pub help: Option<String>,
    /// The line in the file, if the fault is in a file.
    pub excerpt: Option<Excerpt>,
}

/// A position in a file, and its line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excerpt {
    /// The file's name, as given.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The column in characters of the file's line, from 1.
    pub column: usize,
    /// The line for display: secrets masked, control characters replaced.
    pub text: String,
    /// The bytes of `text` to underline.
    pub span: Range<usize>,
}

/// All faults of a configuration, in the order of the file. `Display` lists them and their number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl std::error::Error for Faults {}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for fault in &self.0 {
            writeln!(f, "{fault}\n")?;
        }
        match self.0.len() {
            1 => f.write_str("1 fault"),
            many => write!(f, "{many} faults"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let title = match self.key.as_str() {
            "" => self.text.clone(),
            key => format!("{key}: {}", self.text),
        };
        let mut group = Group::with_title(Level::ERROR.primary_title(title));
        if let Some(Excerpt { file, line, column, text, span }) = &self.excerpt {
            let snippet = Snippet::source(text)
                .line_start(*line)
                .annotation(AnnotationKind::Primary.span(span.clone()));
            // The snippet counts columns in the masked text. If a mask before the span shifts them,
            // the origin names the column.
            let is_shifted = 1 + text[..span.start].chars().count() != *column;
            group = if is_shifted {
                group.element(Origin::path(file).line(*line).char_column(*column)).element(snippet)
            } else {
                group.element(snippet.path(file))
            };
        }
        if let Some(help) = &self.help {
            group = group.element(Level::HELP.message(help));
        }
        f.write_str(&Renderer::plain().render(&[group]))
    }
}

impl Fault {
    /// Returns the fault in one line: position, key, text, help.
    pub fn sentence(&self) -> String {
        let position = self
            .excerpt
            .as_ref()
            .map(|Excerpt { file, line, column, .. }| format!("{file}:{line}:{column}: "));
        let key = if self.key.is_empty() { String::new() } else { format!("{}: ", self.key) };
        let help = self.help.as_ref().map(|help| format!(" ({help})"));
        format!("{}{key}{}{}", position.unwrap_or_default(), self.text, help.unwrap_or_default())
    }

    /// Creates a fault that is in no file.
    pub(super) fn without_excerpt(key: impl Into<String>, text: impl Into<String>) -> Fault {
        Fault { key: key.into(), text: text.into(), help: None, excerpt: None }
    }
}

impl Excerpt {
    /// Returns the line at a byte range of the file. `hidden` are ranges of the file to mask, in
    /// addition to texts that look like secrets.
    pub(super) fn of(
        file: &str,
        text: &str,
        span: &Range<usize>,
        hidden: &[Range<usize>],
    ) -> Excerpt {
        let start = floor_boundary(text, span.start);
        let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let line = text[line_start..].split('\n').next().unwrap_or_default().trim_end_matches('\r');
        let mut masked = secrets_in(line);
        masked.extend(hidden.iter().filter_map(|range| within(range, line_start, line.len())));
        let position_in_shown = |byte: usize| {
            let before = &line[..floor_boundary(line, byte.saturating_sub(line_start))];
            shown_line(before, &masked).len()
        };
        let shown_start = position_in_shown(start);
        Excerpt {
            file: file.to_owned(),
            line: 1 + text[..line_start].matches('\n').count(),
            column: 1 + text[line_start..start].chars().count(),
            text: shown_line(line, &masked),
            span: shown_start..position_in_shown(span.end).max(shown_start),
        }
    }
}

/// Returns the part of a byte range of the file that is in one line. The result counts from the
/// line's start.
fn within(range: &Range<usize>, line_start: usize, line_length: usize) -> Option<Range<usize>> {
    let start = range.start.saturating_sub(line_start);
    let end = range.end.checked_sub(line_start)?.min(line_length);
    (start < end).then_some(start..end)
}

/// Masks the given ranges of a line and replaces the control characters that the renderer keeps.
fn shown_line(line: &str, masked: &[Range<usize>]) -> String {
    let mut shown = String::with_capacity(line.len());
    let mut in_mask = false;
    for (at, c) in line.char_indices() {
        let hide = masked.iter().any(|range| range.contains(&at));
        match (hide, in_mask) {
            (true, false) => shown.push_str(MASK),
            (true, true) => {}
            (false, _) if c.is_control() && c != '\t' => shown.push(char::REPLACEMENT_CHARACTER),
            (false, _) => shown.push(c),
        }
        in_mask = hide;
    }
    shown
}

fn floor_boundary(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}
