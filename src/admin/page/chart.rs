//! The traffic of the last hour as an SVG bar chart. A text and a table have the same data for
//! people who can't see the chart.

use maud::{Markup, html};

use super::layout::number;
use crate::admin::view::MinuteView;

/// The size of the drawing, in its own units. It is scaled to the width of the page.
const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 170.0;
/// Space for the numbers on the left, for the times below, and for the upper half of the topmost
/// number. It is enough for a narrow screen, where the text is three times as large.
const LEFT: f64 = 66.0;
const BELOW: f64 = 34.0;
const ABOVE: f64 = 20.0;
/// The number of horizontal grid lines, without the one at the bottom.
const LINES: u64 = 2;

/// The parts of a minute's bar, from the bottom up.
struct Bar<'m> {
    start: &'m str,
    executed: u64,
    prevented: u64,
    other: u64,
}

impl<'m> Bar<'m> {
    fn of(minute: &'m MinuteView) -> Bar<'m> {
        let tally = &minute.tally;
        let other = tally.uncertain + tally.conflicts + tally.refused;
        Bar {
            start: minute.start.get(11..16).unwrap_or_default(),
            executed: tally.executed,
            prevented: tally.duplicates_prevented,
            other,
        }
    }

    fn parts(&self) -> [(&'static str, u64); 3] {
        [("executed", self.executed), ("kept", self.prevented), ("lost", self.other)]
    }

    fn height(&self) -> u64 {
        self.executed + self.prevented + self.other
    }
}

/// Renders the chart of these minutes.
pub(super) fn traffic(minutes: &[MinuteView]) -> Markup {
    let bars: Vec<Bar<'_>> = minutes.iter().map(Bar::of).collect();
    let top = ceiling(bars.iter().map(Bar::height).max().unwrap_or_default());
    let [executed, prevented, other] =
        [0, 1, 2].map(|part| bars.iter().map(|bar| bar.parts()[part].1).sum::<u64>());
    let scale = (HEIGHT - BELOW) / top as f64;
    let step = (WIDTH - LEFT) / bars.len().max(1) as f64;
    html! {
        svg.chart viewBox=(format!("0 -{ABOVE} {WIDTH} {}", HEIGHT + ABOVE)) role="img"
            aria-labelledby="chart-title chart-words" {
            title #chart-title { "Requests with a key, by minute" }
            desc #chart-words {
                "In the last hour " (number(executed)) " requests were executed, "
                (number(prevented)) " duplicates were answered without the "
                "upstream, and " (number(other)) " became uncertain or were refused."
            }
            @for line in 0..=LINES {
                @let y = HEIGHT - BELOW - (HEIGHT - BELOW) * line as f64 / LINES as f64;
                line.grid x1=(LEFT) x2=(WIDTH) y1=(y) y2=(y) {}
                text x=(LEFT - 8.0) y=(y + 4.0) text-anchor="end" { (short(top * line / LINES)) }
            }
            @for (at, bar) in bars.iter().enumerate() {
                @let x = LEFT + at as f64 * step;
                (column(bar, x, step, scale))
                @if at % 10 == 0 { text x=(round(x)) y=(HEIGHT - 8.0) { (bar.start) } }
            }
        }
        ul.legend aria-hidden="true" {
            li { span.key.executed {} "executed " (number(executed)) }
            li { span.key.kept {} "duplicates prevented " (number(prevented)) }
            li { span.key.lost {} "uncertain or refused " (number(other)) }
        }
        details {
            summary #as-table { "Show as a table" }
            div.scroll tabindex="0" role="region" aria-label="Requests by minute" {
                table {
                    caption {
                        "Requests with a key, by minute, newest first; minutes without requests \
                         are omitted"
                    }
                    thead {
                        tr {
                            th scope="col" { "Minute" }
                            th.num scope="col" { "Executed" }
                            th.num scope="col" { "Duplicates prevented" }
                            th.num scope="col" { "Uncertain or refused" }
                        }
                    }
                    tbody {
                        @for bar in bars.iter().rev().filter(|bar| bar.height() > 0) {
                            tr {
                                th scope="row" { (bar.start) }
                                @for (_, count) in bar.parts() { td.num { (number(count)) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn column(bar: &Bar<'_>, x: f64, step: f64, scale: f64) -> Markup {
    /// The smallest height of a bar's part. So a single event is visible beside thousands of
    /// others.
    const HEIGHT_MIN: f64 = 1.5;
    let mut y = HEIGHT - BELOW;
    let mut rect = |(class, count): (&'static str, u64)| {
        let height = (count as f64 * scale).max(HEIGHT_MIN);
        y -= height;
        let (x, width) = (round(x + step * 0.1), round(step * 0.8));
        html! { rect class=(class) x=(x) y=(round(y)) width=(width) height=(round(height)) {} }
    };
    let rects: Vec<Markup> =
        bar.parts().into_iter().filter(|(_, count)| *count > 0).map(&mut rect).collect();
    html! { @for rect in &rects { (rect) } }
}

fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// Formats a number of the scale so that it fits beside the chart, such as 5k. Numbers of the scale
/// above 999 are whole thousands, and above 999,999 whole millions.
fn short(value: u64) -> String {
    match value {
        0..=999 => value.to_string(),
        1000..=999_999 => format!("{}k", value / 1000),
        _ => format!("{}M", value / 1_000_000),
    }
}

/// Returns the number at the top grid line: the next round number that is even. So half of it is a
/// round number too.
fn ceiling(most: u64) -> u64 {
    let mut unit = 1;
    loop {
        for factor in [2, 4, 6, 10] {
            if factor * unit >= most {
                return factor * unit;
            }
        }
        unit *= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::view::TallyView;

    fn minute(executed: u64, duplicates_prevented: u64) -> MinuteView {
        let tally = TallyView { executed, duplicates_prevented, ..TallyView::default() };
        MinuteView { start: "2026-11-25T03:07:00.000Z".into(), tally }
    }

    #[test]
    fn the_text_and_the_table_have_the_numbers_of_the_chart() {
        let drawn = traffic(&[minute(3, 0), minute(0, 0), minute(1, 20)]).into_string();
        assert!(drawn.contains("4 requests were executed, 20 duplicates"), "{drawn}");
        assert_eq!(drawn.matches("<rect").count(), 3, "{drawn}");
        assert_eq!(
            drawn.matches("scope=\"row\"").count(),
            2,
            "a minute without requests is left out: {drawn}"
        );
        assert!(drawn.contains(">40</text>") && drawn.contains(">20</text>"), "{drawn}");
        assert!(!drawn.contains("NaN") && !traffic(&[]).into_string().contains("NaN"));
    }

    #[test]
    fn the_numbers_of_the_scale_are_short_and_lose_nothing() {
        for (most, top, half) in
            [(0, "2", "1"), (900, "1k", "500"), (7000, "10k", "5k"), (3_000_000, "4M", "2M")]
        {
            assert_eq!(
                (short(ceiling(most)), short(ceiling(most) / LINES)),
                (top.into(), half.into()),
                "{most}"
            );
        }
    }

    #[test]
    fn the_top_line_is_a_number_that_people_count_by() {
        for (most, top) in [
            (0, 2),
            (1, 2),
            (3, 4),
            (6, 6),
            (7, 10),
            (11, 20),
            (45, 60),
            (61, 100),
            (100, 100),
            (101, 200),
        ] {
            assert_eq!(ceiling(most), top);
        }
    }
}
