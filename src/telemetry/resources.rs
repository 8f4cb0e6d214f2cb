//! Metrics of resources: representations without a tag, and writes on versions that moved.

use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UntaggedLabels {
    route: String,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResourceLabels {
    route: String,
}

/// The metrics of the resources of one route. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct ResourceMeter {
    untagged: Family<UntaggedLabels, Counter>,
    overwrites: Family<ResourceLabels, Counter>,
    merges: Family<ResourceLabels, Counter>,
    route: Arc<str>,
}

/// The reason why a representation has no tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UntaggedReason {
    /// It is longer than the limit.
    TooLarge,
    /// It has no length and no end within the limit.
    Streamed,
    /// Tags are made of a member, and it does not have that member.
    NoMember,
    /// No memory was left to read it.
    NoMemory,
}

impl UntaggedReason {
    pub(super) const ALL: [UntaggedReason; 4] = [
        UntaggedReason::TooLarge,
        UntaggedReason::Streamed,
        UntaggedReason::NoMember,
        UntaggedReason::NoMemory,
    ];

    /// Returns the value of the label `reason`.
    pub fn name(self) -> &'static str {
        match self {
            UntaggedReason::TooLarge => "too_large",
            UntaggedReason::Streamed => "streamed",
            UntaggedReason::NoMember => "no_member",
            UntaggedReason::NoMemory => "no_memory",
        }
    }
}

impl ResourceMeter {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "resource_untagged",
            "Representations of resources that were relayed without a tag",
            self.untagged.clone(),
        );
        registry.register(
            "resource_overwrites",
            "Writes on a resource that overwrote a version that their writers did not name",
            self.overwrites.clone(),
        );
        registry.register(
            "resource_merges",
            "Patches that were merged into a version that their writers did not name",
            self.merges.clone(),
        );
    }

    pub(super) fn of_route(&self, route: &str) -> ResourceMeter {
        ResourceMeter { route: route.into(), ..self.clone() }
    }

    /// Shows the counters of representations without a tag, before there is one.
    pub fn show_untagged(&self) {
        UntaggedReason::ALL.into_iter().for_each(|reason| drop(self.untagged(reason)));
    }

    /// Shows the counter of overwritten versions, before there is one.
    pub fn show_overwrites(&self) {
        drop(self.overwrites.get_or_create(&self.labels()));
    }

    /// Shows the counter of merged patches, before there is one.
    pub fn show_merges(&self) {
        drop(self.merges.get_or_create(&self.labels()));
    }

    /// Counts a representation that was relayed without a tag.
    pub fn count_untagged(&self, reason: UntaggedReason) {
        self.untagged(reason).inc();
    }

    /// Counts a write that overwrites a version that its writer does not name.
    pub fn count_overwrite(&self) {
        self.overwrites.get_or_create(&self.labels()).inc();
    }

    /// Counts a patch that is merged into a version that its writer does not name.
    pub fn count_merge(&self) {
        self.merges.get_or_create(&self.labels()).inc();
    }

    fn untagged(&self, reason: UntaggedReason) -> Counter {
        let labels = UntaggedLabels { route: self.route.to_string(), reason: reason.name() };
        self.untagged.get_or_create(&labels).clone()
    }

    fn labels(&self) -> ResourceLabels {
        ResourceLabels { route: self.route.to_string() }
    }
}
