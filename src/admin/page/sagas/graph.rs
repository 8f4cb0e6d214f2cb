//! The graph of a saga's steps as SVG. Each step is a link to its operation, and its name for
//! screen readers has all that the drawing shows. Colours and shapes come with words.

use maud::{Markup, html};

use super::graph_layout::{GraphLayout, PlacedEdge, Point, STEP_WIDTH, layout};
use super::words::{action_status, attempts, class, compensation_words, ms_between};
use crate::admin::page::layout::span;
use crate::admin::view::{SagaCompensationView, SagaStepView, SagaView};

/// Height of an action: three lines.
const ACTION_HEIGHT: u32 = 68;
/// Height of a compensation, below its action: one line, and another one if it has begun.
const UNDO_HEIGHT: u32 = 28;
const BEGUN_UNDO_HEIGHT: u32 = 44;
/// Space between the border of a step and its text.
const PADDING: u32 = 10;
/// Where the text begins, after the shape of the state.
const TEXT: u32 = 31;
/// Most characters of a name that fit. The whole name is in the table, and read by screen readers.
const NAME_MAX: usize = 15;

/// Returns the id of a step's row in the table below the graph.
pub(super) fn row_id(step: usize) -> String {
    format!("step-{step}")
}

/// Returns the path of an operation's page.
pub(super) fn operation_path(operation: &str) -> String {
    format!("/operations/{operation}")
}

/// Returns the id of a step in the graph.
pub(super) fn graph_id(step: usize) -> String {
    format!("graph-{step}")
}

/// Renders the graph.
pub(super) fn graph(saga: &SagaView) -> Markup {
    let steps = &saga.steps;
    let position = |name: &String| steps.iter().position(|step| step.name == *name);
    let after: Vec<Vec<usize>> =
        steps.iter().map(|step| step.after.iter().filter_map(position).collect()).collect();
    let height =
        |step: &SagaStepView| ACTION_HEIGHT + step.compensation.as_ref().map_or(0, undo_height);
    let heights: Vec<u32> = steps.iter().map(height).collect();
    let layout = layout(&after, &heights);
    html! {
        div.scroll {
            svg.steps role="group" aria-label="Graph of the steps, from the first to the last"
                width=(layout.width) height=(layout.height)
                viewBox=(format!("0 0 {} {}", layout.width, layout.height)) {
                g aria-hidden="true" {
                    @for edge in &layout.edges { (edge_path(steps, edge)) }
                }
                @for step in &layout.order { (step_group(saga, *step, &layout)) }
            }
        }
    }
}

/// Renders an edge. It is dashed as long as the step at its end may not begin because of it.
fn edge_path(steps: &[SagaStepView], edge: &PlacedEdge) -> Markup {
    let is_passed =
        steps.get(edge.from).is_some_and(|step| matches!(action_status(step), "done" | "skipped"));
    let [first, .., last] = edge.points.as_slice() else { return html! {} };
    let mut path = format!("M{} {}", first.x, first.y);
    for pair in edge.points.windows(2) {
        let (from, to) = (pair[0], pair[1]);
        let middle = u32::midpoint(from.y, to.y);
        path.push_str(&format!("C{} {middle} {} {middle} {} {}", from.x, to.x, to.x, to.y));
    }
    let arrow = format!("M{} {}l-4.5 -8h9z", last.x, last.y);
    html! {
        path.edge.passed[is_passed] d=(path) {}
        path.arrow.passed[is_passed] d=(arrow) {}
    }
}

fn undo_height(compensation: &SagaCompensationView) -> u32 {
    if compensation.began_at.is_some() { BEGUN_UNDO_HEIGHT } else { UNDO_HEIGHT }
}

fn step_group(saga: &SagaView, at: usize, layout: &GraphLayout) -> Markup {
    let (Some(step), Some(corner)) = (saga.steps.get(at), layout.steps.get(at)) else {
        return html! {};
    };
    let stuck = |direction: &str| {
        let mut stuck = saga.stuck.iter();
        stuck.any(|stuck| stuck.step == step.name && stuck.direction == direction)
    };
    html! {
        (action(step, at, *corner, stuck("action")))
        @if let Some(compensation) = &step.compensation {
            @let below = Point { x: corner.x, y: corner.y + ACTION_HEIGHT };
            (undo(saga, (step, compensation), at, below, stuck("compensation")))
        }
        @if step.pivot { (badge("pivot", corner.x + STEP_WIDTH - 58, corner.y)) }
        @if stuck("action") || stuck("compensation") { (badge("stuck", corner.x + 8, corner.y)) }
    }
}

fn action(step: &SagaStepView, at: usize, corner: Point, is_stuck: bool) -> Markup {
    let status = action_status(step);
    let href = match &step.operation {
        Some(operation) => operation_path(operation),
        None => format!("#{}", row_id(at)),
    };
    let time = step.ended_at.as_ref().or(step.began_at.as_ref());
    let y = corner.y;
    html! {
        a id=(graph_id(at)) href=(href) aria-label=(action_label(step, is_stuck)) {
            rect.face.(class(status)).stuck[is_stuck] x=(corner.x) y=(y) width=(STEP_WIDTH)
                height=(ACTION_HEIGHT) rx="7" {}
            (shape(status, corner))
            // Wide letters are cut off at the end of this box.
            svg x=(corner.x + TEXT) y=(y + 8) width=(STEP_WIDTH - TEXT - 4) height="22" {
                text.name y="16" { (shortened(&step.name)) }
            }
            text.(class(status)) x=(corner.x + TEXT) y=(y + 41) {
                (status) @if let Some(time) = time { tspan.dim { " " (time_of_day(time)) } }
            }
            text.dim x=(corner.x + TEXT) y=(y + 57) {
                (effort(step.attempts, step.began_at.as_ref(), step.ended_at.as_ref()))
            }
        }
    }
}

fn undo(
    saga: &SagaView,
    (step, compensation): (&SagaStepView, &SagaCompensationView),
    at: usize,
    corner: Point,
    is_stuck: bool,
) -> Markup {
    let SagaCompensationView { status, operation, began_at, ended_at, .. } = compensation;
    let time = ended_at.as_ref().or(began_at.as_ref());
    let words = compensation_words(saga, step, compensation);
    let (y, height) = (corner.y, undo_height(compensation));
    let drawing = html! {
        rect.face.undo.(class(status)).stuck[is_stuck] x=(corner.x) y=(y) width=(STEP_WIDTH)
            height=(height) rx="7" {}
        path.back.(class(status)) d=(format!("M{} {}h10a4 4 0 0 1 0 8h-4", corner.x + 12, y + 14)) {}
        path.back.(class(status)) d=(format!("M{} {}l-4 4l4 4", corner.x + 16, y + 10)) {}
        text.(class(status)) x=(corner.x + TEXT) y=(y + 18) { (words) }
        @if let Some(time) = time {
            text.dim x=(corner.x + TEXT) y=(y + 34) {
                (time_of_day(time))
                @if compensation.attempts > 0 { ", " (attempts(compensation.attempts)) }
            }
        }
    };
    let label = undo_label(step, compensation, words, is_stuck);
    html! {
        @match operation {
            Some(operation) => {
                a id=(format!("graph-undo-{at}")) href=(operation_path(operation))
                    aria-label=(label) { (drawing) }
            }
            None => { g role="img" aria-label=(label) { (drawing) } }
        }
    }
}

/// Renders a word on the upper border of a step.
fn badge(word: &str, x: u32, y: u32) -> Markup {
    html! {
        g.badge.(word) aria-hidden="true" {
            rect x=(x) y=(y.saturating_sub(9)) width="50" height="18" rx="9" {}
            text x=(x + 25) y=(y + 4) text-anchor="middle" { (word) }
        }
    }
}

/// Renders the shape of a state. Each state that needs attention has a shape of its own.
fn shape(status: &str, corner: Point) -> Markup {
    let (x, y) = (corner.x + PADDING, corner.y + 11);
    let class = class(status);
    let circle = |extra: &'static str| {
        html! { circle.shape.(class).(extra) cx=(x + 8) cy=(y + 8) r="7" {} }
    };
    let line = |d: String| html! { path.line.(class) d=(d) {} };
    match status {
        "done" => html! {
            (circle("full")) path.line.inverse d=(format!("M{} {}l3 3l5 -6", x + 4, y + 8)) {}
        },
        "running" => html! { (circle("open")) (line(format!("M{} {}v5h4", x + 8, y + 4))) },
        "retrying" => html! { (circle("dashed")) (line(format!("M{} {}v5h4", x + 8, y + 4))) },
        "uncertain" => html! {
            path.shape.full.(class) d=(format!("M{} {}l8 14h-16z", x + 8, y + 1)) {}
            path.line.inverse d=(format!("M{} {}v4.5m0 2v1", x + 8, y + 6)) {}
        },
        "failed" | "refused" => html! {
            rect.shape.full.(class) x=(x + 1) y=(y + 1) width="14" height="14" rx="2" {}
            path.line.inverse d=(format!("M{} {}l6 6m0 -6l-6 6", x + 5, y + 5)) {}
        },
        "skipped" => html! { (circle("open")) (line(format!("M{} {}h6", x + 5, y + 8))) },
        "barred" => html! { (circle("open")) (line(format!("M{} {}l9 9", x + 4, y + 4))) },
        _ => circle("open"),
    }
}

/// Returns the name of an action for screen readers.
fn action_label(step: &SagaStepView, is_stuck: bool) -> String {
    let mut words = vec![step.name.clone()];
    words.extend(step.pivot.then(|| "pivot".to_owned()));
    words.push(action_status(step).to_owned());
    words.extend(is_stuck.then(|| "stuck".to_owned()));
    words.extend((step.attempts > 0).then(|| attempts(step.attempts)));
    match step.after.as_slice() {
        [] => words.push("begins at once".to_owned()),
        after => words.push(format!("after {}", after.join(" and "))),
    }
    words.join(", ")
}

/// Returns the name of a compensation for screen readers.
fn undo_label(
    step: &SagaStepView,
    compensation: &SagaCompensationView,
    words_of_state: &str,
    is_stuck: bool,
) -> String {
    let mut words = vec![format!("compensation of {}", step.name), words_of_state.to_owned()];
    words.extend(is_stuck.then(|| "stuck".to_owned()));
    words.extend((compensation.attempts > 0).then(|| attempts(compensation.attempts)));
    words.join(", ")
}

/// Returns the number of attempts and the duration, as far as an operation has them.
fn effort(count: u32, began: Option<&String>, ended: Option<&String>) -> String {
    if count == 0 {
        return String::new();
    }
    let took = began.zip(ended).and_then(|(began, ended)| ms_between(began, ended));
    match took {
        Some(ms) => format!("{}, {}", attempts(count), span(ms)),
        None => attempts(count),
    }
}

/// Returns the time of day of a time in RFC 3339.
fn time_of_day(time: &str) -> &str {
    time.get(11..19).unwrap_or_default()
}

fn shortened(name: &str) -> String {
    match name.char_indices().nth(NAME_MAX) {
        None => name.to_owned(),
        Some(_) => name.chars().take(NAME_MAX - 1).chain(['…']).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::view::StuckStepView;

    fn step(name: &str, status: &str, after: &[&str]) -> SagaStepView {
        SagaStepView {
            name: name.into(),
            status: status.into(),
            after: after.iter().map(|name| (*name).to_owned()).collect(),
            ..SagaStepView::default()
        }
    }

    fn begun(step: SagaStepView, attempts: u32, operation: &str) -> SagaStepView {
        SagaStepView {
            attempts,
            operation: Some(operation.into()),
            began_at: Some("2026-11-25T03:07:00.000Z".into()),
            ended_at: Some("2026-11-25T03:07:01.500Z".into()),
            ..step
        }
    }

    /// A saga that goes back, and can't undo its first step.
    fn stuck() -> SagaView {
        let undo = SagaCompensationView {
            status: "refused".into(),
            attempts: 2,
            operation: Some("op_2".into()),
            ..SagaCompensationView::default()
        };
        let reserve = begun(step("reserve", "refused", &[]), 1, "op_1");
        let reserve = SagaStepView { compensation: Some(undo), ..reserve };
        let charge = SagaStepView { pivot: true, ..step("charge", "failed", &["reserve"]) };
        SagaView {
            steps: vec![reserve, begun(charge, 3, "op_3"), step("ship", "pending", &["charge"])],
            stuck: vec![StuckStepView {
                step: "reserve".into(),
                direction: "compensation".into(),
                ..StuckStepView::default()
            }],
            ..SagaView::default()
        }
    }

    #[test]
    fn each_operation_is_a_link_with_a_name_that_has_all_that_the_drawing_shows() {
        let drawn = graph(&stuck()).into_string();
        for (href, label) in [
            ("/operations/op_1", "reserve, done, 1 attempt, begins at once"),
            ("/operations/op_2", "compensation of reserve, undo refused, stuck, 2 attempts"),
            ("/operations/op_3", "charge, pivot, failed, 3 attempts, after reserve"),
            ("#step-2", "ship, pending, after charge"),
        ] {
            let link = format!("href=\"{href}\" aria-label=\"{label}\"");
            assert!(drawn.contains(&link), "{link}: {drawn}");
        }
        assert!(drawn.contains("1 attempt, 1.5 s") && drawn.contains(" 03:07:01"), "{drawn}");
        assert_eq!(drawn.matches("class=\"badge stuck\"").count(), 1, "{drawn}");
        assert_eq!(drawn.matches("class=\"badge pivot\"").count(), 1, "{drawn}");
    }

    #[test]
    fn what_the_pivot_has_made_final_is_not_shown_as_if_it_could_be_undone() {
        let undo =
            SagaCompensationView { status: "pending".into(), ..SagaCompensationView::default() };
        let saga = |pivot: &str| SagaView {
            steps: vec![
                SagaStepView { compensation: Some(undo.clone()), ..step("a", "done", &[]) },
                SagaStepView { pivot: true, ..step("b", pivot, &["a"]) },
            ],
            ..SagaView::default()
        };
        for (pivot, words) in
            [("running", "can be undone"), ("failed", "can be undone"), ("done", "stays done")]
        {
            let drawn = graph(&saga(pivot)).into_string();
            assert!(drawn.contains(&format!("compensation of a, {words}")), "{pivot}: {drawn}");
        }
    }

    #[test]
    fn a_saga_that_goes_back_shows_what_is_still_to_be_undone() {
        let with_undo = |name: &str, status: &str| SagaStepView {
            compensation: Some(SagaCompensationView {
                status: "pending".into(),
                ..SagaCompensationView::default()
            }),
            ..step(name, status, &[])
        };
        let saga = SagaView {
            back: Some("step c".into()),
            steps: vec![
                with_undo("a", "done"),
                with_undo("b", "pending"),
                with_undo("c", "failed"),
            ],
            ..SagaView::default()
        };
        let drawn = graph(&saga).into_string();
        for label in ["of a, waits to be undone", "of b, nothing to undo", "of c, nothing to undo"]
        {
            assert!(drawn.contains(&format!("\"compensation {label}\"")), "{label}: {drawn}");
        }
    }

    #[test]
    fn an_edge_is_solid_only_behind_a_step_that_is_done() {
        let drawn = graph(&stuck()).into_string();
        assert_eq!(drawn.matches("class=\"edge passed\"").count(), 1, "{drawn}");
        assert_eq!(drawn.matches("class=\"edge\"").count(), 1, "{drawn}");
    }

    #[test]
    fn a_name_is_text_and_a_long_one_is_shortened() {
        let name = "<script>\"&'x y z a b c";
        let saga = SagaView {
            steps: vec![step(name, "<i>", &[]), step("b", "done", &[name])],
            ..SagaView::default()
        };
        let drawn = graph(&saga).into_string();
        assert!(!drawn.contains("<script") && !drawn.contains("<i>"), "{drawn}");
        assert!(!drawn.contains("x=\"NaN"), "{drawn}");
        assert!(drawn.contains("b, done, after &lt;script&gt;&quot;&amp;"), "{drawn}");
        assert_eq!(shortened("fifteen_letters"), "fifteen_letters");
        assert_eq!(shortened("äfifteen_letters"), "äfifteen_lette…");
    }
}
