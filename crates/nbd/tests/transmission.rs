//! The transmission: every command, its order and its errors, by a client written by hand.

#![allow(clippy::unwrap_used, reason = "helpers of a test state their expectations with unwrap")]

mod support;

use std::sync::Arc;

use parking_lot::Mutex;
use secondsite_disk::faults::{Fault, FaultDevice, MemoryDevice, Operation, PowerLossDevice};
use secondsite_disk::{BlockDevice, Result as DiskResult};
use secondsite_nbd::{DeviceExport, DirtyExtent, Export, NbdServer, WriteRequest};
use support::*;

const MIB: u64 = 1 << 20;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const ENOTSUP: u32 = 95;

#[test]
fn what_is_written_is_read_back_in_both_forms_of_reply() {
    let place = Place::new(MIB);
    let server = place.serve();
    let data: Vec<u8> = (0..8192u32).map(|i| (i % 253) as u8).collect();
    for is_structured in [false, true] {
        let mut client = Client::enter(&server, "disk", is_structured);
        let offset = if is_structured { 65_536 } else { 512 };
        client.write(offset, &data);
        assert_eq!(client.read(offset, 8192), data);
        assert_eq!(place.disk.bytes()[offset as usize..][..8192], data);
    }
}

#[test]
fn a_long_write_goes_the_second_way_and_is_there_when_it_is_answered() {
    let place = Place::new(40 * MIB);
    let server = place.serve();
    let mut client = Client::enter(&server, "disk", false);
    let mut random = SplitMix(1);
    for length in [128 << 10, (128 << 10) + 512, 1 << 20, 1 << 25, 512] {
        let data = vec![random.next() as u8; length];
        client.write(4096, &data);
        assert!(place.disk.bytes()[4096..][..length] == data, "{length}");
    }
    assert!(client.read(4096, 1 << 25)[512..].iter().all(|byte| *byte != 0));
}

#[test]
fn random_requests_leave_what_a_plain_array_says() {
    for seed in seeds(4, 100) {
        let place = Place::new(8 * MIB);
        let server = place.serve();
        let mut client = Client::enter(&server, "disk", seed % 2 == 0);
        let mut random = SplitMix(seed);
        let mut model = vec![0u8; 8 << 20];
        for _ in 0..12 {
            pipelined_round(&mut client, &mut random, &mut model);
        }
        assert!(place.disk.bytes() == model, "seed {seed}");
    }
}

/// Sends many requests without waiting, overlapping writes and reads among them; checks every read against the model
/// at the moment of its arrival.
fn pipelined_round(client: &mut Client, random: &mut SplitMix, model: &mut [u8]) {
    let (mut bytes, mut reads) = (Vec::new(), std::collections::HashMap::new());
    let count = 1 + random.below(40);
    for cookie in 0..count {
        let kind = [WRITE, WRITE, WRITE, ZEROES, TRIM, FLUSH, READ, READ][random.below(8) as usize];
        // Long reads would fill the socket with replies that nobody takes yet.
        let sectors_max = if kind == WRITE && random.next().is_multiple_of(8) { 1024 } else { 16 };
        let length = (512 * (1 + random.below(sectors_max))) as usize;
        let near = [64, 14_000][random.below(2) as usize];
        let offset = 512 * random.below(near);
        let range = offset as usize..offset as usize + length;
        let fua = if random.below(8) == 0 { FUA } else { 0 };
        let mut payload = Vec::new();
        match kind {
            WRITE => {
                payload = random.bytes(length);
                model[range].copy_from_slice(&payload);
            }
            ZEROES | TRIM => model[range].fill(0),
            READ => drop(reads.insert(cookie, model[range].to_vec())),
            _ => {}
        }
        let (offset, length) = if kind == FLUSH { (0, 0) } else { (offset, length as u32) };
        bytes.extend(request(fua, kind, cookie, offset, length, &payload));
    }
    client.send(&bytes);
    for _ in 0..count {
        match client.reply() {
            Reply::Simple { error: 0, cookie } => {
                if let Some(expected) = reads.get(&cookie) {
                    assert!(client.take_many(expected.len()) == *expected, "read {cookie}");
                }
            }
            Reply::Chunk { is_last: true, kind: 1, cookie, payload } => {
                assert!(payload[8..] == reads[&cookie], "read {cookie}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn sixteen_overlapping_writes_at_once_leave_the_last_one() {
    let place = Place::new(MIB);
    let server = place.serve();
    let mut client = Client::enter(&server, "disk", false);
    let writes = (0..64u8).flat_map(|i| request(0, WRITE, i.into(), 512, 1024, &[i; 1024]));
    client.send(&writes.collect::<Vec<u8>>());
    (0..64).for_each(|_| assert_eq!(error_of(&client.reply()), 0));
    assert_eq!(client.read(512, 1024), [63; 1024]);
}

#[test]
fn an_answered_flush_survives_a_power_loss() {
    let folder = tempfile::tempdir().unwrap();
    let device = Arc::new(PowerLossDevice::new("memory", MIB));
    let server = serve_device(folder.path(), device.clone());
    let mut client = Client::enter(&server, "disk", false);
    for i in 0..20u8 {
        client.write(u64::from(i) * 4096, &[i + 1; 4096]);
    }
    assert_eq!(client.error(0, ZEROES, 0, 4096, &[]), 0);
    assert_eq!(client.error(0, FLUSH, 0, 0, &[]), 0);
    let after = device.crash(1).bytes();
    assert_eq!(after[..4096], [0; 4096]);
    (1..20).for_each(|i| assert_eq!(after[i * 4096..][..4096], [i as u8 + 1; 4096], "write {i}"));
}

#[test]
fn every_answered_fua_survives_a_power_loss_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let device = Arc::new(PowerLossDevice::new("memory", MIB));
    let server = serve_device(folder.path(), device.clone());
    let mut client = Client::enter(&server, "disk", false);
    for i in 0..20u8 {
        let at = usize::from(i) * 4096;
        assert_eq!(client.error(FUA, WRITE, at as u64, 4096, &[i + 1; 4096]), 0);
        assert_eq!(device.durable_bytes()[at..][..4096], [i + 1; 4096], "write {i}");
        let kind = if i % 2 == 0 { ZEROES } else { TRIM };
        assert_eq!(client.error(FUA, kind, at as u64, 4096, &[]), 0);
        assert_eq!(device.durable_bytes()[at..][..4096], [0; 4096], "zeroes {i}");
    }
}

#[test]
fn one_batch_of_fua_writes_takes_one_flush() {
    let folder = tempfile::tempdir().unwrap();
    let device = Arc::new(FaultDevice::new(Arc::new(MemoryDevice::new("memory", MIB))));
    let server = serve_device(folder.path(), device.clone());
    let mut client = Client::enter(&server, "disk", false);
    let writes = (0..8u8).flat_map(|i| request(FUA, WRITE, i.into(), u64::from(i) * 512, 512, &[i; 512]));
    client.send(&writes.collect::<Vec<u8>>());
    (0..8).for_each(|_| assert_eq!(error_of(&client.reply()), 0));
    // One send is one receive here, so one batch; were it cut in two there would be two flushes.
    assert!((1..=2).contains(&device.count(Operation::Flush)), "{}", device.count(Operation::Flush));
}

#[test]
fn a_train_of_flushes_takes_one_and_covers_the_writes_between() {
    let folder = tempfile::tempdir().unwrap();
    let power = Arc::new(PowerLossDevice::new("memory", MIB));
    let device = Arc::new(FaultDevice::new(power.clone()));
    let server = serve_device(folder.path(), device.clone());
    let mut client = Client::enter(&server, "disk", false);
    let train = (0..7u8).flat_map(|i| {
        let (cookie, offset) = (u64::from(i), u64::from(i) * 512);
        let kinds = [
            request(0, WRITE, cookie, offset, 512, &[i + 1; 512]),
            request(0, FLUSH, 10 + cookie, 0, 0, &[]),
        ];
        kinds.into_iter().flatten()
    });
    client.send(&train.collect::<Vec<u8>>());
    let cookie_of = |reply| match reply {
        Reply::Simple { error: 0, cookie } => cookie,
        other => panic!("{other:?}"),
    };
    let mut seen: Vec<u64> = (0..14).map(|_| cookie_of(client.reply())).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..7).chain(10..17).collect::<Vec<u64>>(), "each request has its own reply");
    // One send is one receive here, so one batch; were it cut in two there would be two flushes.
    assert!((1..=2).contains(&device.count(Operation::Flush)), "{}", device.count(Operation::Flush));
    let durable = power.durable_bytes();
    (0..7).for_each(|i| assert_eq!(durable[i * 512..][..512], [i as u8 + 1; 512], "write {i}"));
}

#[test]
fn errors_of_the_disk_are_errors_of_their_request_alone() {
    let folder = tempfile::tempdir().unwrap();
    let device = Arc::new(FaultDevice::new(Arc::new(MemoryDevice::new("memory", MIB))));
    let server = serve_device(folder.path(), device.clone());
    let cases = [
        (Operation::Write, WRITE, 0, 5, EIO),
        (Operation::Write, WRITE, 0, 28, ENOSPC),
        (Operation::WriteZeroes, ZEROES, 0, 28, ENOSPC),
        (Operation::Discard, TRIM, 0, 5, EIO),
        (Operation::Read, READ, 0, 5, EIO),
        (Operation::Read, CACHE, 0, 5, EIO),
        (Operation::Flush, WRITE, FUA, 5, EIO),
        (Operation::Flush, ZEROES, FUA, 5, EIO),
    ];
    for is_structured in [false, true] {
        for (operation, kind, flags, errno, expected) in cases {
            let mut client = Client::enter(&server, "disk", is_structured);
            device.arm(Fault::new(operation).errno(errno));
            let payload: &[u8] = if kind == WRITE { &[1; 4096] } else { &[] };
            assert_eq!(client.error(flags, kind, 4096, 4096, payload), expected, "{operation:?}");
            device.disarm();
            assert_eq!(client.error(0, WRITE, 4096, 512, &[9; 512]), 0);
            assert_eq!(client.read(4096, 512), [9; 512]);
        }
    }
}

#[test]
fn in_a_batch_only_the_write_that_failed_is_answered_with_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let device = Arc::new(FaultDevice::new(Arc::new(MemoryDevice::new("memory", MIB))));
    let server = serve_device(folder.path(), device.clone());
    let mut client = Client::enter(&server, "disk", false);
    device.arm(Fault::new(Operation::Write).inside(2048..2049));
    let writes = (0..8u8).flat_map(|i| request(0, WRITE, i.into(), u64::from(i) * 512, 512, &[1; 512]));
    client.send(&writes.collect::<Vec<u8>>());
    let failed: Vec<Reply> = (0..8).map(|_| client.reply()).filter(|reply| error_of(reply) != 0).collect();
    assert_eq!(failed, [Reply::Simple { error: EIO, cookie: 4 }]);
}

#[test]
fn a_structured_error_carries_the_stable_code() {
    let folder = tempfile::tempdir().unwrap();
    let device = Arc::new(FaultDevice::new(Arc::new(MemoryDevice::new("memory", MIB))));
    let server = serve_device(folder.path(), device.clone());
    let mut client = Client::enter(&server, "disk", true);
    device.arm(Fault::new(Operation::Read));
    let Reply::Chunk { kind, payload, .. } = client.ask(0, READ, 0, 512, &[]) else { panic!("no chunk") };
    assert_eq!((kind, be32(&payload)), (0x8001, EIO));
    assert_eq!(&payload[6..], b"DISK_READ_FAILED");
}

#[test]
fn zeroes_trims_and_no_hole_read_back_as_zeros() {
    let place = Place::new(MIB);
    let server = place.serve();
    let mut client = Client::enter(&server, "disk", true);
    for (flags, kind) in [(0, ZEROES), (NO_HOLE, ZEROES), (FUA | NO_HOLE, ZEROES), (0, TRIM), (FUA, TRIM)] {
        client.write(0, &[7; 8192]);
        assert_eq!(client.error(flags, kind, 512, 4096, &[]), 0);
        assert_eq!(client.read(0, 8192), [vec![7; 512], vec![0; 4096], vec![7; 3584]].concat());
    }
}

#[test]
fn fast_zero_is_refused_without_harm_where_zeroing_may_be_slow() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Arc::new(MemoryDevice::new("memory", MIB));
    let server = serve_device(folder.path(), disk.clone());
    let fast = DeviceExport::new(disk).with_fast_zeroing();
    server.add_export("fast", Arc::new(fast)).unwrap();
    let mut client = Client::enter(&server, "disk", true);
    client.write(0, &[7; 512]);
    assert_eq!(client.error(FAST_ZERO, ZEROES, 0, 512, &[]), ENOTSUP);
    assert_eq!(client.read(0, 512), [7; 512]);
    let mut client = Client::enter(&server, "fast", true);
    assert_eq!(client.error(FAST_ZERO, ZEROES, 0, 512, &[]), 0);
    assert_eq!(client.read(0, 512), [0; 512]);
}

#[test]
fn requests_that_cannot_be_are_errors_and_the_next_one_works() {
    let place = Place::new(MIB);
    let server = place.serve();
    let mut client = Client::enter(&server, "disk", true);
    let cases: [(u16, u16, u64, u32, u32); 12] = [
        (0, READ, MIB, 512, EINVAL),
        (0, READ, u64::MAX, 512, EINVAL),
        (0, READ, 1, 512, EINVAL),
        (0, READ, 0, 0, EINVAL),
        (0, TRIM, MIB - 512, 1024, EINVAL),
        (0, ZEROES, MIB, 512, ENOSPC),
        (0, FLUSH, 512, 0, EINVAL),
        (0, STATUS, 0, 512, EINVAL),
        (0, 8, 0, 512, EINVAL),
        (0, 999, 0, 512, EINVAL),
        (1 << 9, READ, 0, 512, EINVAL),
        (REQ_ONE, READ, 0, 512, EINVAL),
    ];
    for (flags, kind, offset, length, expected) in cases {
        assert_eq!(client.error(flags, kind, offset, length, &[]), expected, "{kind} {offset} {length}");
    }
    assert_eq!(client.error(0, WRITE, MIB, 512, &[1; 512]), ENOSPC);
    assert_eq!(client.error(0, WRITE, u64::MAX - 511, 512, &[1; 512]), ENOSPC);
    client.write(0, &[1; 512]);
    assert_eq!(server.counters().error_count, 14);
}

#[test]
fn df_reads_come_in_one_chunk_and_cache_is_answered() {
    let place = Place::new(4 * MIB);
    let server = place.serve();
    let mut client = Client::enter(&server, "disk", true);
    let Reply::Chunk { is_last, kind, payload, .. } = client.ask(DF, READ, 0, 3 << 20, &[]) else {
        panic!("no chunk")
    };
    assert_eq!((is_last, kind, payload.len()), (true, 1, (3 << 20) + 8));
    assert_eq!(client.error(0, CACHE, 0, 4 << 20, &[]), 0);
}

/// What a status reply says: the context's id, lengths and flags.
fn status(client: &mut Client, flags: u16, offset: u64, length: u32) -> (bool, u32, Vec<(u32, u32)>) {
    client.send(&request(flags, STATUS, 5, offset, length, &[]));
    status_chunk(client)
}

fn status_chunk(client: &mut Client) -> (bool, u32, Vec<(u32, u32)>) {
    let Reply::Chunk { is_last, kind: 5, cookie: 5, payload } = client.reply() else { panic!("no status") };
    let extents = payload[4..].chunks(8).map(|extent| (be32(extent), be32(&extent[4..])));
    (is_last, be32(&payload), extents.collect())
}

fn with_contexts(server: &NbdServer, queries: &[&str]) -> Client {
    let mut client = Client::connect(server);
    client.option(STRUCTURED_REPLY, &[]);
    client.option(SET_META, &meta_data("disk", queries));
    client.option(GO, &info_data("disk", &[]));
    client
}

#[test]
fn block_status_tells_holes_from_data() {
    let place = Place::new(MIB);
    let server = place.serve();
    let mut client = with_contexts(&server, &["base:allocation"]);
    client.write(65_536, &[1; 4096]);
    client.write(73_728, &[1; 4096]);
    let (is_last, _, extents) = status(&mut client, 0, 0, 1 << 20);
    assert!(is_last);
    assert_eq!(extents, [(65_536, 3), (4096, 0), (4096, 3), (4096, 0), (970_752, 3)]);
    assert_eq!(status(&mut client, REQ_ONE, 65_536, 1 << 19).2, [(4096, 0)]);
    assert_eq!(status(&mut client, 0, 512, 512).2, [(512, 3)]);
    assert_eq!(client.error(0, STATUS, MIB, 512, &[]), EINVAL);
}

/// An export whose first 64 KiB are dirty.
struct Half(MemoryDevice);

impl Export for Half {
    fn device(&self) -> &dyn BlockDevice {
        &self.0
    }
    fn has_dirty(&self) -> bool {
        true
    }
    fn dirty(&self, offset: u64, length_bytes: u64) -> DiskResult<Vec<DirtyExtent>> {
        let extent = |length_bytes, is_dirty| DirtyExtent { length_bytes, is_dirty };
        let first = 65_536u64.saturating_sub(offset).min(length_bytes);
        Ok(vec![extent(first, true), extent(length_bytes - first, false)])
    }
}

#[test]
fn the_dirty_context_gives_what_was_written_beside_allocation() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve_export(folder.path(), Half(MemoryDevice::new("memory", MIB)));
    let mut client = with_contexts(&server, &["base:allocation", "secondsite:dirty"]);
    let (is_last, allocation, extents) = status(&mut client, 0, 32_768, 65_536);
    assert_eq!((is_last, extents), (false, vec![(65_536, 3)]));
    let (is_last, dirty, extents) = status_chunk(&mut client);
    assert_eq!((is_last, extents), (true, vec![(32_768, 1), (32_768, 0)]));
    assert_ne!(allocation, dirty);
    client.send(&request(REQ_ONE, STATUS, 5, 1 << 19, 512, &[]));
    status_chunk(&mut client);
    assert_eq!(status_chunk(&mut client).2, [(512, 0)]);
}

/// An export that notes its batches and forgets a result.
struct Noting {
    device: MemoryDevice,
    batches: Mutex<Vec<Vec<u64>>>,
    forgets: bool,
}

impl Export for Noting {
    fn device(&self) -> &dyn BlockDevice {
        &self.device
    }
    fn write_batch(&self, batch: &[WriteRequest<'_>]) -> Vec<DiskResult<()>> {
        self.batches.lock().push(batch.iter().map(|write| write.offset / 512).collect());
        let results = batch.iter().map(|write| self.device.write_at(write.offset, write.data));
        results.skip(usize::from(self.forgets)).collect()
    }
}

#[test]
fn writes_reach_the_export_in_batches_of_at_most_sixteen_in_their_order() {
    let folder = tempfile::tempdir().unwrap();
    let device = MemoryDevice::new("memory", MIB);
    let export = Arc::new(Noting { device, batches: Mutex::default(), forgets: false });
    let server = serve_export(folder.path(), Shared(export.clone()));
    let mut client = Client::enter(&server, "disk", false);
    let writes = (0..100u64).flat_map(|i| request(0, WRITE, i, i * 512, 512, &[1; 512]));
    client.send(&writes.collect::<Vec<u8>>());
    (0..100).for_each(|_| assert_eq!(error_of(&client.reply()), 0));
    let batches = export.batches.lock();
    assert!(batches.iter().all(|batch| batch.len() <= 16), "{batches:?}");
    assert!(batches.iter().any(|batch| batch.len() > 1), "{batches:?}");
    assert_eq!(batches.concat(), (0..100).collect::<Vec<u64>>());
}

/// Shares an export with the test.
struct Shared<T>(Arc<T>);

impl<T: Export> Export for Shared<T> {
    fn device(&self) -> &dyn BlockDevice {
        self.0.device()
    }
    fn write_batch(&self, batch: &[WriteRequest<'_>]) -> Vec<DiskResult<()>> {
        self.0.write_batch(batch)
    }
}

#[test]
fn a_write_whose_result_is_missing_is_answered_as_failed() {
    let folder = tempfile::tempdir().unwrap();
    let device = MemoryDevice::new("memory", MIB);
    let server = serve_export(folder.path(), Noting { device, batches: Mutex::default(), forgets: true });
    let mut client = Client::enter(&server, "disk", false);
    assert_eq!(client.error(0, WRITE, 0, 512, &[1; 512]), EIO);
}

#[test]
fn disconnecting_ends_after_everything_before_it_was_answered() {
    let place = Place::new(MIB);
    let server = place.serve();
    let mut client = Client::enter(&server, "disk", false);
    let mut bytes = request(0, WRITE, 1, 0, 512, &[3; 512]);
    bytes.extend(request(0, DISC, 2, 0, 0, &[]));
    client.send(&bytes);
    assert_eq!(client.reply(), Reply::Simple { error: 0, cookie: 1 });
    assert!(client.is_hung_up());
    assert_eq!(place.disk.bytes()[..512], [3; 512]);
    eventually("the session is gone", || server.counters().connection_count == 0);
    assert_eq!(server.counters().breach_count, 0);
}

#[test]
fn four_connections_see_each_others_writes_and_flush_for_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let device = Arc::new(PowerLossDevice::new("memory", MIB));
    let server = serve_device(folder.path(), device.clone());
    let mut clients: Vec<Client> = (0..4).map(|_| Client::enter(&server, "disk", false)).collect();
    for (i, client) in clients.iter_mut().enumerate() {
        client.write(i as u64 * 4096, &[i as u8 + 1; 4096]);
    }
    for client in &mut clients {
        assert_eq!(client.read(8192, 512), [3; 512]);
    }
    assert_eq!(clients[0].error(0, FLUSH, 0, 0, &[]), 0);
    let after = device.crash(3).bytes();
    (0..4).for_each(|i| assert_eq!(after[i * 4096..][..4096], [i as u8 + 1; 4096]));
}

#[test]
fn counters_count_requests_bytes_and_errors() {
    let place = Place::new(MIB);
    let server = place.serve();
    let mut client = Client::enter(&server, "disk", false);
    client.write(0, &[1; 1024]);
    client.read(0, 512);
    client.error(0, FLUSH, 0, 0, &[]);
    client.error(0, READ, 1, 1, &[]);
    let counters = server.counters();
    assert_eq!((counters.request_count, counters.error_count, counters.flush_count), (4, 1, 1));
    assert_eq!((counters.read_bytes, counters.written_bytes), (512, 1024));
    assert_eq!((counters.connection_count, counters.accepted_count), (1, 1));
}

#[test]
fn spinning_changes_nothing_but_the_time() {
    let place = Place::new(MIB);
    let mut options = place.options();
    options.spin_us = 50;
    let server = NbdServer::start(options).unwrap();
    let mut client = Client::enter(&server, "disk", true);
    for i in 0..2000u64 {
        client.write(i % 64 * 512, &[i as u8; 512]);
    }
    assert_eq!(client.read(0, 512), [(1984 % 256) as u8; 512]);
}

/// Reading here is a bug of the device.
const PANICS_AT: u64 = MIB - 4096;

/// A device of which only the first half is in a cache.
struct HalfCached(FaultDevice);

impl BlockDevice for HalfCached {
    fn path(&self) -> &std::path::Path {
        self.0.path()
    }
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }
    fn sector_size_bytes(&self) -> u32 {
        self.0.sector_size_bytes()
    }
    fn read_cached(&self, offset: u64, buffer: &mut [u8]) -> DiskResult<bool> {
        buffer.fill(0xee);
        let is_cached = offset + buffer.len() as u64 <= self.size_bytes() / 2;
        if is_cached { self.0.read_at(offset, buffer).map(|()| true) } else { Ok(false) }
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> DiskResult<()> {
        assert_ne!(offset, PANICS_AT, "a bug, wanted by the test");
        self.0.read_at(offset, buffer)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> DiskResult<()> {
        self.0.write_at(offset, data)
    }
    fn write_zeroes(&self, offset: u64, length_bytes: u64, may_unmap: bool) -> DiskResult<()> {
        self.0.write_zeroes(offset, length_bytes, may_unmap)
    }
    fn discard(&self, offset: u64, length_bytes: u64) -> DiskResult<()> {
        self.0.discard(offset, length_bytes)
    }
    fn flush(&self) -> DiskResult<()> {
        self.0.flush()
    }
    fn extent_at(&self, offset: u64, end: u64) -> DiskResult<secondsite_disk::Extent> {
        self.0.extent_at(offset, end)
    }
}

/// A batch of sixteen reads, every second one missing the cache, of a disk whose sectors hold their number.
fn read_sixteen(client: &mut Client) -> Vec<(u64, Result<Vec<u8>, u32>)> {
    let at = |i: u64| if i.is_multiple_of(2) { i * 4096 } else { MIB / 2 + i * 4096 };
    let reads = (0..16u64).flat_map(|i| request(0, READ, i, at(i), 4096, &[]));
    client.send(&reads.collect::<Vec<u8>>());
    let mut replies: Vec<_> = (0..16).map(|_| read_reply(client)).collect();
    replies.sort_by_key(|(cookie, _)| *cookie);
    replies
}

fn read_reply(client: &mut Client) -> (u64, Result<Vec<u8>, u32>) {
    match client.reply() {
        Reply::Simple { error: 0, cookie } => (cookie, Ok(client.take_many(4096))),
        Reply::Simple { error, cookie } => (cookie, Err(error)),
        Reply::Chunk { kind: 1, cookie, payload, .. } => (cookie, Ok(payload[8..].to_vec())),
        Reply::Chunk { cookie, payload, .. } => (cookie, Err(be32(&payload))),
    }
}

#[test]
fn reads_that_miss_the_cache_give_the_same_and_fail_alone() {
    for is_structured in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let memory = MemoryDevice::new("memory", MIB);
        (0..MIB / 512).for_each(|i| memory.write_at(i * 512, &[i as u8; 512]).unwrap());
        let content = memory.bytes();
        let device = Arc::new(HalfCached(FaultDevice::new(Arc::new(memory))));
        let server = serve_device(folder.path(), device.clone());
        let mut client = Client::enter(&server, "disk", is_structured);
        let expected = |i: u64| {
            let at = if i.is_multiple_of(2) { i * 4096 } else { MIB / 2 + i * 4096 };
            content[at as usize..][..4096].to_vec()
        };
        for (cookie, result) in read_sixteen(&mut client) {
            assert!(result.as_ref() == Ok(&expected(cookie)), "{cookie}");
        }
        for bad in [3u64, 8, 15] {
            let at = if bad == 8 { bad * 4096 } else { MIB / 2 + bad * 4096 };
            device.0.arm(Fault::new(Operation::Read).inside(at..at + 1));
            for (cookie, result) in read_sixteen(&mut client) {
                let wanted = if cookie == bad { Err(EIO) } else { Ok(expected(cookie)) };
                assert!(result == wanted, "{bad} {cookie}");
            }
        }
        // A panic in a thread that reads is the error of its read.
        let pair =
            [request(0, READ, 1, MIB - 8192, 4096, &[]), request(0, READ, 2, PANICS_AT, 4096, &[])].concat();
        client.send(&pair);
        let mut replies = [read_reply(&mut client), read_reply(&mut client)];
        replies.sort_by_key(|(cookie, _)| *cookie);
        assert_eq!(replies[0].1.as_ref().map(Vec::len), Ok(4096));
        assert_eq!(replies[1], (2, Err(EIO)));
    }
}

#[test]
fn a_read_that_misses_sees_nothing_of_the_write_behind_it() {
    let folder = tempfile::tempdir().unwrap();
    let device = Arc::new(HalfCached(FaultDevice::new(Arc::new(MemoryDevice::new("memory", MIB)))));
    let server = serve_device(folder.path(), device);
    let mut client = Client::enter(&server, "disk", true);
    let at = MIB / 2;
    for kind in [WRITE, ZEROES, TRIM] {
        client.write(at, &[5; 8192]);
        let payload: &[u8] = if kind == WRITE { &[6; 8192] } else { &[] };
        let mut bytes = request(0, READ, 1, at, 4096, &[]);
        bytes.extend(request(0, READ, 2, at + 4096, 4096, &[]));
        bytes.extend(request(0, kind, 3, at, 8192, payload));
        bytes.extend(request(0, READ, 4, at, 4096, &[]));
        client.send(&bytes);
        for _ in 0..4 {
            if let Reply::Chunk { cookie, payload, .. } = client.reply() {
                let after = if kind == WRITE { 6 } else { 0 };
                assert_eq!(payload[8], if cookie == 4 { after } else { 5 }, "{kind} {cookie}");
            }
        }
    }
}
