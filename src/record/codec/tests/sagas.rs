//! Stories of the records of sagas and bars.

use super::*;

fn saga(phase: SagaPhase, content: PrivateContent) -> Record {
    base(State::Saga { phase, content })
}

/// Every kind of record of a saga, and a bar, by the name of its golden file.
pub(super) fn golden() -> Vec<(&'static str, Record)> {
    let open = || PrivateContent::Open(Bytes::from_static(b"{\"plan\":{},\"log\":[]}"));
    let sealed = || PrivateContent::Sealed(Bytes::from_static(b"sealed"));
    let publication = Some(Publication::Sealed(Bytes::from_static(b"published")));
    vec![
        ("saga-running-of-sagas", saga(SagaPhase::Running, open())),
        (
            "saga-compensating-of-sagas",
            Record { extras: extras(), publication, ..saga(SagaPhase::Compensating, sealed()) },
        ),
        (
            "saga-stuck-of-sagas",
            Record {
                publication: super::publication::golden().remove(0).1.publication,
                ..saga(SagaPhase::Stuck, sealed())
            },
        ),
        ("barred-of-sagas", Record { fingerprint: None, caller: None, ..base(State::Barred) }),
    ]
}

#[test]
fn a_version_that_reads_no_sagas_refuses_the_record() {
    for (name, record) in golden() {
        let format = encode(&record).payload[0];
        assert!(format > FORMAT_WITH_PUBLICATION, "{name} has format {format}");
    }
}

#[test]
fn no_other_format_has_a_saga_and_no_other_state_its_format() {
    for (name, record) in golden() {
        let Encoded { mut head, payload } = encode(&record);
        let content = &payload[PREFIX_BYTES..];
        for format in FORMATS.into_iter().filter(|format| *format != FORMAT_OF_SAGAS) {
            assert!(forge(head, format, content).is_err(), "{name} in format {format}");
        }
        for state in [IN_FLIGHT, UNCERTAIN, COMPLETED, RELEASED, EXPIRED] {
            head[16] = state;
            let forged = forge(head, FORMAT_OF_SAGAS, content);
            assert_eq!(forged, Err(CodecError::Malformed), "{name} as {state}");
        }
    }
}

#[test]
fn a_bar_has_no_publication() {
    let publication = Some(Publication::Sealed(Bytes::from_static(b"published")));
    let barred = Record { publication, ..base(State::Barred) };
    let Encoded { head, payload } = encode(&barred);
    assert_eq!(decode(&head, payload).unwrap().publication, None);
}

#[test]
fn stores_see_from_the_head_which_records_have_a_lease_and_which_may_be_large() {
    for (name, record) in super::golden() {
        let head = encode(&record).head;
        let is_saga = matches!(record.state, State::Saga { .. });
        let is_completed = matches!(record.state, State::Completed { .. });
        assert_eq!(head_is_saga(&head), is_saga, "{name}");
        assert_eq!(head_has_lease(&head), record.state.has_lease(), "{name}");
        let is_content = matches!(record.state, State::Review { .. } | State::Versions { .. });
        assert_eq!(head_may_be_large(&head), is_saga || is_completed || is_content, "{name}");
    }
}
