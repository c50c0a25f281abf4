//! Listening, stopping, exports that come and go.

#![allow(clippy::unwrap_used, reason = "helpers of a test state their expectations with unwrap")]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use secondsite_disk::faults::MemoryDevice;
use secondsite_disk::{BlockDevice, Result as DiskResult};
use secondsite_nbd::{
    DeviceExport, Export, Limits, Listen, NbdError, NbdServer, ServerOptions, WriteRequest,
};
use support::*;

const MIB: u64 = 1 << 20;

fn code_of(result: Result<NbdServer, NbdError>) -> &'static str {
    let error = result.err().expect("the server started");
    assert!(error.hint().ends_with('.'));
    error.code()
}

#[test]
fn the_socket_is_for_its_owner_alone_and_goes_with_the_server() {
    let place = Place::new(MIB);
    let server = place.serve();
    let mode = std::fs::metadata(place.socket_path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    server.stop();
    assert!(!place.socket_path().exists());
    server.stop();
}

#[test]
fn the_socket_of_a_dead_server_is_replaced() {
    let place = Place::new(MIB);
    // Dropping a listener leaves its file, as the death of a process does.
    drop(UnixListener::bind(place.socket_path()).unwrap());
    let server = place.serve();
    Client::enter(&server, "disk", false).write(0, &[1; 512]);
}

#[test]
fn the_socket_of_a_live_server_is_refused_and_left_alone() {
    let place = Place::new(MIB);
    let server = place.serve();
    assert_eq!(code_of(NbdServer::start(place.options())), "NBD_ADDRESS_IN_USE");
    Client::enter(&server, "disk", false).write(0, &[1; 512]);
}

#[test]
fn a_file_that_is_no_socket_is_never_removed() {
    let place = Place::new(MIB);
    std::fs::write(place.socket_path(), b"precious").unwrap();
    assert_eq!(code_of(NbdServer::start(place.options())), "NBD_ADDRESS_IN_USE");
    assert_eq!(std::fs::read(place.socket_path()).unwrap(), b"precious");
}

#[test]
fn of_many_servers_started_at_once_on_one_socket_one_lives() {
    let place = Place::new(MIB);
    drop(UnixListener::bind(place.socket_path()).unwrap());
    let started: Vec<Result<NbdServer, NbdError>> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..8).map(|_| scope.spawn(|| NbdServer::start(place.options()))).collect();
        all.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let (live, refused): (Vec<_>, Vec<_>) = started.into_iter().partition(Result::is_ok);
    assert_eq!((live.len(), refused.len()), (1, 7));
    refused.into_iter().for_each(|result| assert_eq!(code_of(result), "NBD_ADDRESS_IN_USE"));
    Client::enter(live[0].as_ref().unwrap(), "disk", false).write(0, &[1; 512]);
}

#[test]
fn stopping_leaves_alone_a_socket_that_somebody_else_put_there() {
    let place = Place::new(MIB);
    let server = place.serve();
    std::fs::remove_file(place.socket_path()).unwrap();
    let other = UnixListener::bind(place.socket_path()).unwrap();
    server.stop();
    assert!(place.socket_path().exists());
    drop(other);
}

#[test]
fn addresses_that_cannot_be_have_their_code() {
    let place = Place::new(MIB);
    let server = NbdServer::start(ServerOptions::new(Listen::Tcp("127.0.0.1:0".parse().unwrap()))).unwrap();
    assert_eq!(code_of(NbdServer::start(ServerOptions::new(server.address().clone()))), "NBD_ADDRESS_IN_USE");
    let nowhere = Listen::Unix(place.folder.path().join("none/socket"));
    assert_eq!(code_of(NbdServer::start(ServerOptions::new(nowhere))), "NBD_LISTEN_FAILED");
    let long = Listen::Unix(place.folder.path().join("x".repeat(200)));
    assert_eq!(code_of(NbdServer::start(ServerOptions::new(long))), "NBD_LISTEN_FAILED");
}

#[test]
fn limits_nobody_could_live_with_are_refused() {
    let place = Place::new(MIB);
    let good = Limits::default();
    let bad = [
        Limits { request_bytes_max: 512, ..good.clone() },
        Limits { request_bytes_max: 4097, ..good.clone() },
        Limits { request_bytes_max: (1 << 25) + 512, ..good.clone() },
        Limits { option_bytes_max: 100, ..good.clone() },
        Limits { connection_count_max: 0, ..good.clone() },
        Limits { handshake_time_ms: 0, ..good },
    ];
    for limits in bad {
        let mut options = place.options();
        options.limits = limits;
        assert_eq!(code_of(NbdServer::start(options)), "NBD_LIMIT_INVALID");
    }
    assert!(!place.socket_path().exists());
}

#[test]
fn names_of_exports_are_checked_and_unique() {
    let place = Place::new(MIB);
    let server = place.serve();
    let export = || Arc::new(DeviceExport::new(place.disk.clone()));
    assert_eq!(server.add_export("disk", export()).unwrap_err().code(), "NBD_EXPORT_EXISTS");
    for name in ["a\0b".to_string(), "x".repeat(4097)] {
        assert_eq!(server.add_export(&name, export()).unwrap_err().code(), "NBD_EXPORT_NAME_INVALID");
    }
    assert_eq!(server.remove_export("other").unwrap_err().code(), "NBD_EXPORT_NOT_FOUND");
    server.add_export(&"x".repeat(4096), export()).unwrap();
    assert_eq!(server.export_names().len(), 2);
}

#[test]
fn a_removed_export_ends_its_connections_and_no_others() {
    let place = Place::new(MIB);
    let server = place.serve();
    let second = Arc::new(MemoryDevice::new("second", MIB));
    server.add_export("second", Arc::new(DeviceExport::new(second.clone()))).unwrap();
    let mut stays = Client::enter(&server, "disk", false);
    let mut goes = Client::enter(&server, "second", false);
    goes.write(0, &[1; 512]);
    server.remove_export("second").unwrap();
    assert_eq!(Arc::strong_count(&second), 1, "no session holds the disk any more");
    assert!(goes.is_hung_up());
    stays.write(0, &[1; 512]);
    assert_eq!(Client::connect(&server).option(GO, &info_data("second", &[]))[0].kind, ERR_UNKNOWN);
}

/// An export whose writes wait until they are let go.
struct Slow {
    device: Arc<MemoryDevice>,
    is_writing: Arc<AtomicBool>,
    may_go: Arc<AtomicBool>,
}

impl Export for Slow {
    fn device(&self) -> &dyn BlockDevice {
        &*self.device
    }
    fn write_batch(&self, batch: &[WriteRequest<'_>]) -> Vec<DiskResult<()>> {
        self.is_writing.store(true, Ordering::Release);
        while !self.may_go.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        batch.iter().map(|write| self.device.write_at(write.offset, write.data)).collect()
    }
}

#[test]
fn stopping_waits_for_the_write_under_way_and_answers_it() {
    for length in [512u32, 256 << 10] {
        let folder = tempfile::tempdir().unwrap();
        let device = Arc::new(MemoryDevice::new("memory", MIB));
        let (is_writing, may_go) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let slow = Slow { device: device.clone(), is_writing: is_writing.clone(), may_go: may_go.clone() };
        let server = serve_export(folder.path(), slow);
        let mut client = Client::enter(&server, "disk", false);
        client.send(&request(0, WRITE, 7, 0, length, &vec![5; length as usize]));
        eventually("the write is under way", || is_writing.load(Ordering::Acquire));
        std::thread::scope(|scope| {
            let stopping = scope.spawn(|| server.stop());
            eventually("the server takes nobody", || !folder.path().join("socket").exists());
            assert!(!stopping.is_finished());
            may_go.store(true, Ordering::Release);
            stopping.join().unwrap();
        });
        assert_eq!(client.reply(), Reply::Simple { error: 0, cookie: 7 });
        assert!(client.is_hung_up());
        assert_eq!(device.bytes()[..512], [5; 512]);
        assert_eq!(server.counters().connection_count, 0);
    }
}

#[test]
fn stopping_cuts_off_a_client_that_takes_no_replies() {
    let place = Place::new(8 * MIB);
    let mut options = place.options();
    options.limits.stop_grace_ms = 50;
    let server = NbdServer::start(options).unwrap();
    let mut stuck = Client::enter(&server, "disk", false);
    let reads = (0..8).flat_map(|i| request(0, READ, i, 0, 4 << 20, &[]));
    stuck.send(&reads.collect::<Vec<u8>>());
    eventually("a read is carried out", || server.counters().read_bytes + 1 > 0);
    server.stop();
    assert_eq!(server.counters().connection_count, 0);
}

#[test]
fn stopping_ends_clients_in_the_handshake_and_idle_ones() {
    let place = Place::new(MIB);
    let server = place.serve();
    let mut clients = vec![Client::connect(&server), Client::enter(&server, "disk", true)];
    let mut half = Client::enter(&server, "disk", true);
    half.send(&request(0, WRITE, 1, 0, 512, &[1; 511]));
    clients.push(half);
    server.stop();
    assert!(clients.iter_mut().all(Client::is_hung_up));
    assert_eq!(place.disk.stored_bytes(), 0);
}

#[test]
fn dropping_the_server_stops_it() {
    let place = Place::new(MIB);
    let server = place.serve();
    let mut client = Client::enter(&server, "disk", false);
    drop(server);
    assert!(client.is_hung_up());
    assert!(!place.socket_path().exists());
    place.serve();
}
