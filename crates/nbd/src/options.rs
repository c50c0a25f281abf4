//! How a server is started.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::codec::constants::PAYLOAD_BYTES_MAX;
use crate::error::{NbdError, Result};
use crate::export::Export;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A Unix socket, made with mode 0600.
    Unix(PathBuf),
    /// An address; port 0 takes a free one.
    Tcp(SocketAddr),
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

/// The server's side of TLS, files in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsOptions {
    /// The server's certificate, followed by those between it and its authority.
    pub certificate_path: PathBuf,
    /// Its private key.
    pub key_path: PathBuf,
    /// The authority that must have signed the certificates of clients; without it clients need none.
    pub client_authority_path: Option<PathBuf>,
    /// Whether clients without TLS are refused.
    pub is_required: bool,
}

/// The limit of everything that a client can ask for.
///
/// Memory of a connection is at most two receive buffers, one reply buffer and sixteen reads that miss the cache:
/// `2 * (request_bytes_max + 28) + request_bytes_max + 2 MiB + 4 MiB`, 102 MiB with the defaults when a client really
/// sends and asks so much, 0.5 MiB while it does not. Threads of a connection are at most 17, started when needed.
/// Buffers grow with what arrives, not with what is announced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once; more are closed at accept. Default 64.
    pub connection_count_max: usize,
    /// Longest read or write, 4096 to 32 MiB (the default), a multiple of 512.
    pub request_bytes_max: u32,
    /// Options of one handshake. Default 128.
    pub option_count_max: u32,
    /// Data of one option. Default 64 KiB, at least 8 KiB.
    pub option_bytes_max: u32,
    /// A handshake that takes longer is cut off. Default 10 s.
    pub handshake_time_ms: u64,
    /// A client that takes no byte of a reply for so long is cut off. Default 5 min: a guest may be stopped for a while.
    pub send_stall_ms: u64,
    /// How long a stop waits for replies to be taken before it cuts off. Default 5 s.
    pub stop_grace_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connection_count_max: 64,
            request_bytes_max: PAYLOAD_BYTES_MAX,
            option_count_max: 128,
            option_bytes_max: 64 << 10,
            handshake_time_ms: 10_000,
            send_stall_ms: 300_000,
            stop_grace_ms: 5_000,
        }
    }
}

impl Limits {
    pub(crate) fn check(&self) -> Result<()> {
        let bytes = self.request_bytes_max;
        let is_size = (4096..=PAYLOAD_BYTES_MAX).contains(&bytes) && bytes.is_multiple_of(512);
        let checks = [
            (is_size, "request_bytes_max", u64::from(bytes)),
            (self.option_bytes_max >= 8 << 10, "option_bytes_max", u64::from(self.option_bytes_max)),
            (self.connection_count_max > 0, "connection_count_max", 0),
            (self.option_count_max > 0, "option_count_max", 0),
            (self.handshake_time_ms > 0, "handshake_time_ms", 0),
            (self.send_stall_ms > 0, "send_stall_ms", 0),
        ];
        let bad = checks.into_iter().find(|(is_good, ..)| !is_good);
        bad.map_or(Ok(()), |(_, name, value)| Err(NbdError::LimitInvalid(name, value)))
    }
}

/// How to start a server.
pub struct ServerOptions {
    /// Where to listen.
    pub listen: Listen,
    /// The first exports by name; more can be added later.
    pub exports: Vec<(String, Arc<dyn Export>)>,
    /// TLS; without it clients that ask for it are told that there is none.
    pub tls: Option<TlsOptions>,
    /// Limits.
    pub limits: Limits,
    /// Microseconds that a connection polls for its next request before it sleeps. Default 0. Costs up to a core for each
    /// busy connection, gives a client that waits for each reply 20 to 50 % more; given up after a row of misses, and
    /// while there are more connections than cores.
    pub spin_us: u32,
}

impl ServerOptions {
    /// No export, no TLS, default limits, no spinning.
    pub fn new(listen: Listen) -> Self {
        Self { listen, exports: Vec::new(), tls: None, limits: Limits::default(), spin_us: 0 }
    }

    /// The same with one more export.
    #[must_use]
    pub fn with_export(mut self, name: &str, export: Arc<dyn Export>) -> Self {
        self.exports.push((name.to_owned(), export));
        self
    }
}
