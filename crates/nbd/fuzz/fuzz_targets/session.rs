//! A whole session of arbitrary bytes: the handshake, and what follows when the fuzzer finds its way through.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use secondsite_disk::faults::MemoryDevice;
use secondsite_nbd::drill::serve_bytes;
use secondsite_nbd::{DeviceExport, Export, Limits};

fuzz_target!(|input: &[u8]| {
    let Some((step, input)) = input.split_first() else { return };
    let disk: Arc<dyn Export> = Arc::new(DeviceExport::new(Arc::new(MemoryDevice::new("memory", 1 << 20))));
    let other: Arc<dyn Export> = Arc::new(DeviceExport::new(Arc::new(MemoryDevice::new("memory", 512))).read_only());
    let limits = Limits { request_bytes_max: 64 << 10, ..Limits::default() };
    let answer = serve_bytes(&[("a", disk), ("b", other)], limits, input, 1 + usize::from(*step) * 16);
    assert!(answer.is_ok_and(|answer| answer.bytes.starts_with(b"NBDMAGICIHAVEOPT")));
});
