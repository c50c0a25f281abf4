//! One-shot synchronization: makes a range of a replica equal to the source, both being disks of this machine.
//!
//! Both sides are read once and compared byte by byte, a window at a time, while both windows are in the core's cache.
//! Digests would cost more here: each side hashed is slower than both compared, and the copy needs the bytes again. Where
//! both sides are holes nothing is read.
//!
//! Workers take batches from one plan. A batch belongs to one worker from the first read to the last write, so workers
//! never wait for each other's results, and while one punches holes (which waits for the medium on some file systems) the
//! others compare.
//!
//! The medium begins to write a batch while the next ones are compared: the flush at the end is otherwise the half of an
//! initial copy.
//!
//! The unit of copying is the run of differing blocks of 4 KiB, not the chunk: the bytes are at hand, and a replica keeps
//! its holes inside of a chunk. Blocks of zeros are punched, whether the source stores them or not.
//!
//! Nothing here is durable before the caller flushes the replica. A pass that was stopped or has failed leaves a replica
//! that differs nowhere more than before, so the caller drives ranges and goes on where it stopped. A source that is
//! written to meanwhile must have its changes tracked: a block is copied as it was when its turn came.

use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;

use crate::device::{BlockDevice, ExtentKind, check_range};
use crate::digest::{
    DIGEST_BYTES, DigestAlgorithm, ExtentCursor, Hasher, READ_BYTES, check_chunk_bytes, refuse_stopped,
};
use crate::error::Result;

/// A batch is at most this, or one chunk: small enough that workers end together, large enough to read ahead in.
const BATCH_BYTES: u64 = 4 << 20;
/// Unit of copying, from the start of a chunk on.
const BLOCK_BYTES: usize = 4096;

/// How to synchronize.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncOptions {
    /// Unit of counting differences: a multiple of 512, at most [`CHUNK_BYTES_MAX`](crate::CHUNK_BYTES_MAX).
    pub chunk_bytes: u64,
    /// Compare only.
    pub dry_run: bool,
    /// Workers, the caller being one of them; 0 means 1.
    pub threads: usize,
}

/// Which digests a comparison makes on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DigestChoice {
    /// How.
    pub algorithm: DigestAlgorithm,
    /// Same seed, same digests.
    pub seed: u64,
}

/// Digests of both sides of a range: [`DIGEST_BYTES`] a chunk, in order, as [`crate::digest_ranges`] makes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairDigests {
    /// Of the source.
    pub source: Vec<u8>,
    /// Of the replica.
    pub replica: Vec<u8>,
}

/// What a synchronization found and did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SyncReport {
    /// The whole range.
    pub compared_bytes: u64,
    /// Of it, in chunks that were equal, holes included.
    pub equal_bytes: u64,
    /// Of it, in chunks that were not.
    pub different_bytes: u64,
    /// Of those, in blocks written to the replica.
    pub written_bytes: u64,
    /// Of those, in blocks given back on the replica, because the source has holes or zeros there.
    pub punched_bytes: u64,
    /// Where the first differing chunk begins.
    pub first_difference: Option<u64>,
}

/// Makes a range of `replica` equal to `source`; its chunks count from `offset`.
///
/// # Errors
/// OPTION_OUT_OF_RANGE, DISK_OUT_OF_RANGE, DISK_READ_FAILED, DISK_WRITE_FAILED, DISK_FULL, DISK_READ_ONLY, ABORTED once
/// `stop` is set. Any differing block of the range may have been copied by then, none has become something else.
pub fn sync_range(
    source: &dyn BlockDevice,
    replica: &dyn BlockDevice,
    offset: u64,
    length_bytes: u64,
    options: &SyncOptions,
    stop: &AtomicBool,
) -> Result<SyncReport> {
    check_chunk_bytes(source, options.chunk_bytes)?;
    check_range(source, offset, length_bytes)?;
    check_range(replica, offset, length_bytes)?;
    let pair = Pair { source, replica, options: *options, digest: None, stop };
    run_workers(&pair, offset, length_bytes).map(|(report, _)| report)
}

/// Compares a range of two disks and digests the chunks of both in the same pass; nothing is written, whatever
/// `options` say. Chunks that are equal are digested once.
///
/// # Errors
/// As [`sync_range`], those of writing left out.
pub fn compare_range(
    source: &dyn BlockDevice,
    replica: &dyn BlockDevice,
    offset: u64,
    length_bytes: u64,
    options: &SyncOptions,
    digest: DigestChoice,
    stop: &AtomicBool,
) -> Result<(SyncReport, PairDigests)> {
    check_chunk_bytes(source, options.chunk_bytes)?;
    check_range(source, offset, length_bytes)?;
    check_range(replica, offset, length_bytes)?;
    let options = SyncOptions { dry_run: true, ..*options };
    let pair = Pair { source, replica, options, digest: Some(digest), stop };
    let (report, found) = run_workers(&pair, offset, length_bytes)?;
    Ok((report, digests_of(&pair, digest, offset, length_bytes, found)))
}

/// What was read, over the digests of zeros: what no worker was sent to is a hole on both sides.
fn digests_of(
    pair: &Pair<'_>,
    digest: DigestChoice,
    offset: u64,
    length_bytes: u64,
    found: Vec<ChunkDigests>,
) -> PairDigests {
    let (chunk_bytes, mut hasher) = (pair.options.chunk_bytes, Hasher::new(digest.algorithm, digest.seed));
    let lengths =
        (0..length_bytes).step_by(chunk_bytes as usize).map(|at| chunk_bytes.min(length_bytes - at));
    let zeros: Vec<u8> = lengths.flat_map(|length| hasher.digest_of_zeros(length as usize)).collect();
    let mut digests = PairDigests { source: zeros.clone(), replica: zeros };
    for chunk in found {
        let at = ((chunk.offset - offset) / chunk_bytes) as usize * DIGEST_BYTES;
        digests.source[at..at + DIGEST_BYTES].copy_from_slice(&chunk.source);
        digests.replica[at..at + DIGEST_BYTES].copy_from_slice(&chunk.replica);
    }
    digests
}

type Outcome = Result<(SyncReport, Vec<ChunkDigests>)>;

fn run_workers(pair: &Pair<'_>, offset: u64, length_bytes: u64) -> Outcome {
    let plan = Mutex::new(Plan::new(pair, offset, offset + length_bytes));
    let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let work = || Worker::new(pair).run(&plan);
        let others: Vec<_> = (1..pair.options.threads).map(|_| scope.spawn(work)).collect();
        let own = work();
        let joined =
            others.into_iter().map(|other| other.join().unwrap_or_else(|panic| resume_unwind(panic)));
        std::iter::once(own).chain(joined).collect()
    });
    let (mut sum, mut digests) = (SyncReport::default(), Vec::new());
    for outcome in outcomes {
        let (report, found) = outcome?;
        sum = sum.join(&report);
        digests.extend(found);
    }
    let equal_bytes = length_bytes - sum.different_bytes;
    Ok((SyncReport { compared_bytes: length_bytes, equal_bytes, ..sum }, digests))
}

impl SyncReport {
    fn join(self, other: &Self) -> Self {
        let firsts = [self.first_difference, other.first_difference];
        Self {
            different_bytes: self.different_bytes + other.different_bytes,
            written_bytes: self.written_bytes + other.written_bytes,
            punched_bytes: self.punched_bytes + other.punched_bytes,
            first_difference: firsts.into_iter().flatten().min(),
            ..self
        }
    }
}

/// The two disks and how to compare them.
struct Pair<'a> {
    source: &'a dyn BlockDevice,
    replica: &'a dyn BlockDevice,
    options: SyncOptions,
    digest: Option<DigestChoice>,
    stop: &'a AtomicBool,
}

/// The digests of a chunk that was read.
struct ChunkDigests {
    offset: u64,
    source: [u8; DIGEST_BYTES],
    replica: [u8; DIGEST_BYTES],
}

/// Walks a range and leaves out what is a hole on both sides.
struct Plan<'a> {
    source: ExtentCursor<'a>,
    replica: ExtentCursor<'a>,
    chunk_bytes: u64,
    batch_bytes: u64,
    at: u64,
    end: u64,
}

impl<'a> Plan<'a> {
    fn new(pair: &Pair<'a>, offset: u64, end: u64) -> Self {
        let chunk_bytes = pair.options.chunk_bytes;
        Self {
            source: ExtentCursor::new(pair.source, end),
            replica: ExtentCursor::new(pair.replica, end),
            chunk_bytes,
            batch_bytes: whole_chunks(BATCH_BYTES, chunk_bytes),
            at: offset,
            end,
        }
    }

    /// Leaves nothing to the other workers.
    fn stop(&mut self) {
        self.at = self.end;
    }

    /// The next ranges to compare, cut on the chunk grid; none at the end.
    fn next(&mut self) -> Result<Vec<(u64, u64)>> {
        let (mut ranges, mut left): (Vec<(u64, u64)>, u64) = (Vec::new(), self.batch_bytes);
        while left > 0 && self.at < self.end {
            let (length_bytes, is_busy) = self.stretch(left)?;
            if is_busy {
                push_joined(&mut ranges, self.at, length_bytes);
                left = left.saturating_sub(length_bytes);
            }
            self.at += length_bytes;
        }
        Ok(ranges)
    }

    /// Length of what comes next, and whether it must be read; at most `left` then.
    fn stretch(&mut self, left: u64) -> Result<(u64, bool)> {
        let sides = [self.source.at(self.at)?, self.replica.at(self.at)?];
        let data = sides.iter().filter(|extent| extent.kind == ExtentKind::Data);
        let Some(data_end) = data.map(|extent| extent.end()).max() else {
            let hole_end = sides[0].end().min(sides[1].end());
            let whole = (hole_end - self.at) / self.chunk_bytes * self.chunk_bytes;
            return Ok(match whole {
                _ if hole_end == self.end => (self.end - self.at, false),
                0 => (self.chunk_bytes.min(self.end - self.at), true),
                _ => (whole, false),
            });
        };
        let busy = (data_end - self.at).next_multiple_of(self.chunk_bytes);
        Ok((busy.min(left).min(self.end - self.at), true))
    }
}

fn push_joined(ranges: &mut Vec<(u64, u64)>, offset: u64, length_bytes: u64) {
    match ranges.last_mut() {
        Some((last, length)) if *last + *length == offset => *length += length_bytes,
        _ => ranges.push((offset, length_bytes)),
    }
}

/// `bytes` in whole chunks, one at least.
fn whole_chunks(bytes: u64, chunk_bytes: u64) -> u64 {
    (bytes / chunk_bytes).max(1) * chunk_bytes
}

/// What becomes of a block of the replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Keep,
    Write,
    Punch,
}

/// Compares and copies through two buffers of its own.
struct Worker<'a> {
    pair: &'a Pair<'a>,
    report: SyncReport,
    hasher: Option<Hasher>,
    digests: Vec<ChunkDigests>,
    buffers: [Vec<u8>; 2],
}

impl<'a> Worker<'a> {
    fn new(pair: &'a Pair<'a>) -> Self {
        let buffer = vec![0; whole_chunks(READ_BYTES, pair.options.chunk_bytes) as usize];
        let hasher = pair.digest.map(|choice| Hasher::new(choice.algorithm, choice.seed));
        let (report, digests) = (SyncReport::default(), Vec::new());
        Self { pair, report, hasher, digests, buffers: [buffer.clone(), buffer] }
    }

    /// Takes batches until there are none; an error ends the other workers too.
    fn run(mut self, plan: &Mutex<Plan<'a>>) -> Outcome {
        let done = self.take_batches(plan);
        if done.is_err() {
            plan.lock().stop();
        }
        done.map(|()| (self.report, self.digests))
    }

    fn take_batches(&mut self, plan: &Mutex<Plan<'a>>) -> Result<()> {
        loop {
            let batch = plan.lock().next()?;
            if batch.is_empty() {
                return Ok(());
            }
            for (offset, length_bytes) in batch {
                let written_bytes = self.report.written_bytes;
                self.compare_range(offset, offset + length_bytes)?;
                if self.report.written_bytes > written_bytes {
                    self.pair.replica.start_writeback(offset, length_bytes);
                }
            }
        }
    }

    fn compare_range(&mut self, offset: u64, end: u64) -> Result<()> {
        let mut maps = [self.pair.source, self.pair.replica].map(|device| ExtentCursor::new(device, end));
        let window_bytes = self.buffers[0].len();
        for at in (offset..end).step_by(window_bytes) {
            refuse_stopped(self.pair.stop, self.pair.replica, at, end)?;
            let length = window_bytes.min((end - at) as usize);
            for (map, buffer) in maps.iter_mut().zip(&mut self.buffers) {
                map.read(at, &mut buffer[..length])?;
            }
            self.compare_window(at, length)?;
        }
        Ok(())
    }

    fn compare_window(&mut self, offset: u64, length: usize) -> Result<()> {
        let chunk_bytes = self.pair.options.chunk_bytes as usize;
        let mut run: Option<Range<usize>> = None;
        for start in (0..length).step_by(chunk_bytes) {
            let chunk = start..length.min(start + chunk_bytes);
            if self.count_chunk(offset, chunk.clone()) {
                self.copy_run(offset, run.take())?;
                continue;
            }
            run = Some(run.map_or(chunk.start, |run| run.start)..chunk.end);
        }
        self.copy_run(offset, run)
    }

    /// Whether a chunk is equal on both sides; counts and digests it.
    fn count_chunk(&mut self, window_offset: u64, chunk: Range<usize>) -> bool {
        let is_equal = self.buffers[0][chunk.clone()] == self.buffers[1][chunk.clone()];
        let at = window_offset + chunk.start as u64;
        if !is_equal {
            self.report.different_bytes += chunk.len() as u64;
            self.report.first_difference.get_or_insert(at);
        }
        self.digest_chunk(at, chunk, is_equal);
        is_equal
    }

    fn digest_chunk(&mut self, offset: u64, chunk: Range<usize>, is_equal: bool) {
        let Some(hasher) = &self.hasher else { return };
        let source = hasher.digest(&self.buffers[0][chunk.clone()]);
        let replica = if is_equal { source } else { hasher.digest(&self.buffers[1][chunk]) };
        self.digests.push(ChunkDigests { offset, source, replica });
    }

    /// Copies the differing blocks of neighbouring chunks that differ; neighbours of one kind in one piece, as each
    /// write costs the lock of the file.
    fn copy_run(&mut self, window_offset: u64, run: Option<Range<usize>>) -> Result<()> {
        let Some(Range { start, end }) = run.filter(|_| !self.pair.options.dry_run) else { return Ok(()) };
        let mut at = start;
        while at < end {
            let action = self.action(at, end);
            let mut next = (at + BLOCK_BYTES).min(end);
            while next < end && self.action(next, end) == action {
                next = (next + BLOCK_BYTES).min(end);
            }
            self.act(action, window_offset, at, next)?;
            at = next;
        }
        Ok(())
    }

    fn action(&self, at: usize, end: usize) -> Action {
        let block = at..(at + BLOCK_BYTES).min(end);
        let [source, replica] = self.buffers.each_ref().map(|buffer| &buffer[block.clone()]);
        match source == replica {
            true => Action::Keep,
            false if source.iter().all(|byte| *byte == 0) => Action::Punch,
            false => Action::Write,
        }
    }

    fn act(&mut self, action: Action, window_offset: u64, start: usize, end: usize) -> Result<()> {
        let (offset, length_bytes) = (window_offset + start as u64, (end - start) as u64);
        match action {
            Action::Keep => {}
            Action::Write => {
                self.pair.replica.write_at(offset, &self.buffers[0][start..end])?;
                self.report.written_bytes += length_bytes;
            }
            Action::Punch => {
                self.pair.replica.discard(offset, length_bytes)?;
                self.report.punched_bytes += length_bytes;
            }
        }
        Ok(())
    }
}
