//! Tests of `[outbox]`, `[[sinks]]` and `[[routes.publish]]`.

use http::HeaderMap;

use super::*;
use crate::engine::{PublishRules, Side};
use crate::outbox::settings::{SinkTarget, WebhookTarget};
use crate::record::{AnnouncedState, StatusClass};

const SECOND: Duration = Duration::from_secs(1);
const FORMAT: &str = "[store]\nformat = 2\n";
const KEYS: &str = "[encryption]\nkeys = [{ id = \"a\", env = \"A\" }]\n";
/// The rest of a sink with the key `webhook`.
const WEBHOOK: &str =
    "webhook = { url = \"https://ledger.internal/hooks\", secrets = [{ env = \"S\" }] }\n";

/// Returns a file with a sink. `lines` are further lines of the sink.
fn sink(lines: &str) -> String {
    format!("[[sinks]]\nname = \"ledger\"\n{WEBHOOK}{lines}\n")
}

/// Returns a file with a sink that has this webhook.
fn webhook(inside: &str) -> String {
    format!("[[sinks]]\nname = \"ledger\"\nwebhook = {{ {inside} }}\n")
}

/// Returns a file with two sinks and a route. `lines` are further lines of the route.
fn publishing(lines: &str) -> String {
    let sinks = sink("") + &sink("").replace("ledger", "mail");
    format!("{FORMAT}{KEYS}{sinks}[[routes]]\npath = \"/p\"\n{lines}\n")
}

/// Returns a file with one rule for the sink `ledger`. `lines` are further lines of the rule.
fn rule(lines: &str) -> String {
    publishing(&format!("[[routes.publish]]\nto = [\"ledger\"]\n{lines}"))
}

fn rules_of(text: &str) -> Arc<PublishRules> {
    let config = load(text).unwrap_or_else(|faults| panic!("{text}\n{faults}"));
    config.routes[0].policy.publish.clone().unwrap()
}

fn target(config: &Config) -> &WebhookTarget {
    match &config.sinks[0].settings.target {
        SinkTarget::Webhook(webhook) => webhook,
        other => panic!("{other:?}"),
    }
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
fn without_settings_there_is_no_sink_and_no_route_publishes() {
    let config = load("").unwrap();
    assert!(config.sinks.is_empty());
    assert!(config.routes[0].policy.publish.is_none());
    assert!(!config.describe().contains("sink"), "{}", config.describe());
}

#[test]
fn a_sink_has_the_values_of_the_file() {
    let lines = "timeout = \"3s\"\nconcurrency = 2\nrate = 50\nmax_backlog = 10\n\
                 max_bytes = \"1MiB\"\n\
                 retry = { first = \"1s\", max = \"10s\", attempts = 7, age = \"1h\" }";
    let settings = load(&sink(lines)).unwrap().sinks.remove(0).settings;
    assert_eq!((settings.timeout, settings.concurrency, settings.rate), (3 * SECOND, 2, 50));
    assert_eq!((settings.max_backlog, settings.max_bytes), (10, 1 << 20));
    let retry = settings.retry;
    assert_eq!((retry.first, retry.max), (SECOND, 10 * SECOND));
    assert_eq!((retry.attempts, retry.age), (7, 3600 * SECOND));
}

#[test]
fn a_short_longest_pause_also_shortens_the_default_first_one() {
    let retry = load(&sink("retry = { max = \"2s\" }")).unwrap().sinks[0].settings.retry;
    assert_eq!((retry.first, retry.max), (2 * SECOND, 2 * SECOND));
}

#[test]
fn the_settings_of_all_events_reach_the_rules() {
    let text = "[outbox]\nsource = \"https://pay.example.com/%C3%A4\"\nevent_bytes = \"1KiB\"\n";
    let rules = rules_of(&(text.to_owned() + &rule("")));
    assert_eq!(rules.source, "https://pay.example.com/%C3%A4");
    assert_eq!(rules.event_bytes, 1024);
}

#[test]
fn a_rule_has_the_values_of_the_file() {
    let rules = rules_of(&publishing(
        "[[routes.publish]]\non = [\"completed\", \"released\"]\nstatus = [\"2XX\", \"404\"]\n\
         to = [\"mail\", \"ledger\"]\ntype = \"com.example.paid\"\n\
         data = { order = \"request:/order/id\", whole = \"response:\", a-b = \"response:/a~1b\" }",
    ));
    let [rule] = rules.rules.as_slice() else { panic!("{rules:?}") };
    assert_eq!(rule.on, [AnnouncedState::Completed, AnnouncedState::Released]);
    assert_eq!(rule.statuses, [StatusClass::Class(2), StatusClass::Code(404)]);
    assert_eq!(
        (rule.to.as_slice(), rule.kind.as_deref()),
        (&["mail".to_owned(), "ledger".to_owned()][..], Some("com.example.paid"))
    );
    let mut members: Vec<_> = rule
        .members
        .iter()
        .map(|member| (member.name.as_str(), member.side, member.pointer.as_str()))
        .collect();
    members.sort_by_key(|(name, ..)| *name);
    assert_eq!(
        members,
        [
            ("a-b", Side::Response, "/a~1b"),
            ("order", Side::Request, "/order/id"),
            ("whole", Side::Response, ""),
        ]
    );
}

#[test]
fn a_rule_is_about_completed_operations_unless_it_names_other_states() {
    let rules = rules_of(&rule(""));
    let rule = &rules.rules[0];
    assert_eq!((rule.on.as_slice(), rule.kind.as_ref()), (&[AnnouncedState::Completed][..], None));
    assert!(rule.statuses.is_empty() && rule.members.is_empty());
}

#[test]
fn members_of_the_response_need_no_encryption() {
    let text = rule("data = { id = \"response:/id\" }").replace(KEYS, "");
    assert_eq!(rules_of(&text).rules[0].members.len(), 1);
}

#[test]
fn a_member_may_contain_what_is_redacted() {
    let route = "redact = [\"/card/number\"]\n[[routes.publish]]\nto = [\"ledger\"]\n";
    for place in ["request:", "response:/card", "response:/card/numbers"] {
        rules_of(&publishing(&format!("{route}data = {{ card = \"{place}\" }}")));
    }
}

#[test]
fn rules_that_differ_in_type_state_or_status_are_accepted() {
    for (one, other) in [
        ("type = \"a\"", "type = \"b\""),
        ("", "on = [\"uncertain\"]"),
        ("on = [\"completed\", \"uncertain\"]", "on = [\"released\"]"),
        ("status = [\"2xx\"]", "status = [\"4xx\", \"500\"]"),
        ("type = \"a\"", "type = \"a\"\non = [\"uncertain\"]"),
        ("on = [\"uncertain\"]", "on = [\"uncertain\"]\ntype = \"a\""),
    ] {
        let rule = |lines: &str| format!("[[routes.publish]]\nto = [\"ledger\"]\n{lines}\n");
        rules_of(&publishing(&(rule(one) + &rule(other))));
    }
}

#[test]
fn rules_of_one_type_that_overlap_are_refused() {
    for (one, other, state) in [
        ("", "", "completed"),
        ("", "status = [\"2xx\"]", "completed"),
        ("status = [\"201\"]", "status = [\"4xx\", \"2xx\"]", "completed"),
        ("type = \"a\"", "type = \"a\"", "completed"),
        ("", "type = \"onceward.operation.completed\"", "completed"),
        ("on = [\"uncertain\"]", "on = [\"released\", \"uncertain\"]", "uncertain"),
        (
            "on = [\"completed\", \"released\"]\nstatus = [\"2xx\"]",
            "on = [\"completed\", \"released\"]\nstatus = [\"4xx\"]",
            "released",
        ),
    ] {
        let rule = |lines: &str| format!("[[routes.publish]]\nto = [\"ledger\"]\n{lines}\n");
        let fault = fault_of(load(&publishing(&(rule(one) + &rule(other)))));
        assert!(
            fault.starts_with("routes[0].publish[1]: publish[0] also makes events of the type \"")
                && fault.contains(&format!("for {state} operations")),
            "{one}\n{other}\n{fault}"
        );
    }
}

#[test]
fn routes_that_do_not_enforce_publish_nothing() {
    for mode in ["shadow", "off"] {
        let text =
            publishing(&format!("mode = \"{mode}\"\n[[routes.publish]]\nto = [\"ledger\"]\n"));
        let config = load(&text).unwrap();
        assert!(config.routes[0].policy.publish.is_none());
        let warning =
            format!("routes[0].publish: not used: a route with mode = \"{mode}\" makes no events");
        assert_eq!(config.warnings, [warning]);
    }
}

#[test]
fn members_that_are_never_there_cause_a_warning() {
    let members = "data = { id = \"response:/id\" }";
    let never = load(&rule(&format!("on = [\"uncertain\"]\n{members}"))).unwrap().warnings;
    assert!(never[0].starts_with("routes[0].publish[0].data: members of the resp"), "{never:?}");
    let often = load(&rule(&format!("on = [\"uncertain\", \"completed\"]\n{members}"))).unwrap();
    assert_eq!(often.warnings, Vec::<String>::new());
}

#[test]
fn a_file_of_authorities_is_for_https() {
    let with = |url: &str| {
        webhook(&format!("url = \"{url}\", secrets = [{{ env = \"S\" }}], ca_file = \"ca.pem\""))
    };
    let config = load(&with("https://a")).unwrap();
    assert_eq!(target(&config).ca_file.as_deref(), Some("ca.pem".as_ref()));
    assert_eq!(config.warnings, Vec::<String>::new());
    let unused = load(&with("http://a")).unwrap().warnings;
    assert_eq!(unused, ["sinks[0].webhook.ca_file: not used: the url is not https"]);
}

#[test]
fn faulty_sinks_are_refused() {
    let named = |name: &str| sink("").replace("\"ledger\"", name);
    let without_name = sink("").replace("name = \"ledger\"\n", "");
    let nats = "nats = { url = \"nats://a:4222\", subject = \"s\" }\n";
    let stream = "redis_stream = { url = \"redis://a\", stream = \"s\" }\n";
    let call = "call = { route = \"r\" }\n";
    let only = |kind: &str| format!("[[sinks]]\nname = \"a\"\n{kind}");
    let many: String =
        (0..33).map(|number| sink("").replace("ledger", &format!("s{number}"))).collect();
    are_refused([
        ("sinks = 1".to_owned(), "sinks", "found an integer"),
        ("sinks = [1]".to_owned(), "sinks[0]", "found an integer"),
        (many, "sinks", "at most 32 sinks, found 33"),
        (without_name, "sinks[0].name", "needs a name"),
        (named("\"Ledger\""), "sinks[0].name", "1 to 64 lower-case letters, digits and -"),
        (named("\"a_b\""), "sinks[0].name", "1 to 64 lower-case letters"),
        (named("\"\""), "sinks[0].name", "1 to 64 lower-case letters"),
        (named(&format!("\"{}\"", "a".repeat(65))), "sinks[0].name", "1 to 64 lower-case"),
        (sink("") + &sink(""), "sinks[1].name", "a second sink is named \"ledger\""),
        (only(""), "sinks[0].webhook", "needs a receiver: webhook = "),
        (only(call), "sinks[0].call.path", "a call needs path"),
        (sink(nats), "sinks[0].nats", "one receiver: remove webhook or nats"),
        (sink(stream), "sinks[0].redis_stream", "one receiver: remove webhook or redis_stream"),
        (only(&format!("{nats}{call}")), "sinks[0].call", "one receiver: remove nats or call"),
        (sink("timeout = \"0s\""), "sinks[0].timeout", "above zero"),
        (sink("timeout = \"301s\""), "sinks[0].timeout", "five minutes"),
        (sink("concurrency = 0"), "sinks[0].concurrency", "from 1 to 1024"),
        (sink("rate = -1"), "sinks[0].rate", "from 0 to 1000000"),
        (sink("max_backlog = 0"), "sinks[0].max_backlog", "from 1 to"),
        (sink("max_bytes = \"1KiB\""), "sinks[0].max_bytes", "from \"4096B\""),
        (sink("retries = 1"), "sinks[0].retries", "no such key"),
        (sink("retry = 5"), "sinks[0].retry", "found an integer"),
        (sink("retry = { first = \"2h\" }"), "sinks[0].retry.first", "longer than max"),
        (sink("retry = { max = \"8d\" }"), "sinks[0].retry.max", "seven days"),
        (sink("retry = { attempts = -1 }"), "sinks[0].retry.attempts", "from 0 to"),
        (sink("retry = { age = \"0s\" }"), "sinks[0].retry.age", "above zero"),
        (sink("retry = { ago = \"1d\" }"), "sinks[0].retry.ago", "no such key"),
    ]);
    let most: String =
        (0..32).map(|number| sink("").replace("ledger", &format!("s{number}"))).collect();
    assert_eq!(load(&most).unwrap().sinks.len(), 32);
    load(&named(&format!("\"{}\"", "a".repeat(64)))).unwrap();
}

#[test]
fn faulty_webhooks_are_refused() {
    let url = |url: &str| webhook(&format!("url = \"{url}\", secrets = [{{ env = \"S\" }}]"));
    let with = |rest: &str| webhook(&format!("url = \"https://a/b\", {rest}"));
    let secrets = |secrets: &str| with(&format!("secrets = {secrets}"));
    let nine: Vec<String> = (0..9).map(|number| format!("{{ env = \"S{number}\" }}")).collect();
    are_refused([
        (webhook("secrets = [{ env = \"S\" }]"), "sinks[0].webhook.url", "a webhook needs a url"),
        (url("ftp://a"), "sinks[0].webhook.url", "http or https"),
        (url("a:80"), "sinks[0].webhook.url", "http or https"),
        (url("https://:80/"), "sinks[0].webhook.url", "http or https"),
        (url("https://a:0/b"), "sinks[0].webhook.url", "http or https"),
        (url("https://u:p@a/b"), "sinks[0].webhook.url", "has no credentials"),
        (url("https://a/b#c"), "sinks[0].webhook.url", "has no fragment"),
        (webhook("url = \"https://a\""), "sinks[0].webhook.secrets", "needs a list of secrets"),
        (secrets("[]"), "sinks[0].webhook.secrets", "1 to 8 secrets"),
        (secrets(&format!("[{}]", nine.join(","))), "sinks[0].webhook.secrets", "1 to 8 secrets"),
        (secrets("\"whsec_x\""), "sinks[0].webhook.secrets", "found a string"),
        (secrets("[\"whsec_x\"]"), "sinks[0].webhook.secrets[0]", "found a string"),
        (secrets("[{}]"), "sinks[0].webhook.secrets[0].env", "the secret of a webhook"),
        (
            secrets("[{ env = \"A\" }, { env = \"A\" }]"),
            "sinks[0].webhook.secrets[1]",
            "a second time",
        ),
        (
            with("secrets = [{ env = \"A\" }], ca_file = \"\""),
            "sinks[0].webhook.ca_file",
            "a file's name",
        ),
        (
            with("secrets = [{ env = \"A\" }], method = \"PUT\""),
            "sinks[0].webhook.method",
            "no such key",
        ),
    ]);
    for sound in ["https://a", "http://127.0.0.1:8080/x?y=z", "https://[::1]:1/"] {
        assert_eq!(target(&load(&url(sound)).unwrap()).url, sound.parse::<Uri>().unwrap());
    }
}

#[test]
fn fields_that_the_sink_or_the_connection_sets_are_refused() {
    let with = |name: &str| {
        webhook(&format!(
            "url = \"https://a\", secrets = [{{ env = \"S\" }}], headers = {{ {name} = \"x\" }}"
        ))
    };
    for name in [
        "Host",
        "Content-Length",
        "Transfer-Encoding",
        "Connection",
        "Keep-Alive",
        "TE",
        "Trailer",
        "Upgrade",
        "Expect",
        "Proxy-Connection",
        "Proxy-Authorization",
        "Content-Type",
        "Content-Encoding",
        "Webhook-Id",
        "webhook-signature",
    ] {
        let fault = fault_of(load(&with(name)));
        let key = format!("sinks[0].webhook.headers.{name}: ");
        assert!(fault.starts_with(&key) && fault.contains("can be set for a webhook"), "{fault}");
    }
    let config = load(&with("X-Api-Key")).unwrap();
    assert_eq!(target(&config).headers["x-api-key"], "x");
}

#[test]
fn faulty_settings_of_all_events_are_refused() {
    let outbox = |lines: &str| format!("[outbox]\n{lines}");
    let long = format!("source = \"{}\"", "a".repeat(257));
    let redis = "[store]\nurl = \"redis://a\"\n[outbox]\nrelay = false";
    are_refused([
        (outbox("source = \"\""), "outbox.source", "expected a URI"),
        (outbox("source = \"the payments\""), "outbox.source", "expected a URI"),
        (outbox("source = \"urn:a%2\""), "outbox.source", "expected a URI"),
        (outbox(&long), "outbox.source", "at most 256 bytes"),
        (outbox("event_bytes = \"1000B\""), "outbox.event_bytes", "from \"1024B\""),
        (outbox("event_bytes = \"17MiB\""), "outbox.event_bytes", "at most \"16MiB\""),
        (outbox("relay = 1"), "outbox.relay", "true or false"),
        (outbox("relay = false"), "outbox.relay", "no other process can read this store"),
        (outbox("relays = true"), "outbox.relays", "no such key"),
    ]);
    let apart = load(redis).unwrap();
    assert!(!apart.outbox.relay);
    assert!(apart.describe().contains("\noutbox    delivered by other processes\n"));
}

#[test]
fn faulty_rules_are_refused() {
    let many = "[[routes.publish]]\n".repeat(9);
    let long = format!("type = \"{}\"", "a".repeat(257));
    are_refused([
        (publishing("publish = 1"), "routes[0].publish", "found an integer"),
        (publishing(&many), "routes[0].publish", "at most 8 rules"),
        (publishing("[[routes.publish]]"), "routes[0].publish[0].to", "a rule needs to"),
        (rule("").replace(FORMAT, ""), "routes[0].publish", "needs format = 2 under [store]"),
        (rule("on = []"), "routes[0].publish[0].on", "at least one"),
        (rule("on = [\"expired\"]"), "routes[0].publish[0].on[0]", "\"completed\" or"),
        (rule("on = [\"released\", \"released\"]"), "routes[0].publish[0].on[1]", "a second time"),
        (rule("status = []"), "routes[0].publish[0].status", "at least one"),
        (rule("status = [\"6xx\"]"), "routes[0].publish[0].status[0]", "is not a status"),
        (rule("status = [\"+2xx\"]"), "routes[0].publish[0].status[0]", "is not a status"),
        (rule("status = [200]"), "routes[0].publish[0].status[0]", "found an integer"),
        (
            rule("status = [\"2xx\"]\non = [\"uncertain\"]"),
            "routes[0].publish[0].status",
            "add \"completed\" to on",
        ),
        (rule("type = \"\""), "routes[0].publish[0].type", "visible ASCII"),
        (rule("type = \"a b\""), "routes[0].publish[0].type", "visible ASCII"),
        (rule(&long), "routes[0].publish[0].type", "1 to 256"),
        (rule("kind = \"a\""), "routes[0].publish[0].kind", "no such key"),
        (rule("").replace("to = [\"ledger\"]", "to = []"), "routes[0].publish[0].to", "at least"),
        (
            rule("").replace("to = [\"ledger\"]", "to = [\"mail\", \"mail\"]"),
            "routes[0].publish[0].to[1]",
            "a second time",
        ),
        (
            rule("").replace("to = [\"ledger\"]", "to = [\"stock\"]"),
            "routes[0].publish[0].to[0]",
            "there is no sink named \"stock\"",
        ),
    ]);
}

#[test]
fn faulty_members_are_refused() {
    let member = |member: &str| rule(&format!("data = {{ {member} }}"));
    let redacted = |place: &str| {
        publishing(&format!(
            "redact = [\"/card\"]\n[[routes.publish]]\nto = [\"ledger\"]\n\
             data = {{ a = \"{place}\" }}"
        ))
    };
    let many: Vec<String> = (0..33).map(|number| format!("m{number} = \"response:\"")).collect();
    are_refused([
        (rule("data = \"response:\""), "routes[0].publish[0].data", "found a string"),
        (member(&many.join(", ")), "routes[0].publish[0].data", "at most 32 members"),
        (member("a = \"/id\""), "routes[0].publish[0].data.a", "a body and a JSON pointer"),
        (member("a = \"header:/id\""), "routes[0].publish[0].data.a", "a body and a JSON"),
        (member("a = \"response:id\""), "routes[0].publish[0].data.a", "a body and a JSON"),
        (member("a = \"response:/~2\""), "routes[0].publish[0].data.a", "a body and a JSON"),
        (member("\"a b\" = \"response:/id\""), "routes[0].publish[0].data.a b", "1 to 32 letters"),
        (member("\"\" = \"response:/id\""), "routes[0].publish[0].data.", "1 to 32 letters"),
        (
            member("a = \"request:/id\"").replace(KEYS, ""),
            "routes[0].publish[0].data.a",
            "needs [encryption]",
        ),
        (redacted("response:/card"), "routes[0].publish[0].data.a", "redact replaces /card"),
        (redacted("request:/card/number"), "routes[0].publish[0].data.a", "redact replaces /card"),
    ]);
    for name in crate::event::RESERVED_MEMBERS {
        let fault = fault_of(load(&member(&format!("{name} = \"response:/id\""))));
        assert!(fault.contains("every event has a member of this name"), "{fault}");
    }
}

#[test]
fn a_sink_that_is_faulty_is_not_also_missing() {
    let text = rule("").replace("name = \"ledger\"", "name = \"ledger\"\nrate = -1");
    assert!(fault_of(load(&text)).starts_with("sinks[0].rate: "));
    let text = rule("").replace("name = \"ledger\"", "name = \"Ledger\"");
    assert!(fault_of(load(&text)).starts_with("sinks[0].name: "));
}

#[test]
fn the_nearest_sink_is_suggested() {
    let text = rule("").replace("to = [\"ledger\"]", "to = [\"leger\"]");
    assert_eq!(load(&text).unwrap_err().0[0].help.as_deref(), Some("did you mean \"ledger\"?"));
}

#[test]
fn the_secrets_of_sinks_are_read_when_they_are_needed() {
    let text = webhook(
        "url = \"https://a\", secrets = [{ env = \"NEW\" }, { env = \"OLD\" }], \
         headers = { A = \"plain\", B = { env = \"B\" } }",
    );
    let mut config = load(&text).unwrap();
    assert!(target(&config).secrets.is_empty());
    let env = |name: &str| match name {
        "NEW" => Some("whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3\n".to_owned()),
        "OLD" => Some("c4n4ry-c4n4ry-c4n4ry-c4n4ry".to_owned()),
        _ => Some("c4n4ry".to_owned()),
    };
    let secrets = config.resolve_secrets(env).unwrap();
    config.add_secrets(&secrets);
    let WebhookTarget { secrets: signing, headers, .. } = target(&config);
    assert_eq!(*signing, [&b"0123456789abcdef01234567"[..], b"c4n4ry-c4n4ry-c4n4ry-c4n4ry"]);
    let expected: HeaderMap = [("a", "plain"), ("b", "c4n4ry")]
        .map(|(name, value)| (name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap()))
        .into_iter()
        .collect();
    assert_eq!(*headers, expected);
    assert!(!format!("{config:?}{secrets:?}").contains("c4n4ry"));
}

#[test]
fn weak_and_missing_secrets_of_sinks_are_refused() {
    let text = webhook(
        "url = \"https://a\", secrets = [{ env = \"NEW\" }, { env = \"OLD\" }], \
         headers = { B = { env = \"B\" } }",
    );
    let config = load(&text).unwrap();
    let long = "0123456789abcdef01234567";
    let refusal = |new: Option<&str>, old: &str, field: &str| {
        let env = |name: &str| match name {
            "NEW" => new.map(str::to_owned),
            "OLD" => Some(old.to_owned()),
            _ => Some(field.to_owned()),
        };
        fault_of(config.resolve_secrets(env).map(|_| unreachable!("accepted")))
    };
    for (weak, bytes) in
        [(long.replace('7', ""), 22), ("whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY=".into(), 23)]
    {
        assert_eq!(
            refusal(Some(long), &weak, "x"),
            format!(
                "sinks[0].webhook.secrets[1]: the secret has {bytes} bytes; expected at least 24"
            )
        );
    }
    assert_eq!(
        refusal(Some(long), "whsec_not-base64-but-long-enough", "x"),
        "sinks[0].webhook.secrets[1]: expected base64 after `whsec_`"
    );
    assert_eq!(
        refusal(Some(long), long, "x"),
        "sinks[0].webhook.secrets[1]: the same secret a second time"
    );
    assert_eq!(
        refusal(None, long, "x"),
        "sinks[0].webhook.secrets[0]: the environment variable NEW is not set"
    );
    assert_eq!(
        refusal(Some(long), &long.replace('0', "x"), "a\nb"),
        "sinks[0].webhook.headers.b: expected a field's value: visible characters"
    );
}

#[test]
fn sinks_and_rules_are_described_without_path_and_query() {
    let text = publishing(
        "[[routes.publish]]\nto = [\"ledger\", \"mail\"]\nstatus = [\"2xx\", \"404\"]\n\
         on = [\"completed\", \"uncertain\"]\ntype = \"com.example.paid\"\n\
         [[routes.publish]]\non = [\"released\"]\nto = [\"mail\"]",
    );
    let text = text.replace("/hooks", ":8443/hooks/T0K3N?a=T0K3N").replacen(
        "name = \"ledger\"",
        "name = \"ledger\"\nrate = 5\nretry = { attempts = 9 }",
        1,
    );
    let config = load(&text).unwrap();
    let described = config.describe();
    for line in [
        "sink      ledger: webhook https://ledger.internal:8443, timeout 15s, at most 5 attempts \
         per second, given up after 3d or 9 attempts\n",
        "sink      mail: webhook https://mail.internal:8443, timeout 15s, given up after 3d\n",
        "     publishes completed (2xx, 404), uncertain to ledger, mail as com.example.paid\n",
        "     publishes released to mail\n",
    ] {
        assert!(described.contains(line), "{described}");
    }
    assert!(!format!("{described}{config:?}").contains("T0K3N"), "{config:?}");
}

/// Returns a file with a sink that calls the route `ship`. `call` are the members of the call.
fn call(call: &str) -> String {
    format!(
        "{FORMAT}{KEYS}[[sinks]]\nname = \"book\"\ncall = {{ {call} }}\n\
         [[routes]]\nname = \"ship\"\npath = \"/ship\"\n\
         [[routes]]\nname = \"watched\"\npath = \"/watched\"\nmode = \"shadow\"\n\
         [[routes]]\nname = \"derived\"\npath = \"/derived\"\nkey = {{ derive = [\"path\"] }}\n\
         [[routes]]\nname = \"short\"\npath = \"/short\"\nkey = {{ max_length = 20 }}\n"
    )
}

#[test]
fn a_call_has_the_values_of_the_file() {
    let text = call(
        "route = \"ship\", path = \"/ship?order={{ data.order }}\", \
         body = '{\"order\": {{ data.order }}}', headers = { X-A = \"1\", Authorization = { env = \"T\" } }",
    );
    let config = load(&text).unwrap_or_else(|faults| panic!("{faults}"));
    let SinkTarget::Call(target) = &config.sinks[0].settings.target else { panic!() };
    assert_eq!((target.route.as_str(), target.method.as_str()), ("ship", "POST"));
    assert_eq!(target.path.source(), "/ship?order={{ data.order }}");
    assert_eq!(target.body.as_ref().unwrap().source(), "{\"order\": {{ data.order }}}");
    assert_eq!(target.headers["x-a"], "1");
    assert_eq!(config.sinks[0].secret_headers[0].0, "authorization");
    assert!(config.describe().contains("sink      book: call route ship"), "{}", config.describe());
}

#[test]
fn a_call_without_a_protecting_route_is_refused() {
    let whole = "path = \"/ship\"";
    are_refused([
        (
            call("route = \"shop\", path = \"/ship\""),
            "sinks[0].call.route",
            "no route named \"shop\"",
        ),
        (call(&format!("route = \"watched\", {whole}")), "sinks[0].call.route", "does not enforce"),
        (call(&format!("route = \"derived\", {whole}")), "sinks[0].call.route", "no header field"),
        (
            call(&format!("route = \"short\", {whole}")),
            "sinks[0].call.route",
            "refuses the keys of calls",
        ),
        (
            call(&format!("route = \"ship\", {whole}")).replace(KEYS, ""),
            "sinks[0].call.route",
            "needs [encryption]",
        ),
        (
            call("route = \"ship\", path = \"/{{ order }}\""),
            "sinks[0].call.path",
            "there is no order",
        ),
        (
            call(&format!("route = \"ship\", {whole}, method = \"GET\"")),
            "sinks[0].call.route",
            "does not cover the method GET",
        ),
        (
            call(&format!("route = \"ship\", {whole}, headers = {{ Idempotency-Key = \"k\" }}")),
            "sinks[0].call.route",
            "headers can't have idempotency-key",
        ),
        (call("route = \"ship\""), "sinks[0].call.path", "a call needs path"),
        (call(whole), "sinks[0].call.route", "a call needs route"),
        (call("route = \"ship\", path = \"ship\""), "sinks[0].call.path", "begins with /"),
        (
            call("route = \"ship\", path = \"/{{ x\""),
            "sinks[0].call.path",
            "not a template: line 1",
        ),
        (
            call("route = \"ship\", path = \"/{{ data.order | shout }}\""),
            "sinks[0].call.path",
            "filter shout is unknown",
        ),
        (
            call(&format!("route = \"ship\", {whole}, body = '{{% if %}}'")),
            "sinks[0].call.body",
            "not a template",
        ),
        (
            call(&format!("route = \"ship\", {whole}, headers = {{ Host = \"a\" }}")),
            "sinks[0].call.headers.Host",
            "can be set for a call",
        ),
    ]);
}

#[test]
fn a_circle_of_calls_is_a_warning() {
    let rule = "[[routes.publish]]\nto = [\"book\"]\n";
    let text = call("route = \"ship\", path = \"/ship\"");
    let warnings = load(&text).unwrap().warnings;
    assert!(warnings.iter().all(|warning| !warning.contains("circle")), "{warnings:?}");
    let circle = text.replace("path = \"/ship\"\n", &format!("path = \"/ship\"\n{rule}"));
    let warnings = load(&circle).unwrap().warnings;
    let found = warnings.iter().any(|warning| warning.contains("circle (book -> book)"));
    assert!(found, "{warnings:?}");
}

#[test]
fn a_member_that_no_rule_publishes_to_the_sink_is_a_warning() {
    let text = call("route = \"ship\", path = \"/{{ data.order }}/{{ data.status }}\"");
    let warned = |text: &str| {
        let warnings = load(text).unwrap_or_else(|faults| panic!("{faults}")).warnings;
        warnings.iter().any(|warning| warning.contains("data.order"))
    };
    assert!(!warned(&text), "no rule publishes to the sink yet");
    let rule = |member: &str| {
        let rule = "[[routes]]\nname = \"paid\"\npath = \"/paid\"\n[[routes.publish]]\n";
        format!("{text}{rule}to = [\"book\"]\ndata = {{ {member} = \"response:/id\" }}\n")
    };
    assert!(warned(&rule("payment")));
    assert!(!warned(&rule("order")));
}

#[test]
fn a_call_to_a_faulty_route_has_no_fault_of_its_own() {
    let text = call("route = \"ship\", path = \"/ship\"");
    let faulty = text.replace("path = \"/ship\"\n", "path = \"/ship\"\nlease = \"soon\"\n");
    let fault = fault_of(load(&faulty));
    assert!(fault.starts_with("routes[0].lease: "), "{fault}");
}
