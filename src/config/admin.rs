//! `[admin_auth]`, the tokens for the admin port, and the resolution of all secrets of a
//! configuration.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::{HeaderMap, HeaderValue};

use super::Config;
use super::broker::broker_url;
use super::fault::{Fault, Faults};
use super::read::Table;
use super::secret::Secret;
use super::texts::file_name;
use crate::key::HASH_SECRET_BYTES_MIN;
use crate::outbox::webhook::webhook_secret;
use crate::saga::plan::{Compensation, FieldSource, StepUncertain};

/// Bytes of an AES-256 key.
const ENCRYPTION_KEY_BYTES: usize = 32;

/// Permissions of a token's holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Read only.
    Read,
    /// Read, and resolve, retry, release or expire operations.
    Operate,
}

/// A token as the file describes it. The file never contains the secret itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenSource {
    /// The holder's name, for the audit trail.
    pub name: String,
    /// The permissions.
    pub role: Role,
    /// The source of the secret.
    pub source: SecretSource,
}

/// Source of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// An environment variable.
    Env(String),
    /// A file. Line breaks at its end are removed.
    File(PathBuf),
}

/// A token with its secret.
#[derive(Debug, Clone)]
pub struct AdminToken {
    /// The holder's name.
    pub name: String,
    /// The permissions.
    pub role: Role,
    /// The secret that the holder sends as `Authorization: Bearer`.
    pub secret: Secret,
}

/// All resolved secrets of a configuration.
#[derive(Debug, Clone, Default)]
pub struct Secrets {
    /// Tokens for the admin port.
    pub admin_tokens: Vec<AdminToken>,
    /// Ids and keys (in base64) that seal results.
    pub encryption_keys: Vec<(String, Secret)>,
    /// Secrets for the hashes of keys, scopes and callers.
    pub hash_secrets: Vec<Secret>,
    /// Header fields of probes, by route name.
    pub probe_headers: HashMap<String, HeaderMap>,
    /// Header fields for the collector of traces.
    pub tracing_headers: HeaderMap,
    /// Secrets of the sinks, by name.
    pub sinks: HashMap<String, SinkSecrets>,
    /// Header fields of the steps of sagas, by the source that plans name.
    pub saga_fields: HashMap<FieldSource, HeaderValue>,
}

/// The resolved secrets of one sink. `Debug` shows none of them.
#[derive(Clone, Default)]
pub struct SinkSecrets {
    /// The secrets that sign webhooks, decoded.
    pub signing: Vec<Vec<u8>>,
    /// Header fields.
    pub headers: HeaderMap,
    /// The receiver's url, if it is a secret.
    pub url: Option<Secret>,
}

const TOKEN_EXPECTED: &str = "a list of tokens such as [{ name = \"on-call\", role = \"operate\", \
                              env = \"ONCEWARD_ADMIN_TOKEN\" }]";
const ROLES: [(&str, Role); 2] = [("read", Role::Read), ("operate", Role::Operate)];

/// Reads `[admin_auth]`.
pub(super) fn read_tokens(table: Table<'_>) -> Option<Vec<TokenSource>> {
    let items = table.get("tokens").map_or(Some(Vec::new()), |value| {
        value.list(TOKEN_EXPECTED).or_else(|| {
            value.conceal();
            None
        })
    });
    table.finish();
    let mut tokens: Vec<TokenSource> = Vec::new();
    for item in items? {
        let Some(table) = item.table("a table with name, role and env or file") else {
            item.conceal();
            continue;
        };
        let Some(token) = read_token(table) else { continue };
        if tokens.iter().any(|other| other.name == token.name) {
            item.fault(format!("a second token is named {:?}", token.name));
        }
        tokens.push(token);
    }
    Some(tokens)
}

fn read_token(table: Table<'_>) -> Option<TokenSource> {
    let missing =
        |name: &'static str, why: &str| table.report.note_absence(&table.span_of(name), why);
    let name = table.get("name").map(|value| value.parsed("the holder's name", word));
    if name.is_none() {
        missing("name", "a token needs a name, for the audit trail");
    }
    let role = table.get("role").map(|value| value.choice(&ROLES, &[]));
    if role.is_none() {
        missing("role", "a token needs a role: \"read\" or \"operate\"");
    }
    let source = SecretSource::read_from(&table, "a token");
    table.finish();
    Some(TokenSource { name: name??, role: role??, source: source? })
}

impl TokenSource {
    /// Reads the secret.
    fn resolve(&self, env: impl Fn(&str) -> Option<String>) -> Result<AdminToken, String> {
        let secret = self.source.read(env)?;
        // Clients send the secret as one word of an `Authorization` field.
        if secret.is_empty() || !secret.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(
                "expected a secret of visible ASCII characters without white space".to_owned()
            );
        }
        Ok(AdminToken { name: self.name.clone(), role: self.role, secret: Secret::new(secret) })
    }
}

impl SecretSource {
    /// Reads `env` or `file` of a table. `what` names the owner of the secret, for messages.
    pub(super) fn read_from(table: &Table<'_>, what: &str) -> Option<SecretSource> {
        match table.get_together(["env", "file"]) {
            [Some(env), None] => {
                let variable = |text: &str| word(text).filter(|name| !name.contains('='));
                env.parsed("an environment variable's name", variable).map(SecretSource::Env)
            }
            [None, Some(file)] => file.parsed("a file's name", file_name).map(SecretSource::File),
            [Some(env), Some(_)] => {
                env.fault(format!("{what} has env or file, not both"));
                None
            }
            [None, None] => {
                let text = format!(
                    "the secret of {what} is named by env (an environment variable) or file"
                );
                table.report.note_absence(&table.span_of("env"), text);
                None
            }
        }
    }

    /// Reads the secret.
    fn read(&self, env: impl Fn(&str) -> Option<String>) -> Result<String, String> {
        let text = match self {
            SecretSource::Env(variable) => env(variable)
                .ok_or_else(|| format!("the environment variable {variable} is not set"))?,
            SecretSource::File(file) => {
                fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?
            }
        };
        Ok(text.trim_end_matches(['\r', '\n']).to_owned())
    }

    /// Reads the secret as the value of a header field.
    fn read_field(&self, env: impl Fn(&str) -> Option<String>) -> Result<HeaderValue, String> {
        let text = self.read(env)?;
        let mut value = HeaderValue::try_from(text)
            .map_err(|_| "expected a field's value: visible characters".to_owned())?;
        value.set_sensitive(true);
        Ok(value)
    }
}

fn word(text: &str) -> Option<String> {
    (!text.is_empty() && text.chars().all(|c| !c.is_control())).then(|| text.to_owned())
}

/// Looks up an environment variable.
type Environment<'e> = &'e dyn Fn(&str) -> Option<String>;

impl Secrets {
    /// Reads all secrets. `env` looks up an environment variable.
    pub(super) fn resolve(
        config: &Config,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Secrets, Faults> {
        let (mut secrets, mut faults) = (Secrets::default(), Faults::default());
        secrets.resolve_admin_tokens(config, &env, &mut faults);
        secrets.resolve_encryption_keys(config, &env, &mut faults);
        secrets.resolve_hash_secrets(config, &env, &mut faults);
        secrets.resolve_probe_headers(config, &env, &mut faults);
        secrets.resolve_tracing_headers(config, &env, &mut faults);
        secrets.resolve_sinks(config, &env, &mut faults);
        secrets.resolve_sagas(config, &env, &mut faults);
        if faults.0.is_empty() { Ok(secrets) } else { Err(faults) }
    }

    /// Reads the tokens of the admin port.
    fn resolve_admin_tokens(&mut self, config: &Config, env: Environment<'_>, faults: &mut Faults) {
        for (index, source) in config.admin_tokens.iter().enumerate() {
            let resolved = source.resolve(env).and_then(|token| {
                let same = self.admin_tokens.iter().find(|other| other.secret == token.secret);
                same.map_or(Ok(token), |other| {
                    Err(format!(
                        "the same secret as {:?}: the audit trail couldn't distinguish them",
                        other.name
                    ))
                })
            });
            match resolved {
                Ok(token) => self.admin_tokens.push(token),
                Err(text) => {
                    faults
                        .0
                        .push(Fault::without_excerpt(format!("admin_auth.tokens[{index}]"), text));
                }
            }
        }
    }

    /// Reads the keys that seal results.
    fn resolve_encryption_keys(
        &mut self,
        config: &Config,
        env: Environment<'_>,
        faults: &mut Faults,
    ) {
        for (index, key) in config.encryption_keys.iter().enumerate() {
            let sound = |text: &String| {
                BASE64.decode(text).is_ok_and(|bytes| bytes.len() == ENCRYPTION_KEY_BYTES)
            };
            let read = key.source.read(env).map(|text| text.trim().to_owned());
            match read.and_then(|text| {
                if sound(&text) { Ok(text) } else { Err("expected 32 bytes in base64".to_owned()) }
            }) {
                Ok(text) => self.encryption_keys.push((key.id.clone(), Secret::new(text))),
                Err(text) => {
                    faults.0.push(Fault::without_excerpt(format!("encryption.keys[{index}]"), text))
                }
            }
        }
    }

    /// Reads the secrets for the hashes of identities.
    fn resolve_hash_secrets(&mut self, config: &Config, env: Environment<'_>, faults: &mut Faults) {
        for (index, source) in config.hash_secrets.iter().enumerate() {
            let checked = match source.read(env) {
                Ok(text) if text.len() < HASH_SECRET_BYTES_MIN => {
                    Err(format!("expected a secret of at least {HASH_SECRET_BYTES_MIN} bytes"))
                }
                Ok(text) if self.hash_secrets.iter().any(|other| other.expose() == text) => {
                    Err("the same secret a second time".to_owned())
                }
                read => read,
            };
            match checked {
                Ok(text) => self.hash_secrets.push(Secret::new(text)),
                Err(text) => {
                    faults.0.push(Fault::without_excerpt(format!("hashing.secrets[{index}]"), text))
                }
            }
        }
    }

    /// Reads the secret fields of probes.
    fn resolve_probe_headers(
        &mut self,
        config: &Config,
        env: Environment<'_>,
        faults: &mut Faults,
    ) {
        for (index, route) in config.routes.iter().enumerate() {
            for (name, source) in &route.probe_headers {
                match source.read_field(env) {
                    Ok(value) => {
                        self.probe_headers
                            .entry(route.name.clone())
                            .or_default()
                            .append(name, value);
                    }
                    Err(text) => faults.0.push(Fault::without_excerpt(
                        format!("routes[{index}].probe.headers.{name}"),
                        text,
                    )),
                }
            }
        }
    }

    /// Reads the secret fields of the trace exporter.
    fn resolve_tracing_headers(
        &mut self,
        config: &Config,
        env: Environment<'_>,
        faults: &mut Faults,
    ) {
        for (name, source) in config.tracing.iter().flat_map(|tracing| &tracing.secret_headers) {
            match source.read_field(env) {
                Ok(value) => _ = self.tracing_headers.append(name, value),
                Err(text) => {
                    faults.0.push(Fault::without_excerpt(format!("tracing.headers.{name}"), text))
                }
            }
        }
    }

    /// Reads the secrets and secret fields of the sinks.
    fn resolve_sinks(&mut self, config: &Config, env: Environment<'_>, faults: &mut Faults) {
        for (index, sink) in config.sinks.iter().enumerate() {
            let receiver = format!("sinks[{index}].{}", sink.settings.target.kind());
            let mut found = SinkSecrets::default();
            for (number, source) in sink.secrets.iter().enumerate() {
                let secret = source
                    .read(env)
                    .and_then(|text| webhook_secret(&text).map_err(|error| error.to_string()));
                match secret {
                    Ok(secret) if !found.signing.contains(&secret) => found.signing.push(secret),
                    refused => {
                        let text = refused.err().unwrap_or("the same secret a second time".into());
                        let key = format!("{receiver}.secrets[{number}]");
                        faults.0.push(Fault::without_excerpt(key, text));
                    }
                }
            }
            for (name, source) in &sink.secret_headers {
                match source.read_field(env) {
                    Ok(value) => _ = found.headers.append(name, value),
                    Err(text) => {
                        let key = format!("{receiver}.headers.{name}");
                        faults.0.push(Fault::without_excerpt(key, text));
                    }
                }
            }
            if let Some(source) = &sink.url_source {
                let target = &sink.settings.target;
                match source.read(env).and_then(|text| broker_url(target, &text)) {
                    Ok(url) => found.url = Some(Secret::new(url)),
                    Err(text) => {
                        let key = format!("{receiver}.url");
                        faults.0.push(Fault::without_excerpt(key, text));
                    }
                }
            }
            self.sinks.insert(sink.settings.name.clone(), found);
        }
    }
}

impl Secrets {
    /// Reads the secret fields of the steps of sagas.
    fn resolve_sagas(&mut self, config: &Config, env: Environment<'_>, faults: &mut Faults) {
        let steps = config.sagas.iter().enumerate().flat_map(|(saga, configured)| {
            let steps = configured.plan.steps.iter().enumerate();
            steps.map(move |(at, step)| (format!("sagas[{saga}].steps[{at}]"), step))
        });
        for (path, step) in steps {
            let mut all = vec![("request", &step.action.headers)];
            if let Compensation::Request { request, .. } = &step.compensation {
                all.push(("compensate", &request.headers));
            }
            if let StepUncertain::Probe(probe) = &step.sending.on_uncertain {
                all.push(("probe", &probe.headers));
            }
            for (owner, fields) in all {
                for (name, field) in fields {
                    let source = match field {
                        FieldSource::Text(_) => continue,
                        FieldSource::Env(variable) => SecretSource::Env(variable.clone()),
                        FieldSource::File(file) => SecretSource::File(file.into()),
                    };
                    match source.read_field(env) {
                        Ok(value) => _ = self.saga_fields.insert(field.clone(), value),
                        Err(text) => {
                            let key = format!("{path}.{owner}.headers.{name}");
                            faults.0.push(Fault::without_excerpt(key, text));
                        }
                    }
                }
            }
        }
    }
}

impl std::fmt::Debug for SinkSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SinkSecrets")
            .field("signing", &self.signing.len())
            .field("headers", &self.headers.keys().collect::<Vec<_>>())
            .field("url", &self.url)
            .finish()
    }
}
