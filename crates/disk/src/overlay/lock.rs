//! Ranges of a disk that writers hold, first come, first served: who waits for a large range is not passed for ever by
//! those who want small ones inside it.

use std::ops::Range;

use parking_lot::{Condvar, Mutex};

/// Ranges that are held or waited for, in the order in which they were asked for.
#[derive(Debug, Default)]
pub(super) struct RangeLock {
    asked: Mutex<Asked>,
    freed: Condvar,
}

#[derive(Debug, Default)]
struct Asked {
    next: u64,
    ranges: Vec<(u64, Range<u64>)>,
}

/// A range, held.
#[derive(Debug)]
pub(super) struct Held<'l> {
    lock: &'l RangeLock,
    ticket: u64,
}

impl RangeLock {
    /// Waits until no range asked for earlier overlaps this one.
    pub(super) fn hold(&self, range: Range<u64>) -> Held<'_> {
        let mut asked = self.asked.lock();
        let ticket = asked.next;
        asked.next += 1;
        asked.ranges.push((ticket, range.clone()));
        let is_in_the_way = |asked: &mut Asked| {
            let overlaps = |other: &Range<u64>| other.start < range.end && range.start < other.end;
            asked.ranges.iter().any(|(earlier, other)| *earlier < ticket && overlaps(other))
        };
        self.freed.wait_while(&mut asked, is_in_the_way);
        Held { lock: self, ticket }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.lock.asked.lock().ranges.retain(|(ticket, _)| *ticket != self.ticket);
        self.lock.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn overlapping_ranges_are_held_by_one_at_a_time_and_others_together() {
        let (lock, inside) = (RangeLock::default(), AtomicU64::new(0));
        let apart = lock.hold(100..200);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let _held = lock.hold(0..100);
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        assert_eq!(inside.fetch_sub(1, Ordering::SeqCst), 1);
                    }
                });
            }
        });
        drop(apart);
        assert!(lock.asked.lock().ranges.is_empty());
    }
}
