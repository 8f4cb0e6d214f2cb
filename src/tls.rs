//! TLS: rustls with ring. Whom to trust, who this server is, and who this process is to other servers.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use bytes::Bytes;
use rustls::client::ResolvesClientCert;
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// No certificate authority that could be trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// The text is not PEM, or a certificate in it is malformed.
    #[error("a certificate of the authorities can't be read: {0}")]
    Malformed(String),
    /// Neither in the given text nor on the system.
    #[error("no certificate authority was found; install the system's certificates or set ca_file")]
    NoneFound,
    /// The cryptography doesn't offer what TLS needs, which a build of this program rules out.
    #[error("TLS can't be set up: {0}")]
    Unsupported(String),
}

/// Trusts the authorities in `ca_pem`, or else the system's. `identity`: shown to servers that ask for a certificate. `alpn`: the
/// protocols that are offered, in this order.
///
/// # Errors
/// See [`TrustError`].
pub fn client_config(
    ca_pem: Option<&[u8]>,
    identity: Option<Arc<ClientIdentity>>,
    alpn: &[&[u8]],
) -> Result<ClientConfig, TrustError> {
    let malformed = |why: &dyn std::fmt::Display| TrustError::Malformed(why.to_string());
    let mut roots = RootCertStore::empty();
    match ca_pem {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(|error| malformed(&error))?;
                roots.add(certificate).map_err(|error| malformed(&error))?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err(TrustError::NoneFound);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| TrustError::Unsupported(error.to_string()))?
        .with_root_certificates(roots);
    let shows_certificate = identity.is_some();
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => builder.with_client_cert_resolver(identity),
    };
    // A resumed session keeps the certificate of the first one, also when that was replaced.
    if shows_certificate {
        config.resumption = rustls::client::Resumption::disabled();
    }
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(config)
}

/// The subject of a certificate, the content of its DER; `None` where it is empty, which names nobody.
pub fn subject(certificate: &CertificateDer<'_>) -> Option<Bytes> {
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    Some(Bytes::copy_from_slice(certificate.subject())).filter(|subject| !subject.is_empty())
}

/// The files that say who this server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFiles {
    /// Its certificate, and those that lead to an authority, in PEM.
    pub cert: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
    /// The authorities of clients, in PEM: with them every client has to show a certificate.
    pub client_ca: Option<PathBuf>,
}

/// The files that say who this process is to servers that ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientFiles {
    /// Its certificate, and those that lead to an authority, in PEM.
    pub cert: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
}

/// Who this process is to servers that ask. Each new connection reads the files again, and shows what they say; files that can't
/// be used leave things as they are, since one of the two may not have been renewed yet.
pub struct ClientIdentity {
    files: ClientFiles,
    /// What the files said when it was loaded.
    loaded: Vec<CertificateDer<'static>>,
    current: RwLock<Arc<CertifiedKey>>,
}

impl ClientIdentity {
    /// Reads the files.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn load(files: ClientFiles) -> Result<Arc<ClientIdentity>, IdentityError> {
        let key = certified_key(&files)?;
        Ok(Arc::new(ClientIdentity {
            files,
            loaded: key.cert.clone(),
            current: RwLock::new(Arc::new(key)),
        }))
    }
}

impl PartialEq for ClientIdentity {
    /// Whether both were loaded from the same files, and these said the same.
    fn eq(&self, other: &ClientIdentity) -> bool {
        self.files == other.files && self.loaded == other.loaded
    }
}

impl Eq for ClientIdentity {}

impl std::fmt::Debug for ClientIdentity {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientIdentity").field("files", &self.files).finish_non_exhaustive()
    }
}

impl ResolvesClientCert for ClientIdentity {
    /// Connections are made rarely, and the files are small: reading them takes less than the handshake.
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        match certified_key(&self.files) {
            Ok(key) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(key)
            }
            Err(error) => {
                tracing::warn!(%error, "the client certificate can't be read again: the one that was read before stays")
            }
        }
        Some(self.current.read().unwrap_or_else(PoisonError::into_inner).clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn certified_key(files: &ClientFiles) -> Result<CertifiedKey, IdentityError> {
    let (chain, key) = (certificates(&files.cert)?, private_key(&files.key)?);
    CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider()).map_err(|error| {
        IdentityError::Unusable { file: files.cert.clone(), why: error.to_string() }
    })
}

/// Files that say nothing of use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// It can't be read.
    #[error("can't read {}: {why}", .file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What went wrong.
        why: String,
    },
    /// There is nothing in it, or nothing that is well-formed.
    #[error("{} is not what it should be: {why}", .file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// What was expected.
        why: String,
    },
    /// They don't fit each other.
    #[error("the certificate in {} can't be used: {why}", .file.display())]
    Unusable {
        /// The certificate's file.
        file: PathBuf,
        /// What went wrong.
        why: String,
    },
}

impl IdentityError {
    /// The file that it is about.
    pub fn file(&self) -> &Path {
        match self {
            IdentityError::Unreadable { file, .. }
            | IdentityError::Malformed { file, .. }
            | IdentityError::Unusable { file, .. } => file,
        }
    }
}

/// Who this server is, as its files say now.
#[derive(Debug)]
pub struct Identity(RwLock<Current>);

#[derive(Debug)]
struct Current {
    files: IdentityFiles,
    config: Arc<ServerConfig>,
}

/// Files that were read, and can be used.
pub struct Renewal(Current);

/// How often the files are looked at: a certificate that was renewed is in use before anybody misses it.
const RELOAD_EVERY: Duration = Duration::from_secs(5);

/// The protocols that are offered to clients.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

impl Identity {
    /// Reads the files.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn load(files: IdentityFiles) -> Result<Arc<Identity>, IdentityError> {
        Ok(Arc::new(Identity(RwLock::new(Identity::prepare(files)?.0))))
    }

    /// Reads files, perhaps others than before, to be used by [`Identity::renew`].
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn prepare(files: IdentityFiles) -> Result<Renewal, IdentityError> {
        let config = Arc::new(read(&files)?);
        Ok(Renewal(Current { files, config }))
    }

    /// New connections are greeted with what was read.
    pub fn renew(&self, Renewal(current): Renewal) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = current;
    }

    /// What new connections are greeted with.
    pub fn current(&self) -> Arc<ServerConfig> {
        self.open().config.clone()
    }

    fn open(&self) -> RwLockReadGuard<'_, Current> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the files again whenever they change, for ever. Files that say nothing of use leave things as they are.
    pub async fn keep(self: Arc<Self>) {
        let files = self.open().files.clone();
        let mut seen = contents(&files).await;
        loop {
            tokio::time::sleep(RELOAD_EVERY).await;
            let files = self.open().files.clone();
            let contents = contents(&files).await;
            if contents == seen {
                continue;
            }
            match Identity::prepare(files) {
                Ok(renewal) => {
                    self.renew(renewal);
                    seen = contents;
                    tracing::info!("new connections get the new certificate");
                }
                // Half written, perhaps: looked at again.
                Err(error) => {
                    tracing::warn!(%error, "the certificate changed and can't be used: the old one stays")
                }
            }
        }
    }
}

async fn contents(files: &IdentityFiles) -> Vec<Option<Vec<u8>>> {
    let mut contents = Vec::new();
    for file in
        [Some(&files.cert), Some(&files.key), files.client_ca.as_ref()].into_iter().flatten()
    {
        contents.push(tokio::fs::read(file).await.ok());
    }
    contents
}

fn malformed(file: &Path, why: impl std::fmt::Display) -> IdentityError {
    IdentityError::Malformed { file: file.to_owned(), why: why.to_string() }
}

fn text(file: &Path) -> Result<Vec<u8>, IdentityError> {
    std::fs::read(file).map_err(|error| IdentityError::Unreadable {
        file: file.to_owned(),
        why: error.to_string(),
    })
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let all = CertificateDer::pem_slice_iter(&text(file)?).collect::<Result<Vec<_>, _>>();
    let all = all.map_err(|error| malformed(file, error))?;
    if all.is_empty() { Err(malformed(file, "it has no certificate in PEM")) } else { Ok(all) }
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, IdentityError> {
    PrivateKeyDer::from_pem_slice(&text(file)?)
        .map_err(|_| malformed(file, "it has no private key in PEM"))
}

fn read(files: &IdentityFiles) -> Result<ServerConfig, IdentityError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let (chain, key) = (certificates(&files.cert)?, private_key(&files.key)?);
    let unusable = |error: rustls::Error| IdentityError::Unusable {
        file: files.cert.clone(),
        why: error.to_string(),
    };
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(unusable)?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(file)? {
                roots.add(certificate).map_err(|error| malformed(file, error))?;
            }
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| malformed(file, error))?)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(unusable)?;
    config.alpn_protocols = ALPN.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(config)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Writes a new certificate and its key; returns the certificate.
    fn renew(files: &ClientFiles) -> CertificateDer<'static> {
        let own = rcgen::generate_simple_self_signed(["gateway.example".to_owned()]).unwrap();
        std::fs::write(&files.cert, own.cert.pem()).unwrap();
        std::fs::write(&files.key, own.signing_key.serialize_pem()).unwrap();
        own.cert.der().clone()
    }

    #[test]
    fn new_connections_show_the_newest_pair_of_certificate_and_key_that_fits() {
        let dir = tempfile::tempdir().unwrap();
        let files =
            ClientFiles { cert: dir.path().join("cert.pem"), key: dir.path().join("key.pem") };
        let first = renew(&files);
        let identity = ClientIdentity::load(files.clone()).unwrap();
        let shown = || identity.resolve(&[], &[]).unwrap().cert.clone();
        assert_eq!(shown(), [first]);
        let second = renew(&files);
        assert!(shown().contains(&second));
        assert!(
            *identity != *ClientIdentity::load(files.clone()).unwrap(),
            "a reload sees another one"
        );

        // Half a renewal: the new certificate, and the key of the old one.
        let key = std::fs::read(&files.key).unwrap();
        renew(&files);
        std::fs::write(&files.key, key).unwrap();
        assert_eq!(shown(), [second]);
        assert!(matches!(ClientIdentity::load(files.clone()), Err(IdentityError::Unusable { .. })));
        std::fs::remove_file(&files.key).unwrap();
        assert!(matches!(ClientIdentity::load(files), Err(IdentityError::Unreadable { .. })));
        assert!(!format!("{identity:?}").contains("PRIVATE"));
    }
}
