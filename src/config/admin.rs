//! `[admin_auth]`: who may use the admin port.

use std::path::PathBuf;

use super::secret::Secret;

/// What a token's holder may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Look.
    Read,
    /// Look, and resolve, retry, release or expire.
    Operate,
}

/// A token as the file names it; the file never holds the secret itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenSource {
    /// Who holds it, for the audit trail.
    pub name: String,
    /// What it allows.
    pub role: Role,
    /// Where its secret is.
    pub place: SecretPlace,
}

/// Where a secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretPlace {
    /// In an environment variable.
    Env(String),
    /// In a file; a line break at its end doesn't count.
    File(PathBuf),
}

/// A token with its secret.
#[derive(Debug, Clone)]
pub struct AdminToken {
    /// Who holds it.
    pub name: String,
    /// What it allows.
    pub role: Role,
    /// What the holder sends as `Authorization: Bearer`.
    pub secret: Secret,
}

/// All secrets of a configuration, read.
#[derive(Debug, Clone, Default)]
pub struct Secrets {
    /// For the admin port.
    pub admin_tokens: Vec<AdminToken>,
}
