//! TLS: offered, required, with and without certificates of clients.

#![allow(clippy::unwrap_used, reason = "helpers of a test state their expectations with unwrap")]

#[path = "support/certificates.rs"]
mod certificates;
mod support;

use std::io::{Read, Write};
use std::sync::Arc;

use certificates::Certificates;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use secondsite_nbd::{NbdServer, TlsOptions};
use support::*;

const MIB: u64 = 1 << 20;

fn serve_tls(place: &Place, tls: TlsOptions) -> NbdServer {
    let mut options = place.options();
    options.tls = Some(tls);
    NbdServer::start(options).unwrap()
}

fn client_config(certificates: &Certificates, has_certificate: bool) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificates.path("ca-cert.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_root_certificates(roots);
    if !has_certificate {
        return builder.with_no_client_auth();
    }
    let chain = vec![CertificateDer::from_pem_file(certificates.path("client-cert.pem")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(certificates.path("client-key.pem")).unwrap();
    builder.with_client_auth_cert(chain, key).unwrap()
}

/// A client that has turned to TLS.
fn secure(server: &NbdServer, config: ClientConfig) -> Client {
    let mut client = Client::connect(server);
    assert_eq!(client.option(STARTTLS, &[])[0].kind, ACK);
    let name = ServerName::try_from("localhost").unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let stream = StreamOwned::new(connection, client.stream);
    Client { stream: Box::new(stream), server_flags: client.server_flags }
}

#[test]
fn a_client_under_tls_reads_and_writes() {
    let (place, certificates) = (Place::new(4 * MIB), Certificates::new());
    let server = serve_tls(&place, certificates.options(true, true));
    let mut client = secure(&server, client_config(&certificates, true));
    client.option(STRUCTURED_REPLY, &[]);
    assert_eq!(client.option(GO, &info_data("disk", &[])).last().unwrap().kind, ACK);
    let data: Vec<u8> = (0..1u32 << 20).map(|i| (i % 251) as u8).collect();
    client.write(4096, &data);
    assert!(client.read(4096, 1 << 20) == data);
    assert_eq!(client.error(FUA, WRITE, 0, 512, &[1; 512]), 0);
    assert!(place.disk.bytes()[4096..][..1 << 20] == data);
}

#[test]
fn a_server_that_requires_tls_refuses_everything_before_it() {
    let (place, certificates) = (Place::new(MIB), Certificates::new());
    let server = serve_tls(&place, certificates.options(false, true));
    let mut client = Client::connect(&server);
    for (option, data) in [
        (LIST, vec![]),
        (GO, info_data("disk", &[])),
        (INFO, info_data("nobody", &[])),
        (STRUCTURED_REPLY, vec![]),
        (LIST_META, meta_data("disk", &[])),
        (99, vec![]),
    ] {
        assert_eq!(client.option(option, &data)[0].kind, ERR_TLS_REQD, "option {option}");
    }
    assert_eq!(client.option(ABORT, &[])[0].kind, ACK);
    let mut client = Client::connect(&server);
    client.send_option(EXPORT_NAME, b"disk");
    assert!(client.is_hung_up());
}

#[test]
fn a_server_that_offers_tls_serves_both() {
    let (place, certificates) = (Place::new(MIB), Certificates::new());
    let server = serve_tls(&place, certificates.options(false, false));
    Client::enter(&server, "disk", true).write(0, &[1; 512]);
    let mut client = secure(&server, client_config(&certificates, false));
    client.option(GO, &info_data("disk", &[]));
    assert_eq!(client.read(0, 512), [1; 512]);
}

#[test]
fn a_client_without_the_certificate_asked_for_is_refused() {
    let (place, certificates) = (Place::new(MIB), Certificates::new());
    let server = serve_tls(&place, certificates.options(true, true));
    assert_refused(secure(&server, client_config(&certificates, false)));
    // One with a certificate of another authority, trusting ours.
    let stranger = Certificates::new();
    std::fs::copy(certificates.path("ca-cert.pem"), stranger.path("ca-cert.pem")).unwrap();
    assert_refused(secure(&server, client_config(&stranger, true)));
    eventually("both are gone", || server.counters().connection_count == 0);
    assert_eq!(server.counters().request_count, 0);
}

fn assert_refused(mut client: Client) {
    let list = [&b"IHAVEOPT\0\0\0\x03\0\0\0\0"[..]].concat();
    // TLS 1.3 tells the client late: the first words may still be taken.
    let _ = client.stream.write_all(&list);
    assert!(client.stream.read(&mut [0; 20]).is_err());
}

#[test]
fn what_was_agreed_on_before_tls_is_forgotten() {
    let (place, certificates) = (Place::new(MIB), Certificates::new());
    let server = serve_tls(&place, certificates.options(false, false));
    let mut client = Client::connect(&server);
    client.option(STRUCTURED_REPLY, &[]);
    client.option(SET_META, &meta_data("disk", &["base:allocation"]));
    assert_eq!(client.option(STARTTLS, &[])[0].kind, ACK);
    let name = ServerName::try_from("localhost").unwrap();
    let connection = ClientConnection::new(Arc::new(client_config(&certificates, false)), name).unwrap();
    let mut client =
        Client { stream: Box::new(StreamOwned::new(connection, client.stream)), server_flags: 3 };
    assert_eq!(client.option(STARTTLS, &[])[0].kind, ERR_INVALID);
    client.option(GO, &info_data("disk", &[]));
    assert_eq!(client.error(0, STATUS, 0, 512, &[]), 22);
    assert!(matches!(client.ask(0, FLUSH, 0, 0, &[]), Reply::Simple { error: 0, .. }));
}

#[test]
fn words_in_the_clear_behind_starttls_are_never_taken_for_options() {
    let (place, certificates) = (Place::new(MIB), Certificates::new());
    let server = serve_tls(&place, certificates.options(false, false));
    let mut client = Client::connect(&server);
    let mut bytes = b"IHAVEOPT\0\0\0\x05\0\0\0\0".to_vec();
    bytes.extend(b"IHAVEOPT\0\0\0\x03\0\0\0\0");
    client.send(&bytes);
    assert_eq!(client.option_reply().kind, ACK);
    // Whatever comes back is a complaint of TLS, not a list.
    let mut rest = Vec::new();
    let _ = client.stream.read_to_end(&mut rest);
    assert!(!rest.windows(4).any(|word| word == [4, 0x55, 0x65, 0xa9]), "{rest:?}");
}

#[test]
fn a_client_that_stops_in_the_tls_handshake_is_cut_off() {
    let (place, certificates) = (Place::new(MIB), Certificates::new());
    let mut options = place.options();
    options.tls = Some(certificates.options(false, true));
    options.limits.handshake_time_ms = 100;
    let server = NbdServer::start(options).unwrap();
    let mut client = Client::connect(&server);
    assert_eq!(client.option(STARTTLS, &[])[0].kind, ACK);
    assert!(client.is_hung_up());
}

#[test]
fn files_that_are_no_certificates_are_refused_at_the_start() {
    let (place, certificates) = (Place::new(MIB), Certificates::new());
    let good = certificates.options(true, true);
    std::fs::write(certificates.path("empty.pem"), "").unwrap();
    let bad = [
        TlsOptions { certificate_path: certificates.path("none.pem"), ..good.clone() },
        TlsOptions { certificate_path: certificates.path("empty.pem"), ..good.clone() },
        TlsOptions { key_path: certificates.path("server-cert.pem"), ..good.clone() },
        TlsOptions { key_path: certificates.path("client-key.pem"), ..good.clone() },
        TlsOptions { client_authority_path: Some(certificates.path("empty.pem")), ..good },
    ];
    for tls in bad {
        let mut options = place.options();
        options.tls = Some(tls.clone());
        let error = NbdServer::start(options).err().unwrap_or_else(|| panic!("started with {tls:?}"));
        assert_eq!(error.code(), "NBD_TLS_INVALID");
    }
    assert!(!place.socket_path().exists());
}
