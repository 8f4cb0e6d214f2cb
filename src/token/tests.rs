//! Stories of tokens: accepted and refused ones.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::prelude::*;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384,
    RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512, RsaEncoding, RsaKeyPair,
};
use serde_json::json;
use std::sync::LazyLock;

use super::*;

/// 2026-11-25, in seconds.
const NOW_S: u64 = 1_795_600_000;

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A key pair of an issuer.
enum Signer {
    Rsa(RsaKeyPair),
    Ec(EcdsaKeyPair, &'static str, usize),
    Ed(Ed25519KeyPair),
}

static RSA: LazyLock<Signer> = LazyLock::new(|| {
    Signer::Rsa(
        RsaKeyPair::from_pkcs8(include_bytes!("../../tests/fixtures/tokens/rsa.pk8")).unwrap(),
    )
});
static P256: LazyLock<Signer> = LazyLock::new(|| ec(&ECDSA_P256_SHA256_FIXED_SIGNING, "P-256", 32));
static P384: LazyLock<Signer> = LazyLock::new(|| ec(&ECDSA_P384_SHA384_FIXED_SIGNING, "P-384", 48));
static ED: LazyLock<Signer> = LazyLock::new(|| {
    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
    Signer::Ed(Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap())
});

fn ec(algorithm: &'static EcdsaSigningAlgorithm, curve: &'static str, length: usize) -> Signer {
    let random = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
    Signer::Ec(EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap(), curve, length)
}

impl Signer {
    /// Returns the public key as a JWK, with additional members.
    fn jwk(&self, more: Value) -> Value {
        let mut jwk = match self {
            Signer::Rsa(pair) => {
                let public = ring::rsa::PublicKeyComponents::<Vec<u8>>::from(pair.public());
                json!({ "kty": "RSA", "n": b64(public.n), "e": b64(public.e) })
            }
            Signer::Ec(pair, curve, length) => {
                let (x, y) = pair.public_key().as_ref()[1..].split_at(*length);
                json!({ "kty": "EC", "crv": curve, "x": b64(x), "y": b64(y) })
            }
            Signer::Ed(pair) => {
                json!({ "kty": "OKP", "crv": "Ed25519", "x": b64(pair.public_key().as_ref()) })
            }
        };
        jwk.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        jwk
    }

    fn sign(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Signer::Rsa(pair) => {
                let encoding: &dyn RsaEncoding = match algorithm {
                    "RS384" => &RSA_PKCS1_SHA384,
                    "RS512" => &RSA_PKCS1_SHA512,
                    "PS256" => &RSA_PSS_SHA256,
                    "PS384" => &RSA_PSS_SHA384,
                    "PS512" => &RSA_PSS_SHA512,
                    _ => &RSA_PKCS1_SHA256,
                };
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(encoding, &random, message, &mut signature).unwrap();
                signature
            }
            Signer::Ec(pair, ..) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
            Signer::Ed(pair) => pair.sign(message).as_ref().to_vec(),
        }
    }

    /// Returns a signed token with this header and these claims.
    fn token(&self, header: Value, claims: Value) -> String {
        let signed = format!("{}.{}", b64(header.to_string()), b64(claims.to_string()));
        let algorithm = header["alg"].as_str().unwrap_or_default().to_owned();
        format!("{signed}.{}", b64(self.sign(&algorithm, signed.as_bytes())))
    }
}

fn set(keys: &[Value]) -> KeySet {
    KeySet::parse(json!({ "keys": keys }).to_string().as_bytes()).unwrap()
}

const SUB: Expected<'_> = Expected { claim: "sub", issuer: None, audience: None };

fn claims() -> Value {
    json!({ "sub": "shop-1", "exp": NOW_S + 60 })
}

fn check(token: &str, keys: &KeySet) -> Result<String, TokenError> {
    verify(token.as_bytes(), keys, &SUB, NOW_S * 1000).map(|subject| subject.value)
}

const RSA_ALGORITHMS: [&str; 6] = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"];

#[test]
fn each_algorithm_is_verified_with_its_kind_of_key_and_with_no_other() {
    let signers = [
        (&*RSA, &RSA_ALGORITHMS[..]),
        (&*P256, &["ES256"]),
        (&*P384, &["ES384"]),
        (&*ED, &["EdDSA", "Ed25519"]),
    ];
    let keys: Vec<KeySet> =
        signers.iter().map(|(signer, _)| set(&[signer.jwk(json!({}))])).collect();
    let all: Vec<&str> =
        signers.iter().flat_map(|(_, algorithms)| algorithms.iter().copied()).collect();
    for (at, (signer, own)) in signers.iter().enumerate() {
        for name in &all {
            let token = signer.token(json!({ "alg": name }), claims());
            for (other, keys) in keys.iter().enumerate() {
                let believed = check(&token, keys);
                let expected = if other == at && own.contains(name) {
                    Ok("shop-1".to_owned())
                } else {
                    Err(TokenError::UnknownKey)
                };
                assert_eq!(believed, expected, "{name}, signed by {at}, verified by {other}");
            }
        }
    }
}

#[test]
fn what_proves_nothing_is_refused() {
    let keys = set(&[RSA.jwk(json!({ "kid": "a" }))]);
    let payload = b64(claims().to_string());
    for name in ["none", "None", "NONE", "", "HS256", "HS384", "HS512", "RS1", "ES512", "rs256"] {
        let signed = format!("{}.{payload}", b64(json!({ "alg": name, "kid": "a" }).to_string()));
        assert_eq!(check(&format!("{signed}."), &keys), Err(TokenError::Invalid), "{name}");
        // Signed with the public key as the shared secret, in each encoding of the key.
        let jwk = RSA.jwk(json!({}));
        let modulus = URL_SAFE_NO_PAD.decode(jwk["n"].as_str().unwrap()).unwrap();
        for secret in [modulus, jwk.to_string().into_bytes()] {
            let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &secret);
            let token = format!("{signed}.{}", b64(ring::hmac::sign(&secret, signed.as_bytes())));
            assert_eq!(check(&token, &keys), Err(TokenError::Invalid), "{name}");
        }
    }
    for header in [
        json!({ "kid": "a" }),
        json!({ "alg": 1 }),
        json!({ "alg": "RS256", "kid": 1 }),
        json!({ "alg": "RS256", "crit": ["b64"], "b64": false }),
    ] {
        assert_eq!(
            check(&RSA.token(header.clone(), claims()), &keys),
            Err(TokenError::Invalid),
            "{header}"
        );
    }
}

#[test]
fn the_alg_and_use_of_a_key_count() {
    let token = RSA.token(json!({ "alg": "RS256" }), claims());
    for (more, fits) in [
        (json!({}), true),
        (json!({ "alg": "RS256", "use": "sig", "key_ops": ["verify"] }), true),
        (json!({ "alg": "PS256" }), false),
        (json!({ "alg": "RSA-OAEP" }), false),
        (json!({ "use": "enc" }), false),
        (json!({ "key_ops": ["encrypt"] }), false),
        (json!({ "kty": "EC" }), false),
        (json!({ "kty": "oct", "k": "AAAA" }), false),
    ] {
        let keys = set(&[P256.jwk(json!({})), RSA.jwk(more.clone())]);
        assert_eq!(check(&token, &keys).is_ok(), fits, "{more}");
    }
    let ed = ED.token(json!({ "alg": "Ed25519" }), claims());
    assert!(check(&ed, &set(&[ED.jwk(json!({ "alg": "EdDSA" }))])).is_ok());
}

#[test]
fn a_name_selects_the_key_and_an_unknown_one_is_reported() {
    let keys = set(&[
        P256.jwk(json!({ "kid": "a" })),
        ec(&ECDSA_P256_SHA256_FIXED_SIGNING, "P-256", 32).jwk(json!({ "kid": "b" })),
    ]);
    let named =
        |id: &str| check(&P256.token(json!({ "alg": "ES256", "kid": id }), claims()), &keys);
    assert!(named("a").is_ok());
    assert_eq!(named("b"), Err(TokenError::Invalid), "another's key of that name");
    assert_eq!(named("c"), Err(TokenError::UnknownKey));
    assert!(
        check(&P256.token(json!({ "alg": "ES256" }), claims()), &keys).is_ok(),
        "without a name all are tried"
    );
    let mut many: Vec<Value> =
        (0..20).map(|_| ec(&ECDSA_P256_SHA256_FIXED_SIGNING, "P-256", 32).jwk(json!({}))).collect();
    many.push(P256.jwk(json!({ "kid": "a" })));
    let many = set(&many);
    assert_eq!(
        check(&P256.token(json!({ "alg": "ES256" }), claims()), &many),
        Err(TokenError::UnknownKey),
        "not for ever"
    );
    assert!(check(&P256.token(json!({ "alg": "ES256", "kid": "a" }), claims()), &many).is_ok());
}

#[test]
fn the_claims_of_a_token_are_checked() {
    let keys = set(&[ED.jwk(json!({}))]);
    let (exp, number) = (json!(NOW_S), json!(u64::MAX));
    for (claims, expected) in [
        (json!({ "sub": "a", "exp": exp }), Ok(("", "a", false))),
        (json!({ "sub": "a", "exp": NOW_S - 29 }), Ok(("", "a", false))),
        (json!({ "sub": "a", "exp": NOW_S as f64 - 29.5 }), Ok(("", "a", false))),
        (json!({ "sub": "a", "exp": NOW_S - 30 }), Err(TokenError::Expired)),
        (json!({ "sub": "a", "exp": -1e300 }), Err(TokenError::Expired)),
        (json!({ "sub": "a" }), Err(TokenError::Invalid)),
        (json!({ "sub": "a", "exp": NOW_S.to_string() }), Err(TokenError::Invalid)),
        (json!({ "sub": "a", "exp": exp, "nbf": NOW_S + 30 }), Ok(("", "a", false))),
        (json!({ "sub": "a", "exp": exp, "nbf": NOW_S + 31 }), Err(TokenError::Invalid)),
        (json!({ "sub": "a", "exp": exp, "nbf": "soon" }), Err(TokenError::Invalid)),
        (json!({ "sub": "", "exp": exp }), Err(TokenError::Invalid)),
        (json!({ "sub": null, "exp": exp }), Err(TokenError::Invalid)),
        (json!({ "sub": ["a"], "exp": exp }), Err(TokenError::Invalid)),
        (json!({ "sub": true, "exp": exp }), Err(TokenError::Invalid)),
        (json!({ "sub": 7, "exp": exp }), Ok(("", "7", true))),
        (json!({ "sub": -7, "exp": exp }), Ok(("", "-7", true))),
        (json!({ "sub": number, "exp": exp }), Ok(("", "18446744073709551615", true))),
        (json!({ "sub": 7.5, "exp": exp }), Err(TokenError::Invalid)),
        (json!({ "sub": 1e30, "exp": exp }), Err(TokenError::Invalid)),
        (json!({ "exp": exp }), Err(TokenError::Invalid)),
        (json!({ "iss": "i", "sub": "a", "exp": exp }), Ok(("i", "a", false))),
        (json!({ "iss": 1, "sub": "a", "exp": exp }), Err(TokenError::Invalid)),
        (json!(["sub"]), Err(TokenError::Invalid)),
    ] {
        let token = ED.token(json!({ "alg": "EdDSA" }), claims.clone());
        let found = verify(token.as_bytes(), &keys, &SUB, NOW_S * 1000);
        let expected = expected.map(|(issuer, value, is_number)| Subject {
            issuer: issuer.into(),
            value: value.into(),
            is_number,
        });
        assert!(found == expected, "{claims}: {found:?}");
    }
}

#[test]
fn issuer_and_audience_are_asked_for() {
    let keys = set(&[ED.jwk(json!({}))]);
    let expected = Expected { claim: "sub", issuer: Some("i"), audience: Some("us") };
    for (iss, aud, believed) in [
        (json!("i"), json!("us"), true),
        (json!("i"), json!(["them", "us"]), true),
        (json!("j"), json!("us"), false),
        (json!(null), json!("us"), false),
        (json!("i"), json!("them"), false),
        (json!("i"), json!([]), false),
        (json!("i"), json!(null), false),
    ] {
        let token = ED.token(
            json!({ "alg": "EdDSA" }),
            json!({ "sub": "a", "exp": NOW_S, "iss": iss, "aud": aud }),
        );
        assert_eq!(
            verify(token.as_bytes(), &keys, &expected, NOW_S * 1000).is_ok(),
            believed,
            "{iss} {aud}"
        );
    }
}

#[test]
fn the_scheme_may_stand_before_the_token_and_nothing_else() {
    let keys = set(&[ED.jwk(json!({}))]);
    let token = ED.token(json!({ "alg": "EdDSA" }), claims());
    for field in [token.clone(), format!("Bearer {token}"), format!("bEARER  {token} ")] {
        assert!(check(&field, &keys).is_ok(), "{field}");
    }
    let long = "a".repeat(TOKEN_BYTES_MAX);
    let large = ED.token(json!({ "alg": "EdDSA" }), json!({ "sub": long, "exp": NOW_S }));
    for field in [
        format!("Basic {token}"),
        format!("Bearer{token}"),
        format!("{token}, {token}"),
        format!("{token}.x"),
        large,
    ] {
        assert_eq!(check(&field, &keys), Err(TokenError::Invalid));
    }
    let parts: Vec<&str> = token.split('.').collect();
    for field in [
        String::new(),
        ".".into(),
        "..".into(),
        parts[0].into(),
        format!("{}.{}", parts[0], parts[1]),
        format!("{}.{}.", parts[0], parts[1]),
    ] {
        assert!(check(&field, &keys).is_err(), "{field}");
    }
}

#[test]
fn unusable_key_sets_are_reported() {
    let with = |keys: Value| KeySet::parse(json!({ "keys": keys }).to_string().as_bytes());
    assert_eq!(KeySet::parse(b"<html>"), Err(KeySetError::Malformed));
    assert_eq!(KeySet::parse(b"[]"), Err(KeySetError::Malformed));
    assert_eq!(KeySet::parse(b"{}"), Err(KeySetError::Malformed));
    assert_eq!(KeySet::parse(&vec![b' '; KEY_SET_BYTES_MAX + 1]), Err(KeySetError::TooLarge));
    assert_eq!(with(json!([])), Err(KeySetError::NoneUsable));
    assert_eq!(with(json!([1, {}, { "kty": "oct", "k": "AAAA" }])), Err(KeySetError::NoneUsable));
    assert_eq!(with(json!(vec![json!({}); 257])), Err(KeySetError::TooMany));
    let short = json!({ "kty": "RSA", "n": b64([0xff; 128]), "e": "AQAB" });
    assert_eq!(with(json!([short])), Err(KeySetError::NoneUsable));
    let padded = json!({ "kty": "EC", "crv": "P-256", "x": b64([1; 31]), "y": b64([1; 32]) });
    assert_eq!(with(json!([padded])), Err(KeySetError::NoneUsable));
    // Some issuers write the modulus with a leading zero.
    let mut jwk = RSA.jwk(json!({}));
    jwk["n"] = json!(b64(
        [&[0][..], &URL_SAFE_NO_PAD.decode(jwk["n"].as_str().unwrap()).unwrap()].concat()
    ));
    assert!(check(&RSA.token(json!({ "alg": "RS256" }), claims()), &set(&[jwk])).is_ok());
}

static ALL: LazyLock<KeySet> = LazyLock::new(|| {
    set(&[
        RSA.jwk(json!({})),
        P256.jwk(json!({})),
        P384.jwk(json!({})),
        ED.jwk(json!({ "kid": "e" })),
    ])
});

proptest! {
    #[test]
    fn no_bytes_are_believed_and_none_is_too_odd(
        field in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        prop_assert!(verify(&field, &ALL, &SUB, NOW_S * 1000).is_err());
    }

    #[test]
    fn no_well_formed_token_without_a_signature_is_believed(
        algorithm in proptest::sample::select(vec![
            "none", "HS256", "RS256", "PS512", "ES256", "ES384", "EdDSA",
        ]),
        kid in proptest::option::of("[a-f]{1}"),
        signature in proptest::collection::vec(any::<u8>(), 0..520),
    ) {
        let header = match kid {
            None => json!({ "alg": algorithm }),
            Some(kid) => json!({ "alg": algorithm, "kid": kid }),
        };
        let signed = format!("{}.{}", b64(header.to_string()), b64(claims().to_string()));
        let token = format!("{signed}.{}", b64(signature));
        prop_assert!(check(&token, &ALL).is_err());
    }

    #[test]
    fn no_altered_byte_is_believed(
        which in 0..4_usize,
        place in any::<proptest::sample::Index>(),
        flip in 1..=255_u8,
    ) {
        let signers =
            [(&*RSA, "PS256"), (&*P256, "ES256"), (&*P384, "ES384"), (&*ED, "EdDSA")];
        let (signer, algorithm) = signers[which];
        let token = signer.token(json!({ "alg": algorithm }), claims());
        prop_assert!(check(&token, &ALL).is_ok());
        // Alters a byte of the signature.
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let mut signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        let at = place.index(signature.len());
        signature[at] ^= flip;
        let altered = format!("{signed}.{}", b64(&signature));
        prop_assert!(check(&altered, &ALL).is_err());
        // Alters any byte of the token's text.
        let mut text = token.clone().into_bytes();
        let at = place.index(text.len());
        text[at] ^= flip;
        prop_assert!(verify(&text, &ALL, &SUB, NOW_S * 1000).is_err());
    }
}
