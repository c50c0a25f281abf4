//! A failover of the replica, tracked from its first write, with all of its ends: cancelled, committed, reversed with either
//! side as the loser.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::guest::{self, Guest};
use super::{Pair, SECTORS, SIZE};
use crate::recovery_common::layer::Layer;
use crate::recovery_common::replica::{NO_POINT, Trouble};
use crate::recovery_common::{GO_ON, first_difference, log_options};
use secondsite_disk::faults::MemoryDevice;
use secondsite_disk::{
    BlockDevice, Latest, OverlayState, ResyncReason, TrackedDisk, apply_logs, build_batch, changed_ranges,
    cut,
};

/// Far more than chance lets die in a row.
const CYCLES_MAX: u64 = 200;

type Ranges = Vec<(u64, u64)>;

/// The disk that a failover shows.
pub struct Failover {
    layer: Layer,
    guest: Guest,
    /// What its point held.
    begun_with: Vec<u8>,
}

impl Pair {
    /// Until it is cancelled, or one side has given up.
    pub fn fail_over(&mut self) {
        let is_planned = self.random.one_in(3);
        if is_planned {
            self.bring_together();
        }
        let Some(mut failover) = self.begin(is_planned) else { return self.say("no point") };
        loop {
            match self.random.below(12) {
                0..=2 => self.write_to(&mut failover),
                3 => self.kill(&mut failover),
                4 | 5 if !is_planned => self.work_on(), // The former primary does not know.
                6 => {
                    self.primary.die(&mut self.random);
                    self.survive(guest::DEAD);
                }
                7 if !is_planned => {
                    drop(failover);
                    failover = self.begin(false).unwrap();
                }
                8 => return self.say("  cancel"),
                9 if !self.primary.dirty().is_empty() => return self.give_up_uncommitted(&failover),
                10 | 11 => return self.commit(failover),
                _ => {}
            }
            self.replica.check(&mut self.random);
            let image = self.replica.image.bytes();
            let applied = self.replica.applied.as_deref().unwrap_or(&image);
            assert_eq!(first_difference(&image, applied), None, "the image below");
        }
    }

    /// Its guests write, and it makes cuts that it cannot send.
    fn work_on(&mut self) {
        self.write(1);
        if self.random.one_in(3) {
            self.cut();
        }
    }

    /// The last cut of a primary that nobody writes to any more.
    pub fn bring_together(&mut self) {
        for _ in 0..CYCLES_MAX {
            self.cycle();
            if self.replica.applied.as_ref() == Some(&self.primary.now) && self.primary.dirty().is_empty() {
                return;
            }
        }
        panic!("{CYCLES_MAX} cycles do not bring both sites together");
    }

    /// Over the newest state, or any point.
    fn begin(&mut self, is_newest: bool) -> Option<Failover> {
        if is_newest || self.replica.points.is_empty() || self.random.one_in(3) {
            self.replica.keep_point();
        }
        let count = self.replica.points.len() as u64;
        let index = if is_newest { count.checked_sub(1)? } else { self.random.below(count.max(1)) };
        let point = self.replica.points.get(index as usize)?;
        let (number, begun_with) = (point.number, point.bytes.clone());
        self.say(format!("  over {number} of {:?}", self.replica.numbers()));
        let layer = Layer::open(&self.replica, number);
        let mut guest = Guest::new(&begun_with, self.replica.trouble, self.mode);
        guest.open(layer.overlay().clone());
        Some(Failover { layer, guest, begun_with })
    }

    fn write_to(&mut self, failover: &mut Failover) {
        let done = match self.random.one_in(5) {
            true => failover.guest.flush(&mut self.random),
            false => failover.guest.write(SECTORS, &mut self.random),
        };
        if done.is_none() {
            self.reopen(failover);
        }
    }

    fn kill(&mut self, failover: &mut Failover) {
        failover.guest.die(&mut self.random);
        self.reopen(failover);
    }

    fn reopen(&mut self, failover: &mut Failover) {
        self.say("  the failover died");
        failover.layer.die(&mut self.replica, &mut self.random);
        failover.guest.open(failover.layer.overlay().clone());
    }

    /// The layer is thrown away, what was written to it is kept, and the primary goes on as if nothing had been.
    fn give_up_uncommitted(&mut self, failover: &Failover) {
        self.say("  the replica is the loser");
        assert_kept(&failover.guest, &failover.begun_with, &self.replica.path("kept"));
    }

    fn commit(&mut self, mut failover: Failover) {
        self.say("  commit");
        self.replica.views.clear();
        let undo = self.replica.undo();
        let point = failover.layer.point;
        let is_newest = self.replica.applied.is_some() && point == self.replica.latest;
        // From here on the image is the disk of the new primary.
        self.replica.applied = None;
        let undone = changed_ranges(&undo, point, Latest::Image, 0, usize::MAX).unwrap();
        assert!(!is_newest || undone.is_empty(), "the newest state takes nothing back, but {undone:?}");
        while !failover.layer.settle_some(&self.replica, &mut self.random) {
            self.disturb(&mut failover);
        }
        assert_eq!(failover.layer.overlay().state(), OverlayState::Settled);
        let shown = self.replica.image.bytes();
        assert_eq!(first_difference(&shown, &failover.guest.now), None, "the image after the commit");
        failover.layer.view = None;
        self.drop_points(&mut failover);
        for _ in 0..self.random.below(4) {
            self.disturb(&mut failover);
        }
        self.reverse(failover, undone);
    }

    /// All points go. A loss of power in this would be one of the failover's disk as well, so that is closed before.
    fn drop_points(&mut self, failover: &mut Failover) {
        if self.replica.trouble == Trouble::Death {
            return self.replica.drop_before(NO_POINT, &mut self.random);
        }
        self.close(failover);
        failover.layer.close();
        self.replica.drop_before(NO_POINT, &mut self.random);
        failover.layer.open_settled(&self.replica);
        failover.guest.open(failover.layer.overlay().clone());
    }

    fn close(&mut self, failover: &mut Failover) {
        while failover.guest.close(&mut self.random).is_none() {
            self.reopen(failover);
        }
    }

    /// What may happen at any time of a commit.
    fn disturb(&mut self, failover: &mut Failover) {
        match self.random.below(5) {
            0 | 1 => self.write_to(failover),
            2 => self.kill(failover),
            _ => {}
        }
    }

    /// One side goes on, the disk of the other follows it from here on.
    fn reverse(&mut self, mut failover: Failover, undone: Ranges) {
        let (mine, theirs) = (failover.guest.dirty(), self.primary.dirty());
        let is_split = !theirs.is_empty();
        let candidates: Ranges = [undone, mine, theirs].concat();
        self.assert_among(&failover.guest.now, &candidates);
        let is_back = is_split && self.random.one_in(2);
        self.say(format!("  {} candidates, split {is_split}, back {is_back}", candidates.len()));
        if is_back {
            assert_kept(&failover.guest, &failover.begun_with, &self.replica.path("kept"));
        } else if let Some(common) = self.common.as_deref().filter(|_| is_split) {
            assert_kept(&self.primary, common, &self.replica.path("kept"));
        }
        self.close(&mut failover);
        while self.primary.close(&mut self.random).is_none() {
            self.survive(guest::DEAD);
        }
        let content = if is_back { self.primary.now.clone() } else { failover.guest.now.clone() };
        drop(failover);
        let (active, passive) = match is_back {
            true => (self.device.clone(), self.replica.image.clone()),
            false => (self.replica.image.clone(), self.device.clone()),
        };
        let is_equal = candidates.is_empty();
        let time = self.replica.latest_time + 1;
        self.replica.begin_anew(passive, is_equal.then(|| content.clone()), time);
        self.device = active;
        assert_eq!(first_difference(&self.device.durable_bytes(), &content), None, "what is durable");
        self.primary = Guest::new(&content, self.replica.trouble, self.mode);
        self.primary.open(self.device.clone());
        self.applied.clear();
        self.common = is_equal.then_some(content);
        // The plan is recorded, so whatever dies in this is done again.
        while !is_equal && self.on_primary(|disk| owe(disk, &candidates)).is_none() {}
    }

    /// Every byte in which the two sites differ is in some range.
    fn assert_among(&self, shown: &[u8], ranges: &[(u64, u64)]) {
        let mut levelled = self.primary.now.clone();
        for &(offset, length_bytes) in ranges {
            let range = offset as usize..(offset + length_bytes).min(SIZE) as usize;
            levelled[range.clone()].copy_from_slice(&shown[range]);
        }
        assert_eq!(first_difference(&levelled, shown), None, "what differs is among the candidates");
    }
}

/// The logs of a side, and the content of what no log knows, lead from what both sides had to what it has.
fn assert_kept(side: &Guest, before: &[u8], folder: &Path) {
    std::fs::create_dir(folder).unwrap();
    cut(std::slice::from_ref(side.disk())).unwrap();
    let mut logs: Vec<PathBuf> = Vec::new();
    logs.extend(side.sealed(&|n| folder.join(format!("{n}.hrl"))).into_iter().map(|(_, path)| path));
    if side.disk().status().changed_bytes > 0 {
        logs.push(folder.join("content.hrl"));
        build_batch(&**side.disk(), &side.dirty(), &logs[logs.len() - 1], log_options(), SIZE, 1).unwrap();
    }
    let device = MemoryDevice::new("kept", SIZE);
    device.write_at(0, before).unwrap();
    let paths: Vec<&Path> = logs.iter().map(PathBuf::as_path).collect();
    apply_logs(&device, &paths, false, &GO_ON).unwrap();
    assert_eq!(first_difference(&device.bytes(), &side.now), None, "what is kept of the loser");
    std::fs::remove_dir_all(folder).unwrap();
}

fn owe(disk: &Arc<TrackedDisk>, candidates: &[(u64, u64)]) {
    disk.require_resync_of(ResyncReason::ReplicationReversed, candidates).unwrap();
}
