//! `[[routes.publish]]`: the events that a route publishes.

use std::sync::Arc;

use super::RouteContext;
use super::fields::{NAME_BYTES_MAX, PLACE_EXPECTED, is_name, place};
use crate::config::read::{Table, Value, closest};
use crate::engine::{Mode, PUBLISH_RULES_MAX, PublishRule, PublishRules, PublishedMember, Side};
use crate::event::{RESERVED_MEMBERS, SAGA_MEMBER};
use crate::key::Pointer;
use crate::record::{AnnouncedRule, AnnouncedState, InvalidStatusClass, StatusClass};

const EXPECTED: &str = "rules, each under [[routes.publish]]";
const ON_EXPECTED: &str = "a list of states such as [\"completed\"]";
const STATUS_EXPECTED: &str = "a list of statuses such as [\"2xx\"]";
const TO_EXPECTED: &str = "a list of the names of sinks";
const TYPE_EXPECTED: &str =
    "1 to 256 visible ASCII characters such as \"com.example.payment.created\"";
const DATA_EXPECTED: &str =
    "a table such as { order = \"request:/order/id\", payment = \"response:/id\" }";

/// Longest type, in bytes. It is stored with every operation.
const TYPE_BYTES_MAX: usize = 256;
/// Most chosen members of one rule. Each is stored with every operation.
const MEMBERS_MAX: usize = 32;

/// Reads the rules. The inner value is `None` if the route makes no events. `mode` is `None` if the
/// setting `mode` is faulty, and `announced` is what the route can announce.
pub(super) fn read(
    route: &Table<'_>,
    redact: &[Pointer],
    mode: Option<Mode>,
    announced: &[AnnouncedState],
    context: &RouteContext<'_>,
) -> Option<Option<Arc<PublishRules>>> {
    let Some(value) = route.get("publish") else { return Some(None) };
    let items = value.list(EXPECTED)?;
    if items.is_empty() {
        return Some(None);
    }
    if items.len() > PUBLISH_RULES_MAX {
        value.fault(format!(
            "expected at most {PUBLISH_RULES_MAX} rules: each is stored with every operation"
        ));
        return None;
    }
    if context.format.is_some_and(|format| !format.has_publications()) {
        value.fault(
            "needs format = 2 under [store]: records of format 1 can't contain what they publish",
        );
    }
    // This parses all rules before it returns the first failure, so that all faults are reported.
    let rules: Vec<Option<PublishRule>> =
        items.iter().map(|item| read_rule(item, redact, announced, context)).collect();
    let rules: Vec<PublishRule> = rules.into_iter().collect::<Option<_>>()?;
    check_overlaps(&items, &rules);
    let mode = match mode? {
        Mode::Enforce => None,
        Mode::Shadow => Some("shadow"),
        Mode::Off => Some("off"),
    };
    if let Some(mode) = mode {
        let text = format!("not used: a route with mode = \"{mode}\" makes no events");
        route.report.warn(&value.span.path, &text);
        return Some(None);
    }
    let outbox = context.outbox.as_ref()?;
    let (source, event_bytes) = (outbox.source.clone(), outbox.event_bytes);
    Some(Some(Arc::new(PublishRules { source, event_bytes, rules })))
}

fn read_rule(
    item: &Value<'_>,
    redact: &[Pointer],
    announced: &[AnnouncedState],
    context: &RouteContext<'_>,
) -> Option<PublishRule> {
    let table = item.table(EXPECTED)?;
    let on = read_on(&table, announced);
    let statuses = read_statuses(&table, on.as_deref());
    let to = read_to(&table, context);
    let kind = table
        .get("type")
        .map_or(Some(None), |value| value.parsed(TYPE_EXPECTED, event_type).map(Some));
    let members = read_members(&table, redact, reserved(announced), context);
    if let (Some(on), Some(members)) = (&on, &members)
        && !on.iter().any(|state| state.has_answer())
        && members.iter().any(|member| member.side == Side::Response)
    {
        table.report.warn(
            &table.path_of("data"),
            "members of the response are always absent: only what is completed has a response",
        );
    }
    table.finish();
    Some(PublishRule { on: on?, statuses: statuses?, to: to?, kind: kind?, members: members? })
}

/// Returns the names that no member of a rule's data can have.
fn reserved(announced: &[AnnouncedState]) -> impl Iterator<Item = &'static str> + Clone + use<> {
    let is_of_saga = announced.iter().any(|state| state.is_of_saga());
    RESERVED_MEMBERS.into_iter().chain(is_of_saga.then_some(SAGA_MEMBER))
}

fn read_on(table: &Table<'_>, announced: &[AnnouncedState]) -> Option<Vec<AnnouncedState>> {
    let Some(value) = table.get("on") else { return Some(vec![AnnouncedState::Completed]) };
    let items = value.list(ON_EXPECTED)?;
    let named: Vec<_> = announced.iter().map(|state| (state.name(), *state)).collect();
    let states: Vec<Option<AnnouncedState>> =
        items.iter().map(|item| item.choice(&named, &[])).collect();
    let states: Vec<AnnouncedState> = states.into_iter().collect::<Option<_>>()?;
    is_plain_list(&value, &items, &states).then_some(states)
}

/// Returns whether a list has an element and no element twice. Notes a fault if not.
fn is_plain_list<T: PartialEq>(value: &Value<'_>, items: &[Value<'_>], parsed: &[T]) -> bool {
    if parsed.is_empty() {
        value.fault("expected at least one element");
        return false;
    }
    let repeated = (1..parsed.len()).find(|at| parsed[..*at].contains(&parsed[*at]));
    if let Some(item) = repeated.and_then(|at| items.get(at)) {
        item.fault("the same element a second time");
    }
    repeated.is_none()
}

/// Reads the statuses; empty: every status. `on` is `None` if the states are faulty.
fn read_statuses(table: &Table<'_>, on: Option<&[AnnouncedState]>) -> Option<Vec<StatusClass>> {
    let Some(value) = table.get("status") else { return Some(Vec::new()) };
    if on.is_some_and(|on| !on.contains(&AnnouncedState::Completed)) {
        value.fault("not used: it selects completed operations: add \"completed\" to on");
        return None;
    }
    let items = value.list(STATUS_EXPECTED)?;
    let statuses: Vec<Option<StatusClass>> = items.iter().map(read_status).collect();
    let statuses: Vec<StatusClass> = statuses.into_iter().collect::<Option<_>>()?;
    is_plain_list(&value, &items, &statuses).then_some(statuses)
}

fn read_status(item: &Value<'_>) -> Option<StatusClass> {
    let text = item.text("a status such as \"404\" or \"4xx\"")?.trim().to_ascii_lowercase();
    // A class that is written in another way, such as "+2xx", is probably a mistake.
    let parsed = StatusClass::try_from(text.clone()).and_then(|class| {
        if String::from(class) == text { Ok(class) } else { Err(InvalidStatusClass(text)) }
    });
    parsed.map_err(|error| item.fault(error.to_string())).ok()
}

fn read_to(table: &Table<'_>, context: &RouteContext<'_>) -> Option<Vec<String>> {
    let Some(value) = table.get("to") else {
        table.report.note_absence(&table.span_of("to"), format!("a rule needs to: {TO_EXPECTED}"));
        return None;
    };
    let items = value.list(TO_EXPECTED)?;
    let names: Vec<Option<String>> = items.iter().map(|item| read_sink(item, context)).collect();
    let names: Vec<String> = names.into_iter().collect::<Option<_>>()?;
    is_plain_list(&value, &items, &names).then_some(names)
}

/// Reads the name of a sink. Reports a fault if there is no such sink.
fn read_sink(item: &Value<'_>, context: &RouteContext<'_>) -> Option<String> {
    let name = item.text("a sink's name")?;
    let Some(sinks) = &context.sinks else { return Some(name.to_owned()) };
    if sinks.iter().any(|other| other == name) {
        return Some(name.to_owned());
    }
    let near = closest(name, sinks.iter().map(String::as_str));
    let help = near.map_or_else(
        || format!("add [[sinks]] with name = {name:?}"),
        |near| format!("did you mean \"{near}\"?"),
    );
    item.report.note_with_help(&item.span, format!("there is no sink named {name:?}"), Some(help));
    None
}

fn event_type(text: &str) -> Option<String> {
    let sound = (1..=TYPE_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_graphic());
    sound.then(|| text.to_owned())
}

fn read_members(
    table: &Table<'_>,
    redact: &[Pointer],
    reserved: impl Iterator<Item = &'static str> + Clone,
    context: &RouteContext<'_>,
) -> Option<Vec<PublishedMember>> {
    let Some(value) = table.get("data") else { return Some(Vec::new()) };
    let values = value.table(DATA_EXPECTED)?.values();
    if values.len() > MEMBERS_MAX {
        value.fault(format!(
            "expected at most {MEMBERS_MAX} members: each is stored with every operation"
        ));
        return None;
    }
    let members: Vec<Option<PublishedMember>> = values
        .iter()
        .map(|(name, value)| {
            if reserved.clone().any(|taken| taken == *name) {
                value.fault("every event has a member of this name: choose another");
                return None;
            }
            read_member(name, value, redact, context)
        })
        .collect();
    members.into_iter().collect()
}

fn read_member(
    name: &str,
    value: &Value<'_>,
    redact: &[Pointer],
    context: &RouteContext<'_>,
) -> Option<PublishedMember> {
    if !is_name(name) {
        value.fault(format!(
            "the name of a member has 1 to {NAME_BYTES_MAX} letters, digits, _ and -"
        ));
        return None;
    }
    let (side, pointer, tokens) = value.parsed(PLACE_EXPECTED, |text| {
        let (side, pointer) = place(text)?;
        // The empty pointer means the whole document.
        let tokens = match pointer {
            "" => Vec::new(),
            _ => Pointer::parse(pointer)?.tokens().to_vec(),
        };
        Some((side, pointer.to_owned(), tokens))
    })?;
    if let Some(hidden) = redact.iter().find(|hidden| tokens.starts_with(hidden.tokens())) {
        value.fault(format!("redact replaces {hidden}, so an event can't contain it"));
        return None;
    }
    if side == Side::Request && context.encrypted == Some(false) {
        value.fault(
            "needs [encryption]: members of the request are stored as soon as an operation begins",
        );
        return None;
    }
    Some(PublishedMember { name: name.to_owned(), side, pointer })
}

/// Notes a fault at each rule that can make an event of the same type for the same change as an
/// earlier rule. Both events would have the same id.
fn check_overlaps(items: &[Value<'_>], rules: &[PublishRule]) {
    for (at, (item, rule)) in items.iter().zip(rules).enumerate() {
        let overlapping = rules[..at]
            .iter()
            .enumerate()
            .find_map(|(other, earlier)| overlap(earlier, rule).map(|state| (other, state)));
        if let Some((other, state)) = overlapping {
            item.fault(format!(
                "publish[{other}] also makes events of the type {:?} for {} operations: set another \
                 type, or other statuses",
                kind_of(rule, state),
                state.name()
            ));
        }
    }
}

/// Returns a state in which both rules can make an event of the same type for the same change.
fn overlap(one: &PublishRule, other: &PublishRule) -> Option<AnnouncedState> {
    let same_status = one.statuses.is_empty()
        || other.statuses.is_empty()
        || one.statuses.iter().any(|class| other.statuses.iter().any(|it| it.overlaps(*class)));
    one.on.iter().copied().find(|state| {
        other.on.contains(state)
            && kind_of(one, *state) == kind_of(other, *state)
            && (*state != AnnouncedState::Completed || same_status)
    })
}

/// Returns the type of a rule's event about this state.
fn kind_of(rule: &PublishRule, state: AnnouncedState) -> String {
    let announced = AnnouncedRule {
        on: Vec::new(),
        statuses: Vec::new(),
        to: Vec::new(),
        kind: rule.kind.clone(),
        members: Vec::new(),
    };
    announced.kind_of(state)
}
