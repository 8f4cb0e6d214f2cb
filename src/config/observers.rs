//! `[access_log]` and `[tracing]`: exports about requests.

use std::path::PathBuf;

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName};

use super::admin::SecretSource;
use super::read::Table;
use super::route::read_headers;
use super::texts::file_name;
use super::upstream::UpstreamUrl;

/// Format of the access log's lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessLogFormat {
    /// One JSON object per line.
    Json,
    /// The combined format of web servers.
    Combined,
}

/// Settings of the access log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLogConfig {
    /// Format of the lines.
    pub format: AccessLogFormat,
    /// The file; `-` is standard output.
    pub path: PathBuf,
}

/// Settings of span export.
#[derive(Debug, Clone)]
pub struct TracingConfig {
    /// The collector.
    pub url: UpstreamUrl,
    /// Path for spans.
    pub path: PathAndQuery,
    /// Certificates to trust instead of the system's, a PEM file.
    pub ca_file: Option<PathBuf>,
    /// Ratio of exported traces among the traces that begin here, from 0 to 1.
    pub sample_ratio: f64,
    /// Header fields for the collector, without the secret ones.
    pub headers: HeaderMap,
    /// Header fields with secret values.
    pub secret_headers: Vec<(HeaderName, SecretSource)>,
}

const FORMATS: [(&str, Option<AccessLogFormat>); 3] = [
    ("json", Some(AccessLogFormat::Json)),
    ("combined", Some(AccessLogFormat::Combined)),
    ("off", None),
];
const ENDPOINT_EXPECTED: &str = "a url such as \"http://127.0.0.1:4318\"";

/// Path of a collector for spans, below its endpoint (OTLP/HTTP).
const TRACES: &str = "/v1/traces";

/// Reads `[access_log]`. The inner value is `None` if the log is off.
pub(super) fn read_access_log(table: Table<'_>) -> Option<Option<AccessLogConfig>> {
    let format = table.get("format").and_then(|value| value.choice(&FORMATS, &[]));
    let path =
        table.get("path").and_then(|value| value.parsed("a file's name, or \"-\"", file_name));
    table.finish();
    let (format, path) = (format?, path?);
    Some(format.map(|format| AccessLogConfig { format, path }))
}

/// Reads `[tracing]`. The inner value is `None` if tracing is off.
pub(super) fn read_tracing(table: Table<'_>) -> Option<Option<TracingConfig>> {
    let endpoint =
        table.get("otlp_endpoint").map(|value| value.checked(ENDPOINT_EXPECTED, endpoint));
    let ratio = table.get("sample_ratio").and_then(|value| value.ratio());
    let ca_file = table
        .get("ca_file")
        .map_or(Some(None), |value| value.parsed("a file's name", file_name).map(Some));
    let mut secret_headers = Vec::new();
    let headers = match table.get("headers") {
        Some(_) => read_headers(
            &table.table("headers", "a table of header fields"),
            "a collector",
            |_| true,
            &mut secret_headers,
        ),
        None => Some(HeaderMap::new()),
    };
    table.finish();
    let (sample_ratio, ca_file, headers) = (ratio?, ca_file?, headers?);
    let Some(endpoint) = endpoint else { return Some(None) };
    let (url, path) = endpoint?;
    Some(Some(TracingConfig { url, path, ca_file, sample_ratio, headers, secret_headers }))
}

fn endpoint(text: &str) -> Result<(UpstreamUrl, PathAndQuery), String> {
    let expected = || format!("expected {ENDPOINT_EXPECTED}, without credentials and query");
    let uri: http::Uri = text.parse().map_err(|_| expected())?;
    let base = uri.path().trim_end_matches('/');
    if uri.query().is_some() || text.contains('#') {
        return Err(expected());
    }
    let server = text.trim_end_matches('/').strip_suffix(base).ok_or_else(expected)?;
    let url = UpstreamUrl::parse(server).map_err(|_| expected())?;
    let path = PathAndQuery::try_from(format!("{base}{TRACES}")).map_err(|_| expected())?;
    Ok((url, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_server_and_perhaps_a_path_below_which_spans_are_taken() {
        let read = |text: &str| endpoint(text).map(|(url, path)| format!("{url}{path}")).ok();
        assert_eq!(read("http://127.0.0.1:4318").unwrap(), "http://127.0.0.1:4318/v1/traces");
        assert_eq!(
            read("https://otlp.example.com/otlp/").unwrap(),
            "https://otlp.example.com/otlp/v1/traces"
        );
        for wrong in [
            "127.0.0.1:4318",
            "ftp://a",
            "http://user:pass@a",
            "http://a?x=1",
            "http://a/#b",
            "http://",
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
