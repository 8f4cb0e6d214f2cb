//! Source files without comments, string literals and tests. This is not a parser: it only finds
//! where code ends and begins again. The planted trespasses test it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A file of `src`.
pub struct Source {
    /// From the repository's root, with `/`.
    pub path: String,
    /// As it is.
    pub text: String,
    /// The same without comments, texts and what is under `#[cfg(test)]`; blanks are in their
    /// place, so lines count.
    pub code: String,
    /// Whether it belongs to tests as a whole.
    pub is_test: bool,
}

impl Source {
    /// A file by its path and its text.
    pub fn new(path: &str, text: &str) -> Source {
        let code = without_tests(&blank(text)).0;
        Source { path: path.to_owned(), text: text.to_owned(), code, is_test: false }
    }

    /// Returns the top module of the file.
    pub fn module(&self) -> String {
        let inside = self.path.trim_start_matches("src/");
        inside.split('/').next().unwrap_or(inside).trim_end_matches(".rs").to_owned()
    }

    /// Returns the path of the module, without `crate`.
    pub fn module_path(&self) -> Vec<String> {
        let inside = self.path.trim_start_matches("src/").trim_end_matches(".rs");
        let inside = inside.strip_suffix("/mod").unwrap_or(inside);
        inside.split('/').map(str::to_owned).collect()
    }

    /// Where its child modules are.
    fn folder(&self) -> String {
        let stem = self.path.trim_end_matches(".rs");
        let is_own_folder = stem.ends_with("/mod") || stem == "src/lib" || stem == "src/main";
        if is_own_folder {
            stem.rsplit_once('/').map_or("", |(folder, _)| folder).to_owned()
        } else {
            stem.to_owned()
        }
    }
}

/// The repository's root.
pub fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All Rust files below a folder of the repository, with their texts, in order.
pub fn rust_files(folder: &str) -> Vec<(String, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut paths = Vec::new();
    walk(&repository().join(folder), &mut paths);
    paths.sort();
    let name =
        |path: &Path| path.strip_prefix(repository()).unwrap().to_str().unwrap().replace('\\', "/");
    paths.into_iter().map(|path| (name(&path), std::fs::read_to_string(&path).unwrap())).collect()
}

/// Returns all files of `src`. A file is a test if its module, or a module above it, is declared
/// under `#[cfg(test)]`.
pub fn all_sources() -> Vec<Source> {
    let mut sources: Vec<Source> =
        rust_files("src").iter().map(|(path, text)| Source::new(path, text)).collect();
    let tests: Vec<String> = sources
        .iter()
        .flat_map(|source| {
            let declared = without_tests(&blank(&source.text)).1;
            declared.into_iter().map(|module| format!("{}/{module}", source.folder()))
        })
        .collect();
    for source in &mut sources {
        source.is_test = tests.iter().any(|module| {
            source
                .path
                .strip_prefix(module.as_str())
                .is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
        });
    }
    sources
}

/// A path in the code of a file, from the crate's root.
pub struct CratePath {
    pub segments: Vec<String>,
    /// The name that an import gives it, or `*`; `None` for a path outside of imports.
    pub imported_as: Option<String>,
}

/// Returns the paths that a file's code names: after `crate::`, the crate's own name, `self::` or
/// `super::`, and all paths of imports.
pub fn paths(source: &Source) -> Vec<CratePath> {
    let words = words(&source.code);
    let module = source.module_path();
    let (mut found, mut at) = (Vec::new(), 0);
    while at < words.len() {
        let (last, next) = (at.checked_sub(1).map(|last| words[last].as_str()), words.get(at + 1));
        let is_rooted = matches!(words[at].as_str(), "crate" | "onceward" | "self" | "super")
            && last != Some("::")
            && next.is_some_and(|next| next == "::");
        let is_import = last == Some("use") && (is_name(&words[at]) || words[at] == "{");
        if is_rooted || is_import {
            at = read_path(&words, at, Vec::new(), is_import, &mut found);
        } else {
            at += 1;
        }
    }
    for path in &mut found {
        path.segments = from_root(&module, std::mem::take(&mut path.segments));
    }
    found
}

/// Reads a path, or each path of a group in braces. Returns where it ends.
fn read_path(
    words: &[String],
    mut at: usize,
    mut segments: Vec<String>,
    is_import: bool,
    found: &mut Vec<CratePath>,
) -> usize {
    loop {
        match words.get(at).map(String::as_str) {
            Some("{") => {
                at += 1;
                while let Some(word) = words.get(at) {
                    match word.as_str() {
                        "}" => return at + 1,
                        "," => at += 1,
                        _ => at = read_path(words, at, segments.clone(), is_import, found),
                    }
                }
                return at;
            }
            // `a::{self}` is `a`.
            Some("self") if !segments.is_empty() => {}
            Some(word) => segments.push(word.to_owned()),
            None => return at,
        }
        at += 1;
        let goes_on = words.get(at).is_some_and(|word| word == "::")
            && words.get(at + 1).is_some_and(|word| is_name(word) || word == "{" || word == "*");
        if goes_on {
            at += 1;
            continue;
        }
        let mut imported_as = segments.last().cloned().filter(|_| is_import);
        if is_import && words.get(at).is_some_and(|word| word == "as") {
            imported_as = words.get(at + 1).cloned();
            at += 2;
        }
        found.push(CratePath { segments, imported_as });
        return at;
    }
}

fn from_root(module: &[String], segments: Vec<String>) -> Vec<String> {
    let mut path = module.to_vec();
    let mut rest = segments.into_iter().peekable();
    while let Some(word) = rest.next_if(|word| matches!(word.as_str(), "self" | "super")) {
        if word == "super" {
            path.pop();
        }
    }
    if rest.next_if(|word| matches!(word.as_str(), "crate" | "onceward")).is_some() {
        path.clear();
    }
    path.extend(rest);
    path
}

fn is_name(word: &str) -> bool {
    word.starts_with(|c: char| c.is_alphanumeric() || c == '_')
}

/// Returns the top modules that a file's code names.
pub fn modules_used_by(source: &Source) -> BTreeSet<String> {
    paths(source).into_iter().filter_map(|path| path.segments.into_iter().next()).collect()
}

/// Names, `::`, and every other mark by itself.
fn words(code: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = code;
    while let Some(first) = rest.chars().next() {
        let is_name = |c: char| c.is_alphanumeric() || c == '_';
        let length = if is_name(first) {
            rest.find(|c: char| !is_name(c)).unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        if !first.is_whitespace() {
            words.push(rest[..length].to_owned());
        }
        rest = &rest[length..];
    }
    words
}

/// The code without what stands under `#[cfg(test)]`, and the modules that are declared there.
fn without_tests(code: &str) -> (String, Vec<String>) {
    // The second one is of the test suite for stores, which other crates can enable.
    const MARKS: [&str; 2] = ["#[cfg(test)]", "#[cfg(any(test,"];
    let mut kept = code.to_owned();
    let mut modules = Vec::new();
    let mut from = 0;
    while let Some(found) = MARKS.iter().filter_map(|mark| kept[from..].find(mark)).min() {
        let start = from + found;
        let end = start + item_end(&kept[start..]);
        let item = words(&kept[start..end]);
        if let Some(at) = item.iter().position(|word| word == "mod")
            && item.get(at + 2).is_some_and(|word| word == ";")
        {
            modules.push(item[at + 1].clone());
        }
        let blanks: String =
            kept[start..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        kept.replace_range(start..end, &blanks);
        from = start + blanks.len();
    }
    (kept, modules)
}

/// Where an item ends: after its `;`, or after the brace that closes its body.
fn item_end(code: &str) -> usize {
    let (mut braces, mut brackets) = (0_i32, 0_i32);
    let mut is_import = false;
    for (at, mark) in code.char_indices() {
        match mark {
            '(' | '[' => brackets += 1,
            ')' | ']' => brackets -= 1,
            '{' => {
                is_import |= braces == 0 && words(&code[..at]).contains(&"use".to_owned());
                braces += 1;
            }
            '}' => {
                braces -= 1;
                // The braces of an import are a group; it ends with its `;`.
                if braces == 0 && brackets == 0 && !is_import {
                    return at + 1;
                }
            }
            ';' if braces == 0 && brackets == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

/// The text with blanks in place of comments, texts and characters.
pub fn blank(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let follows_name = out.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let length = match first {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => comment_length(rest),
            '"' => text_length(rest),
            'r' | 'b' | 'c' if !follows_name => prefixed_length(rest),
            '\'' => character_length(rest),
            _ => 0,
        };
        if length == 0 {
            out.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            out.extend(rest[..length].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            rest = &rest[length..];
        }
    }
    out
}

/// The length of a block comment; they nest.
fn comment_length(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        match &text.as_bytes()[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

/// The length of a quoted text, escapes and all.
fn text_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    text.len()
}

/// The length of a text with a prefix (`r"`, `br#"`, `b"`, `b'`), or 0 where a name begins.
fn prefixed_length(text: &str) -> usize {
    let prefix = ["br", "cr", "r", "b", "c"]
        .into_iter()
        .find(|prefix| text.starts_with(prefix))
        .unwrap_or("");
    let quoted = &text[prefix.len()..];
    let hashes = quoted.len() - quoted.trim_start_matches('#').len();
    if prefix.ends_with('r') && quoted[hashes..].starts_with('"') {
        let end = format!("\"{}", "#".repeat(hashes));
        let open = prefix.len() + hashes + 1;
        return text[open..].find(&end).map_or(text.len(), |found| open + found + end.len());
    }
    match quoted.chars().next() {
        Some('"') => prefix.len() + text_length(quoted),
        Some('\'') if prefix == "b" => prefix.len() + character_length(quoted),
        _ => 0,
    }
}

/// The length of a character in quotes, or 0 for a lifetime.
fn character_length(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), Some(_)) => text[3..].find('\'').map_or(0, |found| 3 + found + 1),
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 0,
    }
}
