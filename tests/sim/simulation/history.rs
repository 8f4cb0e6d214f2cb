//! The events, in order.

use std::fmt;

use onceward::record::{Fence, Version};

/// An event of one key or of all keys.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub at_ms: u64,
    /// The gateway, if there is one.
    pub gateway: Option<usize>,
    /// The key, if the event is about one.
    pub key: Option<usize>,
    pub what: Occurrence,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Occurrence {
    /// A client sends a request.
    ClaimRequest { request: u64, who: &'static str },
    /// The client gets a result.
    Result { request: u64, how: &'static str, status: u16, copy: Option<u64> },
    /// The client gets a refusal.
    Refused { request: u64, why: &'static str },
    /// The client leaves, or its gateway dies during the request.
    Left { request: u64, why: &'static str },
    /// A gateway sends a write to the store.
    Command {
        verb: &'static str,
        state: &'static str,
        over: Option<Version>,
        version: Version,
        fence: Fence,
        fate: &'static str,
    },
    /// The store carries out a write.
    CarriedOut { state: &'static str, version: Version, fence: Fence, stored: bool },
    /// The first bytes of a request are written to the upstream.
    Sent { order: u64 },
    /// The upstream has the whole request.
    Received { order: u64, fate: &'static str },
    /// The upstream executes the request.
    Charged { order: u64, who: &'static str },
    /// The upstream answers, or breaks off.
    Served { order: u64, status: u16, copy: Option<u64> },
    /// A probe asks the upstream about an operation.
    Probed { found: bool },
    /// An operator decides.
    Decided { what: &'static str, done: bool },
    /// Something happens to an event for a sink.
    Delivery { what: &'static str, sink: &'static str, version: u64, round: u32, relay: u64 },
    /// A fault of a gateway or of the store.
    Trouble { what: &'static str, for_ms: u64 },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>9.3} s  ", self.at_ms as f64 / 1000.0)?;
        match self.gateway {
            Some(gateway) => write!(f, "g{gateway}  ")?,
            None => f.write_str("    ")?,
        }
        match self.key {
            Some(key) => write!(f, "k{key}  {:?}", self.what),
            None => write!(f, "    {:?}", self.what),
        }
    }
}

/// FNV-1a over the written text.
pub struct Digest(pub u64);

impl Digest {
    pub fn of(events: &[Event]) -> u64 {
        let mut digest = Digest(0xcbf2_9ce4_8422_2325);
        for event in events {
            // Writing into a number can't fail.
            let _ = fmt::write(&mut digest, format_args!("{event:?}"));
        }
        digest.0
    }
}

impl fmt::Write for Digest {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Ok(())
    }
}
