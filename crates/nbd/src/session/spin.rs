//! Polling before sleeping: a wake-up costs more than many a request takes.
//!
//! How long is asked for by the user, and none by default. A client that had several requests under way gets a short poll
//! in any case: its next ones are being written while this thread sends. Sleeping then lets the scheduler put both sides
//! on one core, where they take turns.

use std::io;
use std::time::{Duration, Instant};

use crate::wire::Wire;

/// Misses in a row after which polling pauses.
const MISS_COUNT_MAX: u32 = 16;
/// Receives without polling until it is tried again.
const PAUSE_COUNT: u32 = 256;

/// How long to poll for a client with several requests under way.
const DEEP: Duration = Duration::from_micros(20);

/// How long to poll, and whether it has paid lately.
pub(crate) struct Spin {
    asked: Duration,
    budget: Duration,
    is_given_up: bool,
    misses: u32,
    pause: u32,
}

impl Spin {
    pub(crate) fn new(budget_us: u32) -> Self {
        let asked = Duration::from_micros(u64::from(budget_us));
        Self { asked, budget: asked, is_given_up: false, misses: 0, pause: 0 }
    }

    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self::new(0)
    }

    /// Stops polling for good: there are more connections than cores.
    pub(crate) fn give_up(&mut self) {
        self.is_given_up = true;
    }

    /// A batch of so many requests was carried out.
    pub(crate) fn note_batch(&mut self, request_count: usize) {
        self.budget = if request_count > 1 { self.asked.max(DEEP) } else { self.asked };
    }

    /// Receives at least a byte; 0 is the end.
    pub(crate) fn receive(&mut self, wire: &mut dyn Wire, buffer: &mut [u8]) -> io::Result<usize> {
        if self.is_given_up || self.budget.is_zero() || self.is_pausing() {
            return wire.receive(buffer);
        }
        let start = Instant::now();
        while start.elapsed() < self.budget {
            match wire.receive_now(buffer) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => std::hint::spin_loop(),
                received => {
                    self.misses = 0;
                    return received;
                }
            }
        }
        self.note_miss();
        wire.receive(buffer)
    }

    fn is_pausing(&mut self) -> bool {
        self.pause = self.pause.saturating_sub(1);
        self.pause > 0
    }

    fn note_miss(&mut self) {
        self.misses += 1;
        if self.misses >= MISS_COUNT_MAX {
            (self.misses, self.pause) = (0, PAUSE_COUNT);
        }
    }
}
