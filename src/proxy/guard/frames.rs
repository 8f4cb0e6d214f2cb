//! The guard of HTTP/2: its frames leave no two readings, but some make work and carry nothing, and those are counted.
//!
//! Danger: a frame of nine bytes can cost an answer, an opened and a cancelled request, or a place in a table. The
//! library behind bounds what it keeps of them in memory, not how many it works through (CVE-2019-9512, CVE-2023-44487).

use std::time::Duration;

use tokio::time::Instant;

/// How many frames that carry nothing a client may send in a period. A decent one sends a few: pings, a changed setting,
/// and the end of requests that it gives up, of which it has at most as many as it may have open.
const IDLE_FRAMES_MAX: u32 = 1000;
const PERIOD: Duration = Duration::from_secs(10);

/// The connection preface (RFC 9113, section 3.4) and a frame's header (section 4.1), in bytes.
const PREFACE_BYTES: usize = 24;
const HEADER_BYTES: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;

/// Follows the frames of one HTTP/2 connection.
#[derive(Debug)]
pub struct Frames {
    header: [u8; HEADER_BYTES],
    filled: usize,
    /// What is left of the frame, or of the preface.
    left: usize,
    idle: u32,
    since: Instant,
    flooded: bool,
}

impl Frames {
    /// At the beginning of a connection, preface included.
    pub fn new(now: Instant) -> Frames {
        Frames { header: [0; HEADER_BYTES], filled: 0, left: PREFACE_BYTES, idle: 0, since: now, flooded: false }
    }

    /// Looks at the next bytes: all may be passed on, or, where there are too many idle frames, so many that they end
    /// with a whole frame.
    pub fn scan(&mut self, bytes: &[u8], now: impl Fn() -> Instant) -> Result<(), usize> {
        let mut at = 0;
        loop {
            let skipped = self.left.min(bytes.len() - at);
            at += skipped;
            self.left -= skipped;
            if self.left > 0 {
                return Ok(());
            }
            if self.flooded {
                return Err(at);
            }
            let Some(&byte) = bytes.get(at) else { return Ok(()) };
            self.header[self.filled] = byte;
            self.filled += 1;
            at += 1;
            if self.filled == HEADER_BYTES {
                self.filled = 0;
                self.frame(&now);
            }
        }
    }

    /// A header is complete.
    fn frame(&mut self, now: impl Fn() -> Instant) {
        let [high, middle, low, kind, flags, ..] = self.header;
        self.left = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        let carries = match kind {
            DATA => self.left > 0 || flags & END_STREAM != 0,
            // Taking a large body costs many of the latter, and they cost next to nothing.
            HEADERS | WINDOW_UPDATE => true,
            _ => false,
        };
        if carries {
            return;
        }
        self.idle += 1;
        if self.idle > IDLE_FRAMES_MAX {
            let now = now();
            self.flooded = now < self.since + PERIOD;
            (self.idle, self.since) = (1, now);
        }
    }
}

#[cfg(test)]
mod tests {
    //! Which frames count, and when they are too many.

    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).unwrap();
        [&[0, 0, length, kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn opened(now: Instant) -> Frames {
        let mut frames = Frames::new(now);
        frames.scan(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", || now).unwrap();
        frames
    }

    #[test]
    fn too_many_idle_frames_end_with_a_whole_one_however_they_are_cut() {
        let now = Instant::now();
        for (kind, payload) in [(2, &b"12345"[..]), (3, b"1234"), (4, b""), (6, b"12345678"), (9, b""), (DATA, b""), (200, b"x")]
        {
            let flood = frame(kind, 0, payload).repeat(IDLE_FRAMES_MAX as usize + 5);
            let end = frame(kind, 0, payload).len() * (IDLE_FRAMES_MAX as usize + 1);
            assert_eq!(opened(now).scan(&flood, || now), Err(end), "type {kind}");
            let mut frames = opened(now);
            let passed =
                flood.iter().position(|byte| frames.scan(&[*byte], || now) == Err(0) || frames.flooded && frames.left == 0);
            assert_eq!(passed, Some(end - 1), "type {kind}, byte by byte");
        }
    }

    #[test]
    fn frames_that_carry_something_and_slow_ones_are_not_counted() {
        let now = Instant::now();
        let mut frames = opened(now);
        for (kind, flags, payload) in
            [(DATA, 0, &b"x"[..]), (DATA, END_STREAM, b""), (HEADERS, 0, b"x"), (WINDOW_UPDATE, 0, b"1234")]
        {
            assert_eq!(frames.scan(&frame(kind, flags, payload).repeat(5000), || now), Ok(()));
        }
        for period in 1..10 {
            let later = now + PERIOD * period;
            assert_eq!(frames.scan(&frame(6, 0, b"12345678").repeat(IDLE_FRAMES_MAX as usize), || later), Ok(()));
        }
    }
}
