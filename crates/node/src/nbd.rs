//! NBD servers over live disks, views and overlays, named by a number as these are.

use std::collections::HashMap;
use std::net::ToSocketAddrs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};

use napi::Error;
use napi_derive::napi;
use parking_lot::Mutex;
use secondsite_nbd::{
    DeviceExport, Export, Limits, Listen, NbdError, NbdServer, ServerOptions, TlsOptions, TrackedExport,
};
use serde_json::Map;

use crate::error::{Code, Result, bad_argument, failure};
use crate::live::live;
use crate::number::size;
use crate::recovery::{block_device, is_device, is_writable};

static SERVERS: LazyLock<Mutex<HashMap<u32, Arc<NbdServer>>>> = LazyLock::new(Mutex::default);
static NEXT: AtomicU32 = AtomicU32::new(1);

/// A live disk, a view or an overlay to be offered.
#[napi(object)]
pub struct NativeNbdExport {
    pub name: String,
    /// Of the live disk, the view or the overlay.
    pub handle: u32,
    pub is_read_only: bool,
    pub description: String,
}

/// The server's side of TLS: PEM files.
#[napi(object)]
pub struct NativeNbdTls {
    pub certificate_path: String,
    pub key_path: String,
    pub client_authority_path: Option<String>,
    pub is_required: bool,
}

/// How to start a server.
#[napi(object)]
pub struct NativeNbdOptions {
    /// `unix:PATH` or `tcp:HOST:PORT`.
    pub listen: String,
    pub exports: Vec<NativeNbdExport>,
    pub tls: Option<NativeNbdTls>,
    pub spin_us: u32,
    pub connection_count_max: u32,
}

/// A running server.
#[napi(object)]
pub struct NativeNbdServer {
    pub handle: u32,
    /// As `listen`, the port filled in.
    pub address: String,
}

/// What a server has done, one snapshot.
#[napi(object)]
pub struct NativeNbdCounters {
    pub connection_count: f64,
    pub accepted_count: f64,
    pub refused_count: f64,
    pub breach_count: f64,
    pub request_count: f64,
    pub error_count: f64,
    pub flush_count: f64,
    pub read_bytes: f64,
    pub written_bytes: f64,
}

/// Serves disks until it is stopped.
#[napi(catch_unwind)]
pub fn start_nbd(options: NativeNbdOptions) -> Result<NativeNbdServer> {
    let listen = listen_of(&options.listen)?;
    let exports = options.exports.into_iter().map(export_of).collect::<Result<Vec<_>>>()?;
    let limits = Limits { connection_count_max: options.connection_count_max as usize, ..Limits::default() };
    let tls = options.tls.map(tls_of);
    let server = NbdServer::start(ServerOptions { listen, exports, tls, limits, spin_us: options.spin_us })
        .map_err(from_nbd)?;
    let address = server.address().to_string();
    let handle = NEXT.fetch_add(1, Ordering::Relaxed);
    SERVERS.lock().insert(handle, Arc::new(server));
    Ok(NativeNbdServer { handle, address })
}

/// Ends all connections, waiting for what they have begun; its number is not used again.
#[napi(catch_unwind)]
pub fn stop_nbd(handle: u32) {
    let removed = SERVERS.lock().remove(&handle);
    if let Some(server) = removed {
        server.stop();
    }
}

#[napi(catch_unwind)]
pub fn nbd_counters(handle: u32) -> Result<NativeNbdCounters> {
    let server = SERVERS.lock().get(&handle).cloned();
    let server = server.ok_or_else(|| bad_argument("handle", &format!("{handle} is not a server")))?;
    let counters = server.counters();
    Ok(NativeNbdCounters {
        connection_count: size(counters.connection_count),
        accepted_count: size(counters.accepted_count),
        refused_count: size(counters.refused_count),
        breach_count: size(counters.breach_count),
        request_count: size(counters.request_count),
        error_count: size(counters.error_count),
        flush_count: size(counters.flush_count),
        read_bytes: size(counters.read_bytes),
        written_bytes: size(counters.written_bytes),
    })
}

fn export_of(export: NativeNbdExport) -> Result<(String, Arc<dyn Export>)> {
    let NativeNbdExport { name, handle, is_read_only, description } = export;
    if is_device(handle) {
        let made = DeviceExport::new(block_device(handle)?).with_description(&description);
        let is_read_only = is_read_only || !is_writable(handle);
        return Ok((name, Arc::new(if is_read_only { made.read_only() } else { made })));
    }
    let made = TrackedExport::new(live(handle)?).with_description(&description);
    Ok((name, Arc::new(if is_read_only { made.read_only() } else { made })))
}

fn tls_of(tls: NativeNbdTls) -> TlsOptions {
    TlsOptions {
        certificate_path: tls.certificate_path.into(),
        key_path: tls.key_path.into(),
        client_authority_path: tls.client_authority_path.map(PathBuf::from),
        is_required: tls.is_required,
    }
}

fn listen_of(text: &str) -> Result<Listen> {
    if let Some(path) = text.strip_prefix("unix:") {
        return Ok(Listen::Unix(path.into()));
    }
    let address = text.strip_prefix("tcp:").and_then(|host| host.to_socket_addrs().ok()?.next());
    let wanted = "must be unix:PATH or tcp:HOST:PORT with a host that is known here";
    address.map(Listen::Tcp).ok_or_else(|| bad_argument("listen", &format!("{text:?} {wanted}")))
}

fn from_nbd(error: NbdError) -> Error<Code> {
    failure(error.code(), &error.to_string(), error.hint(), Map::new())
}
