//! The sessions of the pages. A visitor who has entered a token gets a cookie with a random name.
//! Each form has a proof that it comes from a page that was made for this cookie.
//!
//! Danger: a browser may send its cookies with requests that other sites cause. So a cookie alone
//! changes nothing. A form also needs a proof, and only the pages of this server contain the proof.
//! In addition, the cookie asks browsers not to send it from other sites.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use axum::http::{HeaderMap, header};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac::{self, HMAC_SHA256};
use ring::rand::{SecureRandom, SystemRandom};
use sha2::{Digest, Sha256};

use super::auth::Token;

/// The maximum of sessions, which is more than a gateway has operators. A further session ends the
/// oldest one.
const SESSIONS_MAX: usize = 256;

/// The lifetime of a session, about one shift. Then the visitor has to enter the token again.
const SESSION_MS: u64 = 8 * 60 * 60 * 1000;

/// Bytes of a session's name, which is the only secret of the session.
const NAME_BYTES: usize = 32;

/// The open sessions, and the secret that all proofs are computed with. Both end with the process.
pub struct Sessions {
    random: SystemRandom,
    secret: hmac::Key,
    /// The sessions by the hash of their names, so that a look-up compares no secrets.
    open: Mutex<HashMap<[u8; 32], Session>>,
}

struct Session {
    token: Token,
    ends_boot_ms: u64,
}

/// The name in a browser's cookie. It has no session until the visitor enters a token.
#[derive(Clone)]
pub(super) struct SessionName(String);

/// The operating system gives no random numbers.
#[derive(Debug, thiserror::Error)]
#[error("the system gives no random numbers")]
pub struct NoRandomness;

impl Sessions {
    /// Creates the state without sessions.
    ///
    /// # Errors
    /// The operating system gives no random numbers.
    pub fn new() -> Result<Sessions, NoRandomness> {
        let random = SystemRandom::new();
        let secret = hmac::Key::generate(HMAC_SHA256, &random).map_err(|_| NoRandomness)?;
        Ok(Sessions { random, secret, open: Mutex::default() })
    }

    /// Returns a new name.
    pub(super) fn name(&self) -> Result<SessionName, NoRandomness> {
        let mut bytes = [0; NAME_BYTES];
        self.random.fill(&mut bytes).map_err(|_| NoRandomness)?;
        Ok(SessionName(URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// Opens a session for the holder of a token. It gets a new name, because somebody else may
    /// have seen the earlier one.
    pub(super) fn open(&self, token: Token, now_boot_ms: u64) -> Result<SessionName, NoRandomness> {
        let name = self.name()?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, session| session.ends_boot_ms > now_boot_ms);
        if open.len() >= SESSIONS_MAX
            && let Some(first) =
                open.iter().min_by_key(|(_, session)| session.ends_boot_ms).map(|(hash, _)| *hash)
        {
            open.remove(&first);
        }
        open.insert(
            name.hash(),
            Session { token, ends_boot_ms: now_boot_ms.saturating_add(SESSION_MS) },
        );
        Ok(name)
    }

    /// Returns the token of an open session.
    pub(super) fn holder(&self, name: &SessionName, now_boot_ms: u64) -> Option<Token> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(&name.hash())
            .filter(|session| session.ends_boot_ms > now_boot_ms)
            .map(|session| session.token.clone())
    }

    /// Ends a session.
    pub(super) fn close(&self, name: &SessionName) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&name.hash());
    }

    /// Returns the proof for forms of pages that are made for this name.
    pub(super) fn proof(&self, name: &SessionName) -> String {
        URL_SAFE_NO_PAD.encode(hmac::sign(&self.secret, name.0.as_bytes()))
    }

    /// Returns whether the proof belongs to the name.
    pub(super) fn proves(&self, name: &SessionName, proof: &str) -> bool {
        let Ok(proof) = URL_SAFE_NO_PAD.decode(proof) else { return false };
        hmac::verify(&self.secret, name.0.as_bytes(), &proof).is_ok()
    }
}

impl SessionName {
    /// Returns the name from the cookies of a request.
    pub(super) fn of(headers: &HeaderMap) -> Option<SessionName> {
        let wanted = cookie_name(headers);
        let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
        let mut pairs =
            lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let value = pairs.find(|(name, _)| *name == wanted).map(|(_, value)| value)?;
        let is_name = URL_SAFE_NO_PAD.decode(value).is_ok_and(|bytes| bytes.len() == NAME_BYTES);
        is_name.then(|| SessionName(value.to_owned()))
    }

    /// Returns the cookie with the name. The cookie is for this server only, hidden from scripts,
    /// and not sent from other sites. If the browser sent an https origin, the cookie is sent over
    /// TLS only.
    pub(super) fn cookie(&self, headers: &HeaderMap) -> String {
        let tls = headers
            .get(header::ORIGIN)
            .is_some_and(|origin| origin.as_bytes().starts_with(b"https://"));
        let secure = if tls { "; Secure" } else { "" };
        format!("{}={}; Path=/; HttpOnly; SameSite=Strict{secure}", cookie_name(headers), self.0)
    }

    /// Returns the cookie that deletes the name in the browser.
    pub(super) fn forget(headers: &HeaderMap) -> String {
        format!("{}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0", cookie_name(headers))
    }

    fn hash(&self) -> [u8; 32] {
        Sha256::digest(&self.0).into()
    }
}

/// Returns the name of the cookie, which contains the port. Browsers share cookies between all
/// ports of a host, so two gateways on one machine would overwrite each other's cookies.
fn cookie_name(headers: &HeaderMap) -> String {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let port = host
        .and_then(|host| host.parse::<axum::http::uri::Authority>().ok())
        .and_then(|host| host.port_u16());
    port.map_or_else(|| "onceward".to_owned(), |port| format!("onceward-{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(name: &str) -> Token {
        Token::new(name, true, b"secret")
    }

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_session_is_found_by_its_name_alone_and_ends() {
        let sessions = Sessions::new().unwrap();
        let name = sessions.open(token("on-call"), 1000).unwrap();
        assert_eq!(sessions.holder(&name, 1000 + SESSION_MS - 1).unwrap().name(), "on-call");
        assert!(sessions.holder(&name, 1000 + SESSION_MS).is_none(), "its shift is over");
        assert!(sessions.holder(&sessions.name().unwrap(), 1000).is_none(), "a name is no session");
        sessions.close(&name);
        assert!(sessions.holder(&name, 1000).is_none(), "signed out");
    }

    #[test]
    fn however_many_sign_in_the_table_stays_bounded_and_the_oldest_go() {
        let sessions = Sessions::new().unwrap();
        let names: Vec<SessionName> =
            (0..SESSIONS_MAX as u64 + 2).map(|n| sessions.open(token("t"), n).unwrap()).collect();
        let open: Vec<bool> =
            names.iter().map(|name| sessions.holder(name, 300).is_some()).collect();
        assert_eq!(open.iter().filter(|open| **open).count(), SESSIONS_MAX);
        assert_eq!(open[..3], [false, false, true]);
    }

    #[test]
    fn a_proof_is_of_one_name_and_one_process() {
        let (sessions, other) = (Sessions::new().unwrap(), Sessions::new().unwrap());
        let (mine, theirs) = (sessions.name().unwrap(), sessions.name().unwrap());
        let proof = sessions.proof(&mine);
        assert!(sessions.proves(&mine, &proof));
        for (sessions, name, proof) in [
            (&sessions, &theirs, proof.as_str()),
            (&other, &mine, &proof),
            (&sessions, &mine, ""),
            (&sessions, &mine, "?"),
        ] {
            assert!(!sessions.proves(name, proof), "{proof}");
        }
    }

    #[test]
    fn a_cookie_is_of_its_port_out_of_reach_and_over_tls_where_that_is_how_it_came() {
        let sessions = Sessions::new().unwrap();
        let name = sessions.name().unwrap();
        let plain = name
            .cookie(&headers(&[("host", "localhost:8081"), ("origin", "http://localhost:8081")]));
        assert_eq!(plain, format!("onceward-8081={}; Path=/; HttpOnly; SameSite=Strict", name.0));
        let secure =
            name.cookie(&headers(&[("host", "ops.example"), ("origin", "https://ops.example")]));
        assert_eq!(
            secure,
            format!("onceward={}; Path=/; HttpOnly; SameSite=Strict; Secure", name.0)
        );
        let sent = format!("other=1; onceward-8081={}", name.0);
        assert_eq!(
            SessionName::of(&headers(&[("host", "localhost:8081"), ("cookie", &sent)])).unwrap().0,
            name.0
        );
        assert!(
            SessionName::of(&headers(&[("host", "localhost:8082"), ("cookie", &sent)])).is_none()
        );
        assert!(
            SessionName::of(&headers(&[
                ("host", "localhost:8081"),
                ("cookie", "onceward-8081=short")
            ]))
            .is_none()
        );
    }
}
