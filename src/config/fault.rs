//! Faults of a configuration, shown as a compiler shows them: the key, what was expected, the line and a caret.

use std::fmt;
use std::ops::Range;

use super::secret::{MASK, secrets_in};

/// One fault. Its texts hold no password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The key's path, such as `routes[1].lease`; empty for a syntax error.
    pub key: String,
    /// What is wrong and what was expected.
    pub text: String,
    /// What to do, if that is clear.
    pub help: Option<String>,
    /// Where it stands, if it stands in a file.
    pub excerpt: Option<Excerpt>,
}

/// A place in a file, and its line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excerpt {
    /// The file's name, as given.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// The line as it is shown: secrets masked, control characters replaced.
    pub text: String,
    /// Which characters of `text` the caret line marks.
    pub caret: Range<usize>,
}

/// All faults of a configuration, in the order of the file. `Display` shows them all, and how many there are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl std::error::Error for Faults {}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for fault in &self.0 {
            writeln!(f, "{fault}")?;
        }
        match self.0.len() {
            1 => f.write_str("1 fault"),
            many => write!(f, "{many} faults"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key.as_str() {
            "" => writeln!(f, "error: {}", self.text)?,
            key => writeln!(f, "error: {key}: {}", self.text)?,
        }
        let number = self.excerpt.as_ref().map_or(0, |excerpt| excerpt.line).to_string();
        let margin = " ".repeat(number.len());
        if let Some(Excerpt { file, line, column, text, caret }) = &self.excerpt {
            writeln!(f, "{margin}--> {file}:{line}:{column}")?;
            writeln!(f, "{margin} |")?;
            writeln!(f, "{number} | {text}")?;
            writeln!(
                f,
                "{margin} | {}{}",
                " ".repeat(caret.start),
                "^".repeat(caret.len().max(1))
            )?;
        }
        match &self.help {
            Some(help) => writeln!(f, "{margin} = help: {help}"),
            None => Ok(()),
        }
    }
}

impl Fault {
    /// The fault in one line: where, which key, what.
    pub fn sentence(&self) -> String {
        let place = self
            .excerpt
            .as_ref()
            .map(|Excerpt { file, line, column, .. }| format!("{file}:{line}:{column}: "));
        let key = if self.key.is_empty() { String::new() } else { format!("{}: ", self.key) };
        let help = self.help.as_ref().map(|help| format!(" ({help})"));
        format!("{}{key}{}{}", place.unwrap_or_default(), self.text, help.unwrap_or_default())
    }

    /// A fault that stands in no file.
    pub(super) fn elsewhere(key: impl Into<String>, text: impl Into<String>) -> Fault {
        Fault { key: key.into(), text: text.into(), help: None, excerpt: None }
    }
}

impl Excerpt {
    /// The place of a byte range. `hidden` are ranges of the text that are shown masked, besides those that look like
    /// secrets.
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
        let shown = shown_characters(line, &masked);
        let place =
            |byte: usize| shown.iter().position(|(at, _)| *at >= byte).unwrap_or(shown.len());
        let caret = place(start - line_start)..place(span.end.saturating_sub(line_start));
        Excerpt {
            file: file.to_owned(),
            line: 1 + text[..line_start].matches('\n').count(),
            column: 1 + text[line_start..start].chars().count(),
            text: shown.iter().map(|(_, c)| c).collect(),
            caret: caret.start..caret.end.max(caret.start),
        }
    }
}

/// The part of a byte range of the file that lies in one line, counted from the line's start.
fn within(range: &Range<usize>, line_start: usize, line_length: usize) -> Option<Range<usize>> {
    let start = range.start.saturating_sub(line_start);
    let end = range.end.checked_sub(line_start)?.min(line_length);
    (start < end).then_some(start..end)
}

/// The characters to show, each with the byte of the line that it comes from.
fn shown_characters(line: &str, masked: &[Range<usize>]) -> Vec<(usize, char)> {
    let mut shown = Vec::with_capacity(line.len());
    let mut in_mask = false;
    for (at, c) in line.char_indices() {
        let hide = masked.iter().any(|range| range.contains(&at));
        match (hide, in_mask) {
            (true, false) => shown.extend(MASK.chars().map(|c| (at, c))),
            (true, true) => {}
            (false, _) if c == '\t' => shown.push((at, ' ')),
            (false, _) if c.is_control() => shown.push((at, char::REPLACEMENT_CHARACTER)),
            (false, _) => shown.push((at, c)),
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
