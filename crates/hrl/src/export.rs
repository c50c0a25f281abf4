//! Strict export: the same log as a Hyper-V reader expects it, without anything of our profile.
//!
//! Zero and discard ranges are spelled out as writes of zeros (as holes of the output file, so they cost no space
//! until copied), blocks hold 127 entries and no seal, DataChecksum is 0, CreatorApplication is `ct`, and there is
//! no index. The output appears under its name only when it is complete and durable.

use std::io::IoSlice;
use std::path::{Path, PathBuf};

use crate::data::PIECE_BYTES;
use crate::entry::{Entry, Operation, WRITE_BYTES_MAX};
use crate::error::{HrlError, Place, Result};
use crate::file::{FsLogFile, LogFile, index_path, sync_folder};
use crate::header::{CREATOR_STRICT, HEADER_BYTES, LogHeader, METADATA_BYTES, VERSION_2};
use crate::metadata::{BLOCK_BYTES, BlockHeader, RawEntry, SLOT_BYTES};
use crate::reader::LogReader;
use crate::time::seconds_since_2000;
use crate::writer::{resize, write};

const ENTRIES_PER_STRICT_BLOCK: usize = BLOCK_BYTES / SLOT_BYTES - 1;

/// What was exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exported {
    /// Entries of the output; more than the input's when zero ranges were split.
    pub entry_count: u64,
    /// Size of the output, holes included.
    pub log_size_bytes: u64,
}

/// Writes the sealed log `input` to `output` in strict [MS-HRL]. An existing `output` is replaced.
///
/// # Errors
/// Those of [`LogReader`] (the data is checked on the way); LOG_WRITE_FAILED; LOG_INVALID_REQUEST when an index lies
/// beside `output`, as it does when that is a log of ours, such as the input itself. Nothing stays behind on an error.
pub fn export_strict(input: &Path, output: &Path) -> Result<Exported> {
    let reader = LogReader::open(input)?;
    refuse_index_beside(output)?;
    let partial = partial_path(output);
    let _ = std::fs::remove_file(&partial); // Left by an export that died; creating it anew reports what matters.
    let exported = export_to(&reader, &partial).and_then(|exported| {
        std::fs::rename(&partial, output).map_err(|e| HrlError::write(output, 0, "rename", e))?;
        sync_folder(parent(output))?;
        Ok(exported)
    });
    if exported.is_err() {
        let _ = std::fs::remove_file(&partial); // The error above is the one to report.
    }
    exported
}

/// An index beside the output would be taken for its own.
fn refuse_index_beside(output: &Path) -> Result<()> {
    let index = index_path(output);
    if !index.try_exists().map_err(|e| HrlError::read(&index, 0, "stat", e))? {
        return Ok(());
    }
    let reason = "an index of another log lies where that of the output would be";
    Err(HrlError::InvalidRequest(Place::new(&index, 0, reason)))
}

fn partial_path(output: &Path) -> PathBuf {
    let mut name = output.file_name().unwrap_or_default().to_os_string();
    name.push(".partial");
    output.with_file_name(name)
}

/// The folder of a file.
pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn export_to(reader: &LogReader, output: &Path) -> Result<Exported> {
    let mut writer = StrictWriter::create(FsLogFile::create_new(output)?)?;
    let mut buffer = Vec::new();
    reader.entries()?.for_each(|entry| writer.entry(reader, entry, &mut buffer))?;
    writer.finish(reader.header())
}

struct StrictWriter {
    file: FsLogFile,
    position: u64,
    last_block: u64,
    entry_count: u64,
    slots: Vec<[u8; SLOT_BYTES]>,
}

impl StrictWriter {
    fn create(file: FsLogFile) -> Result<Self> {
        let position = HEADER_BYTES as u64;
        let mut writer = Self { file, position, last_block: position, entry_count: 0, slots: Vec::new() };
        writer.block()?;
        Ok(writer)
    }

    fn entry(&mut self, reader: &LogReader, entry: &Entry, buffer: &mut Vec<u8>) -> Result<()> {
        if entry.operation == Operation::Write {
            self.copy_data(reader, entry, buffer)?;
            return self.slot(entry, entry.offset, entry.length_bytes);
        }
        let (mut offset, end) = (entry.offset, entry.end());
        while offset < end {
            let length = (end - offset).min(WRITE_BYTES_MAX);
            self.position += length; // a hole: reads as zeros
            self.slot(entry, offset, length as u32)?;
            offset += length;
        }
        Ok(())
    }

    fn copy_data(&mut self, reader: &LogReader, entry: &Entry, buffer: &mut Vec<u8>) -> Result<()> {
        reader.verify_data(entry, buffer)?;
        let (mut done, length) = (0, entry.data_bytes());
        while done < length {
            buffer.resize((length - done).min(PIECE_BYTES as u64) as usize, 0);
            reader.read_data_part(entry, done, buffer)?;
            write(&self.file, &mut [IoSlice::new(buffer)], self.position)?;
            self.position += buffer.len() as u64;
            done += buffer.len() as u64;
        }
        Ok(())
    }

    fn slot(&mut self, entry: &Entry, offset: u64, length_bytes: u32) -> Result<()> {
        let seconds = seconds_since_2000(entry.time_ns);
        let operation = Operation::Write;
        self.slots.push(RawEntry { offset, length_bytes, seconds, operation, data_checksum: 0 }.encode());
        self.entry_count += 1;
        if self.slots.len() == ENTRIES_PER_STRICT_BLOCK { self.block() } else { Ok(()) }
    }

    fn block(&mut self) -> Result<()> {
        let mut block = [0; BLOCK_BYTES];
        let header = BlockHeader {
            previous_distance: self.position - self.last_block,
            entry_count: self.slots.len() as u32,
        };
        block[..SLOT_BYTES].copy_from_slice(&header.encode());
        for (target, slot) in block[SLOT_BYTES..].chunks_exact_mut(SLOT_BYTES).zip(self.slots.drain(..)) {
            target.copy_from_slice(&slot);
        }
        write(&self.file, &mut [IoSlice::new(&block)], self.position)?;
        self.last_block = self.position;
        self.position += BLOCK_BYTES as u64;
        Ok(())
    }

    fn finish(mut self, input: &LogHeader) -> Result<Exported> {
        if !self.slots.is_empty() {
            self.block()?;
        }
        let header = LogHeader {
            version: VERSION_2,
            creator_application: CREATOR_STRICT,
            original_size_bytes: 0,
            current_size_bytes: self.position,
            end_of_log: self.position,
            metadata_size_bytes: METADATA_BYTES,
            entry_count: self.entry_count,
            disk_id: Some(input.disk_id.unwrap_or_default()),
            ..input.clone()
        };
        resize(&self.file, self.position)?;
        write(&self.file, &mut [IoSlice::new(&header.encode())], 0)?;
        self.file.sync_data().map_err(|e| HrlError::write(self.file.path(), 0, "sync", e))?;
        Ok(Exported { entry_count: self.entry_count, log_size_bytes: self.position })
    }
}
