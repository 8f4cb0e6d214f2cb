//! A trial renders each part of a plan once, and reports each part that fails.
#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use crate::saga::plan::{AnswerTemplate, StepRetry, StepSending, StepUncertain};

fn request(path: &str, body: Option<&str>) -> StepRequest {
    StepRequest {
        method: "POST".to_owned(),
        path: path.to_owned(),
        headers: BTreeMap::new(),
        body: body.map(str::to_owned),
    }
}

fn step(name: &str, after: &[usize], action: StepRequest) -> Step {
    Step {
        name: name.to_owned(),
        after: after.to_vec(),
        when: None,
        pivot: false,
        action,
        compensation: Compensation::Request {
            request: request(&format!("/undo/{{{{ steps.{name}.body.id }}}}"), None),
            gone: Vec::new(),
        },
        sending: StepSending {
            upstream: "default".to_owned(),
            key_header: "idempotency-key".to_owned(),
            timeout_ms: 1,
            success: vec!["201".to_owned()],
            failure: Vec::new(),
            release_status: Vec::new(),
            uncertain_status: Vec::new(),
            on_uncertain: StepUncertain::Hold,
            uncertain_after_ms: 1,
            lease_ms: 1,
        },
        retry: StepRetry { first_ms: 1, max_ms: 1, attempts: 1 },
    }
}

/// A plan in which the first step of the list waits for the second one.
fn plan() -> Plan {
    let charge = Some(
        r#"{"hold": {{ steps.reserve.body.hold.code }}, "at": {{ steps.reserve.headers.location }}}"#,
    );
    Plan {
        saga: "checkout".to_owned(),
        timeout_ms: 1,
        steps: vec![
            step("charge", &[1], request("/charges", charge)),
            step(
                "reserve",
                &[],
                request("/{{ request.path.shop }}", Some("{{ request.body.sku }}")),
            ),
        ],
        answer: AnswerTemplate {
            status: 201,
            body: Some("[{{ steps.charge.body.id }}]".to_owned()),
        },
        failed: None,
    }
}

fn sample(more: &str) -> SagaSample {
    let text = format!(r#"{{"body":{{"sku":1.50}},"path":{{"shop":"s"}}{more}}}"#);
    SagaSample::parse(&text).unwrap()
}

#[test]
fn steps_are_rendered_in_order_with_made_up_answers() {
    let trial = SagaTrial::new(&plan(), &[], &sample(""));
    assert_eq!(trial.failures(), [], "{trial:?}");
    let [reserve, charge] = trial.steps.as_slice() else { panic!("{trial:?}") };
    assert_eq!((reserve.position, charge.position), (1, 0));
    let action = |step: &StepTrial| step.action.clone().unwrap().unwrap();
    assert_eq!(action(reserve).target, "/s");
    assert_eq!(action(reserve).body.as_deref(), Some("1.50"));
    let body = action(charge).body.unwrap();
    assert_eq!(body, r#"{"hold": "reserve-1", "at": "/made-up/reserve-1"}"#);
    let undo = reserve.compensation.clone().unwrap().unwrap();
    assert_eq!(undo.target, "/undo/reserve-1");
    let answer = reserve.answer.clone().unwrap();
    assert_eq!((answer.status, reserve.is_made_up), (201, true));
    assert_eq!(trial.answer.unwrap().body.as_deref(), Some(r#"["charge-1"]"#));
}

#[test]
fn an_answer_of_the_sample_replaces_the_made_up_one() {
    let given = sample(
        r#","steps":{"reserve":{"status":200,"body":{"hold":{"code":7.0}},"headers":{"Location":"/x"}}}"#,
    );
    given.check(&plan()).unwrap();
    let trial = SagaTrial::new(&plan(), &[], &given);
    let charge = trial.steps[1].action.clone().unwrap().unwrap();
    assert_eq!(charge.body.as_deref(), Some(r#"{"hold": 7.0, "at": "/x"}"#));
    assert!(!trial.steps[0].is_made_up);
    // The given body has no id, so the compensation fails.
    assert_eq!(trial.failures().len(), 1, "{trial:?}");
    let other = sample(r#","steps":{"ship":{}}"#);
    assert!(matches!(other.check(&plan()), Err(SampleError::UnknownStep(name)) if name == "ship"));
}

#[test]
fn each_part_that_fails_is_counted_and_the_others_are_rendered() {
    let mut faulty = plan();
    faulty.steps[1].when = Some("request.body.sku > 1".to_owned());
    faulty.steps[0].action.body = Some("{{ request.body.other }}".to_owned());
    faulty.failed = Some(AnswerTemplate { status: 409, body: Some("{{ saga.id }}x".to_owned()) });
    let trial = SagaTrial::new(&faulty, &[], &sample(""));
    assert_eq!(trial.steps[0].when, Some(Ok(true)));
    assert!(trial.steps[1].action.as_ref().unwrap().is_err());
    let failures = trial.failures();
    let failures: Vec<String> =
        failures.iter().map(|(place, error)| format!("{place}{error}")).collect();
    assert_eq!(
        failures,
        [
            "step \"charge\": request.body: `request.body.other` is undefined",
            "failed.body: it makes no JSON document"
        ]
    );
}

#[test]
fn a_step_that_is_skipped_has_no_request_and_no_name() {
    let mut skipping = plan();
    skipping.steps[1].when = Some("request.body.sku > 2".to_owned());
    let trial = SagaTrial::new(&skipping, &[], &sample(""));
    let [reserve, charge] = trial.steps.as_slice() else { panic!("{trial:?}") };
    assert_eq!((reserve.when.clone(), reserve.action.clone()), (Some(Ok(false)), None));
    assert!(charge.action.as_ref().unwrap().is_err(), "{charge:?}");
    skipping.steps[1].when = Some("request.body.sku".to_owned());
    let trial = SagaTrial::new(&skipping, &[], &sample(""));
    assert!(matches!(trial.steps[0].when, Some(Err(RenderError::When(_)))));
}

#[test]
fn only_the_kept_header_fields_are_in_scope() {
    let mut plan = plan();
    plan.answer.body = Some("[{{ request.headers.region }}]".to_owned());
    let fields = sample(r#","headers":{"Region":"eu","Other":"x"}"#);
    let kept = SagaTrial::new(&plan, &[HeaderName::from_static("region")], &fields);
    assert_eq!(kept.answer.unwrap().body.as_deref(), Some(r#"["eu"]"#));
    assert!(SagaTrial::new(&plan, &[], &fields).answer.is_err());
}

#[test]
fn a_text_that_is_no_sample_is_refused() {
    for text in ["", "[]", "{\"bdy\":1}", "{\"query\":{\"a\":1}}", "{\"headers\":[]}", "{} {}"] {
        let error = SagaSample::parse(text).unwrap_err().to_string();
        assert!(error.starts_with("the sample is a JSON object"), "{error}");
    }
    assert!(SagaSample::parse("{}").is_ok());
}
