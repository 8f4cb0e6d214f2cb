//! Tests of `[[sagas]]`.

use http::HeaderValue;

use super::*;
use crate::engine::{Mode, OnFailure, OnInFlight, OnMismatch, OnUncertain, Verdict};
use crate::record::AnnouncedState;
use crate::saga::plan::{
    AnswerTemplate, Compensation, FieldSource, Plan, Step, StepRetry, StepUncertain,
};

const STORE: &str = "[store]\nformat = 3\n";
const KEYS: &str = "[encryption]\nkeys = [{ id = \"a\", env = \"A\" }]\n";
const STOCK: &str = "[upstreams.stock]\nurl = \"http://stock\"\nresponse_timeout = \"20s\"\n";
const UNDO: &str = "compensate = { path = \"/undo\" }";

/// Returns a file with a saga. `lines` are its lines and its steps.
fn file(lines: &str) -> String {
    format!("{STORE}{KEYS}{STOCK}[[sagas]]\nname = \"checkout\"\n{lines}\n")
}

/// Returns a step. `lines` are its further lines.
fn step(name: &str, lines: &str) -> String {
    format!("[[sagas.steps]]\nname = \"{name}\"\nrequest = {{ path = \"/{name}\" }}\n{lines}\n")
}

/// Returns a saga of these steps. Each has a name and further lines.
fn saga_of(steps: &[(&str, &str)]) -> String {
    let steps: String = steps.iter().map(|(name, lines)| step(name, lines)).collect();
    file(&format!("path = \"/c/{{shop}}\"\nkeep_headers = [\"Region\"]\n{steps}"))
}

/// Returns a saga with one step. `lines` are further lines of the saga.
fn saga(lines: &str) -> String {
    file(&format!("path = \"/c/{{shop}}\"\n{lines}\n{}", step("reserve", UNDO)))
}

/// Returns a saga with a step that has these lines only.
fn only_step(lines: &str) -> String {
    file(&format!("path = \"/c/{{shop}}\"\n[[sagas.steps]]\n{lines}"))
}

fn loaded(text: &str) -> SagaConfig {
    let mut config = load(text).unwrap_or_else(|faults| panic!("{text}\n{faults}"));
    config.sagas.remove(0)
}

fn plan_of(steps: &[(&str, &str)]) -> Plan {
    loaded(&saga_of(steps)).plan
}

/// Checks that each text has one fault, at this key and with this piece of text.
#[track_caller]
fn are_refused(cases: impl IntoIterator<Item = (String, &'static str, &'static str)>) {
    for (text, key, piece) in cases {
        let fault = fault_of(load(&text));
        assert!(fault.starts_with(&format!("{key}: ")) && fault.contains(piece), "{text}\n{fault}");
    }
}

#[test]
fn a_saga_has_the_documented_defaults() {
    let SagaConfig { plan, route, keep_headers } = loaded(&saga(""));
    assert_eq!((plan.saga.as_str(), route.name.as_str()), ("checkout", "checkout"));
    assert_eq!(plan.timeout_ms, 600_000);
    assert_eq!(plan.answer, AnswerTemplate { status: 200, body: None });
    assert_eq!((plan.failed, keep_headers), (None, Vec::new()));
    assert_eq!(
        (route.paths, route.methods),
        (vec!["/c/{shop}".to_owned()], vec![http::Method::POST])
    );
    let policy = &route.policy;
    assert_eq!((policy.mode, policy.on_failure), (Mode::Enforce, OnFailure::FailClosed));
    assert_eq!((policy.on_in_flight, policy.wait_timeout.as_secs()), (OnInFlight::Wait, 30));
    assert!(policy.key.required);
    assert_eq!((&*policy.route, policy.retention.as_secs()), ("checkout", 86_400));
    let verdict = |code: u16| {
        let status = http::StatusCode::from_u16(code).unwrap();
        policy.statuses.verdict(status, &http::HeaderMap::new())
    };
    assert!([200, 409, 503].into_iter().all(|code| verdict(code) == Verdict::Store));

    let Step { name, after, when, pivot, action, sending, retry, compensation } = &plan.steps[0];
    assert_eq!((name.as_str(), after.as_slice(), when, *pivot), ("reserve", &[][..], &None, false));
    assert_eq!((action.method.as_str(), action.path.as_str()), ("POST", "/reserve"));
    assert_eq!((action.headers.len(), &action.body), (0, &None));
    assert!(matches!(compensation, Compensation::Request { gone, .. } if gone.is_empty()));
    assert_eq!(
        (sending.upstream.as_str(), sending.key_header.as_str()),
        ("default", "idempotency-key")
    );
    assert_eq!((sending.timeout_ms, sending.lease_ms), (5000, 30_000));
    assert_eq!(sending.uncertain_after_ms, 60_000, "the response timeout of the upstream");
    assert_eq!(
        (sending.success.as_slice(), sending.failure.as_slice()),
        (&["2xx".to_owned()][..], &["4xx".to_owned()][..])
    );
    assert_eq!(sending.release_status.len(), 10);
    assert_eq!(sending.uncertain_status, ["502", "503", "504"]);
    assert_eq!(sending.on_uncertain, StepUncertain::Hold);
    assert_eq!(*retry, StepRetry { first_ms: 200, max_ms: 30_000, attempts: 8 });
}

#[test]
fn the_documented_saga_has_the_default_settings() {
    let block = DEFAULTS.lines().skip_while(|line| *line != "# [[sagas]]");
    let is_setting = |line: &&str| {
        line.starts_with("[[") || line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '))
    };
    // These have no default, or need another upstream.
    let is_example = |line: &&str| {
        ["upstream", "failed", "when", "probe", "compensate", "request"]
            .iter()
            .any(|name| line.starts_with(name))
    };
    let lines: Vec<&str> = block
        .filter_map(|line| line.strip_prefix("# "))
        .filter(is_setting)
        .filter(|line| !is_example(line))
        .collect();
    assert!(lines.len() > 20, "{lines:?}");
    let request = "request = { path = \"/r\" }\ncompensate = \"none\"";
    let documented = loaded(&format!("{STORE}{KEYS}{}\n{request}", lines.join("\n")));
    let default = loaded(&format!(
        "{STORE}{KEYS}[[sagas]]\nname = \"checkout\"\npath = \"/v1/checkouts\"\n\
         [[sagas.steps]]\nname = \"reserve\"\n{request}"
    ));
    assert_eq!(format!("{documented:?}"), format!("{default:?}"));
    // The examples are legal.
    let whole: Vec<&str> = DEFAULTS
        .lines()
        .skip_while(|line| *line != "# [[sagas]]")
        .filter_map(|line| line.strip_prefix("# "))
        .filter(is_setting)
        .filter(|line| !line.starts_with("upstream") && !line.starts_with("probe"))
        .collect();
    loaded(&format!("{STORE}{KEYS}{}", whole.join("\n")));
}

/// A saga with every setting.
const EVERY_SETTING: &str = r#"path = "/v1/checkouts/{shop}"
methods = ["POST", "PUT"]
profile = "stripe"
key = { header = "X-Key", max_length = 40 }
scope = { header = "X-Tenant" }
caller = { headers = ["X-Caller"] }
fingerprint = { body = "raw" }
retention = "2d"
tombstone = "1d"
on_in_flight = "reject"
wait_timeout = "3s"
on_mismatch = "replay"
timeout = "1m"
keep_headers = ["X-Region", "Traceparent"]
answer = { status = 201, body = '{"order": {{ steps.reserve.body.id }}}' }
failed = { status = 422, body = '{"saga": {{ saga.id }}}' }

[[sagas.steps]]
name = "reserve"
upstream = "stock"
key = { header = "X-Request-Id" }
timeout = "7s"
when = "request.body.amount > 0"
success = ["201", "409"]
failure = ["4xx"]
release_status = ["503"]
uncertain_status = ["5xx"]
on_uncertain = "probe"
uncertain_after = "9s"
lease = "11s"
retry = { first = "1s", max = "2s", attempts = 3 }

[sagas.steps.request]
method = "PUT"
path = "/v1/{{ request.path.shop }}?r={{ request.query.r }}"
headers = { Authorization = { env = "STOCK" }, X-Token = { file = "/run/t" }, X-A = "{{ saga.id }}" }
body = '{"sku": {{ request.body.sku }}}'

[sagas.steps.probe]
path = "/v1/by-key/{key}"
absent = ["404", "410"]
found_if = "/data"
map_status = 201
headers = { Authorization = { env = "STOCK" }, Accept = "application/json" }

[sagas.steps.compensate]
method = "DELETE"
path = "/v1/reservations/{{ steps.reserve.body.id }}"
headers = { Authorization = { env = "UNDO" } }
gone = ["404", "410"]
"#;

#[test]
fn every_setting_of_a_saga_is_read() {
    let SagaConfig { plan, route, keep_headers } = loaded(&file(EVERY_SETTING));
    assert_eq!((plan.timeout_ms, plan.answer.status), (60_000, 201));
    assert_eq!(plan.failed.as_ref().unwrap().status, 422);
    assert_eq!(keep_headers, ["x-region", "traceparent"]);
    let policy = &route.policy;
    assert_eq!((route.methods.len(), route.profile.as_str()), (2, "stripe"));
    assert_eq!((policy.on_in_flight, policy.wait_timeout.as_secs()), (OnInFlight::Reject, 3));
    assert_eq!((policy.mismatch_status.as_u16(), policy.on_mismatch), (400, OnMismatch::Replay));
    assert_eq!((policy.retention.as_secs(), policy.tombstone.as_secs()), (172_800, 86_400));
    assert!(policy.key.required && matches!(policy.on_uncertain, OnUncertain::Hold));
    let stored = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&stored).unwrap(), plan);
}

#[test]
fn every_setting_of_a_step_is_read() {
    let plan = loaded(&file(EVERY_SETTING)).plan;
    let Step { action, compensation, sending, retry, when, .. } = &plan.steps[0];
    let env = |name: &str| FieldSource::Env(name.to_owned());
    assert_eq!(action.method, "PUT");
    assert_eq!(action.headers["authorization"], env("STOCK"));
    assert_eq!(action.headers["x-token"], FieldSource::File("/run/t".to_owned()));
    assert_eq!(action.headers["x-a"], FieldSource::Text("{{ saga.id }}".to_owned()));
    assert_eq!(when.as_deref(), Some("request.body.amount > 0"));
    let Compensation::Request { request, gone } = compensation else { panic!("{compensation:?}") };
    assert_eq!(
        (request.method.as_str(), gone.as_slice()),
        ("DELETE", &["404".to_owned(), "410".to_owned()][..])
    );
    assert_eq!((sending.upstream.as_str(), sending.key_header.as_str()), ("stock", "x-request-id"));
    assert_eq!(
        (sending.timeout_ms, sending.uncertain_after_ms, sending.lease_ms),
        (7000, 9000, 11_000)
    );
    assert_eq!(sending.success, ["201", "409"]);
    assert_eq!(
        (sending.failure.as_slice(), sending.release_status.as_slice()),
        (&["4xx".to_owned()][..], &["503".to_owned()][..])
    );
    assert_eq!(sending.uncertain_status, ["5xx"]);
    let StepUncertain::Probe(probe) = &sending.on_uncertain else { panic!("{sending:?}") };
    assert_eq!((probe.method.as_str(), probe.map_status), ("GET", Some(201)));
    assert_eq!((probe.found.as_slice(), probe.absent.len()), (&["200".to_owned()][..], 2));
    assert_eq!(probe.found_if.as_deref(), Some("/data"));
    assert_eq!(probe.headers["authorization"], env("STOCK"));
    assert_eq!(probe.headers["accept"], FieldSource::Text("application/json".to_owned()));
    assert_eq!(*retry, StepRetry { first_ms: 1000, max_ms: 2000, attempts: 3 });
}

#[test]
fn a_step_waits_for_the_step_before_it_or_for_those_it_names() {
    let after = |steps: &[(&str, &str)]| -> Vec<Vec<usize>> {
        plan_of(steps).steps.into_iter().map(|step| step.after).collect()
    };
    assert_eq!(after(&[("a", UNDO), ("b", UNDO), ("c", UNDO)]), [vec![], vec![0], vec![1]]);
    let beside = format!("after = [\"a\"]\n{UNDO}");
    let both = format!("after = [\"b\", \"c\"]\n{UNDO}");
    let found = after(&[("a", UNDO), ("b", &beside), ("c", &beside), ("d", &both)]);
    assert_eq!(found, [vec![], vec![0], vec![0], vec![1, 2]]);
    // A step may stand before the steps that it waits for.
    let (late, early) = (format!("after = [\"b\"]\n{UNDO}"), format!("after = []\n{UNDO}"));
    assert_eq!(after(&[("a", &late), ("b", &early)]), [vec![1], vec![]]);
}

#[test]
fn a_faulty_order_is_refused() {
    let after = |list: &str| format!("after = {list}\n{UNDO}");
    let with = |lists: [&str; 3]| {
        let lines = lists.map(after);
        saga_of(&[("a", &lines[0]), ("b", &lines[1]), ("c", &lines[2])])
    };
    are_refused([
        (with(["[]", "[\"x\"]", "[]"]), "sagas[0].steps[1].after[0]", "no step named \"x\""),
        (with(["[]", "[\"a\", \"a\"]", "[]"]), "sagas[0].steps[1].after[1]", "a second time"),
        (with(["[]", "\"a\"", "[]"]), "sagas[0].steps[1].after", "found a string"),
        (with(["[]", "[1]", "[]"]), "sagas[0].steps[1].after[0]", "a step's name"),
        (with(["[]", "[\"b\"]", "[]"]), "sagas[0].steps[1].after", "\"b\" after \"b\""),
        (
            with(["[\"c\"]", "[\"a\"]", "[\"b\"]"]),
            "sagas[0].steps[0].after",
            "a circle, in which no step can begin: \"a\" after \"c\" after \"b\" after \"a\"",
        ),
        (
            with(["[]", "[\"c\", \"a\"]", "[\"b\"]"]),
            "sagas[0].steps[1].after",
            "\"b\" after \"c\" after \"b\"",
        ),
    ]);
    let near = load(&saga_of(&[("reserve", UNDO), ("charge", &after("[\"reserv\"]"))]));
    assert_eq!(near.unwrap_err().0[0].help.as_deref(), Some("did you mean \"reserve\"?"));
}

#[test]
fn every_step_before_the_pivot_needs_its_compensation() {
    // The pivot and the steps after it need no compensation.
    let plan = plan_of(&[("a", UNDO), ("b", "pivot = true"), ("c", "")]);
    let none = |step: &Step| step.compensation == Compensation::None;
    assert_eq!(plan.steps.iter().map(none).collect::<Vec<_>>(), [false, true, true]);
    assert_eq!(plan.steps.iter().map(|step| step.pivot).collect::<Vec<_>>(), [false, true, false]);
    assert!(none(&plan_of(&[("a", "compensate = \"none\"")]).steps[0]));
    let needs = "needs compensate";
    are_refused([
        (saga_of(&[("a", "")]), "sagas[0].steps[0]", needs),
        (saga_of(&[("a", UNDO), ("b", "")]), "sagas[0].steps[1]", needs),
        (saga_of(&[("a", ""), ("b", "pivot = true")]), "sagas[0].steps[0]", needs),
        (
            saga_of(&[("a", "compensate = \"nothing\"")]),
            "sagas[0].steps[0].compensate",
            "expected \"none\"",
        ),
        (saga_of(&[("a", "compensate = 1")]), "sagas[0].steps[0].compensate", "or \"none\""),
        (saga_of(&[("a", "compensate = {}")]), "sagas[0].steps[0].compensate.path", "needs path"),
        (
            saga_of(&[("a", "pivot = true"), ("b", "pivot = true")]),
            "sagas[0].steps[1].pivot",
            "a second pivot",
        ),
        (saga_of(&[("a", "pivot = \"yes\"")]), "sagas[0].steps[0].pivot", "true or false"),
        (
            saga_of(&[
                ("a", UNDO),
                ("b", "pivot = true"),
                ("c", "after = [\"a\"]\ncompensate = \"none\""),
            ]),
            "sagas[0].steps[2]",
            "neither before nor after the pivot \"b\"",
        ),
    ]);
    let fault = load(&saga_of(&[("a", "")])).unwrap_err().0.remove(0);
    assert!(fault.help.unwrap().contains("or \"none\" if nothing has to be undone"));
    let warned = load(&saga_of(&[("a", &format!("pivot = true\n{UNDO}"))])).unwrap().warnings;
    assert!(warned[0].starts_with("sagas[0].steps[0].compensate: not used"), "{warned:?}");
}

#[test]
fn a_saga_without_its_conditions_is_refused() {
    let without_keys = saga("").replace(KEYS, "");
    are_refused([
        (without_keys.clone(), "sagas", "needs [encryption]"),
        (saga("").replace("format = 3", "format = 2"), "sagas", "needs format = 3 under [store]"),
        (saga("").replace(STORE, ""), "sagas", "needs format = 3 under [store]"),
        (file("path = \"/c\""), "sagas[0].steps", "a saga needs steps"),
        (file("path = \"/c\"\nsteps = []"), "sagas[0].steps", "at least one step"),
        (file("path = \"/c\"\nsteps = 1"), "sagas[0].steps", "found an integer"),
        (saga("").replace("path = \"/c/{shop}\"\n", ""), "sagas[0].path", "a saga needs a path"),
        (format!("sagas = \"c\"\n{STORE}{KEYS}"), "sagas", "found a string"),
        (saga("stepz = 1"), "sagas[0].stepz", "no such key"),
    ]);
    let fault = load(&without_keys).unwrap_err().0.remove(0);
    assert!(fault.help.as_ref().unwrap().contains("`openssl rand -base64 32`"), "{fault}");
    let names: Vec<String> = (0..33).map(|at| format!("s{at}")).collect();
    let steps = |count: usize| {
        let steps: Vec<(&str, &str)> =
            names[..count].iter().map(|name| (name.as_str(), UNDO)).collect();
        saga_of(&steps)
    };
    assert_eq!(loaded(&steps(32)).plan.steps.len(), 32);
    are_refused([(steps(33), "sagas[0].steps", "at most 32 steps, found 33")]);
    // A file may have no saga, and then needs neither keys nor the format.
    assert!(load("sagas = []").unwrap().sagas.is_empty());
    // Format 3 permits events and trailers, too.
    assert!(load(STORE).unwrap().store.format.has_publications());
}

#[test]
fn a_saga_has_its_name_and_its_path_alone() {
    let route = |lines: &str| format!("{}[[routes]]\n{lines}\n", saga(""));
    let second = |lines: &str| format!("{}[[sagas]]\n{lines}\n{}", saga(""), step("reserve", UNDO));
    are_refused([
        (
            route("path = \"/c/{id}\"\nname = \"r\""),
            "sagas[0].path",
            "the route \"r\" has this path",
        ),
        (
            second("path = \"/c/{x}/\"\nname = \"s\""),
            "sagas[1].path",
            "the saga \"checkout\" has this path",
        ),
        (
            route("path = \"/p\"\nname = \"checkout\""),
            "sagas[0].name",
            "a second route or saga is named \"checkout\"",
        ),
        (second("path = \"/d\"\nname = \"checkout\""), "sagas[1].name", "a second route or saga"),
        (second("path = \"/d\"\nname = \"\""), "sagas[1].name", "a name without control"),
    ]);
    for lines in [
        "path = \"/c\"",
        "path = \"/c/{id}/x\"",
        "path = \"/{*rest}\"",
        "path = \"/c/{id}\"\nmethods = [\"PATCH\"]",
    ] {
        load(&route(lines)).unwrap_or_else(|faults| panic!("{lines}\n{faults}"));
    }
    // The name of a saga is its path, if it sets none.
    let unnamed = saga("").replace("name = \"checkout\"\n", "");
    assert_eq!(loaded(&unnamed).plan.saga, "/c/{shop}");
}

#[test]
fn rules_that_would_weaken_a_saga_are_refused() {
    for (line, key, piece) in [
        ("mode = \"shadow\"", "mode", "a saga always enforces"),
        ("mode = \"enforce\"", "mode", "a saga always enforces"),
        ("on_failure = \"fail_open\"", "on_failure", "\"fail_open\" is not for sagas"),
        ("on_mismatch = \"supersede\"", "on_mismatch", "\"supersede\" is not for sagas"),
        ("key = { required = false }", "key.required", "always requires a key"),
        ("upstream = \"stock\"", "upstream", "set it for a step"),
        ("store_status = [\"2xx\"]", "store_status", "success"),
        ("release_status = [\"500\"]", "release_status", "set it for a step"),
        ("uncertain_status = [\"500\"]", "uncertain_status", "set it for a step"),
        ("on_uncertain = \"forward\"", "on_uncertain", "set it for a step"),
        ("uncertain_after = \"1s\"", "uncertain_after", "set it for a step"),
        ("lease = \"20s\"", "lease", "set it for a step"),
        ("upstream_key = { max_length = 40 }", "upstream_key", "a step has `key`"),
        ("redact = [\"/a\"]", "redact", "only what `answer` writes"),
        ("drop_headers = [\"A\"]", "drop_headers", "only what `answer` writes"),
        ("keep_headers = [\"Authorization\"]", "keep_headers[0]", "can be a credential"),
        ("keep_headers = [\"X-Api-Key\"]", "keep_headers[0]", "can be a credential"),
        ("keep_headers = [\"A\", \"cookie\"]", "keep_headers[1]", "can be a credential"),
        ("keep_headers = [\"x-auth-token\"]", "keep_headers[0]", "can be a credential"),
        (
            "caller = { headers = [\"X-Who\"] }\nkeep_headers = [\"X-Who\"]",
            "keep_headers[0]",
            "can be a credential",
        ),
        ("keep_headers = [\"Idempotency-Key\"]", "keep_headers[0]", "only stored as a hash"),
        ("keep_headers = [\"Connection\"]", "keep_headers[0]", "belongs to one connection"),
        ("keep_headers = [\"a b\"]", "keep_headers[0]", "a header field's name"),
        ("keep_headers = \"A\"", "keep_headers", "found a string"),
        ("timeout = \"0s\"", "timeout", "above zero"),
        ("answer = { status = 400 }", "answer.status", "from 200 to 299"),
        ("answer = {}", "answer.status", "needs status"),
        ("answer = { status = 204, body = '1' }", "answer", "has no body"),
        ("answer = { status = 201, body = '{{ x' }", "answer.body", "not a template: line 1"),
        ("answer = { status = 201, type = 1 }", "answer.type", "no such key"),
        ("failed = { status = 200 }", "failed.status", "from 400 to 599"),
        ("failed = 409", "failed", "a table such as"),
        (
            "answer = { status = 200, body = '{{ steps.ship.body }}' }",
            "answer.body",
            "there is no step named \"ship\"",
        ),
    ] {
        are_refused([(saga(line), key_in_saga(key), piece)]);
    }
    // What only names the rule of every saga is accepted.
    for line in ["on_failure = \"fail_closed\"", "key = { required = true }"] {
        loaded(&saga(line));
    }
    let open = saga("").replace("format = 3", "format = 3\non_failure = \"fail_open\"");
    assert_eq!(loaded(&open).route.policy.on_failure, OnFailure::FailClosed);
}

/// Returns the whole path of a key of the first saga.
fn key_in_saga(key: &str) -> &'static str {
    format!("sagas[0].{key}").leak()
}

/// Returns a file with a step that has these lines and a compensation.
fn named(lines: &str) -> String {
    only_step(&format!("name = \"a\"\n{lines}\ncompensate = \"none\""))
}

/// Returns a file with a step that has these further lines.
fn with(lines: &str) -> String {
    named(&format!("{REQUEST}\n{lines}"))
}

/// Returns a file with a step that makes this request.
fn requesting(inside: &str) -> String {
    named(&format!("request = {{ {inside} }}"))
}

const REQUEST: &str = "request = { path = \"/r\" }";

/// Returns the whole path of a key of the first step.
fn key_in_step(key: &str) -> &'static str {
    format!("sagas[0].steps[0].{key}").leak()
}

#[test]
fn a_faulty_request_of_a_step_is_refused() {
    let key = key_in_step;
    are_refused([
        (only_step(&format!("{REQUEST}\n{UNDO}")), key("name"), "a step needs a name"),
        (with("").replace("name = \"a\"", "name = \"a-b\""), key("name"), "letters, digits and _"),
        (with("").replace("name = \"a\"", "name = \"1a\""), key("name"), "letters, digits and _"),
        (with("").replace("name = \"a\"", "name = \"\""), key("name"), "letters, digits and _"),
        (saga_of(&[("a", UNDO), ("a", UNDO)]), "sagas[0].steps[1].name", "a second step"),
        (named(""), key("request"), "a step needs request"),
        (named("request = \"/r\""), key("request"), "found a string"),
        (requesting("method = \"POST\""), key("request.path"), "needs path"),
        (requesting("path = \"r\""), key("request.path"), "begins with one slash"),
        (requesting("path = \"//r\""), key("request.path"), "begins with one slash"),
        (requesting("path = \"/a/../r\""), key("request.path"), "begins with one slash"),
        (requesting("path = \"/r#x\""), key("request.path"), "no fragment"),
        (requesting("path = \"/{{ x\""), key("request.path"), "not a template: line 1"),
        (requesting("path = \"/r\", method = \"post\""), key("request.method"), "a method such as"),
        (requesting("path = \"/r\", body = '{% if %}'"), key("request.body"), "not a template"),
        (requesting("path = \"/r\", query = 1"), key("request.query"), "no such key"),
        (
            requesting("path = \"/r\", headers = { Host = \"a\" }"),
            key("request.headers.Host"),
            "can be set for",
        ),
        (
            requesting("path = \"/r\", headers = { idempotency-key = \"a\" }"),
            key("request.headers.idempotency-key"),
            "can be set for",
        ),
        (
            requesting("path = \"/r\", headers = { Authorization = \"Bearer x\" }"),
            key("request.headers.Authorization"),
            "can be a credential",
        ),
        (
            requesting("path = \"/r\", headers = { A = {} }"),
            key("request.headers.A.env"),
            "named by env",
        ),
        (
            requesting("path = \"/r\", headers = { A = 1 }"),
            key("request.headers.A"),
            "a template, or",
        ),
        (
            requesting("path = \"/r\", headers = { A = \"{{ x\" }"),
            key("request.headers.A"),
            "not a template",
        ),
    ]);
}

#[test]
fn a_faulty_step_is_refused() {
    let key = key_in_step;
    are_refused([
        (with("upstream = \"stok\""), key("upstream"), "no upstream named \"stok\""),
        (with("key = { header = \"Host\" }"), key("key.header"), "Host can't be a key"),
        (with("key = { body = \"/k\" }"), key("key.body"), "no such key"),
        (with("timeout = \"6m\""), key("timeout"), "five minutes"),
        (with("success = []"), key("success"), "at least one status"),
        (with("success = [\"6xx\"]"), key("success[0]"), "is not a status"),
        (with("success = [\"200\"]\nfailure = [\"200\"]"), key("failure[0]"), "two of the lists"),
        (
            with("failure = [\"500\"]\nuncertain_status = [\"500\"]"),
            key("uncertain_status[0]"),
            "two of the lists",
        ),
        (with("store_status = [\"200\"]"), key("store_status"), "success and failure instead"),
        (with("on_uncertain = \"ask\""), key("on_uncertain"), "\"probe\""),
        (with("on_uncertain = \"probe\""), key("probe"), "needs probe"),
        (
            with(
                "on_uncertain = \"probe\"\nprobe = { path = \"/p/{key}\", headers = { Cookie = \"x\" } }",
            ),
            key("probe"),
            "can be a credential",
        ),
        (with("lease = \"900ms\""), key("lease"), "shorter than a second"),
        (with("retry = { first = \"1m\" }"), key("retry.first"), "longer than max"),
        (with("retry = { attempts = 0 }"), key("retry.attempts"), "from 1 to"),
        (with("retry = { age = \"1d\" }"), key("retry.age"), "no such key"),
        (with("when = \"request.body.a >\""), key("when"), "not a condition"),
        (with("when = true"), key("when"), "a condition such as"),
        (with("wen = \"x\""), key("wen"), "no such key"),
        (
            only_step(&format!(
                "name = \"a\"\n{REQUEST}\ncompensate = {{ path = \"/u\", gone = [\"x\"] }}"
            )),
            key("compensate.gone[0]"),
            "is not a status",
        ),
    ]);
    let near = load(&with("upstream = \"stok\"")).unwrap_err().0.remove(0);
    assert_eq!(near.help.as_deref(), Some("did you mean \"stock\"?"));
}

#[test]
fn a_given_status_replaces_an_inherited_one() {
    let plan = plan_of(&[(
        "a",
        "success = [\"2xx\", \"409\"]\nfailure = [\"4xx\", \"401\", \"503\"]\ncompensate = \"none\"",
    )]);
    let sending = &plan.steps[0].sending;
    assert!(!sending.release_status.contains(&"401".to_owned()), "{sending:?}");
    assert!(sending.release_status.contains(&"403".to_owned()), "{sending:?}");
    assert_eq!(sending.uncertain_status, ["502", "504"]);
    assert_eq!(sending.failure, ["4xx", "401", "503"]);
}

#[test]
fn a_template_names_only_what_is_before_it() {
    let using = |name: &str| format!("when = \"{name} == 1\"\ncompensate = \"none\"");
    let undone =
        |name: &str| format!("compensate = {{ path = \"/u\", body = '{{{{ {name} }}}}' }}");
    let beside = "after = [\"a\"]\ncompensate = \"none\"";
    // `b` and `c` are both after `a`, and `d` is after `c`.
    let four = |c: &str, d: &str| {
        let c = format!("after = [\"a\"]\n{c}");
        saga_of(&[("a", UNDO), ("b", beside), ("c", &c), ("d", d)])
    };
    let free = "compensate = \"none\"";
    for text in [
        four(&using("steps.a.body.id"), free),
        four(free, &using("steps.a.body.id")),
        four(free, &using("steps.c.headers.location")),
        four(&undone("steps.c.body.id"), &undone("steps.d.key")),
        four(&using("request.body.a.b"), &using("request.path.shop")),
        four(&using("request.headers.region"), &using("request.headers['x']")),
        four(&using("saga.id"), &using("saga.started_at")),
        four(&using("request.query.a"), &using("range(1)[0]")),
        four(&using("steps.a.status"), &undone("steps.a.headers.etag")),
    ] {
        load(&text).unwrap_or_else(|faults| panic!("{text}\n{faults}"));
    }
    let not_before = "is not before this one";
    for (text, key, piece) in [
        (four(&using("steps.b.body.id"), free), "steps[2].when", not_before),
        (four(&using("steps.d.body.id"), free), "steps[2].when", not_before),
        (four(&using("steps.c.body.id"), free), "steps[2].when", not_before),
        (four(&undone("steps.d.body.id"), free), "steps[2].compensate.body", not_before),
        (four(&undone("steps.b"), free), "steps[2].compensate.body", not_before),
        (four(&using("steps.e.body"), free), "steps[2].when", "no step named \"e\""),
        (four(&using("steps"), free), "steps[2].when", "write steps.NAME"),
        (four(&using("steps.a.boby"), free), "steps[2].when", "it has status, body, key, headers"),
        (four(&using("steps.a.headers.date"), free), "steps[2].when", "it has location, etag"),
        (four(&using("request.boby"), free), "steps[2].when", "it has body, headers, path, query"),
        (four(&using("request.path.id"), free), "steps[2].when", "no parameter {id}"),
        (four(&using("request.headers.zone"), free), "steps[2].when", "keep_headers"),
        (four(&using("saga.name"), free), "steps[2].when", "it has id, started_at"),
        (four(&using("event.id"), free), "steps[2].when", "there is no event.id"),
    ] {
        are_refused([(text, key_in_saga(key), piece)]);
    }
}

#[test]
fn a_check_describes_sagas_without_secrets() {
    let text = saga_of(&[
        (
            "reserve",
            "upstream = \"stock\"\ncompensate = { method = \"DELETE\", path = \"/r/{{ steps.reserve.body.id }}\", gone = [\"404\"], headers = { Authorization = { env = \"UNDO\" } } }",
        ),
        (
            "charge",
            "pivot = true\nwhen = \"request.body.amount > 0\"\non_uncertain = \"probe\"\nprobe = { path = \"/p/{key}\", headers = { X-A = \"c4n4ry\" } }",
        ),
        ("ship", "on_uncertain = \"forward\"\nretry = { attempts = 3 }"),
    ]);
    let text = text.replace(
        "request = { path = \"/charge\" }",
        "request = { path = \"/charge\", headers = { X-B = \"c4n4ry\", Authorization = { file = \"/run/t\" } } }",
    );
    let config = load(&text).unwrap_or_else(|faults| panic!("{text}\n{faults}"));
    let described = config.describe();
    let expected = include_str!("../../../tests/fixtures/config/sagas_described.txt");
    let sagas = described.split_once("sagas  ").unwrap().1;
    assert_eq!(format!("sagas  {sagas}").trim_end(), expected.trim_end(), "\n{described}");
    assert!(described.contains(", format 3") && !described.contains("c4n4ry"), "{described}");
}

#[test]
fn secrets_of_steps_are_read_by_the_source_that_the_plan_names() {
    let text = saga_of(&[(
        "a",
        "compensate = { path = \"/u\", headers = { A = { env = \"UNDO\" } } }\n\
         on_uncertain = \"probe\"\nprobe = { path = \"/p/{key}\", headers = { A = { env = \"ASK\" } } }",
    )]);
    let text = text.replace(
        "request = { path = \"/a\" }",
        "request = { path = \"/a\", headers = { A = { env = \"DO\" } } }",
    );
    let config = load(&text).unwrap();
    let key = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    let env = |name: &str| Some(if name == "A" { key } else { name }.to_owned());
    let secrets = config.resolve_secrets(env).unwrap();
    for name in ["DO", "UNDO", "ASK"] {
        let value = &secrets.saga_fields[&FieldSource::Env(name.to_owned())];
        assert_eq!(value, HeaderValue::from_str(name).unwrap());
    }
    assert!(!format!("{secrets:?}").contains("\"UNDO\": \"UNDO\""), "{secrets:?}");
    let faults = config.resolve_secrets(|name| (name == "A").then(|| key.to_owned())).unwrap_err();
    let keys: Vec<&str> = faults.0.iter().map(|fault| fault.key.as_str()).collect();
    assert_eq!(
        keys,
        [
            "sagas[0].steps[0].request.headers.a",
            "sagas[0].steps[0].compensate.headers.a",
            "sagas[0].steps[0].probe.headers.a"
        ]
    );
}

#[test]
fn a_saga_publishes_as_a_route_does() {
    let sink = "[[sinks]]\nname = \"ledger\"\n\
                webhook = { url = \"https://l/h\", secrets = [{ env = \"S\" }] }\n";
    let text = format!("{sink}{}[[sagas.publish]]\nto = [\"ledger\"]\n", saga(""));
    assert_eq!(loaded(&text).route.policy.publish.unwrap().rules.len(), 1);
    let text = text.replace("to = [\"ledger\"]", "to = [\"mail\"]");
    are_refused([(text, "sagas[0].publish[0].to[0]", "no sink named \"mail\"")]);
}

#[test]
fn a_saga_publishes_what_happens_to_it_and_a_route_does_not() {
    let sink = "[[sinks]]\nname = \"ledger\"\n\
                webhook = { url = \"https://l/h\", secrets = [{ env = \"S\" }] }\n";
    let rule = |on: &str, more: &str| {
        let rule = format!("[[sagas.publish]]\nto = [\"ledger\"]\non = [{on}]\n{more}\n");
        format!("{sink}{}{rule}", saga(""))
    };
    let all = AnnouncedState::OF_SAGAS.map(|state| format!("\"{}\"", state.name())).join(", ");
    let publish = loaded(&rule(&all, "")).route.policy.publish.unwrap();
    assert_eq!(publish.rules[0].on, AnnouncedState::OF_SAGAS);
    let (on, data) = ("sagas[0].publish[0].on[0]", "sagas[0].publish[0].data.saga");
    are_refused([
        (rule("\"uncertain\"", ""), on, "expected \"completed\" or \"saga.started\" or"),
        (rule("\"saga.ended\"", ""), on, "or \"saga.failed\", found \"saga.ended\""),
        (rule("\"saga.step\"", "data = { saga = \"response:/id\" }"), data, "choose another"),
    ]);
    let route = format!(
        "{sink}[store]\nformat = 2\n[[routes]]\npath = \"/v1/payments\"\n[[routes.publish]]\n\
         to = [\"ledger\"]\non = [\"saga.completed\"]\n"
    );
    let fault = "expected \"completed\" or \"uncertain\" or \"released\"";
    are_refused([(route, "routes[0].publish[0].on[0]", fault)]);
}

#[test]
fn the_number_of_sagas_has_a_limit() {
    assert_eq!(load("").unwrap().limits.sagas, 1000);
    assert_eq!(load("[limits]\nsagas = 5").unwrap().limits.sagas, 5);
    are_refused([("[limits]\nsagas = 0".to_owned(), "limits.sagas", "from 1 to")]);
}

#[test]
fn no_route_has_the_name_of_a_steps_operations() {
    let route = "[[routes]]\nname = \"checkout/reserve/undo\"\npath = \"/other\"\n";
    let text = format!("{}{route}", saga(""));
    are_refused([(text, "sagas[0]", "checkout/reserve/undo")]);
    loaded(&format!("{}{}", saga(""), route.replace("/undo", "/redo")));
}
