//! Tells the service manager how far the process is (sd_notify): a datagram to the socket it named.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use napi_derive::napi;
use serde_json::Map;

use crate::error::{Result, failure};

/// Sends `text` to the socket; a name that begins with `@` is an abstract one.
#[napi(catch_unwind)]
pub fn notify_service(socket: String, text: String) -> Result<()> {
    send(&socket, text.as_bytes())
        .map_err(|e| failure("IO_FAILED", &format!("{socket}: {e}"), "", Map::new()))
}

fn send(socket: &str, text: &[u8]) -> std::io::Result<()> {
    let address = match socket.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(text, &address).map(|_| ())
}
