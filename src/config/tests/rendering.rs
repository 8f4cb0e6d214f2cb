//! Tests of messages: faults and configurations are readable, and no secret appears.

use proptest::prelude::*;

use super::*;

fn golden(name: &str, text: &str, expected: &str) {
    let shown = Config::load(Some((name, text)), Overrides::default()).unwrap_err().to_string();
    assert_eq!(shown.trim_end(), expected.trim_end(), "\n{shown}");
}

#[test]
fn all_faults_of_a_file_are_shown_at_once() {
    golden(
        "many_faults.toml",
        include_str!("../../../tests/fixtures/config/many_faults.toml"),
        include_str!("../../../tests/fixtures/config/many_faults.txt"),
    );
}

#[test]
fn faults_of_sinks_and_rules_show_no_path_of_a_url() {
    golden(
        "sinks.toml",
        include_str!("../../../tests/fixtures/config/sinks.toml"),
        include_str!("../../../tests/fixtures/config/sinks.txt"),
    );
}

#[test]
fn faults_of_sagas_are_shown_with_their_remedies_and_without_secrets() {
    golden(
        "sagas.toml",
        include_str!("../../../tests/fixtures/config/sagas.toml"),
        include_str!("../../../tests/fixtures/config/sagas.txt"),
    );
}

#[test]
fn a_line_that_does_not_parse_is_blamed_for_its_syntax_only() {
    golden(
        "syntax.toml",
        include_str!("../../../tests/fixtures/config/syntax.toml"),
        include_str!("../../../tests/fixtures/config/syntax.txt"),
    );
}

#[test]
fn a_wrong_key_is_taken_for_the_nearest_right_one() {
    let help = |text: &str| load(text).unwrap_err().0[0].help.clone();
    assert_eq!(help("lisen = \"127.0.0.1:1\"").as_deref(), Some("did you mean `listen`?"));
    assert_eq!(help("[limits]\nin_fligth = 1").as_deref(), Some("did you mean `in_flight`?"));
    assert_eq!(
        help("[[routes]]\npath = \"/p\"\nkey = { headr = \"X\" }").as_deref(),
        Some("did you mean `header`?")
    );
    assert_eq!(
        help("[[routes]]\npath = \"/p\"\nmode = \"enforced\"").as_deref(),
        Some("did you mean \"enforce\"?")
    );
    assert_eq!(help("zebra = 1"), None);
}

#[test]
fn a_caret_marks_characters_and_not_bytes() {
    let faults =
        load("[[routes]]\npath = \"/p\"\nkey = { header = \"\u{e4}\u{f6}\", required = 1 }")
            .unwrap_err();
    let shown = faults.0[1].to_string();
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines[0], "error: routes[0].key.required: expected true or false, found an integer");
    assert_eq!(lines[1], " --> test.toml:3:35");
    assert_eq!(lines[4].find('^').unwrap(), lines[3].chars().position(|c| c == '1').unwrap());
}

#[test]
fn control_characters_of_a_file_do_not_reach_the_terminal() {
    let shown = load("listen = \"\u{7f}\"\n\tadmin = 1 # \u{1b}[31m\n").unwrap_err().to_string();
    assert!(shown.chars().all(|c| c == '\n' || !c.is_control()), "{shown:?}");
}

/// The texts of this test contain the canary in all places where people write passwords, correctly
/// or by mistake.
const CANARY: &str = "c4n4ry";
const LEAKS: &[&str] = &[
    "[upstream]\nurl = \"http://me:c4n4ry@host\"",
    "[upstream]\nurl = \"http://c4n4ry@host\"",
    "[upstream]\nurl = \"http://me:p@c4n4ry/x@host\"",
    "[upstream]\nurl = http://me:c4n4ry@host",
    "[upstream]\nurl = \"http://me:c4n4ry@host",
    "[upstream]\nurl = \"\"\"http://me:c4n4ry\n@host\"\"\"",
    "[upstream]\npassword = \"c4n4ry\"",
    "[upstream]\npasswd = c4n4ry",
    "[store]\nurl = \"redis://:c4n4ry@host\"",
    "[store]\nurl = \"rediss://me:c4n4ry@host:6380/x\"",
    "[store]\nurl = \"redis://:\\\"c4n4ry@host\"",
    "[store]\nurl = \"redis+cluster://:c4n4ry@a,b\"",
    "[store]\nurl = \"redis+sentinel://:c4n4ry@a,b/m\"",
    "[store]\nurl = \"unix:///run/redis.sock?db=x&pass=c4n4ry\"",
    "[store]\nurl = \"unix:///run/redis.sock?pass=c4n4ry&db=1\"",
    "[store]\nurl = \"reddis://:c4n4ry@host\"",
    "[store]\nurl = \"redis://:c4n4ry@host#insecure\"",
    "[store]\nauth = \"c4n4ry\"",
    "[store]\nurl = { password = \"c4n4ry\", x = 1 }",
    "problem_base_url = \"https://me:c4n4ry@docs\"",
    "[admin_auth]\ntokens = [{ name = \"a\", role = \"read\", token = \"c4n4ry\" }]",
    "[admin_auth]\ntokens = [{ name = \"a\", role = \"read\", value = \"c4n4ry\", env = 1 }]",
    "[admin_auth]\ntokens = \"c4n4ry\"",
    "[admin_auth]\ntokens = [\"c4n4ry\"]",
    "[admin_auth]\ntokens = { a = \"c4n4ry\" }",
    "hashing = { secrets = [\"c4n4ry\"] }",
    "[tracing]\nheaders = { Authorization = \"c4n4ry\" }\nsample_ratio = 2",
    "[tracing]\notlp_endpoint = \"http://me:c4n4ry@collector\"",
    "[hashing]\nsecrets = \"c4n4ry\"",
    "[hashing]\nsecrets = [{ secret = \"c4n4ry\" }]",
    "[[routes]]\npath = \"/p\"\nprobe = { headers = { Authorization = \"Bearer c4n4ry\" } }",
    "[[sinks]]\nwebhook = { url = \"https://a/c4n4ry\", secret = 1 }",
    "[[sinks]]\nwebhook = { url = \"https://a?c4n4ry\", secrets = 1 }",
    "[[sinks]]\nwebhook = { url = \"https://c4n4ry@a/b\" }",
    "[[sinks]]\nwebhook = { url = \"ftp://a/c4n4ry\" }",
    "[[sinks]]\nwebhook = { url = [\"https://a/c4n4ry\"] }",
    "[[sinks]]\nwebhook = { urls = \"https://a/c4n4ry\" }",
    "[[sinks]]\nwebhook = \"https://a/c4n4ry\"",
    "[[sinks]]\nwebhook = { url = \"https://a/c4n4ry",
    "[[sinks]]\nwebhook = { url = https://a?c4n4ry }",
    "[sinks.webhook]\nurl = \"https://a/\\c4n4ry\" x",
    "[[sinks]]\nwebhok = { url = \"https://a/c4n4ry\" }",
    "[[sinks]]\nurl = \"https://a/c4n4ry\"",
    "[[sinks]]\nnats = { url = \"nats://me:c4n4ry@a\", subject = \"s\" }",
    "[[sinks]]\nnats = { url = \"nats://me:c4n4ry@a/path\", subject = \"s\" }",
    "[[sinks]]\nnats = { url = \"nats://c4n4ry@a\", subject = \"a b\", token = \"c4n4ry\" }",
    "[[sinks]]\nredis_stream = \"redis://a/c4n4ry\"",
    "[[sinks]]\nredis_stream = { url = \"redis://me:c4n4ry@a\", stream = 1, max_length = -1 }",
    "[[sinks]]\nredis_stream = { urls = \"redis://me:c4n4ry@a\", stream = \"s\" }",
    "[[sinks]]\nredis_stream = { url = { value = \"redis://me:c4n4ry@a\" }, stream = \"s\" }",
    "[[sinks]]\nwebhook = { url = \"https://a/b\", secrets = [\"c4n4ry\"] }",
    "[[sinks]]\nwebhook = { url = \"https://a/b\", secrets = \"c4n4ry\" }",
    "[[sinks]]\nwebhook = { url = \"https://a/b\", secrets = [{ value = \"c4n4ry\" }] }",
    "[[sinks]]\nwebhook = { url = \"https://a/b\", headers = { \"webhook-id\" = \"c4n4ry\" } }",
    "sinks = \"https://a/c4n4ry\"",
    "sinks = [\"https://a/c4n4ry\"]",
    "[[sinks]]\nname = \"a\"\nwebhook = { url = \"https://a/c4n4ry\", secrets = [{ env = \"A\" }], \
     headers = { A = \"c4n4ry\" } }\n[upstream]\nurl = \"http://u\"",
    "[[sagas]]\nsteps = [{ request = { headers = { Authorization = \"c4n4ry\" } } }]",
    "[[sagas]]\nsteps = [{ request = { headers = { Host = \"c4n4ry\", A = [\"c4n4ry\"] } } }]",
    "[[sagas]]\nsteps = [{ compensate = { headers = { X-Token = \"c4n4ry\" } } }]",
    "[[sagas]]\nsteps = [{ probe = { headers = { Cookie = \"c4n4ry\" } } }]",
    "[[sagas]]\nsteps = [{ request = { heders = { Authorization = \"c4n4ry\" } } }]",
    "zebra.stripe = \"c4n4ry\"",
    "zebra = [{ stripe = [\"c4n4ry\", 1] }]",
    "secret = 'c4n4ry",
];

#[test]
fn no_message_shows_a_password() {
    for text in LEAKS {
        for flags in [
            Overrides::default(),
            Overrides { admin: Some("nowhere".to_owned()), ..Overrides::default() },
        ] {
            match Config::load(Some(("test.toml", text)), flags) {
                Ok(config) => {
                    assert!(!format!("{config:?}{}", config.describe()).contains(CANARY), "{text}")
                }
                Err(faults) => {
                    assert!(!format!("{faults}{faults:?}").contains(CANARY), "{text}\n{faults}")
                }
            }
        }
    }
}

#[test]
fn flags_with_passwords_are_masked_too() {
    for store in [
        "redis://:c4n4ry@127.0.0.1:6379/2",
        "redis://:c4n4ry@127.0.0.1:0x/2",
        "unix:///s?pass=c4n4ry",
    ] {
        let upstream = Some("http://host".to_owned());
        let flags = Overrides { upstream, store: Some(store.to_owned()), ..Overrides::default() };
        assert!(!format!("{flags:?}").contains(CANARY));
        match Config::load(None, flags) {
            Ok(config) => {
                let shown = format!(
                    "{config:?}{}{}{:?}",
                    config.describe(),
                    config.store.url,
                    config.warnings
                );
                assert!(shown.contains("***") && !shown.contains(CANARY), "{shown}");
            }
            Err(faults) => assert!(!format!("{faults}{faults:?}").contains(CANARY)),
        }
    }
    let flags =
        Overrides { upstream: Some("http://me:c4n4ry@host".to_owned()), ..Overrides::default() };
    assert!(
        !format!("{flags:?}{}", Config::load(None, flags.clone()).unwrap_err()).contains(CANARY)
    );
}

#[test]
fn the_user_of_a_url_is_still_seen() {
    assert_eq!(
        secret::masked_url("redis://me:pw@host:1/0?pass=a&db=1"),
        "redis://me:***@host:1/0?pass=***&db=1"
    );
    assert_eq!(secret::masked_url("redis://host:1/0"), "redis://host:1/0");
}

fn fragment() -> impl Strategy<Value = String> {
    let lines: Vec<&str> = DEFAULTS.lines().map(|line| line.trim_start_matches("# ")).collect();
    prop_oneof![
        4 => proptest::sample::select(lines).prop_map(str::to_owned),
        1 => "[\\[\\]{}=\"'#.,a-z0-9 \u{e4}\n]{0,12}",
        1 => Just("[[routes]]".to_owned()),
        1 => Just("[[routes]]\npath = \"/{x}\"".to_owned()),
        1 => any::<String>(),
    ]
}

proptest! {
    #[test]
    fn any_text_is_a_configuration_or_a_list_of_faults(
        lines in proptest::collection::vec(fragment(), 0..30),
    ) {
        let text = lines.join("\n");
        if let Err(faults) = Config::load(Some(("any.toml", &text)), Overrides::default()) {
            prop_assert!(!faults.0.is_empty());
            let _ = faults.to_string();
        }
    }

    #[test]
    fn any_flag_is_taken_or_refused(
        text in any::<String>(),
        scheme in "(http|redis|rediss|unix|file|memory)?",
    ) {
        let url = Some(format!("{scheme}://{text}"));
        let listen = Some(text.clone());
        let flags = Overrides { upstream: url.clone(), store: url, listen, admin: Some(text) };
        let _ = Config::load(None, flags);
    }
}
