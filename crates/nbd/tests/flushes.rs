//! Flushes beside other requests: they hold nobody up, and none is answered early or lost.

#![allow(clippy::unwrap_used, reason = "helpers of a test state their expectations with unwrap")]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex};
use secondsite_disk::faults::{Fault, FaultDevice, MemoryDevice, Operation, PowerLossDevice};
use secondsite_disk::{BlockDevice, Extent, Result as DiskResult};
use secondsite_nbd::NbdServer;
use support::*;

const MIB: u64 = 1 << 20;
/// The protocol's number for a failed input or output.
const EIO: u32 = 5;

/// A disk whose flushes wait until they are let through.
struct HeldFlush {
    disk: Arc<dyn BlockDevice>,
    open: Mutex<bool>,
    opened: Condvar,
    begun_count: AtomicUsize,
    panics: bool,
}

impl HeldFlush {
    fn over(disk: Arc<dyn BlockDevice>, panics: bool) -> Arc<Self> {
        let (open, opened) = (Mutex::new(false), Condvar::new());
        Arc::new(Self { disk, open, opened, begun_count: AtomicUsize::new(0), panics })
    }

    fn let_through(&self) {
        *self.open.lock() = true;
        self.opened.notify_all();
    }
}

/// Lets flushes through at the end of a test, also when it fails: the server waits for them.
struct AtLast(Arc<HeldFlush>);

impl Drop for AtLast {
    fn drop(&mut self) {
        self.0.let_through();
    }
}

impl BlockDevice for HeldFlush {
    fn path(&self) -> &Path {
        self.disk.path()
    }
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }
    fn sector_size_bytes(&self) -> u32 {
        self.disk.sector_size_bytes()
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> DiskResult<()> {
        self.disk.read_at(offset, buffer)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> DiskResult<()> {
        self.disk.write_at(offset, data)
    }
    fn write_zeroes(&self, offset: u64, length_bytes: u64, may_unmap: bool) -> DiskResult<()> {
        self.disk.write_zeroes(offset, length_bytes, may_unmap)
    }
    fn discard(&self, offset: u64, length_bytes: u64) -> DiskResult<()> {
        self.disk.discard(offset, length_bytes)
    }
    fn flush(&self) -> DiskResult<()> {
        self.begun_count.fetch_add(1, Ordering::SeqCst);
        assert!(!self.panics, "a bug, wanted by the test");
        let mut open = self.open.lock();
        while !*open {
            self.opened.wait(&mut open);
        }
        self.disk.flush()
    }
    fn extent_at(&self, offset: u64, end: u64) -> DiskResult<Extent> {
        self.disk.extent_at(offset, end)
    }
}

/// A client of a disk whose flushes wait until they are let through. Fields are dropped in their order.
struct Waiting {
    /// Also when the test fails: the server waits for its flushes.
    _at_last: AtLast,
    client: Client,
    server: NbdServer,
    device: Arc<HeldFlush>,
    _folder: tempfile::TempDir,
}

impl Waiting {
    fn over(disk: Arc<dyn BlockDevice>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let device = HeldFlush::over(disk, false);
        let server = serve_device(folder.path(), device.clone());
        let client = Client::enter(&server, "disk", false);
        Self { _at_last: AtLast(device.clone()), client, server, device, _folder: folder }
    }
}

/// A write of the sector `n` and a flush behind it, in one send.
fn write_and_flush(n: u8) -> Vec<u8> {
    let mut bytes = request(0, WRITE, n.into(), u64::from(n) * 512, 512, &[n + 1; 512]);
    bytes.extend(request(0, FLUSH, 100 + u64::from(n), 0, 0, &[]));
    bytes
}

fn cookie_of(reply: Reply) -> u64 {
    match reply {
        Reply::Simple { error: 0, cookie } => cookie,
        other => panic!("{other:?}"),
    }
}

#[test]
fn requests_behind_a_flush_are_answered_while_it_waits() {
    let power = Arc::new(PowerLossDevice::new("memory", MIB));
    let mut waiting = Waiting::over(power.clone());
    let Waiting { client, device, .. } = &mut waiting;
    client.send(&write_and_flush(0));
    assert_eq!(cookie_of(client.reply()), 0, "the write is answered, its flush is not");
    eventually("the flush has begun", || device.begun_count.load(Ordering::SeqCst) == 1);
    client.write(MIB / 2, &[9; 4096]);
    assert_eq!(client.read(MIB / 2, 4096), [9; 4096]);
    // More flushes come while the first waits, and share the next one.
    for n in 1..6 {
        client.send(&write_and_flush(n));
        assert_eq!(cookie_of(client.reply()), n.into());
    }
    assert_eq!(device.begun_count.load(Ordering::SeqCst), 1);
    device.let_through();
    let mut flushed: Vec<u64> = (0..6).map(|_| cookie_of(client.reply())).collect();
    flushed.sort_unstable();
    assert_eq!(flushed, (100..106).collect::<Vec<u64>>());
    assert_eq!(device.begun_count.load(Ordering::SeqCst), 2);
    let durable = power.durable_bytes();
    (0..6).for_each(|n| assert_eq!(durable[n * 512..][..512], [n as u8 + 1; 512], "write {n}"));
}

#[test]
fn a_durable_write_is_answered_behind_its_flush_and_not_before() {
    let power = Arc::new(PowerLossDevice::new("memory", MIB));
    let mut waiting = Waiting::over(power.clone());
    let Waiting { client, device, server, .. } = &mut waiting;
    let mut bytes = request(FUA, WRITE, 1, 0, 512, &[7; 512]);
    bytes.extend(request(0, WRITE, 2, 512, 512, &[8; 512]));
    client.send(&bytes);
    assert_eq!(cookie_of(client.reply()), 2);
    assert_eq!(power.durable_bytes()[..512], [0; 512]);
    device.let_through();
    assert_eq!(cookie_of(client.reply()), 1);
    assert_eq!(power.durable_bytes()[..512], [7; 512]);
    assert_eq!(server.counters().written_bytes, 1024);
}

#[test]
fn a_goodbye_waits_for_the_flushes_that_are_under_way() {
    let mut waiting = Waiting::over(Arc::new(MemoryDevice::new("memory", MIB)));
    let Waiting { client, device, .. } = &mut waiting;
    let mut bytes = write_and_flush(3);
    bytes.extend(request(0, DISC, 0, 0, 0, &[]));
    client.send(&bytes);
    assert_eq!(cookie_of(client.reply()), 3);
    device.let_through();
    assert_eq!(cookie_of(client.reply()), 103);
    assert!(client.is_hung_up());
}

/// Error numbers by cookie, of so many replies in whatever order.
fn errors(client: &mut Client, count: usize) -> Vec<(u64, u32)> {
    let error = |reply| match reply {
        Reply::Simple { error, cookie } => (cookie, error),
        other => panic!("{other:?}"),
    };
    let mut errors: Vec<_> = (0..count).map(|_| error(client.reply())).collect();
    errors.sort_unstable();
    errors
}

#[test]
fn what_could_not_be_made_durable_is_answered_as_failed_beside_others_and_alone() {
    let folder = tempfile::tempdir().unwrap();
    let device = Arc::new(FaultDevice::new(Arc::new(MemoryDevice::new("memory", MIB))));
    device.arm(Fault::new(Operation::Flush).always());
    let server = serve_device(folder.path(), device);
    let mut client = Client::enter(&server, "disk", false);
    client.send(&write_and_flush(0));
    assert_eq!(errors(&mut client, 2), [(0, 0), (100, EIO)]);
    let mut bytes = request(FUA, WRITE, 1, 0, 512, &[7; 512]);
    bytes.extend(request(0, WRITE, 2, 512, 512, &[8; 512]));
    client.send(&bytes);
    assert_eq!(errors(&mut client, 2), [(1, EIO), (2, 0)]);
    for (flags, kind, length) in [(0, FLUSH, 0), (FUA, ZEROES, 4096), (FUA, TRIM, 4096)] {
        assert_eq!(client.error(flags, kind, 0, length, &[]), EIO, "request {kind}");
    }
    assert_eq!(client.error(FUA, WRITE, 0, 512, &[9; 512]), EIO);
    assert_eq!(server.counters().written_bytes, 1024, "what was answered as written");
}

#[test]
fn a_flush_that_panics_ends_its_connection_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let device = HeldFlush::over(Arc::new(MemoryDevice::new("memory", MIB)), true);
    let server = serve_device(folder.path(), device.clone());
    let mut other = Client::enter(&server, "disk", false);
    let mut client = Client::enter(&server, "disk", false);
    let _at_last = AtLast(device.clone());
    client.send(&write_and_flush(0));
    assert_eq!(cookie_of(client.reply()), 0);
    assert!(client.is_hung_up());
    other.write(0, &[1; 512]);
    assert_eq!(other.read(0, 512), [1; 512]);
}

#[test]
fn a_client_that_sends_flushes_and_reads_nothing_is_held_up_at_last() {
    let mut waiting = Waiting::over(Arc::new(MemoryDevice::new("memory", MIB)));
    let Waiting { client, device, .. } = &mut waiting;
    // Each send waits for its write, so each flush is a batch of its own: one is carried out, sixteen wait, one is held.
    for n in 0..17 {
        client.send(&write_and_flush(n));
        assert_eq!(cookie_of(client.reply()), n.into());
    }
    client.send(&write_and_flush(17));
    client.send(&write_and_flush(18));
    eventually("a flush has begun", || device.begun_count.load(Ordering::SeqCst) == 1);
    device.let_through();
    let mut rest: Vec<u64> = (0..21).map(|_| cookie_of(client.reply())).collect();
    rest.sort_unstable();
    let flushed = 100..119u64;
    assert_eq!(rest, [17, 18].into_iter().chain(flushed).collect::<Vec<u64>>());
}
