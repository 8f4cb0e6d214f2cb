//! Users of NATS that log in with credentials: an operator, its accounts, and a user, each with a
//! key and a signed JWT.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::{Value, json};

/// The kinds of keys, each with its letter at the beginning of a key's text.
const OPERATOR: u8 = 14 << 3;
const ACCOUNT: u8 = 0;
const USER: u8 = 20 << 3;
const SEED: u8 = 18 << 3;

/// A user of a server, and the lines of the server's configuration that let only such users in.
pub struct NatsUser {
    pub config: String,
    /// The content of the user's file.
    pub credentials: String,
}

/// A key. Keys of the same number are the same.
struct Key {
    kind: u8,
    seed: [u8; 32],
}

impl NatsUser {
    /// Returns a user of an operator. Operators of different numbers do not trust each other.
    pub fn of_operator(number: u8) -> NatsUser {
        let key = |kind, at: u8| Key { kind, seed: [number.wrapping_mul(8) + at; 32] };
        let (operator, system) = (key(OPERATOR, 0), key(ACCOUNT, 1));
        let (account, user) = (key(ACCOUNT, 2), key(USER, 3));
        let limits = json!({
            "subs": -1, "conn": -1, "leaf": -1, "imports": -1, "exports": -1, "data": -1,
            "payload": -1, "wildcards": true
        });
        let of_account = json!({ "type": "account", "version": 2, "limits": limits });
        let of_user = json!({
            "type": "user", "version": 2, "pub": {}, "sub": {}, "subs": -1, "data": -1,
            "payload": -1
        });
        let config = format!(
            "operator: {}\nsystem_account: {}\nresolver: MEMORY\n\
             resolver_preload {{ {}: {}, {}: {} }}",
            operator.token(&operator, json!({ "type": "operator", "version": 2 })),
            system.name(),
            system.name(),
            operator.token(&system, of_account.clone()),
            account.name(),
            operator.token(&account, of_account),
        );
        let credentials = format!(
            "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            account.token(&user, of_user),
            user.seed_text(),
        );
        NatsUser { config, credentials }
    }
}

impl Key {
    fn pair(&self) -> Ed25519KeyPair {
        Ed25519KeyPair::from_seed_unchecked(&self.seed).unwrap()
    }

    /// Returns the text of the public key.
    fn name(&self) -> String {
        encoded([&[self.kind], self.pair().public_key().as_ref()].concat())
    }

    fn seed_text(&self) -> String {
        encoded([&[SEED | self.kind >> 5, (self.kind & 31) << 3], &self.seed[..]].concat())
    }

    /// Returns a JWT about another key, signed by this one.
    fn token(&self, subject: &Key, nats: Value) -> String {
        let header = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
        let claims = json!({ "iss": self.name(), "sub": subject.name(), "iat": 1, "jti": "1", "nats": nats });
        let [header, claims] = [header, claims].map(|part| BASE64.encode(part.to_string()));
        let signed = format!("{header}.{claims}");
        let signature = BASE64.encode(self.pair().sign(signed.as_bytes()));
        format!("{signed}.{signature}")
    }
}

/// Adds the check sum (CRC-16/XMODEM) and encodes in base32 (RFC 4648).
fn encoded(mut bytes: Vec<u8>) -> String {
    let sum = bytes.iter().fold(0_u16, |sum, byte| {
        (0..8).fold(sum ^ u16::from(*byte) << 8, |sum, _| {
            if sum & 0x8000 == 0 { sum << 1 } else { sum << 1 ^ 0x1021 }
        })
    });
    bytes.extend(sum.to_le_bytes());
    let bits = bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1));
    let bits: Vec<u8> = bits.collect();
    let letters = bits.chunks(5).map(|bits| {
        let value = bits.iter().fold(0, |value, bit| value << 1 | bit) << (5 - bits.len());
        char::from(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"[usize::from(value)])
    });
    letters.collect()
}
