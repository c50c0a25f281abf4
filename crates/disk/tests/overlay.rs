//! Overlays against arrays of bytes.
//!
//! Invariants: the base is never written to; what was acknowledged survives the death of the process; after a power loss
//! each sector holds what it held at the last flush or something written since; settling, ended anywhere and begun again,
//! changes nothing of what is read, and ends with an image that holds it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod recovery_common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use recovery_common::{
    Change, GO_ON, Random, Stopping, Versions, bytes_of, first_difference, log_of, open_view, undo_options,
};
use secondsite_disk::faults::{Fault, FaultDevice, MemoryDevice, Operation, PowerLossDevice};
use secondsite_disk::{
    BlockDevice, ExtentKind, FileDevice, Overlay, OverlayOptions, OverlayState, PointView, Result, Work,
    apply_logs, extents, save_undo,
};
use secondsite_hrl::faults::MemoryLogFile;

const SECTORS: u64 = 411; // No whole number of blocks.
const SIZE: u64 = SECTORS * 512;

fn options(boot: u64) -> OverlayOptions {
    OverlayOptions { settle_flush_bytes: 32 << 10, ..OverlayOptions::new(boot.to_string(), 7) }
}

fn no_image() -> Result<Arc<dyn BlockDevice>> {
    unreachable!("the overlay was never settled")
}

/// A disk with data in most places.
fn base(random: &mut Random) -> MemoryDevice {
    let base = MemoryDevice::new("base", SIZE);
    for _ in 0..30 {
        Change::any(random, SECTORS, 40).carry_out(&base).unwrap();
    }
    base
}

fn assert_reads(overlay: &dyn BlockDevice, expected: &[u8], what: &str) {
    assert_eq!(first_difference(&bytes_of(overlay), expected), None, "{what}");
    for extent in extents(overlay, 0, SIZE).unwrap() {
        let range = extent.offset as usize..extent.end() as usize;
        let is_right = extent.kind == ExtentKind::Data || expected[range].iter().all(|byte| *byte == 0);
        assert!(is_right, "{what}: {extent:?} is no hole");
    }
}

#[test]
fn what_was_acknowledged_survives_the_death_of_the_process_and_the_base_is_never_written() {
    for seed in 0..20 {
        let mut random = Random(seed);
        let folder = tempfile::tempdir().unwrap();
        let below: Arc<dyn BlockDevice> = Arc::new(base(&mut random));
        let (before, mut expected) = (bytes_of(&*below), bytes_of(&*below));
        let mut overlay = Overlay::create(folder.path(), below.clone(), &options(1)).unwrap();
        for step in 0..60 {
            let change = Change::any(&mut random, SECTORS, 30);
            change.carry_out(&overlay).unwrap();
            change.apply(&mut expected);
            match random.below(8) {
                0 => overlay.flush().unwrap(),
                1 => {
                    drop(overlay);
                    overlay = Overlay::open(folder.path(), below.clone(), &options(1), &no_image).unwrap();
                }
                _ => {}
            }
            assert_reads(&overlay, &expected, &format!("seed {seed}, step {step}"));
        }
        assert_eq!(bytes_of(&*below), before, "seed {seed}: the base");
        assert_ranges(&overlay, &before, &expected);
    }
}

/// What differs from the base is in the ranges of the overlay, also when they are asked for one by one.
fn assert_ranges(overlay: &Overlay, before: &[u8], after: &[u8]) {
    let (mut at, mut ranges) = (0, Vec::new());
    while let Some(&(offset, length)) = overlay.ranges(at, 1).first() {
        ranges.push((offset, length));
        at = offset + length;
    }
    assert_eq!(ranges, overlay.ranges(0, usize::MAX));
    for offset in 0..before.len() {
        let is_told = ranges.iter().any(|(at, length)| (*at..at + length).contains(&(offset as u64)));
        assert!(before[offset] == after[offset] || is_told, "byte {offset}");
    }
}

#[test]
fn an_overlay_is_one_processes_and_of_one_base() {
    let folder = tempfile::tempdir().unwrap();
    let below: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new("base", SIZE));
    assert_eq!(Overlay::state_in(folder.path()).unwrap(), None);
    let made = Overlay::create(folder.path(), below.clone(), &options(1)).unwrap();
    let open =
        |options| Overlay::open(folder.path(), below.clone(), &options, &no_image).err().map(|e| e.code());
    assert_eq!(open(options(1)), Some("DISK_IN_USE"));
    drop(made);
    assert_eq!(open(OverlayOptions { base: 8, ..options(1) }), Some("OPTION_OUT_OF_RANGE"));
    assert_eq!(open(options(1)), None);
    let again = Overlay::create(folder.path(), below.clone(), &options(1)).err().map(|e| e.code());
    assert_eq!(again, Some("DISK_IN_USE"));
    assert_eq!(Overlay::state_in(folder.path()).unwrap(), Some(OverlayState::Active));
}

#[test]
fn a_damaged_header_is_refused_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let below: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new("base", SIZE));
    drop(Overlay::create(folder.path(), below.clone(), &options(1)).unwrap());
    let map = folder.path().join("overlay.map");
    let content = std::fs::read(&map).unwrap();
    for at in [0, 9, 12, 20, 30, 40, 300, 505] {
        let mut bad = content.clone();
        bad[at] ^= 1;
        std::fs::write(&map, bad).unwrap();
        let refused = Overlay::open(folder.path(), below.clone(), &options(1), &no_image).err().unwrap();
        assert_eq!(refused.code(), "OVERLAY_DAMAGED", "byte {at}: {refused}");
    }
    for length in [0, 100, 4096, content.len() - 1] {
        std::fs::write(&map, &content[..length]).unwrap();
        let refused = Overlay::open(folder.path(), below.clone(), &options(1), &no_image).err().unwrap();
        assert_eq!(refused.code(), "OVERLAY_DAMAGED", "{length} bytes: {refused}");
    }
}

/// All that an overlay stands on, in memory, so that the power can go.
struct Machine {
    view: Arc<dyn BlockDevice>,
    data: Arc<PowerLossDevice>,
    map: Arc<MemoryLogFile>,
    image: Arc<PowerLossDevice>,
    boot: u64,
}

impl Machine {
    fn open(&self, is_settling: bool) -> Overlay {
        let image = is_settling.then(|| self.image.clone() as Arc<dyn BlockDevice>);
        Overlay::over(self.view.clone(), self.data.clone(), self.map.clone(), &options(self.boot), image)
            .unwrap()
    }

    fn lose_power(&mut self, random: &mut Random) {
        self.data = Arc::new(self.data.crash(random.below(1 << 30)));
        self.image = Arc::new(self.image.crash(random.below(1 << 30)));
        self.map.lose_power(random.below(1 << 30));
        self.boot += 1;
    }
}

#[test]
fn after_a_power_loss_each_sector_is_as_flushed_or_as_written_since() {
    for seed in 0..200 {
        let mut random = Random(seed);
        let view: Arc<dyn BlockDevice> = Arc::new(base(&mut random));
        let mut machine = Machine {
            data: Arc::new(PowerLossDevice::new("data", SIZE)),
            map: Arc::new(MemoryLogFile::new("map")),
            image: Arc::new(PowerLossDevice::new("image", SIZE)),
            view: view.clone(),
            boot: 1,
        };
        let mut overlay = machine.open(false);
        let mut versions = Versions::flushed(&bytes_of(&*view));
        for step in 0..60 {
            let change = Change::any(&mut random, SECTORS, 30);
            change.carry_out(&overlay).unwrap();
            versions.note(&change);
            match random.below(8) {
                0 => {
                    overlay.flush().unwrap();
                    versions = Versions::flushed(&bytes_of(&overlay));
                }
                1 => {
                    drop(overlay);
                    machine.lose_power(&mut random);
                    overlay = machine.open(false);
                    let bytes = bytes_of(&overlay);
                    versions.assert_holds(&bytes, &format!("seed {seed}, step {step}"));
                    // What came up may still go, as long as nobody flushed it; so all versions stay.
                }
                _ => {}
            }
        }
    }
}

/// An image at point 3, with undo that leads back to point 1; and what point 1 reads as.
fn replica(random: &mut Random, image: &Arc<dyn BlockDevice>, undo: &Path) -> Vec<u8> {
    let logs = tempfile::tempdir().unwrap();
    for _ in 0..20 {
        Change::any(random, SECTORS, 40).carry_out(&**image).unwrap();
    }
    let point_1 = bytes_of(&**image);
    for point in 1..=2 {
        let changes: Vec<Change> = (0..8).map(|_| Change::any(random, SECTORS, 30)).collect();
        let log = log_of(logs.path(), &changes);
        save_undo(&**image, &[&log], undo, point, &undo_options(), &GO_ON).unwrap();
        apply_logs(&**image, &[&log], false, &GO_ON).unwrap();
    }
    point_1
}

/// A view whose image is another one after a power loss.
fn view_of(undo: &Path, image: &Arc<PowerLossDevice>) -> PointView {
    open_view(undo, &(image.clone() as Arc<dyn BlockDevice>), 1).unwrap()
}

#[test]
fn settling_ended_by_kills_and_power_losses_goes_on_and_loses_nothing_that_was_flushed() {
    for seed in 0..120 {
        let mut random = Random(seed);
        let undo = tempfile::tempdir().unwrap();
        let image = Arc::new(PowerLossDevice::new("image", SIZE));
        let point_1 = replica(&mut random, &(image.clone() as Arc<dyn BlockDevice>), undo.path());
        image.flush().unwrap();
        let mut view = Arc::new(view_of(undo.path(), &image));
        let (data, map) = (Arc::new(PowerLossDevice::new("data", SIZE)), Arc::new(MemoryLogFile::new("map")));
        let mut machine = Machine { view: view.clone(), data, map, image, boot: 1 };
        let mut overlay = machine.open(false);
        let mut versions = Versions::flushed(&point_1);
        for round in 0..1000 {
            let what = format!("seed {seed}, round {round}");
            for _ in 0..random.below(6) {
                let change = Change::any(&mut random, SECTORS, 30);
                change.carry_out(&overlay).unwrap();
                versions.note(&change);
            }
            if random.one_in(3) {
                overlay.flush().unwrap();
                versions = Versions::flushed(&bytes_of(&overlay));
            }
            let before = bytes_of(&overlay);
            versions.assert_holds(&before, &what);
            if round > 1 {
                let work = Arc::new(Work::default());
                let left = AtomicU64::new(1 + random.below(12));
                let stopping = Stopping { image: machine.image.clone(), left, work: work.clone() };
                let settled = overlay.settle(Arc::new(stopping), Some(&view), &work);
                assert_reads(&overlay, &before, &what);
                if settled.is_ok() {
                    assert_eq!(machine.image.durable_bytes(), before, "{what}: the image");
                    assert_eq!(overlay.state(), OverlayState::Settled);
                    assert_eq!(overlay.ranges(0, 9), []);
                    break;
                }
                assert_eq!(settled.unwrap_err().code(), "ABORTED");
            }
            let is_settling = overlay.state() != OverlayState::Active;
            match random.below(4) {
                0 => {
                    drop((overlay, view));
                    machine.lose_power(&mut random);
                    view = Arc::new(view_of(undo.path(), &machine.image));
                    machine.view = view.clone();
                    overlay = machine.open(is_settling);
                }
                1 => {
                    drop(overlay);
                    overlay = machine.open(is_settling);
                    assert_reads(&overlay, &before, &what);
                }
                _ => {}
            }
        }
        assert_eq!(overlay.state(), OverlayState::Settled, "seed {seed}");
        // Opened once more, and written to: the image is all there is.
        drop((overlay, view));
        let overlay = machine.open(true);
        overlay.write_at(512, &[3; 512]).unwrap();
        let mut expected = machine.image.bytes();
        assert_eq!(expected[512..1024], [3; 512]);
        expected[512] = 3;
        assert_reads(&overlay, &expected, "settled");
    }
}

#[test]
fn a_guest_that_reads_and_writes_while_the_overlay_settles_sees_its_own_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let image: Arc<dyn BlockDevice> =
        Arc::new(FileDevice::create(&folder.path().join("image.raw"), SIZE).unwrap());
    for seed in 0..10 {
        let undo = tempfile::tempdir().unwrap();
        let mut random = Random(seed);
        let point_1 = replica(&mut random, &image, undo.path());
        let view = Arc::new(open_view(undo.path(), &image, 1).unwrap());
        let overlays = folder.path().join(seed.to_string());
        let overlay = Overlay::create(&overlays, view.clone(), &options(1)).unwrap();
        let mut expected = point_1;
        for _ in 0..10 {
            let change = Change::any(&mut random, SECTORS, 60);
            change.carry_out(&overlay).unwrap();
            change.apply(&mut expected);
        }
        let is_settled = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Each guest has a part of the disk of its own, the parts meeting inside of blocks.
            let guests: Vec<_> = expected
                .chunks_mut(137 * 512)
                .enumerate()
                .map(|(index, part)| {
                    let (overlay, is_settled) = (&overlay, &is_settled);
                    scope.spawn(move || guest(overlay, index as u64, part, is_settled))
                })
                .collect();
            overlay.settle(image.clone(), Some(&view), &Work::default()).unwrap();
            is_settled.store(true, Ordering::Relaxed);
            guests.into_iter().for_each(|guest| guest.join().unwrap());
        });
        assert_reads(&overlay, &expected, &format!("seed {seed}"));
        assert_eq!(first_difference(&bytes_of(&*image), &expected), None, "seed {seed}: the image");
    }
}

/// Writes and reads a part of a disk until some time after it is settled.
fn guest(overlay: &Overlay, index: u64, part: &mut [u8], is_settled: &AtomicBool) {
    let start = index * 137 * 512;
    let sectors = part.len() as u64 / 512;
    let (mut random, mut after) = (Random(index), 0);
    while after < 20 {
        after += u64::from(is_settled.load(Ordering::Relaxed));
        let change = Change::any(&mut random, sectors, 20);
        change.apply(part);
        Change { offset: start + change.offset, ..change }.carry_out(overlay).unwrap();
        let count = 1 + random.below(sectors);
        let at = random.below(sectors - count + 1) as usize * 512;
        let mut bytes = vec![0xEE; count as usize * 512];
        overlay.read_at(start + at as u64, &mut bytes).unwrap();
        assert_eq!(first_difference(&bytes, &part[at..at + bytes.len()]), None, "guest {index} at {at}");
    }
}

#[test]
fn an_image_whose_points_are_read_by_others_is_not_settled() {
    let (undo, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let image: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new("image", SIZE));
    let point_1 = replica(&mut Random(1), &image, undo.path());
    let view = Arc::new(open_view(undo.path(), &image, 1).unwrap());
    let overlay = Overlay::create(folder.path(), view.clone(), &options(1)).unwrap();
    let other = open_view(undo.path(), &image, 2).unwrap();
    let refused = overlay.settle(image.clone(), Some(&view), &Work::default()).unwrap_err();
    assert_eq!(refused.code(), "DISK_IN_USE");
    assert_eq!(overlay.state(), OverlayState::Active);
    drop(other);
    overlay.settle(image.clone(), Some(&view), &Work::default()).unwrap();
    assert_eq!(bytes_of(&*image), point_1);
}

#[test]
fn a_flush_that_failed_once_never_succeeds() {
    let below: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new("base", SIZE));
    let fault = Fault::new(Operation::Flush);
    let data = Arc::new(FaultDevice::new(Arc::new(MemoryDevice::new("data", SIZE))));
    data.arm(fault);
    let map = Arc::new(MemoryLogFile::new("map"));
    let overlay = Overlay::over(below, data, map, &options(1), None).unwrap();
    overlay.write_at(0, &[1; 512]).unwrap();
    for _ in 0..2 {
        assert_eq!(overlay.flush().unwrap_err().code(), "DISK_SYNC_FAILED");
    }
}

#[test]
fn a_write_whose_state_cannot_be_written_fails_and_the_block_stays_as_it_was() {
    let below: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new("base", SIZE));
    below.write_at(0, &[7; 8192]).unwrap();
    let data = Arc::new(MemoryDevice::new("data", SIZE));
    let map = Arc::new(MemoryLogFile::new("map"));
    let overlay = Overlay::over(below, data, map.clone(), &options(1), None).unwrap();
    map.fail_writes_after(Some(0), 0);
    assert_eq!(overlay.write_at(512, &[1; 512]).unwrap_err().code(), "DISK_WRITE_FAILED");
    let mut bytes = [0; 4096];
    overlay.read_at(0, &mut bytes).unwrap();
    assert_eq!(bytes, [7; 4096]);
    assert_eq!(overlay.ranges(0, 9), []);
}
