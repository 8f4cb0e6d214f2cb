//! Queries of the read model and the store, for the API and the pages. The read model is behind the
//! event log: [`lag_ms`] returns by how much.

use std::collections::BTreeMap;

use super::problem::AdminRefusal;
use super::state::Admin;
use super::view::{OperationListView, OperationView, TimelineView};
use crate::key::Slot;
use crate::read_model::{Filter, QueryError, ReadModel};
use crate::record::{Held, State};
use crate::store::Listing;

/// Runs a query of the read model. It runs on a blocking thread, because it reads from a disk.
pub(super) async fn ask<T: Send + 'static>(
    admin: &Admin,
    query: impl FnOnce(&ReadModel, u64) -> Result<T, QueryError> + Send + 'static,
) -> Result<T, AdminRefusal> {
    let model = admin.read_model.clone().ok_or(AdminRefusal::ReadModelOff)?;
    let now_ms = admin.clock.unix_ms();
    let result = tokio::task::spawn_blocking(move || query(&model, now_ms)).await;
    Ok(result.map_err(|_| AdminRefusal::Unanswered)??)
}

/// Returns how far the read model is behind the event log, in ms.
pub(super) fn lag_ms(admin: &Admin) -> Option<u64> {
    admin.read_model.as_ref().and_then(|model| model.freshness().lag_ms(admin.clock.unix_ms()))
}

/// Parses the filter of a search from names and values. A name is one of the names below, or
/// `field.` and the name of a chosen field.
pub(super) fn filter<'q>(
    pairs: impl IntoIterator<Item = (&'q str, &'q str)>,
) -> Result<Filter, AdminRefusal> {
    let mut filter = Filter::default();
    for (name, value) in pairs {
        let value = value.to_owned();
        match name {
            "route" => filter.route = Some(value),
            "state" => filter.state = Some(value.parse().map_err(|_| AdminRefusal::StateUnknown)?),
            "status" => filter.status = Some(status(&value)?),
            "scope" => filter.scopes = scopes(&value)?,
            "text" => filter.text = Some(value),
            "from" => filter.from_ms = Some(moment(&value)?),
            "until" => filter.until_ms = Some(moment(&value)?),
            other => match other.strip_prefix("field.") {
                Some(field) if filter.field.is_none() => {
                    filter.field = Some((field.to_owned(), value))
                }
                Some(_) => return Err(invalid("a search can have only one field.NAME")),
                None => {
                    return Err(invalid(&format!("{other} is not a search parameter")));
                }
            },
        }
    }
    Ok(filter)
}

/// The maximum of scopes in one search. A client can have several: one for each hashing secret of a
/// rotation, and two for a claim that can be read in two ways.
const SCOPES_MAX: usize = 16;

fn scopes(text: &str) -> Result<Vec<String>, AdminRefusal> {
    let scopes: Vec<String> = text.split(',').map(|mark| mark.trim().to_owned()).collect();
    if scopes.len() <= SCOPES_MAX {
        Ok(scopes)
    } else {
        Err(invalid("a search can have at most 16 scopes"))
    }
}

fn status(text: &str) -> Result<u16, AdminRefusal> {
    let status = text.parse().ok().filter(|status| (100..=599).contains(status));
    status.ok_or_else(|| invalid("status must be an HTTP status such as 201"))
}

pub(super) fn invalid(why: &str) -> AdminRefusal {
    AdminRefusal::Invalid(why.to_owned())
}

/// Parses a time in RFC 3339. Returns it in ms since 1970.
pub(super) fn moment(text: &str) -> Result<u64, AdminRefusal> {
    let time = humantime::parse_rfc3339_weak(text).ok();
    let since = time.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    let millis = since.and_then(|since| u64::try_from(since.as_millis()).ok());
    millis.ok_or_else(|| invalid("a time must look like 2026-11-25T03:00:00Z, in UTC"))
}

/// Returns a page of a search, newest first, and the cursor of the next page.
pub(super) async fn search(
    admin: &Admin,
    filter: Filter,
    cursor: Option<String>,
    limit: usize,
) -> Result<(Vec<OperationView>, Option<String>), AdminRefusal> {
    let found =
        ask(admin, move |model, now_ms| model.search(&filter, now_ms, cursor.as_deref(), limit))
            .await?;
    Ok((found.operations.iter().map(OperationView::from).collect(), found.cursor))
}

/// Returns an operation's timeline. Returns `None` if the read model has no event of the operation,
/// or does not have it yet.
pub(super) async fn timeline_of(
    admin: &Admin,
    slot: &Slot,
) -> Result<Option<TimelineView>, AdminRefusal> {
    let reference = slot.to_string();
    let timeline = ask(admin, move |model, now_ms| model.timeline(&reference, now_ms)).await?;
    Ok(timeline.map(|timeline| TimelineView::new(&timeline, lag_ms(admin))))
}

/// Returns the read model's views of these operations, by reference. Returns an empty map if the
/// read model fails.
pub(super) async fn views_of(
    admin: &Admin,
    references: Vec<String>,
) -> BTreeMap<String, OperationView> {
    let found = ask(admin, move |model, now_ms| {
        references
            .iter()
            .map(|reference| model.search(&by_reference(reference), now_ms, None, 1))
            .collect::<Result<Vec<_>, _>>()
    });
    let found = found.await.unwrap_or_default();
    let views = found.iter().flat_map(|found| &found.operations).map(OperationView::from);
    views.map(|view| (view.operation.clone(), view)).collect()
}

fn by_reference(reference: &str) -> Filter {
    Filter { text: Some(reference.to_owned()), ..Default::default() }
}

/// Returns a page of the operations in the store.
pub(super) async fn from_store(
    admin: &Admin,
    state: Option<&str>,
    cursor: Option<&str>,
    limit: usize,
) -> Result<OperationListView, AdminRefusal> {
    let listing = match state {
        None | Some("completed" | "released" | "expired" | "barred") => Listing::All,
        Some("saga") => Listing::Sagas,
        Some("in_flight" | "uncertain") => Listing::Unsettled,
        Some(_) => return Err(AdminRefusal::StateUnknown),
    };
    let page = admin.gate.store().records.list(listing, cursor, limit).await?;
    let wanted = |view: &OperationView| state.is_none_or(|state| view.state == state);
    // The records of resources are no operations.
    let is_operation = |(_, held): &&(Slot, Held)| {
        !matches!(held.record.state, State::Lock(_) | State::Versions { .. })
    };
    let operations = page.records.iter().filter(is_operation);
    let views = operations.map(|(slot, held)| OperationView::new(slot, held));
    let operations = views.filter(wanted).collect();
    Ok(OperationListView {
        operations,
        cursor: page.cursor,
        source: "store".to_owned(),
        lag_ms: None,
    })
}

/// Returns the mark of a scope, or several marks separated by commas.
pub(super) fn mark_of(
    admin: &Admin,
    route: &str,
    parts: &BTreeMap<String, String>,
) -> Result<String, AdminRefusal> {
    let policy = admin.policies.get(route).ok_or(AdminRefusal::RouteUnknown)?;
    Ok(admin.gate.tenant_marks(policy, parts)?.join(","))
}

/// Returns the current state of the operation under a key. `path` is needed if the route
/// distinguishes paths.
pub(super) async fn find_by_key(
    admin: &Admin,
    route: &str,
    (key, path): (&str, &str),
    scope: &BTreeMap<String, String>,
) -> Result<(Slot, Held), AdminRefusal> {
    let policy = admin.policies.get(route).ok_or(AdminRefusal::RouteUnknown)?;
    for slot in admin.gate.slots_of(policy, key, path, scope)? {
        if let Some(held) = admin.gate.store().records.load(&slot).await? {
            return Ok((slot, held));
        }
    }
    Err(AdminRefusal::NothingUnderKey)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read_model::OperationState;

    #[test]
    fn a_search_is_read_from_names_and_values_and_nothing_is_passed_over() {
        let pairs = [
            ("route", "payments"),
            ("state", "uncertain"),
            ("status", "201"),
            ("field.order", "A-17"),
            ("from", "2026-11-25T03:00:00Z"),
            ("text", "x"),
            ("scope", "0a,1b"),
        ];
        let filter = filter(pairs).unwrap();
        assert_eq!(
            (filter.route.as_deref(), filter.state, filter.status),
            (Some("payments"), Some(OperationState::Uncertain), Some(201))
        );
        assert_eq!(filter.scopes, ["0a", "1b"]);
        assert_eq!(filter.field, Some(("order".to_owned(), "A-17".to_owned())));
        assert_eq!(
            (filter.from_ms, filter.until_ms, filter.text.as_deref()),
            (Some(1_795_575_600_000), None, Some("x"))
        );
    }

    #[test]
    fn what_can_not_be_searched_by_is_refused() {
        for pairs in [
            vec![("stat", "201")],
            vec![("state", "lost")],
            vec![("status", "many")],
            vec![("from", "yesterday")],
            vec![("field.a", "1"), ("field.b", "2")],
            vec![("scope", ",".repeat(SCOPES_MAX).as_str())],
        ] {
            assert!(filter(pairs.clone()).is_err(), "{pairs:?}");
        }
    }
}
