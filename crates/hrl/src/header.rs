//! The log header, [MS-HRL] 2.2: the first 4096 bytes of a log.

use std::path::Path;

use crate::bytes::{get, get_u16, get_u32, get_u64, put};
use crate::checksum::byte_sum_checksum_without;
use crate::error::{HrlError, Place, Result};
use crate::id::LogId;

/// Size of the log header.
pub const HEADER_BYTES: usize = 4096;
/// Size of the metadata blocks we write ([MS-HRL] default).
pub const METADATA_BYTES: u32 = 4096;
/// LogFormatVersion 2, the one we write.
pub const VERSION_2: u32 = 0x0002_0000;
/// LogFormatVersion 1: Windows Server 2012; has no data-write GUID.
pub const VERSION_1: u32 = 0x0001_0000;
/// CreatorApplication of a log in our profile (may hold zero and discard entries).
pub const CREATOR_PROFILE: [u8; 4] = *b"sste";
/// CreatorApplication of a log that any Hyper-V reader accepts.
pub const CREATOR_STRICT: [u8; 4] = *b"ct\0\0";

const COOKIE: [u8; 8] = *b"msctlog ";
const CREATOR_VERSION: u32 = 0x000A_0000;
const CHECKSUM: usize = 40;
/// Larger metadata blocks than this are refused: a block is held in memory.
const METADATA_BYTES_MAX: u32 = 1 << 20;

/// The fields of a log header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogHeader {
    /// LogFormatVersion: [`VERSION_1`] or [`VERSION_2`].
    pub version: u32,
    /// TimeStamp of the creation, seconds since 2000.
    pub created_seconds: u32,
    /// CreatorApplication.
    pub creator_application: [u8; 4],
    /// CreatorVersion, not interpreted.
    pub creator_version: u32,
    /// OriginalSize.
    pub original_size_bytes: u64,
    /// CurrentSize.
    pub current_size_bytes: u64,
    /// EOLLocation: end of the last metadata block; 0 while the log is open.
    pub end_of_log: u64,
    /// ErrorCode.
    pub error_code: i32,
    /// MetadataSize, a multiple of 512.
    pub metadata_size_bytes: u32,
    /// UniqueId.
    pub id: LogId,
    /// PreviousUniqueId; [`LogId::NONE`] in the first log of a disk.
    pub previous_id: LogId,
    /// LastModifiedTimeStamp, seconds since 2000.
    pub modified_seconds: u32,
    /// TotalMetadataEntries.
    pub entry_count: u64,
    /// FileType.
    pub file_type: u32,
    /// Flags.
    pub flags: u16,
    /// Vhd2DataWriteGuid: the disk the log belongs to. `None` in version 1.
    pub disk_id: Option<[u8; 16]>,
}

impl LogHeader {
    /// The header of an open log of ours.
    pub fn open(id: LogId, previous_id: LogId, disk_id: [u8; 16], created_seconds: u32) -> Self {
        Self {
            version: VERSION_2,
            created_seconds,
            creator_application: CREATOR_PROFILE,
            creator_version: CREATOR_VERSION,
            original_size_bytes: 0,
            current_size_bytes: 0,
            end_of_log: 0,
            error_code: 0,
            metadata_size_bytes: METADATA_BYTES,
            id,
            previous_id,
            modified_seconds: created_seconds,
            entry_count: 0,
            file_type: 0,
            flags: 0,
            disk_id: Some(disk_id),
        }
    }

    /// Whether the log was closed properly.
    pub fn is_sealed(&self) -> bool {
        self.end_of_log != 0
    }

    /// The 4096 bytes, checksum included.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut b = [0u8; HEADER_BYTES];
        put(&mut b, 0, &COOKIE);
        put(&mut b, 8, &self.version.to_le_bytes());
        put(&mut b, 12, &self.created_seconds.to_le_bytes());
        put(&mut b, 16, &self.creator_application);
        put(&mut b, 20, &self.creator_version.to_le_bytes());
        put(&mut b, 24, &self.original_size_bytes.to_le_bytes());
        put(&mut b, 32, &self.current_size_bytes.to_le_bytes());
        put(&mut b, 44, &self.end_of_log.to_le_bytes());
        put(&mut b, 52, &self.error_code.to_le_bytes());
        put(&mut b, 56, &self.metadata_size_bytes.to_le_bytes());
        put(&mut b, 60, &self.id.0);
        put(&mut b, 76, &self.previous_id.0);
        put(&mut b, 92, &self.modified_seconds.to_le_bytes());
        put(&mut b, 96, &self.entry_count.to_le_bytes());
        put(&mut b, 104, &self.file_type.to_le_bytes());
        put(&mut b, 108, &self.flags.to_le_bytes());
        put(&mut b, 110, &self.disk_id.unwrap_or_default());
        let checksum = byte_sum_checksum_without(&b, CHECKSUM..CHECKSUM + 4);
        put(&mut b, CHECKSUM, &checksum.to_le_bytes());
        b
    }

    /// Reads and checks a header.
    ///
    /// # Errors
    /// LOG_NOT_HRL (cookie), LOG_VERSION_UNSUPPORTED, LOG_HEADER_CORRUPT (checksum, MetadataSize, EOLLocation).
    pub fn parse(b: &[u8; HEADER_BYTES], path: &Path) -> Result<Self> {
        if b[..8] != COOKIE {
            return Err(HrlError::NotHrl(Place::new(path, 0, "no `msctlog ` at the beginning")));
        }
        let version = get_u32(b, 8);
        if version != VERSION_1 && version != VERSION_2 {
            let reason = format!("LogFormatVersion {version:#010x}, known are 0x00010000 and 0x00020000");
            return Err(HrlError::VersionUnsupported(Place::new(path, 8, reason)));
        }
        let wanted = byte_sum_checksum_without(b, CHECKSUM..CHECKSUM + 4);
        let found = get_u32(b, CHECKSUM);
        if wanted != found {
            let reason = format!("checksum is {found:#010x}, the bytes give {wanted:#010x}");
            return Err(HrlError::HeaderCorrupt(Place::new(path, CHECKSUM as u64, reason)));
        }
        let header = Self::fields(b, version);
        header.check(path)?;
        Ok(header)
    }

    fn fields(b: &[u8; HEADER_BYTES], version: u32) -> Self {
        Self {
            version,
            created_seconds: get_u32(b, 12),
            creator_application: get(b, 16),
            creator_version: get_u32(b, 20),
            original_size_bytes: get_u64(b, 24),
            current_size_bytes: get_u64(b, 32),
            end_of_log: get_u64(b, 44),
            error_code: i32::from_le_bytes(get(b, 52)),
            metadata_size_bytes: get_u32(b, 56),
            id: LogId(get(b, 60)),
            previous_id: LogId(get(b, 76)),
            modified_seconds: get_u32(b, 92),
            entry_count: get_u64(b, 96),
            file_type: get_u32(b, 104),
            flags: get_u16(b, 108),
            disk_id: (version == VERSION_2).then(|| get(b, 110)),
        }
    }

    fn check(&self, path: &Path) -> Result<()> {
        let size = self.metadata_size_bytes;
        if size == 0 || !size.is_multiple_of(512) || size > METADATA_BYTES_MAX {
            let reason = format!("MetadataSize {size} is not a multiple of 512 up to {METADATA_BYTES_MAX}");
            return Err(HrlError::HeaderCorrupt(Place::new(path, 56, reason)));
        }
        let first_end = HEADER_BYTES as u64 + u64::from(size);
        if self.is_sealed() && self.end_of_log < first_end {
            let reason = format!("EOLLocation {} leaves no room for a metadata block", self.end_of_log);
            return Err(HrlError::HeaderCorrupt(Place::new(path, 44, reason)));
        }
        Ok(())
    }
}
