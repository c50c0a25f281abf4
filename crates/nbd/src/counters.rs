//! What a server has done, polled.

use std::sync::atomic::{AtomicU64, Ordering};

/// One snapshot of the counters of a server; all but `connection_count` only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections now.
    pub connection_count: u64,
    /// Connections taken since the start.
    pub accepted_count: u64,
    /// Connections closed at accept, being too many.
    pub refused_count: u64,
    /// Connections ended for a breach of the protocol or of a limit.
    pub breach_count: u64,
    /// Requests answered.
    pub request_count: u64,
    /// Requests answered with an error.
    pub error_count: u64,
    /// FLUSH requests and groups of FUA writes carried out.
    pub flush_count: u64,
    /// Bytes of successful reads.
    pub read_bytes: u64,
    /// Bytes of successful writes, zeroes and trims left out.
    pub written_bytes: u64,
}

/// What one batch adds.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) request_count: u64,
    pub(crate) error_count: u64,
    pub(crate) flush_count: u64,
    pub(crate) read_bytes: u64,
    pub(crate) written_bytes: u64,
}

/// The counters themselves; a batch touches them once.
#[derive(Debug, Default)]
pub(crate) struct LiveCounters {
    pub(crate) connection_count: AtomicU64,
    pub(crate) accepted_count: AtomicU64,
    pub(crate) refused_count: AtomicU64,
    pub(crate) breach_count: AtomicU64,
    request_count: AtomicU64,
    error_count: AtomicU64,
    flush_count: AtomicU64,
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
}

impl LiveCounters {
    /// Adds a batch and empties its tally.
    pub(crate) fn add(&self, tally: &mut Tally) {
        let tally = std::mem::take(tally);
        let pairs = [
            (&self.request_count, tally.request_count),
            (&self.error_count, tally.error_count),
            (&self.flush_count, tally.flush_count),
            (&self.read_bytes, tally.read_bytes),
            (&self.written_bytes, tally.written_bytes),
        ];
        for (counter, value) in pairs.into_iter().filter(|(_, value)| *value > 0) {
            counter.fetch_add(value, Ordering::Relaxed);
        }
    }

    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn snapshot(&self) -> Counters {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            connection_count: of(&self.connection_count),
            accepted_count: of(&self.accepted_count),
            refused_count: of(&self.refused_count),
            breach_count: of(&self.breach_count),
            request_count: of(&self.request_count),
            error_count: of(&self.error_count),
            flush_count: of(&self.flush_count),
            read_bytes: of(&self.read_bytes),
            written_bytes: of(&self.written_bytes),
        }
    }
}
