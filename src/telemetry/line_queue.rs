//! A bounded queue of lines and the thread that writes them, for the process log and the access
//! log.
//!
//! Danger: a disk that hangs, or a pipe without a reader, must not block a request. So
//! [`LineQueue::push`] never waits: a line that finds no space in the queue is dropped and counted.

use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, LazyLock};
use std::thread::JoinHandle;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// Most lines in one queue: a second or so of a very busy gateway.
const LINES_MAX: usize = 8192;

/// Most bytes of lines in one queue, including the batch that is being written.
const BYTES_MAX: usize = 8 << 20;

/// Most lines between two flushes. Lines count as written after the flush.
const BATCH_MAX: u64 = 1024;

/// A line in a queue. The writer thread renders the line, so that a request only has to queue it.
pub(super) trait QueuedLine: Send + 'static {
    /// Returns the approximate memory that the line takes while it is queued, in bytes; at least 1.
    fn weight(&self) -> usize;

    /// Writes the line with its line break.
    ///
    /// # Errors
    /// The output can't be written.
    fn write_to(&self, out: &mut dyn Write) -> io::Result<()>;
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

/// Counters of exported items: lines or spans.
#[derive(Debug, Clone)]
pub struct ExportMetrics {
    all: Family<ResultLabel, Counter>,
    /// Written, or accepted by the collector.
    pub exported: Counter,
    /// No space in the queue, or not accepted.
    pub dropped: Counter,
}

impl Default for ExportMetrics {
    fn default() -> ExportMetrics {
        let all: Family<ResultLabel, Counter> = Family::default();
        let of = |result| all.get_or_create(&ResultLabel { result }).clone();
        ExportMetrics { exported: of("exported"), dropped: of("dropped"), all }
    }
}

impl ExportMetrics {
    pub(super) fn register(&self, registry: &mut Registry, name: &str, help: &str) {
        registry.register(name, help, self.all.clone());
    }
}

/// The counters of log lines. There is one log per process.
static METER: LazyLock<ExportMetrics> = LazyLock::new(ExportMetrics::default);

/// Returns the counters of log lines, written and dropped.
pub(super) fn log_meter() -> ExportMetrics {
    METER.clone()
}

/// The sending half of a queue. Cheap to clone; the writer thread ends when the last clone is
/// dropped.
pub(super) struct LineQueue<L> {
    lines: SyncSender<L>,
    /// Bytes of lines that are queued or being written.
    pending: Arc<AtomicUsize>,
    meter: ExportMetrics,
}

impl<L> Clone for LineQueue<L> {
    fn clone(&self) -> LineQueue<L> {
        LineQueue {
            lines: self.lines.clone(),
            pending: self.pending.clone(),
            meter: self.meter.clone(),
        }
    }
}

impl<L: QueuedLine> LineQueue<L> {
    /// Starts the writer thread. It calls `on_failure` for the first of several errors in a row.
    ///
    /// # Errors
    /// The thread can't be started.
    pub(super) fn start(
        thread: &str,
        out: impl Write + Send + 'static,
        meter: ExportMetrics,
        on_failure: fn(&io::Error),
    ) -> io::Result<(LineQueue<L>, JoinHandle<()>)> {
        let (queue, receiver) = LineQueue::bounded(LINES_MAX, meter);
        let writer = Writer {
            receiver,
            pending: queue.pending.clone(),
            meter: queue.meter.clone(),
            on_failure,
        };
        let thread = std::thread::Builder::new().name(thread.to_owned());
        Ok((queue, thread.spawn(move || writer.run(BufWriter::new(out)))?))
    }

    fn bounded(lines: usize, meter: ExportMetrics) -> (LineQueue<L>, Receiver<L>) {
        let (lines, receiver) = sync_channel(lines);
        (LineQueue { lines, pending: Arc::default(), meter }, receiver)
    }

    /// Queues a line, or drops and counts it. Never waits.
    pub(super) fn push(&self, line: L) {
        let weight = line.weight();
        let pending = self.pending.fetch_add(weight, Ordering::AcqRel) + weight;
        if pending > BYTES_MAX || self.lines.try_send(line).is_err() {
            self.pending.fetch_sub(weight, Ordering::AcqRel);
            self.meter.dropped.inc();
        }
    }

    /// Waits until every queued line is written or dropped; at most `wait`. Blocks the calling
    /// thread.
    #[cfg_attr(not(feature = "gateway"), allow(dead_code, reason = "only the log is flushed"))]
    pub(super) fn flush(&self, wait: Duration) {
        const LOOK: Duration = Duration::from_millis(1);
        for _ in 0..wait.as_millis() {
            if self.pending.load(Ordering::Acquire) == 0 {
                return;
            }
            std::thread::sleep(LOOK);
        }
    }
}

/// The receiving half of a queue.
struct Writer<L> {
    receiver: Receiver<L>,
    pending: Arc<AtomicUsize>,
    meter: ExportMetrics,
    on_failure: fn(&io::Error),
}

impl<L: QueuedLine> Writer<L> {
    /// Writes lines until no sender is left. Flushes when the queue is empty, and after
    /// [`BATCH_MAX`] lines.
    fn run(self, mut out: impl Write) {
        let mut failing = false;
        while let Ok(first) = self.receiver.recv() {
            let (mut next, mut lines, mut bytes) = (Some(first), 0, 0);
            let mut written = Ok(());
            while let Some(line) = next {
                lines += 1;
                bytes += line.weight();
                written = written.and_then(|()| line.write_to(&mut out));
                next = if lines < BATCH_MAX { self.receiver.try_recv().ok() } else { None };
            }
            match written.and_then(|()| out.flush()) {
                Ok(()) => {
                    self.meter.exported.inc_by(lines);
                    failing = false;
                }
                Err(error) => {
                    self.meter.dropped.inc_by(lines);
                    if !std::mem::replace(&mut failing, true) {
                        (self.on_failure)(&error);
                    }
                }
            }
            self.pending.fetch_sub(bytes, Ordering::AcqRel);
        }
    }
}

/// Standard output or standard error without the lock of `std::io`. A blocked writer would hold
/// that lock, and all other threads would wait. If another process made the descriptor
/// non-blocking, a write waits until the descriptor is ready.
pub(super) struct Unlocked<F>(pub F);

impl<F: AsFd> Write for Unlocked<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match rustix::io::write(&self.0, bytes) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    match poll(&mut [PollFd::new(&self.0, PollFlags::OUT)], None) {
                        Ok(_) | Err(Errno::INTR) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                written => return Ok(written?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl QueuedLine for &'static str {
        fn weight(&self) -> usize {
            self.len()
        }

        fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
            writeln!(out, "{self}")
        }
    }

    fn queue(lines: usize) -> (LineQueue<&'static str>, Writer<&'static str>) {
        let (queue, receiver) = LineQueue::bounded(lines, ExportMetrics::default());
        let writer = Writer {
            receiver,
            pending: queue.pending.clone(),
            meter: queue.meter.clone(),
            on_failure: |_| {},
        };
        (queue, writer)
    }

    #[test]
    fn lines_without_room_are_dropped_and_counted_and_nobody_waits() {
        let (queue, writer) = queue(2);
        (0..5).for_each(|_| queue.push("a line"));
        let meter = queue.meter.clone();
        assert_eq!((meter.dropped.get(), meter.exported.get()), (3, 0));
        let pending = queue.pending.clone();
        drop(queue);
        let mut out = Vec::new();
        writer.run(&mut out);
        assert_eq!((out.as_slice(), meter.exported.get()), (&b"a line\na line\n"[..], 2));
        assert_eq!(pending.load(Ordering::Acquire), 0);
    }

    #[test]
    fn long_lines_fill_a_queue_before_there_are_many() {
        static LONG: [u8; BYTES_MAX / 2 + 1] = [b'x'; BYTES_MAX / 2 + 1];
        let long = std::str::from_utf8(&LONG).unwrap();
        let (queue, _writer) = queue(LINES_MAX);
        queue.push(long);
        queue.push(long);
        queue.push("a short one still fits");
        assert_eq!(queue.meter.dropped.get(), 1);
    }

    #[test]
    fn lines_that_can_not_be_written_are_counted() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (queue, writer) = queue(2);
        queue.push("a line");
        let meter = queue.meter.clone();
        drop(queue);
        writer.run(Full);
        assert_eq!((meter.dropped.get(), meter.exported.get()), (1, 0));
    }

    #[test]
    fn a_flush_waits_until_all_is_written_and_no_longer_than_it_may() {
        let (reader, writer) = std::io::pipe().unwrap();
        let meter = ExportMetrics::default();
        let (queue, _thread) =
            LineQueue::start("lines", Unlocked(writer), meter.clone(), |_| {}).unwrap();
        queue.push("written");
        queue.flush(Duration::from_secs(60));
        assert_eq!(meter.exported.get(), 1);
        // Larger than a pipe.
        static LARGE: [u8; 1 << 20] = [b'x'; 1 << 20];
        queue.push(std::str::from_utf8(&LARGE).unwrap());
        queue.flush(Duration::from_millis(50));
        assert_eq!(meter.exported.get(), 1, "nobody reads");
        drop(reader);
    }
}
