//! Polling before sleeping: a wake-up costs more than many a request takes.

use std::io;
use std::time::{Duration, Instant};

use crate::wire::Wire;

/// Misses in a row after which polling pauses.
const MISS_COUNT_MAX: u32 = 16;
/// Receives without polling until it is tried again.
const PAUSE_COUNT: u32 = 256;

/// How long to poll, and whether it has paid lately.
pub(crate) struct Spin {
    budget: Duration,
    misses: u32,
    pause: u32,
}

impl Spin {
    pub(crate) fn new(budget_us: u32) -> Self {
        Self { budget: Duration::from_micros(u64::from(budget_us)), misses: 0, pause: 0 }
    }

    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self::new(0)
    }

    /// Stops polling for good: there are more connections than cores.
    pub(crate) fn give_up(&mut self) {
        self.budget = Duration::ZERO;
    }

    /// Receives at least a byte; 0 is the end.
    pub(crate) fn receive(&mut self, wire: &mut dyn Wire, buffer: &mut [u8]) -> io::Result<usize> {
        if self.budget.is_zero() || self.is_pausing() {
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
