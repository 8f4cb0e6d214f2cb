//! Tables on the terminal.

use crate::telemetry::escape;

/// Returns rows in columns under a head line, without a line break at the end. Escapes all cells.
/// The last column is not padded.
pub(super) fn table<const N: usize>(
    head: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let cells = rows.into_iter().map(|row| row.map(|cell| escape(&cell).into_owned()));
    let lines: Vec<[String; N]> = std::iter::once(head.map(str::to_owned)).chain(cells).collect();
    let mut widths = [0; N];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |line: &[String; N]| {
        let padded = line.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    lines.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_in_columns_and_no_terminal_takes_them_for_a_command() {
        let rows = [["a", "long text\u{1b}[2J", "x"], ["bcd", "-", "y"]];
        let text = table(["A", "TEXT", "C"], rows.map(|row| row.map(str::to_owned)));
        assert_eq!(
            text,
            "A    TEXT                C\n\
             a    long text\\u{1b}[2J  x\n\
             bcd  -                   y"
        );
    }
}
