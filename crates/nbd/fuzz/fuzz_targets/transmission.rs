//! A session past its handshake: a byte chooses what was agreed on, the rest is the transmission. Replies are parsed, so
//! a reply that does not fit its own header is found as well.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use secondsite_disk::faults::MemoryDevice;
use secondsite_nbd::drill::serve_bytes;
use secondsite_nbd::{DeviceExport, Export, Limits};

fuzz_target!(|input: &[u8]| {
    let [choice, step, input @ ..] = input else { return };
    let device = DeviceExport::new(Arc::new(MemoryDevice::new("memory", 1 << 20)));
    let device = if choice & 1 == 0 { device } else { device.read_only() };
    let disk: Arc<dyn Export> = Arc::new(if choice & 2 == 0 { device } else { device.with_fast_zeroing() });
    let mut bytes = vec![0, 0, 0, 3];
    option(&mut bytes, 8, &[]);
    if choice & 4 == 0 {
        option(&mut bytes, 10, b"\0\0\0\x01a\0\0\0\x01\0\0\0\x0fbase:allocation");
    }
    option(&mut bytes, 7, b"\0\0\0\x01a\0\0");
    let limits = || Limits { request_bytes_max: 64 << 10, ..Limits::default() };
    let exports = [("a", disk)];
    let Ok(handshake) = serve_bytes(&exports, limits(), &bytes, 4096) else { panic!("the server did not start") };
    bytes.extend_from_slice(input);
    let Ok(answer) = serve_bytes(&exports, limits(), &bytes, 1 + usize::from(*step) * 64) else { panic!() };
    check_replies(&answer.bytes[handshake.bytes.len()..]);
});

fn option(bytes: &mut Vec<u8>, option: u32, data: &[u8]) {
    bytes.extend_from_slice(b"IHAVEOPT");
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
    bytes.extend_from_slice(data);
}

fn check_replies(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let length = match bytes[..4] {
            [0x67, 0x44, 0x66, 0x98] => 16,
            [0x66, 0x8e, 0x33, 0xef] => {
                20 + u32::from_be_bytes([bytes[16], bytes[17], bytes[18], bytes[19]]) as usize
            }
            _ => panic!("a reply with another magic"),
        };
        bytes = &bytes[length..];
    }
}
