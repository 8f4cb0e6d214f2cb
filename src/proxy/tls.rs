//! TLS towards the upstream: rustls with ring, HTTP/2 or HTTP/1.1 by ALPN.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::forward::UpstreamError;

/// Trusts the given authorities, or else the system's.
pub(super) fn client_config(ca_pem: Option<&[u8]>) -> Result<ClientConfig, UpstreamError> {
    let certificates = |why: &dyn std::fmt::Display| UpstreamError::Certificates(why.to_string());
    let mut roots = RootCertStore::empty();
    match ca_pem {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(|error| certificates(&error))?;
                roots.add(certificate).map_err(|error| certificates(&error))?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err(certificates(&"none was found; install the system's certificates or set ca_file"));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| certificates(&error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
