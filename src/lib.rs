//! Onceward forwards every payment request once and replays its answer to every duplicate.
//!
//! The rooms, in reading order. A [`key`] names an operation; a [`record`] is what is known about it; the [`engine`]
//! holds the rules, pure; a [`store`] keeps records, and of each change an [`event`]. The [`gate`] tells the story of a request; [`route`] says which
//! policy it has; a [`token`] says whom it speaks of; [`proxy`] is HTTP on both sides; [`layer`] lays the gate around a service. [`admin`] is for operators,
//! [`config`] and [`cli`] for those who set it up; [`app`] wires everything, and [`demo`] shows it.

pub mod admin;
pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod demo;
pub mod engine;
pub mod entropy;
pub mod event;
pub mod gate;
pub mod hex;
pub mod key;
pub mod layer;
pub mod proxy;
pub mod read_model;
pub mod record;
pub mod refusal;
pub mod route;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod token;
