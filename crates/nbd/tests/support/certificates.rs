//! An authority, a server and a client of one test, in files with the names that libnbd and QEMU look for.

#![allow(clippy::unwrap_used, reason = "helpers of a test state their expectations with unwrap")]
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use secondsite_nbd::TlsOptions;

/// A folder of PEM files.
pub struct Certificates {
    folder: tempfile::TempDir,
}

impl Certificates {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (key, mut params) = (KeyPair::generate().unwrap(), CertificateParams::new(vec![]).unwrap());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority = params.self_signed(&key).unwrap();
        write(folder.path(), "ca-cert.pem", &authority.pem());
        let issuer = Issuer::new(params, key);
        for (name, usage) in
            [("server", ExtendedKeyUsagePurpose::ServerAuth), ("client", ExtendedKeyUsagePurpose::ClientAuth)]
        {
            let (key, certificate) = leaf(&issuer, usage);
            write(folder.path(), &format!("{name}-cert.pem"), &certificate);
            write(folder.path(), &format!("{name}-key.pem"), &key);
        }
        Self { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The server's options; clients need a certificate, or not.
    pub fn options(&self, checks_clients: bool, is_required: bool) -> TlsOptions {
        TlsOptions {
            certificate_path: self.path("server-cert.pem"),
            key_path: self.path("server-key.pem"),
            client_authority_path: checks_clients.then(|| self.path("ca-cert.pem")),
            is_required,
        }
    }
}

fn leaf(issuer: &Issuer<'_, KeyPair>, usage: ExtendedKeyUsagePurpose) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["localhost".into(), "127.0.0.1".into()]).unwrap();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    let certificate = params.signed_by(&key, issuer).unwrap();
    (key.serialize_pem(), certificate.pem())
}

fn write(folder: &Path, name: &str, text: &str) {
    std::fs::write(folder.join(name), text).unwrap();
}
