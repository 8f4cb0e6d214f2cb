//! The exporters of request data: the access log's file, and the collector of spans. Requests never
//! wait for them.

use std::time::Duration;

use anyhow::{Context, Result};
use http::HeaderMap;
use http::uri::PathAndQuery;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};

use super::settings::{read, scheme};
use crate::clock::Clock;
use crate::config::{AccessLogConfig, AccessLogFormat, Config, Secrets, TracingConfig};
use crate::proxy::{Forward, Http2, RequestBody, Upstream, UpstreamSettings, post};
use crate::telemetry::{
    AccessFormat, AccessLog, AccessLogEnd, EnabledObservers, ExportMetrics, Meter, Observers,
    SpanQueue, Tracer, export_request,
};

/// The longest time to connect to a collector, and the longest time until its response.
const CONNECT_MAX: Duration = Duration::from_secs(5);
const POST_MAX: Duration = Duration::from_secs(10);
const IDLE_MAX: Duration = Duration::from_secs(4);
/// The longest use of a connection. A new connection resolves the collector's name again.
const AGE_MAX: Duration = Duration::from_secs(300);

/// The longest wait for pending exports when the process ends.
const END_MAX: Duration = Duration::from_secs(2);

/// The tasks of the exporters, which end after their senders are dropped.
#[derive(Default)]
pub(super) struct ExporterTasks {
    access_log: Option<AccessLogEnd>,
    exporter: Option<JoinHandle<()>>,
}

/// Opens the access log, and sets up the collector without connecting to it. Returns no observers
/// if the configuration has neither of them.
///
/// # Errors
/// The file can't be opened, or the collector has a name that no certificate could cover.
pub(super) async fn start_exporters(
    config: &Config,
    secrets: &Secrets,
    meter: &Meter,
) -> Result<(Option<EnabledObservers>, ExporterTasks)> {
    let mut tasks = ExporterTasks::default();
    let mut observers = EnabledObservers { access: None, tracer: None, now_unix_ns };
    if let Some(wanted) = &config.access_log {
        let (log, end) = open(wanted, meter)?;
        (observers.access, tasks.access_log) = (Some(log), Some(end));
    }
    if let Some(wanted) = &config.tracing {
        let collector = Collector::new(wanted, secrets).await?;
        let (tracer, queue) = Tracer::new(wanted.sample_ratio, meter.spans.clone());
        let exporter = tokio::spawn(collector.export(queue, meter.spans.clone()));
        (observers.tracer, tasks.exporter) = (Some(tracer), Some(exporter));
    }
    let any = observers.access.is_some() || observers.tracer.is_some();
    Ok((any.then_some(observers), tasks))
}

fn now_unix_ns() -> u64 {
    Clock::system().unix_ms().saturating_mul(1_000_000)
}

fn open(wanted: &AccessLogConfig, meter: &Meter) -> Result<(AccessLog, AccessLogEnd)> {
    let format = match wanted.format {
        AccessLogFormat::Json => AccessFormat::Json,
        AccessLogFormat::Combined => AccessFormat::Combined,
    };
    let opened = AccessLog::open(format, &wanted.path, meter.access_log.clone());
    opened.with_context(|| format!("can't open the access log {}", wanted.path.display()))
}

impl ExporterTasks {
    /// Reopens the access log's file, because the old file may have been moved away.
    pub fn reopen(&mut self, config: &Config, observers: &Observers, meter: &Meter) {
        let Some(wanted) = &config.access_log else { return };
        match open(wanted, meter) {
            Ok((log, end)) => {
                observers.replace_access_log(log);
                self.access_log = Some(end);
            }
            Err(error) => tracing::error!("{error:#}: the open access log stays in use"),
        }
    }

    /// Waits, for a limited time, until everything is exported. All senders must have been dropped
    /// before.
    pub async fn end(&mut self) {
        const POLL_PERIOD: Duration = Duration::from_millis(5);
        let until = Instant::now() + END_MAX;
        if let Some(exporter) = self.exporter.take() {
            // Spans that are not sent in time are lost when the process ends.
            let _ = timeout_at(until, exporter).await;
        }
        while self.access_log.as_ref().is_some_and(|end| !end.is_reached())
            && Instant::now() < until
        {
            sleep(POLL_PERIOD).await;
        }
    }
}

/// A collector of spans.
struct Collector {
    server: Forward<RequestBody>,
    path: PathAndQuery,
    headers: HeaderMap,
}

impl Collector {
    async fn new(wanted: &TracingConfig, secrets: &Secrets) -> Result<Collector> {
        let settings = UpstreamSettings {
            scheme: scheme(&wanted.url),
            authority: wanted.url.authority.clone(),
            connect_timeout: CONNECT_MAX,
            idle_timeout: IDLE_MAX,
            max_connection_age: AGE_MAX,
            http2: Http2::Negotiated,
            preserve_host: false,
            rewrite_location: false,
            identity: None,
            ca_pem: match &wanted.ca_file {
                Some(file) => Some(read(file).await?),
                None => None,
            },
        };
        let server =
            Upstream::new(settings).with_context(|| format!("otlp_endpoint {}", wanted.url))?;
        let mut headers = wanted.headers.clone();
        headers.extend(secrets.tracing_headers.clone());
        Ok(Collector {
            server: Forward::new([std::sync::Arc::new(server)]),
            path: wanted.path.clone(),
            headers,
        })
    }

    /// Sends batches of spans. Spans that the collector does not accept are dropped and counted,
    /// because a queue of spans must not grow without bound.
    async fn export(self, mut queue: SpanQueue, meter: ExportMetrics) {
        let mut failing = false;
        while let Some(batch) = queue.next().await {
            let count = batch.len() as u64;
            let body = export_request(&batch);
            match post(&self.server, &self.path, &self.headers, body.into(), POST_MAX).await {
                Ok(()) => {
                    meter.exported.inc_by(count);
                    failing = false;
                }
                Err(error) => {
                    meter.dropped.inc_by(count);
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(
                            %error,
                            "the trace collector accepts no spans: they are dropped and counted"
                        );
                    }
                }
            }
        }
    }
}
