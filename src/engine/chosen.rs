//! Chosen fields: members of bodies by which operators find an operation, such as the number of an order.
//!
//! Danger: they stand in the event log in plain text. So only what the configuration names is taken, of each only a short
//! text, and a card's number never whole.

use std::collections::BTreeMap;

use crate::key::{Document, Pointer};

/// Fields of one route, at most: each is written with every operation, and can be searched by.
pub const CHOSEN_MAX: usize = 8;

/// Longest value, in bytes. Longer ones are left out: a part of a reference finds the wrong operation.
pub const CHOSEN_BYTES_MAX: usize = 128;

/// Digits of a card's number (ISO/IEC 7812-1).
const CARD_DIGITS: std::ops::RangeInclusive<usize> = 13..=19;

/// How many of them are left.
const CARD_DIGITS_SHOWN: usize = 4;

/// In which body a field is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The request's: it is told when the operation begins.
    Request,
    /// The result's: it is told when there is one.
    Response,
}

/// A member that is told to the event log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChosenField {
    /// What it is called there.
    pub name: String,
    /// The body that it stands in.
    pub side: Side,
    /// Where it stands.
    pub pointer: Pointer,
}

/// Whether any of these is looked for on a side.
pub fn any_chosen(fields: &[ChosenField], side: Side) -> bool {
    fields.iter().any(|field| field.side == side)
}

/// The values of the fields of one side, by name. What is missing, too long, or neither text nor number nor boolean is left
/// out; what looks like a card's number shows its last four digits.
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

/// The last digits of a card's number that a text holds: digits, in groups or not, whose last one checks the others.
fn card_end(text: &str) -> Option<String> {
    // Most texts have too few of them, and are looked at no closer.
    if text.bytes().filter(u8::is_ascii_digit).count() < *CARD_DIGITS.start() {
        return None;
    }
    // Letters part numbers; anything else may stand between a number's groups.
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

/// Whether the last digit is the one that the others ask for (ISO/IEC 7812-1, annex B: the Luhn formula).
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
    fn short_texts_numbers_and_booleans_are_told() {
        for (json, told) in [
            (r#""order 17""#, Some("order 17")),
            ("1999", Some("1999")),
            ("false", Some("false")),
            (r#""""#, Some("")),
            ("null", None),
            ("[]", None),
            ("{}", None),
        ] {
            assert_eq!(value(json).as_deref(), told, "{json}");
        }
        let long = |length: usize| value(&format!("\"{}\"", "x".repeat(length)));
        assert!(long(CHOSEN_BYTES_MAX).is_some() && long(CHOSEN_BYTES_MAX + 1).is_none());
    }

    #[test]
    fn of_a_cards_number_only_the_end_is_told() {
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
                "every digit is weighed"
            );
        }
        assert_eq!(value(r#""4222222222222""#).as_deref(), Some("\u{2026}2222"), "13 digits");
        assert_eq!(value(r#""6304000000000000000""#).as_deref(), Some("\u{2026}0000"), "19 digits");
    }

    #[test]
    fn what_is_no_cards_number_stays() {
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
