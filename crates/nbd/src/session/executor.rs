//! The working half of a session: carries out a batch and sends its replies.
//!
//! Requests are carried out in the order of their arrival, with one freedom: writes are collected and given to the
//! export together. A read that does not touch a collected write goes before it, which a client cannot tell, as it has
//! no answer to either. Everything else waits for the collected writes: overlapping reads, zeroes, trims, status, flush.
//! Likewise reads that miss the cache are collected and done side by side, before anything that changes what they read.
//!
//! Flushes wait for the end of the batch and share one: a flush owes durability to writes that were answered before it was
//! sent, and no write of its batch was. Clients with a deep queue send theirs in trains, and write on meanwhile: then the
//! flush is [`super::flusher`]'s.

use std::io;
use std::sync::Arc;

use secondsite_disk::DiskError;

use crate::codec::constants::{Errno, cmd_flag};
use crate::codec::reply;
use crate::codec::request::{Command, RequestHeader, Rules, check};
use crate::counters::{LiveCounters, Tally};
use crate::error::errno_of;
use crate::export::{Export, WriteRequest};
use crate::handshake::Entered;
use crate::meta::Context;
use crate::wire::Sender;

use super::flusher::{Flusher, Parts};
use super::intake::{Batch, Request};
use super::out::{Answers, Failure, Out, SEND_BYTES};
use super::readers::{Job, Readers};
use super::status;

/// A longer read that misses the cache is not collected: the read-ahead of the system gives it its depth.
const MISS_BYTES_MAX: u32 = 256 << 10;
/// CACHE reads in pieces of this.
const CACHE_PIECE_BYTES: usize = 1 << 20;

/// A read that has to wait for the medium; its reply is laid out already.
struct Miss {
    header: RequestHeader,
    /// Where its reply begins, and where its data does.
    reply_at: usize,
    data_at: usize,
}

impl Miss {
    fn data_end(&self) -> usize {
        self.data_at + self.header.length_bytes as usize
    }
}

pub(crate) struct Executor {
    export: Arc<dyn Export>,
    contexts: Vec<Context>,
    rules: Rules,
    out: Out,
    /// Writes of the batch that wait to be given to the export, by their place in it.
    pending: Vec<usize>,
    misses: Vec<Miss>,
    /// Flushes of the batch, and writes that ask to be durable and succeeded.
    unflushed: Vec<RequestHeader>,
    readers: Readers,
    flusher: Flusher,
    answers: Answers,
    tally: Tally,
    counters: Arc<LiveCounters>,
}

impl Executor {
    /// `second` sends the replies of flushes that do not hold up the others, where there can be one.
    pub(crate) fn new(
        entered: Entered,
        request_bytes_max: u32,
        counters: Arc<LiveCounters>,
        second: Option<Box<dyn Sender>>,
    ) -> Self {
        let rules = Rules {
            size_bytes: entered.export.device().size_bytes(),
            request_bytes_max,
            is_read_only: entered.export.is_read_only(),
            is_structured: entered.is_structured,
            has_contexts: !entered.contexts.is_empty(),
            is_zeroing_fast: entered.export.is_zeroing_fast(),
        };
        let readers = Readers::new(entered.export.clone());
        let answers = Answers { is_structured: rules.is_structured };
        let (export, shared) = (entered.export.clone(), counters.clone());
        let parts = second.map(|sender| Parts { export, sender, answers, counters: shared });
        Self {
            export: entered.export,
            contexts: entered.contexts,
            rules,
            out: Out::default(),
            pending: Vec::new(),
            misses: Vec::new(),
            unflushed: Vec::new(),
            readers,
            flusher: Flusher::new(parts),
            answers,
            tally: Tally::default(),
            counters,
        }
    }

    /// Answers every request of a batch.
    ///
    /// # Errors
    /// Those of sending; errors of the disk are answers.
    pub(crate) fn run(&mut self, batch: &Batch, sender: &mut dyn Sender) -> io::Result<()> {
        self.rules.size_bytes = self.export.device().size_bytes();
        for (index, request) in batch.requests.iter().enumerate() {
            self.one(batch, index, request);
            if self.out.used() >= SEND_BYTES {
                self.read_misses();
                self.out.send(sender)?;
            }
        }
        self.write_pending(batch);
        self.flush_pending(batch.requests.len());
        self.read_misses();
        self.tally.request_count += batch.requests.len() as u64;
        // Before the replies leave: who has its reply finds it counted.
        self.counters.add(&mut self.tally);
        self.out.send(sender)
    }

    fn one(&mut self, batch: &Batch, index: usize, request: &Request) {
        let header = &request.header;
        let command = match check(header, &self.rules) {
            Ok(command) => command,
            Err(errno) => return self.answer(header, Err((errno, "NBD_REQUEST_REFUSED"))),
        };
        match command {
            Command::Write => {
                if self.misses.iter().any(|miss| overlap(&miss.header, header)) {
                    self.read_misses();
                }
                self.pending.push(index);
            }
            Command::Read => {
                if self.touches_pending(batch, header) {
                    self.write_pending(batch);
                }
                self.read(header);
            }
            Command::Flush => self.unflushed.push(*header),
            _ => {
                self.read_misses();
                self.write_pending(batch);
                self.other(command, header);
            }
        }
    }

    fn touches_pending(&self, batch: &Batch, read: &RequestHeader) -> bool {
        self.pending.iter().any(|index| overlap(&batch.requests[*index].header, read))
    }

    fn read(&mut self, header: &RequestHeader) {
        let reply_at = self.out.used();
        if self.rules.is_structured {
            self.out.put(&reply::data_header(header.cookie, header.offset, header.length_bytes));
        } else {
            self.out.put(&reply::simple(header.cookie, None));
        }
        let data_at = self.out.used();
        let (device, space) = (self.export.device(), self.out.space(header.length_bytes as usize));
        let miss = Miss { header: *header, reply_at, data_at };
        match device.read_cached(header.offset, space) {
            Ok(false) if header.length_bytes <= MISS_BYTES_MAX => self.misses.push(miss),
            Ok(false) => {
                let result = device.read_at(header.offset, space);
                self.end_read(&miss, result);
            }
            cached => self.end_read(&miss, cached.map(|_| ())),
        }
    }

    /// Counts a read, or puts the error in the place of its reply.
    fn end_read(&mut self, miss: &Miss, result: Result<(), DiskError>) {
        let Err(error) = result else {
            self.tally.read_bytes += u64::from(miss.header.length_bytes);
            return;
        };
        let rest = self.out.cut(miss.reply_at, miss.data_end());
        self.answer(&miss.header, Err(errno_of(&error)));
        self.out.put(&rest);
    }

    /// Does the reads that were collected: one here, several side by side.
    fn read_misses(&mut self) {
        let misses = std::mem::take(&mut self.misses);
        if let [miss] = &misses[..] {
            let space = self.out.at(miss.data_at, miss.data_end());
            let result = self.export.device().read_at(miss.header.offset, space);
            self.end_read(miss, result);
        } else if !misses.is_empty() {
            self.read_side_by_side(&misses);
        }
        self.misses = misses;
        self.misses.clear();
    }

    fn read_side_by_side(&mut self, misses: &[Miss]) {
        let job = |(slot, miss): (usize, &Miss)| {
            let buffer = vec![0; miss.header.length_bytes as usize];
            Job { slot, offset: miss.header.offset, buffer }
        };
        let mut done = self.readers.read(misses.iter().enumerate().map(job));
        for read in done.iter().filter(|read| read.result.is_ok()) {
            let miss = &misses[read.slot];
            self.out.at(miss.data_at, miss.data_end()).copy_from_slice(&read.buffer);
        }
        // From the last to the first: an error is shorter than the data it replaces, so what is behind it moves.
        done.sort_by_key(|read| std::cmp::Reverse(read.slot));
        done.into_iter().for_each(|read| self.end_read(&misses[read.slot], read.result));
    }

    /// Gives the collected writes to the export and answers them, but for those that are to be durable.
    fn write_pending(&mut self, batch: &Batch) {
        if self.pending.is_empty() {
            return;
        }
        let pending = std::mem::take(&mut self.pending);
        let requests = || pending.iter().map(|index| &batch.requests[*index]);
        let results = self.write(batch, requests());
        for (request, result) in requests().zip(results) {
            if result.is_ok() && request.header.has(cmd_flag::FUA) {
                self.unflushed.push(request.header);
                continue;
            }
            self.end_write(&request.header, result);
        }
        self.pending = pending;
        self.pending.clear();
    }

    fn end_write(&mut self, header: &RequestHeader, result: Result<(), Failure>) {
        self.answers.written(&mut self.out, &mut self.tally, header, result);
    }

    /// One flush for all that wait for one; on another thread when the client has more under way than its flushes.
    fn flush_pending(&mut self, request_count: usize) {
        if self.unflushed.is_empty() {
            return;
        }
        let goes_on = self.unflushed.len() < request_count || self.flusher.is_busy();
        if goes_on && self.flusher.take(&mut self.unflushed) {
            return;
        }
        let flushed = self.flush();
        for header in self.unflushed.drain(..) {
            self.answers.flushed(&mut self.out, &mut self.tally, &header, flushed);
        }
    }

    fn write<'b>(
        &self,
        batch: &'b Batch,
        requests: impl ExactSizeIterator<Item = &'b Request>,
    ) -> Vec<Result<(), Failure>> {
        let count = requests.len();
        let writes: Vec<WriteRequest<'_>> = requests
            .map(|request| WriteRequest { offset: request.header.offset, data: batch.payload(request) })
            .collect();
        let mut results: Vec<_> = self.export.write_batch(&writes).into_iter().map(failure_of).collect();
        // An export that forgets a result must not leave its client waiting for ever, or believing it was written.
        results.resize(count, Err((Errno::Io, "NBD_RESULT_MISSING")));
        results
    }

    fn other(&mut self, command: Command, header: &RequestHeader) {
        let (offset, length_bytes) = (header.offset, u64::from(header.length_bytes));
        let device = self.export.device();
        let result = match command {
            Command::Trim => failure_of(device.discard(offset, length_bytes)),
            Command::WriteZeroes { may_unmap } => {
                failure_of(device.write_zeroes(offset, length_bytes, may_unmap))
            }
            Command::Cache => failure_of(self.cache(offset, length_bytes)),
            Command::BlockStatus { is_one } => return self.status(header, is_one),
            Command::Read | Command::Write | Command::Flush => {
                unreachable!("carried out by its own function")
            }
        };
        let is_change = matches!(command, Command::Trim | Command::WriteZeroes { .. });
        let needs_flush = is_change && header.has(cmd_flag::FUA);
        let result = if needs_flush { result.and_then(|()| self.flush()) } else { result };
        self.answer(header, result);
    }

    fn flush(&mut self) -> Result<(), Failure> {
        self.tally.flush_count += 1;
        failure_of(self.export.device().flush())
    }

    /// Reads a range into the cache of the system, and forgets it.
    fn cache(&mut self, offset: u64, length_bytes: u64) -> Result<(), DiskError> {
        let used = self.out.used();
        let piece_max = CACHE_PIECE_BYTES.min(length_bytes as usize);
        let (mut at, end, mut result) = (offset, offset + length_bytes, Ok(()));
        while at < end && result.is_ok() {
            let piece = piece_max.min((end - at) as usize);
            result = self.export.device().read_at(at, self.out.space(piece));
            self.out.take_back(used);
            at += piece as u64;
        }
        result
    }

    fn status(&mut self, header: &RequestHeader, is_one: bool) {
        let used = self.out.used();
        let mut chunk = Vec::new();
        let contexts = std::mem::take(&mut self.contexts);
        for (index, context) in contexts.iter().enumerate() {
            chunk.clear();
            match status::extents_of(*context, &*self.export, header.offset, header.length_bytes, is_one) {
                Ok(list) => {
                    let is_last = index + 1 == contexts.len();
                    reply::put_status(&mut chunk, header.cookie, context.id(), &list, is_last);
                    self.out.put(&chunk);
                }
                Err(e) => {
                    self.out.take_back(used);
                    self.answer(header, Err(errno_of(&e)));
                    break;
                }
            }
        }
        self.contexts = contexts;
    }

    /// Answers a request that returns no data.
    fn answer(&mut self, header: &RequestHeader, result: Result<(), Failure>) {
        self.answers.put(&mut self.out, &mut self.tally, header, result);
    }
}

fn overlap(one: &RequestHeader, other: &RequestHeader) -> bool {
    one.offset < other.end() && other.offset < one.end()
}

fn failure_of(result: Result<(), DiskError>) -> Result<(), Failure> {
    result.map_err(|e| errno_of(&e))
}
