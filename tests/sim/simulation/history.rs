//! What happened, in order.

use std::fmt;

use onceward::record::{Fence, Version};

/// An event, of one key or of all.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub at_ms: u64,
    /// The gateway, where there is one.
    pub gateway: Option<usize>,
    /// The key, where it is about one.
    pub key: Option<usize>,
    pub what: What,
}

#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// A client sends a request.
    Asked { request: u64, who: &'static str },
    /// It gets a result.
    Result { request: u64, how: &'static str, status: u16, copy: Option<u64> },
    /// It gets a refusal.
    Refused { request: u64, why: &'static str },
    /// It leaves, or its gateway dies under it.
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
    /// The store carries one out.
    CarriedOut { state: &'static str, version: Version, fence: Fence, stored: bool },
    /// The first bytes of a request are written to the upstream.
    Sent { order: u64 },
    /// The upstream has all of it.
    Received { order: u64, fate: &'static str },
    /// It acts.
    Charged { order: u64, who: &'static str },
    /// It answers, or breaks off.
    Served { order: u64, status: u16, copy: Option<u64> },
    /// It is asked what became of an operation, and finds so much of it.
    Probed { found: bool },
    /// An operator decides.
    Decided { what: &'static str, done: bool },
    /// To a gateway or the store.
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

/// FNV-1a over what is written.
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
