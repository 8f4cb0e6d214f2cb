//! No circles inside modules: if a module uses a sibling, the sibling doesn't use it, not even
//! through others. Otherwise neither of them can be read, tested or moved alone.

use std::collections::{BTreeMap, BTreeSet};

use super::source::{Source, all_sources, paths};

/// Which siblings each child of a module uses, with the file that shows it.
type Uses = BTreeMap<String, BTreeMap<String, String>>;

/// Returns the uses among the children of each module, by the module's path.
fn uses_by_parent(sources: &[Source]) -> BTreeMap<Vec<String>, Uses> {
    let modules: BTreeSet<Vec<String>> = sources.iter().map(Source::module_path).collect();
    let exports: BTreeMap<Vec<String>, Vec<String>> = sources.iter().flat_map(exports).collect();
    let mut found: BTreeMap<Vec<String>, Uses> = BTreeMap::new();
    for source in sources {
        let from = source.module_path();
        for path in paths(source) {
            let to = declaring_module(path.segments, &modules, &exports);
            let Some(to) = to else { continue };
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

/// Returns the items that a module imports from its children: the item's path through the module,
/// and its path through the child. Children can use the private imports of their parent, too.
fn exports(source: &Source) -> Vec<(Vec<String>, Vec<String>)> {
    let module = source.module_path();
    let exported = paths(source).into_iter().filter_map(|path| {
        let through: Vec<String> = module.iter().cloned().chain([path.imported_as?]).collect();
        let is_of_child = path.segments.starts_with(&module) && path.segments != through;
        is_of_child.then_some((through, path.segments))
    });
    exported.collect()
}

/// Returns a sentence for each import that hides the names of siblings: of everything in a module
/// of the same top module, or of a parent as a whole.
fn hidden_names(sources: &[Source]) -> Vec<String> {
    let modules: BTreeSet<Vec<String>> = sources.iter().map(Source::module_path).collect();
    let mut found = Vec::new();
    for source in sources {
        let module = source.module_path();
        let hides = |path: &[String]| match path {
            [of @ .., last] if last == "*" => of.first() == module.first() && modules.contains(of),
            _ => !path.is_empty() && path.len() < module.len() && module.starts_with(path),
        };
        let imports = paths(source).into_iter().filter(|path| path.imported_as.is_some());
        found.extend(
            imports
                .filter(|path| hides(&path.segments))
                .map(|path| format!("{}: use {}", source.path, path.segments.join("::"))),
        );
    }
    found
}

/// Returns the path of the module that declares what a path names.
fn declaring_module(
    mut path: Vec<String>,
    modules: &BTreeSet<Vec<String>>,
    exports: &BTreeMap<Vec<String>, Vec<String>>,
) -> Option<Vec<String>> {
    /// More exports of exports than any item has.
    const STEPS_MAX: usize = 8;
    for _ in 0..STEPS_MAX {
        let length = (1..=path.len()).rev().find(|length| {
            modules.contains(&path[..*length]) || exports.contains_key(&path[..*length])
        });
        let rest = path.split_off(length?);
        if modules.contains(&path) {
            return Some(path);
        }
        path = exports[&path].iter().cloned().chain(rest).collect();
    }
    None
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
    let hidden = hidden_names(&product);
    assert!(hidden.is_empty(), "import each name by itself:\n{}", hidden.join("\n"));
}

#[test]
fn the_uses_among_siblings_are_found() {
    let product: Vec<Source> = all_sources().into_iter().filter(|source| !source.is_test).collect();
    let found = uses_by_parent(&product);
    for (module, count_min) in [("gate", 50), ("store", 30), ("config", 30), ("engine", 20)] {
        let count: usize = found[&vec![module.to_owned()]].values().map(BTreeMap::len).sum();
        assert!(count >= count_min, "{module}: only {count} uses were found");
    }
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
        ("use super::Renamed;", "use crate::m::A as Other;"),
        ("fn f() { use super::bb::run; }", "fn f() { super::Private::new::<super::A>() }"),
    ] {
        let parent = "mod a; mod b; pub use a::A; pub(crate) use b::{self as bb, B};\n\
                      pub use b::inner::Deep as Renamed; use self::a::Private;";
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

#[test]
fn imports_that_hide_the_names_of_siblings_are_found() {
    let hidden = |text| {
        let files = [("src/m.rs", ""), ("src/m/n.rs", ""), ("src/m/b.rs", ""), ("src/o.rs", "")];
        let files = files.into_iter().chain([("src/m/n/a.rs", text)]);
        hidden_names(&files.map(|(path, text)| Source::new(path, text)).collect::<Vec<_>>())
    };
    for (text, path) in [
        ("use super::*;", "m::n::*"),
        ("use super::super::*;", "m::*"),
        ("use crate::m::{c, b::*};", "m::b::*"),
        ("use crate::m;", "m"),
        ("use crate::m::{self, b};", "m"),
        ("use crate::m::n as o;", "m::n"),
    ] {
        assert_eq!(hidden(text), [format!("src/m/n/a.rs: use {path}")], "{text}");
    }
    for text in ["use super::super::b;", "use crate::o::*;", "use crate::m::{b, N};", "use m::*;"] {
        assert!(hidden(text).is_empty(), "{text}");
    }
}
