//! `[store]`: where records are kept.

use std::path::PathBuf;
use std::time::Duration;

use super::secret::Secret;
use crate::engine::OnFailure;

/// Where records are kept, and what happens when that place can't be reached.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// The place.
    pub url: StoreUrl,
    /// What routes do without it, unless they say otherwise. Already part of every route's policy.
    pub on_failure: OnFailure,
    /// How long one command may take.
    pub timeout: Duration,
    /// Certificates to trust instead of the system's for `rediss://`, a PEM file.
    pub ca_file: Option<PathBuf>,
}

/// A store's url. `Display` and `Debug` mask a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreUrl {
    /// `memory:`, lost on exit.
    Memory,
    /// `file:DIR`, embedded.
    File(PathBuf),
    /// `redis://`, `rediss://` or `unix:///path`.
    Redis {
        /// As the client takes it.
        url: Secret,
        /// Whether it is `rediss`.
        tls: bool,
        /// Whether it is a unix socket.
        unix: bool,
    },
}
