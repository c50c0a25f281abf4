//! Finds sealed blocks by reading forward through a log, one sector after the other.
//!
//! Only a 32-byte checksum is computed for most sectors; the seal decides about those that pass.

use crate::data::read;
use crate::error::Result;
use crate::file::LogFile;
use crate::metadata::{BLOCK_BYTES, Block, BlockHeader, SLOT_BYTES};
use crate::seal::{Seal, SealKey};

const STEP_BYTES: usize = 512;
const WINDOW_BYTES: usize = 1 << 20;

/// A block that this log's writer wrote at this place.
pub struct SealedBlock {
    pub position: u64,
    pub header: BlockHeader,
    pub seal: Seal,
    pub bytes: Box<Block>,
}

/// Reads and proves the block at `position`.
pub fn block_at<F: LogFile>(
    log: &F,
    key: &SealKey,
    position: u64,
    log_size: u64,
) -> Result<Option<SealedBlock>> {
    let mut bytes = Box::new([0; BLOCK_BYTES]);
    if position + BLOCK_BYTES as u64 > log_size || !read(log, bytes.as_mut_slice(), position)? {
        return Ok(None);
    }
    Ok(key.open(&bytes, position).map(|(header, seal)| SealedBlock { position, header, seal, bytes }))
}

/// The sealed blocks from `start` to the end of the log for which `wanted` holds, handed to `visit` until it says stop.
pub fn scan_blocks<F: LogFile>(
    log: &F,
    key: &SealKey,
    start: u64,
    log_size: u64,
    wanted: impl Fn(u64, &BlockHeader) -> bool,
    mut visit: impl FnMut(SealedBlock) -> Result<bool>,
) -> Result<()> {
    let mut window = Vec::new();
    let mut position = start;
    while position + BLOCK_BYTES as u64 <= log_size {
        window.resize((log_size - position).min(WINDOW_BYTES as u64) as usize, 0);
        if !read(log, &mut window, position)? {
            return Ok(());
        }
        for (step, sector) in window.chunks_exact(STEP_BYTES).enumerate() {
            let at = position + (step * STEP_BYTES) as u64;
            let Some(header) = BlockHeader::parse(&sector[..SLOT_BYTES]) else { continue };
            if !wanted(at, &header) {
                continue;
            }
            if let Some(block) = block_at(log, key, at, log_size)?
                && visit(block)?
            {
                return Ok(());
            }
        }
        position += (window.len() / STEP_BYTES * STEP_BYTES) as u64;
    }
    Ok(())
}
