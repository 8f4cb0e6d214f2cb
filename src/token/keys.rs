//! The public keys that verify tokens (a JWK set, RFC 7517), and the algorithms that each key
//! allows.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256,
    RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents,
    UnparsedPublicKey, VerificationAlgorithm,
};
use serde_json::{Map, Value};

use super::TokenError;

/// Largest key set, in bytes: hundreds of keys, with certificates.
pub const KEY_SET_BYTES_MAX: usize = 256 << 10;

/// Most keys of a set.
const KEYS_MAX: usize = 256;

/// Most keys to try on one token. Without this limit, a token without a key id would cost one
/// verification per key of a large set.
const TRIES_MAX: usize = 8;

/// Smallest modulus of an RSA key, in bytes (RFC 7518, section 3.3).
const RSA_BYTES_MIN: usize = 256;

/// The key set is unusable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// The text is too long.
    #[error("it is larger than {KEY_SET_BYTES_MAX} bytes")]
    TooLarge,
    /// The text is not `{"keys": [..]}`.
    #[error("it is not a JWK set: a JSON object with a list of keys (RFC 7517)")]
    Malformed,
    /// The set has too many keys.
    #[error("it has more than {KEYS_MAX} keys")]
    TooMany,
    /// The set has no key that can verify tokens.
    #[error(
        "it has no key that can verify tokens: RSA of at least 2048 bits, P-256, P-384 or Ed25519, \
         for signatures"
    )]
    NoneUsable,
}

/// The keys of an issuer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySet(Vec<VerificationKey>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct VerificationKey {
    id: Option<String>,
    /// The only algorithm that the key may be used with, if its `alg` names one.
    algorithm: Option<String>,
    kind: KeyKind,
    /// The modulus of an RSA key, otherwise the encoded point.
    material: Vec<u8>,
    /// The exponent of an RSA key, otherwise empty.
    exponent: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeyKind {
    Rsa,
    P256,
    P384,
    Ed25519,
}

/// The verification procedure of an algorithm.
enum Verification {
    Rsa(&'static RsaParameters),
    Point(KeyKind, &'static dyn VerificationAlgorithm),
}

/// Returns the procedure of a supported algorithm (RFC 7518, section 3.1; RFC 8037; RFC 9864).
/// Algorithms with a shared secret, and `none`, are not supported: a signature that anybody can
/// make with the public key proves nothing.
fn verification(algorithm: &str) -> Option<Verification> {
    Some(match algorithm {
        "RS256" => Verification::Rsa(&RSA_PKCS1_2048_8192_SHA256),
        "RS384" => Verification::Rsa(&RSA_PKCS1_2048_8192_SHA384),
        "RS512" => Verification::Rsa(&RSA_PKCS1_2048_8192_SHA512),
        "PS256" => Verification::Rsa(&RSA_PSS_2048_8192_SHA256),
        "PS384" => Verification::Rsa(&RSA_PSS_2048_8192_SHA384),
        "PS512" => Verification::Rsa(&RSA_PSS_2048_8192_SHA512),
        "ES256" => Verification::Point(KeyKind::P256, &ECDSA_P256_SHA256_FIXED),
        "ES384" => Verification::Point(KeyKind::P384, &ECDSA_P384_SHA384_FIXED),
        "EdDSA" | "Ed25519" => Verification::Point(KeyKind::Ed25519, &ED25519),
        _ => return None,
    })
}

impl Verification {
    fn kind(&self) -> KeyKind {
        match self {
            Verification::Rsa(_) => KeyKind::Rsa,
            Verification::Point(kind, _) => *kind,
        }
    }

    fn verifies(&self, key: &VerificationKey, signed: &[u8], signature: &[u8]) -> bool {
        match self {
            Verification::Rsa(parameters) => {
                let key = RsaPublicKeyComponents { n: &key.material, e: &key.exponent };
                key.verify(parameters, signed, signature).is_ok()
            }
            Verification::Point(_, algorithm) => {
                UnparsedPublicKey::new(*algorithm, &key.material).verify(signed, signature).is_ok()
            }
        }
    }
}

impl KeySet {
    /// Parses a key set. Unusable keys are skipped (RFC 7517, section 5).
    ///
    /// # Errors
    /// See [`KeySetError`].
    pub fn parse(text: &[u8]) -> Result<KeySet, KeySetError> {
        if text.len() > KEY_SET_BYTES_MAX {
            return Err(KeySetError::TooLarge);
        }
        let set: Map<String, Value> =
            serde_json::from_slice(text).map_err(|_| KeySetError::Malformed)?;
        let listed = set.get("keys").and_then(Value::as_array).ok_or(KeySetError::Malformed)?;
        if listed.len() > KEYS_MAX {
            return Err(KeySetError::TooMany);
        }
        let keys: Vec<VerificationKey> =
            listed.iter().filter_map(|key| VerificationKey::read(key.as_object()?)).collect();
        if keys.is_empty() { Err(KeySetError::NoneUsable) } else { Ok(KeySet(keys)) }
    }

    /// Verifies a signature with the keys that have this id, or with all suitable keys if `id` is
    /// `None`.
    pub(super) fn verify(
        &self,
        algorithm: &str,
        id: Option<&str>,
        signed: &[u8],
        signature: &[u8],
    ) -> Result<(), TokenError> {
        let verification = verification(algorithm).ok_or(TokenError::Invalid)?;
        let named = |key: &&VerificationKey| id.is_none_or(|id| key.id.as_deref() == Some(id));
        let mut fitting = self
            .0
            .iter()
            .filter(named)
            .filter(|key| key.fits(&verification, algorithm))
            .take(TRIES_MAX)
            .peekable();
        // If a key with this id exists, a failed verification is no reason to read newer keys.
        let refusal = if id.is_some() && fitting.peek().is_some() {
            TokenError::Invalid
        } else {
            TokenError::UnknownKey
        };
        if fitting.any(|key| verification.verifies(key, signed, signature)) {
            Ok(())
        } else {
            Err(refusal)
        }
    }
}

impl VerificationKey {
    fn read(jwk: &Map<String, Value>) -> Option<VerificationKey> {
        let text = |name| jwk.get(name).map(|value| value.as_str().map(str::to_owned));
        let bytes = |name| URL_SAFE_NO_PAD.decode(jwk.get(name)?.as_str()?).ok();
        if jwk.get("use").is_some_and(|purpose| purpose != "sig") {
            return None;
        }
        if let Some(operations) = jwk.get("key_ops")
            && !operations.as_array()?.iter().any(|operation| operation == "verify")
        {
            return None;
        }
        let point = |length: usize| {
            let (x, y) = (bytes("x")?, bytes("y")?);
            // Uncompressed point (SEC 1, section 2.3.3).
            (x.len() == length && y.len() == length)
                .then(|| [&[4], x.as_slice(), y.as_slice()].concat())
        };
        let (kind, material, exponent) =
            match (jwk.get("kty")?.as_str()?, jwk.get("crv").and_then(Value::as_str)) {
                ("RSA", _) => {
                    let stripped = |bytes: Vec<u8>| {
                        bytes.iter().position(|byte| *byte != 0).map(|at| bytes[at..].to_vec())
                    };
                    let modulus =
                        stripped(bytes("n")?).filter(|modulus| modulus.len() >= RSA_BYTES_MIN)?;
                    (KeyKind::Rsa, modulus, stripped(bytes("e")?)?)
                }
                ("EC", Some("P-256")) => (KeyKind::P256, point(32)?, Vec::new()),
                ("EC", Some("P-384")) => (KeyKind::P384, point(48)?, Vec::new()),
                ("OKP", Some("Ed25519")) => {
                    (KeyKind::Ed25519, bytes("x").filter(|point| point.len() == 32)?, Vec::new())
                }
                _ => return None,
            };
        let id = text("kid").map_or(Some(None), |id| id.map(Some))?;
        let algorithm = text("alg").map_or(Some(None), |name| name.map(Some))?;
        Some(VerificationKey { id, algorithm, kind, material, exponent })
    }

    /// Returns whether the key has the algorithm's key type, and its `alg` doesn't name another
    /// algorithm.
    fn fits(&self, verification: &Verification, algorithm: &str) -> bool {
        let one = |name: &str| if name == "Ed25519" { "EdDSA".to_owned() } else { name.to_owned() };
        self.kind == verification.kind()
            && self.algorithm.as_deref().is_none_or(|own| one(own) == one(algorithm))
    }
}
