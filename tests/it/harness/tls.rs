//! Certificates: the test's own authority, and the certificates that it issues to servers and
//! clients.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
};
use rustls::server::{WantsServerCert, WebPkiClientVerifier};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, ServerConfig, WantsVerifier};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// A certificate authority, with its certificate in a file.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    ca_file: PathBuf,
    _dir: tempfile::TempDir,
}

impl Authority {
    pub fn new() -> Authority {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let ca_file = dir.path().join("ca.pem");
        std::fs::write(&ca_file, params.self_signed(&key).unwrap().pem()).unwrap();
        Authority { issuer: Issuer::new(params, key), ca_file, _dir: dir }
    }

    /// Returns its certificate in PEM.
    pub fn ca_file(&self) -> &Path {
        &self.ca_file
    }

    /// Writes a certificate for a name and its key into a directory, as `cert.pem` and `key.pem`.
    pub fn write(&self, name: &str, dir: &Path) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![name.to_owned()])
            .unwrap()
            .signed_by(&key, &self.issuer)
            .unwrap();
        std::fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
        std::fs::write(dir.join("cert.pem"), certificate.pem()).unwrap();
    }

    /// Does the same for a client that is identified by its subject alone: a common name, or an
    /// empty subject.
    pub fn write_client(&self, name: Option<&str>, dir: &Path) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["client.example".to_owned()]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        name.into_iter().for_each(|name| params.distinguished_name.push(DnType::CommonName, name));
        std::fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
        std::fs::write(dir.join("cert.pem"), params.signed_by(&key, &self.issuer).unwrap().pem())
            .unwrap();
    }

    /// Builds a client that trusts this authority, and presents the certificate in a directory if
    /// one is given.
    pub fn client(&self, protocols: &[&str], own: Option<&Path>) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&self.ca_file).unwrap()).unwrap();
        let builder =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots);
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some(dir) => {
                let certificate = CertificateDer::from_pem_file(dir.join("cert.pem")).unwrap();
                let key = PrivateKeyDer::from_pem_file(dir.join("key.pem")).unwrap();
                builder.with_client_auth_cert(vec![certificate], key).unwrap()
            }
        };
        config.alpn_protocols =
            protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        Arc::new(config)
    }

    /// Builds the configuration of a server for a name, with these protocols (ALPN).
    pub fn server(&self, name: &str, protocols: &[&str]) -> Arc<ServerConfig> {
        self.server_of(name, protocols, |builder| builder.with_no_client_auth())
    }

    /// Does the same for a server that requires a client certificate of this authority.
    #[allow(
        dead_code,
        reason = "only some of the test binaries that share this file ask clients for certificates"
    )]
    pub fn server_for_clients(&self, name: &str, protocols: &[&str]) -> Arc<ServerConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&self.ca_file).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        self.server_of(name, protocols, |builder| builder.with_client_cert_verifier(verifier))
    }

    fn server_of(
        &self,
        name: &str,
        protocols: &[&str],
        ask: impl FnOnce(
            ConfigBuilder<ServerConfig, WantsVerifier>,
        ) -> ConfigBuilder<ServerConfig, WantsServerCert>,
    ) -> Arc<ServerConfig> {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![name.to_owned()])
            .unwrap()
            .signed_by(&key, &self.issuer)
            .unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let builder =
            ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap();
        let mut config =
            ask(builder).with_single_cert(vec![certificate.der().clone()], key).unwrap();
        config.alpn_protocols =
            protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}
