//! Onceward forwards every payment request once and replays its answer to every duplicate.
//!
//! The modules, in reading order:
//!
//! - [`key`]: reads a key from a request, and computes the identity of the operation.
//! - [`record`]: the stored state of an operation. [`event`]: one change of that state.
//! - [`engine`]: the rules, as pure functions. [`route`]: finds the policy of a request.
//! - [`store`]: keeps the records and the event log.
//! - [`refusal`]: why a request is not run. [`forwarding`]: why forwarding a request failed.
//! - [`gate`]: executes a request once per key. [`layer`]: puts the gate around a tower service.
//! - [`http_message`]: bodies and header fields. [`token`]: verifies tokens with a scope.
//! - [`telemetry`]: metrics, logs and traces. [`clock`], [`entropy`], [`hex`]: small helpers.
//!
//! The feature `gateway` adds the modules of the `onceward` command: `proxy`, `outbox`, `template`,
//! `config`, `read_model`, `admin`, `cli`, `demo`, and `app`, which connects all modules.
//!
//! # Features
//!
//! - `gateway` (default): the command. It implies `embedded` and `tls`.
//! - `redis` (default): the store in Redis, in `store::redis`. It implies `tls`.
//! - `nats` (default): sinks that publish to NATS, in `outbox::nats`. It implies `gateway`.
//! - `embedded`: the store in a file, in `store::embedded`.
//! - `jemalloc` (default): the allocator of the command. Its build needs `make`.
//! - `tls`: TLS to clients, upstreams and Redis, in the module `tls`.
//! - `test-suite`: the tests that every store must pass, in `store::suite`.
//!
//! Without any feature, the crate has the layer and a store in memory.

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "gateway")]
pub mod admin;
#[cfg(feature = "gateway")]
pub mod app;
#[cfg(feature = "gateway")]
pub mod cli;
pub mod clock;
#[cfg(feature = "gateway")]
pub mod config;
#[cfg(feature = "gateway")]
pub mod demo;
pub mod engine;
pub mod entropy;
pub mod event;
pub mod forwarding;
pub mod gate;
pub mod hex;
pub mod http_message;
pub mod key;
pub mod layer;
#[cfg(feature = "gateway")]
pub mod outbox;
#[cfg(feature = "gateway")]
pub mod proxy;
#[cfg(feature = "gateway")]
pub mod read_model;
pub mod record;
pub mod refusal;
pub mod route;
#[cfg(feature = "gateway")]
pub mod saga;
pub mod store;
pub mod telemetry;
#[cfg(feature = "gateway")]
pub mod template;
#[cfg(feature = "tls")]
pub mod tls;
pub mod token;
