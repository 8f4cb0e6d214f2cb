//! An issuer of tokens, with a key of its own.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use onceward::clock::Clock;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};

/// Signs tokens (ES256) under the id of a key.
pub struct Issuer {
    pair: EcdsaKeyPair,
    key_id: String,
}

impl Issuer {
    pub fn new(key_id: &str) -> Issuer {
        let random = SystemRandom::new();
        let pkcs8 =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random)
                .unwrap();
        Issuer { pair, key_id: key_id.into() }
    }

    /// Returns the public keys of some issuers as a JWK set.
    pub fn jwks(issuers: &[&Issuer]) -> String {
        json!({ "keys": issuers.iter().map(|issuer| issuer.jwk()).collect::<Vec<_>>() }).to_string()
    }

    fn jwk(&self) -> Value {
        let (x, y) = self.point().split_at(32);
        json!({ "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": self.key_id, "x": encode(x), "y": encode(y) })
    }

    /// Returns the public key's point, without the byte that names its encoding.
    pub fn point(&self) -> &[u8] {
        &self.pair.public_key().as_ref()[1..]
    }

    /// Returns a new token for a subject. It expires after this many seconds; each token is unique.
    pub fn token(&self, subject: &str, seconds: i64) -> String {
        self.sign(
            json!({ "alg": "ES256", "kid": self.key_id }),
            json!({ "sub": subject, "exp": in_seconds(seconds) }),
        )
    }

    /// Returns a signed token with this header and these claims.
    pub fn sign(&self, header: Value, claims: Value) -> String {
        let signed = unsigned(&header, &claims);
        let signature = self.pair.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", encode(signature.as_ref()))
    }
}

/// Returns the Unix time this many seconds from now.
pub fn in_seconds(seconds: i64) -> i64 {
    i64::try_from(Clock::system().unix_ms()).unwrap() / 1000 + seconds
}

/// Returns the part of a token that its signature covers.
pub fn unsigned(header: &Value, claims: &Value) -> String {
    format!("{}.{}", encode(header.to_string().as_bytes()), encode(claims.to_string().as_bytes()))
}

pub fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}
