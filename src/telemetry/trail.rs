//! The trail of a request: facts collected for the access log and for traces, if one of them is
//! enabled. A call of the gateway itself has a trail for traces only.
//!
//! Danger: this data leaves the process. So a trail contains no keys, bodies or header fields, and
//! only the path of the target. Nothing waits for its export.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use http::{Extensions, Method, Uri, Version};
use tokio::time::Instant;

use super::access::{AccessLog, Line};
use super::internal_span::InternalSpan;
use super::spans::{Ids, Span, SpanKind, Tracer};
use crate::hex;

/// Most steps recorded per request: a request that waits reads its record again and again.
const STEPS_MAX: usize = 64;
/// Longest recorded method and path, in bytes. A header block may be larger than a line of a log
/// should be.
const METHOD_BYTES_MAX: usize = 32;
const PATH_BYTES_MAX: usize = 2048;

/// The access log and the tracer, which can be replaced. Cheap to clone. A replacement affects all
/// clones.
#[derive(Clone, Default)]
pub struct Observers(Arc<RwLock<Option<Arc<EnabledObservers>>>>);

/// The enabled exporters.
#[derive(Clone)]
pub struct EnabledObservers {
    /// The access log.
    pub access: Option<AccessLog>,
    /// The tracer.
    pub tracer: Option<Tracer>,
    /// Returns the time in nanoseconds since 1970.
    pub now_unix_ns: fn() -> u64,
}

/// The trail of one request. Cheap to clone. Its spans are exported when the last clone is dropped.
#[derive(Clone)]
pub struct Trail(Arc<TrailInner>);

struct TrailInner {
    observers: Arc<EnabledObservers>,
    began: Instant,
    began_unix_ns: u64,
    /// `None` for a call of the gateway itself: its own span is exported elsewhere.
    arrival: Option<Arrival>,
    notes: Mutex<TrailNotes>,
}

/// The facts of a request at its arrival.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// The client's address.
    pub client: String,
    /// The method, truncated; `-` if the bytes were no request.
    pub method: String,
    /// The path, truncated; all bytes that are not visible ASCII are percent-encoded.
    pub path: String,
    /// The protocol version.
    pub version: Version,
}

impl Arrival {
    /// Returns the facts of a request, without line breaks or control characters, whatever the
    /// client sends.
    pub fn new(client: String, method: &Method, uri: &Uri, version: Version) -> Arrival {
        let mut path = uri.path();
        if path.len() > PATH_BYTES_MAX {
            path = path.get(..PATH_BYTES_MAX).unwrap_or("-");
        }
        let path = match path {
            // CONNECT has no path.
            "" => "-".to_owned(),
            path => {
                percent_encoding::utf8_percent_encode(path, percent_encoding::CONTROLS).to_string()
            }
        };
        Arrival {
            client,
            method: method.as_str().chars().take(METHOD_BYTES_MAX).collect(),
            path,
            version,
        }
    }

    /// Returns the facts of bytes that were no request.
    pub fn unreadable(client: String, version: Version) -> Arrival {
        Arrival { client, method: "-".to_owned(), path: "-".to_owned(), version }
    }
}

/// The facts that are collected while the request is processed.
#[derive(Default)]
struct TrailNotes {
    route: Option<Arc<str>>,
    outcome: Option<&'static str>,
    operation: Option<String>,
    scope: Option<String>,
    trace_id: Option<String>,
    ids: Option<Ids>,
    upstream: Option<Duration>,
    waited: Option<Duration>,
    /// The trace and span of the attempt with the replayed response.
    link: Option<([u8; 16], [u8; 8])>,
    ended: Option<(Option<u16>, Duration)>,
    steps: Vec<EndedStep>,
}

/// A timed kind of work for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // The names are those of the spans.
pub enum Work {
    Claim,
    Settle,
    Wait,
    Forward,
}

impl Work {
    fn name(self) -> &'static str {
        match self {
            Work::Claim => "store claim",
            Work::Settle => "store settle",
            Work::Wait => "wait for the first request",
            Work::Forward => "forward",
        }
    }

    fn kind(self) -> SpanKind {
        match self {
            Work::Wait => SpanKind::Internal,
            Work::Claim | Work::Settle | Work::Forward => SpanKind::Client,
        }
    }
}

/// A step that has ended.
struct EndedStep {
    work: Work,
    began: Duration,
    ended: Duration,
    result: &'static str,
    status: Option<u16>,
}

/// An active step. The step ends when this value is dropped.
pub struct TrailStep {
    trail: Option<Trail>,
    work: Work,
    began: Duration,
    result: &'static str,
    status: Option<u16>,
}

impl TrailStep {
    /// Sets the result: one of a few words.
    pub fn result(&mut self, result: &'static str) {
        self.result = result;
    }

    /// Sets the status of the other side's response.
    pub fn answered(&mut self, status: u16) {
        self.result = "answered";
        self.status = Some(status);
    }
}

impl Drop for TrailStep {
    fn drop(&mut self) {
        let Some(Trail(inner)) = self.trail.take() else { return };
        let ended = inner.began.elapsed();
        let mut notes = inner.notes();
        let took = ended.saturating_sub(self.began);
        match self.work {
            Work::Forward => notes.upstream = Some(notes.upstream.unwrap_or_default() + took),
            Work::Wait => notes.waited = Some(notes.waited.unwrap_or_default() + took),
            Work::Claim | Work::Settle => {}
        }
        if notes.ids.is_some() && notes.steps.len() < STEPS_MAX {
            let TrailStep { work, began, result, status, .. } = *self;
            notes.steps.push(EndedStep { work, began, ended, result, status });
        }
    }
}

impl Observers {
    /// Replaces the exporters, for new requests.
    pub fn replace(&self, observers: Option<EnabledObservers>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = observers.map(Arc::new);
    }

    /// Replaces the access log.
    pub fn replace_access_log(&self, access: AccessLog) {
        let mut observers = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = observers.take() {
            *observers = Some(Arc::new(EnabledObservers {
                access: Some(access),
                ..EnabledObservers::clone(&before)
            }));
        }
    }

    /// Begins the trail of a request; `arrival` is called only if an exporter is enabled.
    pub fn begin(&self, arrival: impl FnOnce() -> Arrival) -> Option<Trail> {
        let observers = self.0.read().unwrap_or_else(PoisonError::into_inner).clone()?;
        let began_unix_ns = (observers.now_unix_ns)();
        let inner = TrailInner {
            observers,
            began: Instant::now(),
            began_unix_ns,
            arrival: Some(arrival()),
            notes: Mutex::new(TrailNotes::default()),
        };
        Some(Trail(Arc::new(inner)))
    }
}

impl Observers {
    /// Begins the trail of a call below a span that is exported elsewhere. `own` is a random
    /// number. Returns the trail, and the span that the upstream must use as its parent; `None` if
    /// no spans are exported.
    pub fn begin_below(
        &self,
        trace: [u8; 16],
        span: [u8; 8],
        own: u64,
    ) -> Option<(Trail, [u8; 8])> {
        let observers = self.0.read().unwrap_or_else(PoisonError::into_inner).clone()?;
        observers.tracer.as_ref()?;
        let ids = Ids::new(trace, Some(span), own);
        let notes = TrailNotes { ids: Some(ids), ..TrailNotes::default() };
        let inner = TrailInner {
            began: Instant::now(),
            began_unix_ns: (observers.now_unix_ns)(),
            observers,
            arrival: None,
            notes: Mutex::new(notes),
        };
        Some((Trail(Arc::new(inner)), ids.forward()))
    }

    /// Exports spans of the gateway's own work.
    pub fn export(&self, spans: Vec<InternalSpan>) {
        let observers = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(tracer) = observers.as_ref().and_then(|observers| observers.tracer.as_ref())
            && !spans.is_empty()
        {
            tracer.export(spans.into_iter().map(InternalSpan::into_span).collect());
        }
    }
}

impl Trail {
    /// Returns the trail of a request.
    pub fn of(extensions: &Extensions) -> Option<Trail> {
        extensions.get::<Trail>().cloned()
    }

    /// Begins a step of a request.
    pub fn step(trail: Option<&Trail>, work: Work) -> TrailStep {
        let began = trail.map_or(Duration::ZERO, |Trail(inner)| inner.began.elapsed());
        TrailStep { trail: trail.cloned(), work, began, result: "ended", status: None }
    }

    /// Records the trace of the request: its id, the client's span in it if present, and whether
    /// the client marked it as sampled. `own` is a random number. If the trace is exported, returns
    /// the span that the upstream must use as its parent.
    pub fn in_trace(
        &self,
        trace: [u8; 16],
        parent: Option<([u8; 8], bool)>,
        own: u64,
    ) -> Option<[u8; 8]> {
        let mut notes = self.0.notes();
        notes.trace_id = Some(hex::encode(&trace));
        let tracer = self.0.observers.tracer.as_ref()?;
        // The side that began the trace decides for all of it.
        let sampled = parent.map_or_else(|| tracer.samples(&trace), |(_, sampled)| sampled);
        if !sampled {
            return None;
        }
        let ids = Ids::new(trace, parent.map(|(span, _)| span), own);
        notes.ids = Some(ids);
        Some(ids.forward())
    }

    /// Returns the trace and span for the record of this request's attempt, if they are exported.
    pub fn span(&self) -> Option<([u8; 16], [u8; 8])> {
        let ids = self.0.notes().ids?;
        Some((ids.trace, self.0.parent_of_steps(&ids)?))
    }

    /// Records the operation: its public reference and the scope's mark, never the key.
    pub fn identified(&self, operation: String, scope: String) {
        let mut notes = self.0.notes();
        notes.operation = Some(operation);
        notes.scope = Some(scope);
    }

    /// Records the span of the attempt with the replayed response.
    pub fn links(&self, trace: [u8; 16], span: [u8; 8]) {
        self.0.notes().link = Some((trace, span));
    }

    /// Records the outcome, and the route if one covers the request.
    pub fn answered(&self, route: Option<&Arc<str>>, outcome: &'static str) {
        let mut notes = self.0.notes();
        notes.route = route.cloned();
        notes.outcome = Some(outcome);
    }

    /// Records the end: the last byte of the response was sent, or the client left. `status` is
    /// `None` if no response was sent.
    pub fn ended(&self, status: Option<u16>, bytes: u64) {
        let inner = &*self.0;
        let total = inner.began.elapsed();
        let mut notes = inner.notes();
        if notes.ended.replace((status, total)).is_some() {
            return;
        }
        let (Some(access), Some(arrival)) = (&inner.observers.access, &inner.arrival) else {
            return;
        };
        let Arrival { client, method, path, version } = arrival.clone();
        access.write(Line {
            unix_ns: inner.began_unix_ns,
            client,
            method,
            path,
            version,
            status,
            bytes,
            total,
            upstream: notes.upstream,
            waited: notes.waited,
            route: notes.route.clone(),
            outcome: notes.outcome.unwrap_or(if status.is_some() {
                "refused"
            } else {
                "client_left"
            }),
            operation: notes.operation.clone(),
            scope: notes.scope.clone(),
            trace: notes.trace_id.clone(),
        });
    }
}

impl TrailInner {
    fn notes(&self) -> MutexGuard<'_, TrailNotes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the span above those of the steps.
    fn parent_of_steps(&self, ids: &Ids) -> Option<[u8; 8]> {
        if self.arrival.is_some() { Some(ids.own()) } else { ids.parent }
    }

    fn span(&self, arrival: &Arrival, ids: &Ids, notes: &TrailNotes) -> Span {
        let (status, after) = notes.ended.unwrap_or((None, self.began.elapsed()));
        let route = notes.route.as_deref().unwrap_or("-");
        let mut span = Span::new(
            ids.trace,
            ids.own(),
            ids.parent,
            format!("{} {route}", arrival.method),
            SpanKind::Server,
        );
        span.lasted(self.began_unix_ns, Duration::ZERO, after);
        span.text("http.request.method", &arrival.method);
        span.text("onceward.route", route);
        span.text("onceward.outcome", notes.outcome.unwrap_or("client_left"));
        if let Some(operation) = &notes.operation {
            span.text("onceward.operation", operation);
        }
        if let Some(status) = status {
            span.number("http.response.status_code", i64::from(status));
            span.failed = status >= 500;
        }
        span.link = notes.link;
        span
    }
}

impl Drop for TrailInner {
    /// Exports the spans. All work for the request has ended, also work that went on after the
    /// client left.
    fn drop(&mut self) {
        let notes = std::mem::take(self.notes.get_mut().unwrap_or_else(PoisonError::into_inner));
        let (Some(tracer), Some(ids)) = (&self.observers.tracer, notes.ids) else { return };
        let own = self.arrival.as_ref().map(|arrival| self.span(arrival, &ids, &notes));
        let mut spans: Vec<Span> = own.into_iter().collect();
        let parent = self.parent_of_steps(&ids);
        let mut forwards = 0;
        for (number, done) in notes.steps.iter().enumerate() {
            let id = match done.work {
                Work::Forward if forwards == 0 => ids.forward(),
                _ => ids.nth(number as u64),
            };
            forwards += usize::from(done.work == Work::Forward);
            let mut span =
                Span::new(ids.trace, id, parent, done.work.name().to_owned(), done.work.kind());
            span.lasted(self.began_unix_ns, done.began, done.ended);
            span.text("onceward.result", done.result);
            if let Some(status) = done.status {
                span.number("http.response.status_code", i64::from(status));
            }
            span.failed = matches!(done.result, "failed" | "in_doubt" | "unreachable");
            spans.push(span);
        }
        if !spans.is_empty() {
            tracer.export(spans);
        }
    }
}
