//! The lists of statuses, and their verdicts.

use super::*;

#[test]
fn statuses_have_the_verdicts_of_their_lists() {
    let rules = policy().statuses;
    let verdict = |code: u16, headers: &HeaderMap| {
        rules.verdict(StatusCode::from_u16(code).unwrap(), headers)
    };
    let none = HeaderMap::new();
    let later = HeaderMap::from_iter([(http::header::RETRY_AFTER, HeaderValue::from_static("1"))]);
    for code in [200, 201, 204, 299, 301, 404, 409, 422, 500, 501, 101] {
        assert_eq!(verdict(code, &none), Verdict::Store, "{code}");
    }
    for code in [401, 403, 407, 408, 425, 429] {
        assert_eq!(verdict(code, &none), Verdict::Release, "{code}: an exact code beats its class");
    }
    for code in [502, 503, 504, 505, 599] {
        assert_eq!(
            verdict(code, &none),
            Verdict::Uncertain,
            "{code}: a status in no list is uncertain too"
        );
    }
    assert_eq!(
        verdict(503, &later),
        Verdict::Release,
        "a code with a condition beats the bare one"
    );
    assert_eq!(verdict(502, &later), Verdict::Uncertain);
}

#[test]
fn faulty_status_lists_are_refused() {
    let new =
        |store: &str, release: &str| StatusRules::new(&[store.into()], &[release.into()], &[]);
    for bad in ["2x", "6xx", "0xx", "99", "600", "abc", "503 ", "503 re try", "+20"] {
        assert_eq!(new(bad, "429").unwrap_err(), StatusRulesError::Form(bad.into()), "{bad}");
    }
    for twice in ["404", "4xx", "503 retry-after"] {
        assert_eq!(new(twice, twice).unwrap_err(), StatusRulesError::Twice(twice.into()));
    }
    assert!(new("4xx", "404").is_ok());
}
