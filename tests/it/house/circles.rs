//! No circles inside modules: if a module uses a sibling, the sibling doesn't use it, not even
//! through others. Otherwise neither of them can be read, tested or moved alone.

use std::collections::{BTreeMap, BTreeSet};

use super::source::{Source, absolute_paths, all_sources};

/// Which siblings each child of a module uses, with the file that shows it.
type Uses = BTreeMap<String, BTreeMap<String, String>>;

/// Returns the uses among the children of each module, by the module's path.
fn uses_by_parent(sources: &[Source]) -> BTreeMap<Vec<String>, Uses> {
    let modules: BTreeSet<Vec<String>> = sources.iter().map(Source::module_path).collect();
    let exports: BTreeMap<Vec<String>, Vec<String>> = sources.iter().flat_map(exports).collect();
    let mut found: BTreeMap<Vec<String>, Uses> = BTreeMap::new();
    for source in sources {
        let from = source.module_path();
        for path in absolute_paths(source) {
            let Some(to) = declaring_module(&path, &modules, &exports) else { continue };
            let common = from.iter().zip(&to).take_while(|(one, other)| one == other).count();
            // A parent may use its children, and children may use what their parent declares.
            let (Some(user), Some(used)) = (from.get(common), to.get(common)) else { continue };
            let uses = found.entry(from[..common].to_vec()).or_default();
            let shown = uses.entry(user.clone()).or_default();
            shown.entry(used.clone()).or_insert_with(|| source.path.clone());
        }
    }
    found
}

/// Returns the items that a module exports from its children: the item's path through the module,
/// and its path through the child.
fn exports(source: &Source) -> Vec<(Vec<String>, Vec<String>)> {
    let module = source.module_path();
    let exported = source.exported_paths().into_iter().filter_map(|path| {
        let name = path.last()?.clone();
        let through = module.iter().cloned().chain([name]).collect();
        let declared = module.iter().cloned().chain(path).collect();
        Some((through, declared))
    });
    exported.collect()
}

/// Returns the path of the module that declares what a path names.
fn declaring_module(
    path: &[String],
    modules: &BTreeSet<Vec<String>>,
    exports: &BTreeMap<Vec<String>, Vec<String>>,
) -> Option<Vec<String>> {
    /// More exports of exports than any item has.
    const STEPS_MAX: usize = 8;
    let mut path = path.to_vec();
    for _ in 0..STEPS_MAX {
        let exported = (1..=path.len()).rev().find(|length| exports.contains_key(&path[..*length]));
        let Some(length) = exported else { break };
        let rest = path.split_off(length);
        path = exports[&path].iter().cloned().chain(rest).collect();
    }
    let length = (1..=path.len()).rev().find(|length| modules.contains(&path[..*length]))?;
    path.truncate(length);
    Some(path)
}

/// Returns the children that `from` uses, directly or through others.
fn reached(uses: &Uses, from: &str) -> BTreeSet<String> {
    let (mut reached, mut open) = (BTreeSet::new(), vec![from.to_owned()]);
    while let Some(user) = open.pop() {
        let used = uses.get(&user).into_iter().flat_map(BTreeMap::keys);
        open.extend(used.filter(|used| reached.insert((*used).clone())).cloned());
    }
    reached
}

/// Returns a sentence for each use that is part of a circle.
fn circles(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for (parent, uses) in uses_by_parent(sources) {
        for (user, used) in &uses {
            for (sibling, file) in used {
                if reached(&uses, sibling).contains(user) {
                    let parent = parent.join("::");
                    found.push(format!("{parent}: {user} uses {sibling} in a circle ({file})"));
                }
            }
        }
    }
    found
}

#[test]
fn no_module_uses_a_sibling_that_uses_it() {
    let product: Vec<Source> = all_sources().into_iter().filter(|source| !source.is_test).collect();
    let circles = circles(&product);
    assert!(circles.is_empty(), "\n{}", circles.join("\n"));
}

/// Returns the circles among files with these texts.
fn planted(files: &[(&str, &str)]) -> Vec<String> {
    let sources: Vec<Source> = files.iter().map(|(path, text)| Source::new(path, text)).collect();
    circles(&sources)
}

#[test]
fn a_circle_is_found_however_the_sibling_is_named() {
    for (one, other) in [
        ("use super::b::B;", "use super::a::A;"),
        ("use crate::m::b::B;", "fn f(a: super::a::A) {}"),
        ("use super::{b::{B, C}, x};", "use crate::m::{x, a};"),
        ("use super::B;", "use super::A;"),
        ("use crate::m::B;", "use crate::{m::A, n};"),
    ] {
        let parent = "mod a; mod b; pub use a::A; pub(crate) use b::{self as bb, B};";
        let files = [("src/m/mod.rs", parent), ("src/m/a.rs", one), ("src/m/b.rs", other)];
        let expected =
            ["m: a uses b in a circle (src/m/a.rs)", "m: b uses a in a circle (src/m/b.rs)"];
        assert_eq!(planted(&files), expected, "{one} {other}");
    }
}

#[test]
fn a_circle_of_three_is_found_and_one_of_grandchildren() {
    let three = [
        ("src/m.rs", ""),
        ("src/m/a.rs", "use super::b::B;"),
        ("src/m/b/mod.rs", ""),
        ("src/m/b/inner.rs", "use super::super::c::C;"),
        ("src/m/c.rs", "use super::a::A;"),
    ];
    assert_eq!(planted(&three).len(), 3);
    let below = [
        ("src/m/n/mod.rs", ""),
        ("src/m/n/a.rs", "use super::b::B;"),
        ("src/m/n/b.rs", "use crate::m::n::a::A;"),
    ];
    assert_eq!(planted(&below)[0], "m::n: a uses b in a circle (src/m/n/a.rs)");
}

#[test]
fn parents_comments_tests_and_one_way_uses_are_no_circles() {
    let files = [
        ("src/m/mod.rs", "mod a; mod b; pub struct P; fn f() { a::f(); b::f(); }"),
        ("src/m/a.rs", "use super::{P, b::B}; use crate::n::N;"),
        ("src/m/b.rs", "// use super::a::A;\n#[cfg(test)]\nmod tests { use super::super::a::A; }"),
        ("src/n.rs", ""),
    ];
    assert_eq!(planted(&files), Vec::<String>::new());
}
