//! A session over bytes in memory, for fuzzing and for tests that need no socket.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::catalog::Catalog;
use crate::counters::{Counters, LiveCounters};
use crate::error::Result;
use crate::export::Export;
use crate::options::Limits;
use crate::session::{Common, serve};
use crate::tls::Tls;
use crate::wire::{Sender, Wire};

/// What a client would have read, and what the server counted.
#[derive(Debug)]
pub struct Answer {
    /// All bytes sent.
    pub bytes: Vec<u8>,
    /// The counters at the end.
    pub counters: Counters,
}

/// Serves a client that sends `input`, `step` bytes at a time, and hangs up.
///
/// # Errors
/// NBD_EXPORT_EXISTS, NBD_EXPORT_NAME_INVALID.
pub fn serve_bytes(
    exports: &[(&str, Arc<dyn Export>)],
    limits: Limits,
    input: &[u8],
    step: usize,
) -> Result<Answer> {
    let (catalog, counters) = (Catalog::default(), Arc::new(LiveCounters::default()));
    exports.iter().try_for_each(|(name, export)| catalog.add(name, export.clone()))?;
    let common = Common { catalog, limits, tls: None, counters, spin_us: 0, core_count: 1 };
    let mut wire = Memory::new(input, step);
    // Memory fails no operation but TLS, which was not offered.
    let _ = serve(&common, &mut wire, |_| true, &AtomicBool::new(false));
    Ok(Answer { bytes: wire.sent, counters: common.counters.snapshot() })
}

/// Bytes to be received, bytes sent.
pub(crate) struct Memory<'a> {
    input: &'a [u8],
    step: usize,
    pub(crate) sent: Vec<u8>,
}

impl<'a> Memory<'a> {
    pub(crate) fn new(input: &'a [u8], step: usize) -> Self {
        Self { input, step: step.max(1), sent: Vec::new() }
    }
}

impl Sender for Memory<'_> {
    fn send_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sent.extend_from_slice(bytes);
        Ok(())
    }
}

impl Wire for Memory<'_> {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = buffer.len().min(self.step).min(self.input.len());
        let (head, rest) = self.input.split_at(count);
        buffer[..count].copy_from_slice(head);
        self.input = rest;
        Ok(count)
    }

    fn receive_now(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn second_sender(&self) -> Option<Box<dyn Sender>> {
        None
    }

    fn start_tls(&mut self, _: &Tls) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn end_deadline(&mut self) -> io::Result<()> {
        Ok(())
    }
}
