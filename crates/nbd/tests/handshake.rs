//! The handshake, option by option, by a client written by hand.

#![allow(clippy::unwrap_used, reason = "helpers of a test state their expectations with unwrap")]

mod support;

use std::sync::Arc;

use secondsite_disk::faults::MemoryDevice;
use secondsite_disk::{BlockDevice, Result as DiskResult};
use secondsite_nbd::{DeviceExport, DirtyExtent, Export, Listen, NbdServer, ServerOptions};
use support::*;

const MIB: u64 = 1 << 20;
/// What a writable export can do, structured replies not asked for: flags, flush, FUA, trim, zeroes, multi, cache, fast.
const WRITABLE: u16 = 0b1101_0110_1101;
const DF_FLAG: u16 = 1 << 7;

#[test]
fn the_greeting_offers_fixed_newstyle_and_no_zeroes() {
    let place = Place::new(MIB);
    let client = Client::connect(&place.serve());
    assert_eq!(client.server_flags, 3);
}

#[test]
fn go_gives_size_flags_sizes_and_what_was_asked_for() {
    let place = Place::new(MIB);
    let server = place.serve();
    let mut client = Client::connect(&server);
    let replies = client.option(GO, &info_data("disk", &[1, 2, 3]));
    let infos: Vec<&[u8]> = replies.iter().filter(|r| r.kind == 3).map(|r| &r.data[..]).collect();
    assert_eq!(infos[0], [&[0, 0][..], &MIB.to_be_bytes(), &WRITABLE.to_be_bytes()].concat());
    assert!(infos.contains(&b"\0\x01disk".as_slice()));
    assert!(infos.contains(&b"\0\x02a disk of a test".as_slice()));
    assert!(infos.contains(&[0, 3, 0, 0, 2, 0, 0, 0, 16, 0, 2, 0, 0, 0].as_slice()));
    assert_eq!(client.read(0, 512), [0; 512]);
}

#[test]
fn info_says_the_same_as_go_and_stays_in_the_handshake() {
    let place = Place::new(MIB);
    let server = place.serve();
    let mut client = Client::connect(&server);
    let told = client.option(INFO, &info_data("disk", &[3]));
    let entered = client.option(GO, &info_data("disk", &[3]));
    let data = |replies: Vec<OptionReply>| replies.into_iter().map(|r| (r.kind, r.data)).collect::<Vec<_>>();
    assert_eq!(data(told), data(entered));
}

#[test]
fn export_name_enters_with_the_zeroes_unless_they_are_declined() {
    let place = Place::new(MIB);
    let server = place.serve();
    for (client_flags, zeroes) in [(0, 124), (1, 124), (2, 0), (3, 0)] {
        let mut client = Client::with_flags(&server, client_flags);
        client.send_option(EXPORT_NAME, b"disk");
        let head: [u8; 10] = client.take();
        assert_eq!((be64(&head), be16(&head[8..])), (MIB, WRITABLE));
        assert_eq!(client.take_many(zeroes), vec![0; zeroes]);
        assert_eq!(client.read(512, 512), [0; 512]);
    }
}

#[test]
fn export_name_of_nobody_hangs_up() {
    let place = Place::new(MIB);
    let server = place.serve();
    let mut client = Client::connect(&server);
    client.send_option(EXPORT_NAME, b"other");
    assert!(client.is_hung_up());
}

#[test]
fn a_client_without_fixed_newstyle_may_only_name_an_export() {
    let place = Place::new(MIB);
    let server = place.serve();
    let mut client = Client::with_flags(&server, 0);
    client.send_option(LIST, &[]);
    assert!(client.is_hung_up());
}

#[test]
fn client_flags_that_were_not_offered_hang_up() {
    let place = Place::new(MIB);
    let server = place.serve();
    for flags in [4, 1 << 16, u32::MAX] {
        assert!(Client::with_flags(&server, flags).is_hung_up());
    }
    eventually("three breaches", || server.counters().breach_count == 3);
}

#[test]
fn list_names_all_exports_with_their_lines() {
    let place = Place::new(MIB);
    let server = place.serve();
    server.add_export("zweite Platte", Arc::new(DeviceExport::new(place.disk.clone()))).unwrap();
    let mut client = Client::connect(&server);
    let replies = client.option(LIST, &[]);
    let kinds: Vec<u32> = replies.iter().map(|r| r.kind).collect();
    assert_eq!(kinds, [2, 2, ACK]);
    assert_eq!(replies[0].data, b"\0\0\0\x04diska disk of a test");
    assert_eq!(replies[1].data, b"\0\0\0\x0dzweite Platte");
    assert_eq!(client.option(LIST, b"x")[0].kind, ERR_INVALID);
}

#[test]
fn abort_is_acknowledged_and_ends() {
    let place = Place::new(MIB);
    let server = place.serve();
    let mut client = Client::connect(&server);
    assert_eq!(client.option(ABORT, b"bye")[0].kind, ACK);
    assert!(client.is_hung_up());
}

#[test]
fn options_unknown_or_unreadable_are_errors_and_the_next_one_is_understood() {
    let place = Place::new(MIB);
    let server = place.serve();
    let mut client = Client::connect(&server);
    let bad_name = [&[0, 0, 0, 9][..], b"disk", &[0, 0]].concat();
    let cases: [(u32, &[u8], u32); 9] = [
        (4, &[], ERR_UNSUP),
        (11, &[], ERR_UNSUP),
        (u32::MAX, b"data", ERR_UNSUP),
        (GO, &[], ERR_INVALID),
        (GO, &bad_name, ERR_INVALID),
        (INFO, &info_data("other", &[]), ERR_UNKNOWN),
        (STRUCTURED_REPLY, b"x", ERR_INVALID),
        (STARTTLS, &[], ERR_POLICY),
        (SET_META, &meta_data("disk", &["base:allocation"]), ERR_INVALID),
    ];
    for (option, data, kind) in cases {
        let replies = client.option(option, data);
        assert_eq!(replies.iter().map(|r| r.kind).collect::<Vec<_>>(), [kind], "option {option}");
    }
    assert_eq!(client.option(GO, &info_data("disk", &[])).last().unwrap().kind, ACK);
}

#[test]
fn the_empty_name_is_the_only_export_and_nothing_when_there_are_two() {
    let place = Place::new(MIB);
    let server = place.serve();
    let replies = Client::connect(&server).option(INFO, &info_data("", &[]));
    assert!(replies.iter().any(|r| r.data == b"\0\x01disk"), "the canonical name is told unasked");
    server.add_export("second", Arc::new(DeviceExport::new(place.disk.clone()))).unwrap();
    assert_eq!(Client::connect(&server).option(INFO, &info_data("", &[]))[0].kind, ERR_UNKNOWN);
}

#[test]
fn a_read_only_export_says_so_and_offers_no_writing() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Arc::new(MemoryDevice::new("memory", MIB));
    let server = serve_export(folder.path(), DeviceExport::new(disk).read_only());
    let mut client = Client::connect(&server);
    client.option(STRUCTURED_REPLY, &[]);
    let replies = client.option(GO, &info_data("disk", &[]));
    // Flags, read-only, DF, multi, cache.
    assert_eq!(be16(&replies[0].data[10..]), 0b101_1000_0011);
    for kind in [TRIM, ZEROES] {
        assert_eq!(client.error(0, kind, 0, 512, &[]), 1);
    }
    assert_eq!(client.error(0, WRITE, 0, 512, &[1; 512]), 1);
    assert_eq!(client.read(0, 512), [0; 512]);
}

#[test]
fn structured_replies_add_df() {
    let place = Place::new(MIB);
    let server = place.serve();
    let mut client = Client::connect(&server);
    client.option(STRUCTURED_REPLY, &[]);
    let replies = client.option(INFO, &info_data("disk", &[]));
    assert_eq!(be16(&replies[0].data[10..]), WRITABLE | DF_FLAG);
}

/// An export that knows what is dirty, and allows one connection.
struct Knowing(MemoryDevice);

impl Export for Knowing {
    fn device(&self) -> &dyn BlockDevice {
        &self.0
    }
    fn can_multi_connect(&self) -> bool {
        false
    }
    fn has_dirty(&self) -> bool {
        true
    }
    fn dirty(&self, _: u64, length_bytes: u64) -> DiskResult<Vec<DirtyExtent>> {
        Ok(vec![DirtyExtent { length_bytes, is_dirty: false }])
    }
}

#[test]
fn several_connections_are_offered_only_where_the_export_allows_them() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve_export(folder.path(), Knowing(MemoryDevice::new("memory", MIB)));
    let replies = Client::connect(&server).option(INFO, &info_data("disk", &[]));
    assert_eq!(be16(&replies[0].data[10..]), WRITABLE & !(1 << 8));
}

#[test]
fn contexts_are_listed_by_name_by_namespace_and_all() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve_export(folder.path(), Knowing(MemoryDevice::new("memory", MIB)));
    let both: [&str; 2] = ["base:allocation", "secondsite:dirty"];
    let cases: [(&[&str], &[&str]); 6] = [
        (&[], &both),
        (&["base:"], &both[..1]),
        (&["secondsite:"], &both[1..]),
        (&["secondsite:dirty", "base:allocation"], &both),
        (&["qemu:dirty-bitmap:x", "base:other", "nocolon"], &[]),
        (&["base:allocation", "base:allocation"], &both[..1]),
    ];
    for (queries, expected) in cases {
        let mut client = Client::connect(&server);
        client.option(STRUCTURED_REPLY, &[]);
        let replies = client.option(LIST_META, &meta_data("disk", queries));
        assert_eq!(context_names(&replies), expected, "{queries:?}");
        assert!(replies[..replies.len() - 1].iter().all(|r| be32(&r.data) == 0), "ids are zero in a list");
    }
}

#[test]
fn contexts_are_set_by_exact_name_and_have_ids_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve_export(folder.path(), Knowing(MemoryDevice::new("memory", MIB)));
    let mut client = Client::connect(&server);
    client.option(STRUCTURED_REPLY, &[]);
    let replies =
        client.option(SET_META, &meta_data("disk", &["base:", "secondsite:dirty", "base:allocation"]));
    assert_eq!(context_names(&replies), ["base:allocation", "secondsite:dirty"]);
    assert_ne!(be32(&replies[0].data), be32(&replies[1].data));
    assert_eq!(context_names(&client.option(SET_META, &meta_data("disk", &[]))), [""; 0]);
}

#[test]
fn the_dirty_context_is_offered_only_where_something_is_known() {
    let place = Place::new(MIB);
    let server = place.serve();
    let mut client = Client::connect(&server);
    client.option(STRUCTURED_REPLY, &[]);
    let replies = client.option(SET_META, &meta_data("disk", &["secondsite:dirty"]));
    assert_eq!(context_names(&replies), [""; 0]);
    client.option(GO, &info_data("disk", &[]));
    assert_eq!(client.error(0, STATUS, 0, 512, &[]), 22);
}

#[test]
fn contexts_of_another_export_or_of_a_failed_setting_are_not_used() {
    let place = Place::new(MIB);
    let server = place.serve();
    server.add_export("second", Arc::new(DeviceExport::new(place.disk.clone()))).unwrap();
    for spoil in [meta_data("second", &["base:allocation"]), meta_data("nobody", &["base:allocation"])] {
        let mut client = Client::connect(&server);
        client.option(STRUCTURED_REPLY, &[]);
        client.option(SET_META, &meta_data("disk", &["base:allocation"]));
        client.option(SET_META, &spoil);
        client.option(GO, &info_data("disk", &[]));
        assert_eq!(client.error(0, STATUS, 0, 512, &[]), 22);
    }
}

#[test]
fn tcp_serves_the_same() {
    let place = Place::new(MIB);
    let mut options = place.options();
    options.listen = Listen::Tcp("127.0.0.1:0".parse().unwrap());
    let server = NbdServer::start(options).unwrap();
    let Listen::Tcp(address) = server.address() else { panic!("no address") };
    assert_ne!(address.port(), 0);
    let mut client = Client::enter(&server, "disk", true);
    client.write(512, &[5; 512]);
    assert_eq!(client.read(0, 1024), [[0; 512], [5; 512]].concat());
}

#[test]
fn options_start_with_a_server_that_has_no_export() {
    let folder = tempfile::tempdir().unwrap();
    let server = NbdServer::start(ServerOptions::new(Listen::Unix(folder.path().join("s")))).unwrap();
    assert_eq!(Client::connect(&server).option(LIST, &[]).len(), 1);
    assert_eq!(Client::connect(&server).option(GO, &info_data("", &[]))[0].kind, ERR_UNKNOWN);
}

fn context_names(replies: &[OptionReply]) -> Vec<String> {
    assert_eq!(replies.last().unwrap().kind, ACK);
    let contexts = replies.iter().filter(|reply| reply.kind == 4);
    contexts.map(|reply| String::from_utf8(reply.data[4..].to_vec()).unwrap()).collect()
}
