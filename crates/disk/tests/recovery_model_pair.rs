//! Two sites and the way there and back: tracked disk, log, apply with undo, point, layer, tracked again, commit or cancel,
//! reversal by the union of ranges, and all of it the other way round.
//!
//! Invariants, beside those of `recovery_model.rs`:
//! 1. After a cycle or a resynchronization the image holds what the tracked disk holds, whichever of its steps died.
//! 2. The disk of a failover reads as its point and what was written to it since; after a loss of power each sector holds
//!    what it held at the last flush, or something written since. So does the disk of the primary.
//! 3. Everything in which the two sites differ after a failover is among what the point took back, what the new primary
//!    wrote and what the former one never sent (design, section 9). With none of the three, the two are equal.
//! 4. The logs of a site whose writes are given up lead from what both had to what it had.
//! 5. After a reversal the points of the other direction hold, and a cycle moves what was written since, nothing else.
//!
//! A failing run prints its seed and its steps; SECONDSITE_SEED replays that one alone.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "recovery_pair/failover.rs"]
mod failover;
#[path = "recovery_pair/guest.rs"]
mod guest;
mod recovery_common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use guest::Guest;
use recovery_common::replica::{Replica, Told, Trouble, tell};
use recovery_common::{GO_ON, Random, first_difference, log_options};
use secondsite_disk::faults::PowerLossDevice;
use secondsite_disk::{FlushMode, ResyncReason, TrackedDisk, apply_logs, build_batch, cut, differing_ranges};
use secondsite_hrl::LogId;

/// Six chunks of the tracking, and a part of one.
const SECTORS: u64 = 6 * 128 + 83;
const SIZE: u64 = SECTORS * 512;
const STEP_COUNT: u64 = 14;

/// The primary's disk and its replica.
struct Pair {
    random: Random,
    told: Told,
    mode: FlushMode,
    device: Arc<PowerLossDevice>,
    primary: Guest,
    replica: Replica,
    /// What the newest cut held whose logs are released; `None` where a death leaves that open.
    common: Option<Vec<u8>>,
    death_count: u64,
    /// Logs that are in the image, though the primary may not know.
    applied: Vec<LogId>,
    file_count: u64,
}

impl Pair {
    fn new(seed: u64, trouble: Trouble, told: Told) -> Self {
        let mut random = Random(seed);
        let mode = if random.one_in(2) { FlushMode::Disk } else { FlushMode::Log };
        let content = vec![0; SIZE as usize];
        let mut pair = Self {
            random,
            told: told.clone(),
            mode,
            device: Arc::new(PowerLossDevice::new("disk", SIZE)),
            primary: Guest::new(&content, trouble, mode),
            replica: Replica::new(SIZE, trouble, told),
            common: Some(content),
            death_count: 0,
            applied: Vec::new(),
            file_count: 0,
        };
        pair.primary.open(pair.device.clone());
        pair
    }

    fn say(&self, step: impl Into<String>) {
        tell(&self.told, step);
    }

    fn fresh_path(&mut self, name: &str) -> PathBuf {
        self.file_count += 1;
        self.replica.path(&format!("{name}-{}.hrl", self.file_count))
    }

    /// The primary is opened again after a step in which it died. Returns what the step came to.
    fn survive<T>(&mut self, done: Option<T>) -> Option<T> {
        if done.is_none() {
            self.say("  the primary died");
            self.death_count += 1;
            if self.replica.trouble == Trouble::PowerLoss {
                self.device = Arc::new(self.device.crash(self.random.below(1 << 30)));
            }
            self.primary.open(self.device.clone());
        }
        done
    }

    /// Guests write to the primary's disk.
    fn write(&mut self, count: u64) {
        for _ in 0..count {
            let done = match self.random.one_in(6) {
                true => self.primary.flush(&mut self.random),
                false => self.primary.write(SECTORS, &mut self.random),
            };
            self.survive(done);
        }
    }

    fn on_primary<T>(&mut self, step: impl FnOnce(&Arc<TrackedDisk>) -> T) -> Option<T> {
        let done = self.primary.run(&mut self.random, step);
        self.survive(done)
    }

    /// What was written becomes the newest state of the replica, unless the apply dies and is left so.
    fn cycle(&mut self) {
        let count = self.random.below(7);
        self.write(count);
        if self.random.one_in(3) {
            self.replica.keep_point();
        }
        self.say(format!("cycle, points {:?}", self.replica.numbers()));
        loop {
            if self.primary.owes_resync() {
                return self.resynchronize();
            }
            if self.cut().is_some() {
                break;
            }
        }
        if self.random.one_in(6) {
            return self.say("  nothing is sent");
        }
        let logs = self.ship();
        if !self.apply(&logs) {
            return self.say("  is left in the middle");
        }
        self.release();
    }

    fn cut(&mut self) -> Option<u64> {
        self.on_primary(|disk| cut(std::slice::from_ref(disk)).unwrap())
    }

    /// Copies of the logs that the replica has not.
    fn ship(&mut self) -> Vec<(LogId, PathBuf)> {
        self.file_count += 1;
        let (replica, count) = (&self.replica, self.file_count);
        let mut logs = self.primary.sealed(&|n| replica.path(&format!("{count}-{n}.hrl")));
        logs.retain(|(id, _)| !self.applied.contains(id));
        logs
    }

    /// Applies logs whose end is what the primary holds, dying now and then. False when that is left undone.
    fn apply(&mut self, logs: &[(LogId, PathBuf)]) -> bool {
        let paths: Vec<&Path> = logs.iter().map(|(_, path)| path.as_path()).collect();
        self.replica.save(&paths, &mut self.random);
        while self.random.one_in(4) {
            self.replica.apply_in_part(&paths, &mut self.random);
            if self.random.one_in(3) {
                return false;
            }
            self.replica.save(&paths, &mut self.random);
        }
        apply_logs(&*self.replica.image, &paths, false, &GO_ON).unwrap();
        let time = self.replica.latest_time + 1;
        self.replica.came_to(&self.primary.now, time, &mut self.random);
        self.applied.extend(logs.iter().map(|(id, _)| *id));
        true
    }

    fn release(&mut self) {
        let (cut, ids) = (self.primary.now.clone(), self.applied.clone());
        let released = self.on_primary(|disk| disk.release_logs(&ids).unwrap());
        self.common = released.map(|()| cut);
    }

    /// Until it has come to its end, or the image is left in the middle of its apply.
    fn resynchronize(&mut self) {
        self.say("  resynchronize");
        while !self.resynchronize_once() {
            if self.replica.applied.is_none() && self.random.one_in(3) {
                return;
            }
        }
    }

    /// Compares what is owed, sends what differs and what is written meanwhile. False when somebody died in it.
    fn resynchronize_once(&mut self) -> bool {
        self.common = None;
        if self.on_primary(|disk| disk.begin_resync().unwrap()).is_none() {
            return false;
        }
        let candidates = self.primary.disk().candidates(0, SIZE);
        let differing = self.differing(&candidates);
        let path = self.fresh_path("batch");
        build_batch(&**self.primary.disk(), &differing, &path, log_options(), SIZE, 1).unwrap();
        let (count, deaths) = (self.random.below(3), self.death_count);
        self.write(count);
        if self.death_count > deaths || self.cut().is_none() {
            return false;
        }
        let mut logs = vec![(LogId::NONE, path)];
        logs.extend(self.ship());
        if self.random.one_in(2) {
            self.replica.keep_point();
        }
        if !self.apply(&logs) {
            return false;
        }
        assert_eq!(self.differing(&candidates), [], "the proof of the resynchronization");
        if self.on_primary(|disk| disk.finish_resync().unwrap()).is_none() {
            return false;
        }
        self.release();
        true
    }

    fn differing(&self, ranges: &[(u64, u64)]) -> Vec<(u64, u64)> {
        differing_ranges(&**self.primary.disk(), &*self.replica.image, ranges, &GO_ON).unwrap()
    }

    /// A resynchronization is owed from here on, for whatever reason.
    fn owe_resync(&mut self) {
        let kind = self.random.below(3);
        self.say(format!("  kind {kind}"));
        let done = self.on_primary(|disk| match kind {
            0 => disk.fold_logs_to_map(ResyncReason::LogThreshold),
            1 => disk.require_resync(ResyncReason::AskedFor, true),
            _ => disk.require_resync(ResyncReason::AskedFor, false),
        });
        done.transpose().unwrap();
    }

    fn hold_view(&mut self) {
        self.replica.keep_point();
        let numbers = self.replica.numbers();
        if !numbers.is_empty() {
            self.replica.hold_view(numbers[self.random.below(numbers.len() as u64) as usize]);
        }
    }

    fn step(&mut self) {
        let step = self.random.below(16);
        self.say(format!("step {step}"));
        match step {
            0..=5 => self.cycle(),
            6 => self.replica.merge(&mut self.random),
            7 => self.replica.drop_oldest(&mut self.random),
            8 => self.replica.compact(&mut self.random),
            9 => self.hold_view(),
            10 => drop(self.replica.views.pop()),
            11 => self.owe_resync(),
            12 => {
                self.primary.die(&mut self.random);
                self.survive(guest::DEAD);
            }
            _ => self.fail_over(),
        }
        self.replica.check(&mut self.random);
    }

    /// Both sites are brought together, and are equal.
    fn end(&mut self) {
        self.say("end");
        self.bring_together();
        let image = self.replica.image.bytes();
        assert_eq!(first_difference(&image, &self.primary.now), None, "both sites");
    }
}

fn run(seed: u64, trouble: Trouble) {
    let steps: Told = Arc::new(Mutex::new(Vec::new()));
    let told = steps.clone();
    let life = catch_unwind(AssertUnwindSafe(move || {
        let mut pair = Pair::new(seed, trouble, told);
        for _ in 0..STEP_COUNT {
            pair.step();
        }
        pair.end();
    }));
    if let Err(panic) = life {
        let steps = steps.lock().unwrap().join("\n");
        let replay =
            format!("SECONDSITE_SEED={seed} cargo test -p secondsite-disk --test recovery_model_pair");
        let reason = panic.downcast_ref::<String>().cloned().unwrap_or_default();
        panic!("{trouble:?} ({replay}): {reason}\n{steps}");
    }
}

fn run_all(trouble: Trouble) {
    if let Some(seed) = std::env::var("SECONDSITE_SEED").ok().and_then(|seed| seed.parse().ok()) {
        return run(seed, trouble);
    }
    let count = if std::env::var_os("SECONDSITE_SLOW").is_some() { 20_000 } else { 1000 };
    for seed in 0..count {
        run(seed, trouble);
    }
}

#[test]
fn two_sites_whose_processes_die_anywhere_go_over_and_come_back() {
    run_all(Trouble::Death);
}

#[test]
fn two_sites_whose_power_goes_anywhere_go_over_and_come_back() {
    run_all(Trouble::PowerLoss);
}
