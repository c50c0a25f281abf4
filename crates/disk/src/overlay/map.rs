//! The states of all blocks: two bits each, in pages of 4 KiB for 64 MiB of the disk; a page without a block that differs
//! from the base takes no memory.
//!
//! The file has the pages twice. The *live* copy is written before a write is acknowledged, so it survives the death of the
//! process. It may reach the medium before the data it speaks of does, so after a power loss (another boot id) it is
//! worth nothing. Then the *durable* copy counts: pages go there at a flush, as they stood before the data was synced.
//!
//! ```text
//! | header, 4096 | live pages | durable pages |
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use secondsite_hrl::LogFile;

use super::header::{HEADER_BYTES, Header, OverlayState, read_error, sync, write_at};
use crate::error::Result;

/// Bytes of a block.
pub(super) const BLOCK_BYTES: u64 = 4096;
const PAGE_BYTES: usize = 4096;
/// Blocks that a page describes.
const PAGE_BLOCKS: u64 = PAGE_BYTES as u64 * 4;

/// Pages that are loaded at once: 1 MiB.
const LOADED_PAGES: u64 = 256;

/// What a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Block {
    Absent = 0,
    Present = 1,
    Zero = 2,
    Settled = 3,
}

impl Block {
    fn of(bits: u8) -> Self {
        match bits & 3 {
            0 => Self::Absent,
            1 => Self::Present,
            2 => Self::Zero,
            _ => Self::Settled,
        }
    }
}

type Page = Box<[u8; PAGE_BYTES]>;

/// The map of an overlay.
pub(super) struct Map {
    file: Arc<dyn LogFile>,
    header: Mutex<Header>,
    block_count: u64,
    pages: RwLock<BTreeMap<u64, Page>>,
    /// Pages that changed since they were made durable. Locked inside of `pages`.
    unsaved: Mutex<BTreeSet<u64>>,
}

impl Map {
    /// A map of absent blocks in an empty file.
    pub(super) fn create(file: Arc<dyn LogFile>, header: Header) -> Result<Self> {
        let map = Self::over(file, header);
        let size_bytes = map.durable_at(map.page_count());
        let sized = map.file.set_size_bytes(size_bytes);
        sized.map_err(|e| crate::error::DiskError::write(crate::error::Place::whole(map.file.path()), e))?;
        header.write(&*map.file)?;
        Ok(map)
    }

    /// A map as it was left, by a process or by a power loss.
    pub(super) fn open(file: Arc<dyn LogFile>, header: Header, boot: u64) -> Result<Self> {
        let map = Self::over(file, Header { boot, ..header });
        let is_live = header.boot == boot;
        for first in (0..map.page_count()).step_by(LOADED_PAGES as usize) {
            map.load(first..map.page_count().min(first + LOADED_PAGES), is_live)?;
        }
        if !is_live {
            sync(&*map.file)?; // What the header says of the live pages is true when it says it.
            map.header.lock().write(&*map.file)?;
        }
        Ok(map)
    }

    /// A map that was just created, under the name that it has now.
    pub(super) fn over(file: Arc<dyn LogFile>, header: Header) -> Self {
        let block_count = header.size_bytes.div_ceil(BLOCK_BYTES);
        let (pages, unsaved) = (RwLock::default(), Mutex::default());
        Self { file, header: Mutex::new(header), block_count, pages, unsaved }
    }

    fn page_count(&self) -> u64 {
        self.block_count.div_ceil(PAGE_BLOCKS)
    }

    fn live_at(&self, page: u64) -> u64 {
        HEADER_BYTES + page * PAGE_BYTES as u64
    }

    fn durable_at(&self, page: u64) -> u64 {
        self.live_at(self.page_count() + page)
    }

    /// Takes in the copy of some pages that counts, and brings the other one to it or notes that it is behind.
    fn load(&self, numbers: Range<u64>, is_live: bool) -> Result<()> {
        let size = (numbers.end - numbers.start) as usize * PAGE_BYTES;
        let (mut live, mut durable) = (vec![0; size], vec![0; size]);
        for (bytes, offset) in
            [(&mut live, self.live_at(numbers.start)), (&mut durable, self.durable_at(numbers.start))]
        {
            let read = self.file.read_exact_at(bytes, offset);
            read.map_err(|e| read_error(&*self.file, offset, e))?;
        }
        let mut pages = self.pages.write();
        let (live, _) = live.as_chunks::<PAGE_BYTES>();
        let (durable, _) = durable.as_chunks::<PAGE_BYTES>();
        for ((number, live), durable) in numbers.zip(live).zip(durable) {
            if live != durable {
                match is_live {
                    true => drop(self.unsaved.lock().insert(number)),
                    false => write_at(&*self.file, durable, self.live_at(number))?,
                }
            }
            let counts = if is_live { live } else { durable };
            if *counts != [0; PAGE_BYTES] {
                pages.insert(number, Box::new(*counts));
            }
        }
        Ok(())
    }

    /// What the overlay is for.
    pub(super) fn overlay_state(&self) -> OverlayState {
        self.header.lock().state
    }

    /// Changes, durably, what the overlay is for.
    pub(super) fn set_overlay_state(&self, state: OverlayState) -> Result<()> {
        let mut header = self.header.lock();
        let changed = Header { state, ..*header };
        changed.write(&*self.file)?;
        *header = changed;
        Ok(())
    }

    /// The state of block `first`, and where the run of blocks in that state ends, at most at `end`.
    pub(super) fn run(&self, first: u64, end: u64) -> (Block, u64) {
        let pages = self.pages.read();
        let state = state_of(&pages, first);
        let mut at = first + 1;
        while at < end {
            let page = at / PAGE_BLOCKS;
            let start = page * PAGE_BLOCKS;
            let stop = end.min(start + PAGE_BLOCKS);
            match pages.get(&page) {
                Some(bytes) => {
                    at = start + first_other(bytes, at - start, stop - start, state);
                    if at < stop {
                        break;
                    }
                }
                None if state == Block::Absent => {
                    at = pages.range(page..).next().map_or(end, |(page, _)| end.min(page * PAGE_BLOCKS));
                }
                None => break,
            }
        }
        (state, at)
    }

    /// Whether all blocks of a range are in a state.
    pub(super) fn is_all(&self, blocks: Range<u64>, state: Block) -> bool {
        let (found, end) = self.run(blocks.start, blocks.end);
        found == state && end == blocks.end
    }

    /// Whether some block of a range is in a state.
    pub(super) fn has(&self, blocks: Range<u64>, state: Block) -> bool {
        let mut at = blocks.start;
        while at < blocks.end {
            let (found, end) = self.run(at, blocks.end);
            if found == state {
                return true;
            }
            at = end;
        }
        false
    }

    /// Sets the state of blocks, whose data must be written before.
    pub(super) fn set(&self, blocks: Range<u64>, state: Block) -> Result<()> {
        if self.is_all(blocks.clone(), state) {
            return Ok(());
        }
        let mut pages = self.pages.write();
        let mut at = blocks.start;
        while at < blocks.end {
            let page = at / PAGE_BLOCKS;
            let end = blocks.end.min((page + 1) * PAGE_BLOCKS);
            self.set_in_page(&mut pages, page, at..end, state)?;
            at = end;
        }
        Ok(())
    }

    fn set_in_page(
        &self,
        pages: &mut BTreeMap<u64, Page>,
        page: u64,
        blocks: Range<u64>,
        state: Block,
    ) -> Result<()> {
        let mut changed = pages.get(&page).cloned().unwrap_or_else(|| Box::new([0; PAGE_BYTES]));
        for block in blocks.clone() {
            let inside = block % PAGE_BLOCKS;
            let (byte, shift) = ((inside / 4) as usize, inside % 4 * 2);
            changed[byte] = changed[byte] & !(3 << shift) | (state as u8) << shift;
        }
        let first = (blocks.start % PAGE_BLOCKS / 4) as usize;
        let last = ((blocks.end - 1) % PAGE_BLOCKS / 4) as usize;
        write_at(&*self.file, &changed[first..=last], self.live_at(page) + first as u64)?;
        pages.insert(page, changed);
        self.unsaved.lock().insert(page);
        Ok(())
    }

    /// The pages to be made durable, as they stand now; what they speak of must be synced before they are
    /// [`save`](Self::save)d.
    pub(super) fn unsaved_pages(&self) -> Vec<(u64, Vec<u8>)> {
        let pages = self.pages.read();
        let unsaved = std::mem::take(&mut *self.unsaved.lock());
        unsaved.into_iter().filter_map(|page| Some((page, pages.get(&page)?.to_vec()))).collect()
    }

    /// Makes pages durable.
    pub(super) fn save(&self, unsaved: &[(u64, Vec<u8>)]) -> Result<()> {
        if unsaved.is_empty() {
            return Ok(());
        }
        for (page, bytes) in unsaved {
            write_at(&*self.file, bytes, self.durable_at(*page))?;
        }
        sync(&*self.file)
    }

    /// The runs of blocks for which `is_meant`, from block `from` on, the first `count` of them.
    pub(super) fn runs(&self, from: u64, count: usize, is_meant: impl Fn(Block) -> bool) -> Vec<Range<u64>> {
        let (mut runs, mut at): (Vec<Range<u64>>, u64) = (Vec::new(), from);
        while at < self.block_count {
            let (state, end) = self.run(at, self.block_count);
            if is_meant(state) {
                let is_full = runs.len() == count;
                match runs.last_mut() {
                    Some(last) if last.end == at => last.end = end,
                    _ if is_full => break,
                    _ => runs.push(at..end),
                }
            }
            at = end;
        }
        runs
    }
}

/// Blocks of which one word of a page holds the states.
const WORD_BLOCKS: u64 = 32;
/// The lower bit of each block's state in a word.
const LOW_BITS: u64 = 0x5555_5555_5555_5555;

/// The first block of a page, from `at` on, that is in another state; `end` when there is none before it.
fn first_other(page: &[u8; PAGE_BYTES], at: u64, end: u64, state: Block) -> u64 {
    let (words, _) = page.as_chunks::<8>();
    let same = LOW_BITS * state as u64;
    let mut from = at;
    while from < end {
        let other = u64::from_le_bytes(words[(from / WORD_BLOCKS) as usize]) ^ same;
        let blocks = (other | other >> 1) & LOW_BITS & u64::MAX << (from % WORD_BLOCKS * 2);
        let word = from - from % WORD_BLOCKS;
        if blocks != 0 {
            return end.min(word + u64::from(blocks.trailing_zeros()) / 2);
        }
        from = word + WORD_BLOCKS;
    }
    end
}

fn state_of(pages: &BTreeMap<u64, Page>, block: u64) -> Block {
    let Some(page) = pages.get(&(block / PAGE_BLOCKS)) else { return Block::Absent };
    let inside = block % PAGE_BLOCKS;
    Block::of(page[(inside / 4) as usize] >> (inside % 4 * 2))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const STATES: [Block; 4] = [Block::Absent, Block::Present, Block::Zero, Block::Settled];

    /// A page that begins with these runs of blocks.
    fn page_of(runs: &[(usize, u64)]) -> ([u8; PAGE_BYTES], Vec<Block>) {
        let mut blocks: Vec<Block> =
            runs.iter().flat_map(|&(state, count)| vec![STATES[state]; count as usize]).collect();
        blocks.resize(PAGE_BLOCKS as usize, Block::Absent);
        let mut page = [0; PAGE_BYTES];
        for (block, state) in blocks.iter().enumerate() {
            page[block / 4] |= (*state as u8) << (block % 4 * 2);
        }
        (page, blocks)
    }

    proptest! {
        #[test]
        fn a_run_ends_at_the_first_block_in_another_state(
            runs in vec((0_usize..4, 1_u64..100), 1..40),
            at in 0_u64..2000,
            length in 0_u64..2000,
        ) {
            let (page, blocks) = page_of(&runs);
            let end = at + length;
            for state in STATES {
                let expected = (at..end).find(|&block| blocks[block as usize] != state).unwrap_or(end);
                prop_assert_eq!(first_other(&page, at, end, state), expected);
            }
        }
    }
}
