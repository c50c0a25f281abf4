//! The index, `.hrx`: one 64-byte record per entry, beside the log.
//!
//! It carries what [MS-HRL] lacks (sequence number, nanoseconds, a real hash) and makes a log readable that was not
//! closed. Records lie at fixed places, so the n-th is found without reading those before it, and never straddle a
//! 512-byte sector, which a disk writes whole or not at all.

use std::path::Path;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::bytes::{get, get_u32, get_u64, put};
use crate::entry::{Entry, Operation};
use crate::error::{HrlError, Place, Result};
use crate::file::LogFile;
use crate::id::LogId;

/// Size of the index header.
pub const INDEX_HEADER_BYTES: usize = 4096;
/// Size of a record.
pub const RECORD_BYTES: usize = 64;
const _: () = assert!(512 % RECORD_BYTES == 0 && INDEX_HEADER_BYTES.is_multiple_of(512));

const MAGIC: [u8; 8] = *b"SSTEHRX1";
const VERSION: u32 = 1;
const HEADER_CHECK: usize = INDEX_HEADER_BYTES - 8;
const RECORD_CHECK: usize = RECORD_BYTES - 8;

/// The fields of an index header: who the log is, and its secret.
#[derive(Clone, PartialEq, Eq)]
pub struct IndexHeader {
    /// UniqueId of the log.
    pub id: LogId,
    /// PreviousUniqueId of the log.
    pub previous_id: LogId,
    /// The disk (Vhd2DataWriteGuid of the log).
    pub disk_id: [u8; 16],
    /// The secret of the log, which keys the seals of its blocks. Never shown.
    pub key: [u8; 32],
    /// Sequence number of the first entry.
    pub first_sequence: u64,
    /// When the log was created, Unix nanoseconds.
    pub created_ns: u64,
    /// MetadataSize of the log.
    pub metadata_size_bytes: u32,
}

impl std::fmt::Debug for IndexHeader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IndexHeader")
            .field("id", &self.id)
            .field("previous_id", &self.previous_id)
            .field("first_sequence", &self.first_sequence)
            .field("created_ns", &self.created_ns)
            .finish_non_exhaustive()
    }
}

impl IndexHeader {
    /// The 4096 bytes.
    pub fn encode(&self) -> [u8; INDEX_HEADER_BYTES] {
        let mut b = [0; INDEX_HEADER_BYTES];
        put(&mut b, 0, &MAGIC);
        put(&mut b, 8, &VERSION.to_le_bytes());
        put(&mut b, 12, &(RECORD_BYTES as u32).to_le_bytes());
        put(&mut b, 16, &self.id.0);
        put(&mut b, 32, &self.previous_id.0);
        put(&mut b, 48, &self.disk_id);
        put(&mut b, 64, &self.key);
        put(&mut b, 96, &self.first_sequence.to_le_bytes());
        put(&mut b, 104, &self.created_ns.to_le_bytes());
        put(&mut b, 112, &self.metadata_size_bytes.to_le_bytes());
        let check = xxh3_64(&b[..HEADER_CHECK]);
        put(&mut b, HEADER_CHECK, &check.to_le_bytes());
        b
    }

    /// Reads and checks a header.
    ///
    /// # Errors
    /// LOG_INDEX_MISMATCH when it is damaged or no index, LOG_VERSION_UNSUPPORTED.
    pub fn parse(b: &[u8; INDEX_HEADER_BYTES], path: &Path) -> Result<Self> {
        let wrong = |offset, reason: &str| Err(HrlError::IndexMismatch(Place::new(path, offset, reason)));
        if b[..8] != MAGIC {
            return wrong(0, "no `SSTEHRX1` at the beginning");
        }
        if xxh3_64(&b[..HEADER_CHECK]) != get_u64(b, HEADER_CHECK) {
            return wrong(HEADER_CHECK as u64, "checksum of the index header is wrong");
        }
        let (version, record_bytes) = (get_u32(b, 8), get_u32(b, 12));
        if version != VERSION || record_bytes as usize != RECORD_BYTES {
            let reason = format!("index version {version} with records of {record_bytes} bytes");
            return Err(HrlError::VersionUnsupported(Place::new(path, 8, reason)));
        }
        Ok(Self {
            id: LogId(get(b, 16)),
            previous_id: LogId(get(b, 32)),
            disk_id: get(b, 48),
            key: get(b, 64),
            first_sequence: get_u64(b, 96),
            created_ns: get_u64(b, 104),
            metadata_size_bytes: get_u32(b, 112),
        })
    }

    /// Reads the header of an index file.
    ///
    /// # Errors
    /// As [`IndexHeader::parse`], and LOG_READ_FAILED.
    pub fn read<F: LogFile + ?Sized>(index: &F) -> Result<Self> {
        let mut b = [0; INDEX_HEADER_BYTES];
        match index.read_exact_at(&mut b, 0) {
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                let reason = "index is shorter than its header";
                Err(HrlError::IndexMismatch(Place::new(index.path(), 0, reason)))
            }
            Err(e) => Err(HrlError::read(index.path(), 0, "read the index header", e)),
            Ok(()) => Self::parse(&b, index.path()),
        }
    }

    /// Seed of the record checks: a recycled index file holds no record of this log.
    pub fn record_seed(&self) -> u64 {
        get_u64(&self.key, 0)
    }
}

/// Where the n-th record stands.
pub fn record_offset(index: u64) -> u64 {
    INDEX_HEADER_BYTES as u64 + index * RECORD_BYTES as u64
}

/// The 64 bytes of an entry's record.
pub fn encode_record(entry: &Entry, seed: u64) -> [u8; RECORD_BYTES] {
    let mut b = [0; RECORD_BYTES];
    put(&mut b, 0, &entry.sequence.to_le_bytes());
    put(&mut b, 8, &entry.time_ns.to_le_bytes());
    put(&mut b, 16, &entry.offset.to_le_bytes());
    put(&mut b, 24, &entry.log_offset.to_le_bytes());
    put(&mut b, 32, &entry.length_bytes.to_le_bytes());
    b[36] = entry.operation.code();
    put(&mut b, 40, &entry.data_hash.unwrap_or(0).to_le_bytes());
    put(&mut b, 48, &entry.data_checksum.to_le_bytes());
    let check = xxh3_64_with_seed(&b[..RECORD_CHECK], seed);
    put(&mut b, RECORD_CHECK, &check.to_le_bytes());
    b
}

/// The entry of a record; `None` when the record was not written for this log or is damaged.
pub fn parse_record(b: &[u8], seed: u64) -> Option<Entry> {
    let b = &b[..RECORD_BYTES];
    if xxh3_64_with_seed(&b[..RECORD_CHECK], seed) != get_u64(b, RECORD_CHECK) {
        return None;
    }
    let (offset, length_bytes) = (get_u64(b, 16), get_u32(b, 32));
    offset.checked_add(u64::from(length_bytes))?;
    Some(Entry {
        operation: Operation::from_code(b[36])?,
        offset,
        length_bytes,
        time_ns: get_u64(b, 8),
        sequence: get_u64(b, 0),
        log_offset: get_u64(b, 24),
        data_checksum: get_u32(b, 48),
        data_hash: Some(get_u64(b, 40)),
    })
}
