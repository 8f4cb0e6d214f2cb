//! Search for operations, page by page, newest first.
//!
//! Each search uses the index that is likely to leave the fewest rows. The queries here name this
//! index, because SQLite's planner has no statistics on the states and would choose another one.

use std::fmt::Write;

use rusqlite::types::{ToSql, Value};
use rusqlite::{Connection, OptionalExtension};

use super::error::QueryError;
use super::model::ReadModel;
use super::operation::Operation;
use super::operation::{COLUMNS, OperationState, fields, read};
use super::values::stored;
use crate::key::Slot;
use crate::store::log::member;

/// Limit for the operations of a page.
pub const PAGE_MAX: usize = 1000;

/// Limit for the names of chosen fields in which a free text is searched.
const FIELD_NAMES_MAX: i64 = 64;

/// If more operations than this share a value, the value is not selective. Examples are a currency
/// and one large tenant.
const COMMON: i64 = 20_000;

/// Selects operations: those that match all given conditions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// On this route.
    pub route: Option<String>,
    /// In this state, at the requested time.
    pub state: Option<OperationState>,
    /// With a result of this status.
    pub status: Option<u16>,
    /// Of one of these scopes, named by their shortened hashes; of any scope if empty.
    pub scopes: Vec<String>,
    /// With this chosen field: name and value.
    pub field: Option<(String, String)>,
    /// Begun at this time or later, in ms since 1970.
    pub from_ms: Option<u64>,
    /// Begun before this time, in ms since 1970.
    pub until_ms: Option<u64>,
    /// With this reference, scope, or value in any chosen field.
    pub text: Option<String>,
}

/// A page of operations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OperationPage {
    /// The operations.
    pub operations: Vec<Operation>,
    /// The cursor of the next page; `None` on the last page.
    pub cursor: Option<String>,
}

/// Position between two pages: behind this operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PageCursor {
    began_ms: u64,
    id: i64,
}

impl PageCursor {
    fn parse(text: &str) -> Option<PageCursor> {
        let (began_ms, id) = text.split_once('-')?;
        Some(PageCursor { began_ms: began_ms.parse().ok()?, id: id.parse().ok()? })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum PageOrder {
    NewestFirst,
    OldestFirst,
}

/// A query along one index. A search merges the results of its queries.
#[derive(Debug, Clone)]
struct IndexQuery {
    from: String,
    began: &'static str,
    id: &'static str,
    conditions: String,
    values: Vec<Value>,
}

impl IndexQuery {
    /// Returns a query along an index of operations.
    fn along(index: &str) -> IndexQuery {
        let from = format!("operations o INDEXED BY {index}");
        IndexQuery {
            from,
            began: "o.began_ms",
            id: "o.id",
            conditions: "1".into(),
            values: Vec::new(),
        }
    }

    /// Returns a query for the operation with this slot.
    fn to(slot: &Slot) -> IndexQuery {
        let query = IndexQuery { from: "operations o".into(), ..IndexQuery::along("") };
        query.with("o.slot = ?", [Value::Blob(member(slot).to_vec())])
    }

    /// Returns a query along the values of a chosen field.
    fn along_field(name: &str, value: &str) -> IndexQuery {
        let from =
            "fields f INDEXED BY fields_by_value CROSS JOIN operations o ON o.id = f.operation"
                .into();
        let query =
            IndexQuery { from, began: "f.began_ms", id: "f.operation", ..IndexQuery::along("") };
        query.with(
            "f.name = ? AND f.value = ?",
            [Value::from(name.to_owned()), Value::from(value.to_owned())],
        )
    }

    /// Restricts the query to operations of these scopes.
    fn in_scopes(self, scopes: &[String]) -> IndexQuery {
        let any = vec!["?"; scopes.len()].join(", ");
        self.with(&format!("o.scope IN ({any})"), scopes.iter().cloned().map(Value::from))
    }

    fn with(mut self, condition: &str, values: impl IntoIterator<Item = Value>) -> IndexQuery {
        self.conditions.push_str(" AND ");
        self.conditions.push_str(condition);
        self.values.extend(values);
        self
    }

    /// Restricts the query to operations in a state at `now_ms`.
    fn in_state(self, state: OperationState, now_ms: u64) -> IndexQuery {
        let now = || Value::from(stored(now_ms));
        match state {
            OperationState::Gone => self.with("o.gone_ms <= ?", [now()]),
            OperationState::Expired => {
                let expired = Value::from(OperationState::Expired.number());
                self.with(
                    "o.gone_ms > ? AND (o.standing = ? OR o.ends_ms <= ?)",
                    [now(), expired, now()],
                )
            }
            other => {
                self.with("o.standing = ? AND o.ends_ms > ?", [Value::from(other.number()), now()])
            }
        }
    }

    /// Runs the query behind a cursor. Returns operations with their numbers.
    fn run(
        &self,
        connection: &Connection,
        behind: Option<PageCursor>,
        (order, limit): (PageOrder, usize),
        now_ms: u64,
    ) -> Result<Vec<(i64, Operation)>, QueryError> {
        let (beyond, direction) =
            if order == PageOrder::NewestFirst { ("<", "DESC") } else { (">", "ASC") };
        let IndexQuery { from, began, id, conditions, values } = self;
        let mut sql = format!("SELECT {COLUMNS} FROM {from} WHERE {conditions}");
        let mut values = values.clone();
        if let Some(PageCursor { began_ms, id: last }) = behind {
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
    /// Returns up to `limit` operations that match a filter, with their state at `now_ms`, newest
    /// first, behind a cursor.
    ///
    /// # Errors
    /// The cursor is malformed, or the file can't be read.
    pub fn search(
        &self,
        filter: &Filter,
        now_ms: u64,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<OperationPage, QueryError> {
        let behind =
            cursor.map(|text| PageCursor::parse(text).ok_or(QueryError::Cursor)).transpose()?;
        self.reading(|connection| {
            let queries = queries(connection, filter, now_ms)?;
            gather(connection, &queries, behind, (PageOrder::NewestFirst, limit), now_ms)
        })
    }

    /// Returns up to `limit` uncertain operations, with their state at `now_ms`, oldest first,
    /// behind a cursor.
    ///
    /// # Errors
    /// The cursor is malformed, or the file can't be read.
    pub fn uncertain(
        &self,
        now_ms: u64,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<OperationPage, QueryError> {
        let behind =
            cursor.map(|text| PageCursor::parse(text).ok_or(QueryError::Cursor)).transpose()?;
        let query =
            IndexQuery::along("operations_by_state").in_state(OperationState::Uncertain, now_ms);
        self.reading(|connection| {
            gather(connection, &[query], behind, (PageOrder::OldestFirst, limit), now_ms)
        })
    }
}

/// Merges the results of queries into one page.
fn gather(
    connection: &Connection,
    queries: &[IndexQuery],
    behind: Option<PageCursor>,
    (order, limit): (PageOrder, usize),
    now_ms: u64,
) -> Result<OperationPage, QueryError> {
    let limit = limit.clamp(1, PAGE_MAX);
    let mut found = Vec::new();
    for query in queries {
        // One more than requested shows whether there is another page.
        found.extend(query.run(connection, behind, (order, limit + 1), now_ms)?);
    }
    found.sort_by_key(|(id, operation)| (operation.began_ms, *id));
    if order == PageOrder::NewestFirst {
        found.reverse();
    }
    // A text may match two fields of one operation.
    found.dedup_by_key(|(id, _)| *id);
    let more = found.len() > limit;
    found.truncate(limit);
    let last = found.last().filter(|_| more);
    let cursor = last.map(|(id, operation)| format!("{}-{id}", operation.began_ms));
    let operations = found
        .into_iter()
        .map(|(id, operation)| Ok(Operation { fields: fields(connection, id)?, ..operation }));
    Ok(OperationPage { operations: operations.collect::<Result<_, QueryError>>()?, cursor })
}

/// Returns the queries for a filter.
fn queries(
    connection: &Connection,
    filter: &Filter,
    now_ms: u64,
) -> Result<Vec<IndexQuery>, QueryError> {
    let route = match &filter.route {
        None => None,
        Some(name) => match route_number(connection, name)? {
            None => return Ok(Vec::new()),
            found => found,
        },
    };
    // A route alone is not selective: most operations are of one route.
    let kinds = filter.state.is_some() || filter.status.is_some();
    let others = kinds || !filter.scopes.is_empty();
    let mut rest = filter.clone();
    let queries = match (&filter.text, &filter.field, filter.scopes.as_slice()) {
        (Some(text), _, _) => by_text(connection, text)?,
        (None, Some((name, value)), _) if !others || !is_common_value(connection, name, value)? => {
            rest.field = None;
            vec![IndexQuery::along_field(name, value)]
        }
        (None, _, scopes @ [_, ..]) if !kinds || !are_common_scopes(connection, scopes)? => {
            // One query per scope: the index is in the right order only within one scope.
            rest.scopes.clear();
            scopes
                .iter()
                .map(|scope| {
                    IndexQuery::along("operations_by_scope").in_scopes(std::slice::from_ref(scope))
                })
                .collect()
        }
        (None, ..) => return Ok(by_kind(filter, route, now_ms)),
    };
    let narrowed = |query: IndexQuery| match filter.state {
        Some(state) => narrow(query, &rest, route).in_state(state, now_ms),
        None => narrow(query, &rest, route),
    };
    Ok(queries.into_iter().map(narrowed).collect())
}

/// Returns queries by values that many operations share. Some operations are in the state by now,
/// and the upkeep has not updated them yet. A second query finds these, along the times at which
/// states change.
fn by_kind(filter: &Filter, route: Option<i64>, now_ms: u64) -> Vec<IndexQuery> {
    let state = match (filter.state, filter.status) {
        (Some(state), None) => state,
        (state, status) => {
            let index = match (status, route) {
                (Some(_), _) => "operations_by_status",
                (None, Some(_)) => "operations_by_route",
                (None, None) => "operations_by_time",
            };
            let query = narrow(IndexQuery::along(index), filter, route);
            return vec![state.map_or(query.clone(), |state| query.in_state(state, now_ms))];
        }
    };
    let index = if route.is_some() { "operations_by_route_state" } else { "operations_by_state" };
    let standing = IndexQuery::along(index)
        .with("o.standing = ?", [Value::from(state.number())])
        .in_state(state, now_ms);
    let mut queries = vec![narrow(standing, filter, route)];
    if matches!(state, OperationState::Expired | OperationState::Gone) {
        let now = Value::from(stored(now_ms));
        let turned = IndexQuery::along("operations_by_next")
            .with("o.next_ms <= ?", [now])
            .in_state(state, now_ms);
        queries.push(narrow(turned, filter, route));
    }
    queries
}

/// Returns queries for a text: a reference, a scope, or a value of any chosen field.
fn by_text(connection: &Connection, text: &str) -> Result<Vec<IndexQuery>, QueryError> {
    let text = text.trim();
    if let Ok(slot) = Slot::from_reference(text) {
        return Ok(vec![IndexQuery::to(&slot)]);
    }
    let mut names =
        connection.prepare_cached("SELECT name FROM field_names ORDER BY name LIMIT ?1")?;
    let names = names
        .query_map([FIELD_NAMES_MAX], |row| row.get(0))?
        .collect::<Result<Vec<String>, _>>()?;
    // The last digits of a card number are stored behind an ellipsis, which people do not type.
    let card = (text.len() == 4 && text.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| format!("\u{2026}{text}"));
    let values = || std::iter::once(text).chain(card.as_deref());
    let mut queries: Vec<IndexQuery> = names
        .iter()
        .flat_map(|name| values().map(|value| IndexQuery::along_field(name, value)))
        .collect();
    queries.push(IndexQuery::along("operations_by_scope").in_scopes(&[text.to_owned()]));
    Ok(queries)
}

/// Adds all conditions of a filter, except for text and state.
fn narrow(mut query: IndexQuery, filter: &Filter, route: Option<i64>) -> IndexQuery {
    if let Some(route) = route {
        query = query.with("o.route = ?", [Value::from(route)]);
    }
    if let Some(status) = filter.status {
        query = query.with("o.status = ?", [Value::from(i64::from(status))]);
    }
    if !filter.scopes.is_empty() {
        query = query.in_scopes(&filter.scopes);
    }
    let began = query.began;
    if let Some(from) = filter.from_ms {
        query = query.with(&format!("{began} >= ?"), [Value::from(stored(from))]);
    }
    if let Some(until) = filter.until_ms {
        query = query.with(&format!("{began} < ?"), [Value::from(stored(until))]);
    }
    if let Some((name, value)) = &filter.field {
        let has = "EXISTS (SELECT 1 FROM fields g WHERE g.operation = o.id AND g.name = ? \
                   AND g.value = ?)";
        query = query.with(has, [Value::from(name.clone()), Value::from(value.clone())]);
    }
    query
}

/// Returns whether many operations have this value in a chosen field.
fn is_common_value(connection: &Connection, name: &str, value: &str) -> Result<bool, QueryError> {
    let mut select = connection.prepare_cached(
        "SELECT 1 FROM fields INDEXED BY fields_by_value WHERE name = ?1 AND value = ?2 \
         LIMIT 1 OFFSET ?3",
    )?;
    Ok(select.exists(rusqlite::params![name, value, COMMON])?)
}

/// Returns whether one of these scopes has many operations.
fn are_common_scopes(connection: &Connection, scopes: &[String]) -> Result<bool, QueryError> {
    let mut select = connection.prepare_cached(
        "SELECT 1 FROM operations INDEXED BY operations_by_scope WHERE scope = ?1 \
         LIMIT 1 OFFSET ?2",
    )?;
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
