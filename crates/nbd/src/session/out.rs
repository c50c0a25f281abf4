//! The reply buffer: replies of a batch lie behind each other and leave in one send.

use std::io;

use crate::codec::constants::{Errno, cmd};
use crate::codec::reply;
use crate::codec::request::RequestHeader;
use crate::counters::Tally;
use crate::wire::Sender;

/// From so much on replies leave before the next request is looked at.
pub(crate) const SEND_BYTES: usize = 2 << 20;
/// A buffer above this is given back after its send.
const KEEP_BYTES: usize = 8 << 20;

/// A buffer that keeps its room, so that reads are not preceded by filling it with zeros each time.
#[derive(Default)]
pub(crate) struct Out {
    bytes: Vec<u8>,
    used: usize,
}

impl Out {
    pub(crate) fn used(&self) -> usize {
        self.used
    }

    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.space(bytes.len()).copy_from_slice(bytes);
    }

    /// Room to be filled by the caller; what it held before is unspecified.
    pub(crate) fn space(&mut self, length_bytes: usize) -> &mut [u8] {
        let end = self.used + length_bytes;
        if end > self.bytes.len() {
            self.bytes.resize(end.next_multiple_of(4096), 0);
        }
        let space = &mut self.bytes[self.used..end];
        self.used = end;
        space
    }

    /// What was put into a range.
    pub(crate) fn at(&mut self, start: usize, end: usize) -> &mut [u8] {
        &mut self.bytes[start..end]
    }

    /// Takes back everything from `start` on; what was put behind `end` is returned.
    pub(crate) fn cut(&mut self, start: usize, end: usize) -> Vec<u8> {
        let rest = self.bytes[end..self.used].to_vec();
        self.used = start;
        rest
    }

    /// Takes back what was put since `used` was this.
    pub(crate) fn take_back(&mut self, used: usize) {
        self.used = used;
    }

    pub(crate) fn send(&mut self, sender: &mut dyn Sender) -> io::Result<()> {
        if self.used == 0 {
            return Ok(());
        }
        let sent = sender.send_all(&self.bytes[..self.used]);
        self.used = 0;
        if self.bytes.len() > KEEP_BYTES {
            self.bytes = Vec::new();
        }
        sent
    }
}

/// Why a request failed: the protocol's number, and a code for people.
pub(crate) type Failure = (Errno, &'static str);

/// How requests that return no data are answered and counted.
#[derive(Clone, Copy)]
pub(crate) struct Answers {
    pub(crate) is_structured: bool,
}

impl Answers {
    pub(crate) fn put(
        self,
        out: &mut Out,
        tally: &mut Tally,
        header: &RequestHeader,
        result: Result<(), Failure>,
    ) {
        let Err((errno, message)) = result else {
            return out.put(&reply::simple(header.cookie, None));
        };
        tally.error_count += 1;
        if self.is_structured {
            let mut chunk = Vec::new();
            reply::put_error(&mut chunk, header.cookie, errno, message);
            out.put(&chunk);
        } else {
            out.put(&reply::simple(header.cookie, Some(errno)));
        }
    }

    pub(crate) fn written(
        self,
        out: &mut Out,
        tally: &mut Tally,
        header: &RequestHeader,
        result: Result<(), Failure>,
    ) {
        if result.is_ok() {
            tally.written_bytes += u64::from(header.length_bytes);
        }
        self.put(out, tally, header, result);
    }

    /// A FLUSH, or a write that asked to be durable.
    pub(crate) fn flushed(
        self,
        out: &mut Out,
        tally: &mut Tally,
        header: &RequestHeader,
        result: Result<(), Failure>,
    ) {
        match header.kind {
            cmd::FLUSH => self.put(out, tally, header, result),
            _ => self.written(out, tally, header, result),
        }
    }
}
