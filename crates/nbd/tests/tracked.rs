//! A tracked disk behind the server: what clients write is in the log, and what is dirty can be asked for.
#![allow(clippy::unwrap_used, reason = "helpers of a test state their expectations with unwrap")]

mod support;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use secondsite_disk::faults::MemoryDevice;
use secondsite_disk::tracked::faults::MemoryTrackFiles;
use secondsite_disk::{TrackOptions, TrackedDisk, cut};
use secondsite_nbd::{NbdServer, TrackedExport};
use support::*;

const MIB: u64 = 1 << 20;
const CHUNK: u32 = 64 << 10;

fn track(device: Arc<MemoryDevice>) -> Arc<TrackedDisk> {
    let time = AtomicU64::new(1_700_000_000_000_000_000);
    let clock = Arc::new(move || time.fetch_add(1_000, Ordering::Relaxed));
    let random = std::sync::Mutex::new(SplitMix(5));
    let fill = Arc::new(move |bytes: &mut [u8]| {
        let mut random = random.lock().unwrap();
        bytes.iter_mut().for_each(|byte| *byte = random.next() as u8);
    });
    let mut options = TrackOptions::new(PathBuf::from("/track"), [7; 16], "boot".into(), clock, fill);
    options.files = Arc::new(MemoryTrackFiles::new());
    TrackedDisk::open(device, options).unwrap().0
}

fn serve_tracked(
    folder: &std::path::Path,
    size_bytes: u64,
) -> (NbdServer, Arc<TrackedDisk>, Arc<MemoryDevice>) {
    let device = Arc::new(MemoryDevice::new("memory", size_bytes));
    let disk = track(device.clone());
    (serve_export(folder, TrackedExport::new(disk.clone())), disk, device)
}

fn dirty(client: &mut Client, offset: u64, length: u32) -> Vec<(u32, u32)> {
    let Reply::Chunk { kind: 5, payload, .. } = client.ask(0, STATUS, offset, length, &[]) else {
        panic!("no status")
    };
    payload[4..].chunks(8).map(|extent| (be32(extent), be32(&extent[4..]))).collect()
}

#[test]
fn writes_of_a_client_are_in_log_and_disk_when_they_are_answered() {
    let folder = tempfile::tempdir().unwrap();
    let (server, disk, device) = serve_tracked(folder.path(), 64 * MIB);
    let mut client = Client::enter(&server, "disk", true);
    let before = disk.status();
    let writes = (0..32u64).flat_map(|i| request(0, WRITE, i, i * 8192, 4096, &[i as u8 + 1; 4096]));
    client.send(&writes.collect::<Vec<u8>>());
    (0..32).for_each(|_| assert_eq!(error_of(&client.reply()), 0));
    assert_eq!(client.error(FUA, WRITE, 32 << 20, 4 << 20, &vec![9; 4 << 20]), 0);
    assert_eq!(client.error(0, ZEROES, 0, 4096, &[]), 0);
    assert_eq!(client.error(0, FLUSH, 0, 0, &[]), 0);
    let after = disk.status();
    assert!(after.unreleased_log_bytes - before.unreleased_log_bytes >= 32 * 4096 + (4 << 20), "{after:?}");
    let bytes = device.bytes();
    assert_eq!(bytes[..4096], [0; 4096]);
    (1..32).for_each(|i| assert_eq!(bytes[i * 8192..][..4096], [i as u8 + 1; 4096]));
    assert!(bytes[32 << 20..36 << 20].iter().all(|byte| *byte == 9));
}

#[test]
fn the_dirty_context_shows_what_was_written_and_only_that() {
    let folder = tempfile::tempdir().unwrap();
    let (server, disk, _) = serve_tracked(folder.path(), 64 * MIB);
    let mut client = Client::connect(&server);
    client.option(STRUCTURED_REPLY, &[]);
    client.option(SET_META, &meta_data("disk", &["secondsite:dirty"]));
    client.option(GO, &info_data("disk", &[]));
    assert_eq!(dirty(&mut client, 0, 1 << 20), [(1 << 20, 0)]);
    client.write(4 * u64::from(CHUNK) + 512, &[1; 512]);
    assert_eq!(dirty(&mut client, 0, 16 * CHUNK), [(4 * CHUNK, 0), (CHUNK, 1), (11 * CHUNK, 0)]);
    cut(std::slice::from_ref(&disk)).unwrap();
    assert_eq!(
        dirty(&mut client, 4 * u64::from(CHUNK), CHUNK),
        [(CHUNK, 1)],
        "a cut alone acknowledges nothing"
    );
    let ids: Vec<_> = disk.unreleased_logs().iter().map(|log| log.sealed.id).collect();
    disk.release_logs(&ids).unwrap();
    assert_eq!(dirty(&mut client, 0, 16 * CHUNK), [(16 * CHUNK, 0)]);
}
