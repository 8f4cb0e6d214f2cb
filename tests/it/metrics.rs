//! The documented metrics are those that a gateway prints, and alerts and dashboards use no others.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::harness::{Gateway, RedisServer, Request, Upstream, free_port, until};

/// A documented or printed metric: its type, and the values of each label. A route, a sink or a
/// saga may have any value.
#[derive(Debug, Default, PartialEq, Eq)]
struct Metric {
    kind: String,
    labels: BTreeMap<String, BTreeSet<String>>,
}

/// The metrics by the name that queries use.
type Metrics = BTreeMap<String, Metric>;

fn read(file: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file))
        .unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Returns the words between backticks.
fn words(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Parses the table of docs/METRICS.md.
fn documented() -> Metrics {
    let text = read("docs/METRICS.md");
    let rows = text.lines().filter(|line| line.starts_with("| `onceward_"));
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        assert_eq!(cells.len(), 5, "{row}");
        let labels = cells[2].split(';').filter(|label| label.contains('`')).map(|label| {
            let mut words = words(label).into_iter();
            (words.next().unwrap(), words.collect())
        });
        (words(cells[0]).remove(0), Metric { kind: cells[1].to_owned(), labels: labels.collect() })
    })
    .collect()
}

/// Parses the printed metrics into the same form. `le` and the suffixes of histograms belong to
/// their type.
fn printed(text: &str) -> Metrics {
    let mut metrics = Metrics::new();
    let mut family = (String::new(), String::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            family = (name.to_owned(), kind.to_owned());
        }
        if line.starts_with('#') {
            continue;
        }
        let (sample, _) = line.rsplit_once(' ').unwrap();
        let (name, labels) = sample.split_once('{').unwrap_or((sample, ""));
        assert!(name.starts_with(&family.0), "{name} stands under {}", family.0);
        let name = if family.1 == "histogram" { &family.0 } else { name };
        let metric = metrics
            .entry(name.to_owned())
            .or_insert_with(|| Metric { kind: family.1.clone(), ..Metric::default() });
        for label in labels.trim_end_matches('}').split("\",").filter(|label| !label.is_empty()) {
            let (label, value) = label.split_once("=\"").unwrap();
            if label != "le" {
                metric
                    .labels
                    .entry(label.to_owned())
                    .or_default()
                    .insert(value.trim_end_matches('"').to_owned());
            }
        }
    }
    metrics
}

/// Returns the metrics of a gateway after traffic on a protected and on a watched route. Three
/// more have resources. The protected route publishes to a sink with a receiver, and to one
/// without.
fn seen() -> Metrics {
    let (upstream, redis) = (Upstream::start(), RedisServer::start());
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "a secret of more than 24 bytes").unwrap();
    let key = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(key.path(), "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=").unwrap();
    let saga = format!(
        "[encryption]\nkeys = [{{ id = \"a\", file = {:?} }}]\n[[sagas]]\nname = \"order\"\n\
         path = \"/v1/orders\"\n[[sagas.steps]]\nname = \"ship\"\ncompensate = \"none\"\n\
         request = {{ path = \"/v1/shipments\" }}\n",
        key.path()
    );
    let sink = |name: &str, port: u16| {
        format!(
            "[[sinks]]\nname = {name:?}\nretry = {{ first = \"10ms\", attempts = 2 }}\n\
             webhook = {{ url = \"http://127.0.0.1:{port}/\", secrets = [{{ file = {:?} }}] }}\n",
            secret.path()
        )
    };
    let sinks = [sink("ledger", upstream.port), sink("nobody", free_port())].concat();
    let publish = "[[routes.publish]]\nto = [\"ledger\", \"nobody\"]\n";
    let watched = "[[routes]]\nname = \"watched\"\npath = \"/v1/watched\"\nmode = \"shadow\"\n";
    let tagged = ["reject", "overwrite", "merge"].map(|on_stale| {
        format!(
            "[[routes]]\npath = \"/v1/{on_stale}/plans\"\nmethods = [\"GET\", \"PATCH\"]\n\
             resource = {{}}\non_stale = {on_stale:?}\n"
        )
    });
    let tagged = tagged.concat();
    let gateway = Gateway::on(
        upstream.port,
        &redis.url(),
        &format!("[store]\nformat = 3\n{saga}{sinks}"),
        &format!("{}{publish}{watched}{tagged}", crate::harness::ROUTES),
    );
    for _ in 0..2 {
        assert_eq!(Request::pay("k", "{}").send(gateway.port).status, 201);
        let watched = Request::new("POST", "/v1/watched").field("Idempotency-Key", "k").body("x");
        assert_eq!(watched.send(gateway.port).status, 201);
    }
    until("both routes to be counted", || {
        gateway.metric("onceward_shadow_total{route=\"watched\",would=\"execute\"}") >= 1.0
    });
    for (sink, result) in [("ledger", "delivered"), ("nobody", "buried")] {
        let metric =
            format!("onceward_outbox_deliveries_total{{sink=\"{sink}\",result=\"{result}\"}}");
        until("both sinks to be counted", || gateway.metric(&metric) >= 1.0);
    }
    printed(&gateway.ask("GET", "/metrics").text())
}

#[test]
fn every_metric_that_is_printed_is_documented_and_the_other_way_round() {
    let (documented, seen) = (documented(), seen());
    let names = |metrics: &Metrics| metrics.keys().cloned().collect::<Vec<_>>();
    assert!(seen.len() > 20, "only {} were printed", seen.len());
    assert_eq!(names(&documented), names(&seen));
    for (name, written) in &documented {
        let found = &seen[name];
        assert_eq!(written.kind, found.kind, "{name}");
        let labels = |metric: &Metric| metric.labels.keys().cloned().collect::<Vec<_>>();
        assert_eq!(labels(written), labels(found), "{name}");
        for (label, values) in &written.labels {
            match label.as_str() {
                "route" | "sink" | "saga" => {
                    assert!(values.is_empty(), "{name}: {label} is a configured name")
                }
                // These appear with the first request of their kind.
                "would" => assert!(
                    found.labels[label].is_subset(values),
                    "{name}: {:?}",
                    found.labels[label]
                ),
                _ => assert_eq!(values, &found.labels[label], "{name}, {label}"),
            }
        }
    }
}

#[test]
fn what_enforcing_would_have_done_is_documented_word_by_word() {
    // A story can't cause each outcome, so the label values are read from the source.
    let layer = [read("src/layer/shadow.rs"), read("src/refusal/kind.rs")].concat();
    let gate = read("src/gate/shadow.rs");
    let counted =
        [&gate, &layer].into_iter().flat_map(|text| text.split("count_shadow(\"").skip(1));
    let mut source_values: BTreeSet<String> =
        counted.map(|rest| rest.split('"').next().unwrap().to_owned()).collect();
    for text in [gate, layer] {
        let table = text.split("fn would").nth(1).unwrap();
        let table = table.split_whitespace().collect::<Vec<_>>().join(" ");
        // rustfmt puts the value of a long arm into a block.
        let table = table.replace("=> { \"", "=> \"");
        let words = table.split("=> \"").skip(1);
        source_values.extend(words.map(|rest| rest.split('"').next().unwrap().to_owned()));
    }
    assert_eq!(documented()["onceward_shadow_total"].labels["would"], source_values);
}

/// The names of metrics in a text.
fn named(text: &str) -> BTreeSet<String> {
    let starts = text.match_indices("onceward_").map(|(at, _)| at);
    starts
        .map(|at| {
            text[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
        })
        .collect()
}

#[test]
fn alerts_and_dashboard_use_metrics_that_exist() {
    let documented = documented();
    for file in ["config/alerts.yml", "config/grafana.json"] {
        let named = named(&read(file));
        assert!(named.len() > 4, "{file}: {named:?}");
        for name in named {
            let is_histogram =
                |name: &str| documented.get(name).is_some_and(|metric| metric.kind == "histogram");
            let parts = ["_bucket", "_sum", "_count"];
            let known = documented.get(&name).is_some_and(|metric| metric.kind != "histogram")
                || parts.iter().any(|part| name.strip_suffix(part).is_some_and(is_histogram));
            assert!(known, "{file} uses {name}, which is not in docs/METRICS.md");
        }
    }
}

#[test]
fn alerts_and_dashboard_use_values_of_labels_that_exist() {
    let documented = documented();
    let mut looked_at = 0;
    for file in ["config/alerts.yml", "config/grafana.json"] {
        let text = read(file).replace("\\\"", "\"");
        for metric in documented.keys() {
            for (at, _) in text.match_indices(&format!("{metric}{{")) {
                let selector = text[at + metric.len() + 1..].split('}').next().unwrap();
                for matcher in selector.split(',') {
                    let (label, value) = matcher.split_once(['=', '!']).unwrap();
                    let value = value.trim_start_matches(['=', '~']).trim_matches('"');
                    let values = documented[metric]
                        .labels
                        .get(label)
                        .unwrap_or_else(|| panic!("{file}: {metric} has no {label}"));
                    let known =
                        label == "route" || value.split('|').all(|value| values.contains(value));
                    assert!(known, "{file}: {metric} has no {matcher}");
                    looked_at += 1;
                }
            }
        }
    }
    assert!(looked_at > 3, "only {looked_at} matchers were read");
}

#[test]
fn the_dashboard_is_json_and_every_panel_asks_something() {
    let dashboard: serde_json::Value = serde_json::from_str(&read("config/grafana.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() > 5);
    for panel in panels {
        let targets = panel["targets"].as_array().unwrap_or_else(|| panic!("{panel}"));
        assert!(
            targets.iter().all(|target| target["expr"]
                .as_str()
                .is_some_and(|expr| expr.contains("onceward_"))),
            "{panel}"
        );
    }
}

/// Each alert has a severity and a section to read on.
#[test]
fn every_alert_has_a_severity_and_a_section_in_the_operating_guide() {
    let (alerts, guide) = (read("config/alerts.yml"), read("docs/OPERATING.md"));
    let blocks: Vec<&str> = alerts.split("- alert: ").skip(1).collect();
    assert!(blocks.len() > 5);
    for block in blocks {
        let name = block.lines().next().unwrap().trim();
        assert!(block.contains("severity: ") && block.contains("summary: "), "{name}");
        assert!(guide.contains(&format!("`{name}`")), "docs/OPERATING.md does not mention {name}");
    }
}
