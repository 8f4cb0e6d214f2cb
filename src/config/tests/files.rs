//! Tests of the configuration files in the repository.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::outbox::settings::SinkSettings;
use crate::record::AnnouncedState;

const PROFILES: [&str; 12] = [
    "acp",
    "adyen",
    "amazon-pay",
    "checkout",
    "google",
    "ietf",
    "modern-treasury",
    "openbanking",
    "paypal",
    "square",
    "stripe",
    "ucp",
];

/// Returns all files below a folder.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

#[test]
fn every_shipped_file_is_legal() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let mut count = 0;
    for path in files_below(&directory) {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if !name.ends_with(".toml") || name == "profiles.toml" {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        // The default file names no upstream.
        let upstream = (name == "default.toml").then(|| "http://127.0.0.1:9000".to_owned());
        let config =
            Config::load(Some((&name, &text)), Overrides { upstream, ..Overrides::default() })
                .unwrap_or_else(|faults| panic!("{faults}"));
        assert!(config.routes.iter().all(|route| config.describe().contains(&route.name)));
        count += 1;
    }
    assert!(count >= 6, "found only {count}");
}

#[test]
fn every_example_of_the_guide_is_legal() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/CONFIGURATION.md");
    let guide = fs::read_to_string(path).unwrap();
    let examples: Vec<&str> = guide.split("```toml\n").skip(1).collect();
    assert!(examples.len() > 10, "found only {}", examples.len());
    for example in examples {
        let text = example.split("```").next().unwrap_or_default();
        let upstream = Some("http://127.0.0.1:9000".to_owned());
        let flags = Overrides { upstream, ..Overrides::default() };
        Config::load(Some(("example.toml", text)), flags)
            .unwrap_or_else(|faults| panic!("{faults}"));
    }
}

#[test]
fn every_profile_is_legal_and_has_a_line_of_its_own() {
    let report = FaultCollector::default();
    let source = ConfigSource::parse("profiles.toml", profiles::TEXT, false, &report);
    let profiles = Profiles::of(&Table::roots(&report, [&source]));
    assert_eq!(profiles.names().collect::<Vec<_>>(), PROFILES);
    for name in PROFILES {
        let route = route(&format!("profile = \"{name}\""));
        assert_eq!(route.profile, name);
        let unmet = route
            .policy
            .statuses
            .verdict(http::StatusCode::EXPECTATION_FAILED, &http::HeaderMap::new());
        assert_eq!(
            unmet,
            crate::engine::Verdict::Release,
            "{name}: a 417 means that nothing was done"
        );
        assert!(
            name == "ietf"
                || format!("{:?}", route.policy) != format!("{:?}", self::route("").policy),
            "{name}"
        );
        assert!(DEFAULTS.contains(&format!("\"{name}\"")), "{name} is not documented");
    }
}

#[test]
fn the_documented_route_is_the_ietf_profile() {
    // The rules at the end have no defaults: without them a route publishes nothing.
    let block = DEFAULTS
        .lines()
        .skip_while(|line| *line != "# [[routes]]")
        .take_while(|line| *line != "# [[routes.publish]]");
    let is_setting = |line: &&str| {
        line.starts_with("[[") || line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '))
    };
    let text: Vec<&str> =
        block.filter_map(|line| line.strip_prefix("# ")).filter(is_setting).collect();
    // Name, path and upstream are examples. Scope, resource and cors have no default.
    const EXAMPLES: [&str; 5] = ["upstream", "scope", "cors", "resource", "on_stale"];
    let is_example = |line: &&str| EXAMPLES.iter().any(|name| line.starts_with(name));
    let text: Vec<&str> = text.into_iter().filter(|line| !is_example(line)).collect();
    assert!(text.len() > 22, "{text:?}");
    let documented =
        load(&text.join("\n")).unwrap_or_else(|faults| panic!("{faults}")).routes.remove(0);
    let default = load("[[routes]]\nname = \"payments\"\npath = \"/v1/payments/{*rest}\"\n")
        .unwrap()
        .routes
        .remove(0);
    assert_eq!(format!("{documented:?}"), format!("{default:?}"));
}

#[test]
fn every_value_of_the_ietf_profile_is_documented() {
    let report = FaultCollector::default();
    let source = ConfigSource::parse("profiles.toml", profiles::TEXT, false, &report);
    assert!(report.finish(&[&source]).is_ok());
    let ietf = profiles::TEXT.split("[ietf]").nth(1).unwrap().split("\n[").next().unwrap();
    let settings: Vec<&str> = ietf.lines().filter(|line| line.contains(" = ")).collect();
    assert!(settings.len() > 15);
    for line in settings {
        assert!(DEFAULTS.contains(&format!("\n# {line}")), "{line}");
    }
}

#[test]
fn the_documented_sink_has_the_default_settings() {
    let documented = documented("[[sinks]]");
    assert!(documented.lines().count() > 8, "{documented}");
    let sink = load(&documented).unwrap_or_else(|faults| panic!("{faults}")).sinks.remove(0);
    let default = SinkSettings::new("ledger", sink.settings.target.clone());
    assert_eq!(sink.settings, default);
}

#[test]
fn the_documented_events_are_legal() {
    let text = format!(
        "[store]\nformat = 2\n[encryption]\nkeys = [{{ id = \"a\", env = \"A\" }}]\n{}[[routes]]\n\
         path = \"/p\"\n{}",
        documented("[[sinks]]"),
        documented("[[routes.publish]]")
    );
    let config = load(&text).unwrap_or_else(|faults| panic!("{faults}"));
    let publish = config.routes[0].policy.publish.as_ref().unwrap();
    assert_eq!(publish.rules[0].on, [AnnouncedState::Completed]);
    assert_eq!(publish.rules[0].members.len(), 3);
}

/// Returns the commented table under a header, with its settings only.
fn documented(header: &str) -> String {
    let block = DEFAULTS.lines().skip_while(|line| line.strip_prefix("# ") != Some(header)).skip(1);
    let comments = block.map_while(|line| line.strip_prefix("# "));
    let is_setting =
        |line: &&str| line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '));
    comments.filter(is_setting).fold(format!("{header}\n"), |text, line| text + line + "\n")
}

#[test]
fn the_default_settings_of_events_are_those_of_the_file() {
    assert_eq!(load("").unwrap().outbox, OutboxSettings::default());
}

#[test]
fn the_default_file_alone_is_the_default() {
    let upstream = Some("http://127.0.0.1:9000".to_owned());
    let flags = Overrides { upstream, ..Overrides::default() };
    let bare = Config::load(None, flags.clone()).unwrap();
    let file = Config::load(Some(("default.toml", DEFAULTS)), flags).unwrap();
    assert_eq!(format!("{bare:?}"), format!("{file:?}"));
}
