//! Status rules: what each status of the upstream means. A status is a result, or proves that the
//! upstream did nothing, or leaves the outcome uncertain.

use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderName, StatusCode};

/// What a status means for the operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The answer is the result: store and replay it.
    Store,
    /// The upstream did nothing: a retry may run.
    Release,
    /// The upstream may or may not have executed the request.
    Uncertain,
}

/// The verdict for each status. An exact code beats a class. A code with a required field beats the
/// bare code if the answer has that field. A status in no list is uncertain.
#[derive(Debug, Clone)]
pub struct StatusRules {
    bare: Vec<Verdict>,
    conditional: Vec<(u16, HeaderName, Verdict)>,
}

/// A fault in the lists of statuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StatusRulesError {
    /// The text has none of the three forms.
    #[error(
        "`{0}` is not a status: write a code (`404`), a class (`4xx`), or a code and the field it \
         needs (`503 retry-after`)"
    )]
    Form(String),
    /// A status is in two lists.
    #[error("`{0}` stands in two of the three status lists")]
    Twice(String),
}

/// First code that is a status.
const STATUS_MIN: u16 = 100;
/// First code after the last status.
const STATUS_END: u16 = 600;
/// Codes of one class.
const CLASS_CODES: usize = 100;

impl StatusRules {
    /// Builds the rules from the three lists.
    pub fn new(
        store: &[String],
        release: &[String],
        uncertain: &[String],
    ) -> Result<StatusRules, StatusRulesError> {
        let mut exact: Vec<Option<Verdict>> = vec![None; usize::from(STATUS_END - STATUS_MIN)];
        let mut classes: [Option<Verdict>; 6] = [None; 6];
        let mut conditional: Vec<(u16, HeaderName, Verdict)> = Vec::new();
        let lists =
            [(store, Verdict::Store), (release, Verdict::Release), (uncertain, Verdict::Uncertain)];
        for (text, verdict) in lists
            .into_iter()
            .flat_map(|(list, verdict)| list.iter().map(move |text| (text, verdict)))
        {
            let form = || StatusRulesError::Form(text.clone());
            let twice = || StatusRulesError::Twice(text.clone());
            if let Some((code, field)) = text.split_once(' ') {
                let code = parse_code(code).ok_or_else(form)?;
                let field = HeaderName::from_bytes(field.trim().as_bytes()).map_err(|_| form())?;
                if conditional.iter().any(|(c, f, v)| *c == code && *f == field && *v != verdict) {
                    return Err(twice());
                }
                conditional.push((code, field, verdict));
                continue;
            }
            let place = match text.strip_suffix("xx").map(str::parse::<usize>) {
                Some(Ok(class @ 1..=5)) => &mut classes[class],
                Some(_) => return Err(form()),
                None => &mut exact[usize::from(parse_code(text).ok_or_else(form)? - STATUS_MIN)],
            };
            if place.is_some_and(|other| other != verdict) {
                return Err(twice());
            }
            *place = Some(verdict);
        }
        let bare = (STATUS_MIN..STATUS_END)
            .map(|code| {
                exact[usize::from(code - STATUS_MIN)]
                    .or(classes[usize::from(code / 100)])
                    .unwrap_or(Verdict::Uncertain)
            })
            .collect();
        Ok(StatusRules { bare, conditional })
    }

    /// Returns the rules of a route that sets none: those of the profile "ietf".
    pub fn standard() -> StatusRules {
        let verdict = |code| match code {
            307 | 308 | 401 | 403 | 407 | 408 | 417 | 425 | 429 => Verdict::Release,
            200..=501 => Verdict::Store,
            _ => Verdict::Uncertain,
        };
        StatusRules {
            bare: (STATUS_MIN..STATUS_END).map(verdict).collect(),
            conditional: vec![(503, RETRY_AFTER, Verdict::Release)],
        }
    }

    /// Makes a status mean that the upstream did nothing.
    pub fn release(&mut self, status: StatusCode) {
        let at = usize::from(status.as_u16().saturating_sub(STATUS_MIN));
        self.bare.iter_mut().skip(at).take(1).for_each(|verdict| *verdict = Verdict::Release);
    }

    /// Returns the verdict for an answer. A 101 is always a result: the connection then belongs to
    /// the client.
    pub fn verdict(&self, status: StatusCode, headers: &HeaderMap) -> Verdict {
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return Verdict::Store;
        }
        let code = status.as_u16();
        let conditional =
            self.conditional.iter().find(|(c, field, _)| *c == code && headers.contains_key(field));
        match conditional {
            Some((_, _, verdict)) => *verdict,
            None => self
                .bare
                .get(usize::from(code.saturating_sub(STATUS_MIN)))
                .copied()
                .unwrap_or(Verdict::Uncertain),
        }
    }

    /// Returns the statuses with a verdict, as an operator would list them: classes in which most
    /// codes have the verdict, then single codes of other classes, then codes with a required
    /// field.
    ///
    /// The list of uncertain statuses leaves out classes in which most codes are uncertain, because
    /// a status in no list is uncertain.
    pub fn listed(&self, verdict: Verdict) -> Vec<String> {
        let mut listed = Vec::new();
        let mut single = Vec::new();
        for (class, codes) in (1..).zip(self.bare.chunks(CLASS_CODES)) {
            let count = |wanted: Verdict| codes.iter().filter(|other| **other == wanted).count();
            let common = [Verdict::Store, Verdict::Release, Verdict::Uncertain]
                .into_iter()
                .max_by_key(|other| count(*other));
            if common == Some(verdict) {
                if verdict != Verdict::Uncertain {
                    listed.push(format!("{class}xx"));
                }
                continue;
            }
            let exact = codes.iter().zip(0..).filter(|(other, _)| **other == verdict);
            single.extend(exact.map(|(_, rest)| format!("{class}{rest:02}")));
        }
        listed.append(&mut single);
        let conditional = self.conditional.iter().filter(|(_, _, other)| *other == verdict);
        listed.extend(conditional.map(|(code, field, _)| format!("{code} {field}")));
        listed
    }
}

fn parse_code(text: &str) -> Option<u16> {
    text.parse().ok().filter(|code| text.len() == 3 && (STATUS_MIN..STATUS_END).contains(code))
}
