//! Merges, against a table and against an oracle that has the values.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;

const SALT: Salt = [7; 16];

fn verdict(base: &Value, current: &Value, patch: &Value) -> MergeVerdict {
    let digests = MemberDigests::of(base.to_string().as_bytes(), SALT).unwrap();
    let digests = MemberDigests::decode(&digests.encode()).unwrap();
    digests.merge(patch.to_string().as_bytes(), current.to_string().as_bytes())
}

#[test]
fn a_patch_is_applied_unless_a_member_that_it_names_has_changed() {
    let base = json!({ "plan": 1, "card": { "name": "a", "ends": 5 }, "list": [1, 2], "no": null });
    let conflict =
        |at: &[&str]| MergeVerdict::Conflict(at.iter().map(|at| (*at).to_owned()).collect());
    let apply = MergeVerdict::Apply;
    let with = |at: &str, value: Value| {
        let mut changed = base.clone();
        *changed.pointer_mut(at).unwrap() = value;
        changed
    };
    let without = |name: &str| {
        let mut changed = base.clone();
        changed.as_object_mut().unwrap().remove(name);
        changed
    };
    for (current, patch, expected) in [
        (base.clone(), json!({ "plan": 2 }), apply.clone()),
        (with("/plan", json!(9)), json!({ "plan": 2 }), conflict(&["/plan"])),
        (with("/plan", json!(9)), json!({ "plan": 9 }), conflict(&["/plan"])),
        (with("/plan", json!(9)), json!({ "card": { "name": "b" } }), apply.clone()),
        (with("/plan", json!(1.0)), json!({ "plan": 2 }), apply.clone()),
        // Inside one object, other members do not matter.
        (with("/card/ends", json!(6)), json!({ "card": { "name": "b" } }), apply.clone()),
        (
            with("/card/ends", json!(6)),
            json!({ "card": { "name": "b", "ends": 7 } }),
            conflict(&["/card/ends"]),
        ),
        // The whole object is replaced or removed: any change below counts.
        (with("/card/ends", json!(6)), json!({ "card": null }), conflict(&["/card"])),
        (with("/card/ends", json!(6)), json!({ "card": "none" }), conflict(&["/card"])),
        // Above a named member, only what it is matters.
        (with("/card", json!("none")), json!({ "card": { "name": "b" } }), conflict(&["/card"])),
        (without("card"), json!({ "card": { "name": "b" } }), conflict(&["/card"])),
        (with("/plan", json!({})), json!({ "plan": { "a": 1 } }), conflict(&["/plan"])),
        (base.clone(), json!({ "plan": { "a": 1 } }), apply.clone()),
        (base.clone(), json!({ "new": { "a": 1 } }), apply.clone()),
        (with("/card", json!("none")), json!({ "card": {} }), conflict(&["/card"])),
        (with("/card/ends", json!(6)), json!({ "card": {} }), apply.clone()),
        // An array is one value.
        (with("/list/0", json!(9)), json!({ "list": [1] }), conflict(&["/list"])),
        (with("/list/0", json!(9)), json!({ "plan": 2 }), apply.clone()),
        // A null in the document is not an absent member.
        (without("no"), json!({ "no": 1 }), conflict(&["/no"])),
        (base.clone(), json!({ "absent": null }), apply.clone()),
        (base.clone(), json!({}), apply),
        (json!([1]), json!({ "plan": 2 }), MergeVerdict::Unclear),
        (base.clone(), json!([1]), MergeVerdict::Unclear),
        (base.clone(), json!(null), MergeVerdict::Unclear),
    ] {
        assert_eq!(verdict(&base, &current, &patch), expected, "{current} {patch}");
    }
}

#[test]
fn what_has_no_single_value_is_never_merged() {
    let digests = MemberDigests::of(b"{\"a\":1}", SALT).unwrap();
    let merge = |patch: &str, current: &str| digests.merge(patch.as_bytes(), current.as_bytes());
    assert_eq!(merge("{\"a\":1,\"a\":2}", "{\"a\":1}"), MergeVerdict::Unclear);
    assert_eq!(merge("{\"a\":1", "{\"a\":1}"), MergeVerdict::Unclear);
    assert_eq!(merge("{\"a\":2}", "{\"a\":1,\"a\":1}"), MergeVerdict::Unclear);
    for representation in ["[]", "1", "{\"a\":1,\"a\":1}", "nothing"] {
        assert_eq!(MemberDigests::of(representation.as_bytes(), SALT), None);
    }
    let members = |count: usize| {
        let members: Map<String, Value> = (0..count).map(|n| (n.to_string(), json!(n))).collect();
        Value::Object(members).to_string()
    };
    assert!(MemberDigests::of(members(MEMBERS_MAX).as_bytes(), SALT).is_some());
    assert_eq!(MemberDigests::of(members(MEMBERS_MAX + 1).as_bytes(), SALT), None);
}

#[test]
fn a_conflict_names_at_most_32_members_in_order() {
    let all =
        |value: u64| Value::Object((0..40).map(|n| (format!("m{n:02}"), json!(value))).collect());
    let MergeVerdict::Conflict(members) = verdict(&all(1), &all(2), &all(3)) else {
        panic!("a conflict")
    };
    assert_eq!(members.len(), 32);
    assert_eq!((members[0].as_str(), members[31].as_str()), ("/m00", "/m31"));
}

#[test]
fn digests_do_not_contain_values_and_differ_by_their_salt() {
    let text = b"{\"name\":\"value-of-the-member\"}";
    let encoded = MemberDigests::of(text, SALT).unwrap().encode();
    assert!(!encoded.windows(15).any(|part| part == b"value-of-the-me"));
    let other = MemberDigests::of(text, [8; 16]).unwrap().encode();
    assert_ne!(encoded[16..], other[16..]);
}

/// Applies a patch as RFC 7396, section 2 does.
fn applied(target: Option<&Value>, patch: &Value) -> Value {
    let Value::Object(patch) = patch else { return patch.clone() };
    let mut object = target.and_then(Value::as_object).cloned().unwrap_or_default();
    for (name, value) in patch {
        if value.is_null() {
            object.remove(name);
        } else {
            let member = applied(object.get(name), value);
            object.insert(name.clone(), member);
        }
    }
    Value::Object(object)
}

/// Returns the places that a patch writes, as lists of names: each value that is no object, and
/// each object that it makes out of something else in one of these documents.
fn written(patch: &Value, documents: &[&Value], at: &[String], places: &mut Vec<Vec<String>>) {
    let Value::Object(members) = patch else { return };
    for (name, value) in members {
        let place = [at, std::slice::from_ref(name)].concat();
        let is_kept = documents.iter().all(|document| {
            place
                .iter()
                .try_fold(*document, |value, name| value.get(name))
                .is_some_and(|it| it.is_object())
        });
        if value.is_object() && is_kept {
            written(value, documents, &place, places);
        } else {
            places.push(place);
        }
    }
}

fn value_at<'v>(document: &'v Value, place: &[String]) -> Option<&'v Value> {
    place.iter().try_fold(document, |value, name| match value {
        Value::Object(members) => members.get(name),
        _ => None,
    })
}

fn documents() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        (0..3u8).prop_map(Value::from),
        "[ab]".prop_map(Value::from),
        Just(json!([1])),
        Just(json!([2])),
    ];
    let value = leaf.prop_recursive(3, 24, 3, |inner| {
        prop::collection::hash_map("[a-c]", inner, 0..4)
            .prop_map(|members| Value::Object(members.into_iter().collect()))
    });
    prop::collection::hash_map("[a-c]", value, 0..4)
        .prop_map(|members| Value::Object(members.into_iter().collect()))
}

/// A document that is often, but not always, close to another one.
fn pairs() -> impl Strategy<Value = (Value, Value)> {
    (documents(), documents(), any::<bool>()).prop_map(|(base, other, is_close)| {
        let current = if is_close { applied(Some(&base), &other) } else { other };
        (base, current)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// The oracle has the values: a patch may be applied exactly if at each place that it writes
    /// the two versions are equal.
    #[test]
    fn a_patch_that_touches_a_changed_member_is_never_applied((base, current) in pairs(), patch in documents()) {
        let mut places = Vec::new();
        written(&patch, &[&base, &current], &[], &mut places);
        let is_free = places.iter().all(|at| value_at(&base, at) == value_at(&current, at));
        match verdict(&base, &current, &patch) {
            MergeVerdict::Apply => {
                prop_assert!(is_free, "applied");
                // What the writer wanted is there, and what others wrote is still there.
                let (wanted, merged) = (applied(Some(&base), &patch), applied(Some(&current), &patch));
                for at in &places {
                    prop_assert_eq!(value_at(&wanted, at), value_at(&merged, at));
                }
                let undone = places.iter().fold(merged, |merged, at| with(merged, at, value_at(&current, at)));
                prop_assert_eq!(undone, current);
            }
            MergeVerdict::Conflict(members) => {
                prop_assert!(!is_free, "refused");
                prop_assert!(!members.is_empty());
            }
            MergeVerdict::Unclear => prop_assert!(false, "all documents are clear"),
        }
    }

    #[test]
    fn other_bytes_are_no_digests(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        if let Some(digests) = MemberDigests::decode(&bytes) {
            prop_assert_eq!(MemberDigests::decode(&digests.encode()), Some(digests));
        }
    }
}

/// Returns a document with this value at a place.
fn with(mut document: Value, at: &[String], value: Option<&Value>) -> Value {
    let (name, above) = at.split_last().unwrap();
    let parent = above.iter().try_fold(&mut document, |value, name| value.get_mut(name));
    let Some(Value::Object(members)) = parent else { return document };
    match value {
        Some(value) => _ = members.insert(name.clone(), value.clone()),
        None => _ = members.remove(name),
    }
    document
}
