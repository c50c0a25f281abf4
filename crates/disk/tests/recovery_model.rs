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

#[path = "recovery_common/crash.rs"]
mod crash;
mod recovery_common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use crash::{Death, Epochs, Snapshot};
use recovery_common::{
    Change, GO_ON, Random, Stopping, Versions, bytes_of, first_difference, log_options, open_view,
    undo_options,
};
use secondsite_disk::faults::{Fault, FaultDevice, MemoryDevice, Operation, PowerLossDevice};
use secondsite_disk::{
    BlockDevice, ExtentKind, Latest, Overlay, OverlayOptions, OverlayState, PointView, Work, apply_logs,
    apply_logs_until, changed_ranges, compact_point, drop_points_before, extents, merge_point, save_undo,
    undo_summary,
};
use secondsite_hrl::faults::MemoryLogFile;
use secondsite_hrl::{Append, FsLogFile, LogWriter, index_path};

const SECTORS: u64 = 83; // No whole number of blocks.
const SIZE: u64 = SECTORS * 512;
const STEP_COUNT: u64 = 14;
/// Newer than every point.
const NO_POINT: u64 = (1 << 53) - 1;

/// Why steps are cut short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Death,
    PowerLoss,
}

/// A kept state of the image.
struct Point {
    number: u64,
    time: u64,
    bytes: Vec<u8>,
}

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
    trouble: Trouble,
    random: Random,
    steps: Arc<Mutex<Vec<String>>>,
    folder: tempfile::TempDir,
    direction: u64,
    clock: u64,
    /// What the primary's disk holds, and which of its writes are in no log yet.
    now: Vec<u8>,
    unsent: Vec<(u64, Change)>,
    /// What the disk held from each time on.
    history: Vec<(u64, Vec<u8>)>,
    log_count: u64,
    image: Arc<PowerLossDevice>,
    /// Number of the state that the image shows.
    latest: u64,
    latest_time: u64,
    applied: Vec<u8>,
    points: Vec<Point>,
    kept: Vec<Kept>,
    epochs: Epochs,
    views: Vec<(PointView, Vec<u8>)>,
}

impl Model {
    fn new(seed: u64, trouble: Trouble, steps: Arc<Mutex<Vec<String>>>) -> Self {
        let memory = Path::new("/dev/shm");
        let base = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
        Self {
            trouble,
            random: Random(seed),
            steps,
            folder: tempfile::tempdir_in(base).unwrap(),
            direction: 0,
            clock: 1,
            now: vec![0; SIZE as usize],
            unsent: Vec::new(),
            history: vec![(0, vec![0; SIZE as usize])],
            log_count: 0,
            image: Arc::new(PowerLossDevice::new("image", SIZE)),
            latest: 1,
            latest_time: 0,
            applied: vec![0; SIZE as usize],
            points: Vec::new(),
            kept: Vec::new(),
            epochs: Epochs::default(),
            views: Vec::new(),
        }
    }

    fn say(&self, step: impl Into<String>) {
        self.steps.lock().unwrap().push(step.into());
    }

    fn undo(&self) -> PathBuf {
        self.folder.path().join(format!("undo-{}", self.direction))
    }

    fn device(&self) -> Arc<dyn BlockDevice> {
        self.image.clone()
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
        let path = self.folder.path().join(format!("{}.hrl", self.log_count));
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

    /// The present state becomes a point before it is overwritten.
    fn keep_point(&mut self) {
        if self.points.last().is_none_or(|point| point.number < self.latest) {
            let (number, time) = (self.latest, self.latest_time);
            self.points.push(Point { number, time, bytes: self.applied.clone() });
        }
    }

    fn save(&mut self, logs: &[PathBuf]) {
        let Some(point) = self.points.last().map(|point| point.number) else { return };
        let paths = paths_of(logs);
        self.dying(&|folder, image| {
            save_undo(image, &paths, folder, point, &undo_options(), &GO_ON).unwrap();
        });
    }

    /// Carries out a step on the undo folder, which may die inside of it; then it is carried out again.
    fn dying(&mut self, step: &dyn Fn(&Path, &dyn BlockDevice)) {
        let folder = self.undo();
        loop {
            let before = Snapshot::take(&folder);
            step(&folder, &*self.image);
            let death = (self.random.one_in(4) && folder.exists()).then(|| Death::any(&mut self.random));
            if let Some(death) = death {
                self.say(format!("  died: {death:?}"));
                death.leave(&folder, &before, &mut self.random);
            }
            self.epochs.note(&before, &Snapshot::take(&folder));
            if death.is_none() {
                return;
            }
            self.lose_power();
            self.check();
        }
    }

    /// In the runs of that kind all memory is lost, and whatever was not synced.
    fn lose_power(&mut self) {
        if self.trouble == Trouble::Death {
            return;
        }
        self.views.clear();
        self.image = Arc::new(self.image.crash(self.random.below(1 << 30)));
        let folder = self.undo();
        self.epochs.lose(&folder, &mut self.random);
    }

    fn cycle(&mut self) {
        if self.random.one_in(3) {
            self.keep_point();
        }
        let mut logs = vec![self.cut()];
        self.say(format!("cycle, points {:?}", self.numbers()));
        self.save(&logs);
        while self.random.one_in(3) {
            self.apply_in_part(&logs);
            self.check();
            if self.random.one_in(2) {
                logs.push(self.cut()); // More has come meanwhile.
            }
            self.save(&logs);
        }
        apply_logs(&*self.image, &paths_of(&logs), false, &GO_ON).unwrap();
        assert_eq!(first_difference(&self.image.durable_bytes(), &self.now), None, "the image");
        self.applied.clone_from(&self.now);
        self.latest += 1 + self.random.below(2);
        self.latest_time = self.clock;
        let number = self.latest;
        self.kept.extend(logs.into_iter().map(|path| Kept { path, number }));
    }

    /// Some writes of an apply fail, the first of them in part, and that is the end of the process.
    fn apply_in_part(&mut self, logs: &[PathBuf]) {
        let failing = FaultDevice::new(self.device());
        let after = self.random.below(6);
        for operation in [Operation::Write, Operation::WriteZeroes, Operation::Discard, Operation::Flush] {
            failing.arm(Fault::new(operation).after(after).always().short(512 * self.random.below(8)));
        }
        self.say(format!("  died after {after} writes"));
        // With fewer writes than that it came to its end, and died before anybody was told.
        let _ = apply_logs(&failing, &paths_of(logs), true, &GO_ON);
        self.lose_power();
    }

    fn merge(&mut self) {
        if self.points.len() < 3 {
            return;
        }
        let index = 1 + self.random.below(self.points.len() as u64 - 2) as usize;
        let (from, into) = (self.points[index].number, self.points[index - 1].number);
        self.say(format!("merge {from} into {into}"));
        if self.is_read(|point| point == from) {
            let refused = merge_point(&self.undo(), from, into, &undo_options(), &GO_ON).unwrap_err();
            assert_eq!(refused.code(), "DISK_IN_USE");
            return;
        }
        self.points.remove(index);
        self.dying(&|folder, _| {
            merge_point(folder, from, into, &undo_options(), &GO_ON).unwrap();
        });
    }

    fn is_read(&self, is_meant: impl Fn(u64) -> bool) -> bool {
        self.views.iter().any(|(view, _)| is_meant(view.point()))
    }

    fn drop_oldest(&mut self) {
        if self.points.is_empty() {
            return;
        }
        let oldest = self.points.get(1).map_or(NO_POINT, |point| point.number);
        self.say(format!("drop what is older than {oldest}"));
        if self.is_read(|point| point < oldest) {
            let refused = drop_points_before(&self.undo(), oldest).unwrap_err();
            assert_eq!(refused.code(), "DISK_IN_USE");
            return;
        }
        self.points.remove(0);
        self.dying(&|folder, _| {
            drop_points_before(folder, oldest).unwrap();
        });
        let first = self.points.first().map_or(NO_POINT, |point| point.number);
        self.kept.retain(|log| log.number > first);
    }

    fn compact(&mut self) {
        let Some(point) = self.points.last().map(|point| point.number) else { return };
        self.say(format!("compact {point}"));
        self.dying(&|folder, _| {
            compact_point(folder, point, &undo_options(), &GO_ON).unwrap();
        });
    }

    /// A state that can be asked for: the newest one, a point, or a moment since one.
    fn choose(&mut self) -> Choice {
        if self.points.is_empty() || self.random.one_in(3) {
            self.keep_point();
            return self.choice(self.points.len() - 1, None);
        }
        let index = self.random.below(self.points.len() as u64) as usize;
        if self.random.one_in(2) {
            return self.choice(index, None);
        }
        let since = self.points[index].time;
        let until = since + self.random.below(self.latest_time - since + 1);
        self.choice(index, Some(until))
    }

    fn choice(&self, index: usize, until: Option<u64>) -> Choice {
        let point = &self.points[index];
        let at = |until: u64| self.history.iter().rfind(|(time, _)| *time <= until).unwrap().1.clone();
        Choice { point: point.number, until, bytes: until.map_or_else(|| point.bytes.clone(), at) }
    }

    fn hold_view(&mut self) {
        if self.views.len() == 2 {
            self.views.remove(0);
        }
        let choice = self.choose();
        let (index, folder) = (self.index_of(choice.point), self.undo());
        self.say(format!("view {}", choice.point));
        let view = open_view(&folder, &self.device(), choice.point).unwrap();
        self.views.push((view, self.points[index].bytes.clone()));
    }

    fn index_of(&self, number: u64) -> usize {
        self.points.iter().position(|point| point.number == number).unwrap()
    }

    fn numbers(&self) -> Vec<u64> {
        self.points.iter().map(|point| point.number).collect()
    }

    /// A layer over a state, written to and thrown away.
    fn test(&mut self) {
        let mut layer = Layer::open(self);
        self.say(format!("test over {}", layer.name()));
        for _ in 0..self.random.below(6) {
            layer.write(self);
        }
    }

    /// Until it is cancelled, or committed and reversed.
    fn fail_over(&mut self) {
        let mut layer = Layer::open(self);
        self.say(format!("fail over to {}", layer.name()));
        loop {
            match self.random.below(10) {
                0..=2 => layer.write(self),
                3 => layer.flush(),
                4 => layer.die(self),
                5 => self.write(1), // The former primary does not know.
                6 => {
                    drop(layer);
                    layer = Layer::open(self);
                    self.say(format!("  change to {}", layer.name()));
                }
                7 => return self.say("  cancel"),
                _ => {
                    self.say("  commit");
                    return self.commit(layer);
                }
            }
            self.check();
            assert_eq!(first_difference(&self.image.bytes(), &self.applied), None, "the image below");
        }
    }

    fn commit(&mut self, mut layer: Layer) {
        if !self.views.is_empty() {
            let refused = layer.overlay().settle(self.image.clone(), Some(&layer.view), &Work::default());
            assert_eq!(refused.unwrap_err().code(), "DISK_IN_USE");
            self.views.clear();
        }
        let undone = all_changes(&self.undo(), layer.choice.point);
        layer.settle(self);
        let shown = bytes_of(layer.overlay());
        assert_eq!(first_difference(&self.image.durable_bytes(), &shown), None, "the image");
        let is_equal = layer.choice.point == self.latest
            && layer.choice.until.is_none()
            && layer.written.is_empty()
            && self.unsent.is_empty();
        let written = layer.written.clone();
        drop(layer);
        self.points.clear();
        self.kept.clear();
        self.dying(&|folder, _| {
            drop_points_before(folder, NO_POINT).unwrap();
        });
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
        self.image = Arc::new(PowerLossDevice::over(former));
        self.now = shown.to_vec();
        self.applied = shown.to_vec();
        let time = self.tick();
        self.history = vec![(time, shown.to_vec())];
        (self.latest, self.latest_time) = (1, time);
        self.epochs = Epochs::default();
        self.direction += 1;
    }

    fn check(&mut self) {
        let (folder, is_deep) = (self.undo(), self.random.one_in(4));
        assert_eq!(undo_summary(&folder, is_deep).unwrap().damage, []);
        for point in &self.points {
            let view = open_view(&folder, &self.device(), point.number).unwrap();
            assert_shows(&view, &point.bytes, &format!("point {}", point.number));
        }
        for (view, bytes) in &self.views {
            assert_shows(view, bytes, &format!("the view of point {}", view.point()));
        }
    }

    fn step(&mut self) {
        match self.random.below(14) {
            0..=5 => self.cycle(),
            6 => self.merge(),
            7 => self.drop_oldest(),
            8 => self.compact(),
            9 => self.hold_view(),
            10 | 11 => self.test(),
            12 => drop(self.views.pop()),
            _ => self.fail_over(),
        }
        self.check();
    }
}

/// A writable disk over a state of the replica, and what it must read as.
struct Layer {
    choice: Choice,
    view: Arc<PointView>,
    data: Arc<PowerLossDevice>,
    map: Arc<MemoryLogFile>,
    overlay: Option<Overlay>,
    boot: u64,
    expected: Vec<u8>,
    versions: Versions,
    written: Vec<(u64, u64)>,
}

impl Layer {
    fn open(model: &mut Model) -> Self {
        let choice = model.choose();
        let view = Arc::new(open_view(&model.undo(), &model.device(), choice.point).unwrap());
        let data = Arc::new(PowerLossDevice::new("data", SIZE));
        let map = Arc::new(MemoryLogFile::new("map"));
        let (expected, versions) = (choice.bytes.clone(), Versions::flushed(&choice.bytes));
        let written = Vec::new();
        let mut layer = Self { choice, view, data, map, overlay: None, boot: 1, expected, versions, written };
        layer.reopen(model, false);
        if let Some(until) = layer.choice.until {
            let later = model.kept.iter().filter(|log| log.number > layer.choice.point);
            let logs: Vec<&Path> = later.map(|log| log.path.as_path()).collect();
            apply_logs_until(layer.overlay(), &logs, secondsite_disk::Until::Time(until), &GO_ON).unwrap();
        }
        layer.assert_reads();
        layer
    }

    fn name(&self) -> String {
        format!("{} until {:?}", self.choice.point, self.choice.until)
    }

    fn overlay(&self) -> &Overlay {
        self.overlay.as_ref().unwrap()
    }

    fn assert_reads(&self) {
        assert_shows(self.overlay(), &self.expected, &format!("the layer over {}", self.name()));
    }

    fn write(&mut self, model: &mut Model) {
        let change = Change::any(&mut model.random, SECTORS, 20);
        change.carry_out(self.overlay()).unwrap();
        change.apply(&mut self.expected);
        self.versions.note(&change);
        self.written.push((change.offset, change.length_bytes));
        self.assert_reads();
    }

    fn flush(&mut self) {
        self.overlay().flush().unwrap();
        self.versions = Versions::flushed(&self.expected);
    }

    /// The process ends, or the power goes, and it is opened again.
    fn die(&mut self, model: &mut Model) {
        let is_settling = self.overlay().state() != OverlayState::Active;
        model.say("  died");
        self.overlay = None;
        if model.trouble == Trouble::PowerLoss {
            self.data = Arc::new(self.data.crash(model.random.below(1 << 30)));
            self.map.lose_power(model.random.below(1 << 30));
            self.boot += 1;
        }
        model.lose_power();
        self.view = Arc::new(open_view(&model.undo(), &model.device(), self.choice.point).unwrap());
        self.reopen(model, is_settling);
        let bytes = bytes_of(self.overlay());
        match model.trouble {
            Trouble::Death => assert_eq!(first_difference(&bytes, &self.expected), None, "after a death"),
            Trouble::PowerLoss => self.versions.assert_holds(&bytes, "after a power loss"),
        }
        self.expected = bytes;
    }

    fn reopen(&mut self, model: &Model, is_settling: bool) {
        let options = OverlayOptions {
            settle_flush_bytes: 16 << 10,
            ..OverlayOptions::new(self.boot.to_string(), self.choice.point)
        };
        let image = is_settling.then(|| model.device());
        let opened = Overlay::over(self.view.clone(), self.data.clone(), self.map.clone(), &options, image);
        self.overlay = Some(opened.unwrap());
    }

    /// Brings the image to what the layer reads, dying now and then, while the guest writes on.
    fn settle(&mut self, model: &mut Model) {
        loop {
            let work = Arc::new(Work::default());
            let left = AtomicU64::new(1 + model.random.below(10));
            let stopping = Stopping { image: model.device(), left, work: work.clone() };
            let settled = self.overlay().settle(Arc::new(stopping), Some(&self.view), &work);
            self.assert_reads();
            match settled {
                Ok(()) => return,
                Err(error) => assert_eq!(error.code(), "ABORTED"),
            }
            if model.random.one_in(2) {
                self.write(model);
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

fn assert_shows(device: &dyn BlockDevice, expected: &[u8], what: &str) {
    assert_eq!(first_difference(&bytes_of(device), expected), None, "{what}");
    for extent in extents(device, 0, SIZE).unwrap() {
        let range = extent.offset as usize..extent.end() as usize;
        let is_right = extent.kind == ExtentKind::Data || expected[range].iter().all(|byte| *byte == 0);
        assert!(is_right, "{what}: {extent:?} is no hole");
    }
}

fn run(seed: u64, trouble: Trouble) {
    let steps = Arc::new(Mutex::new(Vec::new()));
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
