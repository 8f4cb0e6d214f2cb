//! Escapes text for terminals and log lines: characters that a terminal would interpret, or that
//! change the displayed order of text. Such text can come from clients, from operators, and from
//! everything that can write to the store.

use std::borrow::Cow;

/// Returns whether a character changes how a terminal or an editor shows the text around it:
/// controls (C0, DEL, C1), marks that change the direction of text (Unicode UAX #9), and separators
/// of lines and paragraphs.
pub(super) fn is_unsafe(c: char) -> bool {
    let turns = matches!(
        c,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    c.is_control() || turns || matches!(c, '\u{2028}' | '\u{2029}')
}

/// Escapes one field or one line, as Rust does (`\n`, `\u{202e}`). Line breaks and tabs are escaped
/// too, so that a field can't start a line.
pub fn escape(text: &str) -> Cow<'_, str> {
    escaped(text, |_| false, |c, out| out.extend(c.escape_default()))
}

/// Escapes a text of several lines; line breaks and tabs stay. Its fields must be escaped with
/// [`escape`] before.
pub fn escape_block(text: &str) -> Cow<'_, str> {
    escaped(text, |c| matches!(c, '\n' | '\t'), |c, out| out.extend(c.escape_default()))
}

/// Escapes a JSON document without changing the meaning of its strings: JSON itself allows DEL, C1
/// and directional marks.
pub fn escape_json(text: &str) -> Cow<'_, str> {
    // All escaped characters have at most 16 bits. Outside of strings, JSON has none of them but
    // line breaks.
    escaped(text, |c| c == '\n', |c, out| out.push_str(&format!("\\u{:04x}", u32::from(c))))
}

/// Escapes a rendered line of the log, without its line break. With `colours` the formatter's own
/// escape sequences stay.
#[cfg(any(test, feature = "gateway"))]
pub(super) fn escape_log_line(line: &str, colours: bool, json: bool) -> String {
    let text = line.strip_suffix('\n').unwrap_or(line);
    let stays = |c| colours && c == '\u{1b}';
    let mut escaped = if json {
        escape_json(text)
    } else {
        escaped(text, stays, |c, out| out.extend(c.escape_default()))
    }
    .into_owned();
    escaped.push('\n');
    escaped
}

fn escaped(
    text: &str,
    stays: impl Fn(char) -> bool,
    write: impl Fn(char, &mut String),
) -> Cow<'_, str> {
    let is_escaped = |c: char| is_unsafe(c) && !stays(c);
    if !text.contains(is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_escaped(c) { write(c, &mut out) } else { out.push(c) }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every character that must not reach a terminal unescaped.
    fn unsafe_characters() -> impl Iterator<Item = char> {
        let ranges = [
            0..=0x1f,
            0x7f..=0x9f,
            0x61c..=0x61c,
            0x200e..=0x200f,
            0x2028..=0x202e,
            0x2066..=0x2069,
        ];
        ranges.into_iter().flatten().filter_map(char::from_u32)
    }

    #[test]
    fn no_control_and_no_mark_of_direction_or_line_gets_through() {
        for c in unsafe_characters() {
            let text = format!("a{c}b");
            assert!(!escape(&text).contains(c), "{:?}", c);
            assert_eq!(escape_block(&text).contains(c), matches!(c, '\n' | '\t'), "{:?}", c);
            let json = serde_json::to_string(&text).unwrap();
            assert!(!escape_json(&json).contains(c), "{:?}", c);
            assert_eq!(serde_json::from_str::<String>(&escape_json(&json)).unwrap(), text);
            for (colours, json) in [(false, false), (false, true), (true, false)] {
                let line = escape_log_line(&format!("{text}\n"), colours, json);
                let may_stay = (colours && c == '\u{1b}') || c == '\n';
                assert!(may_stay || !line.contains(c), "{:?}", c);
            }
        }
        assert_eq!(escape("pay\u{202e}\n\u{1b}[2J\u{85}"), "pay\\u{202e}\\n\\u{1b}[2J\\u{85}");
    }

    #[test]
    fn other_text_stays_as_it_is() {
        for text in [
            "",
            "op_1 payments",
            "Z\u{fc}rich \u{5e9}\u{5dc}\u{5d5}\u{5dd} \u{1f4b3}",
            "a\\u{202e} \"quoted\"",
        ] {
            assert!(matches!(escape(text), Cow::Borrowed(same) if same == text), "{text}");
            assert_eq!((&*escape_block(text), &*escape_json(text)), (text, text));
        }
    }
}
