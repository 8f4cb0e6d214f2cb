//! Equalities with numbers such as `1.5` in templates.
//!
//! Danger: a number that keeps its digits is never equal to a floating-point number of the
//! language, and no use of it can be noted then. So a template with such an equality is refused.

/// Returns the line of an equality with a number that has a point, and without the filter `float`.
/// Lines count from 1.
pub(super) fn point_equality(source: &str) -> Option<usize> {
    let starts = source.match_indices("{{").chain(source.match_indices("{%"));
    let is_faulty = |at: usize| {
        let code = &source[at + 2..];
        let ends = [code.find("}}"), code.find("%}")];
        let end = ends.into_iter().flatten().min().unwrap_or(code.len());
        is_point_equality(&without_texts(&code[..end]))
    };
    let at = starts.map(|(at, _)| at).filter(|at| is_faulty(*at)).min()?;
    Some(1 + source[..at].matches('\n').count())
}

fn is_point_equality(code: &str) -> bool {
    let has_point = |bytes: &[u8]| matches!(bytes, [whole, b'.', part] if whole.is_ascii_digit() && part.is_ascii_digit());
    ["==", "!=", " in "].iter().any(|operator| code.contains(operator))
        && code.as_bytes().windows(3).any(has_point)
        && !code.contains("float")
}

/// Returns code without its string literals.
fn without_texts(code: &str) -> String {
    let (mut rest, mut quote, mut is_escaped) = (String::with_capacity(code.len()), None, false);
    for char in code.chars() {
        match quote {
            None if matches!(char, '"' | '\'') => quote = Some(char),
            None => rest.push(char),
            Some(_) if is_escaped => is_escaped = false,
            Some(_) if char == '\\' => is_escaped = true,
            Some(open) if char == open => quote = None,
            Some(_) => {}
        }
    }
    rest
}
