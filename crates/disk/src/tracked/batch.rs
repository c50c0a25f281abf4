//! Requests that change a disk, many at once: the one way into log and disk.
//!
//! Requests are cut into pieces that regions and logs can hold, and pieces are put together into steps. A step is one
//! hold of the order lock for one append to the log (a vectored write each to log and index), then, beside other steps, the
//! writes to the disk, where neighbours that lie side by side become one. Requests keep their order where they overlap, in log and disk.
//!
//! A step is bounded in entries and bytes by what the next open redoes after a death in the middle of it, and in
//! regions by what may be active at once.

use std::io::IoSlice;

use secondsite_hrl::{Append, Operation};

use super::disk::TrackedDisk;
use super::order::{PIECE_DATA_BYTES, PIECE_RANGE_BYTES};
use super::redo::{REDONE_BYTES, REDONE_ENTRIES};
use super::regions::regions_of;
use crate::device::{BlockDevice, check_range};
use crate::error::{DiskError, Place, Result};

/// Entries of a step.
const STEP_ENTRIES_MAX: usize = 256;
const _: () = assert!(STEP_ENTRIES_MAX as u64 <= REDONE_ENTRIES && PIECE_DATA_BYTES < REDONE_BYTES);

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchAction<'a> {
    /// Data replaces the range.
    Write(&'a [u8]),
    /// The range reads as zeros; its space stays allocated unless it may be unmapped.
    WriteZeroes {
        /// Bytes.
        length_bytes: u64,
        /// Whether its space may be given back.
        may_unmap: bool,
    },
    /// The range is given back, and reads as zeros.
    Discard {
        /// Bytes.
        length_bytes: u64,
    },
}

/// One request of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchRequest<'a> {
    /// First byte, a multiple of 512.
    pub offset: u64,
    /// What it does there.
    pub action: BatchAction<'a>,
    /// FUA: it is durable, as after a flush, when it succeeded.
    pub is_durable: bool,
}

impl<'a> BatchRequest<'a> {
    /// A request that need not be durable.
    pub fn new(offset: u64, action: BatchAction<'a>) -> Self {
        Self { offset, action, is_durable: false }
    }

    fn length_bytes(&self) -> u64 {
        match self.action {
            BatchAction::Write(data) => data.len() as u64,
            BatchAction::WriteZeroes { length_bytes, .. } | BatchAction::Discard { length_bytes } => {
                length_bytes
            }
        }
    }

    fn operation(&self) -> Operation {
        match self.action {
            BatchAction::Write(_) => Operation::Write,
            BatchAction::WriteZeroes { may_unmap: false, .. } => Operation::WriteZeroes,
            BatchAction::WriteZeroes { .. } | BatchAction::Discard { .. } => Operation::Discard,
        }
    }
}

/// A part of a request, as one entry holds it.
#[derive(Clone, Copy)]
struct Piece<'a> {
    /// Number of its request in the batch.
    request: usize,
    append: Append<'a>,
}

/// Cuts a batch into pieces, in order.
struct Pieces<'b, 'a> {
    batch: &'b [BatchRequest<'a>],
    piece_bytes_max: u64,
    request: usize,
    done: u64,
    time_ns: u64,
}

impl<'a> Pieces<'_, 'a> {
    /// The next piece of a request that did not fail yet.
    fn next(&mut self, results: &[Result<()>]) -> Option<Piece<'a>> {
        while let Some(request) = self.batch.get(self.request) {
            let left = request.length_bytes().saturating_sub(self.done);
            if left > 0 && results[self.request].is_ok() {
                return Some(self.cut(request, left));
            }
            (self.request, self.done) = (self.request + 1, 0);
        }
        None
    }

    fn cut(&mut self, request: &BatchRequest<'a>, left: u64) -> Piece<'a> {
        let is_write = matches!(request.action, BatchAction::Write(_));
        let most = if is_write { PIECE_DATA_BYTES } else { PIECE_RANGE_BYTES };
        let length_bytes = left.min(most).min(self.piece_bytes_max);
        let data = match request.action {
            BatchAction::Write(data) => &data[self.done as usize..(self.done + length_bytes) as usize],
            _ => &[],
        };
        let append = Append {
            operation: request.operation(),
            offset: request.offset + self.done,
            length_bytes,
            data,
            time_ns: self.time_ns,
        };
        self.done += length_bytes;
        Piece { request: self.request, append }
    }

    /// Puts a piece back that did not fit.
    fn put_back(&mut self, piece: &Piece<'a>) {
        self.done -= piece.append.length_bytes;
    }

    /// The pieces of the next step.
    fn step(&mut self, regions_max: u64, results: &[Result<()>]) -> Vec<Piece<'a>> {
        let (mut step, mut data_bytes, mut regions) = (Vec::new(), 0, 0);
        while step.len() < STEP_ENTRIES_MAX {
            let Some(piece) = self.next(results) else { break };
            let touched = regions_of(piece.append.offset, piece.append.length_bytes);
            data_bytes += piece.append.data.len() as u64;
            regions += touched.end - touched.start;
            if !step.is_empty() && (data_bytes > PIECE_DATA_BYTES || regions > regions_max) {
                self.put_back(&piece);
                break;
            }
            step.push(piece);
        }
        step
    }
}

impl TrackedDisk {
    /// Carries out requests, in their order where they overlap; one result each.
    ///
    /// A request that fails does not keep others from being carried out. Of requests that ask for it (FUA) all share one
    /// flush behind the last.
    ///
    /// # Errors
    /// Of each request: DISK_OUT_OF_RANGE, DISK_IN_USE when the disk is closed, DISK_FULL, DISK_WRITE_FAILED,
    /// DISK_SYNC_FAILED.
    pub fn write_batch(&self, batch: &[BatchRequest<'_>]) -> Vec<Result<()>> {
        let check = |request: &BatchRequest<'_>| check_range(self, request.offset, request.length_bytes());
        let mut results: Vec<Result<()>> = batch.iter().map(check).collect();
        let mut pieces = Pieces {
            batch,
            piece_bytes_max: self.piece_bytes_max(),
            request: 0,
            done: 0,
            time_ns: self.options.now(),
        };
        loop {
            let step = pieces.step(self.regions_max(), &results);
            if step.is_empty() {
                break;
            }
            self.take_step(&step, batch, &mut results);
        }
        self.make_durable(batch, &mut results);
        results
    }

    /// As a batch of one.
    pub(crate) fn write_one(&self, offset: u64, action: BatchAction<'_>) -> Result<()> {
        self.write_batch(&[BatchRequest::new(offset, action)]).pop().unwrap_or(Ok(()))
    }

    fn take_step(&self, step: &[Piece<'_>], batch: &[BatchRequest<'_>], results: &mut [Result<()>]) {
        let appends: Vec<Append<'_>> = step.iter().map(|piece| piece.append).collect();
        let mut entered = self.order.enter(&appends);
        if self.check_open().is_err() {
            step.iter().filter_map(|piece| Some((piece, self.check_open().err()?))).for_each(|(piece, e)| {
                fail(results, piece.request, e);
            });
            return;
        }
        // Nobody changes the size meanwhile: who shrinks the disk has the order alone.
        if appends.iter().any(|append| append.offset + append.length_bytes > self.size_bytes()) {
            drop(entered);
            return self.take_inside(step, batch, results);
        }
        entered.order().remember(&appends, &self.options);
        let departed = entered.depart(&appends);
        let refused = self.write_step(step, batch, results);
        self.options.step("written");
        let is_due = departed.land(|order| {
            refused.iter().for_each(|&(offset, length_bytes)| order.note_disk_failure(offset, length_bytes));
            order.is_rotation_due(&self.options)
        });
        if is_due {
            self.rotate_when_due(appends[0].time_ns);
        }
    }

    /// The disk has shrunk since the requests were checked: what reaches past its end now is refused, the rest carried out.
    fn take_inside(&self, step: &[Piece<'_>], batch: &[BatchRequest<'_>], results: &mut [Result<()>]) {
        let end = self.size_bytes();
        let (inside, outside): (Vec<Piece<'_>>, Vec<Piece<'_>>) =
            step.iter().copied().partition(|piece| piece.append.offset + piece.append.length_bytes <= end);
        for Piece { request, append } in outside {
            let place = Place::new(self.path(), append.offset, append.length_bytes);
            fail(results, request, DiskError::OutOfRange(place));
        }
        if !inside.is_empty() {
            self.take_step(&inside, batch, results);
        }
    }

    /// Carries out a step on the disk; the ranges that the disk refused. Where one write for a whole run fails, each piece
    /// is tried alone, so that each request learns its own fate.
    fn write_step(
        &self,
        step: &[Piece<'_>],
        batch: &[BatchRequest<'_>],
        results: &mut [Result<()>],
    ) -> Vec<(u64, u64)> {
        let mut refused = Vec::new();
        for run in runs(step) {
            if self.write_run(run) {
                continue;
            }
            for piece in run {
                if let Err(e) = self.write_piece(piece, batch[piece.request].action) {
                    refused.push((piece.append.offset, piece.append.length_bytes));
                    fail(results, piece.request, e);
                }
            }
        }
        refused
    }

    /// Writes neighbours at once; false where there are none, or it failed.
    fn write_run(&self, run: &[Piece<'_>]) -> bool {
        let [first, _, ..] = run else { return false };
        let slices: Vec<IoSlice<'_>> = run.iter().map(|piece| IoSlice::new(piece.append.data)).collect();
        self.device.write_vectored_at(first.append.offset, &slices).is_ok()
    }

    fn write_piece(&self, piece: &Piece<'_>, action: BatchAction<'_>) -> Result<()> {
        let Append { offset, length_bytes, data, .. } = piece.append;
        match action {
            BatchAction::Write(_) => self.device.write_at(offset, data),
            BatchAction::WriteZeroes { may_unmap, .. } => {
                self.device.write_zeroes(offset, length_bytes, may_unmap)
            }
            BatchAction::Discard { .. } => self.device.discard(offset, length_bytes),
        }
    }

    fn make_durable(&self, batch: &[BatchRequest<'_>], results: &mut [Result<()>]) {
        let is_asked = |n: usize, results: &[Result<()>]| batch[n].is_durable && results[n].is_ok();
        if !(0..batch.len()).any(|n| is_asked(n, results)) {
            return;
        }
        let Err(e) = self.flush() else { return };
        let mut first = Some(e);
        for n in 0..batch.len() {
            if is_asked(n, results) {
                // One flush failed for all of them.
                results[n] =
                    Err(first.take().unwrap_or_else(|| DiskError::SyncFailed(Place::whole(self.path()))));
            }
        }
    }
}

/// Keeps the first error of a request.
fn fail(results: &mut [Result<()>], request: usize, error: DiskError) {
    if results[request].is_ok() {
        results[request] = Err(error);
    }
}

/// Parts a step where writes do not lie side by side.
fn runs<'s, 'a>(step: &'s [Piece<'a>]) -> impl Iterator<Item = &'s [Piece<'a>]> {
    step.chunk_by(|a, b| {
        let (a, b) = (&a.append, &b.append);
        let are_writes = a.operation == Operation::Write && b.operation == Operation::Write;
        are_writes && a.offset + a.length_bytes == b.offset
    })
}
