//! Tests of the configuration files in the repository.

use std::fs;
use std::path::Path;

use super::*;

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

#[test]
fn every_shipped_file_is_legal() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let mut count = 0;
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
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
    let block = DEFAULTS.lines().skip_while(|line| *line != "# [[routes]]");
    let is_setting = |line: &&str| {
        line.starts_with("[[") || line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '))
    };
    let text: Vec<&str> =
        block.filter_map(|line| line.strip_prefix("# ")).filter(is_setting).collect();
    // Name, path and upstream are examples. Scope and cors have no default.
    let is_example =
        |line: &&str| ["upstream", "scope", "cors"].iter().any(|name| line.starts_with(name));
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
fn the_default_file_alone_is_the_default() {
    let upstream = Some("http://127.0.0.1:9000".to_owned());
    let flags = Overrides { upstream, ..Overrides::default() };
    let bare = Config::load(None, flags.clone()).unwrap();
    let file = Config::load(Some(("default.toml", DEFAULTS)), flags).unwrap();
    assert_eq!(format!("{bare:?}"), format!("{file:?}"));
}
