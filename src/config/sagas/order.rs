//! The order of a saga's steps: `name`, `after` and `pivot`.

use std::collections::BTreeSet;

use crate::config::read::{Value, closest};

const STEP_EXPECTED: &str = "a step, a table under [[sagas.steps]]";
const NAME_EXPECTED: &str = "1 to 64 letters, digits and _, without a digit at the beginning";
const AFTER_EXPECTED: &str = "a list of the names of steps such as [\"reserve\"]";

/// Longest name, in bytes. It is stored with every saga, and labels metrics.
const NAME_BYTES_MAX: usize = 64;

/// The order of the steps. It has no circle.
pub(super) struct StepOrder {
    /// For each step, the positions of the steps that it waits for.
    pub after: Vec<Vec<usize>>,
    /// The position of the pivot.
    pub pivot: Option<usize>,
    /// For each step, the positions of all steps that are before it.
    before: Vec<BTreeSet<usize>>,
}

/// Reads the names of all steps. A faulty name is `None`.
pub(super) fn read_names(items: &[Value<'_>]) -> Vec<Option<String>> {
    let mut names: Vec<Option<String>> = Vec::new();
    for item in items {
        let name = read_name(item);
        if let (Some(name), Some(value)) = (&name, step_value(item, "name"))
            && names.iter().flatten().any(|other| other == name)
        {
            value.fault(format!(
                "a second step is named {name:?}: templates refer to steps by name"
            ));
        }
        names.push(name);
    }
    names
}

fn read_name(item: &Value<'_>) -> Option<String> {
    let table = item.table(STEP_EXPECTED)?;
    let Some(value) = table.get("name") else {
        let text = "a step needs a name, which templates refer to";
        table.report.note_absence(&table.span_of("name"), text);
        return None;
    };
    value.parsed(NAME_EXPECTED, |text| is_name(text).then(|| text.to_owned()))
}

/// Returns whether templates can name a step like this: `steps.NAME`.
fn is_name(text: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len())
        && !text.starts_with(|first: char| first.is_ascii_digit())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn step_value<'a>(item: &Value<'a>, name: &'static str) -> Option<Value<'a>> {
    if item.is_table() { item.table(STEP_EXPECTED)?.get(name) } else { None }
}

impl StepOrder {
    /// Reads the order. Returns `None` if it is faulty.
    pub(super) fn read(items: &[Value<'_>], names: &[Option<String>]) -> Option<StepOrder> {
        let after: Vec<Option<Vec<usize>>> =
            (0..items.len()).map(|at| read_after(&items[at], at, names)).collect();
        let pivot = read_pivot(items);
        let after: Vec<Vec<usize>> = after.into_iter().collect::<Option<_>>()?;
        let pivot = pivot?;
        let before: Vec<BTreeSet<usize>> = (0..after.len()).map(|at| reached(&after, at)).collect();
        if let Some(at) = (0..before.len()).find(|at| before[*at].contains(at)) {
            let name = |at: usize| names[at].clone().unwrap_or_default();
            let circle: Vec<String> =
                circle(&after, at).into_iter().map(|at| format!("{:?}", name(at))).collect();
            let value = step_value(&items[at], "after");
            let text = format!("a circle, in which no step can begin: {}", circle.join(" after "));
            value.as_ref().unwrap_or(&items[at]).fault(text);
            return None;
        }
        let order = StepOrder { after, pivot, before };
        order.check_pivot(items, names).then_some(order)
    }

    /// Returns whether one step is before another, directly or through others.
    pub(super) fn is_before(&self, one: usize, other: usize) -> bool {
        self.before[other].contains(&one)
    }

    /// Returns whether a step must say how it is undone.
    pub(super) fn must_be_undone(&self, at: usize) -> bool {
        self.pivot.is_none_or(|pivot| self.is_before(at, pivot))
    }

    /// Checks that each step is before the pivot or after it.
    fn check_pivot(&self, items: &[Value<'_>], names: &[Option<String>]) -> bool {
        let Some(pivot) = self.pivot else { return true };
        let beside = (0..items.len()).filter(|at| {
            *at != pivot && !self.is_before(*at, pivot) && !self.is_before(pivot, *at)
        });
        let beside: Vec<usize> = beside.collect();
        for at in &beside {
            let pivot = names[pivot].clone().unwrap_or_default();
            let name = names[*at].clone().unwrap_or_default();
            let text = format!("neither before nor after the pivot {pivot:?}");
            let help = format!(
                "add {name:?} to after of {pivot:?}, or {pivot:?} to after of {name:?}, directly \
                 or through other steps"
            );
            items[*at].report.note_with_help(&items[*at].span, text, Some(help));
        }
        beside.is_empty()
    }
}

/// Reads the positions of the steps that a step waits for. The default is the step before.
fn read_after(item: &Value<'_>, at: usize, names: &[Option<String>]) -> Option<Vec<usize>> {
    let Some(value) = step_value(item, "after") else {
        return Some(at.checked_sub(1).into_iter().collect());
    };
    let mut found: Vec<Option<usize>> = Vec::new();
    for item in value.list(AFTER_EXPECTED)? {
        let position = item.text("a step's name").and_then(|name| position(&item, name, names));
        if position.is_some() && found.contains(&position) {
            item.fault("the same step a second time");
            return None;
        }
        found.push(position);
    }
    found.into_iter().collect()
}

fn position(item: &Value<'_>, name: &str, names: &[Option<String>]) -> Option<usize> {
    let found = names.iter().position(|other| other.as_deref() == Some(name));
    if found.is_none() {
        let near = closest(name, names.iter().flatten().map(String::as_str));
        let help = near.map(|near| format!("did you mean \"{near}\"?"));
        let text = format!("there is no step named {name:?}");
        item.report.note_with_help(&item.span, text, help);
    }
    found
}

/// Reads the position of the pivot. Returns `None` if there is a fault.
fn read_pivot(items: &[Value<'_>]) -> Option<Option<usize>> {
    let (mut pivot, mut sound) = (None, true);
    for (at, item) in items.iter().enumerate() {
        let Some(value) = step_value(item, "pivot") else { continue };
        match value.boolean() {
            Some(true) if pivot.is_some() => {
                value.fault("a second pivot: a saga has one step from which it can't go back");
                sound = false;
            }
            Some(true) => pivot = Some(at),
            Some(false) => {}
            None => sound = false,
        }
    }
    sound.then_some(pivot)
}

/// Returns all steps before a step. A step in a circle is before itself.
fn reached(after: &[Vec<usize>], from: usize) -> BTreeSet<usize> {
    let (mut reached, mut open) = (BTreeSet::new(), after[from].clone());
    while let Some(at) = open.pop() {
        if reached.insert(at) {
            open.extend(&after[at]);
        }
    }
    reached
}

/// Returns the steps of a circle that begins and ends at a step.
fn circle(after: &[Vec<usize>], from: usize) -> Vec<usize> {
    let mut path = vec![from];
    let mut at = from;
    loop {
        // A step of the circle waits for another one that leads back.
        let next =
            after[at].iter().find(|next| **next == from || reached(after, **next).contains(&from));
        match next {
            Some(next) if *next != from && path.len() <= after.len() => {
                path.push(*next);
                at = *next;
            }
            _ => {
                path.push(from);
                return path;
            }
        }
    }
}
