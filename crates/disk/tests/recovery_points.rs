//! Recovery points against arrays of bytes, one per point.
//!
//! Invariants: at every moment, also between save and apply, in the middle of either, of a merge or a drop, each kept point
//! reads as the disk stood at it; holes read as zeros; what changed between two points is among the ranges told for them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod recovery_common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use recovery_common::{Change, GO_ON, Random, bytes_of, first_difference, log_of, open_view, undo_options};
use secondsite_disk::faults::MemoryDevice;
use secondsite_disk::{
    BlockDevice, Extent, ExtentKind, FileDevice, Latest, Result, apply_logs, changed_ranges, compact_point,
    drop_points_before, extents, merge_point, pinned_points, save_undo, undo_summary,
};

const SECTORS: u64 = 640;
const SIZE: u64 = SECTORS * 512;

/// A replica, and what each point must read as.
struct Model {
    seed: u64,
    random: Random,
    logs: tempfile::TempDir,
    undo: tempfile::TempDir,
    image: Arc<dyn BlockDevice>,
    now: Vec<u8>,
    points: Vec<(u64, Vec<u8>)>,
    next_point: u64,
}

impl Model {
    fn new(seed: u64) -> Self {
        let image = Arc::new(MemoryDevice::new("image", SIZE));
        let now = vec![0; SIZE as usize];
        Self {
            seed,
            random: Random(seed),
            logs: tempfile::tempdir().unwrap(),
            undo: tempfile::tempdir().unwrap(),
            image,
            points: vec![(1, now.clone())],
            now,
            next_point: 2,
        }
    }

    fn newest(&self) -> u64 {
        self.points.last().unwrap().0
    }

    fn some_log(&mut self) -> PathBuf {
        let count = 1 + self.random.below(12);
        let changes: Vec<Change> = (0..count).map(|_| Change::any(&mut self.random, SECTORS, 40)).collect();
        changes.iter().for_each(|change| change.apply(&mut self.now));
        log_of(self.logs.path(), &changes)
    }

    fn save(&mut self, logs: &[&Path]) {
        let epoch = self.undo.path().join("epoch");
        let before = fs::read(&epoch).unwrap_or_default();
        save_undo(&*self.image, logs, self.undo.path(), self.newest(), &undo_options(), &GO_ON).unwrap();
        if self.random.one_in(4) {
            // Died after the segment was in place and before anybody was told. The save is called again.
            fs::write(&epoch, before).unwrap();
            self.check();
            save_undo(&*self.image, logs, self.undo.path(), self.newest(), &undo_options(), &GO_ON).unwrap();
        }
    }

    fn cycle(&mut self) {
        let first = self.some_log();
        if self.random.one_in(4) {
            // Died while the segment was written.
            fs::write(self.undo.path().join("save.unfinished.hrl"), b"torn").unwrap();
        }
        self.save(&[&first]);
        self.check();
        let mut logs = vec![first];
        if self.random.one_in(3) {
            // Died in the middle of applying; more logs have come meanwhile.
            apply_logs(&*self.image, &[&logs[0]], true, &GO_ON).unwrap();
            self.check();
            logs.push(self.some_log());
            let paths: Vec<&Path> = logs.iter().map(PathBuf::as_path).collect();
            self.save(&paths);
            self.check();
        }
        let paths: Vec<&Path> = logs.iter().map(PathBuf::as_path).collect();
        apply_logs(&*self.image, &paths, false, &GO_ON).unwrap();
        assert_eq!(first_difference(&bytes_of(&*self.image), &self.now), None, "seed {}", self.seed);
    }

    fn cut(&mut self) {
        self.points.push((self.next_point, self.now.clone()));
        self.next_point += 1 + self.random.below(3);
    }

    /// Runs a step that deletes files, and brings some of them back, as if it had died before it deleted them.
    fn dying_late(&mut self, step: impl Fn(&Path)) {
        let held: Vec<(PathBuf, Vec<u8>)> = fs::read_dir(self.undo.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|name| name == "hrl" || name == "hrx"))
            .map(|path| (path.clone(), fs::read(&path).unwrap()))
            .collect();
        step(self.undo.path());
        if self.random.one_in(2) {
            let from = held.iter().find(|(path, _)| !path.exists()).map(|(path, _)| path.clone());
            for (path, content) in held.iter().filter(|(path, _)| Some(path.with_extension("")) >= from) {
                if !path.exists() {
                    fs::write(path, content).unwrap();
                }
            }
            self.check();
            step(self.undo.path());
        }
    }

    fn expire(&mut self) {
        if self.points.len() < 3 {
            return;
        }
        let index = 1 + self.random.below(self.points.len() as u64 - 2) as usize;
        let (from, into) = (self.points[index].0, self.points[index - 1].0);
        self.points.remove(index);
        self.dying_late(|folder| {
            merge_point(folder, from, into, &undo_options(), &GO_ON).unwrap();
        });
    }

    fn drop_oldest(&mut self) {
        if self.points.len() < 2 {
            return;
        }
        self.points.remove(0);
        let oldest = self.points[0].0;
        self.dying_late(|folder| {
            drop_points_before(folder, oldest).unwrap();
        });
    }

    fn compact(&mut self) {
        let index = self.random.below(self.points.len() as u64) as usize;
        let point = self.points[index].0;
        self.dying_late(|folder| {
            compact_point(folder, point, &undo_options(), &GO_ON).unwrap();
        });
    }

    fn check(&self) {
        let summary = undo_summary(self.undo.path(), true).unwrap();
        assert_eq!(summary.damage, [], "seed {}", self.seed);
        for (point, expected) in &self.points {
            let view = open_view(self.undo.path(), &self.image, *point).unwrap();
            let found = first_difference(&bytes_of(&view), expected);
            assert_eq!(found, None, "seed {}: point {point} differs there", self.seed);
            for extent in extents(&view, 0, SIZE).unwrap() {
                let range = extent.offset as usize..extent.end() as usize;
                let is_right =
                    extent.kind == ExtentKind::Data || expected[range].iter().all(|byte| *byte == 0);
                assert!(is_right, "seed {}: point {point}: {extent:?} is no hole", self.seed);
            }
        }
    }

    fn check_changes(&self) {
        for (older, newer) in self.points.iter().zip(self.points.iter().skip(1)) {
            let ranges = all_changes(self.undo.path(), older.0, Latest::Point(newer.0));
            let differs = |sector: &u64| {
                let range = (sector * 512) as usize..(sector * 512 + 512) as usize;
                older.1[range.clone()] != newer.1[range]
            };
            for sector in (0..SECTORS).filter(differs) {
                let is_told = ranges.iter().any(|(at, length)| (*at..at + length).contains(&(sector * 512)));
                assert!(is_told, "seed {}: sector {sector} changed after point {}", self.seed, older.0);
            }
        }
    }
}

/// Changes, a few at a time.
fn all_changes(folder: &Path, from: u64, to: Latest) -> Vec<(u64, u64)> {
    let (mut all, mut at): (Vec<(u64, u64)>, u64) = (Vec::new(), 0);
    loop {
        let page = changed_ranges(folder, from, to, at, 3).unwrap();
        let Some(last) = page.last() else { return all };
        at = last.0 + last.1;
        for range in &page {
            assert!(all.last().is_none_or(|before| before.0 + before.1 < range.0), "{all:?} {range:?}");
            all.push(*range);
        }
    }
}

fn run(seed: u64, steps: u64) {
    let mut model = Model::new(seed);
    for _ in 0..steps {
        match model.random.below(10) {
            0..=4 => model.cycle(),
            5 | 6 => model.cut(),
            7 => model.expire(),
            8 => model.drop_oldest(),
            _ => model.compact(),
        }
        model.check();
    }
    model.check_changes();
}

#[test]
fn every_point_equals_the_array_of_bytes_taken_at_it_through_crashes_merges_and_drops() {
    for seed in 0..12 {
        run(seed, 20);
    }
}

#[test]
fn views_read_the_same_while_cycles_are_applied_and_segments_are_merged() {
    let folder = tempfile::tempdir().unwrap();
    let image: Arc<dyn BlockDevice> =
        Arc::new(FileDevice::create(&folder.path().join("image.raw"), SIZE).unwrap());
    let mut model = Model { image: image.clone(), ..Model::new(77) };
    for _ in 0..3 {
        model.cycle();
    }
    model.cut();
    let (point, expected) = model.points.last().unwrap().clone();
    let done = AtomicBool::new(false);
    let undo = model.undo.path().to_path_buf();
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|seed| {
                let (undo, image, expected, done) = (&undo, &image, &expected, &done);
                scope.spawn(move || {
                    let view = open_view(undo, image, point).unwrap();
                    let (mut random, mut count) = (Random(seed), 0);
                    while !done.load(Ordering::Relaxed) || count < 100 {
                        let sectors = 1 + random.below(64);
                        let at = random.below(SECTORS - sectors + 1) * 512;
                        let mut buffer = vec![0xEE; sectors as usize * 512];
                        view.read_at(at, &mut buffer).unwrap();
                        let right = &expected[at as usize..at as usize + buffer.len()];
                        assert_eq!(first_difference(&buffer, right), None, "reader {seed} at {at}");
                        count += 1;
                    }
                })
            })
            .collect();
        for round in 0..60 {
            model.cycle();
            match round % 6 {
                2 => model.cut(),
                4 => drop(compact_point(&undo, model.newest(), &undo_options(), &GO_ON).unwrap()),
                5 if model.points.len() > 3 => {
                    // The newest but one, which nobody reads, goes into the one before.
                    let index = model.points.len() - 2;
                    let (from, into) = (model.points[index].0, model.points[index - 1].0);
                    if from != point {
                        model.points.remove(index);
                        merge_point(&undo, from, into, &undo_options(), &GO_ON).unwrap();
                    }
                }
                _ => {}
            }
        }
        done.store(true, Ordering::Relaxed);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
    model.check();
}

type Meanwhile = Box<dyn FnOnce() + Send>;

/// An image that something happens to just before it is read for the first time.
struct Interrupted {
    image: Arc<dyn BlockDevice>,
    meanwhile: Mutex<Option<Meanwhile>>,
}

impl BlockDevice for Interrupted {
    fn path(&self) -> &Path {
        self.image.path()
    }
    fn size_bytes(&self) -> u64 {
        self.image.size_bytes()
    }
    fn sector_size_bytes(&self) -> u32 {
        self.image.sector_size_bytes()
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let meanwhile = self.meanwhile.lock().take();
        meanwhile.into_iter().for_each(|happens| happens());
        self.image.read_at(offset, buffer)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.image.write_at(offset, data)
    }
    fn write_zeroes(&self, offset: u64, length_bytes: u64, may_unmap: bool) -> Result<()> {
        self.image.write_zeroes(offset, length_bytes, may_unmap)
    }
    fn discard(&self, offset: u64, length_bytes: u64) -> Result<()> {
        self.image.discard(offset, length_bytes)
    }
    fn flush(&self) -> Result<()> {
        self.image.flush()
    }
    fn extent_at(&self, offset: u64, end: u64) -> Result<Extent> {
        self.image.extent_at(offset, end)
    }
}

#[test]
fn a_read_that_finds_the_image_overwritten_meanwhile_begins_again_with_what_was_saved() {
    let mut model = Model::new(15);
    model.cycle();
    model.cut();
    let (point, expected) = model.points.last().unwrap().clone();
    let change = Change { operation: 2, offset: 0, length_bytes: SIZE, fill: 0xA5 };
    let log = log_of(model.logs.path(), &[change]);
    let (image, undo) = (model.image.clone(), model.undo.path().to_path_buf());
    let cycle = move || {
        save_undo(&*image, &[&log], &undo, point, &undo_options(), &GO_ON).unwrap();
        apply_logs(&*image, &[&log], false, &GO_ON).unwrap();
    };
    let meanwhile = Mutex::new(Some(Box::new(cycle) as Meanwhile));
    let interrupted: Arc<dyn BlockDevice> = Arc::new(Interrupted { image: model.image.clone(), meanwhile });
    let view = open_view(model.undo.path(), &interrupted, point).unwrap();
    let mut bytes = vec![0; SIZE as usize];
    view.read_at(0, &mut bytes).unwrap();
    assert_eq!(first_difference(&bytes, &expected), None);
}

#[test]
fn a_save_that_died_before_it_told_anybody_is_told_by_the_next_which_saves_nothing_new() {
    let mut model = Model::new(5);
    model.cycle();
    let point = model.newest();
    let log = model.some_log();
    let view = open_view(model.undo.path(), &model.image, point).unwrap();
    let epoch = model.undo.path().join("epoch");
    let before = fs::read(&epoch).unwrap();
    let save =
        || save_undo(&*model.image, &[&log], model.undo.path(), point, &undo_options(), &GO_ON).unwrap();
    assert!(save().saved_bytes > 0);
    fs::write(&epoch, before).unwrap();
    assert_eq!(save().saved_bytes, 0);
    apply_logs(&*model.image, &[&log], false, &GO_ON).unwrap();
    assert_eq!(first_difference(&bytes_of(&view), &model.points[0].1), None);
}

#[test]
fn a_save_counts_after_all_was_dropped_by_an_epoch_that_a_power_loss_had_taken_back() {
    let mut model = Model::new(14);
    model.cycle();
    model.cycle();
    // Only drops make the file durable, so this is what a power loss may leave.
    fs::write(model.undo.path().join("epoch"), b"").unwrap();
    model.points.clear();
    drop_points_before(model.undo.path(), u64::MAX).unwrap();
    model.cut();
    model.cycle();
    model.check();
}

#[test]
fn what_was_dropped_is_no_gap_after_the_next_save_where_a_power_loss_took_the_epoch() {
    let mut model = Model::new(16);
    for _ in 0..3 {
        model.cycle();
        model.cut();
    }
    model.points.remove(0);
    drop_points_before(model.undo.path(), model.points[0].0).unwrap();
    fs::write(model.undo.path().join("epoch"), b"").unwrap();
    model.cycle();
    assert!(model.points.len() > 1);
    model.check();
}

#[test]
fn a_point_that_is_read_is_neither_merged_nor_dropped() {
    let mut model = Model::new(6);
    model.cycle();
    model.cut();
    model.cycle();
    let (older, newer) = (model.points[0].0, model.points[1].0);
    let view = open_view(model.undo.path(), &model.image, newer).unwrap();
    let second = open_view(model.undo.path(), &model.image, newer).unwrap();
    assert_eq!(pinned_points(model.undo.path()).unwrap(), [newer, newer]);
    drop(second);
    assert_eq!(pinned_points(model.undo.path()).unwrap(), [newer]);
    let refused = merge_point(model.undo.path(), newer, older, &undo_options(), &GO_ON).unwrap_err();
    assert_eq!(refused.code(), "DISK_IN_USE");
    let refused = drop_points_before(model.undo.path(), newer + 1).unwrap_err();
    assert_eq!(refused.code(), "DISK_IN_USE");
    drop(view);
    assert_eq!(pinned_points(model.undo.path()).unwrap(), [0; 0]);
    assert_eq!(
        merge_point(model.undo.path(), newer, older, &undo_options(), &GO_ON).unwrap().deleted_count,
        1
    );
    model.points.pop();
    model.check();
}

#[test]
fn pins_of_the_dead_hold_nothing() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("pins")).unwrap();
    fs::write(folder.path().join("pins/000000000007-0000000000000001"), b"").unwrap();
    assert_eq!(pinned_points(folder.path()).unwrap(), [0; 0]);
    assert!(!folder.path().join("pins/000000000007-0000000000000001").exists());
}

#[test]
fn undo_is_refused_for_a_point_older_than_the_newest() {
    let mut model = Model::new(8);
    model.cut();
    model.cycle();
    let log = model.some_log();
    let refused =
        save_undo(&*model.image, &[&log], model.undo.path(), 1, &undo_options(), &GO_ON).unwrap_err();
    assert_eq!(refused.code(), "OPTION_OUT_OF_RANGE");
}

#[test]
fn a_stopped_save_leaves_nothing_and_a_stopped_merge_leaves_all() {
    let mut model = Model::new(9);
    model.cycle();
    model.cut();
    model.cycle();
    let log = model.some_log();
    let (older, newer) = (model.points[0].0, model.points[1].0);
    let names = || fs::read_dir(model.undo.path()).unwrap().count();
    let (before, stop) = (names(), AtomicBool::new(true));
    let stopped =
        save_undo(&*model.image, &[&log], model.undo.path(), newer, &undo_options(), &stop).unwrap_err();
    assert_eq!((stopped.code(), names()), ("ABORTED", before));
    let stopped = merge_point(model.undo.path(), newer, older, &undo_options(), &stop).unwrap_err();
    assert_eq!(stopped.code(), "ABORTED");
    model.now.clone_from(&bytes_of(&*model.image));
    model.check();
}

/// Segments of many pages of records, which are found by bisection.
#[test]
fn points_with_many_scattered_ranges_read_right_wherever_one_looks() {
    const UNITS: u64 = 2048;
    let size = UNITS * 4096;
    let (undo, logs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let image: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new("image", size));
    let mut random = Random(11);
    let mut now = vec![0; size as usize];
    let mut points: Vec<Vec<u8>> = Vec::new();
    let mut touched: Vec<Vec<bool>> = Vec::new();
    for point in 1..=4u64 {
        points.push(now.clone());
        touched.push(vec![false; UNITS as usize]);
        for _ in 0..5 {
            let changes: Vec<Change> = (0..200)
                .map(|_| {
                    let unit = random.below(UNITS / 2) * 2; // No two units touch: each is an entry of its own.
                    touched[point as usize - 1][unit as usize] = true;
                    let fill = 1 + random.below(255) as u8;
                    Change { operation: random.below(9), offset: unit * 4096, length_bytes: 4096, fill }
                })
                .collect();
            changes.iter().for_each(|change| change.apply(&mut now));
            let log = log_of(logs.path(), &changes);
            save_undo(&*image, &[&log], undo.path(), point, &undo_options(), &GO_ON).unwrap();
            apply_logs(&*image, &[&log], false, &GO_ON).unwrap();
        }
    }
    let check = |kept: &[u64], random: &mut Random| {
        for &point in kept {
            let (view, expected) =
                (open_view(undo.path(), &image, point).unwrap(), &points[point as usize - 1]);
            for _ in 0..150 {
                let sectors = 1 + random.below(200);
                let at = random.below(size / 512 - sectors + 1) * 512;
                let mut buffer = vec![0xEE; sectors as usize * 512];
                view.read_at(at, &mut buffer).unwrap();
                let right = &expected[at as usize..at as usize + buffer.len()];
                assert_eq!(first_difference(&buffer, right), None, "point {point} at {at}");
            }
            assert_eq!(first_difference(&bytes_of(&view), expected), None, "point {point}");
        }
    };
    check(&[1, 2, 3, 4], &mut random);
    let told: Vec<(u64, u64)> = all_changes(undo.path(), 2, Latest::Point(3));
    let expected: Vec<(u64, u64)> =
        (0..UNITS).filter(|unit| touched[1][*unit as usize]).map(|unit| (unit * 4096, 4096)).collect();
    assert_eq!(told, expected);
    assert!(compact_point(undo.path(), 3, &undo_options(), &GO_ON).unwrap().deleted_count >= 4);
    merge_point(undo.path(), 2, 1, &undo_options(), &GO_ON).unwrap();
    check(&[1, 3, 4], &mut random);
    drop_points_before(undo.path(), 3).unwrap();
    check(&[3, 4], &mut random);
    assert_eq!(undo_summary(undo.path(), true).unwrap().damage, []);
}

#[test]
fn saves_and_summaries_are_not_disturbed_by_segments_that_are_brought_together_meanwhile() {
    let mut model = Model::new(13);
    let undo = model.undo.path().to_path_buf();
    let (point, is_over) = (model.newest(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let merging = scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                compact_point(&undo, point, &undo_options(), &GO_ON).unwrap();
            }
        });
        let summing = scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                assert_eq!(undo_summary(&undo, false).unwrap().damage, []);
            }
        });
        for _ in 0..40 {
            // One sector after another, so that each save has something new.
            let at = model.random.below(SECTORS / 8) * 4096;
            let change = Change { operation: 2, offset: at, length_bytes: 512, fill: 7 };
            change.apply(&mut model.now);
            let log = log_of(model.logs.path(), &[change]);
            save_undo(&*model.image, &[&log], &undo, point, &undo_options(), &GO_ON).unwrap();
            apply_logs(&*model.image, &[&log], false, &GO_ON).unwrap();
        }
        is_over.store(true, Ordering::Relaxed);
        merging.join().unwrap();
        summing.join().unwrap();
    });
    model.check();
}
