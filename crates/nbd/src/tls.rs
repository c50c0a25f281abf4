//! TLS by rustls with ring: it needs a C compiler and nothing else, and keeps the rooms free of the system's OpenSSL.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};

use crate::error::{NbdError, Result};
use crate::handshake::TlsMode;
use crate::options::TlsOptions;

/// The server's side of TLS, files read.
pub(crate) struct Tls {
    config: Arc<ServerConfig>,
    mode: TlsMode,
}

impl Tls {
    /// Reads the files; later changes to them need a new server.
    pub(crate) fn load(options: &TlsOptions) -> Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = certificates(&options.certificate_path)?;
        let key = PrivateKeyDer::from_pem_file(&options.key_path);
        let key = key.map_err(|e| invalid(&options.key_path, &e))?;
        let builder =
            ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let builder = builder.map_err(|e| invalid(&options.certificate_path, &e))?;
        let builder = match &options.client_authority_path {
            Some(path) => builder.with_client_cert_verifier(client_verifier(path, provider)?),
            None => builder.with_no_client_auth(),
        };
        let config = builder.with_single_cert(chain, key);
        let config = config.map_err(|e| invalid(&options.certificate_path, &e))?;
        let mode = if options.is_required { TlsMode::Required } else { TlsMode::Offered };
        Ok(Self { config: Arc::new(config), mode })
    }

    pub(crate) fn mode(&self) -> TlsMode {
        self.mode
    }

    pub(crate) fn connection(&self) -> io::Result<ServerConnection> {
        ServerConnection::new(self.config.clone()).map_err(io::Error::other)
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>);
    let list = read.map_err(|e| invalid(path, &e))?;
    if list.is_empty() {
        return Err(invalid(path, &"no certificate in it"));
    }
    Ok(list)
}

fn client_verifier(
    path: &Path,
    provider: Arc<rustls::crypto::CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|e| invalid(path, &e))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
    verifier.map_err(|e| invalid(path, &e))
}

fn invalid(path: &Path, reason: &dyn std::fmt::Display) -> NbdError {
    NbdError::TlsInvalid(path.display().to_string(), reason.to_string())
}
