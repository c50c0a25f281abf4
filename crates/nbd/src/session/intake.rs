//! The receiving half of a session: bytes come in, batches of whole requests come out.
//!
//! One receive takes what there is. While a long write is incomplete exactly its rest is received, so that nothing long
//! is ever carried over to the next buffer. A buffer grows with what has arrived, at most twofold at a time: a header
//! that announces 32 MiB costs its sender 16 MiB of sending before it costs us 32 MiB of memory.

use std::io;
use std::ops::Range;

use crate::codec::constants::{PAYLOAD_BYTES_MAX, cmd};
use crate::codec::request::{REQUEST_HEADER_BYTES, RequestHeader};
use crate::wire::Wire;

use super::spin::Spin;

/// Room for a receive when nothing long is under way.
const BASE_BYTES: usize = 256 << 10;
/// A buffer above this is given back when its batch is done.
const KEEP_BYTES: usize = 8 << 20;
/// Missing bytes from which on exactly these are received.
const LONG_BYTES: usize = 64 << 10;
/// Requests of one batch: more would keep the client waiting for the first replies.
const REQUEST_COUNT_MAX: usize = 16;

/// Why no request follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The client said goodbye, or hung up between two requests.
    Goodbye,
    /// It hung up in the middle of a request.
    HungUp,
    /// It broke the protocol.
    Breach,
}

/// A request whose payload has arrived.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) header: RequestHeader,
    /// Its payload in the buffer of the batch; empty where there is none or it was too long to be kept.
    pub(crate) payload: Range<usize>,
}

/// Requests and the buffer they lie in.
pub(crate) struct Batch {
    bytes: Vec<u8>,
    /// What was received and not parsed yet lies in `start..filled`.
    start: usize,
    filled: usize,
    /// Payload that is thrown away as it comes.
    skip_bytes: usize,
    request_bytes_max: u32,
    pub(crate) requests: Vec<Request>,
    pub(crate) ending: Option<Ending>,
}

impl Batch {
    pub(crate) fn new(request_bytes_max: u32) -> Self {
        Self {
            bytes: Vec::new(),
            start: 0,
            filled: 0,
            skip_bytes: 0,
            request_bytes_max,
            requests: Vec::with_capacity(REQUEST_COUNT_MAX),
            ending: None,
        }
    }

    pub(crate) fn payload(&self, request: &Request) -> &[u8] {
        &self.bytes[request.payload.clone()]
    }

    /// Bytes of the writes in it.
    pub(crate) fn write_bytes(&self) -> usize {
        self.requests.iter().map(|request| request.payload.len()).sum()
    }

    /// Forgets the requests; what came behind them stays.
    pub(crate) fn begin(&mut self) {
        self.requests.clear();
        if self.bytes.len() > KEEP_BYTES {
            let rest = self.bytes[self.start..self.filled].to_vec();
            (self.start, self.filled) = (0, rest.len());
            self.bytes = rest;
        }
    }

    /// Takes over what came behind the requests of `previous`, which is being carried out meanwhile.
    pub(crate) fn continue_from(&mut self, previous: &mut Self) {
        self.requests.clear();
        let rest = &previous.bytes[previous.start..previous.filled];
        if self.bytes.len() < rest.len() || self.bytes.len() > KEEP_BYTES {
            self.bytes = vec![0; rest.len().max(BASE_BYTES)];
        }
        self.bytes[..rest.len()].copy_from_slice(rest);
        (self.start, self.filled) = (0, rest.len());
        self.skip_bytes = std::mem::take(&mut previous.skip_bytes);
        previous.start = previous.filled;
    }

    /// Receives until there is a whole request, or none will follow.
    pub(crate) fn collect(&mut self, wire: &mut dyn Wire, spin: &mut Spin) -> io::Result<()> {
        self.parse();
        while self.requests.is_empty() && self.ending.is_none() {
            self.receive(wire, spin)?;
            self.parse();
        }
        Ok(())
    }

    fn receive(&mut self, wire: &mut dyn Wire, spin: &mut Spin) -> io::Result<()> {
        let window = self.make_room();
        match spin.receive(wire, &mut self.bytes[window]) {
            Ok(0) => self.ending = Some(self.ending_at_end()),
            Ok(count) => self.filled += count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }

    fn ending_at_end(&self) -> Ending {
        let is_between = self.start == self.filled && self.skip_bytes == 0;
        if is_between { Ending::Goodbye } else { Ending::HungUp }
    }

    /// Where the next bytes go.
    fn make_room(&mut self) -> Range<usize> {
        let missing = self.missing_bytes();
        let is_long = missing >= LONG_BYTES;
        if self.start == self.filled {
            (self.start, self.filled) = (0, 0);
        }
        let wanted = self.filled + missing;
        if !is_long && wanted > self.bytes.len() && self.start > 0 {
            self.bytes.copy_within(self.start..self.filled, 0);
            (self.start, self.filled) = (0, self.filled - self.start);
        }
        let wanted = self.filled + missing;
        if wanted > self.bytes.len() {
            let size = wanted.min(BASE_BYTES.max(2 * self.filled)).max(BASE_BYTES);
            self.bytes.resize(size.max(self.bytes.len()), 0);
        }
        let end = if is_long { wanted.min(self.bytes.len()) } else { self.bytes.len() };
        self.filled..end
    }

    /// Bytes without which the request at `start` cannot go on; at least one.
    fn missing_bytes(&self) -> usize {
        let available = self.filled - self.start;
        let needed = match self.header_at_start() {
            Some(header) => REQUEST_HEADER_BYTES + self.kept_payload_bytes(&header),
            None => REQUEST_HEADER_BYTES,
        };
        needed.saturating_sub(available).max(1)
    }

    fn kept_payload_bytes(&self, header: &RequestHeader) -> usize {
        let bytes = header.payload_bytes();
        if bytes > self.request_bytes_max { 0 } else { bytes as usize }
    }

    /// The header at `start`, if it is there and sane.
    fn header_at_start(&self) -> Option<RequestHeader> {
        let head = self.bytes[self.start..self.filled].first_chunk()?;
        RequestHeader::decode(head)
    }

    /// Takes the whole requests out of the buffer.
    fn parse(&mut self) {
        while self.requests.len() < REQUEST_COUNT_MAX && self.ending.is_none() {
            let skipped = self.skip_bytes.min(self.filled - self.start);
            (self.start, self.skip_bytes) = (self.start + skipped, self.skip_bytes - skipped);
            if self.skip_bytes > 0 || self.filled - self.start < REQUEST_HEADER_BYTES || !self.parse_one() {
                return;
            }
        }
    }

    /// Takes one request; `false` when its payload is not there yet.
    fn parse_one(&mut self) -> bool {
        let Some(header) = self.header_at_start() else {
            self.ending = Some(Ending::Breach);
            return true;
        };
        if header.kind == cmd::DISC {
            self.ending = Some(Ending::Goodbye);
            return true;
        }
        if header.payload_bytes() > PAYLOAD_BYTES_MAX {
            self.ending = Some(Ending::Breach);
            return true;
        }
        let kept = self.kept_payload_bytes(&header);
        let payload_start = self.start + REQUEST_HEADER_BYTES;
        if self.filled - payload_start < kept {
            return false;
        }
        self.skip_bytes = header.payload_bytes() as usize - kept;
        self.start = payload_start + kept;
        self.requests.push(Request { header, payload: payload_start..self.start });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::Memory;

    fn request(kind: u16, cookie: u64, length_bytes: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x25, 0x60, 0x95, 0x13, 0, 0];
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&cookie.to_be_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(&length_bytes.to_be_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    /// Cookies and payloads of all requests, the wire giving `step` bytes at a time, two buffers in turn or one.
    fn drain(input: &[u8], step: usize, in_turn: bool, max: u32) -> (Vec<(u64, Vec<u8>)>, Ending) {
        let mut wire = Memory::new(input, step);
        let (mut batch, mut other) = (Batch::new(max), Batch::new(max));
        let (mut spin, mut seen) = (Spin::none(), Vec::new());
        loop {
            batch.collect(&mut wire, &mut spin).unwrap();
            let one = |request: &Request| (request.header.cookie, batch.payload(request).to_vec());
            seen.extend(batch.requests.iter().map(one));
            if let Some(ending) = batch.ending {
                return (seen, ending);
            }
            if in_turn {
                other.continue_from(&mut batch);
                std::mem::swap(&mut batch, &mut other);
            } else {
                batch.begin();
            }
        }
    }

    #[test]
    fn requests_come_whole_however_the_bytes_are_cut() {
        let payload: Vec<u8> = (0..70_000u32).map(|i| (i % 251) as u8).collect();
        let mut input = Vec::new();
        let mut expected = Vec::new();
        for cookie in 0..40u64 {
            let length = [512, 70_000, 4096, 0][cookie as usize % 4];
            let data = &payload[..length];
            input.extend(request(if length == 0 { 3 } else { 1 }, cookie, length as u32, data));
            expected.push((cookie, data.to_vec()));
        }
        input.extend(request(2, 99, 0, &[]));
        for step in [1, 27, 28, 29, 4096, 65_536, 1 << 20] {
            for in_turn in [false, true] {
                let (seen, ending) = drain(&input, step, in_turn, 1 << 20);
                assert!(seen == expected, "step {step}, in turn {in_turn}");
                assert_eq!(ending, Ending::Goodbye);
            }
        }
    }

    #[test]
    fn a_write_above_the_limit_is_thrown_away_and_the_next_request_found() {
        let mut input = request(1, 1, 1 << 20, &vec![0x25; 1 << 20]);
        input.extend(request(1, 2, 512, &[7; 512]));
        for (step, in_turn) in [(100, false), (65_536, true), (1 << 21, false)] {
            let (seen, ending) = drain(&input, step, in_turn, 4096);
            assert_eq!(seen, [(1, vec![]), (2, vec![7; 512])]);
            assert_eq!(ending, Ending::Goodbye);
        }
    }

    #[test]
    fn a_client_out_of_step_ends_after_what_it_sent_well() {
        let mut input = request(3, 1, 0, &[]);
        input.extend([0xff; 28]);
        let (seen, ending) = drain(&input, 1 << 20, false, 4096);
        assert_eq!((seen.len(), ending), (1, Ending::Breach));
    }

    #[test]
    fn a_write_of_four_gib_is_a_breach_at_once() {
        let (seen, ending) = drain(&request(1, 1, u32::MAX, &[]), 1 << 20, false, 1 << 25);
        assert_eq!((seen.len(), ending), (0, Ending::Breach));
    }

    #[test]
    fn hanging_up_in_the_middle_is_told_from_hanging_up_between() {
        let whole = request(1, 1, 512, &[0; 512]);
        for cut in [1, 27, 28, 29, whole.len() - 1] {
            assert_eq!(drain(&whole[..cut], 1 << 20, false, 4096).1, Ending::HungUp, "{cut}");
        }
        assert_eq!(drain(&whole, 1 << 20, false, 4096).1, Ending::Goodbye);
        assert_eq!(drain(&[], 1, false, 4096).1, Ending::Goodbye);
    }

    #[test]
    fn a_header_that_promises_32_mib_costs_no_more_than_was_sent() {
        let mut input = request(1, 1, 1 << 25, &[]);
        input.resize(600 << 10, 1);
        let mut wire = Memory::new(&input, 1 << 16);
        let mut batch = Batch::new(1 << 25);
        batch.collect(&mut wire, &mut Spin::none()).unwrap();
        assert_eq!(batch.ending, Some(Ending::HungUp));
        assert!(batch.bytes.len() <= 2 * input.len(), "{}", batch.bytes.len());
    }

    #[test]
    fn a_long_buffer_is_given_back_when_its_batch_is_done() {
        let mut input = request(1, 1, 1 << 25, &vec![1; 1 << 25]);
        input.extend(request(3, 2, 0, &[]));
        let mut wire = Memory::new(&input, 1 << 20);
        let mut batch = Batch::new(1 << 25);
        batch.collect(&mut wire, &mut Spin::none()).unwrap();
        assert_eq!(batch.requests.len(), 1);
        batch.begin();
        assert!(batch.bytes.len() <= KEEP_BYTES);
        batch.collect(&mut wire, &mut Spin::none()).unwrap();
        assert_eq!(batch.requests[0].header.cookie, 2);
    }
}
