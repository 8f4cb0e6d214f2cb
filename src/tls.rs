//! TLS towards other servers: rustls with ring, and whom to trust.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

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

/// Trusts the authorities in `ca_pem`, or else the system's. `alpn`: the protocols that are offered, in this order.
///
/// # Errors
/// See [`TrustError`].
pub fn client_config(ca_pem: Option<&[u8]>, alpn: &[&[u8]]) -> Result<ClientConfig, TrustError> {
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
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| TrustError::Unsupported(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(config)
}
