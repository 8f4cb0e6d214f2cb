//! Stories of encoded records: round trips, old formats and damage.

use std::path::PathBuf;
use std::sync::Arc;

use http::{HeaderName, HeaderValue, StatusCode};
use proptest::prelude::*;

use super::*;
use crate::key::{Slot, Space};
use crate::record::{Announcements, Extras, SagaNote};

mod publication;
mod resources;
mod sagas;

const FORMATS: [u8; 6] = [
    FORMAT,
    FORMAT_WITH_EXTRAS,
    FORMAT_WITH_TRAILERS,
    FORMAT_WITH_PUBLICATION,
    FORMAT_OF_SAGAS,
    FORMAT_OF_RESOURCES,
];

/// Bytes of the payload before its content: format and checksum.
const PREFIX_BYTES: usize = 5;

fn base(state: State) -> Record {
    Record {
        version: Version(0x0102_0304_0506_0708),
        fence: Fence(0x1112_1314_1516_1718),
        route: "payments".into(),
        fingerprint: Some(Fingerprint::from_bytes([0xf1; 32])),
        caller: Some(Caller::from_bytes([0xca; 32])),
        opened_unix_ms: 1_764_000_000_123,
        kept: None,
        publication: None,
        extras: Extras::default(),
        state,
    }
}

fn reply(body: ReplyBody) -> Arc<Reply> {
    let mut headers = HeaderMap::new();
    headers.append("content-type", HeaderValue::from_static("application/json"));
    headers.append("set-cookie", HeaderValue::from_static("a=1"));
    headers.append("set-cookie", HeaderValue::from_static("b=2, c"));
    headers.append("x-bytes", HeaderValue::from_bytes(b"caf\xc3\xa9 \xff").unwrap());
    headers.append("x-empty", HeaderValue::from_static(""));
    Arc::new(Reply { status: StatusCode::CREATED, headers, body, trailers: None })
}

/// Every kind of record, by the name of its golden file.
fn golden() -> Vec<(&'static str, Record)> {
    let uncertain = |cause, since_ms| base(State::Uncertain { cause, since_ms, retry: None });
    let retried = |lost| {
        base(State::Uncertain {
            cause: Cause::TimedOut,
            since_ms: Some(1_764_000_000_456),
            retry: Some(Fence(lost)),
        })
    };
    let whole =
        ReplyBody::Whole(Bytes::from_static(b"{\"id\":\"pay_1\",\"amount\":9007199254740993}"));
    let marker = Record { fingerprint: None, caller: None, ..base(State::Released) };
    let mut records = vec![
        ("in-flight", base(State::InFlight { uncertain_since_ms: None })),
        ("in-flight-again", base(State::InFlight { uncertain_since_ms: Some(1_764_000_000_456) })),
        ("uncertain-broken", uncertain(Cause::Broken, None)),
        ("uncertain-many-fields", uncertain(Cause::Unreadable(AnswerFault::TooManyFields), None)),
        ("uncertain-large-head", uncertain(Cause::Unreadable(AnswerFault::HeadTooLarge), None)),
        ("uncertain-malformed", uncertain(Cause::Unreadable(AnswerFault::Malformed), None)),
        ("uncertain-timed-out", uncertain(Cause::TimedOut, Some(1_764_000_000_456))),
        ("uncertain-status", uncertain(Cause::Status(503), None)),
        ("uncertain-lease-ended", uncertain(Cause::LeaseEnded, None)),
        ("uncertain-stopped", uncertain(Cause::Stopped, None)),
        ("uncertain-retried", retried(0x1112_1314_1516_1718)),
        ("uncertain-retried-with-extras", retried(7)),
        ("completed", base(State::Completed { reply: reply(whole), by: Settler::Upstream })),
        (
            "completed-empty",
            base(State::Completed {
                reply: reply(ReplyBody::Whole(Bytes::new())),
                by: Settler::Operator,
            }),
        ),
        (
            "completed-not-stored",
            base(State::Completed { reply: reply(ReplyBody::NotStored), by: Settler::Upstream }),
        ),
        ("released", marker),
        ("expired", base(State::Expired)),
    ];
    records.extend(golden_with_extras());
    records.extend(publication::golden());
    records.extend(sagas::golden());
    records.extend(resources::golden());
    records
}

/// The records that have extras, trailers or a sealed reply.
fn golden_with_extras() -> Vec<(&'static str, Record)> {
    let more = ReplyBody::Whole(Bytes::from_static(b"{}"));
    let sealed = Reply {
        headers: HeaderMap::new(),
        body: ReplyBody::Sealed(Bytes::from_static(b"sealed")),
        ..with_trailers(&[])
    };
    vec![
        (
            "in-flight-with-extras",
            Record { extras: extras(), ..base(State::InFlight { uncertain_since_ms: None }) },
        ),
        (
            "completed-with-extras",
            Record {
                extras: extras(),
                ..base(State::Completed { reply: reply(more), by: Settler::Probe })
            },
        ),
        (
            "completed-with-trailers",
            Record {
                extras: extras(),
                ..base(State::Completed {
                    reply: with_trailers(&[
                        ("grpc-status", "0"),
                        ("grpc-message", ""),
                        ("x-twice", "1"),
                        ("x-twice", "2"),
                    ])
                    .into(),
                    by: Settler::Upstream,
                })
            },
        ),
        (
            "completed-sealed-with-trailers",
            base(State::Completed { reply: sealed.into(), by: Settler::Upstream }),
        ),
    ]
}

fn with_trailers(fields: &[(&'static str, &'static str)]) -> Reply {
    let fields = fields
        .iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
    let whole = reply(ReplyBody::Whole(Bytes::from_static(b"\0\0\0\0\x02\x08\x01")));
    Reply { trailers: Some(fields.collect()), ..Reply::clone(&whole) }
}

fn extras() -> Extras {
    let span = SpanId { trace: [0x7a; 16], span: [0x5a; 8] };
    Extras {
        leaves: Some(Bytes::from_static(b"salt, pointers and digests")),
        span: Some(span),
        saga: None,
        resource: None,
    }
}

fn golden_path(name: &str) -> PathBuf {
    let format = match name {
        _ if name.ends_with("-with-trailers") => FORMAT_WITH_TRAILERS,
        _ if name.ends_with("-with-publication") => FORMAT_WITH_PUBLICATION,
        _ if name.ends_with("-of-sagas") => FORMAT_OF_SAGAS,
        _ if name.ends_with("-of-resources") => FORMAT_OF_RESOURCES,
        _ if name.ends_with("-with-extras") => FORMAT_WITH_EXTRAS,
        _ => FORMAT,
    };
    [env!("CARGO_MANIFEST_DIR"), "tests/fixtures/records", &format!("v{format}-{name}.bin")]
        .iter()
        .collect()
}

/// Splits a golden file into head and payload.
fn split(bytes: &[u8]) -> ([u8; HEAD_BYTES], Bytes) {
    (bytes[..HEAD_BYTES].try_into().unwrap(), Bytes::copy_from_slice(&bytes[HEAD_BYTES..]))
}

fn join(encoded: &Encoded) -> Vec<u8> {
    [&encoded.head, &encoded.payload[..]].concat()
}

/// Decodes changed content with a correct checksum, so that only the decoder's other checks can
/// refuse it.
fn forge(head: [u8; HEAD_BYTES], format: u8, content: &[u8]) -> Result<Record, CodecError> {
    let mut payload = BytesMut::new();
    payload.put_u8(format);
    payload.put_u32(checksum(&head, format, content));
    payload.put_slice(content);
    decode(&head, payload.freeze())
}

#[test]
fn what_was_ever_written_is_read_for_ever() {
    for (name, expected) in golden() {
        let stored = std::fs::read(golden_path(name)).unwrap();
        let (head, payload) = split(&stored);
        let record = decode(&head, payload).unwrap();
        assert_eq!(record.version, expected.version, "{name}");
        assert_eq!(record.fence, expected.fence, "{name}");
        assert_eq!(record.route, expected.route, "{name}");
        assert_eq!(record.fingerprint, expected.fingerprint, "{name}");
        assert_eq!(record.caller, expected.caller, "{name}");
        assert_eq!(record.opened_unix_ms, expected.opened_unix_ms, "{name}");
        assert_eq!(record.publication, expected.publication, "{name}");
        assert_eq!(record.extras, expected.extras, "{name}");
        assert_eq!(record.state, expected.state, "{name}");
    }
    let files = std::fs::read_dir(golden_path("x").parent().unwrap()).unwrap();
    let count = files
        .filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|end| end == "bin"))
        .count();
    assert_eq!(count, golden().len(), "a golden file without a record");
}

#[test]
fn the_newest_format_is_written_to_the_byte() {
    for (name, record) in golden() {
        let written = join(&encode(&record));
        // Only for a new kind of record or a new format. A released golden file never changes.
        if std::env::var_os("ONCEWARD_WRITE_GOLDEN").is_some() && !golden_path(name).exists() {
            std::fs::write(golden_path(name), &written).unwrap();
        }
        assert!(written == std::fs::read(golden_path(name)).unwrap(), "{name}");
    }
}

#[test]
fn an_extra_that_is_not_known_is_passed_over_and_a_damaged_one_is_an_error() {
    let Encoded { head, payload } = encode(&Record { extras: extras(), ..base(State::Released) });
    let content = &payload[PREFIX_BYTES..];
    // The extras are the last part, after route, fingerprint, caller and time.
    let begin = 4 + "payments".len() + 33 + 33 + 8;
    let with = |extras: &[u8]| {
        let length = u32::try_from(extras.len()).unwrap().to_be_bytes();
        forge(head, FORMAT_WITH_EXTRAS, &[&content[..begin], &length, extras].concat())
    };
    let known = &content[begin + 4..];
    assert_eq!(with(known).unwrap().extras, extras());
    assert_eq!(with(&[&[9, 0, 0, 0, 2, 1, 1], known].concat()).unwrap().extras, extras());
    for damaged in
        [&[1][..], &[1, 0, 0, 0, 9, 1], &[2, 0, 0, 0, 1, 7], &[2, 0, 0, 0, 23], &[3, 0, 0, 0, 1, 7]]
    {
        assert_eq!(with(damaged), Err(CodecError::Malformed), "{damaged:?}");
    }
}

#[test]
fn only_a_completed_record_has_trailers() {
    for (name, record) in
        golden().into_iter().filter(|(_, record)| !matches!(record.state, State::Completed { .. }))
    {
        let Encoded { head, payload } = encode(&Record { extras: extras(), ..record });
        assert_eq!(
            forge(head, FORMAT_WITH_TRAILERS, &payload[PREFIX_BYTES..]),
            Err(CodecError::Malformed),
            "{name}"
        );
    }
}

#[test]
fn header_fields_keep_their_order_and_their_bytes() {
    let Encoded { head, payload } = encode(&base(State::Completed {
        reply: reply(ReplyBody::NotStored),
        by: Settler::Upstream,
    }));
    let State::Completed { reply, .. } = decode(&head, payload).unwrap().state else {
        panic!("another state")
    };
    let cookies: Vec<_> =
        reply.headers.get_all("set-cookie").iter().map(HeaderValue::as_bytes).collect();
    assert_eq!(cookies, [b"a=1".as_slice(), b"b=2, c"]);
    assert_eq!(reply.headers["x-bytes"].as_bytes(), b"caf\xc3\xa9 \xff");
}

#[test]
fn the_head_is_read_without_decoding() {
    for (name, record) in golden() {
        let head = encode(&record).head;
        assert_eq!(
            (head_version(&head), head_fence(&head)),
            (record.version, record.fence),
            "{name}"
        );
        assert_eq!(head_in_flight(&head), matches!(record.state, State::InFlight { .. }), "{name}");
        assert_eq!(
            head_completed(&head),
            matches!(record.state, State::Completed { .. }),
            "{name}"
        );
    }
}

#[test]
fn a_record_cut_short_is_an_error() {
    for (name, record) in golden() {
        let Encoded { head, payload } = encode(&record);
        for length in 0..payload.len() {
            assert!(decode(&head, payload.slice(..length)).is_err(), "{name} cut to {length}");
        }
    }
}

#[test]
fn content_cut_short_is_an_error_though_its_checksum_is_right() {
    for (name, record) in golden() {
        let Encoded { head, payload } = encode(&record);
        // A body has no length of its own: it extends to the end, and only the checksum covers its
        // size.
        let body = match &record.state {
            State::Completed { reply, .. } => match &reply.body {
                ReplyBody::Whole(body) => body.len(),
                ReplyBody::Sealed(sealed) => sealed.len(),
                ReplyBody::NotStored => 0,
            },
            _ => 0,
        };
        let content = &payload[PREFIX_BYTES..];
        for length in 0..content.len() - body {
            assert_eq!(
                forge(head, payload[0], &content[..length]),
                Err(CodecError::Malformed),
                "{name} cut to {length}"
            );
        }
    }
}

#[test]
fn a_flipped_bit_is_an_error() {
    for (name, record) in golden() {
        let bytes = join(&encode(&record));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let (head, payload) = split(&damaged);
            assert!(decode(&head, payload).is_err(), "{name}, bit {bit}");
        }
    }
}

#[test]
fn a_record_that_seems_to_have_another_format_is_an_error() {
    for (name, record) in golden() {
        let Encoded { head, payload } = encode(&record);
        for format in FORMATS.into_iter().filter(|format| *format != payload[0]) {
            let mut other = payload.to_vec();
            other[0] = format;
            assert_eq!(
                decode(&head, other.into()),
                Err(CodecError::Checksum),
                "{name} as {format}"
            );
        }
    }
}

#[test]
fn another_records_head_is_an_error() {
    let one = encode(&base(State::Released));
    let other = encode(&Record { fence: Fence(7), ..base(State::Released) });
    assert_eq!(decode(&other.head, one.payload), Err(CodecError::Checksum));
}

#[test]
fn an_unknown_format_is_named() {
    let Encoded { head, payload } = encode(&base(State::Released));
    for format in (0..=u8::MAX).filter(|format| !FORMATS.contains(format)) {
        let mut bytes = payload.to_vec();
        bytes[0] = format;
        assert_eq!(decode(&head, bytes.into()), Err(CodecError::Format(format)));
    }
}

#[test]
fn a_reply_alone_is_read_back_and_what_is_left_over_is_an_error() {
    for body in [
        ReplyBody::NotStored,
        ReplyBody::Whole(Bytes::from_static(b"paid")),
        ReplyBody::Sealed(Bytes::from_static(b"?")),
    ] {
        let reply = reply(body);
        assert_eq!(decode_reply(encode_reply(&reply), false).as_ref(), Ok(&*reply));
        let trailed = Reply {
            trailers: with_trailers(&[("grpc-status", "0")]).trailers,
            ..Reply::clone(&reply)
        };
        assert_eq!(decode_reply(encode_reply(&trailed), true).as_ref(), Ok(&trailed));
        assert_eq!(
            decode_reply(encode_reply(&trailed), false),
            Err(CodecError::Malformed),
            "trailers are not passed over"
        );
    }
    let longer = [&encode_reply(&reply(ReplyBody::NotStored))[..], b"\0"].concat();
    assert_eq!(decode_reply(longer.into(), false), Err(CodecError::Malformed));
}

#[test]
fn bytes_left_over_are_an_error() {
    for (name, record) in golden() {
        if matches!(
            &record.state,
            State::Completed { reply, .. } if reply.body != ReplyBody::NotStored
        ) {
            continue;
        }
        let Encoded { head, payload } = encode(&record);
        let longer = [&payload[PREFIX_BYTES..], b"\0"].concat();
        assert_eq!(forge(head, payload[0], &longer), Err(CodecError::Malformed), "{name}");
    }
}

#[test]
fn an_unknown_state_is_an_error() {
    let Encoded { mut head, payload } = encode(&base(State::Released));
    for state in [0, 6, 7, 8, 255] {
        head[16] = state;
        assert_eq!(
            forge(head, FORMAT, &payload[PREFIX_BYTES..]),
            Err(CodecError::Malformed),
            "{state}"
        );
    }
}

#[test]
fn forged_counts_reserve_no_memory() {
    let record =
        base(State::Completed { reply: reply(ReplyBody::NotStored), by: Settler::Upstream });
    let Encoded { head, payload } = encode(&record);
    let content = &payload[PREFIX_BYTES..];
    // Sets any four bytes to the maximum: a length, a count or other data. Reserving that much
    // memory would abort the test.
    for at in 0..content.len() - 4 {
        for forged in [u32::MAX, i32::MAX as u32, 1 << 30] {
            let mut content = content.to_vec();
            content[at..at + 4].copy_from_slice(&forged.to_be_bytes());
            _ = forge(head, FORMAT, &content);
        }
    }
    let count_at = 4 + "payments".len() + 33 + 33 + 8 + 1 + 2;
    for forged in [u32::MAX, 1 << 20] {
        let mut content = content.to_vec();
        assert_eq!(content[count_at..count_at + 4], 5_u32.to_be_bytes());
        content[count_at..count_at + 4].copy_from_slice(&forged.to_be_bytes());
        assert_eq!(forge(head, FORMAT, &content), Err(CodecError::Malformed));
    }
}

fn states() -> impl Strategy<Value = State> {
    let time = prop::option::of(1..u64::MAX);
    let cause = prop_oneof![
        Just(Cause::Broken),
        Just(Cause::Unreadable(AnswerFault::TooManyFields)),
        Just(Cause::Unreadable(AnswerFault::HeadTooLarge)),
        Just(Cause::Unreadable(AnswerFault::Malformed)),
        Just(Cause::TimedOut),
        any::<u16>().prop_map(Cause::Status),
        Just(Cause::LeaseEnded),
        Just(Cause::Stopped),
        Just(Cause::NotRepeated)
    ];
    let value =
        prop::collection::vec(prop_oneof![0x20..0x7f_u8, 0x80..=0xff_u8, Just(b'\t')], 0..40);
    let fields = prop::collection::vec(("[a-z][a-z0-9-]{0,12}", value), 0..20);
    let body = prop_oneof![
        Just(ReplyBody::NotStored),
        prop::collection::vec(any::<u8>(), 0..2000).prop_map(|body| ReplyBody::Whole(body.into())),
        prop::collection::vec(any::<u8>(), 0..2000).prop_map(|body| ReplyBody::Sealed(body.into()))
    ];
    let by = prop_oneof![Just(Settler::Upstream), Just(Settler::Operator), Just(Settler::Probe)];
    let trailers = prop::option::of(fields.clone());
    let completed = (100..1000_u16, fields, body, trailers, by).prop_map(
        |(status, fields, body, trailers, by)| {
            let map = |fields: Vec<(String, Vec<u8>)>| -> HeaderMap {
                let parsed = |(name, value): (String, Vec<u8>)| {
                    (
                        HeaderName::from_bytes(name.as_bytes()).unwrap(),
                        HeaderValue::from_bytes(&value).unwrap(),
                    )
                };
                fields.into_iter().map(parsed).collect()
            };
            let (status, headers) = (StatusCode::from_u16(status).unwrap(), map(fields));
            State::Completed {
                reply: Arc::new(Reply { status, headers, body, trailers: trailers.map(map) }),
                by,
            }
        },
    );
    let phase = prop_oneof![
        Just(SagaPhase::Running),
        Just(SagaPhase::Compensating),
        Just(SagaPhase::Stuck)
    ];
    let text = prop::collection::vec(any::<u8>(), 0..2000);
    let saga = (phase, text, any::<bool>()).prop_map(|(phase, text, is_sealed)| {
        let content = if is_sealed { PrivateContent::Sealed } else { PrivateContent::Open };
        State::Saga { phase, content: content(text.into()) }
    });
    prop_oneof![
        time.clone().prop_map(|uncertain_since_ms| State::InFlight { uncertain_since_ms }),
        (cause, time, any::<Option<u64>>()).prop_map(|(cause, since_ms, retry)| State::Uncertain {
            cause,
            since_ms,
            retry: retry.map(Fence)
        }),
        completed,
        saga,
        resources::states(),
        Just(State::Released),
        Just(State::Expired),
        Just(State::Barred)
    ]
}

/// A state, and a kept key if the outcome is open.
fn kept_states() -> impl Strategy<Value = (State, Option<Bytes>)> {
    let kept = prop::option::of(prop::collection::vec(any::<u8>(), 0..300));
    (states(), kept).prop_map(|(state, kept)| {
        let kept = kept.filter(|_| state.is_unsettled()).map(Bytes::from);
        (state, kept)
    })
}

fn some_extras() -> impl Strategy<Value = Extras> {
    let span = prop::option::of(any::<([u8; 16], [u8; 8])>());
    let saga = prop::option::of(("[0-9a-f]{16}", prop::collection::vec(any::<u8>(), 0..99)));
    let resource = prop::option::of(any::<[u8; 20]>());
    (prop::option::of(prop::collection::vec(any::<u8>(), 0..99)), span, saga, resource).prop_map(
        |(leaves, span, saga, resource)| Extras {
            leaves: leaves.map(Bytes::from),
            span: span.map(|(trace, span)| SpanId { trace, span }),
            saga: saga.map(|(mark, summary)| SagaNote {
                tenant_mark: mark.into(),
                summary: summary.into(),
            }),
            resource: resource.map(|hash| Slot::from_hash(Space::Enforced, hash)),
        },
    )
}

fn records() -> impl Strategy<Value = Record> {
    let hash = || prop::option::of(any::<[u8; 32]>());
    (
        any::<u64>(),
        any::<u64>(),
        ".{0,40}",
        hash(),
        hash(),
        any::<u64>(),
        some_extras(),
        kept_states(),
    )
        .prop_map(
            |(
                version,
                fence,
                route,
                fingerprint,
                caller,
                opened_unix_ms,
                extras,
                (state, kept),
            )| Record {
                version: Version(version),
                fence: Fence(fence),
                route: route.into(),
                fingerprint: fingerprint.map(Fingerprint::from_bytes),
                caller: caller.map(Caller::from_bytes),
                opened_unix_ms,
                kept,
                publication: None,
                extras,
                state,
            },
        )
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(record in records()) {
        let Encoded { head, payload } = encode(&record);
        prop_assert_eq!(decode(&head, payload), Ok(record));
    }

    #[test]
    fn rubbish_is_an_error_and_no_panic(
        head in any::<[u8; HEAD_BYTES]>(),
        state in 0..9_u8,
        content in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut head = head;
        head[16] = state;
        prop_assert!(decode(&head, content.clone().into()).is_err());
        _ = forge(head, FORMAT, &content);
    }
}
