//! What a plan's templates make of the kept documents.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use bytes::Bytes;

use super::*;

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn kept_request(body: &str) -> KeptRequest {
    KeptRequest {
        body: Bytes::copy_from_slice(body.as_bytes()),
        headers: map(&[("x-region", "eu"), ("region", "us")]),
        path: map(&[("shop", "a b")]),
        query: map(&[("dry", "x y")]),
        traceparent: None,
    }
}

fn kept_answer(body: Option<&str>) -> KeptAnswer {
    KeptAnswer {
        status: 201,
        body: body.map(|body| Bytes::copy_from_slice(body.as_bytes())),
        location: Some("/v1/reservations/r-1".to_owned()),
        etag: None,
    }
}

const BODY: &str =
    r#"{"sku":"A \"1\"","amount":10.00,"empty":"","none":null,"up":"..","line":"a\nb"}"#;

/// Runs a rendering with one done step, `reserve`.
fn within<T>(body: &str, render: impl FnOnce(&RenderScope<'_>) -> T) -> T {
    let (request, answer) = (kept_request(body), kept_answer(Some(r#"{"id":"r-1"}"#)));
    let unkept = kept_answer(None);
    render(&RenderScope {
        id: "sg_1",
        started_at_ms: 1_700_000_000_000,
        request: &request,
        steps: vec![
            DoneStep { name: "reserve", key: "k-1", answer: &answer },
            DoneStep { name: "large", key: "k-2", answer: &unkept },
        ],
    })
}

fn step_request(path: &str, header: &str, body: Option<&str>) -> StepRequest {
    let headers = BTreeMap::from([
        ("x-a".to_owned(), FieldSource::Text(header.to_owned())),
        ("authorization".to_owned(), FieldSource::Env("TOKEN".to_owned())),
    ]);
    let body = body.map(str::to_owned);
    StepRequest { method: "POST".to_owned(), path: path.to_owned(), headers, body }
}

fn request(path: &str, header: &str, body: Option<&str>) -> Result<RenderedRequest, RenderError> {
    within(BODY, |scope| request_of(&step_request(path, header, body), scope))
}

/// Returns the rendered body of a request.
fn body_of(template: &str) -> Result<String, RenderError> {
    request("/p", "", Some(template)).map(|request| request.body.unwrap())
}

#[test]
fn a_request_has_the_values_of_the_saga_its_request_and_its_steps() {
    let rendered = request(
        "/v1/{{ request.path.shop }}/{{ steps.reserve.body.id }}?dry={{ request.query.dry }}",
        "{{ saga.id }} {{ request.headers['x-region'] }} {{ request.headers.region }}",
        Some(r#"{"sku": {{ request.body.sku }}, "amount": {{ request.body.amount | tojson }}}"#),
    )
    .unwrap();
    assert_eq!(rendered.method, "POST");
    assert_eq!(rendered.target, "/v1/a%20b/r-1?dry=x%20y");
    assert_eq!(rendered.headers, [("x-a".to_owned(), "sg_1 eu us".to_owned())]);
    let body = rendered.body.unwrap();
    assert_eq!(body, r#"{"sku": "A \"1\"", "amount": 10.00}"#);
}

#[test]
fn a_value_in_a_path_that_a_server_could_read_as_more_than_a_segment_is_refused() {
    for value in ["1/capture", "x;admin=1", "a\\b", "1?force=1", "%2F", "..", "a#b"] {
        let body = serde_json::json!({ "id": value }).to_string();
        let (request, answer) = (kept_request(BODY), kept_answer(Some(&body)));
        let steps = vec![DoneStep { name: "reserve", key: "k-1", answer: &answer }];
        let scope = RenderScope { id: "sg_1", started_at_ms: 0, request: &request, steps };
        let step = StepRequest {
            method: "DELETE".to_owned(),
            path: "/v1/reservations/{{ steps.reserve.body.id }}".to_owned(),
            headers: BTreeMap::new(),
            body: None,
        };
        assert!(request_of(&step, &scope).is_err(), "{value}");
    }
}

#[test]
fn a_step_has_status_key_location_and_body() {
    let body = "[{{ steps.reserve.status }}, {{ steps.reserve.key }}, \
                {{ steps.reserve.headers.location }}, {{ saga.started_at }}]";
    let expected = r#"[201, "k-1", "/v1/reservations/r-1", "2023-11-14T22:13:20.000Z"]"#;
    assert_eq!(body_of(body).as_deref(), Ok(expected));
    assert_eq!(body_of("{{ request.body }}").as_deref(), Ok(BODY));
}

#[test]
fn what_is_missing_is_named() {
    let undefined =
        |name: &str| RenderError::Body(TemplateError::Undefined(format!("`{name}` is undefined")));
    for (template, name) in [
        ("{{ request.body.other }}", "request.body.other"),
        ("{{ steps.skipped.body.id }}", "steps.skipped.body"),
        ("{{ steps.large.body.id }}", "steps.large.body.id"),
        ("{{ steps.reserve.headers.etag }}", "steps.reserve.headers.etag"),
        ("{{ request.headers['x-other'] }}", "request.headers['x-other']"),
    ] {
        let found = body_of(template).unwrap_err();
        let is_named = found == undefined(name) || found.to_string().contains("undefined");
        assert!(is_named, "{template}: {found}");
    }
    let body = step_request("/p", "", Some("{{ request.body.a }}"));
    for no_document in ["", "a=1", "{\"a\":1,\"a\":2}", "\u{0}"] {
        let found = within(no_document, |scope| request_of(&body, scope));
        assert!(matches!(found, Err(RenderError::Body(TemplateError::Undefined(_)))), "{found:?}");
    }
}

#[test]
fn a_request_that_would_go_to_another_place_is_not_made() {
    for path in [
        "/v1/{{ request.body.none }}",
        "/v1/{{ request.body.empty }}",
        "/v1/{{ request.body.up }}",
        "/v1/{{ request.body }}",
        "/v1?a={{ request.body.none }}",
    ] {
        let found = request(path, "", None);
        assert!(matches!(found, Err(RenderError::Path(_))), "{path}: {found:?}");
    }
    for path in [
        "v1",
        "",
        "//other/v1",
        "/v1/../x",
        "/v1/%2e%2E/x",
        "/v1/{{ '../' ~ request.body.amount }}",
        "/v1/.{{ '%2e' }}",
        "/v1#{{ saga.id }}",
        "/v 1",
        "http://other/",
        "/v1/{% if true %}..{% endif %}",
    ] {
        assert_eq!(request(path, "", None), Err(RenderError::Target), "{path}");
    }
    let whole = request("/v1/{{ 'a e' }}/..x/{{ request.body.amount }}", "", None).unwrap();
    assert_eq!(whole.target, "/v1/a%20e/..x/10.00");
}

#[test]
fn a_header_field_has_no_line_end_and_the_failure_names_it() {
    let found = request("/p", "{{ request.body.line }}", None).unwrap_err();
    assert_eq!(
        found.to_string(),
        "headers.x-a: it makes a control character, which a header field can't have"
    );
    let found = request("/p", "", Some("{{ request.body.sku }}x")).unwrap_err();
    assert_eq!(found, RenderError::Body(TemplateError::NotJson));
}

#[test]
fn a_condition_has_numbers_and_an_answer_has_digits() {
    let holds = |when: &str| within(BODY, |scope| condition(when, scope));
    assert_eq!(holds("request.body.amount > 9.5"), Ok(true));
    assert_eq!(holds("steps.reserve.status == 201 and request.body.amount < 10"), Ok(false));
    assert_eq!(holds("request.body.sku"), Err(RenderError::When(TemplateError::NotBoolean)));
    let answered = |body: Option<&str>| {
        let template = AnswerTemplate { status: 201, body: body.map(str::to_owned) };
        within(BODY, |scope| answer(&template, scope))
    };
    let expected = Some("[10.00]".to_owned());
    assert_eq!(
        answered(Some("[{{ request.body.amount }}]")),
        Ok(RenderedAnswer { status: 201, body: expected })
    );
    assert_eq!(answered(None), Ok(RenderedAnswer { status: 201, body: None }));
    assert!(matches!(answered(Some("{{ steps.other.body.id }}")), Err(RenderError::Body(_))));
}

#[test]
fn the_same_documents_make_the_same_request() {
    let make =
        || request("/v1/{{ request.path.shop }}", "{{ saga.id }}", Some("{{ request.headers }}"));
    let first = make();
    assert!(first.is_ok());
    assert!((0..20).all(|_| make() == first));
}
