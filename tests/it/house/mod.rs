//! The house's rules, read off the source: who may know whom, and what no file may have. docs/ARCHITECTURE.md says why.

mod source;

use std::collections::BTreeSet;

use source::{Source, all_sources, blank, repository, rooms_known_by};

/// A room, and the rooms that it may know. One that isn't here has no place in the house yet.
const MAY_KNOW: &[(&str, &[&str])] = &[
    ("hex", &[]),
    ("key", &["hex"]),
    ("clock", &[]),
    ("entropy", &[]),
    ("telemetry", &["hex"]),
    ("tls", &[]),
    ("token", &[]),
    ("record", &["key"]),
    ("event", &["record"]),
    ("engine", &["key", "record"]),
    ("store", &["key", "record", "clock", "tls", "telemetry", "hex"]),
    ("route", &["engine", "key"]),
    ("refusal", &["clock", "engine", "gate", "key", "record", "telemetry"]),
    (
        "gate",
        &[
            "refusal",
            "key",
            "record",
            "event",
            "engine",
            "store",
            "clock",
            "entropy",
            "route",
            "telemetry",
            "token",
        ],
    ),
    ("config", &["key", "engine", "tls"]),
    (
        "proxy",
        &[
            "gate",
            "refusal",
            "key",
            "engine",
            "record",
            "clock",
            "entropy",
            "telemetry",
            "tls",
            "hex",
        ],
    ),
    (
        "layer",
        &[
            "refusal",
            "key",
            "clock",
            "entropy",
            "telemetry",
            "record",
            "engine",
            "store",
            "route",
            "gate",
            "config",
            "proxy",
            "token",
            "hex",
        ],
    ),
    ("read_model", &["event", "key", "store"]),
    (
        "admin",
        &[
            "gate",
            "store",
            "event",
            "read_model",
            "engine",
            "record",
            "key",
            "clock",
            "config",
            "telemetry",
            "hex",
        ],
    ),
    ("cli", &["config", "admin", "app", "demo", "telemetry", "clock", "entropy"]),
    ("demo", &["app", "config", "entropy"]),
    (
        "app",
        &[
            "refusal",
            "key",
            "clock",
            "entropy",
            "telemetry",
            "record",
            "engine",
            "store",
            "route",
            "gate",
            "config",
            "proxy",
            "tls",
            "token",
            "layer",
            "read_model",
            "admin",
            "cli",
            "demo",
        ],
    ),
    // The binary, which knows the library by its name.
    ("main", &["cli"]),
    // The map: it declares the rooms and uses none.
    ("lib", &[]),
];

/// Longest file of the source, in lines; tests may be longer.
const LINES_MAX: usize = 600;

/// What a file knows and may not, one sentence each.
fn trespasses(source: &Source) -> Vec<String> {
    let room = source.room();
    let Some((_, allowed)) = MAY_KNOW.iter().find(|(name, _)| *name == room) else {
        return vec![format!("{}: the room {room} is not in the table", source.path)];
    };
    rooms_known_by(source)
        .into_iter()
        .filter(|known| *known != room && !allowed.contains(&known.as_str()))
        .map(|known| format!("{}: {room} may not know {known}", source.path))
        .collect()
}

/// The product's own files: no test of theirs.
fn product() -> Vec<Source> {
    all_sources().into_iter().filter(|source| !source.is_test).collect()
}

/// The files and lines in which a word stands, comments, texts and inline tests aside.
fn lines_with(sources: &[Source], word: &str) -> Vec<String> {
    let found = |source: &Source| {
        let lines = source.code.lines().enumerate().filter(|(_, line)| line.contains(word));
        lines.map(|(index, _)| format!("{}:{}: {word}", source.path, index + 1)).collect::<Vec<_>>()
    };
    sources.iter().flat_map(found).collect()
}

#[test]
fn no_room_knows_a_room_that_it_may_not() {
    let trespasses: Vec<String> = product().iter().flat_map(trespasses).collect();
    assert!(trespasses.is_empty(), "\n{}", trespasses.join("\n"));
}

#[test]
fn the_house_is_read_and_not_an_empty_place() {
    let rooms: BTreeSet<String> = product().iter().map(Source::room).collect();
    assert!(product().len() > 20, "only {} files were read", product().len());
    // The demo is the one room that may be left out.
    let missing: Vec<_> = MAY_KNOW
        .iter()
        .map(|(room, _)| *room)
        .filter(|room| !rooms.contains(*room) && *room != "demo")
        .collect();
    assert!(missing.is_empty(), "rooms of the table that are not there: {missing:?}");
}

#[test]
fn a_planted_trespass_is_caught_in_every_form() {
    for planted in [
        "use crate::store::Store;",
        "use crate::{key::Key, store::Store};",
        "use crate::{\n    key,\n    store,\n};",
        "pub(crate) use crate :: store as kept;",
        "fn f() -> crate::store::Store {}",
        "use super::super::store::Store;",
        "fn f() { onceward::store::open() }",
        "use crate::key::Key; // all is well\nuse crate::store::Store;",
        "const QUOTE: char = '\"'; use crate::store::Store; const OTHER: char = '\"';",
        "#[cfg(test)]\nmod tests;\nuse crate::store::Store;",
        "#[cfg(test)]\nmod tests { fn f() { let brace = \"}\"; } }\nuse crate::store::Store;",
    ] {
        let found = trespasses(&Source::new("src/engine/planted.rs", planted));
        assert_eq!(found, ["src/engine/planted.rs: engine may not know store"], "{planted}");
    }
}

#[test]
fn what_only_looks_like_a_trespass_is_none() {
    for innocent in [
        "use crate::key::Key;",
        "use crate::engine::Policy;",
        "use super::store::Store;",
        "// use crate::store::Store;",
        "//! See [`crate::store`].",
        "/* use crate::store; /* nested */ use crate::store; */",
        "const TEXT: &str = \"crate::store\";",
        "const TEXT: &str = r#\"a \" crate::store\"#;",
        "pub(crate) fn store() {}",
        "fn f<'a>(text: &'a str) { other_crate::store() }",
        "#[cfg(test)]\nmod tests {\n    use crate::store::Store;\n}",
        "#[cfg(test)]\nuse crate::store::Store;",
    ] {
        let found = trespasses(&Source::new("src/engine/innocent.rs", innocent));
        assert!(found.is_empty(), "{innocent}: {found:?}");
    }
}

#[test]
fn nothing_gives_up_where_an_error_could_be_returned() {
    let words = [".unwrap()", ".expect(", "panic!(", "todo!(", "unimplemented!"];
    let found: Vec<String> = words.iter().flat_map(|word| lines_with(&product(), word)).collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn no_file_is_too_long_to_read() {
    let long = |source: &Source| source.text.lines().count() > LINES_MAX;
    let found: Vec<String> = product().into_iter().filter(long).map(|source| source.path).collect();
    assert!(found.is_empty(), "longer than {LINES_MAX} lines: {found:?}");
}

#[test]
fn the_rules_know_neither_clock_nor_network() {
    let engine: Vec<Source> =
        product().into_iter().filter(|source| source.room() == "engine").collect();
    let words = ["tokio", "hyper", "SystemTime", "Instant", "async "];
    let found: Vec<String> = words.iter().flat_map(|word| lines_with(&engine, word)).collect();
    assert!(!engine.is_empty() && found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn the_gate_casts_no_lots_between_what_is_ready() {
    // What tokio draws is under no seed, and a simulation has to tell the same story twice.
    let gate: Vec<Source> =
        product().into_iter().filter(|source| source.room() == "gate").collect();
    let selects: Vec<&str> =
        gate.iter().flat_map(|source| source.code.split("select! {").skip(1)).collect();
    assert!(!selects.is_empty(), "none was read");
    assert!(
        selects.iter().all(|select| select.trim_start().starts_with("biased;")),
        "a select! in src/gate is not biased"
    );
}

#[test]
fn every_file_opens_with_what_it_is() {
    let silent = |source: &Source| !source.text.starts_with("//!");
    let found: Vec<String> =
        all_sources().into_iter().filter(silent).map(|source| source.path).collect();
    assert!(found.is_empty(), "don't begin with `//!`: {found:?}");
}

#[test]
fn no_test_is_switched_off() {
    let mut found = Vec::new();
    for folder in ["src", "tests", "benches"] {
        for (path, text) in source::rust_files(folder) {
            let code = blank(&text);
            let off = code.lines().any(|line| line.trim_start().starts_with("#[ignore"));
            if off {
                found.push(path);
            }
        }
    }
    assert!(found.is_empty(), "a test is ignored in {found:?}");
}

#[test]
fn nothing_is_left_for_later() {
    // Put together, so that this file doesn't find itself.
    let words = [concat!("TO", "DO"), concat!("FIX", "ME")];
    let mut found = Vec::new();
    for folder in ["src", "tests", "benches"] {
        for (path, text) in source::rust_files(folder) {
            let marked = |line: &&str| words.iter().any(|word| line.contains(word));
            found
                .extend(text.lines().filter(marked).map(|line| format!("{path}: {}", line.trim())));
        }
    }
    assert!(
        found.is_empty(),
        "{} has notes for later:\n{}",
        repository().display(),
        found.join("\n")
    );
}
