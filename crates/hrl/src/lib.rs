//! The .hrl change log of public format [MS-HRL]: write, seal, recover, read, inspect, coalesce, export.
//!
//! A log is two files: `<name>.hrl`, pure [MS-HRL] version 2, and `<name>.hrx`, the index with what that format
//! lacks. The profile is described in `docs/spec/hrl.md`.
#![forbid(unsafe_code)]

mod blocks;
mod bytes;
mod chain;
mod check;
mod checksum;
mod coalesce;
mod data;
mod entry;
mod error;
mod export;
pub mod faults;
mod file;
mod header;
mod id;
mod index;
mod metadata;
mod reader;
mod records;
mod recover;
mod scan;
mod seal;
mod stage;
mod time;
mod writer;

pub use chain::{ChainLink, verify_chain};
pub use check::{
    DAMAGES_MAX, Damage, DamageKind, LogStatistics, Report, inspect, inspect_files, verify, verify_files,
};
pub use checksum::{byte_sum, byte_sum_checksum, byte_sum_checksum_without};
pub use coalesce::{COALESCE_ENTRIES_MAX, CoalescePlan, Coalesced, coalesce, coalesce_plan};
pub use entry::{Append, Entry, Operation, RANGE_BYTES_MAX, SECTOR_BYTES, WRITE_BYTES_MAX, data_hash};
pub use error::{HrlError, Place, Result};
pub use export::{Exported, export_strict};
pub use file::{FsLogFile, LogFile, index_path, sync_folder};
pub use header::{CREATOR_PROFILE, CREATOR_STRICT, HEADER_BYTES, LogHeader, VERSION_1, VERSION_2};
pub use id::LogId;
pub use index::IndexHeader;
pub use reader::{BATCH_ENTRIES_MAX, Entries, LogReader, ReadOptions};
pub use recover::{RecoverMode, Recovered, TornTail, read_header, recover};
pub use time::{seconds_since_2000, unix_ns};
pub use writer::{LogOptions, LogWriter, SealedLog};
