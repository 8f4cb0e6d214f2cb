//! Searches, cursors and the queue of uncertain outcomes.

use super::*;

fn found(model: &ReadModel, filter: &Filter, now_ms: u64) -> Vec<String> {
    let found = model.search(filter, now_ms, None, 1000).unwrap();
    assert_eq!(found.cursor, None);
    found.operations.into_iter().map(|operation| operation.reference).collect()
}

fn references<const N: usize>(numbers: [u64; N]) -> Vec<String> {
    numbers.iter().map(|n| slot(*n).to_string()).collect()
}

/// Five operations: completed, uncertain, in flight, released, completed on another route for a
/// client of its own.
fn filled() -> ReadModel {
    let (model, mut entries) = (ReadModel::in_memory().unwrap(), TestLog::default());
    let mut ends = TestLog::default();
    for n in 1..=5 {
        let mut claimed = event(EventKind::Claimed, T0 + n);
        let kinds = [
            EventKind::Completed,
            EventKind::Uncertain,
            EventKind::Claimed,
            EventKind::Released,
            EventKind::Completed,
        ];
        let mut next = event(kinds[n as usize - 1], T0 + n);
        if n == 5 {
            (claimed.route, next.route) = ("refunds".into(), "refunds".into());
            claimed.context.scope = Some("tenant".into());
            next.status = Some(402);
            next.tombstone_ms = Some(2 * KEEP_MS);
        }
        let mut json = serde_json::to_value(&claimed).unwrap();
        json["fields"] = serde_json::json!({ "order": format!("o-{n}"), "currency": "EUR" });
        entries.append_json(n, T0 + n, &json);
        if n != 3 {
            ends.append(n, T0 + 100 + n, &next);
        }
    }
    entries.0.extend(ends.0);
    applied(&model, &entries);
    model
}

#[test]
fn a_card_is_found_by_the_four_digits_that_are_kept_of_it_as_people_type_them() {
    let (model, mut entries) = (ReadModel::in_memory().unwrap(), TestLog::default());
    for (n, field) in
        [(1, ("card", "\u{2026}4242")), (2, ("order", "4242")), (3, ("card", "\u{2026}1881"))]
    {
        let mut json = serde_json::to_value(event(EventKind::Claimed, T0 + n)).unwrap();
        json["fields"] = serde_json::json!({ field.0: field.1 });
        entries.append_json(n, T0 + n, &json);
    }
    applied(&model, &entries);
    let by = |text: &str| {
        found(&model, &Filter { text: Some(text.into()), ..Filter::default() }, T0 + 10)
    };
    assert_eq!(by("4242"), references([2, 1]));
    assert_eq!(by("\u{2026}4242"), references([1]));
    assert_eq!(
        [by("242"), by("42 42"), by("14242")],
        [references([]), references([]), references([])]
    );
}

#[test]
fn operations_are_found_by_whatever_is_known_of_them() {
    let model = filled();
    let now = T0 + 1000;
    let by = |filter: Filter| found(&model, &filter, now);
    assert_eq!(by(Filter::default()), references([5, 4, 3, 2, 1]));
    assert_eq!(
        by(Filter { route: Some("payments".into()), ..Filter::default() }),
        references([4, 3, 2, 1])
    );
    assert_eq!(by(Filter { route: Some("nobody's".into()), ..Filter::default() }), references([]));
    assert_eq!(
        by(Filter { state: Some(OperationState::Completed), ..Filter::default() }),
        references([5, 1])
    );
    let both = Filter {
        state: Some(OperationState::Completed),
        route: Some("payments".into()),
        ..Filter::default()
    };
    assert_eq!(by(both), references([1]));
    assert_eq!(by(Filter { status: Some(402), ..Filter::default() }), references([5]));
    assert_eq!(
        by(Filter { status: Some(402), state: Some(OperationState::Gone), ..Filter::default() }),
        references([])
    );
    assert_eq!(by(Filter { scopes: vec!["tenant".into()], ..Filter::default() }), references([5]));
    let field = |name: &str, value: &str| Filter {
        field: Some((name.into(), value.into())),
        ..Filter::default()
    };
    assert_eq!(by(field("order", "o-2")), references([2]));
    assert_eq!(by(field("currency", "o-2")), references([]));
    assert_eq!(by(field("currency", "EUR")), references([5, 4, 3, 2, 1]));
    let within =
        Filter { from_ms: Some(T0 + 2), until_ms: Some(T0 + 4), ..field("currency", "EUR") };
    assert_eq!(by(within), references([3, 2]));
    for text in [slot(5).to_string(), "tenant".into(), " o-5 ".into()] {
        assert_eq!(
            by(Filter { text: Some(text.clone()), ..Filter::default() }),
            references([5]),
            "{text}"
        );
    }
    let text = Filter {
        text: Some("EUR".into()),
        state: Some(OperationState::Released),
        ..Filter::default()
    };
    assert_eq!(by(text), references([4]));
}

/// More operations than a value may have and be selective.
const MANY: u64 = 21_000;

#[test]
fn a_value_that_many_have_is_found_together_with_whatever_else_is_asked_for() {
    let (model, mut entries) = (ReadModel::in_memory().unwrap(), TestLog::default());
    for n in 1..=MANY {
        let mut claimed = event(EventKind::Claimed, T0 + n);
        let odd = n % (MANY / 3) == 7;
        claimed.context.scope = Some(if odd { "tenant" } else { "large" }.into());
        if odd {
            claimed.route = "refunds".into();
        }
        let mut json = serde_json::to_value(&claimed).unwrap();
        json["fields"] = serde_json::json!({ "currency": if n == 7 { "USD" } else { "EUR" } });
        entries.append_json(n, T0 + n, &json);
        if odd {
            let mut ended = event(EventKind::Completed, T0 + n);
            (ended.route, ended.context.scope) = (claimed.route, claimed.context.scope);
            entries.append(n, T0 + n, &ended);
        }
    }
    applied(&model, &entries);
    let with = |filter: Filter| {
        let field = Some(("currency".to_owned(), "EUR".to_owned()));
        found(&model, &Filter { field, ..filter }, T0 + MANY)
    };
    let wanted = references([MANY / 3 * 2 + 7, MANY / 3 + 7]);
    assert_eq!(with(Filter { scopes: vec!["tenant".into()], ..Filter::default() }), wanted);
    assert_eq!(
        with(Filter { state: Some(OperationState::Completed), ..Filter::default() }),
        wanted
    );
    assert_eq!(with(Filter { route: Some("refunds".into()), ..Filter::default() }), wanted);
    assert_eq!(with(Filter { status: Some(201), ..Filter::default() }), wanted);
    assert_eq!(
        with(Filter { status: Some(201), until_ms: Some(T0 + MANY / 2), ..Filter::default() }),
        references([MANY / 3 + 7])
    );
    assert_eq!(with(Filter { text: Some("tenant".into()), ..Filter::default() }), wanted);
    assert_eq!(with(Filter { from_ms: Some(T0 + MANY), ..Filter::default() }), references([MANY]));
    let large = |filter: Filter| with(Filter { scopes: vec!["large".into()], ..filter });
    assert_eq!(
        large(Filter { state: Some(OperationState::Completed), ..Filter::default() }),
        references([])
    );
    let newest = Filter {
        state: Some(OperationState::InFlight),
        from_ms: Some(T0 + MANY - 1),
        ..Filter::default()
    };
    assert_eq!(large(newest), references([MANY, MANY - 1]));
    let odd = MANY / 3 * 2 + 7;
    let both = Filter {
        scopes: vec!["tenant".into(), "large".into()],
        from_ms: Some(T0 + odd - 1),
        until_ms: Some(T0 + odd + 2),
        ..Filter::default()
    };
    assert_eq!(with(both), references([odd + 1, odd, odd - 1]), "of several scopes in one order");
}
