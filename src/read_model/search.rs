//! Finding operations by what somebody knows of them, a page at a time, newest first.
//!
//! Each search goes along one index, named here: the one that is likely to leave least. Nothing is left to a planner that
//! doesn't know how many payments succeed.

use std::fmt::Write;

use rusqlite::types::{ToSql, Value};
use rusqlite::{Connection, OptionalExtension};

use super::operation::{COLUMNS, State, fields, read};
use super::{Operation, QueryError, ReadModel, stored};
use crate::key::Slot;
use crate::store::log::member;

/// Operations on a page, at most.
pub const PAGE_MAX: usize = 1000;

/// Names of chosen fields that a free text is looked up under.
const FIELD_NAMES_MAX: i64 = 64;

/// What more operations have in common is no good way to few of them: a currency, say, or the one large tenant.
const COMMON: i64 = 20_000;

/// Which operations are wanted: those for which all holds that is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// On this route.
    pub route: Option<String>,
    /// In this state, at the time that is asked for.
    pub state: Option<State>,
    /// With a result of this status.
    pub status: Option<u16>,
    /// Of one of these scopes, by their marks as operations show them; of any, where there are none.
    pub scopes: Vec<String>,
    /// With this value in a chosen field: its name, its value.
    pub field: Option<(String, String)>,
    /// Begun then or later, in ms since 1970.
    pub from_ms: Option<u64>,
    /// Begun before then.
    pub until_ms: Option<u64>,
    /// With this reference, scope, or value in any chosen field.
    pub text: Option<String>,
}

/// A page of operations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The operations.
    pub operations: Vec<Operation>,
    /// Where the next page begins; `None`: there is none.
    pub cursor: Option<String>,
}

/// Where a page begins: behind this operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cursor {
    began_ms: u64,
    id: i64,
}

impl Cursor {
    fn parse(text: &str) -> Option<Cursor> {
        let (began_ms, id) = text.split_once('-')?;
        Some(Cursor { began_ms: began_ms.parse().ok()?, id: id.parse().ok()? })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    NewestFirst,
    OldestFirst,
}

/// One walk along one index. What a search finds is what its walks find, merged.
#[derive(Debug, Clone)]
struct Walk {
    from: String,
    began: &'static str,
    id: &'static str,
    conditions: String,
    values: Vec<Value>,
}

impl Walk {
    /// Along an index of operations.
    fn along(index: &str) -> Walk {
        let from = format!("operations o INDEXED BY {index}");
        Walk { from, began: "o.began_ms", id: "o.id", conditions: "1".into(), values: Vec::new() }
    }

    /// To the operation that has this slot.
    fn to(slot: &Slot) -> Walk {
        let walk = Walk { from: "operations o".into(), ..Walk::along("") };
        walk.with("o.slot = ?", [Value::Blob(member(slot).to_vec())])
    }

    /// Along the values of a chosen field.
    fn along_field(name: &str, value: &str) -> Walk {
        let from =
            "fields f INDEXED BY fields_by_value CROSS JOIN operations o ON o.id = f.operation"
                .into();
        let walk = Walk { from, began: "f.began_ms", id: "f.operation", ..Walk::along("") };
        walk.with(
            "f.name = ? AND f.value = ?",
            [Value::from(name.to_owned()), Value::from(value.to_owned())],
        )
    }

    /// Of operations of these scopes.
    fn in_scopes(self, scopes: &[String]) -> Walk {
        let any = vec!["?"; scopes.len()].join(", ");
        self.with(&format!("o.scope IN ({any})"), scopes.iter().cloned().map(Value::from))
    }

    fn with(mut self, condition: &str, values: impl IntoIterator<Item = Value>) -> Walk {
        self.conditions.push_str(" AND ");
        self.conditions.push_str(condition);
        self.values.extend(values);
        self
    }

    /// Only what is in a state now.
    fn in_state(self, state: State, now_ms: u64) -> Walk {
        let now = || Value::from(stored(now_ms));
        match state {
            State::Gone => self.with("o.gone_ms <= ?", [now()]),
            State::Expired => {
                let expired = Value::from(State::Expired.number());
                self.with(
                    "o.gone_ms > ? AND (o.standing = ? OR o.ends_ms <= ?)",
                    [now(), expired, now()],
                )
            }
            told => {
                self.with("o.standing = ? AND o.ends_ms > ?", [Value::from(told.number()), now()])
            }
        }
    }

    /// What it finds behind a cursor, with numbers.
    fn go(
        &self,
        connection: &Connection,
        behind: Option<Cursor>,
        (order, limit): (Order, usize),
        now_ms: u64,
    ) -> Result<Vec<(i64, Operation)>, QueryError> {
        let (beyond, direction) =
            if order == Order::NewestFirst { ("<", "DESC") } else { (">", "ASC") };
        let Walk { from, began, id, conditions, values } = self;
        let mut sql = format!("SELECT {COLUMNS} FROM {from} WHERE {conditions}");
        let mut values = values.clone();
        if let Some(Cursor { began_ms, id: last }) = behind {
            // Writing to a string can't fail.
            let _ = write!(sql, " AND ({began}, {id}) {beyond} (?, ?)");
            values.extend([Value::from(stored(began_ms)), Value::from(last)]);
        }
        let _ = write!(sql, " ORDER BY {began} {direction}, {id} {direction} LIMIT ?");
        values.push(Value::from(limit as i64));
        let mut select = connection.prepare_cached(&sql)?;
        let values: Vec<&dyn ToSql> = values.iter().map(|value| value as &dyn ToSql).collect();
        let found = select.query_map(values.as_slice(), |row| read(row, now_ms))?;
        Ok(found.collect::<Result<_, _>>()?)
    }
}

impl ReadModel {
    /// Operations that a filter lets through, as they stand at `now_ms`, newest first; up to `limit` behind a cursor.
    ///
    /// # Errors
    /// A cursor that none gave; it can't be read.
    pub fn search(
        &self,
        filter: &Filter,
        now_ms: u64,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Found, QueryError> {
        let behind =
            cursor.map(|text| Cursor::parse(text).ok_or(QueryError::Cursor)).transpose()?;
        self.reading(|connection| {
            let walks = walks(connection, filter, now_ms)?;
            gather(connection, &walks, behind, (Order::NewestFirst, limit), now_ms)
        })
    }

    /// Operations whose outcome nobody knows, as they stand at `now_ms`, the oldest first; up to `limit` behind a cursor.
    ///
    /// # Errors
    /// A cursor that none gave; it can't be read.
    pub fn uncertain(
        &self,
        now_ms: u64,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Found, QueryError> {
        let behind =
            cursor.map(|text| Cursor::parse(text).ok_or(QueryError::Cursor)).transpose()?;
        let walk = Walk::along("operations_by_state").in_state(State::Uncertain, now_ms);
        self.reading(|connection| {
            gather(connection, &[walk], behind, (Order::OldestFirst, limit), now_ms)
        })
    }
}

/// The first of what the walks find, in one order.
fn gather(
    connection: &Connection,
    walks: &[Walk],
    behind: Option<Cursor>,
    (order, limit): (Order, usize),
    now_ms: u64,
) -> Result<Found, QueryError> {
    let limit = limit.clamp(1, PAGE_MAX);
    let mut found = Vec::new();
    for walk in walks {
        // One more than asked for shows whether there is another page.
        found.extend(walk.go(connection, behind, (order, limit + 1), now_ms)?);
    }
    found.sort_by_key(|(id, operation)| (operation.began_ms, *id));
    if order == Order::NewestFirst {
        found.reverse();
    }
    // A text may be found in two fields.
    found.dedup_by_key(|(id, _)| *id);
    let more = found.len() > limit;
    found.truncate(limit);
    let last = found.last().filter(|_| more);
    let cursor = last.map(|(id, operation)| format!("{}-{id}", operation.began_ms));
    let operations = found
        .into_iter()
        .map(|(id, operation)| Ok(Operation { fields: fields(connection, id)?, ..operation }));
    Ok(Found { operations: operations.collect::<Result<_, QueryError>>()?, cursor })
}

/// The walks that find what a filter lets through.
fn walks(connection: &Connection, filter: &Filter, now_ms: u64) -> Result<Vec<Walk>, QueryError> {
    let route = match &filter.route {
        None => None,
        Some(name) => match route_number(connection, name)? {
            None => return Ok(Vec::new()),
            found => found,
        },
    };
    // A route alone is no way to few: most have one.
    let kinds = filter.state.is_some() || filter.status.is_some();
    let others = kinds || !filter.scopes.is_empty();
    let mut rest = filter.clone();
    let walks = match (&filter.text, &filter.field, filter.scopes.as_slice()) {
        (Some(text), _, _) => by_text(connection, text)?,
        (None, Some((name, value)), _) if !others || !is_common_value(connection, name, value)? => {
            rest.field = None;
            vec![Walk::along_field(name, value)]
        }
        (None, _, scopes @ [_, ..]) if !kinds || !are_common_scopes(connection, scopes)? => {
            // One each: along an index, those of one scope alone stand in the order that is wanted.
            rest.scopes.clear();
            scopes
                .iter()
                .map(|scope| {
                    Walk::along("operations_by_scope").in_scopes(std::slice::from_ref(scope))
                })
                .collect()
        }
        (None, ..) => return Ok(by_kind(filter, route, now_ms)),
    };
    let narrowed = |walk: Walk| match filter.state {
        Some(state) => narrow(walk, &rest, route).in_state(state, now_ms),
        None => narrow(walk, &rest, route),
    };
    Ok(walks.into_iter().map(narrowed).collect())
}

/// By what many operations share. Those that changed their state by themselves since somebody last looked are found apart from
/// those that stand under it: along the times at which that happens.
fn by_kind(filter: &Filter, route: Option<i64>, now_ms: u64) -> Vec<Walk> {
    let state = match (filter.state, filter.status) {
        (Some(state), None) => state,
        (state, status) => {
            let index = match (status, route) {
                (Some(_), _) => "operations_by_status",
                (None, Some(_)) => "operations_by_route",
                (None, None) => "operations_by_time",
            };
            let walk = narrow(Walk::along(index), filter, route);
            return vec![state.map_or(walk.clone(), |state| walk.in_state(state, now_ms))];
        }
    };
    let index = if route.is_some() { "operations_by_route_state" } else { "operations_by_state" };
    let standing = Walk::along(index)
        .with("o.standing = ?", [Value::from(state.number())])
        .in_state(state, now_ms);
    let mut walks = vec![narrow(standing, filter, route)];
    if matches!(state, State::Expired | State::Gone) {
        let now = Value::from(stored(now_ms));
        let turned =
            Walk::along("operations_by_next").with("o.next_ms <= ?", [now]).in_state(state, now_ms);
        walks.push(narrow(turned, filter, route));
    }
    walks
}

/// A reference, a scope, or a value of any chosen field.
fn by_text(connection: &Connection, text: &str) -> Result<Vec<Walk>, QueryError> {
    let text = text.trim();
    if let Ok(slot) = Slot::from_reference(text) {
        return Ok(vec![Walk::to(&slot)]);
    }
    let mut names =
        connection.prepare_cached("SELECT name FROM field_names ORDER BY name LIMIT ?1")?;
    let names = names
        .query_map([FIELD_NAMES_MAX], |row| row.get(0))?
        .collect::<Result<Vec<String>, _>>()?;
    // What is kept of a card's number is written with a sign that no keyboard has.
    let card = (text.len() == 4 && text.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| format!("\u{2026}{text}"));
    let values = || std::iter::once(text).chain(card.as_deref());
    let mut walks: Vec<Walk> = names
        .iter()
        .flat_map(|name| values().map(|value| Walk::along_field(name, value)))
        .collect();
    walks.push(Walk::along("operations_by_scope").in_scopes(&[text.to_owned()]));
    Ok(walks)
}

/// All that a filter says, but of text and state.
fn narrow(mut walk: Walk, filter: &Filter, route: Option<i64>) -> Walk {
    if let Some(route) = route {
        walk = walk.with("o.route = ?", [Value::from(route)]);
    }
    if let Some(status) = filter.status {
        walk = walk.with("o.status = ?", [Value::from(i64::from(status))]);
    }
    if !filter.scopes.is_empty() {
        walk = walk.in_scopes(&filter.scopes);
    }
    let began = walk.began;
    if let Some(from) = filter.from_ms {
        walk = walk.with(&format!("{began} >= ?"), [Value::from(stored(from))]);
    }
    if let Some(until) = filter.until_ms {
        walk = walk.with(&format!("{began} < ?"), [Value::from(stored(until))]);
    }
    if let Some((name, value)) = &filter.field {
        let has = "EXISTS (SELECT 1 FROM fields g WHERE g.operation = o.id AND g.name = ? AND g.value = ?)";
        walk = walk.with(has, [Value::from(name.clone()), Value::from(value.clone())]);
    }
    walk
}

/// Whether many operations have this value in a chosen field.
fn is_common_value(connection: &Connection, name: &str, value: &str) -> Result<bool, QueryError> {
    let mut select = connection
        .prepare_cached("SELECT 1 FROM fields INDEXED BY fields_by_value WHERE name = ?1 AND value = ?2 LIMIT 1 OFFSET ?3")?;
    Ok(select.exists(rusqlite::params![name, value, COMMON])?)
}

/// Whether many operations are of one of these scopes.
fn are_common_scopes(connection: &Connection, scopes: &[String]) -> Result<bool, QueryError> {
    let mut select = connection
        .prepare_cached("SELECT 1 FROM operations INDEXED BY operations_by_scope WHERE scope = ?1 LIMIT 1 OFFSET ?2")?;
    for scope in scopes {
        if select.exists(rusqlite::params![scope, COMMON])? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn route_number(connection: &Connection, name: &str) -> Result<Option<i64>, QueryError> {
    let mut select = connection.prepare_cached("SELECT id FROM routes WHERE name = ?1")?;
    Ok(select.query_row([name], |row| row.get(0)).optional()?)
}
