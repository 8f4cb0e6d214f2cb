//! The deployment examples: their commands, probes and timeouts match the gateway.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use onceward::config::{Config, Overrides};

use crate::harness::{Gateway, RedisServer, Upstream, free_port};

const COMPOSE: &str = "config/compose.yml";
const KUBERNETES: &str = "config/kubernetes.yaml";
const UNIT: &str = "config/onceward.service";

fn read(file: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file))
        .unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Returns the indented text below the last such line of a YAML file.
fn below(text: &str, line: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let at = lines
        .iter()
        .rposition(|found| found.trim() == line)
        .unwrap_or_else(|| panic!("no line `{line}`"));
    let depth = |line: &str| line.len() - line.trim_start().len();
    let inner = lines[at + 1..]
        .iter()
        .take_while(|found| found.trim().is_empty() || depth(found) > depth(lines[at]));
    inner
        .map(|found| found.get(depth(lines[at]) + 2..).unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

/// Returns the text after a name at the beginning of a line.
fn value<'a>(text: &'a str, name: &str) -> &'a str {
    let found = text.lines().find_map(|line| line.trim().strip_prefix(name));
    found.unwrap_or_else(|| panic!("no {name}")).trim()
}

fn seconds(text: &str) -> Duration {
    Duration::from_secs(
        text.trim_end_matches('s')
            .parse()
            .unwrap_or_else(|_| panic!("no number of seconds: {text}")),
    )
}

/// Loads a configuration as `onceward run` would.
fn config(file: &str, text: &str) -> Config {
    let overrides =
        Overrides { upstream: Some("http://127.0.0.1:9".to_owned()), ..Overrides::default() };
    let config =
        Config::load(Some((file, text)), overrides).unwrap_or_else(|faults| panic!("{faults}"));
    assert!(
        config.routes.iter().any(|route| route.policy.key.required),
        "{file}: more than nothing was read"
    );
    config
}

fn compose() -> Config {
    config(COMPOSE, &below(&below(&below(&read(COMPOSE), "configs:"), "onceward:"), "content: |"))
}

fn kubernetes() -> Config {
    config(KUBERNETES, &below(&read(KUBERNETES), "onceward.toml: |"))
}

#[test]
fn what_the_examples_run_is_real() {
    let (compose, pods, unit) = (read(COMPOSE), read(KUBERNETES), read(UNIT));
    // The Redis server's command begins with its name.
    let of_compose = compose.lines().filter_map(|line| line.trim().strip_prefix("command: "));
    let of_compose = of_compose.map(|words| serde_json::from_str::<Vec<String>>(words).unwrap());
    let mut commands: Vec<Vec<String>> =
        of_compose.filter(|words| words[0] != "redis-server").collect();
    commands.push(serde_json::from_str(value(&pods, "args:")).unwrap());
    let started: Vec<String> = value(&unit, "ExecStart=").split(' ').map(str::to_owned).collect();
    assert!(started[0].ends_with("/onceward"));
    commands.push(started[1..].to_vec());
    assert_eq!(commands.len(), 3);
    for command in commands {
        let help = Command::new(env!("CARGO_BIN_EXE_onceward"))
            .args(&command)
            .arg("--help")
            .output()
            .unwrap();
        assert!(help.status.success(), "{command:?}: {}", String::from_utf8_lossy(&help.stderr));
    }
}

#[test]
fn nobody_is_killed_before_draining_is_over() {
    let margin = Duration::from_secs(5);
    let default =
        config(UNIT, "[[routes]]\npath = \"/p\"\nkey = { required = true }").drain_timeout;
    assert!(seconds(value(&read(UNIT), "TimeoutStopSec=")) >= default + margin);
    assert!(
        seconds(value(&read(COMPOSE), "stop_grace_period:")) >= compose().drain_timeout + margin
    );
    let pods = read(KUBERNETES);
    let waited = value(&pods, "sleep: { seconds:").trim_end_matches(['}', ' ']);
    let grace = seconds(value(&pods, "terminationGracePeriodSeconds:"));
    assert!(grace >= seconds(waited) + kubernetes().drain_timeout + margin);
}

#[test]
fn the_unit_waits_for_notifications_and_reloads_by_a_signal() {
    let unit = read(UNIT);
    assert_eq!(value(&unit, "Type="), "notify");
    assert!(
        seconds(value(&unit, "WatchdogSec=")) >= Duration::from_secs(10),
        "a busy machine is no dead process"
    );
    assert_eq!(
        value(&unit, "ExecReload="),
        "/bin/kill -HUP $MAINPID",
        "tests/it/reload.rs shows what it does"
    );
    // The default store's directory is relative.
    assert_eq!(
        value(&unit, "WorkingDirectory="),
        format!("/var/lib/{}", value(&unit, "StateDirectory="))
    );
}

#[test]
fn pods_run_as_the_images_user_and_probe_paths_that_the_gateway_answers() {
    let (pods, image) = (read(KUBERNETES), read("Dockerfile"));
    assert_eq!(value(&pods, "runAsUser:"), value(&image, "USER "));
    let config = kubernetes();
    assert_eq!(
        value(&pods, "- { name: http, containerPort:"),
        format!("{} }}", config.listen.port())
    );
    assert_eq!(
        value(&pods, "- { name: admin, containerPort:"),
        format!("{} }}", config.admin.port())
    );
    assert_eq!(value(&pods, "prometheus.io/port:"), format!("\"{}\"", config.admin.port()));
    let upstream = Upstream::start();
    let gateway = Gateway::start(upstream.port);
    let probed: Vec<&str> =
        pods.lines().filter_map(|line| line.trim().strip_prefix("httpGet: { path: ")).collect();
    assert_eq!(probed.len(), 2);
    for probe in probed {
        let path = probe.strip_suffix(", port: admin }").unwrap();
        assert_eq!(gateway.ask("GET", path).status, 200, "{path}");
    }
}

#[test]
fn every_secret_that_a_configuration_names_is_given() {
    for (file, config) in [(COMPOSE, compose()), (KUBERNETES, kubernetes())] {
        let text = read(file);
        let given = |name: &str| {
            let given = text.contains(&format!("{name}: ${{{name}:?"))
                || text.contains(&format!("- name: {name}\n"));
            given.then(|| "a-secret-that-is-long-enough".to_owned())
        };
        let secrets =
            config.resolve_secrets(given).unwrap_or_else(|faults| panic!("{file}: {faults}"));
        assert_eq!(secrets.admin_tokens.len(), 1, "{file}");
    }
}

#[test]
fn the_redis_of_the_example_is_one_that_loses_nothing() {
    let text = below(&read(COMPOSE), "redis:");
    let command: Vec<String> = serde_json::from_str(value(&text, "command:")).unwrap();
    let settings: Vec<&str> = command[1..].iter().map(String::as_str).collect();
    let redis = RedisServer::with(free_port(), &settings);
    let doctor = Command::new(env!("CARGO_BIN_EXE_onceward"))
        .args(["doctor", "--store", &redis.url()])
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&doctor.stdout);
    assert!(
        doctor.status.success() && output.contains("every write is on disk before it is answered"),
        "{output}"
    );
    // The doctor detects a server that may lose records.
    let careless = RedisServer::start();
    let doctor = Command::new(env!("CARGO_BIN_EXE_onceward"))
        .args(["doctor", "--store", &careless.url()])
        .output()
        .unwrap();
    assert!(!doctor.status.success());
}
