//! The working half of a session: carries out a batch and sends its replies.
//!
//! Requests are carried out in the order of their arrival, with one freedom: writes are collected and given to the
//! export together. A read that does not touch a collected write goes before it, which a client cannot tell, as it has
//! no answer to either. Everything else waits for the collected writes: overlapping reads, zeroes, trims, status, flush.

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

use super::intake::{Batch, Request};
use super::out::{Out, SEND_BYTES};
use super::status;

/// CACHE reads in pieces of this.
const CACHE_PIECE_BYTES: usize = 1 << 20;

/// Why a request failed: the protocol's number, and a code for people.
pub(crate) type Failure = (Errno, &'static str);

pub(crate) struct Executor {
    export: Arc<dyn Export>,
    contexts: Vec<Context>,
    rules: Rules,
    out: Out,
    /// Writes of the batch that wait to be given to the export, by their place in it.
    pending: Vec<usize>,
    tally: Tally,
    counters: Arc<LiveCounters>,
}

impl Executor {
    pub(crate) fn new(entered: Entered, request_bytes_max: u32, counters: Arc<LiveCounters>) -> Self {
        let rules = Rules {
            size_bytes: entered.export.device().size_bytes(),
            request_bytes_max,
            is_read_only: entered.export.is_read_only(),
            is_structured: entered.is_structured,
            has_contexts: !entered.contexts.is_empty(),
            is_zeroing_fast: entered.export.is_zeroing_fast(),
        };
        Self {
            export: entered.export,
            contexts: entered.contexts,
            rules,
            out: Out::default(),
            pending: Vec::new(),
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
                self.out.send(sender)?;
            }
        }
        self.write_pending(batch);
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
            Command::Write => self.pending.push(index),
            Command::Read => {
                if self.touches_pending(batch, header) {
                    self.write_pending(batch);
                }
                self.read(header);
            }
            _ => {
                self.write_pending(batch);
                self.other(command, header);
            }
        }
    }

    fn touches_pending(&self, batch: &Batch, read: &RequestHeader) -> bool {
        self.pending.iter().any(|index| {
            let write = &batch.requests[*index].header;
            write.offset < read.end() && read.offset < write.end()
        })
    }

    fn read(&mut self, header: &RequestHeader) {
        let used = self.out.used();
        if self.rules.is_structured {
            self.out.put(&reply::data_header(header.cookie, header.offset, header.length_bytes));
        } else {
            self.out.put(&reply::simple(header.cookie, None));
        }
        let space = self.out.space(header.length_bytes as usize);
        match self.export.device().read_at(header.offset, space) {
            Ok(()) => self.tally.read_bytes += u64::from(header.length_bytes),
            Err(e) => {
                self.out.take_back(used);
                self.answer(header, Err(errno_of(&e)));
            }
        }
    }

    /// Gives the collected writes to the export and answers them; one flush serves all that ask for it.
    fn write_pending(&mut self, batch: &Batch) {
        if self.pending.is_empty() {
            return;
        }
        let pending = std::mem::take(&mut self.pending);
        let requests = || pending.iter().map(|index| &batch.requests[*index]);
        let mut results = self.write(batch, requests());
        let is_durable = requests().any(|request| request.header.has(cmd_flag::FUA)).then(|| self.flush());
        for (request, result) in requests().zip(&mut results) {
            if let (true, Some(flushed)) = (request.header.has(cmd_flag::FUA), is_durable) {
                *result = result.and(flushed);
            }
            if result.is_ok() {
                self.tally.written_bytes += u64::from(request.header.length_bytes);
            }
            self.answer(&request.header, *result);
        }
        self.pending = pending;
        self.pending.clear();
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
            Command::Flush => self.flush(),
            Command::Trim => failure_of(device.discard(offset, length_bytes)),
            Command::WriteZeroes { may_unmap } => {
                failure_of(device.write_zeroes(offset, length_bytes, may_unmap))
            }
            Command::Cache => failure_of(self.cache(offset, length_bytes)),
            Command::BlockStatus { is_one } => return self.status(header, is_one),
            Command::Read | Command::Write => unreachable!("carried out by its own function"),
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
        let Err((errno, message)) = result else {
            return self.out.put(&reply::simple(header.cookie, None));
        };
        self.tally.error_count += 1;
        if self.rules.is_structured {
            let mut chunk = Vec::new();
            reply::put_error(&mut chunk, header.cookie, errno, message);
            self.out.put(&chunk);
        } else {
            self.out.put(&reply::simple(header.cookie, Some(errno)));
        }
    }
}

fn failure_of(result: Result<(), DiskError>) -> Result<(), Failure> {
    result.map_err(|e| errno_of(&e))
}
