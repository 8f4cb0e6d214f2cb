//! Stories of the encoder: its output equals that of a serializer, and can be decoded.

use super::*;

/// Strings of all kinds, also some that need escapes.
fn texts() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[a-z0-9]{0,40}",
        Just("\"\\\u{0}\u{1f}\u{7f}\u{2028}/\n".to_owned())
    ]
}

fn maybe<S: Strategy>(value: S) -> impl Strategy<Value = Option<S::Value>> {
    prop::option::of(value)
}

fn kinds() -> impl Strategy<Value = EventKind> {
    use EventKind::{
        Barred, Claimed, Completed, Expired, Found, Released, Resolved, Retried, Saga, Uncertain,
    };
    prop::sample::select(vec![
        Claimed, Completed, Uncertain, Released, Resolved, Found, Retried, Expired, Saga, Barred,
    ])
}

fn changed_saga(name: String) -> Box<ChangedSaga> {
    let step = ChangedStep { name, status: "done".into(), attempts: 2, ..ChangedStep::default() };
    let events = vec!["saga.step".to_owned()];
    Box::new(ChangedSaga { events, steps: vec![step], ..ChangedSaga::default() })
}

fn contexts() -> impl Strategy<Value = Context> {
    let fields = prop::collection::btree_map(texts(), texts(), 0..3);
    let parts = (
        maybe(texts()),
        maybe(texts()),
        maybe(any::<u64>()),
        maybe(any::<u64>()),
        fields,
        maybe(texts()),
        maybe(texts()),
        maybe(texts()),
    );
    parts.prop_map(|(scope, trace, request_bytes, upstream_ms, fields, operator, reason, step)| {
        Context {
            scope,
            trace,
            request_bytes,
            upstream_ms,
            fields,
            operator,
            overwrote: reason.clone(),
            reason,
            saga: step.map(changed_saga),
        }
    })
}

fn events() -> impl Strategy<Value = Event> {
    let numbers = (
        any::<u64>(),
        any::<u64>(),
        maybe(any::<u64>()),
        maybe(any::<u64>()),
        maybe(any::<u16>()),
        maybe(any::<u64>()),
    );
    let words = (maybe(texts()), maybe(texts()));
    (kinds(), texts(), texts(), texts(), numbers, words, contexts()).prop_map(
        |(kind, version, fence, route, numbers, (cause, phase), context)| {
            let (opened_ms, keep_ms, tombstone_ms, lease_ms, status, response_bytes) = numbers;
            Event {
                kind,
                version,
                fence,
                route,
                opened_ms,
                keep_ms,
                tombstone_ms,
                lease_ms,
                status,
                response_bytes,
                cause,
                phase,
                context,
            }
        },
    )
}

fn observations() -> impl Strategy<Value = Observation> {
    use ObservationKind::{Refused, Replayed, Waited, WouldRefuse, WouldReplay};
    let kind = prop::sample::select(vec![Replayed, Waited, Refused, WouldReplay, WouldRefuse]);
    let differing = prop::collection::vec(texts().prop_map(|pointer| Difference { pointer }), 0..3);
    let common = (kind, texts(), maybe(texts()), maybe(any::<u16>()), maybe(texts()));
    (
        common,
        any::<u64>(),
        [maybe(any::<u64>()), maybe(any::<u64>()), maybe(any::<u64>())],
        texts(),
        differing,
        maybe(texts()),
    )
        .prop_map(
            |(
                (kind, route, scope, status, problem),
                at_ms,
                [until_ms, times, waited_ms],
                operation,
                differing,
                trace,
            )| {
                Observation {
                    kind,
                    at_ms,
                    until_ms,
                    times,
                    operation,
                    route,
                    scope,
                    status,
                    waited_ms,
                    problem,
                    differing,
                    trace,
                }
            },
        )
}

proptest! {
    #[test]
    fn an_event_is_written_as_every_other_writer_of_json_would(event in events()) {
        let encoded = event.encode();
        prop_assert_eq!(&encoded, &serde_json::to_vec(&event).unwrap());
        prop_assert_eq!(Event::decode(&encoded).unwrap(), event);
    }

    #[test]
    fn no_observation_of_a_batch_is_lost_or_changed(
        mut batch in prop::collection::vec(observations(), 0..6),
    ) {
        let mut read = Observation::decode(&Observation::encode(&batch)).unwrap();
        // Groups change the order.
        let order = |one: &Observation| format!("{one:?}");
        batch.sort_by_key(order);
        read.sort_by_key(order);
        prop_assert_eq!(read, batch);
    }
}
