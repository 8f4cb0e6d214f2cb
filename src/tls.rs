//! TLS: rustls with ring. Whom to trust, and who this server is.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use bytes::Bytes;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
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
    /// The certificate that is shown to servers, or its key, is of no use. The text has nothing of either.
    #[error("the client certificate can't be used: {0}")]
    Identity(String),
    /// The cryptography doesn't offer what TLS needs, which a build of this program rules out.
    #[error("TLS can't be set up: {0}")]
    Unsupported(String),
}

/// The files of the certificate that a client shows to servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientFiles {
    /// The certificate, and those that lead to an authority, in PEM.
    pub cert: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
}

/// The certificate that a client shows to servers, and its private key. `Debug` shows neither.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientIdentity {
    /// The certificate, and those that lead to an authority, in PEM.
    pub cert_pem: Vec<u8>,
    /// The private key, in PEM.
    pub key_pem: Vec<u8>,
}

impl fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientIdentity(..)")
    }
}

/// Trusts the authorities in `ca_pem`, or else the system's, and shows the certificate of `identity` to servers that ask for
/// one. `alpn`: the protocols that are offered, in this order.
///
/// # Errors
/// See [`TrustError`].
pub fn client_config(
    ca_pem: Option<&[u8]>,
    identity: Option<&ClientIdentity>,
    alpn: &[&[u8]],
) -> Result<ClientConfig, TrustError> {
    let malformed = |why: &dyn fmt::Display| TrustError::Malformed(why.to_string());
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
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let unusable = |why: &dyn fmt::Display| TrustError::Identity(why.to_string());
            let chain = CertificateDer::pem_slice_iter(&identity.cert_pem).collect::<Result<Vec<_>, _>>();
            let chain = chain.ok().filter(|chain| !chain.is_empty());
            let chain = chain.ok_or_else(|| unusable(&"cert has no certificate in PEM"))?;
            let key = PrivateKeyDer::from_pem_slice(&identity.key_pem);
            let key = key.map_err(|_| unusable(&"key has no private key in PEM"))?;
            builder.with_client_auth_cert(chain, key).map_err(|error| unusable(&error))?
        }
    };
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
                Err(error) => tracing::warn!(%error, "the certificate changed and can't be used: the old one stays"),
            }
        }
    }
}

async fn contents(files: &IdentityFiles) -> Vec<Option<Vec<u8>>> {
    let mut contents = Vec::new();
    for file in [Some(&files.cert), Some(&files.key), files.client_ca.as_ref()].into_iter().flatten() {
        contents.push(tokio::fs::read(file).await.ok());
    }
    contents
}

fn read(files: &IdentityFiles) -> Result<ServerConfig, IdentityError> {
    let malformed =
        |file: &PathBuf, why: &dyn std::fmt::Display| IdentityError::Malformed { file: file.clone(), why: why.to_string() };
    let text = |file: &PathBuf| {
        std::fs::read(file).map_err(|error| IdentityError::Unreadable { file: file.clone(), why: error.to_string() })
    };
    let certificates = |file: &PathBuf| {
        let all = CertificateDer::pem_slice_iter(&text(file)?)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| malformed(file, &error))?;
        if all.is_empty() { Err(malformed(file, &"it has no certificate in PEM")) } else { Ok(all) }
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = certificates(&files.cert)?;
    let key =
        PrivateKeyDer::from_pem_slice(&text(&files.key)?).map_err(|_| malformed(&files.key, &"it has no private key in PEM"))?;
    let unusable = |error: rustls::Error| IdentityError::Unusable { file: files.cert.clone(), why: error.to_string() };
    let builder =
        ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().map_err(unusable)?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(file)? {
                roots.add(certificate).map_err(|error| malformed(file, &error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| malformed(file, &error))?)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(unusable)?;
    config.alpn_protocols = ALPN.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(config)
}
