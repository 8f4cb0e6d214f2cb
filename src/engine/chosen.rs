//! Chosen fields: members of bodies by which operators find an operation, such as an order number.
//!
//! Danger: the event log stores them in plain text. So the gateway takes only configured members,
//! only short values, and never a whole card number.

use std::collections::BTreeMap;

use crate::key::{Document, Pointer};

/// Most chosen fields of one route: each is written with every operation, and is indexed for
/// searches.
pub const CHOSEN_MAX: usize = 8;

/// Longest value, in bytes. Longer values are left out: a truncated reference would find the wrong
/// operation.
pub const CHOSEN_BYTES_MAX: usize = 128;

/// Number of digits of a card number (ISO/IEC 7812-1).
const CARD_DIGITS: std::ops::RangeInclusive<usize> = 13..=19;

/// Number of last digits that are kept.
const CARD_DIGITS_SHOWN: usize = 4;

/// The body that has a chosen field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The request: the value is logged when the operation begins.
    Request,
    /// The result: the value is logged when the operation completes.
    Response,
}

/// A member of a body that is written to the event log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChosenField {
    /// Its name in the event log.
    pub name: String,
    /// The body that has it.
    pub side: Side,
    /// Its place in the body.
    pub pointer: Pointer,
}

/// Returns whether any of these fields is in the body of a side.
pub fn any_chosen(fields: &[ChosenField], side: Side) -> bool {
    fields.iter().any(|field| field.side == side)
}

/// Returns the values of one side's fields, by name. Leaves out values that are missing, too long,
/// or neither a text nor a number nor a boolean. Of a card number only the last four digits are
/// kept.
pub fn chosen(
    fields: &[ChosenField],
    side: Side,
    document: &Document<'_>,
) -> BTreeMap<String, String> {
    let of_side = fields.iter().filter(|field| field.side == side);
    let value = |field: &ChosenField| {
        let text = document.scalar(&field.pointer, CHOSEN_BYTES_MAX)?;
        Some((
            field.name.clone(),
            card_end(&text).map_or_else(|| text.to_string(), |end| format!("\u{2026}{end}")),
        ))
    };
    of_side.filter_map(value).collect()
}

/// Returns the last digits of the first card number in a text. A card number is 13 to 19 digits,
/// perhaps in groups, that satisfy the Luhn formula.
fn card_end(text: &str) -> Option<String> {
    // Most texts have too few digits.
    if text.bytes().filter(u8::is_ascii_digit).count() < *CARD_DIGITS.start() {
        return None;
    }
    // Letters separate numbers; any other characters may separate the groups of one number.
    text.split(char::is_alphabetic).find_map(|run| {
        let groups: Vec<&str> =
            run.split(|c: char| !c.is_ascii_digit()).filter(|group| !group.is_empty()).collect();
        (0..groups.len()).find_map(|first| {
            let mut digits = String::new();
            groups[first..].iter().find_map(|group| {
                digits.push_str(group);
                let is_card = CARD_DIGITS.contains(&digits.len()) && is_checked(digits.as_bytes());
                is_card.then(|| digits[digits.len() - CARD_DIGITS_SHOWN..].to_owned())
            })
        })
    })
}

/// Returns whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B: the
/// Luhn formula).
fn is_checked(digits: &[u8]) -> bool {
    let weighed = digits.iter().rev().enumerate().map(|(place, digit)| {
        let digit = u32::from(digit - b'0');
        if place % 2 == 1 { digit * 2 / 10 + digit * 2 % 10 } else { digit }
    });
    weighed.sum::<u32>() % 10 == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(json: &str) -> Option<String> {
        let field = ChosenField {
            name: "f".into(),
            side: Side::Request,
            pointer: Pointer::parse("/a/0").unwrap(),
        };
        let body = format!(r#"{{"a":[{json}]}}"#);
        let document = Document::parse(body.as_bytes()).unwrap();
        assert!(
            chosen(std::slice::from_ref(&field), Side::Response, &document).is_empty(),
            "the other side's"
        );
        chosen(&[field], Side::Request, &document).remove("f")
    }

    #[test]
    fn a_side_has_chosen_fields_or_has_none() {
        let field = ChosenField {
            name: "f".into(),
            side: Side::Response,
            pointer: Pointer::parse("/a").unwrap(),
        };
        assert!(any_chosen(std::slice::from_ref(&field), Side::Response));
        assert!(!any_chosen(&[field], Side::Request) && !any_chosen(&[], Side::Response));
    }

    #[test]
    fn short_texts_numbers_and_booleans_are_logged() {
        for (json, logged) in [
            (r#""order 17""#, Some("order 17")),
            ("1999", Some("1999")),
            ("false", Some("false")),
            (r#""""#, Some("")),
            ("null", None),
            ("[]", None),
            ("{}", None),
        ] {
            assert_eq!(value(json).as_deref(), logged, "{json}");
        }
        let long = |length: usize| value(&format!("\"{}\"", "x".repeat(length)));
        assert!(long(CHOSEN_BYTES_MAX).is_some() && long(CHOSEN_BYTES_MAX + 1).is_none());
    }

    #[test]
    fn only_the_end_of_a_card_number_is_logged() {
        for card in [
            r#""4242424242424242""#,
            "4242424242424242",
            r#""4242 4242 4242 4242""#,
            r#""4242-4242-4242-4242""#,
            r#""4242\u00a04242 / 4242.4242""#,
            r#""card 4242 4242 4242 4242 paid""#,
            r#""4242 4242 4242 4242 2026""#,
            r#""17, 4242424242424242""#,
        ] {
            assert_eq!(value(card).as_deref(), Some("\u{2026}4242"), "{card}");
        }
        for (card, end) in [
            ("5500005555555559", "5559"),
            ("378282246310005", "0005"),
            ("4012888888881881", "1881"),
        ] {
            assert_eq!(
                value(&format!("\"{card}\"")),
                Some(format!("\u{2026}{end}")),
                "every digit counts"
            );
        }
        assert_eq!(value(r#""4222222222222""#).as_deref(), Some("\u{2026}2222"), "13 digits");
        assert_eq!(value(r#""6304000000000000000""#).as_deref(), Some("\u{2026}0000"), "19 digits");
    }

    #[test]
    fn other_numbers_stay_whole() {
        for other in [
            "4242424242424241",
            "5500005555555558",
            "378282246310006",
            "424242424242",
            "42424242424242424242",
            "order-1234567890-a-4242",
        ] {
            assert_eq!(value(&format!("\"{other}\"")).as_deref(), Some(other));
        }
    }
}
