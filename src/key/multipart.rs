//! Hashes forms (`multipart/form-data`, RFC 7578) by their parts, because a retry sends the same
//! form with another boundary.
//!
//! Danger: two different forms with the same hash would share an answer, and parsers of forms are
//! lenient in different ways. So only forms that all parsers interpret equally are compared by
//! parts: nothing before the first boundary or after the last, every line ends with CR LF, every
//! part has exactly one name, and the boundary appears nowhere else. All other bodies are compared
//! as bytes.

use memchr::memmem;

use super::PartHasher;

/// Most parts that are compared: more than a payment form has. A body with more parts is compared
/// as bytes.
pub const PARTS_MAX: usize = 1000;

/// Largest header block of a part, in bytes. A body with a larger block is compared as bytes.
const PART_HEAD_MAX: usize = 8 * 1024;

/// Most fields of a part: `Content-Disposition`, `Content-Type`, and some that old clients add.
const PART_FIELDS_MAX: usize = 8;

/// Most parameters of a `Content-Disposition`: `name`, `filename`, `filename*`, and some reserve.
const PARAMETERS_MAX: usize = 8;

/// Longest boundary (RFC 2046, section 5.1.1), in bytes.
const BOUNDARY_MAX: usize = 70;

/// Returns the boundary of a `Content-Type`, if it is the type of a form and has a boundary.
pub fn form_boundary(content_type: &str) -> Option<&str> {
    let (essence, parameters) = content_type.split_once(';')?;
    if !essence.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    let mut boundary = None;
    for parameter in parameters.split(';').map(str::trim) {
        let (name, value) = parameter.split_once('=')?;
        if name.eq_ignore_ascii_case("boundary") && boundary.replace(value).is_some() {
            return None;
        }
    }
    let boundary = boundary?;
    // A quoted boundary may contain more characters than a token. If the split above has cut the
    // boundary at a `;`, the boundary has no closing quote.
    let boundary = match boundary.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"')?,
        None => boundary,
    };
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"'()+_,-./:=? ".contains(&byte);
    let fits = (1..=BOUNDARY_MAX).contains(&boundary.len()) && !boundary.ends_with(' ');
    (fits && boundary.bytes().all(is_plain)).then_some(boundary)
}

/// Adds the parts of a form to a hash, in order.
///
/// Returns `false`, and adds nothing, if parsers could interpret the body differently.
pub(super) fn hash_form(hasher: &mut PartHasher, body: &[u8], boundary: &str) -> bool {
    let Some(parts) = parts(body, boundary) else { return false };
    hasher.part(b"form").part(&(parts.len() as u64).to_be_bytes());
    for part in parts {
        hasher.part(&(part.disposition.len() as u64).to_be_bytes());
        for (name, value) in part.disposition {
            hasher.part(name.as_bytes()).part(value);
        }
        hasher.part(&(part.fields.len() as u64).to_be_bytes());
        for (name, value) in part.fields {
            hasher.part(name.as_bytes()).part(value);
        }
        hasher.part(part.content);
    }
    true
}

/// One part of a form.
struct FormPart<'a> {
    /// Parameters of `Content-Disposition`, by name: `name`, `filename`.
    disposition: Vec<(String, &'a [u8])>,
    /// Other fields, by name: `content-type`.
    fields: Vec<(String, &'a [u8])>,
    content: &'a [u8],
}

fn parts<'a>(body: &'a [u8], boundary: &str) -> Option<Vec<FormPart<'a>>> {
    let delimiter = format!("\r\n--{boundary}");
    // The first boundary is at the very beginning, without a line end before it.
    let mut rest = body.strip_prefix(&delimiter.as_bytes()[2..])?;
    let finder = memmem::Finder::new(delimiter.as_bytes());
    // Some parsers also accept a boundary that is not on a line of its own.
    let lookalike = memmem::Finder::new(&delimiter.as_bytes()[2..]);
    let mut parts = Vec::new();
    loop {
        if let Some(end) = rest.strip_prefix(b"--") {
            return (matches!(end, b"" | b"\r\n") && !parts.is_empty()).then_some(parts);
        }
        if parts.len() == PARTS_MAX {
            return None;
        }
        let part = rest.strip_prefix(b"\r\n")?;
        let end = finder.find(part)?;
        let (part, behind) = part.split_at(end);
        if lookalike.find(part).is_some() {
            return None;
        }
        parts.push(read_part(part)?);
        rest = &behind[delimiter.len()..];
    }
}

fn read_part(part: &[u8]) -> Option<FormPart<'_>> {
    let end = memmem::find(part, b"\r\n\r\n")?;
    if end > PART_HEAD_MAX {
        return None;
    }
    let (head, content) = (&part[..end], &part[end + 4..]);
    let (mut disposition, mut fields) = (None, Vec::new());
    for line in Lines(Some(head)) {
        let at = memchr::memchr(b':', line)?;
        let (name, value) = (&line[..at], line[at + 1..].trim_ascii());
        let is_control = |byte: &u8| byte.is_ascii_control() && *byte != b'\t';
        if !is_token(name) || value.iter().any(is_control) || fields.len() == PART_FIELDS_MAX {
            return None;
        }
        let name = std::str::from_utf8(name).ok()?.to_ascii_lowercase();
        if name != "content-disposition" {
            fields.push((name, value));
        } else if disposition.replace(read_disposition(value)?).is_some() {
            return None;
        }
    }
    sorted_and_distinct(&mut fields).then_some(())?;
    Some(FormPart { disposition: disposition?, fields, content })
}

/// The lines of a part's header block, without CR LF.
struct Lines<'a>(Option<&'a [u8]>);

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = self.0.take()?;
        match memmem::find(rest, b"\r\n") {
            Some(end) => {
                self.0 = Some(&rest[end + 2..]);
                Some(&rest[..end])
            }
            None => Some(rest),
        }
    }
}

/// Parses `form-data; name="a"; filename="b"`. A backslash is a plain character, as in browsers. A
/// backslash before a quote is ambiguous, so the result is `None`.
fn read_disposition(value: &[u8]) -> Option<Vec<(String, &[u8])>> {
    const KIND: &[u8] = b"form-data";
    let (kind, mut rest) = value.split_at_checked(KIND.len())?;
    if !kind.eq_ignore_ascii_case(KIND) {
        return None;
    }
    let mut parameters = Vec::new();
    while !rest.is_empty() {
        rest = rest.trim_ascii_start().strip_prefix(b";")?.trim_ascii_start();
        let equals = memchr::memchr(b'=', rest)?;
        let name = &rest[..equals];
        rest = &rest[equals + 1..];
        let value;
        if let Some(quoted) = rest.strip_prefix(b"\"") {
            let end = memchr::memchr(b'"', quoted)?;
            value = &quoted[..end];
            rest = &quoted[end + 1..];
            if value.ends_with(b"\\") {
                return None;
            }
        } else {
            let end = memchr::memchr2(b';', b' ', rest).unwrap_or(rest.len());
            (value, rest) = rest.split_at(end);
            if !is_token(value) {
                return None;
            }
        }
        if !is_token(name) || parameters.len() == PARAMETERS_MAX {
            return None;
        }
        parameters.push((std::str::from_utf8(name).ok()?.to_ascii_lowercase(), value));
    }
    let is_named = parameters.iter().any(|(name, _)| name == "name");
    (sorted_and_distinct(&mut parameters) && is_named).then_some(parameters)
}

/// Sorts by name. Returns whether all names are distinct.
fn sorted_and_distinct(fields: &mut [(String, &[u8])]) -> bool {
    fields.sort_by(|(a, _), (b, _)| a.cmp(b));
    fields.windows(2).all(|pair| pair[0].0 != pair[1].0)
}

/// Returns whether the bytes are a token (RFC 9110, section 5.6.2).
fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty()
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::key::{BodyHash, Fingerprint, fingerprint};

    fn by_parts(body: &str, boundary: &str) -> Fingerprint {
        let body = Bytes::copy_from_slice(body.as_bytes());
        fingerprint("POST", "/", None, &body, BodyHash::Form { boundary })
    }

    fn as_bytes(body: &str) -> Fingerprint {
        fingerprint("POST", "/", None, &Bytes::copy_from_slice(body.as_bytes()), BodyHash::Raw)
    }

    /// A form with boundary `b`, from the headers and contents of its parts.
    fn form(parts: &[(&str, &str)]) -> String {
        let part = |(head, content): &(&str, &str)| format!("--b\r\n{head}\r\n\r\n{content}\r\n");
        parts.iter().map(part).collect::<String>() + "--b--\r\n"
    }

    const AMOUNT: (&str, &str) = ("Content-Disposition: form-data; name=\"amount\"", "1000");
    const FILE: (&str, &str) = (
        "Content-Disposition: form-data; name=\"file\"; filename=\"a.pdf\"\r\nContent-Type: \
         application/pdf",
        "%PDF\r\n--x",
    );

    #[test]
    fn a_retry_with_another_boundary_is_the_same_form() {
        let first = form(&[AMOUNT, FILE]);
        let again = first.replace("--b", "------WebKitFormBoundaryX");
        assert_eq!(by_parts(&first, "b"), by_parts(&again, "----WebKitFormBoundaryX"));
        assert_ne!(by_parts(&first, "b"), as_bytes(&first), "it is not compared as bytes");
        let respelt = first
            .replace("form-data; name=\"amount\"", "Form-Data;name=amount")
            .replace("Content-Type: application/pdf", "content-type:application/pdf");
        assert_eq!(by_parts(&first, "b"), by_parts(&respelt, "b"));
        let (disposition, media) = FILE.0.split_once("\r\n").unwrap();
        let turned = form(&[AMOUNT, (&format!("{media}\r\n{disposition}"), FILE.1)]);
        assert_eq!(by_parts(&first, "b"), by_parts(&turned, "b"));
    }

    #[test]
    fn whatever_a_reader_could_act_on_counts() {
        let file = |old: &str, new: &str| form(&[AMOUNT, (&FILE.0.replace(old, new), FILE.1)]);
        let all = [
            form(&[AMOUNT, FILE]),
            form(&[FILE, AMOUNT]),
            form(&[AMOUNT]),
            form(&[AMOUNT, AMOUNT, FILE]),
            form(&[(AMOUNT.0, "1001"), FILE]),
            form(&[(AMOUNT.0, "1000\r\n"), FILE]),
            form(&[(AMOUNT.0, ""), FILE]),
            file("\"file\"", "\"fil\""),
            file("a.pdf", "b.pdf"),
            file("; filename=\"a.pdf\"", ""),
            file("application/pdf", "text/plain"),
            file("\r\nContent-Type: application/pdf", ""),
            file("application/pdf", "application/pdf\r\nContent-Transfer-Encoding: base64"),
            file("; filename=\"a.pdf\"", "; filename=\"a.pdf\"; filename*=UTF-8''b.pdf"),
        ];
        for (n, a) in all.iter().enumerate() {
            assert_ne!(by_parts(a, "b"), as_bytes(a), "{a}: compared by its parts");
            all[n + 1..]
                .iter()
                .for_each(|b| assert_ne!(by_parts(a, "b"), by_parts(b, "b"), "{a}\n---\n{b}"));
        }
    }

    #[test]
    fn what_readers_could_read_differently_is_compared_as_bytes() {
        let good = form(&[AMOUNT, FILE]);
        let swap = |old: &str, new: &str| good.replacen(old, new, 1);
        for odd in [
            String::new(),
            "--b--\r\n".to_owned(),
            format!("preamble\r\n{good}"),
            format!("\r\n{good}"),
            format!("{good}epilogue"),
            good.replace("--b--\r\n", ""),
            good.replace("\r\n", "\n"),
            swap("--b\r\n", "--b \r\n"),
            swap("--b\r\n", "--bb\r\n"),
            swap("1000", "--b"),
            swap("1000", "1\n--b\nx"),
            swap("1000", "1\r\n--bx"),
            swap("\r\n\r\n1000", "\r\n1000"),
            swap("\r\n\r\n1000", "\r\n folded\r\n\r\n1000"),
            swap("Content-Disposition:", "Content-Disposition :"),
            swap("Content-Disposition", "X-Disposition"),
            swap("form-data", "attachment"),
            swap("name=\"amount\"", "name=\"amount\"; name=\"tip\""),
            swap("name=\"amount\"", "name=\"a\\\"mount\""),
            swap("name=\"amount\"", "name=\"amount"),
            swap("name=\"amount\"", "filename=\"amount\""),
            swap("name=\"amount\"", "name=\"am\0ount\""),
            swap("name=\"amount\"", "name=a\"b"),
            swap("name=\"amount\"", "name=\"amount\"x"),
            swap("application/pdf", "application/pdf\r\nContent-Type: text/plain"),
            swap("application/pdf", "application/pdf\r\nX Y: z"),
            swap("application/pdf", "application/pdf\r\nX: a\0b"),
            swap("name=\"amount\"", "name=\"amount\"; file name=\"a\""),
            with_fields(PART_FIELDS_MAX + 1),
            with_parameters(PARAMETERS_MAX + 1),
            with_head(8 * 1024 + 1),
            form(&vec![AMOUNT; PARTS_MAX + 1]),
        ] {
            assert_eq!(by_parts(&odd, "b"), as_bytes(&odd), "{odd:?}");
        }
        let most = [
            form(&vec![AMOUNT; PARTS_MAX]),
            with_fields(PART_FIELDS_MAX),
            with_parameters(PARAMETERS_MAX),
            with_head(8 * 1024),
            swap("application/pdf", "application/pdf;\tv=1"),
        ];
        most.iter().for_each(|most| assert_ne!(by_parts(most, "b"), as_bytes(most)));
    }

    /// A form with one part and `count` fields besides its disposition.
    fn with_fields(count: usize) -> String {
        form(&[(
            &(0..count).fold(AMOUNT.0.to_owned(), |head, n| format!("{head}\r\nX-{n}: x")),
            "1",
        )])
    }

    /// A form with one part and `count` parameters in its disposition.
    fn with_parameters(count: usize) -> String {
        form(&[(&(1..count).fold(AMOUNT.0.to_owned(), |head, n| format!("{head}; x{n}=x")), "1")])
    }

    /// A form with one part and a header block of `bytes` bytes.
    fn with_head(bytes: usize) -> String {
        let head = format!("{}\r\nX: ", AMOUNT.0);
        let rest = "x".repeat(bytes - head.len());
        form(&[(&(head + &rest), "1")])
    }

    #[test]
    fn a_boundary_is_read_from_the_field_or_the_body_is_no_form() {
        for (field, boundary) in [
            ("multipart/form-data; boundary=b", Some("b")),
            (
                "Multipart/Form-Data;charset=utf-8;BOUNDARY=\"a b'()+_,-./:=?c\"",
                Some("a b'()+_,-./:=?c"),
            ),
            ("multipart/form-data", None),
            ("multipart/form-data; boundary=", None),
            ("multipart/form-data; boundary=\"b", None),
            ("multipart/form-data; boundary=\"b;c\"", None),
            ("multipart/form-data; boundary=b; boundary=c", None),
            ("multipart/form-data; boundary=\"b \"", None),
            ("multipart/form-data; boundary=b\u{e9}", None),
            ("multipart/mixed; boundary=b", None),
        ] {
            assert_eq!(form_boundary(field), boundary, "{field}");
        }
        let long = |length: usize| {
            form_boundary(&format!("multipart/form-data; boundary={}", "x".repeat(length)))
                .is_some()
        };
        assert!(long(BOUNDARY_MAX) && !long(BOUNDARY_MAX + 1));
    }
}
