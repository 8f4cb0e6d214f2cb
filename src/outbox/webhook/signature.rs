//! The secrets of webhooks, and the signature of a request (Standard Webhooks 1.0).

use base64::Engine as _;
use base64::alphabet::STANDARD as STANDARD_ALPHABET;
use base64::engine::general_purpose::STANDARD as BASE64;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use ring::hmac::{Context, HMAC_SHA256, Key};

use crate::outbox::settings::WEBHOOK_SECRET_BYTES_MIN;

/// Prefix of a secret in base64.
const SECRET_PREFIX: &str = "whsec_";

/// Prefix of a signature: version 1, HMAC-SHA-256.
const SIGNATURE_PREFIX: &str = "v1,";

/// Services show secrets with and without padding.
const SECRET_BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD_ALPHABET,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The reason why a text is not a secret for webhooks. No text has a part of the secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WebhookSecretError {
    /// The text begins with `whsec_`, and what follows is not base64.
    #[error("expected base64 after `whsec_`")]
    Base64,
    /// The secret is short enough to guess.
    #[error("the secret has {bytes} bytes; expected at least {WEBHOOK_SECRET_BYTES_MIN}")]
    TooShort {
        /// Its length, in bytes.
        bytes: usize,
    },
}

/// Reads a secret: `whsec_` and base64, or the bytes of any other text.
///
/// # Errors
/// What follows `whsec_` is not base64, or the secret has fewer than [`WEBHOOK_SECRET_BYTES_MIN`]
/// bytes.
pub fn webhook_secret(text: &str) -> Result<Vec<u8>, WebhookSecretError> {
    let secret = match text.strip_prefix(SECRET_PREFIX) {
        Some(encoded) => SECRET_BASE64.decode(encoded).map_err(|_| WebhookSecretError::Base64)?,
        None => text.as_bytes().to_vec(),
    };
    match secret.len() {
        bytes if bytes < WEBHOOK_SECRET_BYTES_MIN => Err(WebhookSecretError::TooShort { bytes }),
        _ => Ok(secret),
    }
}

/// The secrets of one receiver, at least one.
pub(super) struct WebhookKeys(Vec<Key>);

impl WebhookKeys {
    /// Returns `None` if there is no secret.
    pub(super) fn new(secrets: &[Vec<u8>]) -> Option<WebhookKeys> {
        let keys: Vec<_> = secrets.iter().map(|secret| Key::new(HMAC_SHA256, secret)).collect();
        (!keys.is_empty()).then_some(WebhookKeys(keys))
    }

    /// Returns the `webhook-signature`: a signature with each secret, separated by spaces.
    pub(super) fn signature(&self, id: &str, unix_s: u64, body: &[u8]) -> String {
        let head = format!("{id}.{unix_s}.");
        let sign = |key| {
            let mut context = Context::with_key(key);
            context.update(head.as_bytes());
            context.update(body);
            format!("{SIGNATURE_PREFIX}{}", BASE64.encode(context.sign()))
        };
        self.0.iter().map(sign).collect::<Vec<_>>().join(" ")
    }
}
