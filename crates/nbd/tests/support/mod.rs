//! A client written by hand from NBD `doc/proto.md`, sharing nothing with the server, and what tests stand on.

#![allow(clippy::unwrap_used, reason = "helpers of a test state their expectations with unwrap")]
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use secondsite_disk::BlockDevice;
use secondsite_disk::faults::MemoryDevice;
use secondsite_nbd::{DeviceExport, Export, Listen, NbdServer, ServerOptions};

pub const EXPORT_NAME: u32 = 1;
pub const ABORT: u32 = 2;
pub const LIST: u32 = 3;
pub const STARTTLS: u32 = 5;
pub const INFO: u32 = 6;
pub const GO: u32 = 7;
pub const STRUCTURED_REPLY: u32 = 8;
pub const LIST_META: u32 = 9;
pub const SET_META: u32 = 10;

pub const ACK: u32 = 1;
pub const ERR_UNSUP: u32 = 0x8000_0001;
pub const ERR_POLICY: u32 = 0x8000_0002;
pub const ERR_INVALID: u32 = 0x8000_0003;
pub const ERR_TLS_REQD: u32 = 0x8000_0005;
pub const ERR_UNKNOWN: u32 = 0x8000_0006;

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISC: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const CACHE: u16 = 5;
pub const ZEROES: u16 = 6;
pub const STATUS: u16 = 7;

pub const FUA: u16 = 1;
pub const NO_HOLE: u16 = 2;
pub const DF: u16 = 4;
pub const REQ_ONE: u16 = 8;
pub const FAST_ZERO: u16 = 16;

/// A test that hangs fails after this.
const PATIENCE: Duration = Duration::from_secs(60);

/// A socket of either kind.
pub trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// A reply to an option.
#[derive(Debug, PartialEq, Eq)]
pub struct OptionReply {
    pub option: u32,
    pub kind: u32,
    pub data: Vec<u8>,
}

/// A reply to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Simple { error: u32, cookie: u64 },
    Chunk { is_last: bool, kind: u16, cookie: u64, payload: Vec<u8> },
}

pub struct Client {
    pub stream: Box<dyn Stream>,
    pub server_flags: u16,
}

impl Client {
    /// Connects, exchanges flags (fixed newstyle, no zeroes).
    pub fn connect(server: &NbdServer) -> Self {
        Self::with_flags(server, 3)
    }

    pub fn with_flags(server: &NbdServer, client_flags: u32) -> Self {
        Self::greet(socket(server), client_flags)
    }

    pub fn greet(mut stream: Box<dyn Stream>, client_flags: u32) -> Self {
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        stream.write_all(&client_flags.to_be_bytes()).unwrap();
        Self { stream, server_flags: u16::from_be_bytes([greeting[16], greeting[17]]) }
    }

    /// In transmission on the export of this name, with structured replies or without.
    pub fn enter(server: &NbdServer, name: &str, is_structured: bool) -> Self {
        let mut client = Self::connect(server);
        if is_structured {
            assert_eq!(client.option(STRUCTURED_REPLY, &[]).last().unwrap().kind, ACK);
        }
        assert_eq!(client.option(GO, &info_data(name, &[])).last().unwrap().kind, ACK);
        client
    }

    pub fn send_option(&mut self, option: u32, data: &[u8]) {
        let mut bytes = b"IHAVEOPT".to_vec();
        bytes.extend(option.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        self.stream.write_all(&bytes).unwrap();
    }

    /// Sends an option; its replies up to the last.
    pub fn option(&mut self, option: u32, data: &[u8]) -> Vec<OptionReply> {
        self.send_option(option, data);
        let mut replies = Vec::new();
        loop {
            let reply = self.option_reply();
            assert_eq!(reply.option, option);
            let is_last = reply.kind == ACK || reply.kind >= 1 << 31;
            replies.push(reply);
            if is_last {
                return replies;
            }
        }
    }

    pub fn option_reply(&mut self) -> OptionReply {
        let head: [u8; 20] = self.take();
        assert_eq!(head[..8], [0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9]);
        let data = self.take_many(be32(&head[16..]) as usize);
        OptionReply { option: be32(&head[8..]), kind: be32(&head[12..]), data }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn reply(&mut self) -> Reply {
        let head: [u8; 16] = self.take();
        let cookie = be64(&head[8..]);
        match be32(&head) {
            0x6744_6698 => Reply::Simple { error: be32(&head[4..]), cookie },
            0x668e_33ef => {
                let length: [u8; 4] = self.take();
                let payload = self.take_many(u32::from_be_bytes(length) as usize);
                let is_last = be16(&head[4..]) == 1;
                Reply::Chunk { is_last, kind: be16(&head[6..]), cookie, payload }
            }
            magic => panic!("reply with magic {magic:#x}"),
        }
    }

    /// Sends one request and takes its only reply.
    pub fn ask(&mut self, flags: u16, kind: u16, offset: u64, length: u32, payload: &[u8]) -> Reply {
        self.send(&request(flags, kind, 77, offset, length, payload));
        self.reply()
    }

    /// The error of a request that returns no data, whatever the form of the reply; 0 for none.
    pub fn error(&mut self, flags: u16, kind: u16, offset: u64, length: u32, payload: &[u8]) -> u32 {
        error_of(&self.ask(flags, kind, offset, length, payload))
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) {
        assert_eq!(self.error(0, WRITE, offset, data.len() as u32, data), 0);
    }

    /// The bytes of a range, over either form of reply.
    pub fn read(&mut self, offset: u64, length: u32) -> Vec<u8> {
        match self.ask(0, READ, offset, length, &[]) {
            Reply::Simple { error: 0, .. } => self.take_many(length as usize),
            Reply::Chunk { is_last: true, kind: 1, payload, .. } => {
                assert_eq!(be64(&payload), offset);
                payload[8..].to_vec()
            }
            other => panic!("a read answered by {other:?}"),
        }
    }

    pub fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    pub fn take_many(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Whether the server has hung up, having sent nothing more.
    pub fn is_hung_up(&mut self) -> bool {
        match self.stream.read(&mut [0; 1]) {
            Ok(count) => count == 0,
            Err(e) => e.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}

/// The errno of a reply; 0 for success.
pub fn error_of(reply: &Reply) -> u32 {
    match reply {
        Reply::Simple { error, .. } => *error,
        Reply::Chunk { kind, payload, is_last: true, .. } if *kind >= 1 << 15 => be32(payload),
        other => panic!("no plain answer: {other:?}"),
    }
}

/// A socket to a server.
pub fn socket(server: &NbdServer) -> Box<dyn Stream> {
    match server.address() {
        Listen::Unix(path) => {
            let stream = UnixStream::connect(path).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.set_write_timeout(Some(PATIENCE)).unwrap();
            Box::new(stream)
        }
        Listen::Tcp(address) => {
            let stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.set_write_timeout(Some(PATIENCE)).unwrap();
            Box::new(stream)
        }
    }
}

pub fn request(flags: u16, kind: u16, cookie: u64, offset: u64, length: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x25, 0x60, 0x95, 0x13];
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Data of INFO and GO.
pub fn info_data(name: &str, kinds: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend((kinds.len() as u16).to_be_bytes());
    kinds.iter().for_each(|kind| data.extend(kind.to_be_bytes()));
    data
}

/// Data of LIST_META_CONTEXT and SET_META_CONTEXT.
pub fn meta_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend((queries.len() as u32).to_be_bytes());
    for query in queries {
        data.extend((query.len() as u32).to_be_bytes());
        data.extend(query.as_bytes());
    }
    data
}

pub fn be16(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes[1]])
}

pub fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().unwrap())
}

pub fn be64(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes[..8].try_into().unwrap())
}

/// A disk in memory and a server of it under the name "disk", on a Unix socket in a folder of its own.
pub struct Place {
    pub folder: tempfile::TempDir,
    pub disk: Arc<MemoryDevice>,
}

impl Place {
    pub fn new(size_bytes: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { folder, disk: Arc::new(MemoryDevice::new("memory", size_bytes)) }
    }

    pub fn socket_path(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    pub fn options(&self) -> ServerOptions {
        let export = DeviceExport::new(self.disk.clone()).with_description("a disk of a test");
        ServerOptions::new(Listen::Unix(self.socket_path())).with_export("disk", Arc::new(export))
    }

    pub fn serve(&self) -> NbdServer {
        NbdServer::start(self.options()).unwrap()
    }
}

/// A server of one export under the name "disk".
pub fn serve_export(folder: &Path, export: impl Export + 'static) -> NbdServer {
    let options = ServerOptions::new(Listen::Unix(folder.join("socket")));
    NbdServer::start(options.with_export("disk", Arc::new(export))).unwrap()
}

/// A server of one device under the name "disk".
pub fn serve_device(folder: &Path, device: Arc<dyn BlockDevice>) -> NbdServer {
    serve_export(folder, DeviceExport::new(device))
}

/// Random numbers from a seed (SplitMix64).
pub struct SplitMix(pub u64);

impl SplitMix {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }
}

/// Seeds of random tests: a few, or many with SECONDSITE_SLOW.
pub fn seeds(few: u64, many: u64) -> std::ops::Range<u64> {
    0..if std::env::var_os("SECONDSITE_SLOW").is_some() { many } else { few }
}

/// Waits until `is_so`; the test fails when it never is.
pub fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Says that a test cannot run here, on standard error and in the file named by SECONDSITE_SKIP_LOG.
pub fn skip(test: &str, reason: &str) {
    // A log that cannot be written leaves the line on standard error.
    let _ = writeln!(io::stderr(), "SKIPPED {test}: {reason}");
    let Some(path) = std::env::var_os("SECONDSITE_SKIP_LOG") else { return };
    if let Ok(mut log) = std::fs::OpenOptions::new().append(true).create(true).open(path) {
        let _ = writeln!(log, "{test}\t{reason}");
    }
}
