//! The foldings of a path: all paths into which hops behind the gateway may change it.
//!
//! A hop may cut path parameters, resolve dot segments, merge slashes, treat `\` as `/`, decode
//! escapes, and end the path at a `;` or at a decoded `?`. It may do each of these at any place, in
//! any order, and more than once. A *reading* is the path as one such hop interprets it. There are
//! too many readings to list, so this module searches all of them together. It treats a path as a
//! row of *nodes*, one after each separator and one at the end. A reading is a way from the first
//! node to the last. A step between two nodes is one segment, which may span separators that only
//! some hops recognize (`%2F`, `\`). A reading can also cross an *erasable* span (`//`, `/./`,
//! `/x/../`) without a segment. A set of nodes is the bits of one word, so the work for each
//! pattern is bounded by the square of [`NODES_MAX`].

use crate::key::path::{Decoded, PathCase, ends_paths};

/// Most nodes of a path, including its end. A longer path is not searched, and its request is
/// refused if a route could be affected.
const NODES_MAX: usize = 64;

/// Longest path, in bytes, that is searched.
const PATH_BYTES_MAX: usize = 8192;

/// Most `;`, and most escaped characters that could end the path, in a searched path.
const PARAMETERS_MAX: usize = 64;

/// A route's pattern: decoded, split, and folded to the route's letter case.
#[derive(Debug, Clone)]
pub(super) struct Pattern(Vec<PatternPart>);

/// A segment of a pattern.
#[derive(Debug, Clone)]
enum PatternPart {
    Literal(Vec<u8>),
    /// `{name}` between two literals. Both may be empty.
    Parameter {
        before: Vec<u8>,
        after: Vec<u8>,
    },
    /// `{*name}` after a literal: the rest of the path.
    Rest {
        before: Vec<u8>,
    },
}

impl Pattern {
    /// Splits a pattern that `matchit` accepts.
    pub fn of(pattern: &str, case: PathCase) -> Pattern {
        let segments = pattern.trim_matches('/').split('/').filter(|segment| !segment.is_empty());
        Pattern(segments.map(|segment| PatternPart::of(segment, case)).collect())
    }
}

impl PatternPart {
    fn of(segment: &str, case: PathCase) -> PatternPart {
        let (mut texts, mut name) = (vec![String::new()], None);
        let mut chars = segment.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                // Doubled braces are literal.
                '{' | '}' if chars.next_if_eq(&c).is_some() => {
                    texts.last_mut().into_iter().for_each(|text| text.push(c))
                }
                '{' => {
                    name = Some(chars.by_ref().take_while(|c| *c != '}').collect::<String>());
                    texts.push(String::new());
                }
                c => texts.last_mut().into_iter().for_each(|text| text.push(c)),
            }
        }
        let mut decoded = texts.iter().map(|text| Decoded::of(text).fold_case(case).bytes);
        let before = decoded.next().unwrap_or_default();
        match name {
            None => PatternPart::Literal(before),
            Some(name) if name.starts_with('*') => PatternPart::Rest { before },
            Some(_) => PatternPart::Parameter { before, after: decoded.next().unwrap_or_default() },
        }
    }

    /// Returns whether the part matches a text.
    fn is(&self, text: &[u8]) -> bool {
        match self {
            PatternPart::Literal(literal) => text == literal,
            PatternPart::Parameter { before, after } => {
                // Most literals are empty, and `memcmp` can be slow for an empty text, which has no
                // real address.
                text.len() > before.len() + after.len()
                    && (before.is_empty() || text.starts_with(before))
                    && (after.is_empty() || text.ends_with(after))
            }
            PatternPart::Rest { before } => text.len() > before.len() && text.starts_with(before),
        }
    }
}

/// A set of nodes.
type Nodes = u64;

fn members(mut nodes: Nodes) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let first = (nodes != 0).then_some(nodes.trailing_zeros() as usize);
        nodes &= nodes.wrapping_sub(1);
        first
    })
}

/// All readings of one path, in one letter case if the upstream ignores letter case.
pub(super) struct Readings {
    path: Decoded,
    /// For each node but the first, the position of the separator before it; for the last node, the
    /// path's length.
    separators: Vec<usize>,
    /// Nodes after a separator that every hop recognizes.
    seen_by_all: Nodes,
    /// Positions where path parameters begin.
    parameters: Vec<usize>,
    /// Positions of escaped characters that end the path once they are decoded.
    path_ends: Vec<usize>,
    /// For each node, the nodes that a reading reaches by erasing everything in between. Includes
    /// the node itself.
    erasable: Vec<Nodes>,
    /// Nodes where the first segment can begin.
    first: Nodes,
}

impl Readings {
    /// Computes the readings of a path that begins with a slash; `None` if it is too long, or has
    /// too many separators or parameters.
    pub fn of(path: &str, case: PathCase) -> Option<Readings> {
        if path.len() > PATH_BYTES_MAX {
            return None;
        }
        let path = Decoded::of(path).fold_case(case);
        let is_separator = |at: &usize| matches!(path.bytes[*at], b'/' | b'\\');
        let mut separators: Vec<usize> = (1..path.bytes.len()).filter(is_separator).collect();
        separators.push(path.bytes.len());
        let last = separators.len();
        if last >= NODES_MAX {
            return None;
        }
        let is_slash =
            |at: usize| path.bytes.get(at).is_none_or(|byte| *byte == b'/' && path.literal[at]);
        let seen_by_all = (1..=last)
            .filter(|node| is_slash(separators[node - 1]))
            .fold(0, |set, node| set | 1 << node);
        let places_of =
            |is: fn(u8) -> bool| (0..path.bytes.len()).filter(|at| is(path.bytes[*at])).collect();
        let (parameters, path_ends): (Vec<usize>, Vec<usize>) =
            (places_of(|byte| byte == b';'), places_of(ends_paths));
        if parameters.len() > PARAMETERS_MAX || path_ends.len() > PARAMETERS_MAX {
            return None;
        }
        let erasable = vec![0; last + 1];
        let mut readings =
            Readings { path, separators, seen_by_all, parameters, path_ends, erasable, first: 0 };
        readings.find_erasable();
        readings.find_first();
        Some(readings)
    }

    /// Returns the node at the path's end.
    fn last(&self) -> usize {
        self.separators.len()
    }

    /// Returns the position where the text after a node begins.
    fn start(&self, node: usize) -> usize {
        node.checked_sub(1).map_or(1, |before| self.separators[before] + 1)
    }

    /// Returns the position where the text before a node ends.
    fn end(&self, node: usize) -> usize {
        self.separators[node - 1]
    }

    /// Returns the nodes where a segment that begins at this node can end: up to the next separator
    /// that every hop recognizes.
    fn next(&self, node: usize) -> impl Iterator<Item = usize> + '_ {
        let behind = self.seen_by_all.checked_shr(node as u32 + 1).unwrap_or(0);
        let count = if behind == 0 { 0 } else { behind.trailing_zeros() as usize + 1 };
        node + 1..=node + count
    }

    /// Returns the nodes to which a segment can lead, if one of the segment's readings satisfies
    /// the condition. The readings of a segment are its whole text and its text before a path
    /// parameter. A reader may also end the path at the parameter (Jetty before 9.3), or at a
    /// character that ends paths.
    fn after(&self, node: usize, holds: impl Fn(&[u8]) -> bool) -> Nodes {
        let start = self.start(node);
        let first_of = |cuts: &[usize]| {
            let behind = &cuts[cuts.partition_point(|at| *at < start)..];
            behind.iter().copied().find(|end| holds(&self.path.bytes[start..*end]))
        };
        let (first_cut, first_end) = (first_of(&self.parameters), first_of(&self.path_ends));
        let is_before = |cut: Option<usize>, end| cut.is_some_and(|cut| cut < end);
        let leads_to = |to: usize| {
            let end = self.end(to);
            let here = is_before(first_cut, end) || holds(&self.path.bytes[start..end]);
            let ends_the_path = is_before(first_cut, end) || is_before(first_end, end);
            Nodes::from(here) << to | Nodes::from(ends_the_path) << self.last()
        };
        self.next(node).fold(0, |set, to| set | leads_to(to))
    }

    fn after_text(&self, node: usize, text: &[u8]) -> Nodes {
        self.after(node, |read| read == text)
    }

    fn erased_after(&self, nodes: Nodes) -> Nodes {
        members(nodes).fold(0, |set, node| set | self.erasable[node])
    }

    /// Returns whether every hop treats the segment between two nodes as a dot segment, so that no
    /// later `..` can remove it.
    fn is_dot_segment(&self, from: usize, to: usize) -> bool {
        let span = self.start(from)..self.end(to);
        matches!(&self.path.bytes[span.clone()], b"." | b"..")
            && self.path.literal[span].iter().all(|literal| *literal)
    }

    /// Finds erasable spans: an empty segment, a `.`, and a segment followed by `..`.
    fn find_erasable(&mut self) {
        let after_dots: Vec<Nodes> =
            (0..=self.last()).map(|node| self.after_text(node, b"..")).collect();
        for node in (0..=self.last()).rev() {
            let named = self
                .next(node)
                .filter(|to| !self.is_dot_segment(node, *to))
                .fold(0, |set, to| set | 1 << to);
            let before_dots = members(named).fold(0, |set, to| set | self.erasable[to]);
            let taken_away = members(before_dots).fold(0, |set, at| set | after_dots[at]);
            let erased = self.after_text(node, b"") | self.after_text(node, b".") | taken_away;
            self.erasable[node] = 1 << node | self.erased_after(erased);
        }
    }

    /// Finds where the first segment can begin: after erasable spans, after `..` at the root, and
    /// after `//host`, which URL parsers treat as an authority (RFC 3986, section 4.2; WHATWG URL,
    /// "authority state").
    fn find_first(&mut self) {
        let (mut first, mut hosts) = (self.erasable[0], 0);
        for node in 0..self.last() {
            if first & 1 << node != 0 {
                let found = self.erased_after(self.after_text(node, b"")) & !hosts;
                hosts |= found;
                let behind_host =
                    members(found).fold(0, |set, host| set | self.after(host, |_| true));
                first |= self.erased_after(behind_host | self.after_text(node, b".."));
            }
        }
        self.first = first;
    }

    /// Returns the text after a node, without a trailing slash.
    fn rest(&self, node: usize) -> &[u8] {
        let ends_with_slash =
            self.path.bytes.ends_with(b"/") && self.path.literal.last() == Some(&true);
        let end = self.path.bytes.len() - usize::from(ends_with_slash);
        self.path.bytes.get(self.start(node)..end).unwrap_or_default()
    }

    /// Returns whether some reading matches a pattern.
    pub fn some_match(&self, pattern: &Pattern) -> bool {
        let mut nodes = self.first;
        for part in &pattern.0 {
            if let PatternPart::Rest { .. } = part {
                return members(nodes).any(|node| part.is(self.rest(node)));
            }
            nodes = self.erased_after(
                members(nodes).fold(0, |set, node| set | self.after(node, |text| part.is(text))),
            );
        }
        nodes & 1 << self.last() != 0
    }

    /// Returns whether some reading doesn't match a pattern that matches the path as received.
    pub fn some_differ(&self, pattern: &Pattern) -> bool {
        let last = self.last();
        let mut nodes = self.first;
        for part in &pattern.0 {
            if nodes & 1 << last != 0 {
                return true;
            }
            if let PatternPart::Rest { before } = part {
                let is_other = |node| {
                    // A reading that ends right after the literal does not match.
                    let behind_literal = self.erased_after(self.after_text(node, before));
                    behind_literal & 1 << last != 0
                        || self.after(node, |text| !text.starts_with(before)) != 0
                };
                return members(nodes).any(is_other);
            }
            if members(nodes).any(|node| self.after(node, |text| !part.is(text)) != 0) {
                return true;
            }
            nodes = self.erased_after(
                members(nodes).fold(0, |set, node| set | self.after(node, |text| part.is(text))),
            );
        }
        // A reading with more than one slash after the pattern does not match it.
        members(nodes).any(|node| node != last && self.start(node) != self.path.bytes.len())
    }
}
