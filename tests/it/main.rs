//! Stories with real processes: gateways, Redis and a scripted upstream on free ports, killed and stopped in the middle.
//! The upstream counts executions; that count is the truth.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod harness;

mod access_log;
mod acp;
mod admin;
mod bodies;
mod browsing;
mod cache;
mod capacity;
mod clocks;
mod copies;
mod demo;
mod deploy;
mod dockerfile;
mod doubt;
mod echo;
mod explain;
mod faults;
mod fleets;
mod frames;
mod hashing;
mod hostile;
mod house;
mod http;
mod identities;
mod intake;
mod log;
mod logs;
mod memory;
mod metrics;
mod multiplexed;
mod namespaces;
mod page;
mod paths;
mod projection;
mod published;
mod quota;
mod redaction;
mod redis;
mod reload;
mod report;
mod rights;
mod sealed;
mod searches;
mod stories;
mod streams;
mod supervisor;
mod tls;
mod tokens;
mod told;
mod traces;
mod truncated;
mod tunnels;
mod ucp;
mod vendors;
mod versions;
