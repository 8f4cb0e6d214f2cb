//! Rules about words: one name for one type, and no word that has several meanings here.

use std::collections::BTreeMap;

use super::source::{Source, all_sources, blank};

/// Names that several modules use for their own type: each module has one set of settings.
const SHARED_NAMES: &[&str] = &["Settings"];

/// Words with too many meanings, in comments and identifiers.
const BANNED: &[&str] = &["told", "whose", "said", "says"];

/// Phrases that need a second reading, in comments. "There is none" is plain English.
const BANNED_PHRASES: &[&str] = &["is none", "are none"];

/// Types that must have a more specific name.
const BANNED_TYPES: &[&str] = &["Seen", "Told", "Said", "Asked"];

/// Returns the names of the types that a file declares for other modules.
fn public_types(source: &Source) -> Vec<String> {
    let declared = source.code.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (first, rest) = words.split_first()?;
        let rest = if first.starts_with("pub(in") && !first.ends_with(')') {
            rest.iter().position(|word| word.ends_with(')')).map(|end| &rest[end + 1..])?
        } else if first.starts_with("pub") {
            rest
        } else {
            return None;
        };
        let (kind, name) = (rest.first()?, rest.get(1)?);
        matches!(*kind, "struct" | "enum" | "trait" | "type" | "union").then(|| {
            name.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>()
        })
    });
    declared.collect()
}

/// Splits an identifier into its words, in lower case: `told_until` and `ToldUntil` have the same.
fn segments(identifier: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    for c in identifier.chars() {
        if c == '_' || c.is_uppercase() {
            words.push(String::new());
        }
        if c != '_'
            && let Some(last) = words.last_mut()
        {
            last.extend(c.to_lowercase());
        }
    }
    words
}

/// Returns the text of the comment on a line: the text that [`blank`] removes after `//`.
fn comment<'t>(line: &'t str, code: &str) -> &'t str {
    let at = line.match_indices("//").find(|(at, _)| code.get(*at..*at + 2) != Some("//"));
    let is_comment = |at: usize| code.get(at..).is_none_or(|rest| rest.trim().is_empty());
    at.filter(|(at, _)| is_comment(*at)).map_or("", |(at, _)| &line[at..])
}

/// Returns the banned words of a file, one sentence each.
fn banned_words(path: &str, text: &str) -> Vec<String> {
    let code = blank(text);
    let mut found = Vec::new();
    for (number, (line, code)) in text.lines().zip(code.lines()).enumerate() {
        let comment = comment(line, code).to_lowercase();
        let comment = comment.replace("there is none", "").replace("there are none", "");
        let comment_words = comment.split(|c: char| !c.is_alphanumeric());
        let identifiers = code.split(|c: char| !c.is_alphanumeric() && c != '_');
        let words = comment_words
            .map(str::to_owned)
            .chain(identifiers.clone().flat_map(segments))
            .filter(|word| BANNED.contains(&word.as_str()));
        let phrases = BANNED_PHRASES.iter().filter(|phrase| comment.contains(*phrase));
        let types = identifiers.filter(|name| BANNED_TYPES.contains(name));
        let faults = words.chain(phrases.map(|phrase| phrase.to_string()));
        for fault in faults.chain(types.map(str::to_owned)) {
            found.push(format!("{path}:{}: {fault}", number + 1));
        }
    }
    found
}

#[test]
fn a_type_name_stands_in_one_module() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for source in all_sources().into_iter().filter(|source| !source.is_test) {
        for name in public_types(&source) {
            places.entry(name).or_default().push(source.path.clone());
        }
    }
    assert!(places.len() > 100, "only {} types were found", places.len());
    let shared: Vec<_> = places
        .iter()
        .filter(|(name, paths)| paths.len() > 1 && !SHARED_NAMES.contains(&name.as_str()))
        .collect();
    assert!(shared.is_empty(), "one name for several types: {shared:#?}");
}

#[test]
fn words_with_several_meanings_are_not_used() {
    let found: Vec<String> = super::source::rust_files("src")
        .iter()
        .flat_map(|(path, text)| banned_words(path, text))
        .collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn a_planted_word_is_found() {
    for (planted, expected) in [
        ("// What is told.", "told"),
        ("let told = 1;", "told"),
        ("fn is_told_apart() {}", "told"),
        ("struct ToldUntil;", "told"),
        ("struct Seen;", "Seen"),
        ("/// That is none.", "is none"),
        ("let a = \"x\"; // whose", "whose"),
    ] {
        assert_eq!(banned_words("a.rs", planted), [format!("a.rs:1: {expected}")], "{planted}");
    }
    for innocent in ["let a = \"told\";", "let seen = 1;", "// untold stories", "fn retold() {}"] {
        assert!(banned_words("a.rs", innocent).is_empty(), "{innocent}");
    }
}

#[test]
fn the_names_of_public_types_are_found() {
    let text = "pub struct A(u8);\npub(super) enum B {}\npub(in crate::gate) trait C<T> {}\n\
                struct D;\npub fn e() {}\npub type F = u8;";
    assert_eq!(public_types(&Source::new("src/a.rs", text)), ["A", "B", "C", "F"]);
}

/// Columns of a line of comment.
const COLUMNS_MAX: usize = 100;

/// Returns the lines of comment in a file that are too long. A command to copy stays on one line.
fn long_comments(path: &str, text: &str) -> Vec<String> {
    let is_comment = |line: &str| line.trim_start().starts_with("//") && !line.contains("cargo ");
    let lines = text.lines().enumerate();
    let long = lines.filter(|(_, line)| is_comment(line) && line.chars().count() > COLUMNS_MAX);
    long.map(|(number, _)| format!("{path}:{}", number + 1)).collect()
}

#[test]
fn comments_have_at_most_100_columns() {
    let found: Vec<String> = ["src", "tests", "benches", "examples", "config"]
        .iter()
        .flat_map(|folder| super::source::rust_files(folder))
        .flat_map(|(path, text)| long_comments(&path, &text))
        .collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
    let long = format!("fn f() {{}}\n    /// {}\n", "x".repeat(COLUMNS_MAX));
    assert_eq!(long_comments("a.rs", &long), ["a.rs:2"]);
}
