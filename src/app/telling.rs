//! Who is told of requests: the access log's file, and the collector of spans. Neither is ever waited for by a request.

use std::time::Duration;

use anyhow::{Context, Result};
use http::HeaderMap;
use http::uri::PathAndQuery;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};

use super::{Config, Secrets, read, scheme};
use crate::clock::Clock;
use crate::config::{AccessLogConfig, AccessLogFormat, TracingConfig};
use crate::proxy::{Forward, Http2, RequestBody, Upstream, UpstreamSettings, post};
use crate::telemetry::{
    AccessFormat, AccessLog, AccessLogEnd, Meter, Observers, Observing, SpanQueue, TellingMeter,
    Tracer, export_request,
};

/// How long connecting to a collector, and an answer of it, may take.
const CONNECT_MAX: Duration = Duration::from_secs(5);
const POST_MAX: Duration = Duration::from_secs(10);
const IDLE_MAX: Duration = Duration::from_secs(4);
/// Its name is looked up again by then.
const AGE_MAX: Duration = Duration::from_secs(300);

/// How long the end of the process waits for what is still to be told.
const END_MAX: Duration = Duration::from_secs(2);

/// Those who tell, until who tells them is gone.
#[derive(Default)]
pub(super) struct Telling {
    access_log: Option<AccessLogEnd>,
    exporter: Option<JoinHandle<()>>,
}

/// Opens the access log, and sets the collector up; connects to nothing yet. Nobody, where the configuration wants neither.
///
/// # Errors
/// The file can't be opened, the collector has no name that could be vouched for.
pub(super) async fn observing(
    config: &Config,
    secrets: &Secrets,
    meter: &Meter,
) -> Result<(Option<Observing>, Telling)> {
    let mut telling = Telling::default();
    let mut observing = Observing { access: None, tracer: None, now_unix_ns };
    if let Some(wanted) = &config.access_log {
        let (log, end) = open(wanted, meter)?;
        (observing.access, telling.access_log) = (Some(log), Some(end));
    }
    if let Some(wanted) = &config.tracing {
        let collector = Collector::new(wanted, secrets).await?;
        let (tracer, queue) = Tracer::new(wanted.sample_ratio, meter.spans.clone());
        let exporter = tokio::spawn(collector.export(queue, meter.spans.clone()));
        (observing.tracer, telling.exporter) = (Some(tracer), Some(exporter));
    }
    let anybody = observing.access.is_some() || observing.tracer.is_some();
    Ok((anybody.then_some(observing), telling))
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

impl Telling {
    /// Opens the access log's file anew, where there is one: it may have been moved away.
    pub fn reopen(&mut self, config: &Config, observers: &Observers, meter: &Meter) {
        let Some(wanted) = &config.access_log else { return };
        match open(wanted, meter) {
            Ok((log, end)) => {
                observers.replace_access_log(log);
                self.access_log = Some(end);
            }
            Err(error) => tracing::error!("{error:#}: the one that is open stays in use"),
        }
    }

    /// Waits, not for long, until all is told. Nobody may be told any more by then.
    pub async fn end(&mut self) {
        const LOOK: Duration = Duration::from_millis(5);
        let until = Instant::now() + END_MAX;
        if let Some(exporter) = self.exporter.take() {
            // What is not told in time is lost with the process.
            let _ = timeout_at(until, exporter).await;
        }
        while self.access_log.as_ref().is_some_and(|end| !end.is_reached())
            && Instant::now() < until
        {
            sleep(LOOK).await;
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

    /// Sends what comes. What the collector doesn't take is dropped and counted: traces are not worth a queue without end.
    async fn export(self, mut queue: SpanQueue, meter: TellingMeter) {
        let mut failing = false;
        while let Some(batch) = queue.next().await {
            let count = batch.len() as u64;
            let body = export_request(&batch);
            match post(&self.server, &self.path, &self.headers, body.into(), POST_MAX).await {
                Ok(()) => {
                    meter.told.inc_by(count);
                    failing = false;
                }
                Err(error) => {
                    meter.dropped.inc_by(count);
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "the collector of traces takes no spans: they are dropped and counted");
                    }
                }
            }
        }
    }
}
