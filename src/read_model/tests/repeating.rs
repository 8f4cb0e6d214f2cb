//! Changes that gateways write again after a failover: they have the current state, but are counted
//! once.

use super::*;

fn change(kind: EventKind, version: u64) -> Event {
    let mut event = event(kind, T0);
    (event.version, event.fence) = (version.to_string(), "7".into());
    if kind == EventKind::Completed {
        event.context.upstream_ms = Some(40);
    }
    event
}

/// Returns the counted attempts, results and timed answers, and the kinds of the timeline.
fn counted(model: &ReadModel) -> ([u64; 3], Vec<EventKind>) {
    let hour = model.overview(T0 + 1000).unwrap().hour;
    let timeline = model.timeline(&slot(1).to_string(), T0 + 1000).unwrap().unwrap();
    let kinds = timeline.moments.into_iter().filter_map(|moment| match moment.detail {
        MomentDetail::Changed(event) => Some(event.kind),
        MomentDetail::Observed(_) => None,
    });
    ([hour.attempts, hour.executed, hour.latency.count], kinds.collect())
}

fn stands(model: &ReadModel) -> (OperationState, u64) {
    let operation = model.timeline(&slot(1).to_string(), T0 + 1000).unwrap().unwrap().operation;
    (operation.state, operation.changed_ms)
}

#[test]
fn a_repeated_event_counts_once_and_sets_the_state() {
    let (model, mut entries) = (ReadModel::in_memory().unwrap(), TestLog::default());
    entries.append(1, T0, &change(EventKind::Claimed, 1));
    entries.append(1, T0 + 50, &change(EventKind::Completed, 2));
    entries.append(1, T0 + 100, &change(EventKind::Completed, 2));
    applied(&model, &entries);
    let once = ([1, 1, 1], vec![EventKind::Claimed, EventKind::Completed]);
    assert_eq!(
        (counted(&model), stands(&model)),
        (once.clone(), (OperationState::Completed, T0 + 100)),
        "it ends later"
    );

    entries.append(1, T0 + 200, &change(EventKind::Claimed, 1));
    applied(&model, &entries);
    assert_eq!(
        (counted(&model), stands(&model)),
        (once.clone(), (OperationState::InFlight, T0 + 200)),
        "it is what the store has"
    );
    entries.append(1, T0 + 300, &change(EventKind::Completed, 2));
    applied(&model, &entries);
    assert_eq!((counted(&model), stands(&model)), (once, (OperationState::Completed, T0 + 300)));
}

#[test]
fn another_change_of_the_same_version_and_the_next_attempt_are_no_repetition() {
    let (model, mut entries) = (ReadModel::in_memory().unwrap(), TestLog::default());
    entries.append(1, T0, &change(EventKind::Claimed, 1));
    entries.append(1, T0 + 50, &change(EventKind::Completed, 2));
    // The server lost the result. Its replica took over, and there the lease ended.
    entries.append(1, T0 + 100, &change(EventKind::Uncertain, 2));
    let again = Event { fence: "8".into(), ..change(EventKind::Claimed, 3) };
    entries.append(1, T0 + 200, &again);
    entries.append(1, T0 + 300, &Event { fence: "8".into(), ..change(EventKind::Completed, 4) });
    applied(&model, &entries);
    let kinds = vec![
        EventKind::Claimed,
        EventKind::Completed,
        EventKind::Uncertain,
        EventKind::Claimed,
        EventKind::Completed,
    ];
    assert_eq!(
        (counted(&model), stands(&model)),
        (([2, 2, 2], kinds), (OperationState::Completed, T0 + 300))
    );
    assert_eq!(model.overview(T0 + 1000).unwrap().hour.uncertain, 1);
}

#[test]
fn a_saga_counts_as_one_attempt_however_often_it_goes_on() {
    let (model, mut entries) = (ReadModel::in_memory().unwrap(), TestLog::default());
    let kinds = [EventKind::Saga, EventKind::Saga, EventKind::Saga, EventKind::Completed];
    for (version, kind) in (1..).zip(kinds) {
        entries.append(1, T0 + version, &change(kind, version));
        applied(&model, &entries);
        let state = if version < 4 { OperationState::Saga } else { OperationState::Completed };
        assert_eq!(stands(&model), (state, T0 + version));
    }
    assert_eq!(counted(&model), ([1, 1, 1], kinds.to_vec()));
    entries.append(1, T0 + 9, &Event { opened_ms: T0 + 9, ..change(EventKind::Saga, 9) });
    applied(&model, &entries);
    assert_eq!(counted(&model).0, [2, 1, 1], "the key is new again");
}
