//! An NBD server over any [`BlockDevice`](secondsite_disk::BlockDevice).
//!
//! A thread for each connection receives what there is, takes at most sixteen whole requests out of it, carries them
//! out in the order of their arrival and sends all replies at once. What a client may do is in `docs/spec/nbd.md`.
//!
//! | file | what |
//! |---|---|
//! | `codec` | the protocol as pure functions over bytes |
//! | `handshake`, `meta` | options in, replies and the next step out; no I/O |
//! | `session` | one connection: receiving, carrying out, sending |
//! | `wire`, `tls` | socket, TLS, memory |
//! | `listen`, `server` | sockets, threads, stopping |
//! | `export`, `tracked`, `catalog` | what is offered |
//! | `drill` | a session over bytes in memory |
#![forbid(unsafe_code)]

mod catalog;
mod codec;
mod counters;
#[doc(hidden)]
pub mod drill;
mod error;
mod export;
mod handshake;
mod listen;
mod meta;
mod options;
mod server;
mod session;
mod tls;
mod tracked;
mod wire;

pub use counters::Counters;
pub use error::{NbdError, Result, code};
pub use export::{DeviceExport, DirtyExtent, Export, WriteRequest};
pub use options::{Limits, Listen, ServerOptions, TlsOptions};
pub use server::NbdServer;
pub use tracked::TrackedExport;
