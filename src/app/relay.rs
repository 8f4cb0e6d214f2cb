//! The sinks of a configuration, and the relay that delivers their events.

use std::sync::Arc;

use anyhow::{Context, Result};

use crate::clock::Clock;
use crate::config::Config;
use crate::gate::Gate;
use crate::outbox::backlog::Backlogs;
use crate::outbox::relay::{Relay, RelayParts, Sinks};
use crate::outbox::sink::Sink;

/// Sets the configured sinks up.
///
/// # Errors
/// A file of a sink's settings can't be read.
pub(super) fn sinks(config: &Config) -> Result<Sinks> {
    let sink = |sink: &crate::config::SinkConfig| {
        let name = sink.settings.name.clone();
        let built = Sink::new(sink.settings.clone());
        let built = built.with_context(|| format!("can't set up the sink {name}"))?;
        anyhow::Ok((name, built))
    };
    Ok(Arc::new(config.sinks.iter().map(sink).collect::<Result<_>>()?))
}

/// Starts the relay of a process.
pub(super) fn start(config: &Config, gate: &Gate, clock: &Clock, sinks: Sinks) -> Relay {
    let (meter, full) = (gate.meter().outbox.clone(), gate.full_sinks().clone());
    let parts = RelayParts {
        store: gate.store().clone(),
        clock: clock.clone(),
        entropy: gate.entropy().clone(),
        backlogs: Backlogs::new(meter.clone(), move |names| full.replace(names)),
        meter,
        delivers: config.outbox.relay,
    };
    Relay::start(parts, sinks)
}
