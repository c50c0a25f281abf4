//! The order lock, and the part of it that writers share: steps that were logged reach the disk side by side.
//!
//! A step takes a share of the gate, is appended to the log under the order, and departs: it leaves the order, writes the
//! disk, and lands. Everybody else takes the gate alone, and so finds no step between log and disk: a cut, a flush, a
//! rotation see log and disk agree, as if each step had held the order until its end.
//!
//! Two things stay as they were with one step at a time. **Overlaps:** a step that touches a range still on its way to the
//! disk waits, so log and disk have one order. **Redo:** after the death of a process the last entries of the open log are
//! carried out again, and no step departs while the oldest on its way would fall behind what that covers.

use std::ops::{Deref, DerefMut};

use parking_lot::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use secondsite_hrl::Append;

use super::order::Order;
use super::redo::{REDONE_BYTES, REDONE_ENTRIES};

/// A step between log and disk.
#[derive(Debug)]
struct Flight {
    number: u64,
    start: Place,
    ranges: Vec<(u64, u64)>,
}

/// Where the log stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    sequence: u64,
    position: u64,
}

/// The steps between log and disk, oldest first.
#[derive(Debug, Default)]
struct Flights {
    flights: Vec<Flight>,
    next_number: u64,
}

impl Flights {
    /// Whether a step may be logged now, the log standing at `now`.
    fn may_depart(&self, appends: &[Append<'_>], now: Place) -> bool {
        let Some(oldest) = self.flights.first() else { return true };
        let data_bytes: u64 = appends.iter().map(|append| append.data.len() as u64).sum();
        let entries = (now.sequence + appends.len() as u64).saturating_sub(oldest.start.sequence);
        let bytes = (now.position + data_bytes).saturating_sub(oldest.start.position);
        entries <= REDONE_ENTRIES && bytes <= REDONE_BYTES && !self.overlap(appends)
    }

    fn overlap(&self, appends: &[Append<'_>]) -> bool {
        let mut ranges = self.flights.iter().flat_map(|flight| &flight.ranges);
        ranges.any(|&(offset, end)| {
            appends.iter().any(|append| append.offset < end && offset < append.offset + append.length_bytes)
        })
    }

    fn depart(&mut self, start: Place, appends: &[Append<'_>]) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        let ranges = appends.iter().map(|append| (append.offset, append.offset + append.length_bytes));
        self.flights.push(Flight { number, start, ranges: ranges.collect() });
        number
    }

    fn land(&mut self, number: u64) {
        self.flights.retain(|flight| flight.number != number);
    }
}

/// The order, and who may touch it when.
pub(crate) struct OrderLock {
    gate: RwLock<()>,
    order: Mutex<(Order, Flights)>,
    landed: Condvar,
}

impl OrderLock {
    pub(crate) fn new(order: Order) -> Self {
        Self { gate: RwLock::new(()), order: Mutex::new((order, Flights::default())), landed: Condvar::new() }
    }

    /// The order alone: no step is between log and disk.
    pub(crate) fn lock(&self) -> Alone<'_> {
        let gate = self.gate.write();
        Alone { order: self.order.lock(), _gate: gate }
    }

    /// The order for a step that is about to be logged; it may wait for others to land.
    pub(crate) fn enter(&self, appends: &[Append<'_>]) -> Entered<'_> {
        let gate = self.gate.read();
        let mut order = self.order.lock();
        let start = loop {
            let now = place_of(&order.0);
            if order.1.may_depart(appends, now) {
                break now;
            }
            self.landed.wait(&mut order);
        };
        Entered { order, start, lock: self, gate }
    }
}

fn place_of(order: &Order) -> Place {
    let position = order.log.as_ref().map_or(0, |log| log.writer.log_size_bytes());
    Place { sequence: order.next_sequence(), position }
}

/// The order, held alone.
pub(crate) struct Alone<'l> {
    order: MutexGuard<'l, (Order, Flights)>,
    _gate: RwLockWriteGuard<'l, ()>,
}

impl Deref for Alone<'_> {
    type Target = Order;
    fn deref(&self) -> &Order {
        &self.order.0
    }
}

impl DerefMut for Alone<'_> {
    fn deref_mut(&mut self) -> &mut Order {
        &mut self.order.0
    }
}

/// The order, held by a step that is being logged while others may be on their way to the disk.
pub(crate) struct Entered<'l> {
    order: MutexGuard<'l, (Order, Flights)>,
    start: Place,
    lock: &'l OrderLock,
    gate: RwLockReadGuard<'l, ()>,
}

impl<'l> Entered<'l> {
    pub(crate) fn order(&mut self) -> &mut Order {
        &mut self.order.0
    }

    /// Leaves the order, the step logged: others may be logged while it is written to the disk.
    pub(crate) fn depart(self, appends: &[Append<'_>]) -> Departed<'l> {
        let Self { mut order, start, lock, gate } = self;
        Departed { number: order.1.depart(start, appends), lock, _gate: gate }
    }
}

/// A step on its way to the disk. Dropping it, as a panic does, lands it too.
pub(crate) struct Departed<'l> {
    number: u64,
    lock: &'l OrderLock,
    _gate: RwLockReadGuard<'l, ()>,
}

impl Departed<'_> {
    /// The disk has the step; `note` learns of the order what it needs, and tells it what failed.
    pub(crate) fn land<T>(self, note: impl FnOnce(&mut Order) -> T) -> T {
        note(&mut self.lock.order.lock().0)
    }
}

impl Drop for Departed<'_> {
    fn drop(&mut self) {
        self.lock.order.lock().1.land(self.number);
        self.lock.landed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Place = Place { sequence: 5 << 21, position: 8192 };

    fn write(offset: u64, data: &[u8]) -> Append<'_> {
        Append::write(offset, data, 0)
    }

    #[test]
    fn a_step_waits_for_what_it_overlaps_and_for_nothing_beside_it() {
        let mut flights = Flights::default();
        let data = [0; 4096];
        let number = flights.depart(START, &[write(8192, &data), write(65_536, &data)]);
        for (offset, may) in [(4096, true), (12_288, true), (8192, false), (11_776, false), (61_952, false)] {
            assert_eq!(flights.may_depart(&[write(offset, &data)], START), may, "{offset}");
        }
        let zeroes = Append::write_zeroes(0, 1 << 20, 0);
        assert!(!flights.may_depart(&[zeroes], START), "a range of zeros has no data, and overlaps");
        flights.land(number);
        assert!(flights.may_depart(&[zeroes], START));
    }

    #[test]
    fn no_step_departs_that_pushes_the_oldest_out_of_what_is_redone() {
        let mut flights = Flights::default();
        let data = [0; 512];
        let oldest = flights.depart(START, &[write(0, &data)]);
        let newer = Place { sequence: START.sequence + 900, position: START.position + 900 * 512 };
        flights.depart(newer, &[write(4096, &data)]);
        let may = |flights: &Flights, now: Place| flights.may_depart(&[write(1 << 20, &data)], now);
        let last = Place { sequence: START.sequence + REDONE_ENTRIES - 1, ..newer };
        assert!(may(&flights, last));
        assert!(!may(&flights, Place { sequence: last.sequence + 1, ..last }));
        let full = Place { position: START.position + REDONE_BYTES - 512, ..newer };
        assert!(may(&flights, full));
        assert!(!may(&flights, Place { position: full.position + 512, ..full }));
        flights.land(oldest);
        assert!(
            may(&flights, Place { sequence: last.sequence + 1, ..last }),
            "the next one is the oldest now"
        );
    }
}
