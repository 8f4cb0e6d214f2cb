//! The layout of a graph of steps, as a pure function. Each step is in a row below all steps that
//! it waits for. An edge that spans several rows passes through each row in a lane of its own, so
//! it never crosses a step (Sugiyama, Tagawa and Toda 1981, without the fine placement).

/// The size of a step. Two steps side by side fit on a narrow screen.
pub(super) const STEP_WIDTH: u32 = 160;
/// Space between the steps of a row, and beside an edge that passes between them.
const GAP: u32 = 16;
/// Space between two rows, for the edges.
const ROW_GAP: u32 = 40;
/// Space around the drawing, for the outline of a focused step.
const MARGIN: u32 = 4;
/// Space above the first row, for the words on the upper border of a step.
const TOP: u32 = 14;

/// Sweeps that order the steps of a row by their neighbours. More do not change small graphs.
const SWEEPS: usize = 6;

/// A point of the drawing, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Point {
    pub x: u32,
    pub y: u32,
}

/// An edge from a step to one that waits for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PlacedEdge {
    pub from: usize,
    pub to: usize,
    /// From the lower border of a step to the upper border of the other one. There are two points
    /// more for each row in between.
    pub points: Vec<Point>,
}

/// The places of steps and edges.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct GraphLayout {
    pub width: u32,
    pub height: u32,
    /// The upper left corner of each step.
    pub steps: Vec<Point>,
    /// The steps from top to bottom, and from left to right.
    pub order: Vec<usize>,
    /// The edges, without those that a chain of others implies.
    pub edges: Vec<PlacedEdge>,
}

/// An item of a row: a step, or the lane of an edge that passes through the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Item {
    Step(usize),
    Lane(usize),
}

/// An edge, with an item in each row from that of its first step to that of its second one.
struct Edge {
    from: usize,
    to: usize,
    first_row: usize,
}

/// Places steps. `after` has the steps that each step waits for, and `heights` the height of each
/// step. A step that waits for itself, through others or not, and for a step that does not exist
/// does so in vain: the function is total.
pub(super) fn layout(after: &[Vec<usize>], heights: &[u32]) -> GraphLayout {
    let rows_of = rows_of(after);
    let edges = edges(after, &rows_of);
    let mut rows: Vec<Vec<Item>> = vec![Vec::new(); rows_of.iter().max().map_or(0, |row| row + 1)];
    for (step, row) in rows_of.iter().enumerate() {
        rows[*row].push(Item::Step(step));
    }
    for (at, edge) in edges.iter().enumerate() {
        for row in &mut rows[edge.first_row + 1..rows_of[edge.to]] {
            row.push(Item::Lane(at));
        }
    }
    let rows = ordered(rows, &edges);
    placed(&rows, &edges, heights)
}

/// Returns the row of each step: the length of the longest chain of steps before it.
fn rows_of(after: &[Vec<usize>]) -> Vec<usize> {
    let mut rows = vec![0; after.len()];
    for _ in 0..after.len() {
        for (step, before) in after.iter().enumerate() {
            let lowest = before.iter().filter_map(|before| rows.get(*before)).max();
            let row = lowest.map_or(0, |lowest| lowest + 1).min(after.len() - 1);
            rows[step] = row;
        }
    }
    rows
}

/// Returns the edges that no chain of other edges implies.
fn edges(after: &[Vec<usize>], rows_of: &[usize]) -> Vec<Edge> {
    let is_below = |from: usize, to: usize| rows_of.get(from).is_some_and(|row| *row < rows_of[to]);
    let mut by_row: Vec<usize> = (0..after.len()).collect();
    by_row.sort_by_key(|step| rows_of[*step]);
    // For each step, all steps above it that it waits for, directly or through others.
    let mut above = vec![vec![false; after.len()]; after.len()];
    let mut edges = Vec::new();
    for to in by_row {
        let mut before: Vec<usize> =
            after[to].iter().copied().filter(|from| is_below(*from, to)).collect();
        before.sort_unstable();
        before.dedup();
        for from in &before {
            if !before.iter().any(|other| above[*other][*from]) {
                edges.push(Edge { from: *from, to, first_row: rows_of[*from] });
            }
        }
        for from in before {
            let more = above[from].clone();
            above[to].iter_mut().zip(more).for_each(|(mark, more)| *mark |= more);
            above[to][from] = true;
        }
    }
    edges
}

/// Returns the item of an edge in a row.
fn item_in(edge: &Edge, at: usize, row: usize, last_row: usize) -> Item {
    match row {
        row if row == edge.first_row => Item::Step(edge.from),
        row if row == last_row => Item::Step(edge.to),
        _ => Item::Lane(at),
    }
}

/// Returns the pairs of items that edges connect between a row and the next one.
fn links(rows: &[Vec<Item>], edges: &[Edge], row: usize) -> Vec<(Item, Item)> {
    let row_of = |step| rows.iter().position(|row| row.contains(&Item::Step(step)));
    let links = edges.iter().enumerate().filter_map(|(at, edge)| {
        let last_row = row_of(edge.to)?;
        let crosses = edge.first_row <= row && row < last_row;
        let item = |row| item_in(edge, at, row, last_row);
        crosses.then(|| (item(row), item(row + 1)))
    });
    links.collect()
}

/// Orders the items of each row by the mean place of their neighbours, and returns the order with
/// the fewest crossings.
fn ordered(mut rows: Vec<Vec<Item>>, edges: &[Edge]) -> Vec<Vec<Item>> {
    let links: Vec<Vec<(Item, Item)>> =
        (1..rows.len()).map(|row| links(&rows, edges, row - 1)).collect();
    let mut best = (crossings(&rows, &links), rows.clone());
    for sweep in 0..SWEEPS {
        if best.0 == 0 {
            break;
        }
        if sweep.is_multiple_of(2) {
            for row in 1..rows.len() {
                let links = links[row - 1].iter().map(|(upper, lower)| (*lower, *upper));
                rows[row] = by_neighbours(&rows[row], &rows[row - 1], links.collect());
            }
        } else {
            for row in (1..rows.len()).rev() {
                rows[row - 1] = by_neighbours(&rows[row - 1], &rows[row], links[row - 1].clone());
            }
        }
        let crossed = crossings(&rows, &links);
        if crossed < best.0 {
            best = (crossed, rows.clone());
        }
    }
    best.1
}

fn place(row: &[Item], item: Item) -> usize {
    row.iter().position(|other| *other == item).unwrap_or_default()
}

/// Returns the row, sorted by the mean place of each item's neighbours in another row. An item
/// without neighbours keeps its place.
fn by_neighbours(row: &[Item], other: &[Item], links: Vec<(Item, Item)>) -> Vec<Item> {
    let mean = |item: Item| {
        let neighbours = links.iter().filter(|(own, _)| *own == item);
        let places: Vec<usize> = neighbours.map(|(_, there)| place(other, *there)).collect();
        match places.len() {
            0 => place(row, item) as f64,
            count => places.iter().sum::<usize>() as f64 / count as f64,
        }
    };
    let mut sorted: Vec<(f64, Item)> = row.iter().map(|item| (mean(*item), *item)).collect();
    sorted.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    sorted.into_iter().map(|(_, item)| item).collect()
}

/// Returns the number of pairs of edges that cross.
fn crossings(rows: &[Vec<Item>], links: &[Vec<(Item, Item)>]) -> usize {
    let of_row = |(row, links): (usize, &Vec<(Item, Item)>)| {
        let places = links
            .iter()
            .map(|(upper, lower)| (place(&rows[row], *upper), place(&rows[row + 1], *lower)));
        let places: Vec<(usize, usize)> = places.collect();
        let crosses = |one: &(usize, usize), other: &(usize, usize)| {
            (one.0 < other.0 && one.1 > other.1) || (one.0 > other.0 && one.1 < other.1)
        };
        let later = |at: usize| places[at + 1..].iter();
        let counts = places.iter().enumerate();
        counts.map(|(at, one)| later(at).filter(|other| crosses(one, other)).count()).sum::<usize>()
    };
    links.iter().enumerate().map(of_row).sum()
}

/// Returns the width of a row.
fn width(row: &[Item]) -> u32 {
    let item = |item: &Item| match item {
        Item::Step(_) => STEP_WIDTH + GAP,
        Item::Lane(_) => GAP,
    };
    row.iter().map(item).sum::<u32>().saturating_sub(GAP)
}

/// Computes the places from the order of the items. Each row is in the middle of the drawing.
fn placed(rows: &[Vec<Item>], edges: &[Edge], heights: &[u32]) -> GraphLayout {
    let widest = rows.iter().map(|row| width(row)).max().unwrap_or_default();
    let height_of = |step: usize| heights.get(step).copied().unwrap_or_default();
    let mut layout = GraphLayout {
        width: widest + 2 * MARGIN,
        height: TOP,
        steps: vec![Point { x: 0, y: 0 }; heights.len()],
        order: Vec::new(),
        edges: Vec::new(),
    };
    let mut edge_points: Vec<Vec<Point>> = vec![Vec::new(); edges.len()];
    for (at, row) in rows.iter().enumerate() {
        let top = layout.height + if at > 0 { ROW_GAP } else { 0 };
        let steps = row.iter().filter_map(|item| match item {
            Item::Step(step) => Some(height_of(*step)),
            Item::Lane(_) => None,
        });
        let bottom = top + steps.max().unwrap_or_default();
        let mut x = MARGIN + (widest - width(row)) / 2;
        for item in row {
            match item {
                Item::Step(step) => {
                    if let Some(corner) = layout.steps.get_mut(*step) {
                        *corner = Point { x, y: top };
                    }
                    layout.order.push(*step);
                    x += STEP_WIDTH + GAP;
                }
                Item::Lane(edge) => {
                    edge_points[*edge].extend([top, bottom].map(|y| Point { x, y }));
                    x += GAP;
                }
            }
        }
        layout.height = bottom;
    }
    layout.height += MARGIN;
    let corner = |step: usize| layout.steps.get(step).copied().unwrap_or(Point { x: 0, y: 0 });
    layout.edges = edges
        .iter()
        .zip(edge_points)
        .map(|(Edge { from, to, .. }, lanes)| {
            let (upper, lower) = (corner(*from), corner(*to));
            let middle = |corner: Point| corner.x + STEP_WIDTH / 2;
            let first = Point { x: middle(upper), y: upper.y + height_of(*from) };
            let last = Point { x: middle(lower), y: lower.y };
            let points = std::iter::once(first).chain(lanes).chain([last]).collect();
            PlacedEdge { from: *from, to: *to, points }
        })
        .collect();
    layout
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEIGHT: u32 = 60;

    fn of(after: &[&[usize]]) -> GraphLayout {
        let after: Vec<Vec<usize>> = after.iter().map(|before| before.to_vec()).collect();
        layout(&after, &vec![HEIGHT; after.len()])
    }

    /// Returns the row of each step, counted from 0.
    fn rows(layout: &GraphLayout) -> Vec<u32> {
        layout.steps.iter().map(|corner| (corner.y - TOP) / (HEIGHT + ROW_GAP)).collect()
    }

    fn pairs(layout: &GraphLayout) -> Vec<(usize, usize)> {
        layout.edges.iter().map(|edge| (edge.from, edge.to)).collect()
    }

    /// Asserts that no step is outside of the drawing or over another one, and that no edge leads
    /// through a step or upwards.
    #[track_caller]
    fn is_sound(layout: &GraphLayout) {
        let boxes: Vec<_> = layout.steps.iter().map(|at| (at.x, at.y, at.x + STEP_WIDTH)).collect();
        for (at, (left, top, right)) in boxes.iter().enumerate() {
            assert!(*right <= layout.width && top + HEIGHT <= layout.height, "{layout:?}");
            let is_beside = |(l, t, r): &(u32, u32, u32)| t != top || r < left || right < l;
            assert!(boxes[at + 1..].iter().all(is_beside), "{layout:?}");
        }
        for edge in &layout.edges {
            for pair in edge.points.windows(2) {
                assert!(pair[0].y <= pair[1].y, "{edge:?}");
                let is_in = |(left, top, right): &&(u32, u32, u32)| {
                    (left..=right).contains(&&pair[0].x) && pair[0].y <= *top && *top < pair[1].y
                };
                let crossed = pair[0].x == pair[1].x && boxes.iter().find(is_in).is_some();
                assert!(!crossed, "{edge:?} {boxes:?}");
            }
        }
        let mut order = layout.order.clone();
        order.sort_unstable();
        assert_eq!(order, (0..layout.steps.len()).collect::<Vec<_>>());
    }

    #[test]
    fn each_step_is_in_a_row_below_all_that_it_waits_for() {
        /// The name, the steps before each step, and the expected rows.
        type Case<'c> = (&'c str, &'c [&'c [usize]], &'c [u32]);
        let table: [Case; 8] = [
            ("nothing", &[], &[]),
            ("one step", &[&[]], &[0]),
            ("a chain", &[&[], &[0], &[1]], &[0, 1, 2]),
            ("side by side", &[&[], &[], &[]], &[0, 0, 0]),
            ("a diamond", &[&[], &[0], &[0], &[1, 2]], &[0, 1, 1, 2]),
            ("a later step first", &[&[2], &[], &[1]], &[2, 0, 1]),
            ("branches of two lengths", &[&[], &[0], &[1], &[0], &[2, 3]], &[0, 1, 2, 1, 3]),
            ("two chains", &[&[], &[0], &[], &[2]], &[0, 1, 0, 1]),
        ];
        for (name, after, expected) in table {
            let layout = of(after);
            assert_eq!(rows(&layout), expected, "{name}");
            is_sound(&layout);
        }
    }

    #[test]
    fn an_edge_that_a_chain_implies_is_left_out_and_any_other_is_drawn_once() {
        let layout = of(&[&[], &[0], &[0, 1], &[0, 2, 2]]);
        assert_eq!(pairs(&layout), [(0, 1), (1, 2), (2, 3)]);
        let diamond = of(&[&[], &[0], &[0], &[1, 2]]);
        assert_eq!(pairs(&diamond), [(0, 1), (0, 2), (1, 3), (2, 3)]);
    }

    #[test]
    fn an_edge_over_a_row_has_a_lane_beside_its_steps() {
        let layout = of(&[&[], &[0], &[1], &[], &[2, 3]]);
        is_sound(&layout);
        let long = layout.edges.iter().find(|edge| (edge.from, edge.to) == (3, 4)).unwrap();
        assert_eq!(long.points.len(), 6, "two rows are in between: {long:?}");
    }

    #[test]
    fn branches_are_ordered_so_that_their_edges_do_not_cross() {
        // The children are listed in the opposite order of their parents.
        let layout = of(&[&[], &[], &[1], &[0]]);
        let x = |step: usize| layout.steps[step].x;
        assert!((x(0) < x(1)) == (x(3) < x(2)), "{layout:?}");
        is_sound(&layout);
    }

    #[test]
    fn two_steps_side_by_side_fit_on_a_narrow_screen() {
        assert!(of(&[&[], &[0], &[0], &[1, 2]]).width <= 346);
    }

    #[test]
    fn the_largest_plans_are_placed() {
        const STEPS: usize = crate::saga::plan::STEPS_MAX;
        let all_before: Vec<Vec<usize>> = (0..STEPS).map(|step| (0..step).collect()).collect();
        let halves: Vec<Vec<usize>> = (0..STEPS)
            .map(|step| if step < STEPS / 2 { Vec::new() } else { (0..STEPS / 2).collect() })
            .collect();
        let tree: Vec<Vec<usize>> = (0..STEPS)
            .map(|step| if step == 0 { Vec::new() } else { vec![(step - 1) / 2] })
            .collect();
        for (after, count) in [
            (all_before, STEPS - 1),
            (vec![Vec::new(); STEPS], 0),
            (halves, STEPS * STEPS / 4),
            (tree, STEPS - 1),
        ] {
            let layout = layout(&after, &[HEIGHT; STEPS]);
            assert_eq!(layout.edges.len(), count);
            is_sound(&layout);
        }
    }

    #[test]
    fn a_malformed_plan_is_placed_too() {
        for after in [[[0].as_slice(), &[]], [&[1], &[0]], [&[7], &[usize::MAX]]] {
            let layout = of(&after);
            assert_eq!((layout.steps.len(), layout.order.len()), (2, 2), "{after:?}");
        }
    }
}
