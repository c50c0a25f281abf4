//! The logs of a disk that is being opened: what is redone, which of them go on, and what is done about damage.
//!
//! | died how | redone on the disk |
//! |---|---|
//! | process | the newest entries of the newest log: at most its last batch is missing. Nothing in mode map: there the disk may be ahead of the logs |
//! | power | every entry from the floor on, log after log. Of a damaged log what its entries prove one by one: a FLUSH that the guest was answered may rest on any of them |
//!
//! A damaged log and all behind it cannot be shipped. They are set aside, their ranges go to the map (the whole disk,
//! where the ranges are not known), and the open goes on.

use std::path::Path;

use secondsite_hrl::{HrlError, LogId, LogReader, RecoverMode, index_path, recover};

use super::bits::SparseBits;
use super::files::{File, file_error};
use super::open::Opening;
use super::order::{OpenLog, reason_of};
use super::redo::{
    Redone, add_ranges_of_sealed, first_in_flight, ranges_of_open, redo_open, redo_salvaged, redo_sealed,
};
use super::scan::{Found, look, open_pair};
use super::state::{Mode, QueuedLog, Recovery, ResyncReason};
use crate::error::Result;

/// A log that was not sealed.
struct LeftOpen {
    log: OpenLog,
    /// The chunks it covers.
    ranges: SparseBits,
    /// Entries that metadata blocks alone prove.
    proven_by_blocks: u64,
}

/// From where on the chain cannot be shipped.
struct Break {
    number: u64,
    reason: ResyncReason,
    /// What the logs from there on cover; `None` when one of them does not tell.
    ranges: Option<SparseBits>,
}

/// The chain as far as it was found whole.
#[derive(Default)]
struct Chain {
    sealed: Vec<(u64, QueuedLog)>,
    open: Vec<LeftOpen>,
    damaged: Option<Break>,
}

impl Chain {
    /// A log is damaged, or follows one that is.
    fn break_at(&mut self, number: u64, reason: ResyncReason, ranges: Option<SparseBits>) {
        match &mut self.damaged {
            None => self.damaged = Some(Break { number, reason, ranges }),
            Some(damaged) => match (&mut damaged.ranges, ranges) {
                (Some(known), Some(more)) => known.union(&more, |_| ()),
                _ => damaged.ranges = None,
            },
        }
    }
}

impl Opening<'_> {
    pub(super) fn recover_logs(&mut self) -> Result<()> {
        let header = &self.tracking.header;
        if self.recovery == Recovery::Clean && header.stamp != super::close::stamp_of(self.device.path()) {
            self.tracking.change_all();
            self.owe(ResyncReason::DiskModifiedOffline);
        }
        let mut chain = Chain::default();
        for number in self.numbers.clone() {
            let path = self.names.log(number);
            match look(self.options, &path) {
                Found::Foreign => {}
                Found::Unused => self.unused.push(number),
                Found::Sealed(found) => self.take_sealed(number, found.0, &found.1, &mut chain),
                Found::Open => self.take_open(number, &path, &mut chain),
                Found::Damaged(e) => self.take_damaged(number, &path, &e, &mut chain),
            }
        }
        let Chain { sealed, open, damaged } = chain;
        match damaged {
            Some(Break { number, reason, ranges }) => {
                self.set_aside_from(number, reason, ranges)?;
                self.choose_open(sealed, open)
            }
            None => self.choose_open(sealed, open),
        }
    }

    fn is_leftover(&self, number: u64) -> bool {
        number < self.tracking.header.first_number
    }

    fn take_sealed(&mut self, number: u64, log: QueuedLog, reader: &LogReader<File>, chain: &mut Chain) {
        let mut damage = None;
        if self.recovery == Recovery::PowerLoss {
            let redone = redo_sealed(self.device, reader, self.tracking.header.floor_sequence);
            damage = self.note_redone(redone);
        }
        if self.is_leftover(number) {
            self.given_up.push(number); // Its ranges are in the map, or on the replica.
            return;
        }
        let mut ranges = SparseBits::default();
        let read = add_ranges_of_sealed(reader, &mut ranges, self.tracking.chunk_count());
        if damage.is_some() || read.is_err() || chain.damaged.is_some() {
            let reason = damage.as_ref().map_or(ResyncReason::LogDamaged, reason_of);
            chain.break_at(number, reason, read.is_ok().then_some(ranges));
        } else {
            self.unreleased.insert(number, ranges);
            chain.sealed.push((number, log));
        }
    }

    fn take_open(&mut self, number: u64, path: &Path, chain: &mut Chain) {
        match self.recover_open(number, path) {
            Ok(found) if self.is_leftover(number) || self.tracking.header.mode == Mode::Map => {
                self.tracking.change_bits(&found.ranges);
                self.given_up.push(number);
            }
            Ok(found) if chain.damaged.is_some() => {
                chain.break_at(number, ResyncReason::LogDamaged, Some(found.ranges));
            }
            Ok(found) => chain.open.push(found),
            Err(e) => self.take_damaged(number, path, &e, chain),
        }
    }

    fn take_damaged(&mut self, number: u64, path: &Path, error: &HrlError, chain: &mut Chain) {
        if self.recovery == Recovery::PowerLoss
            && let Ok((log, index)) = open_pair(self.options, path)
        {
            let redone = redo_salvaged(self.device, &log, &index, self.tracking.header.floor_sequence);
            self.note_redone(redone);
        }
        if self.is_leftover(number) {
            self.given_up.push(number);
        } else {
            chain.break_at(number, reason_of(error), None);
        }
    }

    /// Counts what was redone, and remembers what the disk refused. Hands back what could not be read of the log.
    fn note_redone(&mut self, redone: Redone) -> Option<HrlError> {
        self.redone_bytes += redone.bytes;
        for (offset, length_bytes) in redone.refused {
            self.tracking.change(offset, length_bytes);
            self.owe(ResyncReason::DiskWriteFailed);
        }
        redone.damage
    }

    /// Recovers a log that was not sealed; after a power loss it is redone.
    fn recover_open(&mut self, number: u64, path: &Path) -> std::result::Result<LeftOpen, HrlError> {
        let mode = match self.recovery {
            Recovery::PowerLoss => RecoverMode::PowerLoss,
            _ => RecoverMode::ProcessDeath,
        };
        let (log, index) = open_pair(self.options, path)?;
        let recovered = recover(log, index, mode)?;
        let (writer, proven_by_blocks) = (recovered.writer, recovered.entries_proven_by_blocks);
        let ranges = ranges_of_open(&writer, self.tracking.chunk_count())?;
        if self.recovery == Recovery::PowerLoss {
            let redone = redo_open(self.device, &writer, 0, self.tracking.header.floor_sequence)?;
            self.note_redone(redone);
        }
        Ok(LeftOpen { log: OpenLog { number, path: path.to_path_buf(), writer }, ranges, proven_by_blocks })
    }

    /// Of the logs that are not sealed, the last one with entries is the open one; those before it were swapped out
    /// by a cut, those behind it were prepared.
    fn choose_open(&mut self, sealed: Vec<(u64, QueuedLog)>, open: Vec<LeftOpen>) -> Result<()> {
        let mut chain = self.drop_superseded(sealed);
        let last_used = open.iter().rposition(|left| left.log.writer.entry_count() > 0).unwrap_or(0);
        for (n, left) in open.into_iter().enumerate() {
            if n > last_used {
                self.keep_prepared(left.log);
            } else if self.tracking.header.mode == Mode::Map {
                self.tracking.change_bits(&left.ranges);
                self.given_up.push(left.log.number);
            } else if n < last_used {
                self.seal_left_over(left, &mut chain);
            } else {
                self.go_on_with(left)?;
            }
        }
        self.check_chain(chain)
    }

    /// After the death of the process the last batch of this log, and of no other, may be missing on the disk.
    fn go_on_with(&mut self, left: LeftOpen) -> Result<()> {
        if self.recovery == Recovery::ProcessDeath {
            let (writer, floor) = (&left.log.writer, self.tracking.header.floor_sequence);
            let redone = first_in_flight(writer, left.proven_by_blocks)
                .and_then(|first| redo_open(self.device, writer, first, floor));
            match redone {
                Ok(redone) => drop(self.note_redone(redone)),
                Err(e) => return self.set_aside_from(left.log.number, reason_of(&e), Some(left.ranges)),
            }
        }
        (self.covered, self.open) = (left.ranges, Some(left.log));
        Ok(())
    }

    fn keep_prepared(&mut self, log: OpenLog) {
        let follows = self.open.as_ref().is_some_and(|open| open.writer.id() == log.writer.previous_id());
        if follows && self.next.is_none() {
            self.next = Some(log);
        } else {
            self.unused.push(log.number);
        }
    }

    fn seal_left_over(&mut self, left: LeftOpen, chain: &mut Vec<(u64, QueuedLog)>) {
        let OpenLog { number, path, writer } = left.log;
        let cut_time_ns = writer.last_time_ns();
        match writer.seal(cut_time_ns) {
            Ok(sealed) => {
                self.unreleased.insert(number, left.ranges);
                chain.push((number, QueuedLog { path, sealed, cut_time_ns }));
            }
            Err(e) => {
                self.tracking.change_bits(&left.ranges);
                self.given_up.push(number);
                self.leave_logging(reason_of(&e));
            }
        }
    }

    /// Logs whose coalesced successor is there: a crash came before they were deleted.
    fn drop_superseded(&mut self, mut logs: Vec<(u64, QueuedLog)>) -> Vec<(u64, QueuedLog)> {
        let mut at = 0;
        while at < logs.len() {
            let previous_id = logs[at].1.sealed.previous_id;
            match logs[..at].iter().position(|(_, log)| log.sealed.previous_id == previous_id) {
                Some(first) => {
                    self.given_up.extend(logs.drain(first..at).map(|(number, _)| number));
                    at = first + 1;
                }
                None => at += 1,
            }
        }
        logs
    }

    fn check_chain(&mut self, chain: Vec<(u64, QueuedLog)>) -> Result<()> {
        let mut before: Option<LogId> = None;
        for (number, log) in chain {
            if before.is_some_and(|before| before != log.sealed.previous_id) {
                return self.set_aside_from(number, ResyncReason::ChainBroken, None);
            }
            before = Some(log.sealed.id);
            self.queue.push(log);
        }
        let broken = match (&self.open, before) {
            (Some(open), Some(before)) if open.writer.previous_id() != before => Some(open.number),
            (None, _) if self.tracking.header.mode == Mode::Logging => Some(u64::MAX),
            _ => None,
        };
        broken.map_or(Ok(()), |number| self.set_aside_from(number, ResyncReason::ChainBroken, None))
    }

    /// The chain cannot be trusted from a log on: it and its successors are kept under another name, for whoever wants
    /// to look at them, and what they cover is changed: the whole disk, when that is not known.
    pub(super) fn set_aside_from(
        &mut self,
        number: u64,
        reason: ResyncReason,
        ranges: Option<SparseBits>,
    ) -> Result<()> {
        (self.open, self.next) = (None, None);
        self.covered = SparseBits::default();
        if self.recovery == Recovery::PowerLoss {
            self.device.flush()?; // What was redone from these logs is not redone again once they are gone.
        }
        match ranges {
            Some(ranges) => self.tracking.change_bits(&ranges),
            None => self.tracking.change_all(),
        }
        // The map must be there before the logs are gone from under their names.
        self.tracking.header.mode = Mode::Map;
        self.owe(reason);
        self.tracking.write_header();
        self.tracking.sync();
        let gone = [&self.given_up[..], &self.unused[..]].concat();
        let damaged = self.numbers.iter().filter(|n| **n >= number && !gone.contains(n));
        for path in damaged.map(|n| self.names.log(*n)) {
            for path in [index_path(&path), path] {
                let mut aside = path.clone().into_os_string();
                aside.push(".damaged");
                match self.options.files.rename(&path, Path::new(&aside)) {
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                    other => other.map_err(|e| file_error(&path, "set aside", e))?,
                }
            }
        }
        self.leave_logging(reason);
        Ok(())
    }
}
