//! Onceward forwards every payment request once and replays its answer to every duplicate.
//!
//! The modules, in reading order:
//!
//! - [`key`] names an operation, [`record`] is its stored state, [`event`] a change of that state.
//! - [`engine`] holds the rules as pure functions, and [`route`] finds the policy of a request.
//! - [`store`] keeps the records and the event log.
//! - [`refusal`] is the reason why a request is not run, [`forwarding`] how forwarding fails.
//! - [`gate`] executes a request once per key, and [`layer`] puts it around a tower service.
//! - [`http_message`], [`token`], [`telemetry`], [`clock`], [`entropy`] and [`hex`] serve these.
//!
//! The feature `gateway` adds the `onceward` command: `proxy`, `config`, `read_model`, `admin`,
//! `cli`, `demo`, and `app`, which wires all of them.
//!
//! # Features
//!
//! - `gateway` (default): the command. It implies `embedded` and `tls`.
//! - `redis` (default): the store in Redis, `store::redis`. It implies `tls`.
//! - `embedded`: the store in a file, `store::embedded`.
//! - `jemalloc` (default): the allocator of the command. Its build needs `make`.
//! - `tls`: TLS to clients, upstreams and Redis, `tls`.
//! - `test-suite`: the tests that every store must pass, `store::suite`.
//!
//! Without any of them the crate is the layer over memory.

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
pub mod proxy;
#[cfg(feature = "gateway")]
pub mod read_model;
pub mod record;
pub mod refusal;
pub mod route;
pub mod store;
pub mod telemetry;
#[cfg(feature = "tls")]
pub mod tls;
pub mod token;
