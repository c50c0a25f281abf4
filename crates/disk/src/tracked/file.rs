//! The tracking file, `.hrt`: header and three maps, and the same in memory.
//!
//! | bytes | what |
//! |---|---|
//! | 0, 4096 | two copies of the header |
//! | from 8192 | ACTIVE map, 1 bit a region (4 MiB), in sectors of [`super::bits`] |
//! | behind it | CHANGED map, 1 bit a chunk (64 KiB): what changed while there was no log |
//! | behind it | CANDIDATES map, 1 bit a chunk: what an open resynchronization compares |
//!
//! The file has its full size, written through, from its creation: it never needs space later. Each change goes to the
//! file before the write it speaks of; the page cache keeps it over the death of the process, and only what must
//! survive a power loss is synced. When the file itself cannot be written any more it is cut short, so that nobody trusts
//! it later, and the knowledge lives on in memory.

use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::Arc;

use secondsite_hrl::LogFile;

use super::bits::{
    SECTOR_BITS, SECTOR_BYTES, SectorBits, SparseBits, bits_of_sector, encode_sector, parse_sector,
    sector_seed,
};
use super::header::{COPY_BYTES, Header};
use super::regions::{ActiveRegions, REGION_BYTES};
use super::state::ResyncReason;

/// Bytes of a chunk of the changed map.
pub const CHUNK_BYTES: u64 = 64 << 10;
/// Size of a file that nobody must trust: too short for a header.
const INVALID_BYTES: u64 = 512;
/// Sectors written or read at once.
const SECTORS_AT_ONCE: u64 = 2048;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Map {
    Active = 1,
    Changed = 2,
    Candidates = 3,
}

/// The tracking file with its content in memory.
pub(crate) struct Tracking {
    file: Arc<dyn LogFile>,
    pub(crate) header: Header,
    /// The copy that is durable, and the one written last.
    durable_copy: u64,
    written_copy: u64,
    pub(crate) active: ActiveRegions,
    changed: SparseBits,
    candidates: SparseBits,
    /// The changed map has bits that may not be durable.
    is_changed_unsynced: bool,
    failure: Option<io::Error>,
}

/// A range of which nothing is known, and why it has to be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unknown {
    pub(crate) offset: u64,
    pub(crate) length_bytes: u64,
    pub(crate) reason: ResyncReason,
}

/// What a tracking file turned out to be.
pub(crate) enum Loaded {
    Whole(Box<Tracking>),
    /// Both copies of the header are damaged, or a sector of a map is.
    Damaged,
    /// Written by a later version of this program.
    Newer,
}

impl Tracking {
    /// Writes a new file, all of it, and syncs it.
    pub(crate) fn create(file: Arc<dyn LogFile>, header: Header) -> io::Result<Self> {
        let mut tracking = Self::empty(file, header);
        tracking.write_all()?;
        Ok(tracking)
    }

    /// The same in a new file, for a disk of another size. What lies behind its end is forgotten; `unknown` is changed.
    pub(crate) fn resized(
        &self,
        file: Arc<dyn LogFile>,
        disk_size_bytes: u64,
        unknown: Option<Unknown>,
    ) -> io::Result<Self> {
        let mut tracking = Self::empty(file, Header { disk_size_bytes, ..self.header.clone() });
        tracking.header.generation += 1;
        tracking.active = self.active.resized(disk_size_bytes);
        (tracking.changed, tracking.candidates) = (self.changed.clone(), self.candidates.clone());
        let chunk_count = tracking.chunk_count();
        tracking.changed.truncate(chunk_count);
        tracking.candidates.truncate(chunk_count);
        if let Some(Unknown { offset, length_bytes, reason }) = unknown {
            let chunks = tracking.chunks(offset, length_bytes);
            tracking.changed.set(chunks, |_| ());
            tracking.header.reason = Some(tracking.header.reason.unwrap_or(reason));
        }
        tracking.write_all()?;
        Ok(tracking)
    }

    fn write_all(&mut self) -> io::Result<()> {
        self.file.set_size_bytes(0)?;
        for map in [Map::Active, Map::Changed, Map::Candidates] {
            self.write_run(map, 0..self.sector_count(map))?;
        }
        self.write_copy(0)?;
        self.write_copy(1)?;
        self.file.sync_data()?;
        (self.durable_copy, self.written_copy) = (1, 1);
        Ok(())
    }

    /// Another file has taken this one's place: nobody must trust it if it comes back.
    pub(crate) fn invalidate(&self) -> io::Result<()> {
        self.file.set_size_bytes(INVALID_BYTES)?;
        self.file.sync_data()
    }

    fn empty(file: Arc<dyn LogFile>, header: Header) -> Self {
        let active = ActiveRegions::new(header.disk_size_bytes);
        let (changed, candidates) = (SparseBits::default(), SparseBits::default());
        Self {
            file,
            header,
            durable_copy: 0,
            written_copy: 0,
            active,
            changed,
            candidates,
            is_changed_unsynced: false,
            failure: None,
        }
    }

    /// Reads a file.
    pub(crate) fn load(file: Arc<dyn LogFile>) -> io::Result<Loaded> {
        let copies = [read_copy(&*file, 0)?, read_copy(&*file, 1)?];
        let newest = copies.into_iter().enumerate().filter_map(|(n, copy)| Some((n as u64, copy?)));
        if is_newer(&*file)? {
            return Ok(Loaded::Newer);
        }
        let Some((copy, header)) = newest.max_by_key(|(_, header)| header.generation) else {
            return Ok(Loaded::Damaged);
        };
        let mut tracking = Self::empty(file, header);
        // Which copy is durable is not known: the one in use is not overwritten before the other is durable.
        (tracking.durable_copy, tracking.written_copy) = (copy, copy);
        for map in [Map::Active, Map::Changed, Map::Candidates] {
            if !tracking.load_map(map)? {
                return Ok(Loaded::Damaged);
            }
        }
        Ok(Loaded::Whole(Box::new(tracking)))
    }

    fn load_map(&mut self, map: Map) -> io::Result<bool> {
        let count = self.sector_count(map);
        let mut bytes = vec![0; (SECTORS_AT_ONCE.min(count) as usize) * SECTOR_BYTES];
        let mut first = 0;
        while first < count {
            let now = SECTORS_AT_ONCE.min(count - first);
            let bytes = &mut bytes[..now as usize * SECTOR_BYTES];
            match self.file.read_exact_at(bytes, self.sector_offset(map, first)) {
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
                other => other?,
            }
            for (n, sector) in bytes.chunks_exact(SECTOR_BYTES).enumerate() {
                let number = first + n as u64;
                let Some(bits) = parse_sector(sector, self.seed(map, number)) else { return Ok(false) };
                self.take_sector(map, number, &bits);
            }
            first += now;
        }
        Ok(true)
    }

    fn take_sector(&mut self, map: Map, number: u64, bits: &SectorBits) {
        match map {
            Map::Active => self.active.restore(bits_of_sector(number, bits)),
            Map::Changed => self.changed.insert_sector(number, bits),
            Map::Candidates => self.candidates.insert_sector(number, bits),
        }
    }

    fn sector_count(&self, map: Map) -> u64 {
        let unit = if map == Map::Active { REGION_BYTES } else { CHUNK_BYTES };
        self.header.disk_size_bytes.div_ceil(unit).div_ceil(SECTOR_BITS)
    }

    fn sector_offset(&self, map: Map, sector: u64) -> u64 {
        let before = match map {
            Map::Active => 0,
            Map::Changed => self.sector_count(Map::Active),
            Map::Candidates => self.sector_count(Map::Active) + self.sector_count(Map::Changed),
        };
        2 * COPY_BYTES + (before + sector) * SECTOR_BYTES as u64
    }

    fn seed(&self, map: Map, sector: u64) -> u64 {
        sector_seed(&self.header.disk_id, map as u8, sector)
    }

    fn write_run(&self, map: Map, sectors: Range<u64>) -> io::Result<()> {
        let mut first = sectors.start;
        while first < sectors.end {
            let end = sectors.end.min(first + SECTORS_AT_ONCE);
            let bytes: Vec<u8> = (first..end).flat_map(|sector| self.encoded(map, sector)).collect();
            self.file.write_all_at(&mut [IoSlice::new(&bytes)], self.sector_offset(map, first))?;
            first = end;
        }
        Ok(())
    }

    fn encoded(&self, map: Map, sector: u64) -> [u8; SECTOR_BYTES] {
        let bits = match map {
            Map::Active => self.active.sector(sector),
            Map::Changed => self.changed.sector(sector),
            Map::Candidates => self.candidates.sector(sector),
        };
        encode_sector(&bits, self.seed(map, sector))
    }

    fn write_sectors(&mut self, map: Map, sectors: &BTreeSet<u64>) {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for sector in sectors {
            match runs.last_mut() {
                Some(last) if last.end == *sector => last.end += 1,
                _ => runs.push(*sector..sector + 1),
            }
        }
        self.attempt(|tracking| runs.into_iter().try_for_each(|run| tracking.write_run(map, run)));
    }

    /// Does I/O on the file unless it failed before; a failure is kept, and the file made invalid.
    fn attempt(&mut self, io: impl FnOnce(&mut Self) -> io::Result<()>) {
        if self.failure.is_some() {
            return;
        }
        if let Err(e) = io(self) {
            self.failure = Some(e);
            // What the file says is not true any more, so its header has to go (a file of 0 bytes would pass for a new
            // one). If even that fails, nothing more can be done here; close reports the failure.
            let _ = self.invalidate();
        }
    }

    /// Why the file is out of use, if it is.
    pub(crate) fn failure(&self) -> Option<&io::Error> {
        self.failure.as_ref()
    }

    /// Writes the header (not durable before [`sync`](Self::sync)).
    pub(crate) fn write_header(&mut self) {
        self.header.generation += 1;
        let copy = 1 - self.durable_copy;
        self.attempt(|tracking| tracking.write_copy(copy));
        self.written_copy = copy;
    }

    fn write_copy(&mut self, copy: u64) -> io::Result<()> {
        self.file.write_all_at(&mut [IoSlice::new(&self.header.encode())], copy * COPY_BYTES)
    }

    /// Makes all of the file durable.
    pub(crate) fn sync(&mut self) {
        self.attempt(|tracking| tracking.file.sync_data());
        self.durable_copy = self.written_copy;
        self.is_changed_unsynced = false;
    }

    /// The copy of the header that was written last.
    pub(crate) fn written_copy(&self) -> u64 {
        self.written_copy
    }

    /// The file was synced by other means while `copy` was the one written last.
    pub(crate) fn note_synced(&mut self, copy: u64, synced: io::Result<()>) {
        self.attempt(|_| synced);
        self.durable_copy = copy;
    }

    /// The file, for a sync outside of the order lock.
    pub(crate) fn file(&self) -> Arc<dyn LogFile> {
        self.file.clone()
    }

    /// Activates regions, durably. The caller looked that they fit.
    pub(crate) fn activate(&mut self, regions: &[u64]) {
        self.active.activate(regions);
        let sectors = regions.iter().map(|region| region / SECTOR_BITS).collect();
        self.write_sectors(Map::Active, &sectors);
        self.sync();
    }

    /// Cleans the regions whose last write was in `epoch` or before; lazily: the cleaning is not synced. What the map
    /// took over from them is.
    pub(crate) fn clean(&mut self, epoch: u64) {
        if self.is_changed_unsynced {
            self.sync();
        }
        let cleaned = self.active.clean(epoch);
        let sectors = cleaned.iter().map(|region| region / SECTOR_BITS).collect();
        self.write_sectors(Map::Active, &sectors);
    }

    /// Every active region is changed from now on, and no region is active.
    pub(crate) fn change_active(&mut self) {
        let regions: Vec<u64> = self.active.iter().collect();
        for region in regions {
            self.change(region * REGION_BYTES, REGION_BYTES);
        }
    }

    /// Marks a range in the changed map.
    pub(crate) fn change(&mut self, offset: u64, length_bytes: u64) {
        let chunks = self.chunks(offset, length_bytes);
        if !self.changed.contains(chunks.clone()) {
            let mut sectors = BTreeSet::new();
            self.changed.set(chunks, |sector| {
                sectors.insert(sector);
            });
            self.write_sectors(Map::Changed, &sectors);
            self.is_changed_unsynced = true;
        }
    }

    /// Marks all chunks of a bitmap in the changed map.
    pub(crate) fn change_bits(&mut self, bits: &SparseBits) {
        let mut sectors = BTreeSet::new();
        self.changed.union(bits, |sector| {
            sectors.insert(sector);
        });
        self.write_sectors(Map::Changed, &sectors);
        self.is_changed_unsynced = true;
    }

    /// Adds what changed to the candidates. The changed map stays as it is: see [`forget_changed`](Self::forget_changed).
    pub(crate) fn add_changed_to_candidates(&mut self) {
        let mut sectors = BTreeSet::new();
        self.candidates.union(&self.changed, |sector| {
            sectors.insert(sector);
        });
        self.write_sectors(Map::Candidates, &sectors);
    }

    /// Takes `taken` out of the changed map, once the candidates that hold it are durable.
    pub(crate) fn forget_changed(&mut self, taken: &SparseBits) {
        let mut sectors = BTreeSet::new();
        self.changed.subtract(taken, |sector| {
            sectors.insert(sector);
        });
        self.write_sectors(Map::Changed, &sectors);
    }

    /// Empties the candidates: they are equal now.
    pub(crate) fn forget_candidates(&mut self) {
        let mut sectors = BTreeSet::new();
        let all = self.candidates.clone();
        self.candidates.subtract(&all, |sector| {
            sectors.insert(sector);
        });
        self.write_sectors(Map::Candidates, &sectors);
    }

    pub(crate) fn changed(&self) -> &SparseBits {
        &self.changed
    }

    pub(crate) fn candidates(&self) -> &SparseBits {
        &self.candidates
    }

    /// Chunks of the disk.
    pub(crate) fn chunk_count(&self) -> u64 {
        self.header.disk_size_bytes.div_ceil(CHUNK_BYTES)
    }

    /// The chunks a range touches.
    pub(crate) fn chunks(&self, offset: u64, length_bytes: u64) -> Range<u64> {
        offset / CHUNK_BYTES..(offset + length_bytes).div_ceil(CHUNK_BYTES).min(self.chunk_count())
    }

    /// Nothing is known about the disk.
    pub(crate) fn change_all(&mut self) {
        self.change(0, self.header.disk_size_bytes);
    }
}

fn read_copy(file: &dyn LogFile, copy: u64) -> io::Result<Option<Header>> {
    let mut bytes = [0; COPY_BYTES as usize];
    match file.read_exact_at(&mut bytes, copy * COPY_BYTES) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        other => other.map(|()| Header::parse(&bytes)),
    }
}

fn is_newer(file: &dyn LogFile) -> io::Result<bool> {
    let mut bytes = [0; 12];
    match file.read_exact_at(&mut bytes, 0) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        other => other.map(|()| Header::is_newer(&bytes)),
    }
}
