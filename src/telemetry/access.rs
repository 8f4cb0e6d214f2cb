//! The access log: one line per request, as JSON or in the combined format of web servers.
//!
//! Danger: a disk that hangs must not block a payment. So lines go through a bounded queue to a
//! thread of their own; a line that finds no space in the queue is dropped and counted. Bytes from
//! a client must not look like a line of the log: see [`super::Arrival`].

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, UNIX_EPOCH};

use http::Version;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use serde_json::json;

use super::escape::is_unsafe;
use super::line_queue::{ExportMetrics, LineQueue, QueuedLine, Unlocked};

/// Mode of a new file: its owner writes it, and a group may read and ship it.
const FILE_MODE: u32 = 0o640;

/// The format of the lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessFormat {
    /// One JSON object a line.
    Json,
    /// The combined format of web servers, without Referer and User-Agent, and with Onceward's own
    /// fields at the end.
    Combined,
}

/// The access log. Cheap to clone. When the last clone is dropped, the thread writes the queued
/// lines and ends.
#[derive(Clone)]
pub struct AccessLog {
    lines: LineQueue<(Line, AccessFormat)>,
    format: AccessFormat,
}

/// The thread that writes the access log.
pub struct AccessLogEnd(JoinHandle<()>);

impl AccessLogEnd {
    /// Returns whether all lines are written, which happens only after all clones of the log are
    /// dropped.
    pub fn is_reached(&self) -> bool {
        self.0.is_finished()
    }
}

/// A request that was answered or abandoned.
pub(super) struct Line {
    pub unix_ns: u64,
    pub client: String,
    pub method: String,
    pub path: String,
    pub version: Version,
    pub status: Option<u16>,
    pub bytes: u64,
    pub total: Duration,
    pub upstream: Option<Duration>,
    pub waited: Option<Duration>,
    pub route: Option<Arc<str>>,
    pub outcome: &'static str,
    pub operation: Option<String>,
    pub scope: Option<String>,
    pub trace: Option<String>,
}

impl AccessLog {
    /// Opens a file for appending; `-` is standard output.
    ///
    /// # Errors
    /// The file can't be opened, or the thread can't be started.
    pub fn open(
        format: AccessFormat,
        path: &Path,
        meter: ExportMetrics,
    ) -> io::Result<(AccessLog, AccessLogEnd)> {
        let standard_output = path == Path::new("-");
        let out: Box<dyn Write + Send> =
            if standard_output { Box::new(Unlocked(io::stdout())) } else { Box::new(open(path)?) };
        // Logged once: a full disk has no space for one message per lost line.
        let (lines, thread) = LineQueue::start("access-log", out, meter, |error| {
            tracing::error!(
                %error,
                "the access log can't be written: its lines are dropped and counted"
            );
        })?;
        Ok((AccessLog { lines, format }, AccessLogEnd(thread)))
    }

    pub(super) fn write(&self, line: Line) {
        self.lines.push((line, self.format));
    }
}

impl QueuedLine for (Line, AccessFormat) {
    /// The path is the only part without a fixed length.
    fn weight(&self) -> usize {
        size_of::<Self>() + self.0.path.len()
    }

    fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{}", self.0.text(self.1))
    }
}

/// Opens a file for appending. Opening a named pipe without a reader would block the start or the
/// reload forever, so such a pipe is refused. Afterwards only the writing thread may block, on a
/// slow reader as on a slow disk.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options
        .append(true)
        .create(true)
        .mode(FILE_MODE)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed());
    let file = options.open(path).map_err(|error| {
        let is_pipe = std::fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo());
        match Errno::from_io_error(&error) {
            Some(Errno::NXIO) if is_pipe => {
                io::Error::other("it is a named pipe without a reader: start its reader first")
            }
            _ => error,
        }
    })?;
    fcntl_setfl(&file, fcntl_getfl(&file)? - OFlags::NONBLOCK)?;
    Ok(file)
}

impl Line {
    fn text(&self, format: AccessFormat) -> String {
        match format {
            AccessFormat::Json => self.json(),
            AccessFormat::Combined => self.combined(),
        }
    }

    fn json(&self) -> String {
        let millis = |duration: Duration| (duration.as_secs_f64() * 1e6).round() / 1e3;
        let time = UNIX_EPOCH + Duration::from_nanos(self.unix_ns);
        let mut line = json!({
            "time": humantime::format_rfc3339_millis(time).to_string(),
            "client": self.client,
            "method": self.method,
            "path": self.path,
            "protocol": protocol(self.version),
            "status": self.status,
            "bytes": self.bytes,
            "duration_ms": millis(self.total),
            "route": self.route.as_deref(),
            "outcome": self.outcome,
        });
        let more = [("upstream_ms", self.upstream), ("waited_ms", self.waited)];
        for (name, duration) in more {
            if let Some(duration) = duration {
                line[name] = json!(millis(duration));
            }
        }
        for (name, text) in
            [("operation", &self.operation), ("scope", &self.scope), ("trace", &self.trace)]
        {
            if let Some(text) = text {
                line[name] = json!(text);
            }
        }
        line.to_string()
    }

    /// Formats the line without Referer and User-Agent: clients choose them, and they may contain
    /// queries.
    fn combined(&self) -> String {
        let or_none =
            |text: Option<&str>| text.filter(|text| !text.is_empty()).unwrap_or("-").to_owned();
        let seconds = |duration: Option<Duration>| {
            duration.map_or("-".to_owned(), |it| format!("{:.3}", it.as_secs_f64()))
        };
        format!(
            "{} - - [{}] \"{} {} {}\" {} {} \"-\" \"-\" {} {} {} {} {} {} {}",
            self.client,
            common_time(self.unix_ns),
            escaped(&self.method),
            escaped(&self.path),
            protocol(self.version),
            self.status.map_or("-".to_owned(), |status| status.to_string()),
            self.bytes,
            seconds(Some(self.total)),
            seconds(self.upstream),
            escaped(&or_none(self.route.as_deref())).replace(' ', "\\x20"),
            self.outcome,
            or_none(self.operation.as_deref()),
            or_none(self.scope.as_deref()),
            or_none(self.trace.as_deref()),
        )
    }
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        _ => "HTTP/1.1",
    }
}

/// Escapes characters that would end a quoted text or the line, as web servers do.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' | '\\' => out.push_str(&format!("\\x{:02X}", u32::from(c))),
            c if is_unsafe(c) => out.push_str(&format!("\\x{:02X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out
}

/// Formats a time such as `25/Nov/2026:06:03:12 +0000`.
fn common_time(unix_ns: u64) -> String {
    // "Wed, 25 Nov 2026 06:03:12 GMT"
    let text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_nanos(unix_ns));
    let words: Vec<&str> = text.split(' ').collect();
    match words[..] {
        [_, day, month, year, time, _] => format!("{day}/{month}/{year}:{time} +0000"),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> Line {
        Line {
            unix_ns: 1_764_050_592_123_000_000,
            client: "203.0.113.9".into(),
            method: "POST".into(),
            path: "/v1/a\"b\\c".into(),
            version: Version::HTTP_11,
            status: Some(201),
            bytes: 17,
            total: Duration::from_micros(12_345),
            upstream: Some(Duration::from_millis(10)),
            waited: None,
            route: Some("the payments".into()),
            outcome: "executed",
            operation: Some("op_1".into()),
            scope: Some("ab".into()),
            trace: Some("7a".into()),
        }
    }

    #[test]
    fn a_line_has_the_result_of_a_request_in_both_formats() {
        let json: serde_json::Value =
            serde_json::from_str(&line().text(AccessFormat::Json)).unwrap();
        assert_eq!(json["time"], "2025-11-25T06:03:12.123Z");
        assert_eq!(
            (&json["path"], &json["duration_ms"], &json["upstream_ms"]),
            (&json!("/v1/a\"b\\c"), &json!(12.345), &json!(10.0))
        );
        assert!(json.get("waited_ms").is_none());
        assert_eq!(
            line().text(AccessFormat::Combined),
            "203.0.113.9 - - [25/Nov/2025:06:03:12 +0000] \"POST /v1/a\\x22b\\x5Cc HTTP/1.1\" 201 \
             17 \"-\" \"-\" 0.012 0.010 the\\x20payments executed op_1 ab 7a"
        );
        let abandoned = Line {
            status: None,
            route: None,
            upstream: None,
            operation: None,
            scope: None,
            trace: None,
            ..line()
        };
        assert!(
            abandoned
                .text(AccessFormat::Combined)
                .ends_with("HTTP/1.1\" - 17 \"-\" \"-\" 0.012 - - executed - - -")
        );
    }
}
