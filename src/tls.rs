//! TLS with rustls and ring: trusted authorities, the server certificate, and the client
//! certificates.

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

/// There is no certificate authority to trust.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// The text is not PEM, or a certificate in it is malformed.
    #[error("a certificate of an authority can't be read: {0}")]
    Malformed(String),
    /// No authority is in the given text, or none on the system.
    #[error("no certificate authority was found; install the system's certificates or set ca_file")]
    NoneFound,
    /// The cryptography lacks something that TLS needs, which this build rules out.
    #[error("TLS can't be set up: {0}")]
    Unsupported(String),
}

/// Creates a client configuration that trusts the authorities in `ca_pem`, or else the system's.
/// `identity` is the certificate for servers that request one, and `alpn` the offered protocols in
/// order.
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
    // A resumed session keeps the certificate of the first one, even if that was replaced.
    if shows_certificate {
        config.resumption = rustls::client::Resumption::disabled();
    }
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(config)
}

/// Returns the subject of a certificate, the content of its DER; `None` if it is empty.
pub fn subject(certificate: &CertificateDer<'_>) -> Option<Bytes> {
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    Some(Bytes::copy_from_slice(certificate.subject())).filter(|subject| !subject.is_empty())
}

/// The files of the server certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFiles {
    /// The certificate and its chain, in PEM.
    pub cert: PathBuf,
    /// The private key, in PEM.
    pub key: PathBuf,
    /// The authorities of clients, in PEM. With them, every client must show a certificate.
    pub client_ca: Option<PathBuf>,
}

/// The files of a client certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientFiles {
    /// The certificate and its chain, in PEM.
    pub cert: PathBuf,
    /// The private key, in PEM.
    pub key: PathBuf,
}

/// The client certificate for servers that request one. Each new connection reads the files again.
/// Unusable files leave the current certificate in use: one of the two may not have been renewed
/// yet.
pub struct ClientIdentity {
    files: ClientFiles,
    /// The certificates in the files at load time.
    loaded: Vec<CertificateDer<'static>>,
    current: RwLock<Arc<CertifiedKey>>,
}

impl ClientIdentity {
    /// Loads the files.
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
    /// Compares the files' names and their contents at load time.
    fn eq(&self, other: &ClientIdentity) -> bool {
        self.files == other.files && self.loaded == other.loaded
    }
}

impl Eq for ClientIdentity {}

impl std::fmt::Debug for ClientIdentity {
    /// Omits the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientIdentity").field("files", &self.files).finish_non_exhaustive()
    }
}

impl ResolvesClientCert for ClientIdentity {
    /// Connections are rare and the files small: reading them takes less time than the handshake.
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        match certified_key(&self.files) {
            Ok(key) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(key)
            }
            Err(error) => {
                tracing::warn!(%error, "client certificate not reloaded: the current one stays in use")
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

/// The certificate files are unusable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// A file can't be read.
    #[error("can't read {}: {why}", .file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// The error.
        why: String,
    },
    /// A file is empty or malformed.
    #[error("{} is invalid: {why}", .file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// The expected content.
        why: String,
    },
    /// The certificate and the key don't match.
    #[error("the certificate in {} can't be used: {why}", .file.display())]
    Unusable {
        /// The certificate's file.
        file: PathBuf,
        /// The error.
        why: String,
    },
}

impl IdentityError {
    /// Returns the file with the fault.
    pub fn file(&self) -> &Path {
        match self {
            IdentityError::Unreadable { file, .. }
            | IdentityError::Malformed { file, .. }
            | IdentityError::Unusable { file, .. } => file,
        }
    }
}

/// The server certificate in use.
#[derive(Debug)]
pub struct Identity(RwLock<LoadedCertificate>);

#[derive(Debug)]
struct LoadedCertificate {
    files: IdentityFiles,
    config: Arc<ServerConfig>,
}

/// A loaded and checked certificate.
pub struct Renewal(LoadedCertificate);

/// Interval between checks of the files: a renewed certificate is in use before clients notice.
const RELOAD_EVERY: Duration = Duration::from_secs(5);

/// Protocols offered to clients.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

impl Identity {
    /// Loads the files.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn load(files: IdentityFiles) -> Result<Arc<Identity>, IdentityError> {
        Ok(Arc::new(Identity(RwLock::new(Identity::prepare(files)?.0))))
    }

    /// Loads files, perhaps others than before, for [`Identity::renew`].
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn prepare(files: IdentityFiles) -> Result<Renewal, IdentityError> {
        let config = Arc::new(read(&files)?);
        Ok(Renewal(LoadedCertificate { files, config }))
    }

    /// Uses a loaded certificate for new connections.
    pub fn renew(&self, Renewal(current): Renewal) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = current;
    }

    /// Returns the configuration for new connections.
    pub fn current(&self) -> Arc<ServerConfig> {
        self.open().config.clone()
    }

    fn open(&self) -> RwLockReadGuard<'_, LoadedCertificate> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reloads the files whenever they change, for ever. Unusable files leave the current
    /// certificate in use.
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
                    tracing::info!("certificate reloaded: new connections use it");
                }
                // The file may be half written: it is read again at the next check.
                Err(error) => {
                    tracing::warn!(%error, "certificate changed but is unusable: the current one stays in use")
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
    if all.is_empty() {
        Err(malformed(file, "the file has no certificate in PEM"))
    } else {
        Ok(all)
    }
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, IdentityError> {
    PrivateKeyDer::from_pem_slice(&text(file)?)
        .map_err(|_| malformed(file, "the file has no private key in PEM"))
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

    /// Writes a new certificate and its key, and returns the certificate.
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

        // Half a renewal: the new certificate with the old key.
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
