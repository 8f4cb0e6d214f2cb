//! The parts of a gateway that a process runs.

use crate::config::Config;

/// The parts of a gateway that a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serve {
    /// Everything: `onceward run`.
    ClientsAndOperators,
    /// No listener for clients: `onceward relay`. The process delivers events, whatever its file
    /// has as `[outbox] relay`.
    ///
    /// It has the gate, the routes and the upstreams, and it sweeps: if all gateways are down, it
    /// still marks operations with an ended lease, and delivers the events of that change. It
    /// sends no probes: the gateways do, and it may run where no upstream can be reached.
    OperatorsOnly,
}

impl Serve {
    /// Returns the configuration with the settings that the process uses. A relay usually has the
    /// file of its gateways. It must neither write their access log or read model, nor refuse a
    /// reload because settings of their listener have changed.
    pub(super) fn adapted(self, mut config: Config) -> Config {
        if self == Serve::ClientsAndOperators {
            return config;
        }
        config.outbox.relay = true;
        config.read_model = None;
        config.access_log = None;
        config.tls = None;
        // Not bound. The same value after each reload.
        config.listen = config.admin;
        // The descriptors are for the limit of requests.
        config.limits.connections = 1;
        config
    }

    /// Returns whether the process takes over sagas of gateways that are gone. A relay may run
    /// where no upstream can be reached.
    pub(super) fn runs_sagas(self) -> bool {
        self == Serve::ClientsAndOperators
    }

    /// Returns whether the process probes uncertain operations without waiting for a duplicate.
    pub(super) fn probes(self) -> bool {
        self == Serve::ClientsAndOperators
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Overrides;

    #[test]
    fn a_relay_delivers_and_leaves_the_files_of_its_gateways_alone() {
        let text = "listen = \"127.0.0.1:1\"\n[upstream]\nurl = \"http://localhost\"\n\
                    [store]\nurl = \"redis://localhost\"\n[outbox]\nrelay = false\n\
                    [log]\nenabled = true\n[read_model]\npath = \"/x\"\n\
                    [access_log]\nformat = \"json\"\n";
        let config = Config::load(Some(("onceward.toml", text)), Overrides::default()).unwrap();
        assert!(config.read_model.is_some() && config.access_log.is_some());
        let gateway = Serve::ClientsAndOperators.adapted(config.clone());
        assert!(!gateway.outbox.relay && gateway.read_model.is_some());
        let relay = Serve::OperatorsOnly.adapted(config.clone());
        assert!(relay.outbox.relay && relay.read_model.is_none() && relay.access_log.is_none());
        assert_eq!(relay.limits.in_flight, config.limits.in_flight);
    }
}
