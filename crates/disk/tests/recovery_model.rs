//! The life of a replica against arrays of bytes: cycles, points, moments between them, tests, failovers with every end, and
//! the way home, with a death of the process or a loss of power between any two steps and inside of them.
//!
//! Invariants:
//! 1. Every kept point reads as the disk stood at it, at every moment, also of an apply, a merge, a drop or a settling.
//! 2. Every moment since the oldest point reads as the disk stood after its last write until then.
//! 3. A layer over a point reads as what was written to it; the image below stays as it was until the commit.
//! 4. After a power loss each sector of a layer holds what it held at the last flush, or something written since.
//! 5. A commit that was ended anywhere and begun again leaves the image as the layer read.
//! 6. What the point takes back, what the new primary wrote and what the former one never sent is all in which the two
//!    differ; after a failover to the newest state with nothing written on either side, that is nothing.
//!
//! A failing run prints its seed and its steps; SECONDSITE_SEED replays that one alone.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod recovery_common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use recovery_common::layer::Layer;
use recovery_common::replica::{NO_POINT, Replica, Told, Trouble, assert_shows, tell};
use recovery_common::{Change, GO_ON, Random, Versions, bytes_of, first_difference, log_options};
use secondsite_disk::faults::{MemoryDevice, PowerLossDevice};
use secondsite_disk::{
    BlockDevice, Latest, Overlay, Until, Work, apply_logs, apply_logs_until, changed_ranges,
};
use secondsite_hrl::{Append, FsLogFile, LogWriter, index_path};

const SECTORS: u64 = 83; // No whole number of blocks.
const SIZE: u64 = SECTORS * 512;
const STEP_COUNT: u64 = 14;

/// An applied log, and the number of the state that it led to.
struct Kept {
    path: PathBuf,
    number: u64,
}

/// What a failover, or a view of a moment, begins with.
struct Choice {
    point: u64,
    until: Option<u64>,
    bytes: Vec<u8>,
}

/// The primary's disk and its replica.
struct Model {
    random: Random,
    told: Told,
    clock: u64,
    /// What the primary's disk holds, and which of its writes are in no log yet.
    now: Vec<u8>,
    unsent: Vec<(u64, Change)>,
    /// What the disk held from each time on.
    history: Vec<(u64, Vec<u8>)>,
    log_count: u64,
    kept: Vec<Kept>,
    replica: Replica,
}

impl Model {
    fn new(seed: u64, trouble: Trouble, told: Told) -> Self {
        Self {
            random: Random(seed),
            told: told.clone(),
            clock: 1,
            now: vec![0; SIZE as usize],
            unsent: Vec::new(),
            history: vec![(0, vec![0; SIZE as usize])],
            log_count: 0,
            kept: Vec::new(),
            replica: Replica::new(SIZE, trouble, told),
        }
    }

    fn say(&self, step: impl Into<String>) {
        tell(&self.told, step);
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1 + self.random.below(3);
        self.clock
    }

    /// Guests write to the primary's disk.
    fn write(&mut self, count: u64) {
        for _ in 0..count {
            let (time, change) = (self.tick(), Change::any(&mut self.random, SECTORS, 20));
            change.apply(&mut self.now);
            self.unsent.push((time, change));
            self.history.push((time, self.now.clone()));
        }
    }

    /// A cut: what was written since the last one becomes a log.
    fn cut(&mut self) -> PathBuf {
        let count = self.random.below(9);
        self.write(count);
        self.log_count += 1;
        let path = self.replica.path(&format!("{}.hrl", self.log_count));
        let (log, index) = (FsLogFile::create_new(&path).unwrap(), FsLogFile::create_new(&index_path(&path)));
        let mut writer = LogWriter::create(log, index.unwrap(), log_options()).unwrap();
        for (time, change) in self.unsent.drain(..) {
            let data = vec![change.fill; change.length_bytes as usize];
            let append = match change.operation {
                0 => Append::discard(change.offset, change.length_bytes, time),
                1 => Append::write_zeroes(change.offset, change.length_bytes, time),
                _ => Append::write(change.offset, &data, time),
            };
            writer.append(&[append]).unwrap();
        }
        let time = self.tick();
        writer.seal(time).unwrap();
        path
    }

    fn cycle(&mut self) {
        if self.random.one_in(3) {
            self.replica.keep_point();
        }
        let mut logs = vec![self.cut()];
        self.say(format!("cycle, points {:?}", self.replica.numbers()));
        self.replica.save(&paths_of(&logs), &mut self.random);
        while self.random.one_in(3) {
            self.replica.apply_in_part(&paths_of(&logs), &mut self.random);
            if self.random.one_in(2) {
                logs.push(self.cut()); // More has come meanwhile.
            }
            self.replica.save(&paths_of(&logs), &mut self.random);
        }
        apply_logs(&*self.replica.image, &paths_of(&logs), false, &GO_ON).unwrap();
        self.replica.came_to(&self.now, self.clock, &mut self.random);
        let number = self.replica.latest;
        self.kept.extend(logs.into_iter().map(|path| Kept { path, number }));
    }

    fn drop_oldest(&mut self) {
        self.replica.drop_oldest(&mut self.random);
        let first = self.replica.points.first().map_or(NO_POINT, |point| point.number);
        self.kept.retain(|log| log.number > first);
    }

    /// A state that can be asked for: the newest one, a point, or a moment since one.
    fn choose(&mut self) -> Choice {
        if self.replica.points.is_empty() || self.random.one_in(3) {
            self.replica.keep_point();
            return self.choice(self.replica.points.len() - 1, None);
        }
        let index = self.random.below(self.replica.points.len() as u64) as usize;
        if self.random.one_in(2) {
            return self.choice(index, None);
        }
        let since = self.replica.points[index].time;
        let until = since + self.random.below(self.replica.latest_time - since + 1);
        self.choice(index, Some(until))
    }

    fn choice(&self, index: usize, until: Option<u64>) -> Choice {
        let point = &self.replica.points[index];
        let at = |until: u64| self.history.iter().rfind(|(time, _)| *time <= until).unwrap().1.clone();
        Choice { point: point.number, until, bytes: until.map_or_else(|| point.bytes.clone(), at) }
    }

    fn hold_view(&mut self) {
        let choice = self.choose();
        self.replica.hold_view(choice.point);
    }

    /// A layer over a state, written to and thrown away.
    fn test(&mut self) {
        let mut disk = Disk::open(self);
        self.say(format!("test over {}", disk.name()));
        for _ in 0..self.random.below(6) {
            disk.write(&mut self.random);
        }
    }

    /// Until it is cancelled, or committed and reversed.
    fn fail_over(&mut self) {
        let mut disk = Disk::open(self);
        self.say(format!("fail over to {}", disk.name()));
        loop {
            match self.random.below(10) {
                0..=2 => disk.write(&mut self.random),
                3 => disk.flush(),
                4 => disk.die(self),
                5 => self.write(1), // The former primary does not know.
                6 => {
                    drop(disk);
                    disk = Disk::open(self);
                    self.say(format!("  change to {}", disk.name()));
                }
                7 => return self.say("  cancel"),
                _ => {
                    self.say("  commit");
                    return self.commit(disk);
                }
            }
            self.replica.check(&mut self.random);
            let image = self.replica.image.bytes();
            let applied = self.replica.applied.as_deref().unwrap();
            assert_eq!(first_difference(&image, applied), None, "the image below");
        }
    }

    fn commit(&mut self, mut disk: Disk) {
        if !self.replica.views.is_empty() {
            let image = self.replica.image.clone();
            let refused = disk.overlay().settle(image, disk.layer.view.as_deref(), &Work::default());
            assert_eq!(refused.unwrap_err().code(), "DISK_IN_USE");
            self.replica.views.clear();
        }
        let undone = all_changes(&self.replica.undo(), disk.choice.point);
        disk.settle(self);
        let shown = bytes_of(&**disk.overlay());
        assert_eq!(first_difference(&self.replica.image.durable_bytes(), &shown), None, "the image");
        let is_equal = disk.choice.point == self.replica.latest
            && disk.choice.until.is_none()
            && disk.written.is_empty()
            && self.unsent.is_empty();
        let written = disk.written.clone();
        drop(disk);
        self.kept.clear();
        self.replica.drop_before(NO_POINT, &mut self.random);
        let unsent = self.unsent.drain(..).map(|(_, change)| (change.offset, change.length_bytes));
        let candidates: Vec<(u64, u64)> = undone.into_iter().chain(written).chain(unsent).collect();
        assert!(!is_equal || candidates.is_empty(), "nothing differs, but {candidates:?}");
        self.reverse(&shown, &candidates);
    }

    /// The image becomes the primary's disk; the former primary's is brought to it, and becomes the image.
    fn reverse(&mut self, shown: &[u8], candidates: &[(u64, u64)]) {
        let former = MemoryDevice::new("former", SIZE);
        former.write_at(0, &self.now).unwrap();
        for &(offset, length_bytes) in candidates {
            let end = (offset + length_bytes).min(SIZE) as usize;
            former.write_at(offset, &shown[offset as usize..end]).unwrap();
        }
        assert_eq!(first_difference(&former.bytes(), shown), None, "what differs is among the candidates");
        self.say(format!("  reversed, {} candidates", candidates.len()));
        let time = self.tick();
        let image = Arc::new(PowerLossDevice::over(former));
        self.replica.begin_anew(image, Some(shown.to_vec()), time);
        self.now = shown.to_vec();
        self.history = vec![(time, shown.to_vec())];
    }

    fn step(&mut self) {
        let step = self.random.below(14);
        self.say(format!("step {step}"));
        match step {
            0..=5 => self.cycle(),
            6 => self.replica.merge(&mut self.random),
            7 => self.drop_oldest(),
            8 => self.replica.compact(&mut self.random),
            9 => self.hold_view(),
            10 | 11 => self.test(),
            12 => drop(self.replica.views.pop()),
            _ => self.fail_over(),
        }
        self.replica.check(&mut self.random);
    }
}

/// A writable disk over a state of the replica, and what it must read as.
struct Disk {
    choice: Choice,
    layer: Layer,
    expected: Vec<u8>,
    versions: Versions,
    written: Vec<(u64, u64)>,
}

impl Disk {
    fn open(model: &mut Model) -> Self {
        let choice = model.choose();
        let layer = Layer::open(&model.replica, choice.point);
        let (expected, versions) = (choice.bytes.clone(), Versions::flushed(&choice.bytes));
        let disk = Self { choice, layer, expected, versions, written: Vec::new() };
        if let Some(until) = disk.choice.until {
            let later = model.kept.iter().filter(|log| log.number > disk.choice.point);
            let logs: Vec<&Path> = later.map(|log| log.path.as_path()).collect();
            apply_logs_until(&**disk.overlay(), &logs, Until::Time(until), &GO_ON).unwrap();
        }
        disk.assert_reads();
        disk
    }

    fn name(&self) -> String {
        format!("{} until {:?}", self.choice.point, self.choice.until)
    }

    fn overlay(&self) -> &Arc<Overlay> {
        self.layer.overlay()
    }

    fn assert_reads(&self) {
        assert_shows(&**self.overlay(), &self.expected, &format!("the layer over {}", self.name()));
    }

    fn write(&mut self, random: &mut Random) {
        let change = Change::any(random, SECTORS, 20);
        change.carry_out(&**self.overlay()).unwrap();
        change.apply(&mut self.expected);
        self.versions.note(&change);
        self.written.push((change.offset, change.length_bytes));
        self.assert_reads();
    }

    fn flush(&mut self) {
        self.overlay().flush().unwrap();
        self.versions = Versions::flushed(&self.expected);
    }

    fn die(&mut self, model: &mut Model) {
        model.say("  died");
        self.layer.die(&mut model.replica, &mut model.random);
        let bytes = bytes_of(&**self.overlay());
        match model.replica.trouble {
            Trouble::Death => assert_eq!(first_difference(&bytes, &self.expected), None, "after a death"),
            Trouble::PowerLoss => self.versions.assert_holds(&bytes, "after a power loss"),
        }
        self.expected = bytes;
    }

    /// Brings the image to what the layer reads, dying now and then, while the guest writes on.
    fn settle(&mut self, model: &mut Model) {
        loop {
            let is_done = self.layer.settle_some(&model.replica, &mut model.random);
            self.assert_reads();
            if is_done {
                return;
            }
            if model.random.one_in(2) {
                self.write(&mut model.random);
            }
            if model.random.one_in(2) {
                self.die(model);
            }
        }
    }
}

fn paths_of(logs: &[PathBuf]) -> Vec<&Path> {
    logs.iter().map(PathBuf::as_path).collect()
}

fn all_changes(folder: &Path, from: u64) -> Vec<(u64, u64)> {
    changed_ranges(folder, from, Latest::Image, 0, usize::MAX).unwrap()
}

fn run(seed: u64, trouble: Trouble) {
    let steps: Told = Arc::new(Mutex::new(Vec::new()));
    let told = steps.clone();
    let life = catch_unwind(AssertUnwindSafe(move || {
        let mut model = Model::new(seed, trouble, told);
        for _ in 0..STEP_COUNT {
            model.step();
        }
    }));
    if let Err(panic) = life {
        let steps = steps.lock().unwrap().join("\n");
        let replay = format!("SECONDSITE_SEED={seed} cargo test -p secondsite-disk --test recovery_model");
        let reason = panic.downcast_ref::<String>().cloned().unwrap_or_default();
        panic!("{trouble:?} ({replay}): {reason}\n{steps}");
    }
}

fn run_all(trouble: Trouble) {
    if let Some(seed) = std::env::var("SECONDSITE_SEED").ok().and_then(|seed| seed.parse().ok()) {
        return run(seed, trouble);
    }
    let count = if std::env::var_os("SECONDSITE_SLOW").is_some() { 60_000 } else { 1500 };
    for seed in 0..count {
        run(seed, trouble);
    }
}

#[test]
fn a_replica_whose_processes_die_anywhere_shows_every_point_and_loses_nothing() {
    run_all(Trouble::Death);
}

#[test]
fn a_replica_whose_power_goes_anywhere_shows_every_point_and_loses_nothing_that_was_flushed() {
    run_all(Trouble::PowerLoss);
}
