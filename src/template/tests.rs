//! Templates encode each value for its place, and fail rather than make a wrong text.

use super::*;

fn values() -> Value {
    let document = r#"{"data":{"order":"a/b c","amount":1.10,"large":123456789012345678901234,
        "count":3,"negative":-0,"exponent":1e3,"none":null,"empty":"","dots":"..","yes":true,
        "list":[1,2.50,"x\n\"y\""],"object":{"z":1,"a":[]}}}"#;
    json_value(document).unwrap()
}

fn rendered(kind: TemplateKind, source: &str) -> Result<String, TemplateError> {
    Template::new(kind, source).unwrap().render(&values())
}

#[test]
fn a_value_in_a_path_is_one_component() {
    for (source, path) in [
        ("/v1/orders/{{ data.order }}/ship", "/v1/orders/a%2Fb%20c/ship"),
        ("/v1?amount={{ data.amount }}&n={{ data.count }}", "/v1?amount=1.10&n=3"),
        ("/{{ data.yes }}/{{ data.large }}", "/true/123456789012345678901234"),
        ("/{{ data.order | upper }}", "/A%2FB%20C"),
    ] {
        assert_eq!(rendered(TemplateKind::Path, source).as_deref(), Ok(path));
    }
}

#[test]
fn a_value_that_would_change_a_path_fails() {
    for source in [
        "/{{ data.none }}",
        "/{{ data.empty }}",
        "/{{ data.dots }}",
        "/{{ data.list }}",
        "/{{ data }}",
    ] {
        let found = rendered(TemplateKind::Path, source);
        assert!(matches!(found, Err(TemplateError::Unusable(_))), "{source}: {found:?}");
    }
}

#[test]
fn a_value_in_a_body_is_json_with_its_digits_and_the_order_of_its_members() {
    for (source, body) in [
        (r#"{"order": {{ data.order }}}"#, r#"{"order": "a/b c"}"#),
        ("{{ data.list }}", r#"[1,2.50,"x\n\"y\""]"#),
        ("{{ data.object }}", r#"{"z":1,"a":[]}"#),
        ("{{ data.list | tojson }}", r#"[1,2.50,"x\n\"y\""]"#),
        ("[{{ data.amount }}, {{ data.large }}]", "[1.10, 123456789012345678901234]"),
        ("[{{ data.negative }}, {{ data.exponent }}]", "[-0, 1e3]"),
        ("[{{ data.none }}, {{ data.yes }}]", "[null, true]"),
        ("[{{ data.count + 1 }}]", "[4]"),
        (
            "[{% for item in data.list %}{{ item }}{% if not loop.last %},{% endif %}{% endfor %}]",
            r#"[1,2.50,"x\n\"y\""]"#,
        ),
    ] {
        assert_eq!(rendered(TemplateKind::Json, source).as_deref(), Ok(body), "{source}");
    }
}

#[test]
fn a_body_that_is_no_json_fails() {
    for source in ["{{ data.order }}x", r#"{"order": }"#, ""] {
        assert_eq!(rendered(TemplateKind::Json, source), Err(TemplateError::NotJson), "{source}");
    }
}

#[test]
fn an_undefined_value_is_named() {
    for (source, name) in [
        ("{{ data.other }}", "`data.other` is undefined"),
        ("{{ data.order.id }}", "`data.order.id` is undefined"),
        ("{{ request.body }}", "`request` is undefined"),
    ] {
        let expected = TemplateError::Undefined(name.to_owned());
        assert_eq!(rendered(TemplateKind::Json, source), Err(expected));
    }
}

#[test]
fn an_error_has_no_value_of_the_event() {
    for source in ["{{ data.order + 1 }}", "{{ data.order | abs }}", "{{ data.order() }}"] {
        let error = rendered(TemplateKind::Json, source).unwrap_err().to_string();
        assert!(!error.contains("a/b"), "{error}");
    }
}

#[test]
fn work_and_output_are_bounded() {
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}1";
    assert_eq!(rendered(TemplateKind::Json, endless), Err(TemplateError::TooManySteps));
    let long = format!("\"{}\"", "x".repeat(TEMPLATE_OUTPUT_MAX));
    assert_eq!(rendered(TemplateKind::Json, &long), Err(TemplateError::TooLong));
}

#[test]
fn a_malformed_template_names_the_line() {
    let error = Template::new(TemplateKind::Json, "{\n \"a\": {{ data.a }\n}").unwrap_err();
    assert!(matches!(error, TemplateError::Malformed { line: 2, .. }), "{error:?}");
    let unknown = Template::new(TemplateKind::Path, "/{% include 'x' %}");
    assert!(unknown.is_err(), "templates can't read others");
}

#[test]
fn an_unknown_filter_is_found_before_the_template_is_used() {
    for source in [
        "/\n{{ data.order | shout }}",
        "/\n{% if data.order is shouted %}{% endif %}",
        "/\n{{ data.order | upper | shout }}",
    ] {
        let error = Template::new(TemplateKind::Path, source).unwrap_err();
        let TemplateError::Malformed { line: 2, why } = &error else { panic!("{error:?}") };
        assert!(why.contains("shout") && why.contains("unknown"), "{why}");
    }
    for source in ["/{{ data.order + 1 }}", "/{{ data.list[0].name }}", "/{{ data.count | abs }}"] {
        assert!(Template::new(TemplateKind::Path, source).is_ok(), "{source}");
    }
}

#[test]
fn the_used_members_of_a_name_are_known() {
    let source = "/{{ data.order.id }}/{% if data.a %}{{ data.b | default(event.id) }}{% endif %}\
                  {% for item in data.items %}{{ item.name }}{% endfor %}{{ data }}";
    let template = Template::new(TemplateKind::Path, source).unwrap();
    let members: Vec<String> = template.members_of("data").into_iter().collect();
    assert_eq!(members, ["a", "b", "items", "order"]);
    assert_eq!(template.members_of("event").len(), 1);
}

#[test]
fn a_document_with_two_readings_is_no_value() {
    for document in [r#"{"a":1,"a":2}"#, "[1,]", "", "nul", &"[".repeat(1000)] {
        assert!(json_value(document).is_err(), "{document}");
    }
    assert!(json_value(&format!("{}1{}", "[".repeat(100), "]".repeat(100))).is_err());
}

#[test]
fn a_value_inside_quotes_fails_because_it_could_add_members() {
    for source in [
        r#"{"order": "{{ data.order }}"}"#,
        r#"["{{ data.count }}"]"#,
        r#"{"a\\": 1, "b\"": "x {{ data.count }}"}"#,
    ] {
        assert_eq!(rendered(TemplateKind::Json, source), Err(TemplateError::Quoted), "{source}");
    }
    let escaped = r#"{"a\\": {{ data.count }}, "b\"": {{ data.order }}}"#;
    assert_eq!(
        rendered(TemplateKind::Json, escaped).as_deref(),
        Ok(r#"{"a\\": 3, "b\"": "a/b c"}"#)
    );
}

#[test]
fn a_value_in_a_header_field_is_a_text_without_control_characters() {
    for (source, text) in [
        ("order {{ data.order }}", "order a/b c"),
        ("{{ data.amount }};{{ data.count }};{{ data.yes }}", "1.10;3;true"),
        ("", ""),
        ("{{ data.empty }}", ""),
    ] {
        assert_eq!(rendered(TemplateKind::Header, source).as_deref(), Ok(text), "{source}");
    }
    for source in ["{{ data.none }}", "{{ data.list }}", "{{ data.object }}"] {
        let found = rendered(TemplateKind::Header, source);
        assert!(matches!(found, Err(TemplateError::Unusable(_))), "{source}: {found:?}");
    }
    for source in ["a\r\nb: c", "{{ data.order ~ '\\n' }}x", "a\tb", "{{ data.list[2] }}", "\u{85}"]
    {
        let found = rendered(TemplateKind::Header, source);
        assert_eq!(found, Err(TemplateError::ControlCharacter), "{source}");
    }
}

#[test]
fn a_number_with_digits_is_written_and_never_compared_by_its_kind() {
    let digits = [
        "[{{ data.amount }}, {{ data.list[1] }}]",
        "{% set amount = data.amount %}[{{ amount }}, {{ 2.50 or data.amount }}]",
        "[{{ data.amount if data.amount else 0 }}, {{ data.amount | default(2) }}]",
        "[{% if data.amount is defined %}{{ data.amount }}{% endif %}]",
    ];
    for source in digits {
        assert!(rendered(TemplateKind::Json, source).unwrap().contains("1.10"), "{source}");
    }
    for source in [
        "{{ data.amount > 0 }}",
        "{{ data.amount < 2 }}",
        "{{ data.amount == 1 }}",
        "{{ 1 != data.amount }}",
        "{{ data.amount == data.list[1] }}",
        "{{ data.amount in [1, '1.10'] }}",
        "{{ data.list | max }}",
        "{{ data.amount is number }}",
        "{% if data.amount >= 1 %}1{% else %}2{% endif %}",
        "{{ [data.amount, 2] | sort }}",
    ] {
        let found = rendered(TemplateKind::Json, source);
        assert_eq!(found, Err(TemplateError::Calculation), "{source}");
    }
    // These would be false without notice.
    for source in [
        "{{ data.amount == 1.1 }}",
        "{{ 'a}' ~ (1.1 != data.amount) }}",
        "{% if\n data.amount in [1.1] %}{% endif %}",
    ] {
        let found = Template::new(TemplateKind::Json, source);
        assert!(matches!(found, Err(TemplateError::Malformed { line: 1, .. })), "{source}");
    }
    for source in
        ["{{ data.amount | float == 1.1 }}", "{{ data.order == '1.1' }}", "1.1 == {{ data.count }}"]
    {
        assert!(Template::new(TemplateKind::Json, source).is_ok(), "{source}");
    }
    for source in ["{{ data.amount + 1 }}", "{{ -data.amount }}", "{{ data.amount * 2 }}"] {
        assert!(rendered(TemplateKind::Json, source).is_err(), "{source}");
    }
}

#[test]
fn a_number_is_calculated_with_behind_a_filter() {
    for (source, text) in [
        ("{{ data.amount | float > 1 }}", "true"),
        ("{{ data.amount | float < 1 }}", "false"),
        ("{{ data.exponent | int + 1 }}", "1001"),
        ("{{ data.count | float }}", "3.0"),
        ("{{ data.count > 2 }}", "true"),
        ("{{ data.large > 2 }}", "true"),
        ("{{ data.negative | int }}", "0"),
    ] {
        assert_eq!(rendered(TemplateKind::Json, source).as_deref(), Ok(text), "{source}");
    }
    assert!(rendered(TemplateKind::Json, "{{ data.order | float }}").is_err());
}

fn holds(source: &str) -> Result<bool, TemplateError> {
    let document = r#"{"amount":10.00,"zero":0.00,"count":3,"small":-0.5,"text":"5","yes":true,
        "large":123456789012345678901234567890123456789012345,"none":null,"list":[1.5]}"#;
    let values = Value::from_pairs([("data", json_numbers(document).unwrap())]);
    Condition::new(source).unwrap().holds(&values)
}

#[test]
fn a_condition_compares_numbers_by_value() {
    for (source, expected) in [
        ("data.amount > 0", true),
        ("data.amount == 10", true),
        ("data.amount < 9.99", false),
        ("data.zero > 0", false),
        ("data.zero == 0 and not data.zero", true),
        ("data.small < 0", true),
        ("data.count >= 3 and data.count < data.amount", true),
        ("data.large > 1000000", true),
        ("data.yes", true),
        ("data.text == '5'", true),
        ("data.other is defined", false),
        ("data.none is none", true),
        ("data.list[0] * 2 == 3", true),
    ] {
        assert_eq!(holds(source), Ok(expected), "{source}");
    }
}

#[test]
fn a_condition_that_is_neither_true_nor_false_fails() {
    for source in ["data.amount", "data.text", "data.none", "data.list", "1", "'true'", "other"] {
        assert_eq!(holds(source), Err(TemplateError::NotBoolean), "{source}");
    }
    for source in ["data.other > 0", "data.other.x", "other == 1", "not data.other"] {
        let found = holds(source);
        assert!(matches!(found, Err(TemplateError::Undefined(_))), "{source}: {found:?}");
    }
    let endless = "range(9999) | map('string') | list | length > 1 and range(9999) | sum > 0";
    assert_eq!(holds(endless), Err(TemplateError::TooManySteps));
    assert!(matches!(Condition::new("data.amount >"), Err(TemplateError::Malformed { .. })));
    assert!(matches!(Condition::new("a }} b"), Err(TemplateError::Malformed { .. })));
    assert!(matches!(Condition::new(""), Err(TemplateError::Malformed { .. })));
}

#[test]
fn a_template_lists_what_it_uses() {
    let source = "{% for item in data.list %}{{ item.price }}{{ loop.index }}{% endfor %}\
                  {{ data['x'].y }}{{ range(data.count) }}{{ steps.a.body.id | default(saga.id) }}";
    let template = Template::new(TemplateKind::Json, source).unwrap();
    let expected = ["data", "data.count", "data.list", "range", "saga.id", "steps.a.body.id"];
    assert_eq!(template.references(), expected);
    let condition = Condition::new("steps.a.status == 200 and request.body.amount > 0").unwrap();
    assert_eq!(condition.references(), ["request.body.amount", "steps.a.status"]);
}
