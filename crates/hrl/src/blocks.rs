//! Traversal of a sealed log without its index, [MS-HRL] 2.5: back from EOLLocation from block to block, then forward.
//!
//! This is how a genuine Hyper-V log is read. Nothing is believed: each block must stand before the one that points
//! to it and after the log header, and the lengths of its entries must fill the gap before it exactly.

use crate::data::{read, size_bytes};
use crate::entry::Entry;
use crate::error::{HrlError, Place, Result};
use crate::file::LogFile;
use crate::header::{HEADER_BYTES, LogHeader};
use crate::metadata::{BlockHeader, RawEntry, SLOT_BYTES, entry_slot};
use crate::time::unix_ns;

/// Most blocks one log may have: their positions are held in memory (8 bytes each, so 32 MiB).
const BLOCKS_MAX: usize = 4 << 20;

/// A block found by walking back.
#[derive(Debug, Clone, Copy)]
pub struct BlockPlace {
    pub position: u64,
    pub entry_count: u32,
}

/// All blocks of a sealed log, in file order.
///
/// # Errors
/// LOG_CORRUPT with the offset of the block; LOG_LIMIT_EXCEEDED.
pub fn walk_back<F: LogFile>(log: &F, header: &LogHeader) -> Result<Vec<BlockPlace>> {
    let size = size_bytes(log)?;
    if header.end_of_log > size {
        let reason = format!("EOLLocation {} is past the end of the file ({size} bytes)", header.end_of_log);
        return Err(HrlError::corrupt(log.path(), 44, reason));
    }
    let block_bytes = u64::from(header.metadata_size_bytes);
    let mut position = header.end_of_log - block_bytes; // the header was checked: EOLLocation is past the first block
    let mut blocks = Vec::new();
    loop {
        let block = read_block_header(log, position, header)?;
        if blocks.len() == BLOCKS_MAX {
            let reason = format!("more than {BLOCKS_MAX} metadata blocks");
            return Err(HrlError::LimitExceeded(Place::new(log.path(), position, reason)));
        }
        blocks.push(BlockPlace { position, entry_count: block.entry_count });
        if block.previous_distance == 0 {
            break;
        }
        position = step_back(log, position, block.previous_distance, block_bytes)?;
    }
    blocks.reverse();
    check_total(log, header, &blocks)?;
    Ok(blocks)
}

fn read_block_header<F: LogFile>(log: &F, position: u64, header: &LogHeader) -> Result<BlockHeader> {
    let mut slot = [0; SLOT_BYTES];
    if !read(log, &mut slot, position)? {
        return Err(changed(log, position));
    }
    let Some(block) = BlockHeader::parse(&slot) else {
        return Err(HrlError::corrupt(log.path(), position, "no metadata block here: its checksum is wrong"));
    };
    let slots = header.metadata_size_bytes / SLOT_BYTES as u32 - 1;
    if block.entry_count > slots {
        let reason = format!("metadata block claims {} entries, {slots} fit", block.entry_count);
        return Err(HrlError::corrupt(log.path(), position, reason));
    }
    Ok(block)
}

fn step_back<F: LogFile>(log: &F, position: u64, distance: u64, block_bytes: u64) -> Result<u64> {
    if distance < block_bytes {
        let reason = format!("the block before is {distance} bytes back and overlaps this one");
        return Err(HrlError::corrupt(log.path(), position, reason));
    }
    if position - HEADER_BYTES as u64 >= distance {
        return Ok(position - distance);
    }
    let reason = format!("the block before is {distance} bytes back, inside or before the log header");
    Err(HrlError::corrupt(log.path(), position, reason))
}

fn check_total<F: LogFile>(log: &F, header: &LogHeader, blocks: &[BlockPlace]) -> Result<()> {
    let found: u64 = blocks.iter().map(|block| u64::from(block.entry_count)).sum();
    if found == header.entry_count {
        return Ok(());
    }
    let reason = format!("TotalMetadataEntries is {}, the blocks hold {found}", header.entry_count);
    Err(HrlError::corrupt(log.path(), 96, reason))
}

/// The entries of a block whose data starts at `data_start`; appended to `entries`, numbered from `sequence`.
///
/// # Errors
/// LOG_CORRUPT with the offset of the entry or block; LOG_CHANGED_WHILE_READ.
pub fn read_block<F: LogFile>(
    log: &F,
    block: BlockPlace,
    data_start: u64,
    sequence: u64,
    entries: &mut Vec<Entry>,
) -> Result<()> {
    let mut bytes = vec![0; (block.entry_count as usize + 1) * SLOT_BYTES];
    if !read(log, &mut bytes, block.position)? {
        return Err(changed(log, block.position));
    }
    if BlockHeader::parse(&bytes).is_none_or(|header| header.entry_count != block.entry_count) {
        return Err(changed(log, block.position));
    }
    let mut position = data_start;
    for number in 0..block.entry_count as usize {
        let raw = RawEntry::parse(entry_slot(&bytes, number)).map_err(|fault| {
            HrlError::corrupt(
                log.path(),
                block.position + ((number + 1) * SLOT_BYTES) as u64,
                fault.to_string(),
            )
        })?;
        let entry = raw.entry(sequence + number as u64, position, unix_ns(raw.seconds));
        position = position.saturating_add(entry.data_bytes());
        entries.push(entry);
    }
    check_gap(log, block, data_start, position)
}

fn check_gap<F: LogFile>(log: &F, block: BlockPlace, data_start: u64, data_end: u64) -> Result<()> {
    if data_end == block.position {
        return Ok(());
    }
    let reason = format!(
        "the entries of this block need {} bytes of data, {} stand before it",
        data_end - data_start,
        block.position - data_start
    );
    Err(HrlError::corrupt(log.path(), block.position, reason))
}

/// The file ended, or says something else, where it was read before.
pub fn changed<F: LogFile>(log: &F, offset: u64) -> HrlError {
    let reason = "the file is not what it was when it was opened";
    HrlError::ChangedWhileRead(Place::new(log.path(), offset, reason))
}
