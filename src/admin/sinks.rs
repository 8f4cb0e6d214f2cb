//! Sinks: their state for operators, and operators' decisions about them.

use std::collections::{BTreeMap, BTreeSet};

use super::auth::Operator;
use super::decision::Reason;
use super::problem::AdminRefusal;
use super::state::Admin;
use super::view::{SinkTestView, SinkView};
use crate::outbox::backlog::{BacklogSum, present_backlogs};
use crate::outbox::relay::Sinks;
use crate::outbox::states::{Pause, SinkStates};

/// The sinks and their states, from one look at the store.
struct SinkLook {
    sinks: Sinks,
    backlogs: BTreeMap<String, BacklogSum>,
    states: SinkStates,
}

impl SinkLook {
    /// Looks at the store. The relay's last look would be a second old, and an operator would not
    /// see the own decision.
    async fn new(admin: &Admin) -> Result<SinkLook, AdminRefusal> {
        let store = admin.gate.store();
        Ok(SinkLook {
            sinks: admin.relay.sinks(),
            backlogs: present_backlogs(&*store.outbox).await?,
            states: SinkStates::load(&*store.identities).await?,
        })
    }

    /// Returns the names: those of the configuration, and those for which something waits.
    fn names(&self) -> BTreeSet<&String> {
        self.sinks.keys().chain(self.backlogs.keys()).collect()
    }

    fn view(&self, name: &str) -> SinkView {
        let sink = self.sinks.get(name).map(|sink| &**sink);
        let backlog = self.backlogs.get(name).copied().unwrap_or_default();
        SinkView::new(name, sink, self.states.of(name), &backlog)
    }
}

/// Returns all sinks, by name.
pub(super) async fn sinks(admin: &Admin) -> Result<Vec<SinkView>, AdminRefusal> {
    let look = SinkLook::new(admin).await?;
    Ok(look.names().into_iter().map(|name| look.view(name)).collect())
}

/// Checks that there is a sink with this name.
pub(super) async fn require_sink(admin: &Admin, name: &str) -> Result<(), AdminRefusal> {
    if admin.relay.sinks().contains_key(name) {
        return Ok(());
    }
    let backlogs = present_backlogs(&*admin.gate.store().outbox).await?;
    backlogs.contains_key(name).then_some(()).ok_or(AdminRefusal::SinkUnknown)
}

/// Pauses a sink, for all gateways of the store. A sink that is paused keeps its reason. Returns
/// the sink.
pub(super) async fn pause_sink(
    admin: &Admin,
    operator: &Operator,
    name: &str,
    reason: &Reason,
) -> Result<SinkView, AdminRefusal> {
    require_sink(admin, name).await?;
    let (by, reason) = (operator.0.clone(), reason.text());
    let since_ms = admin.clock.unix_ms();
    let pause = Pause { reason: reason.to_owned(), by: Some(by), since_ms };
    SinkStates::pause(&*admin.gate.store().identities, name, &pause).await?;
    admin.relay.states_changed();
    tracing::info!(sink = name, operator = operator.0, reason, "sink paused by an operator");
    Ok(SinkLook::new(admin).await?.view(name))
}

/// Resumes a sink, for all gateways of the store. Returns the sink.
pub(super) async fn resume_sink(
    admin: &Admin,
    operator: &Operator,
    name: &str,
    reason: Option<&Reason>,
) -> Result<SinkView, AdminRefusal> {
    require_sink(admin, name).await?;
    let now_ms = admin.clock.unix_ms();
    SinkStates::resume(&*admin.gate.store().identities, name, now_ms).await?;
    admin.relay.states_changed();
    let reason = reason.map(Reason::text);
    tracing::info!(sink = name, operator = operator.0, reason, "sink resumed by an operator");
    Ok(SinkLook::new(admin).await?.view(name))
}

/// Sends a test event to a sink, once, even if the sink is paused. Returns the result.
pub(super) async fn test_sink(
    admin: &Admin,
    operator: &Operator,
    name: &str,
) -> Result<SinkTestView, AdminRefusal> {
    let Some(test) = admin.relay.test(name, &admin.event_source).await else {
        require_sink(admin, name).await?;
        return Err(AdminRefusal::SinkNotConfigured);
    };
    let view = SinkTestView::new(name, test?);
    tracing::info!(
        sink = name,
        operator = operator.0,
        event = view.event,
        delivered = view.delivered,
        status = view.status,
        error = view.error,
        "sink tested by an operator"
    );
    Ok(view)
}
