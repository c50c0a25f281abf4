//! Clients that mean harm, and clients in trouble: an error or a hang-up, never a panic, never memory without bound, and
//! never anything that another client feels.

#![allow(clippy::unwrap_used, reason = "helpers of a test state their expectations with unwrap")]

mod support;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use secondsite_disk::faults::MemoryDevice;
use secondsite_nbd::drill::serve_bytes;
use secondsite_nbd::{DeviceExport, Export, Limits, NbdServer};
use support::*;

const MIB: u64 = 1 << 20;

fn serve_with(place: &Place, limits: Limits) -> NbdServer {
    let mut options = place.options();
    options.limits = limits;
    NbdServer::start(options).unwrap()
}

/// The server still serves others.
fn assert_alive(server: &NbdServer) {
    let mut client = Client::enter(server, "disk", true);
    client.write(0, &[1; 512]);
    assert_eq!(client.read(0, 512), [1; 512]);
}

#[test]
fn a_client_that_says_nothing_is_cut_off() {
    let place = Place::new(MIB);
    let server = serve_with(&place, Limits { handshake_time_ms: 50, ..Limits::default() });
    let mut silent = Client::connect(&server);
    assert!(silent.is_hung_up());
    eventually("a breach", || server.counters().breach_count == 1);
    eventually("it is gone", || server.counters().connection_count == 0);
}

#[test]
fn dripping_bytes_does_not_extend_the_handshake() {
    let place = Place::new(MIB);
    let server = serve_with(&place, Limits { handshake_time_ms: 100, ..Limits::default() });
    let mut stream = socket(&server);
    // An option that the server would wait for: nothing in it is wrong but the pace.
    let mut bytes = vec![0, 0, 0, 3];
    bytes.extend(b"IHAVEOPT\0\0\0\x63\0\0\x10\0");
    bytes.resize(4000, 0);
    let is_cut_off = bytes.iter().any(|byte| {
        std::thread::sleep(Duration::from_millis(5));
        stream.write_all(&[*byte]).is_err()
    });
    assert!(is_cut_off, "twenty seconds of dripping were taken");
}

#[test]
fn an_idle_client_in_transmission_is_left_alone() {
    let place = Place::new(MIB);
    let server = serve_with(&place, Limits { handshake_time_ms: 50, ..Limits::default() });
    let mut client = Client::enter(&server, "disk", false);
    std::thread::sleep(Duration::from_millis(200));
    client.write(0, &[1; 512]);
}

#[test]
fn an_option_longer_than_the_limit_hangs_up_before_it_is_received() {
    let place = Place::new(MIB);
    let server = place.serve();
    for length in [(64u32 << 10) + 1, u32::MAX] {
        let mut client = Client::connect(&server);
        client.send(b"IHAVEOPT\0\0\0\x07");
        client.send(&length.to_be_bytes());
        assert!(client.is_hung_up());
    }
    assert_alive(&server);
}

#[test]
fn a_flood_of_options_ends_at_the_limit() {
    let place = Place::new(MIB);
    let server = serve_with(&place, Limits { option_count_max: 20, ..Limits::default() });
    let mut client = Client::connect(&server);
    for _ in 0..20 {
        assert_eq!(client.option(99, &[1; 100])[0].kind, ERR_UNSUP);
    }
    assert!(client.is_hung_up());
    eventually("a breach", || server.counters().breach_count == 1);
}

#[test]
fn a_wrong_magic_hangs_up_in_both_phases() {
    let place = Place::new(MIB);
    let server = place.serve();
    let mut client = Client::connect(&server);
    client.send(b"IHAVEOPS\0\0\0\x03\0\0\0\0");
    assert!(client.is_hung_up());
    let mut client = Client::enter(&server, "disk", false);
    client.send(&[0xee; 28]);
    assert!(client.is_hung_up());
    eventually("both counted", || server.counters().breach_count == 2);
    assert_alive(&server);
}

#[test]
fn a_write_of_four_gib_hangs_up() {
    let place = Place::new(MIB);
    let server = place.serve();
    let mut client = Client::enter(&server, "disk", false);
    client.send(&request(0, WRITE, 1, 0, u32::MAX, &[]));
    assert!(client.is_hung_up());
}

#[test]
fn a_read_of_four_gib_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve_device(folder.path(), Arc::new(MemoryDevice::new("memory", 1 << 40)));
    let length = u32::MAX - 511;
    assert_eq!(Client::enter(&server, "disk", true).error(0, READ, 0, length, &[]), 75);
    assert_eq!(Client::enter(&server, "disk", false).error(0, READ, 0, length, &[]), 22);
    assert_eq!(Client::enter(&server, "disk", true).error(0, CACHE, 0, length, &[]), 75);
}

#[test]
fn a_write_above_a_lower_limit_is_an_error_and_the_next_request_is_understood() {
    let place = Place::new(4 * MIB);
    let server = serve_with(&place, Limits { request_bytes_max: 64 << 10, ..Limits::default() });
    let mut client = Client::enter(&server, "disk", true);
    assert_eq!(client.error(0, WRITE, 0, 1 << 20, &vec![0x25; 1 << 20]), 22);
    client.write(0, &[2; 64 << 10]);
    assert_eq!(client.read(0, 512), [2; 512]);
    assert_eq!(place.disk.stored_bytes(), 64 << 10);
}

#[test]
fn half_a_request_and_gone_changes_nothing() {
    let place = Place::new(MIB);
    let server = place.serve();
    let whole = request(0, WRITE, 1, 0, 4096, &[9; 4096]);
    for cut in [1, 27, 28, 100, whole.len() - 1] {
        let mut client = Client::enter(&server, "disk", false);
        client.send(&whole[..cut]);
        drop(client);
    }
    eventually("all are gone", || server.counters().connection_count == 0);
    assert_eq!(place.disk.stored_bytes(), 0);
    assert_alive(&server);
}

#[test]
fn a_client_that_never_reads_holds_one_batch_and_is_cut_off_when_it_stalls() {
    let place = Place::new(8 * MIB);
    let server = serve_with(&place, Limits { send_stall_ms: 100, ..Limits::default() });
    let mut client = Client::enter(&server, "disk", false);
    let mut sent = 0u64;
    // Nothing is taken while the replies are stuck, so the socket fills up and the sending ends in an error.
    let reads: Vec<u8> = (0..64).flat_map(|i| request(0, READ, i, 0, 1 << 20, &[])).collect();
    while client.stream.write_all(&reads).is_ok() {
        sent += 64;
        assert!(sent < 1 << 20, "requests without end were taken");
    }
    eventually("a breach", || server.counters().breach_count == 1);
    assert!(server.counters().read_bytes <= 64 << 20, "{}", server.counters().read_bytes);
    assert_alive(&server);
}

#[test]
fn connections_above_the_limit_are_closed_and_a_free_place_is_given_again() {
    let place = Place::new(MIB);
    let server = serve_with(&place, Limits { connection_count_max: 2, ..Limits::default() });
    let first = Client::enter(&server, "disk", false);
    let _second = Client::connect(&server);
    let mut third = UnixStream::connect(place.socket_path()).unwrap();
    assert_eq!(third.read(&mut [0; 18]).unwrap_or(0), 0);
    assert_eq!(server.counters().refused_count, 1);
    drop(first);
    eventually("a place is free", || server.counters().connection_count == 1);
    assert_alive(&server);
}

#[test]
fn a_panic_of_the_export_ends_its_connection_alone() {
    struct Panicking(MemoryDevice);
    impl Export for Panicking {
        fn device(&self) -> &dyn secondsite_disk::BlockDevice {
            &self.0
        }
        fn write_batch(
            &self,
            batch: &[secondsite_nbd::WriteRequest<'_>],
        ) -> Vec<secondsite_disk::Result<()>> {
            panic!("a bug, wanted by the test, in a batch of {}", batch.len());
        }
    }
    let place = Place::new(MIB);
    let server = place.serve();
    server.add_export("panicking", Arc::new(Panicking(MemoryDevice::new("memory", MIB)))).unwrap();
    for length in [512, 256 << 10] {
        let mut client = Client::enter(&server, "panicking", false);
        client.send(&request(0, WRITE, 1, 0, length, &vec![1; length as usize]));
        assert!(client.is_hung_up(), "{length}");
    }
    eventually("both are gone", || server.counters().connection_count == 0);
    assert_alive(&server);
}

fn exports() -> Vec<(&'static str, Arc<dyn Export>)> {
    vec![(
        "disk",
        Arc::new(DeviceExport::new(Arc::new(MemoryDevice::new("memory", MIB))).with_fast_zeroing()),
    )]
}

/// A handshake that enters, structured, with contexts.
fn entering() -> Vec<u8> {
    let mut bytes = vec![0, 0, 0, 3];
    let options = [
        (STRUCTURED_REPLY, vec![]),
        (SET_META, meta_data("disk", &["base:allocation"])),
        (GO, info_data("disk", &[])),
    ];
    for (option, data) in options {
        bytes.extend(b"IHAVEOPT");
        bytes.extend(option.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_are_survived_in_the_handshake(input in proptest::collection::vec(any::<u8>(), 0..4096), step in 1usize..5000) {
        let answer = serve_bytes(&exports(), Limits::default(), &input, step).unwrap();
        prop_assert!(answer.bytes.starts_with(b"NBDMAGIC"));
    }

    #[test]
    fn arbitrary_requests_are_all_answered(seed: u64, count in 0usize..60, step in 1usize..70_000) {
        let mut random = SplitMix(seed);
        let mut input = entering();
        let prefix = serve_bytes(&exports(), Limits::default(), &input, step).unwrap().bytes.len();
        for cookie in 0..count as u64 {
            let length = (random.below(40) * 512) as u32 + u32::from(random.below(9) == 0);
            let kind = random.below(9) as u16;
            let kind = if kind == DISC { READ } else { kind };
            let payload = if kind == WRITE { vec![3; length as usize] } else { vec![] };
            input.extend(request(random.below(32) as u16, kind, cookie, random.below(2050) * 512, length, &payload));
        }
        let answer = serve_bytes(&exports(), Limits::default(), &input, step).unwrap();
        prop_assert_eq!(answered_cookies(&answer.bytes[prefix..]), (0..count as u64).collect::<Vec<_>>());
        prop_assert_eq!(answer.counters.request_count, count as u64);
    }
}

/// Cookies of the replies that are complete, sorted; a chunked reply counts at its last chunk.
fn answered_cookies(mut bytes: &[u8]) -> Vec<u64> {
    let mut cookies = Vec::new();
    while !bytes.is_empty() {
        let cookie = be64(&bytes[8..]);
        if be32(bytes) == 0x6744_6698 {
            cookies.push(cookie);
            bytes = &bytes[16..];
            continue;
        }
        assert_eq!(be32(bytes), 0x668e_33ef);
        if be16(&bytes[4..]) == 1 {
            cookies.push(cookie);
        }
        bytes = &bytes[20 + be32(&bytes[16..]) as usize..];
    }
    cookies.sort_unstable();
    cookies
}
