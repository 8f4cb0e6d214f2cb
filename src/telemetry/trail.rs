//! What a request met on its way, gathered for the access log and for traces, where somebody wants one of them.
//!
//! Danger: what is gathered here leaves the process. So a trail takes neither keys nor bodies nor fields, of the target only the
//! path, and nothing of it is waited for.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use http::{Extensions, Method, Uri, Version};
use tokio::time::Instant;

use super::access::{AccessLog, Line};
use super::spans::{Ids, Kind, Span, Tracer};
use crate::hex;

/// Steps of one request that are kept, at most: one that waits looks at its record again and again.
const STEPS_MAX: usize = 64;
/// Longest method and path that are kept, in bytes. A header block may be larger than a line of a log should be.
const METHOD_BYTES_MAX: usize = 32;
const PATH_BYTES_MAX: usize = 2048;

/// Who wants to know of requests. Cheap to clone; all clones are exchanged together.
#[derive(Clone, Default)]
pub struct Observers(Arc<RwLock<Option<Arc<Observing>>>>);

/// Those who do.
#[derive(Clone)]
pub struct Observing {
    /// Lines for people and their tools.
    pub access: Option<AccessLog>,
    /// Spans for a collector.
    pub tracer: Option<Tracer>,
    /// Nanoseconds since 1970.
    pub now_unix_ns: fn() -> u64,
}

/// One request's. Cheap to clone: whoever works on the request has one, and its spans leave with the last of them.
#[derive(Clone)]
pub struct Trail(Arc<Inner>);

struct Inner {
    observing: Arc<Observing>,
    began: Instant,
    began_unix_ns: u64,
    arrival: Arrival,
    notes: Mutex<Notes>,
}

/// What is known of a request when it comes.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// Its client's address.
    pub client: String,
    /// The method, cut; `-` for what was no request.
    pub method: String,
    /// The path, cut; in it all that is not visible ASCII is percent-encoded.
    pub path: String,
    /// The protocol's version.
    pub version: Version,
}

impl Arrival {
    /// A request's. Whatever bytes a client sends, no line breaks and no control characters come out.
    pub fn new(client: String, method: &Method, uri: &Uri, version: Version) -> Arrival {
        let mut path = uri.path();
        if path.len() > PATH_BYTES_MAX {
            path = path.get(..PATH_BYTES_MAX).unwrap_or("-");
        }
        let path = match path {
            // CONNECT has none.
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

    /// What was no request.
    pub fn unreadable(client: String, version: Version) -> Arrival {
        Arrival { client, method: "-".to_owned(), path: "-".to_owned(), version }
    }
}

/// What is learned on the way.
#[derive(Default)]
struct Notes {
    route: Option<Arc<str>>,
    outcome: Option<&'static str>,
    operation: Option<String>,
    scope: Option<String>,
    trace_id: Option<String>,
    ids: Option<Ids>,
    upstream: Option<Duration>,
    waited: Option<Duration>,
    /// Another trace: the one in which what is replayed was executed.
    link: Option<([u8; 16], [u8; 8])>,
    ended: Option<(Option<u16>, Duration)>,
    steps: Vec<Done>,
}

/// What is done for a request that takes time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // The names are the documentation: they are the spans'.
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

    fn kind(self) -> Kind {
        match self {
            Work::Wait => Kind::Internal,
            Work::Claim | Work::Settle | Work::Forward => Kind::Client,
        }
    }
}

/// A piece of work that ended.
struct Done {
    work: Work,
    began: Duration,
    ended: Duration,
    result: &'static str,
    status: Option<u16>,
}

/// A piece of work under way: it ends when this is dropped.
pub struct Step {
    trail: Option<Trail>,
    work: Work,
    began: Duration,
    result: &'static str,
    status: Option<u16>,
}

impl Step {
    /// What came of it: one of a few words.
    pub fn result(&mut self, result: &'static str) {
        self.result = result;
    }

    /// The status that the other side answered.
    pub fn answered(&mut self, status: u16) {
        self.result = "answered";
        self.status = Some(status);
    }
}

impl Drop for Step {
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
            let Step { work, began, result, status, .. } = *self;
            notes.steps.push(Done { work, began, ended, result, status });
        }
    }
}

impl Observers {
    /// These, from now on, for requests to come.
    pub fn replace(&self, observing: Option<Observing>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = observing.map(Arc::new);
    }

    /// Another access log, from now on.
    pub fn replace_access_log(&self, access: AccessLog) {
        let mut observing = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = observing.take() {
            *observing =
                Some(Arc::new(Observing { access: Some(access), ..Observing::clone(&before) }));
        }
    }

    /// Begins a request's trail; `arrival` is only asked for where somebody wants to know.
    pub fn begin(&self, arrival: impl FnOnce() -> Arrival) -> Option<Trail> {
        let observing = self.0.read().unwrap_or_else(PoisonError::into_inner).clone()?;
        let began_unix_ns = (observing.now_unix_ns)();
        let inner = Inner {
            observing,
            began: Instant::now(),
            began_unix_ns,
            arrival: arrival(),
            notes: Mutex::new(Notes::default()),
        };
        Some(Trail(Arc::new(inner)))
    }
}

impl Trail {
    /// The one of a request.
    pub fn of(extensions: &Extensions) -> Option<Trail> {
        extensions.get::<Trail>().cloned()
    }

    /// A piece of work of a request begins.
    pub fn step(trail: Option<&Trail>, work: Work) -> Step {
        let began = trail.map_or(Duration::ZERO, |Trail(inner)| inner.began.elapsed());
        Step { trail: trail.cloned(), work, began, result: "ended", status: None }
    }

    /// The trace that the request belongs to: its id, the client's span in it if there is one, and whether the client says that
    /// it is sampled. `own`: a random number. Where spans of it are told, returns the span that the upstream is to see as its
    /// parent.
    pub fn in_trace(
        &self,
        trace: [u8; 16],
        parent: Option<([u8; 8], bool)>,
        own: u64,
    ) -> Option<[u8; 8]> {
        let mut notes = self.0.notes();
        notes.trace_id = Some(hex::encode(&trace));
        let tracer = self.0.observing.tracer.as_ref()?;
        // Whoever began the trace has decided for all of it.
        let sampled = parent.map_or_else(|| tracer.samples(&trace), |(_, sampled)| sampled);
        if !sampled {
            return None;
        }
        let ids = Ids::new(trace, parent.map(|(span, _)| span), own);
        notes.ids = Some(ids);
        Some(ids.forward())
    }

    /// The trace and the span that a record of this request's attempt is to name, where they are told to anybody.
    pub fn span(&self) -> Option<([u8; 16], [u8; 8])> {
        self.0.notes().ids.map(|ids| (ids.trace, ids.own()))
    }

    /// Which operation it is about, and whose: the public reference and the scope's mark, never the key.
    pub fn identified(&self, operation: String, scope: String) {
        let mut notes = self.0.notes();
        notes.operation = Some(operation);
        notes.scope = Some(scope);
    }

    /// The span in which that was executed what this request is answered with.
    pub fn links(&self, trace: [u8; 16], span: [u8; 8]) {
        self.0.notes().link = Some((trace, span));
    }

    /// How it is answered, and under which route, if one covers it.
    pub fn answered(&self, route: Option<&Arc<str>>, outcome: &'static str) {
        let mut notes = self.0.notes();
        notes.route = route.cloned();
        notes.outcome = Some(outcome);
    }

    /// The answer's last byte has left, or whoever waited for it. `status`: `None` where nothing was answered.
    pub fn ended(&self, status: Option<u16>, bytes: u64) {
        let inner = &*self.0;
        let total = inner.began.elapsed();
        let mut notes = inner.notes();
        if notes.ended.replace((status, total)).is_some() {
            return;
        }
        let Some(access) = &inner.observing.access else { return };
        let Arrival { client, method, path, version } = inner.arrival.clone();
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

impl Inner {
    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn span(&self, ids: &Ids, notes: &Notes) -> Span {
        let (status, after) = notes.ended.unwrap_or((None, self.began.elapsed()));
        let route = notes.route.as_deref().unwrap_or("-");
        let mut span = Span::new(
            ids.trace,
            ids.own(),
            ids.parent,
            format!("{} {route}", self.arrival.method),
            Kind::Server,
        );
        span.lasted(self.began_unix_ns, Duration::ZERO, after);
        span.text("http.request.method", &self.arrival.method);
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

impl Drop for Inner {
    /// Nobody works on the request any more, not even without its client.
    fn drop(&mut self) {
        let notes = std::mem::take(self.notes.get_mut().unwrap_or_else(PoisonError::into_inner));
        let (Some(tracer), Some(ids)) = (&self.observing.tracer, notes.ids) else { return };
        let mut spans = vec![self.span(&ids, &notes)];
        let mut forwards = 0;
        for (number, done) in notes.steps.iter().enumerate() {
            let id = match done.work {
                Work::Forward if forwards == 0 => ids.forward(),
                _ => ids.nth(number as u64),
            };
            forwards += usize::from(done.work == Work::Forward);
            let mut span = Span::new(
                ids.trace,
                id,
                Some(ids.own()),
                done.work.name().to_owned(),
                done.work.kind(),
            );
            span.lasted(self.began_unix_ns, done.began, done.ended);
            span.text("onceward.result", done.result);
            if let Some(status) = done.status {
                span.number("http.response.status_code", i64::from(status));
            }
            span.failed = matches!(done.result, "failed" | "in_doubt" | "unreachable");
            spans.push(span);
        }
        tracer.tell(spans);
    }
}
