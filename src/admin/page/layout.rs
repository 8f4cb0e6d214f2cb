//! The layout of all pages, and the formats of times, states and numbers.

use axum::response::{Html, IntoResponse, Response};
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::assets;
use super::visitor::{PROOF_FIELD, Visitor};
use crate::clock::rfc3339;

/// The configuration of htmx. It disables everything that the pages' content security policy does
/// not allow.
const HTMX: &str = concat!(
    r#"{"includeIndicatorStyles":false,"allowEval":false,"allowScriptTags":false,"#,
    r#""selfRequestsOnly":true,"historyEnabled":false,"timeout":5000}"#
);

/// The menu entry of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MenuEntry {
    Overview,
    Operations,
    Uncertain,
    Sagas,
    Delivery,
    Elsewhere,
}

/// Renders a whole page. Without a visitor it has no menu.
pub(super) fn document(
    visitor: Option<&Visitor>,
    here: MenuEntry,
    title: &str,
    content: Markup,
) -> Html<String> {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="htmx-config" content=(HTMX);
                title { (title) " · Onceward" }
                link rel="icon" href=(assets::ICON.path()) type="image/svg+xml";
                link rel="stylesheet" href=(assets::STYLE.path());
                script src=(assets::HTMX.path()) defer {}
                script src=(assets::SCRIPT.path()) defer {}
            }
            body {
                a.skip href="#content" { "Skip to content" }
                header.top {
                    a.mark href="/" { (mark()) "Onceward" }
                    @if let Some(visitor) = visitor { (menu(visitor, here)) }
                }
                p #stale .notice role="alert" hidden {
                    "The gateway does not answer: this page is no longer updated."
                }
                p #announcement .unseen role="status" {}
                main #content tabindex="-1" { (content) }
                footer { "Onceward " (env!("CARGO_PKG_VERSION")) " · all times are UTC" }
            }
        }
    };
    Html(page.into_string())
}

/// Renders a page for a known visitor.
pub(super) fn shown(visitor: &Visitor, here: MenuEntry, title: &str, content: Markup) -> Response {
    document(Some(visitor), here, title, content).into_response()
}

fn menu(visitor: &Visitor, here: MenuEntry) -> Markup {
    let entries = [
        (MenuEntry::Overview, "/", "Overview"),
        (MenuEntry::Operations, "/operations", "Operations"),
        (MenuEntry::Uncertain, "/uncertain", "Uncertain"),
        (MenuEntry::Sagas, "/sagas", "Sagas"),
        (MenuEntry::Delivery, "/delivery", "Delivery"),
    ];
    let is_shown =
        |entry| entry != MenuEntry::Sagas || visitor.has_sagas || here == MenuEntry::Sagas;
    let entries = entries.into_iter().filter(|(entry, ..)| is_shown(*entry));
    html! {
        nav aria-label="Pages" {
            ul {
                @for (entry, href, name) in entries {
                    li {
                        a href=(href) aria-current=[(entry == here).then_some("page")] {
                            (name)
                            @if entry == MenuEntry::Delivery { (dead_letter_count(visitor)) }
                        }
                    }
                }
            }
        }
        @if let Some(operator) = &visitor.operator {
            div.who {
                span { (operator.0) @if !visitor.may_operate { " (read-only)" } }
                @if visitor.has_session {
                    form method="post" action="/sign-out" {
                        (proof(visitor))
                        button.plain type="submit" { "Sign out" }
                    }
                }
            }
        }
    }
}

/// Renders the number of dead letters in the menu. It is there without dead letters, too, because a
/// refresh replaces it.
fn dead_letter_count(visitor: &Visitor) -> Markup {
    let count = visitor.dead_letters;
    let unit = if count == 1 { "dead letter" } else { "dead letters" };
    html! {
        span #dead-letter-count {
            @if count > 0 {
                " " span.count title=(unit) { (number(count)) } span.unseen { " " (unit) }
            }
        }
    }
}

/// Renders a part of a page that is refreshed every 3 s, as is the number in the menu. When
/// `announcement` changes, a screen reader announces it. Elements that can have the focus need an
/// id. Without it, each refresh moves the focus of keyboard users to the top of the page.
pub(super) fn live(path: &str, announcement: &str, content: Markup) -> Markup {
    html! {
        div #live hx-get=(path) hx-trigger="every 3s" hx-select="#live" hx-swap="outerHTML"
            hx-select-oob="#dead-letter-count"
            data-announce=(announcement) {
            (content)
        }
    }
}

/// Renders the lag of the read model.
pub(super) fn behind(lag_ms: Option<u64>) -> Markup {
    /// From this lag on, the lag is marked. Usually it is a fraction of a second.
    const LATE_MS: u64 = 5000;
    html! {
        @match lag_ms {
            None => { p.fresh { "from the event log, which has not been read yet" } }
            Some(lag) if lag >= LATE_MS => {
                p.fresh { span.state.warn { (span(lag)) " behind" } " the event log" }
            }
            Some(lag) => { p.fresh { "from the event log, " (span(lag)) " behind" } }
        }
    }
}

/// Formats a duration with a unit that fits its size.
pub(super) fn span(ms: u64) -> String {
    match ms {
        0..=99 => format!("{ms} ms"),
        100..=9_999 => format!("{:.1} s", ms as f64 / 1000.0),
        10_000..=119_999 => format!("{} s", ms / 1000),
        120_000..=7_199_999 => format!("{} min", ms / 60_000),
        7_200_000..=172_799_999 => format!("{} h", ms / 3_600_000),
        _ => format!("{} days", ms / 86_400_000),
    }
}

/// Renders the hidden field with the proof, for every form.
pub(super) fn proof(visitor: &Visitor) -> Markup {
    html! { input type="hidden" name=(PROOF_FIELD) value=(visitor.proof); }
}

/// The logo: two lines arrive, and one line leaves.
fn mark() -> Markup {
    PreEscaped(
        concat!(
            r#"<svg class="logo" viewBox="0 0 24 24" width="22" height="22" "#,
            r#"aria-hidden="true" focusable="false">"#,
            r#"<path d="M2 7h6M2 17h6M14 12h8" fill="none" stroke="currentColor" "#,
            r#"stroke-width="2.2" stroke-linecap="round"/>"#,
            r#"<path d="M8 7q4 0 4 5M8 17q4 0 4 -5" fill="none" stroke="currentColor" "#,
            r#"stroke-width="2.2" stroke-linecap="round"/>"#,
            r#"<circle cx="12.5" cy="12" r="2.6" fill="currentColor"/></svg>"#
        )
        .to_owned(),
    )
}

/// Renders a state as a coloured word.
pub(super) fn state(name: &str) -> Markup {
    let class = match name {
        "uncertain" => "state warn",
        "in_flight" | "saga" => "state busy",
        "completed" => "state good",
        _ => "state",
    };
    html! { span class=(class) { (state_word(name)) } }
}

/// Returns a state as a word for people.
pub(super) fn state_word(name: &str) -> &str {
    match name {
        "in_flight" => "in flight",
        other => other,
    }
}

/// Renders a time of day and its distance from now. On another day, the date is included.
pub(super) fn moment(unix_ms: u64, now_unix_ms: u64) -> Markup {
    const DAY_MS: u64 = 86_400_000;
    let full = rfc3339(unix_ms);
    let (date, rest) = full.split_once('T').unwrap_or((&full, ""));
    let time = rest.get(..8).unwrap_or(rest);
    let same_day = unix_ms / DAY_MS == now_unix_ms / DAY_MS;
    html! {
        span.moment {
            time datetime=(full) { @if !same_day { (date) " " } (time) }
            " " span.dim { (distance(unix_ms, now_unix_ms)) }
        }
    }
}

/// Renders a time that is given in RFC 3339.
pub(super) fn moment_of(text: &str, now_unix_ms: u64) -> Markup {
    let time = humantime::parse_rfc3339(text)
        .ok()
        .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    match time.and_then(|since| u64::try_from(since.as_millis()).ok()) {
        Some(unix_ms) => moment(unix_ms, now_unix_ms),
        None => html! { (text) },
    }
}

/// Formats how far a time is from now.
pub(super) fn distance(unix_ms: u64, now_unix_ms: u64) -> String {
    let seconds = unix_ms.abs_diff(now_unix_ms) / 1000;
    let (count, unit) = match seconds {
        0..=1 => return "now".to_owned(),
        2..=119 => (seconds, "s"),
        120..=7199 => (seconds / 60, "min"),
        7200..=172_799 => (seconds / 3600, "h"),
        _ => (seconds / 86_400, "days"),
    };
    if unix_ms > now_unix_ms { format!("in {count} {unit}") } else { format!("{count} {unit} ago") }
}

/// Formats a number with separated thousands.
pub(super) fn number(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_people_do() {
        let now = 1_764_000_000_000;
        for (ms, text) in [
            (0, "now"),
            (5_000, "5 s"),
            (119_000, "119 s"),
            (150_000, "2 min"),
            (7_200_000, "2 h"),
            (200_000_000, "2 days"),
        ] {
            let expected = if ms == 0 { text.to_owned() } else { format!("{text} ago") };
            assert_eq!(distance(now - ms, now), expected);
        }
        assert_eq!(distance(now + 9_000, now), "in 9 s");
        let shown = moment(now - 86_400_000, now).into_string();
        assert!(shown.contains("2025-11-23 16:00:00"), "{shown}");
        assert!(!moment(now - 1000, now).into_string().contains(">2025-"), "today's date is known");
    }

    #[test]
    fn a_span_has_a_unit_that_fits_its_size() {
        let spans = [
            (0, "0 ms"),
            (3, "3 ms"),
            (99, "99 ms"),
            (100, "0.1 s"),
            (9_949, "9.9 s"),
            (10_000, "10 s"),
            (120_000, "2 min"),
        ];
        for (ms, text) in spans {
            assert_eq!(span(ms), text);
        }
    }

    #[test]
    fn thousands_stand_apart() {
        assert_eq!(number(0), "0");
        assert_eq!(number(999), "999");
        assert_eq!(number(1_234_567), "1\u{202f}234\u{202f}567");
    }

    #[test]
    fn what_others_wrote_is_text() {
        let page =
            document(None, MenuEntry::Elsewhere, "<script>", html! { p { "\"><img onerror=x>" } })
                .0;
        assert!(!page.contains("<img") && page.contains("&lt;script&gt; · Onceward"), "{page}");
    }
}
