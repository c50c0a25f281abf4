//! The .hrl change log of public format [MS-HRL]: write, seal, recover, read, check, coalesce, export.
//!
//! A log is two files: `<name>.hrl`, pure [MS-HRL] version 2, and `<name>.hrx`, the index with what that format lacks.
//! `docs/spec/hrl.md` describes both. This crate is the only place that knows their layout; it knows no disks, no
//! clock and no random source (ids, keys and times are given to it), and it does its I/O through [`LogFile`].
//!
//! | to | use |
//! |---|---|
//! | write a log | [`LogWriter::create`], [`LogWriter::append`], [`LogWriter::append_and_checkpoint`], [`LogWriter::seal`] |
//! | go on after a crash | [`recover`], then [`LogWriter::read_entries`] for what has to be redone on the disk |
//! | bring back single entries of a damaged one | [`salvage`] |
//! | read a sealed log, also a genuine one | [`LogReader`] |
//! | check one, or say what is wrong | [`verify`], [`inspect`], [`verify_chain`] |
//! | list what a log of any state has | [`list_entries`] |
//! | shrink a run of logs | [`coalesce_plan`] |
//! | give one to a Hyper-V reader | [`export_strict`] |
//! | test against bad days | [`faults`] |
//!
//! Where to start reading: `writer.rs` for the order of writes, `seal.rs` for why a guest cannot forge a block,
//! `recover.rs` for what survives which crash.
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
mod list;
mod metadata;
mod reader;
mod records;
mod recover;
mod salvage;
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
pub use list::list_entries;
pub use reader::{BATCH_ENTRIES_MAX, Entries, LogReader, ReadOptions};
pub use recover::{RecoverMode, Recovered, TornTail, read_header, recover};
pub use salvage::salvage;
pub use time::{seconds_since_2000, unix_ns};
pub use writer::{LogOptions, LogWriter, SealedLog};
