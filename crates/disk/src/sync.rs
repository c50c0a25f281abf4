//! One-shot synchronization: makes a range of a replica equal to the source by comparing digests of chunks.
//!
//! ```text
//! plan (extents of both) --batches--> source thread: digests --+
//!                        \----------> replica thread: digests --+--> caller: compare, copy what differs
//! ```
//!
//! Where both sides are holes nothing is read. Each side is read once, by a thread of its own and a few batches ahead of
//! the comparison, which writes only behind both. Two sides are compared by digests although both are local, because the
//! comparing core would otherwise read what the other core has just read: 16 bytes a chunk cross instead.
//!
//! The unit of copying is the run of neighbouring chunks that differ. A finer unit would need the replica's chunk once
//! more for comparing, and block sizes below a chunk save only the bytes of a local write.
//!
//! Nothing here is durable before the caller flushes the replica. A pass that was stopped or has failed leaves a replica
//! that is nowhere worse than before, so the caller drives ranges (256 MiB lose nothing) and goes on where it stopped. A
//! source that is written to meanwhile must have its changes tracked: a chunk is copied as it is when its turn comes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Scope;

use crate::device::{BlockDevice, ExtentKind, check_range};
use crate::digest::{DIGEST_BYTES, DigestAlgorithm, Digester, ExtentCursor, chunk_count, refuse_stopped};
use crate::error::Result;

/// A batch is at most this, or one chunk.
const BATCH_BYTES: u64 = 8 << 20;
/// Batches asked for and not yet compared; more would only hide a difference in speed that stays.
const BATCHES_IN_FLIGHT_MAX: usize = 4;
/// Differing chunks are copied in pieces of at most this.
const COPY_BYTES: u64 = 1 << 20;

/// How to synchronize.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncOptions {
    /// Unit of comparing: a multiple of 512, at most [`CHUNK_BYTES_MAX`](crate::CHUNK_BYTES_MAX).
    pub chunk_bytes: u64,
    /// How chunks are digested.
    pub algorithm: DigestAlgorithm,
    /// Seed of the digests; a new one for every pass keeps a collision from staying unseen for ever.
    pub seed: u64,
    /// Compare only.
    pub dry_run: bool,
    /// 1: the caller alone; more: one thread a side beside the caller.
    pub threads: usize,
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
    /// Of those, data written to the replica.
    pub written_bytes: u64,
    /// Of those, given back on the replica, because the source has holes or zeros there.
    pub punched_bytes: u64,
    /// Where the first differing chunk begins.
    pub first_difference: Option<u64>,
}

/// Makes a range of `replica` equal to `source`; its chunks count from `offset`.
///
/// # Errors
/// OPTION_OUT_OF_RANGE, DISK_OUT_OF_RANGE, DISK_READ_FAILED, DISK_WRITE_FAILED, DISK_FULL, DISK_READ_ONLY, ABORTED once
/// `stop` is set. Chunks before the place of the error may have been copied.
pub fn sync_range(
    source: &dyn BlockDevice,
    replica: &dyn BlockDevice,
    offset: u64,
    length_bytes: u64,
    options: &SyncOptions,
    stop: &AtomicBool,
) -> Result<SyncReport> {
    check_range(source, offset, length_bytes)?;
    check_range(replica, offset, length_bytes)?;
    let pair = Pair { source, replica, options: *options, stop };
    let sides = [pair.digester(source)?, pair.digester(replica)?];
    let plan = Plan::new(&pair, offset, offset + length_bytes);
    let mut pass = Pass { pair: &pair, report: SyncReport::default(), buffer: Vec::new() };
    if options.threads < 2 {
        pass.run_alone(plan, sides)?
    } else {
        pass.run_threads(plan, sides)?
    }
    Ok(pass.finish(length_bytes))
}

/// The two disks and how to compare them.
struct Pair<'a> {
    source: &'a dyn BlockDevice,
    replica: &'a dyn BlockDevice,
    options: SyncOptions,
    stop: &'a AtomicBool,
}

impl<'a> Pair<'a> {
    fn digester(&self, device: &'a dyn BlockDevice) -> Result<Digester<'a>> {
        let SyncOptions { chunk_bytes, algorithm, seed, .. } = self.options;
        Digester::new(device, chunk_bytes, algorithm, seed)
    }

    fn digests(&self, side: &mut Digester<'_>, ranges: &[(u64, u64)]) -> Result<Vec<u8>> {
        let mut digests = vec![0; chunk_count(ranges, self.options.chunk_bytes) as usize * DIGEST_BYTES];
        side.digest(ranges, &mut digests, self.stop)?;
        Ok(digests)
    }
}

/// Ranges to digest on both sides, on the chunk grid.
type Batch = Arc<[(u64, u64)]>;

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
            batch_bytes: (BATCH_BYTES / chunk_bytes * chunk_bytes).max(chunk_bytes),
            at: offset,
            end,
        }
    }

    /// The next batch; `None` at the end.
    fn next(&mut self) -> Result<Option<Batch>> {
        let (mut ranges, mut left): (Vec<(u64, u64)>, u64) = (Vec::new(), self.batch_bytes);
        while left > 0 && self.at < self.end {
            let (length_bytes, is_busy) = self.stretch(left)?;
            if is_busy {
                push_joined(&mut ranges, self.at, length_bytes);
                left = left.saturating_sub(length_bytes);
            }
            self.at += length_bytes;
        }
        Ok((!ranges.is_empty()).then(|| ranges.into()))
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

/// One thread that digests one side.
struct Side {
    asked: Sender<Batch>,
    answers: Receiver<Result<Vec<u8>>>,
}

impl Side {
    /// The thread ends once the side is dropped, after the batch in hand.
    fn start<'scope, 'a>(
        scope: &'scope Scope<'scope, '_>,
        pair: &'a Pair<'a>,
        mut digester: Digester<'a>,
    ) -> Self
    where
        'a: 'scope,
    {
        let (asked, batches) = channel::<Batch>();
        let (answer, answers) = channel();
        scope.spawn(move || {
            for batch in batches {
                if answer.send(pair.digests(&mut digester, &batch)).is_err() {
                    break;
                }
            }
        });
        Self { asked, answers }
    }

    fn ask(&self, batch: &Batch) {
        // A thread that is gone has panicked: `answer` says so.
        let _ = self.asked.send(Arc::clone(batch));
    }

    fn answer(&self) -> Result<Vec<u8>> {
        #[expect(clippy::expect_used, reason = "the thread answers every batch unless it has panicked")]
        self.answers.recv().expect("the digesting thread has panicked")
    }
}

/// Compares and copies.
struct Pass<'a> {
    pair: &'a Pair<'a>,
    report: SyncReport,
    buffer: Vec<u8>,
}

impl<'a> Pass<'a> {
    fn run_alone(&mut self, mut plan: Plan<'a>, [mut source, mut replica]: [Digester<'a>; 2]) -> Result<()> {
        while let Some(batch) = plan.next()? {
            let digests = self.pair.digests(&mut source, &batch)?;
            let other = self.pair.digests(&mut replica, &batch)?;
            self.settle(&batch, &digests, &other)?;
        }
        Ok(())
    }

    fn run_threads(&mut self, mut plan: Plan<'a>, [source, replica]: [Digester<'a>; 2]) -> Result<()> {
        let pair = self.pair;
        std::thread::scope(|scope| {
            let (source, replica) = (Side::start(scope, pair, source), Side::start(scope, pair, replica));
            let mut flying = VecDeque::new();
            loop {
                while flying.len() < BATCHES_IN_FLIGHT_MAX
                    && let Some(batch) = plan.next()?
                {
                    source.ask(&batch);
                    replica.ask(&batch);
                    flying.push_back(batch);
                }
                let Some(batch) = flying.pop_front() else { return Ok(()) };
                self.settle(&batch, &source.answer()?, &replica.answer()?)?;
            }
        })
    }

    /// Copies the chunks of a batch whose digests differ, neighbours together.
    fn settle(&mut self, batch: &Batch, source: &[u8], replica: &[u8]) -> Result<()> {
        let chunk_bytes = self.pair.options.chunk_bytes;
        let mut digests = source.chunks_exact(DIGEST_BYTES).zip(replica.chunks_exact(DIGEST_BYTES));
        for &(offset, length_bytes) in batch.iter() {
            let end = offset + length_bytes;
            let mut run: Option<u64> = None;
            for at in (offset..end).step_by(chunk_bytes as usize) {
                let is_equal = digests.next().is_some_and(|(source, replica)| source == replica);
                if is_equal && let Some(start) = run.take() {
                    self.differs(start, at)?;
                } else if !is_equal {
                    run.get_or_insert(at);
                }
            }
            if let Some(start) = run {
                self.differs(start, end)?;
            }
        }
        Ok(())
    }

    fn differs(&mut self, offset: u64, end: u64) -> Result<()> {
        self.report.different_bytes += end - offset;
        self.report.first_difference.get_or_insert(offset);
        if self.pair.options.dry_run { Ok(()) } else { self.copy(offset, end) }
    }

    fn copy(&mut self, offset: u64, end: u64) -> Result<()> {
        let mut map = ExtentCursor::new(self.pair.source, end);
        let mut at = offset;
        while at < end {
            refuse_stopped(self.pair.stop, self.pair.replica, at, end)?;
            let extent = map.at(at)?;
            match extent.kind {
                ExtentKind::Hole => self.punch(at, extent.length_bytes)?,
                ExtentKind::Data => self.copy_data(at, extent.end())?,
            }
            at = extent.end();
        }
        Ok(())
    }

    fn copy_data(&mut self, offset: u64, end: u64) -> Result<()> {
        self.buffer.resize(COPY_BYTES as usize, 0);
        for at in (offset..end).step_by(COPY_BYTES as usize) {
            let piece_bytes = COPY_BYTES.min(end - at);
            let piece = &mut self.buffer[..piece_bytes as usize];
            self.pair.source.read_at(at, piece)?;
            if is_zero(piece) {
                self.punch(at, piece_bytes)?;
                continue;
            }
            self.pair.replica.write_at(at, piece)?;
            self.report.written_bytes += piece_bytes;
        }
        Ok(())
    }

    fn punch(&mut self, offset: u64, length_bytes: u64) -> Result<()> {
        self.pair.replica.discard(offset, length_bytes)?;
        self.report.punched_bytes += length_bytes;
        Ok(())
    }

    fn finish(self, length_bytes: u64) -> SyncReport {
        let equal_bytes = length_bytes - self.report.different_bytes;
        SyncReport { compared_bytes: length_bytes, equal_bytes, ..self.report }
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    // Whole words: the compiler makes wide compares of this.
    let (words, tail) = bytes.as_chunks::<16>();
    words.iter().all(|word| *word == [0; 16]) && tail.iter().all(|byte| *byte == 0)
}
