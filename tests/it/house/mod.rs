//! The project's rules for source files: which module may use which, and what no file may contain.
//! docs/ARCHITECTURE.md has the reasons.

mod circles;
mod source;
mod words;

use std::collections::BTreeSet;

use source::{Source, all_sources, blank, modules_used_by, repository};

/// Each top module, and the modules that it may use. A module that is missing here fails the test.
const MAY_USE: &[(&str, &[&str])] = &[
    ("hex", &[]),
    ("key", &["hex"]),
    ("clock", &[]),
    ("entropy", &[]),
    ("telemetry", &["hex"]),
    ("tls", &[]),
    ("token", &[]),
    ("record", &["key"]),
    ("event", &["record", "key", "clock", "hex"]),
    ("engine", &["key", "record"]),
    ("store", &["key", "record", "clock", "tls", "telemetry", "hex"]),
    ("route", &["engine", "key"]),
    ("refusal", &["clock", "engine", "key", "telemetry"]),
    ("forwarding", &["record", "refusal"]),
    ("http_message", &["forwarding", "refusal"]),
    (
        "gate",
        &[
            "refusal",
            "forwarding",
            "http_message",
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
    ("template", &[]),
    (
        "outbox",
        &[
            "store",
            "key",
            "record",
            "event",
            "clock",
            "entropy",
            "telemetry",
            "tls",
            "hex",
            "refusal",
            "gate",
            "template",
        ],
    ),
    (
        "saga",
        &[
            "store",
            "key",
            "record",
            "event",
            "clock",
            "entropy",
            "telemetry",
            "hex",
            "refusal",
            "engine",
            "gate",
            "route",
            "template",
            "http_message",
        ],
    ),
    ("config", &["key", "record", "event", "engine", "outbox", "saga", "tls", "template"]),
    (
        "proxy",
        &[
            "gate",
            "refusal",
            "forwarding",
            "http_message",
            "record",
            "clock",
            "entropy",
            "telemetry",
            "tls",
        ],
    ),
    (
        "layer",
        &[
            "refusal",
            "forwarding",
            "http_message",
            "key",
            "clock",
            "entropy",
            "telemetry",
            "record",
            "engine",
            "store",
            "route",
            "gate",
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
            "outbox",
            "saga",
            "engine",
            "record",
            "key",
            "clock",
            "config",
            "telemetry",
            "hex",
        ],
    ),
    ("cli", &["config", "admin", "app", "saga", "demo", "telemetry", "clock", "entropy"]),
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
            "outbox",
            "saga",
            "route",
            "gate",
            "config",
            "outbox",
            "proxy",
            "tls",
            "token",
            "layer",
            "read_model",
            "outbox",
            "admin",
            "demo",
        ],
    ),
    // The binary, which uses the library by its name.
    ("main", &["cli"]),
    // Declares the modules and uses no other.
    ("lib", &[]),
];

/// Longest file of the source, in lines; tests may be longer.
const LINES_MAX: usize = 500;

/// Returns the modules that a file uses and may not use, one sentence each.
fn trespasses(source: &Source) -> Vec<String> {
    let module = source.module();
    let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| *name == module) else {
        return vec![format!("{}: the module {module} is not in the table", source.path)];
    };
    modules_used_by(source)
        .into_iter()
        .filter(|used| *used != module && !allowed.contains(&used.as_str()))
        .map(|used| format!("{}: {module} may not use {used}", source.path))
        .collect()
}

/// Returns the product's own files, without their tests.
fn product() -> Vec<Source> {
    all_sources().into_iter().filter(|source| !source.is_test).collect()
}

/// Returns the files and lines with a word, without comments, string literals and inline tests.
fn lines_with(sources: &[Source], word: &str) -> Vec<String> {
    let found = |source: &Source| {
        let lines = source.code.lines().enumerate().filter(|(_, line)| line.contains(word));
        lines.map(|(index, _)| format!("{}:{}: {word}", source.path, index + 1)).collect::<Vec<_>>()
    };
    sources.iter().flat_map(found).collect()
}

#[test]
fn no_module_uses_a_module_that_it_may_not() {
    let trespasses: Vec<String> = product().iter().flat_map(trespasses).collect();
    assert!(trespasses.is_empty(), "\n{}", trespasses.join("\n"));
}

#[test]
fn the_sources_are_found() {
    let modules: BTreeSet<String> = product().iter().map(Source::module).collect();
    assert!(product().len() > 20, "only {} files were read", product().len());
    // Only the demo may be missing.
    let missing: Vec<_> = MAY_USE
        .iter()
        .map(|(room, _)| *room)
        .filter(|room| !modules.contains(*room) && *room != "demo")
        .collect();
    assert!(missing.is_empty(), "modules of the table that do not exist: {missing:?}");
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
        assert_eq!(found, ["src/engine/planted.rs: engine may not use store"], "{planted}");
    }
}

#[test]
fn an_innocent_line_is_not_a_trespass() {
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
fn no_code_panics_where_an_error_could_be_returned() {
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
fn the_rules_use_neither_clock_nor_network() {
    let engine: Vec<Source> =
        product().into_iter().filter(|source| source.module() == "engine").collect();
    let words = ["tokio", "hyper", "SystemTime", "Instant", "async "];
    let found: Vec<String> = words.iter().flat_map(|word| lines_with(&engine, word)).collect();
    assert!(!engine.is_empty() && found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn every_select_in_the_gate_is_biased() {
    // The random order of an unbiased select has no seed, and a simulation must be repeatable.
    let gate: Vec<Source> =
        product().into_iter().filter(|source| source.module() == "gate").collect();
    let selects: Vec<&str> =
        gate.iter().flat_map(|source| source.code.split("select! {").skip(1)).collect();
    assert!(!selects.is_empty(), "none was read");
    assert!(
        selects.iter().all(|select| select.trim_start().starts_with("biased;")),
        "a select! in src/gate is not biased"
    );
}

#[test]
fn every_file_opens_with_a_definition() {
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
