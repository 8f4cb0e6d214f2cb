//! File descriptors: how many the process may open, and how they are divided.
//!
//! Danger: without descriptors the process accepts no connection, not even for health checks, and
//! can't reconnect to its store. So some descriptors are reserved for the admin port, the store and
//! the process itself. Clients and upstreams get the rest.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Limits;

/// Reserved descriptors: for the admin port's connections, for the store (a few per Redis server,
/// or a few files), and for log files, certificates and the runtime.
const RESERVED: u64 = 128 + 64 + 64;

/// Idle connections that each further upstream may keep while the other upstreams use all permits.
const IDLE_PER_UPSTREAM: u64 = 512;

/// The limits of client connections and of requests in flight. Each request in flight may need a
/// connection to an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DescriptorShare {
    pub connections: usize,
    pub in_flight: usize,
}

/// Raises the limit of open files as far as the system allows. Logs a warning if that is not
/// enough.
pub(super) fn raise(limits: &Limits, upstreams: usize) {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::warn!(%error, ?current, ?maximum, "the limit of open files could not be raised");
    }
    let allowed = allowed();
    let (needed, share) = (needed(limits, upstreams), fit(limits, upstreams, allowed));
    if let Some(allowed) = allowed.filter(|allowed| *allowed < needed) {
        tracing::warn!(
            allowed,
            needed,
            connections = share.connections,
            in_flight = share.in_flight,
            "too few file descriptors: connections and in_flight are lowered; raise the limit of \
             open files (LimitNOFILE, ulimit -n)"
        );
    }
}

/// Returns the limits of client connections and requests that fit the process's limit of open
/// files.
pub(super) fn share(limits: &Limits, upstreams: usize) -> DescriptorShare {
    fit(limits, upstreams, allowed())
}

/// Returns how many files the process may open, or `None` if there is no limit.
fn allowed() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

fn reserved(upstreams: usize) -> u64 {
    RESERVED + IDLE_PER_UPSTREAM * (upstreams.saturating_sub(1) as u64)
}

fn needed(limits: &Limits, upstreams: usize) -> u64 {
    (limits.connections as u64)
        .saturating_add(limits.in_flight as u64)
        .saturating_add(reserved(upstreams))
}

/// Returns the configured limits. If there are too few descriptors, lowers both limits in
/// proportion, to at least 1.
fn fit(limits: &Limits, upstreams: usize, allowed: Option<u64>) -> DescriptorShare {
    let (connections, in_flight) = (limits.connections as u64, limits.in_flight as u64);
    let configured = connections.saturating_add(in_flight);
    let left =
        allowed.map_or(configured, |allowed| allowed.saturating_sub(reserved(upstreams))).max(2);
    if left >= configured {
        return DescriptorShare { connections: limits.connections, in_flight: limits.in_flight };
    }
    let for_clients = u128::from(left) * u128::from(connections) / u128::from(configured);
    let connections = u64::try_from(for_clients).unwrap_or(left).clamp(1, left - 1);
    let size = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
    DescriptorShare {
        connections: size(connections),
        in_flight: size((left - connections).min(in_flight)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Overrides};

    #[test]
    fn too_few_descriptors_are_shared_out_in_proportion_and_some_are_kept() {
        let overrides =
            Overrides { upstream: Some("http://localhost".into()), ..Overrides::default() };
        let limits = Config::load(None, overrides).unwrap().limits;
        assert_eq!((limits.connections, limits.in_flight), (10_000, 5000));
        let share = |connections, in_flight| DescriptorShare { connections, in_flight };
        for allowed in [None, Some(1 << 20), Some(15_256)] {
            assert_eq!(fit(&limits, 1, allowed), share(10_000, 5000), "{allowed:?}");
        }
        assert_eq!(needed(&limits, 1), 15_256);
        assert_eq!(fit(&limits, 1, Some(4096)), share(2560, 1280));
        assert_eq!(
            fit(&limits, 2, Some(4096)),
            share(2218, 1110),
            "another upstream keeps idle connections of its own"
        );
        assert_eq!(fit(&limits, 1, Some(10)), share(1, 1));
        let fewer = Limits { connections: 1, in_flight: 5000, ..limits };
        assert_eq!(fit(&fewer, 1, Some(1256)), share(1, 999));
    }
}
