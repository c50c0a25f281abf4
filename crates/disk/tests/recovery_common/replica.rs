//! A replica of one disk: its image, the undo of its points and views of them, with a death of the process or a loss of power
//! between any two steps and inside of them, beside an array of bytes for each state that it must show.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::crash::{Death, Epochs, Snapshot};
use super::{GO_ON, Random, bytes_of, first_difference, open_view, undo_options};
use secondsite_disk::faults::{Fault, FaultDevice, Operation, PowerLossDevice};
use secondsite_disk::{
    BlockDevice, ExtentKind, PointView, apply_logs, compact_point, drop_points_before, extents, merge_point,
    save_undo, undo_summary,
};

/// Newer than every point.
pub const NO_POINT: u64 = (1 << 53) - 1;

/// Why steps are cut short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    Death,
    PowerLoss,
}

/// The steps of a run, to be printed when it fails.
pub type Told = Arc<Mutex<Vec<String>>>;

pub fn tell(told: &Told, step: impl Into<String>) {
    told.lock().expect("steps that nobody panics over").push(step.into());
}

/// A kept state of the image.
pub struct Point {
    pub number: u64,
    pub time: u64,
    pub bytes: Vec<u8>,
}

pub struct Replica {
    pub trouble: Trouble,
    told: Told,
    folder: tempfile::TempDir,
    /// Replicas that this one has been before, each with undo of its own.
    direction: u64,
    pub image: Arc<PowerLossDevice>,
    /// Number and time of the state that the image shows.
    pub latest: u64,
    pub latest_time: u64,
    /// What the image shows; `None` in the middle of an apply.
    pub applied: Option<Vec<u8>>,
    pub points: Vec<Point>,
    pub views: Vec<(PointView, Vec<u8>)>,
    epochs: Epochs,
}

impl Replica {
    pub fn new(size_bytes: u64, trouble: Trouble, told: Told) -> Self {
        let memory = Path::new("/dev/shm");
        let base = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
        Self {
            trouble,
            told,
            folder: tempfile::tempdir_in(base).expect("a folder"),
            direction: 0,
            image: Arc::new(PowerLossDevice::new("image", size_bytes)),
            latest: 1,
            latest_time: 0,
            applied: Some(vec![0; size_bytes as usize]),
            points: Vec::new(),
            views: Vec::new(),
            epochs: Epochs::default(),
        }
    }

    /// Another image takes the place of this one: no points, no undo. `None` for content that is to be compared first.
    pub fn begin_anew(&mut self, image: Arc<PowerLossDevice>, applied: Option<Vec<u8>>, time: u64) {
        self.image = image;
        self.applied = applied;
        (self.latest, self.latest_time) = (1, time);
        self.points.clear();
        self.views.clear();
        self.epochs = Epochs::default();
        self.direction += 1;
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn undo(&self) -> PathBuf {
        self.path(&format!("undo-{}", self.direction))
    }

    pub fn device(&self) -> Arc<dyn BlockDevice> {
        self.image.clone()
    }

    /// The present state becomes a point before it is overwritten.
    pub fn keep_point(&mut self) {
        let Some(bytes) = &self.applied else { return };
        if self.points.last().is_none_or(|point| point.number < self.latest) {
            let (number, time) = (self.latest, self.latest_time);
            self.points.push(Point { number, time, bytes: bytes.clone() });
        }
    }

    /// The image has come to a state that is applied whole.
    pub fn came_to(&mut self, bytes: &[u8], time: u64, random: &mut Random) {
        assert_eq!(first_difference(&self.image.durable_bytes(), bytes), None, "the image");
        self.applied = Some(bytes.to_vec());
        self.latest += 1 + random.below(2);
        self.latest_time = time;
    }

    pub fn save(&mut self, logs: &[&Path], random: &mut Random) {
        let Some(point) = self.points.last().map(|point| point.number) else { return };
        self.dying(random, &|folder, image| {
            save_undo(image, logs, folder, point, &undo_options(), &GO_ON).expect("undo is saved");
        });
    }

    /// Carries out a step on the undo folder, which may die inside of it; then it is carried out again.
    pub fn dying(&mut self, random: &mut Random, step: &dyn Fn(&Path, &dyn BlockDevice)) {
        let folder = self.undo();
        loop {
            let before = Snapshot::take(&folder);
            step(&folder, &*self.image);
            let death = (random.one_in(4) && folder.exists()).then(|| Death::any(random));
            if let Some(death) = death {
                tell(&self.told, format!("  died: {death:?}"));
                death.leave(&folder, &before, random);
            }
            self.epochs.note(&before, &Snapshot::take(&folder));
            if death.is_none() {
                return;
            }
            self.lose_power(random);
            self.check(random);
        }
    }

    /// In the runs of that kind all memory is lost, and whatever was not synced.
    pub fn lose_power(&mut self, random: &mut Random) {
        if self.trouble == Trouble::Death {
            return;
        }
        self.views.clear();
        self.image = Arc::new(self.image.crash(random.below(1 << 30)));
        let folder = self.undo();
        self.epochs.lose(&folder, random);
    }

    /// Some writes of an apply fail, the first of them in part, and that is the end of the process.
    pub fn apply_in_part(&mut self, logs: &[&Path], random: &mut Random) {
        let failing = FaultDevice::new(self.device());
        let after = random.below(6);
        for operation in [Operation::Write, Operation::WriteZeroes, Operation::Discard, Operation::Flush] {
            failing.arm(Fault::new(operation).after(after).always().short(512 * random.below(8)));
        }
        tell(&self.told, format!("  died after {after} writes"));
        // With fewer writes than that it came to its end, and died before anybody was told.
        let _ = apply_logs(&failing, logs, true, &GO_ON);
        self.applied = None;
        self.lose_power(random);
        self.check(random);
    }

    /// One of the points, and the one below it.
    pub fn merge(&mut self, random: &mut Random) {
        if self.points.len() < 3 {
            return;
        }
        let index = 1 + random.below(self.points.len() as u64 - 2) as usize;
        let (from, into) = (self.points[index].number, self.points[index - 1].number);
        tell(&self.told, format!("  {from} into {into}"));
        if self.is_read(|point| point == from) {
            let refused = merge_point(&self.undo(), from, into, &undo_options(), &GO_ON);
            assert_eq!(refused.expect_err("somebody reads it").code(), "DISK_IN_USE");
            return;
        }
        self.points.remove(index);
        self.dying(random, &|folder, _| {
            merge_point(folder, from, into, &undo_options(), &GO_ON).expect("points are merged");
        });
    }

    fn is_read(&self, is_meant: impl Fn(u64) -> bool) -> bool {
        self.views.iter().any(|(view, _)| is_meant(view.point()))
    }

    pub fn drop_oldest(&mut self, random: &mut Random) {
        if self.points.is_empty() {
            return;
        }
        let oldest = self.points.get(1).map_or(NO_POINT, |point| point.number);
        tell(&self.told, format!("  before {oldest}"));
        if self.is_read(|point| point < oldest) {
            let refused = drop_points_before(&self.undo(), oldest).expect_err("somebody reads it");
            assert_eq!(refused.code(), "DISK_IN_USE");
            return;
        }
        // Of an image in the middle of an apply the newest point is all there is.
        if self.applied.is_none() && self.points.len() == 1 {
            return;
        }
        self.points.remove(0);
        self.drop_before(oldest, random);
    }

    pub fn drop_before(&mut self, oldest: u64, random: &mut Random) {
        self.points.retain(|point| point.number >= oldest);
        self.dying(random, &|folder, _| {
            drop_points_before(folder, oldest).expect("points are dropped");
        });
    }

    pub fn compact(&mut self, random: &mut Random) {
        let Some(point) = self.points.last().map(|point| point.number) else { return };
        self.dying(random, &|folder, _| {
            compact_point(folder, point, &undo_options(), &GO_ON).expect("undo is compacted");
        });
    }

    /// Keeps a view of a point open.
    pub fn hold_view(&mut self, number: u64) {
        if self.views.len() == 2 {
            self.views.remove(0);
        }
        tell(&self.told, format!("  of {number}"));
        let view = open_view(&self.undo(), &self.device(), number).expect("a view");
        let bytes = self.point(number).bytes.clone();
        self.views.push((view, bytes));
    }

    pub fn point(&self, number: u64) -> &Point {
        self.points.iter().find(|point| point.number == number).expect("a point that is kept")
    }

    pub fn numbers(&self) -> Vec<u64> {
        self.points.iter().map(|point| point.number).collect()
    }

    pub fn check(&mut self, random: &mut Random) {
        let (folder, is_deep) = (self.undo(), random.one_in(4));
        assert_eq!(undo_summary(&folder, is_deep).expect("a summary").damage, []);
        for point in &self.points {
            let view = open_view(&folder, &self.device(), point.number).expect("a view");
            assert_shows(&view, &point.bytes, &format!("point {}", point.number));
        }
        for (view, bytes) in &self.views {
            assert_shows(view, bytes, &format!("the view of point {}", view.point()));
        }
    }
}

/// Every byte is as expected, and no hole hides any.
pub fn assert_shows(device: &dyn BlockDevice, expected: &[u8], what: &str) {
    assert_eq!(first_difference(&bytes_of(device), expected), None, "{what}");
    for extent in extents(device, 0, device.size_bytes()).expect("extents") {
        let range = extent.offset as usize..extent.end() as usize;
        let is_right = extent.kind == ExtentKind::Data || is_zero(&expected[range]);
        assert!(is_right, "{what}: {extent:?} is no hole");
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(4096).all(|chunk| chunk == &[0; 4096][..chunk.len()])
}
