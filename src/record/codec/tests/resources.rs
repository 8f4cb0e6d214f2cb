//! Stories of the records of resources: locks, reviews and versions.

use super::*;

/// Every kind of record of a resource, by the name of its golden file.
pub(super) fn golden() -> Vec<(&'static str, Record)> {
    let open = || PrivateContent::Open(Bytes::from_static(b"{\"request\":{}}"));
    let sealed = || PrivateContent::Sealed(Bytes::from_static(b"sealed"));
    let lock = |phase| {
        let operation = Slot::from_hash(Space::Enforced, [0x0a; 20]);
        Record {
            fingerprint: None,
            caller: None,
            ..base(State::Lock(Lock { phase, operation, rest_ms: 90_000 }))
        }
    };
    let review = |stage, content| base(State::Review { stage, content });
    vec![
        ("lock-free-of-resources", lock(LockPhase::Free)),
        ("lock-looking-of-resources", lock(LockPhase::Looking)),
        ("lock-sent-of-resources", lock(LockPhase::Sent)),
        (
            "review-pending-of-resources",
            Record {
                extras: Extras {
                    resource: Some(Slot::from_hash(Space::Enforced, [0x5e; 20])),
                    ..extras()
                },
                publication: super::publication::golden().remove(0).1.publication,
                ..review(ReviewStage::Pending, sealed())
            },
        ),
        ("review-accepted-of-resources", review(ReviewStage::Accepted, open())),
        ("review-rejected-of-resources", review(ReviewStage::Rejected, sealed())),
        (
            "versions-of-resources",
            Record { fingerprint: None, caller: None, ..base(State::Versions { content: open() }) },
        ),
    ]
}

/// Any state of these records.
pub(super) fn states() -> impl Strategy<Value = State> {
    let phase = prop_oneof![Just(LockPhase::Free), Just(LockPhase::Looking), Just(LockPhase::Sent)];
    let stage = prop_oneof![
        Just(ReviewStage::Pending),
        Just(ReviewStage::Accepted),
        Just(ReviewStage::Rejected)
    ];
    let content = || {
        let text = prop::collection::vec(any::<u8>(), 0..99).prop_map(Bytes::from);
        (any::<bool>(), text).prop_map(|(is_sealed, text)| match is_sealed {
            true => PrivateContent::Sealed(text),
            false => PrivateContent::Open(text),
        })
    };
    prop_oneof![
        (phase, any::<[u8; 20]>(), any::<u64>()).prop_map(|(phase, operation, rest_ms)| {
            let operation = Slot::from_hash(Space::Enforced, operation);
            State::Lock(Lock { phase, operation, rest_ms })
        }),
        (stage, content()).prop_map(|(stage, content)| State::Review { stage, content }),
        content().prop_map(|content| State::Versions { content }),
    ]
}

#[test]
fn a_version_that_reads_no_locks_refuses_the_record() {
    for (name, record) in golden() {
        let format = encode(&record).payload[0];
        assert!(format > FORMAT_OF_SAGAS, "{name} has format {format}");
    }
}

#[test]
fn no_other_format_has_a_lock_and_no_other_state_its_format() {
    for (name, record) in golden() {
        let Encoded { mut head, payload } = encode(&record);
        let content = &payload[PREFIX_BYTES..];
        for format in FORMATS.into_iter().filter(|format| *format != FORMAT_OF_RESOURCES) {
            assert!(forge(head, format, content).is_err(), "{name} in format {format}");
        }
        for state in [IN_FLIGHT, UNCERTAIN, COMPLETED, RELEASED, EXPIRED, SAGA, BARRED] {
            head[16] = state;
            let forged = forge(head, FORMAT_OF_RESOURCES, content);
            assert_eq!(forged, Err(CodecError::Malformed), "{name} as {state}");
        }
    }
}
