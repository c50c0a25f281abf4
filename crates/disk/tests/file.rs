//! Real disks on bad days: what is no disk, what is busy, full, shrunk or broken.

use std::os::unix::fs::symlink;
use std::path::Path;

use secondsite_disk::{Access, BlockDevice, Extent, ExtentKind, FileDevice, extents, is_same_disk, probe};
use support::{LoopDevice, SmallFileSystem, run, skip};

mod support;

const MIB: u64 = 1 << 20;

fn image(folder: &Path, name: &str, size_bytes: u64) -> FileDevice {
    FileDevice::create(&folder.join(name), size_bytes).expect("an image")
}

fn code_of_opening(path: &Path, access: Access) -> &'static str {
    FileDevice::open(path, access).map_or_else(|error| error.code(), |_| "opened")
}

#[test]
fn what_is_no_disk_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("empty"), "").expect("a file");
    std::fs::write(at("odd"), [0; 1000]).expect("a file");
    symlink(at("nowhere"), at("dangling")).expect("a link");
    let expected = [
        (at("missing"), "DISK_NOT_FOUND"),
        (at("odd").join("below"), "DISK_NOT_FOUND"),
        (at("dangling"), "DISK_NOT_FOUND"),
        (folder.path().to_path_buf(), "DISK_NOT_A_DISK"),
        (at("empty"), "DISK_EMPTY"),
        (at("odd"), "DISK_SIZE_UNALIGNED"),
        ("/dev/null".into(), "DISK_NOT_A_DISK"),
    ];
    for (path, code) in expected {
        assert_eq!(probe(&path).expect_err("refused").code(), code, "{}", path.display());
        assert_eq!(code_of_opening(&path, Access::ReadWrite), code, "{}", path.display());
    }
}

#[test]
fn a_file_that_is_there_is_never_overwritten_by_a_new_image() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("d"), [7; 512]).expect("a file");
    let error = FileDevice::create(&folder.path().join("d"), MIB).expect_err("refused");
    assert_eq!(error.code(), "DISK_IN_USE");
    assert_eq!(std::fs::read(folder.path().join("d")).expect("a file"), [7; 512]);
}

#[test]
fn requests_outside_of_the_disk_or_off_its_sectors_change_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let disk = image(folder.path(), "d", 8192);
    for (offset, length) in [(8192, 512), (7680, 1024), (u64::MAX - 511, 512), (100, 512), (0, 100), (0, 0)] {
        let code = |answer: secondsite_disk::Result<()>| answer.expect_err("refused").code();
        assert_eq!(code(disk.write_at(offset, &vec![1; length as usize])), "DISK_OUT_OF_RANGE");
        assert_eq!(code(disk.read_at(offset, &mut vec![1; length as usize])), "DISK_OUT_OF_RANGE");
        assert_eq!(code(disk.discard(offset, length)), "DISK_OUT_OF_RANGE");
        assert_eq!(code(disk.write_zeroes(offset, length, false)), "DISK_OUT_OF_RANGE");
    }
    assert_eq!(std::fs::read(folder.path().join("d")).expect("the image"), vec![0; 8192]);
}

#[test]
fn holes_and_data_are_told_apart_and_a_discard_makes_a_hole() {
    let folder = tempfile::tempdir().expect("a folder");
    let disk = image(folder.path(), "d", 4 * MIB);
    disk.write_at(MIB, &vec![1; 2 * MIB as usize]).expect("a write");
    disk.discard(MIB + MIB / 2, MIB / 2).expect("a discard");
    let extent = |offset, length_bytes, kind| Extent { offset, length_bytes, kind };
    let (data, hole) = (ExtentKind::Data, ExtentKind::Hole);
    let expected = [
        extent(0, MIB, hole),
        extent(MIB, MIB / 2, data),
        extent(MIB + MIB / 2, MIB / 2, hole),
        extent(2 * MIB, MIB, data),
        extent(3 * MIB, MIB, hole),
    ];
    assert_eq!(extents(&disk, 0, 4 * MIB).expect("extents"), expected);
    assert_eq!(
        extents(&disk, MIB + 512, MIB).expect("extents of a part"),
        [
            extent(MIB + 512, MIB / 2 - 512, data),
            extent(MIB + MIB / 2, MIB / 2, hole),
            extent(2 * MIB, 512, data)
        ]
    );
    assert!(probe(&folder.path().join("d")).expect("a disk").allocated_bytes < 2 * MIB);
}

#[test]
fn zeros_and_discards_of_single_sectors_touch_nothing_beside_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let disk = image(folder.path(), "d", 16384);
    disk.write_at(0, &[9; 16384]).expect("a write");
    disk.discard(512, 512).expect("a discard");
    disk.write_zeroes(5120, 4096, false).expect("zeros");
    disk.write_zeroes(12288, 512, true).expect("zeros");
    let mut expected = vec![9; 16384];
    for range in [512..1024, 5120..9216, 12288..12800] {
        expected[range].fill(0);
    }
    assert_eq!(std::fs::read(folder.path().join("d")).expect("the image"), expected);
}

#[test]
fn a_disk_that_shrank_behind_our_back_is_an_error_and_no_hole() {
    let folder = tempfile::tempdir().expect("a folder");
    let disk = image(folder.path(), "d", 4 * MIB);
    disk.write_at(0, &vec![1; 4 * MIB as usize]).expect("a write");
    disk.file().set_len(MIB).expect("a truncation");
    let error = disk.read_at(3 * MIB, &mut [0; 512]).expect_err("gone");
    assert_eq!((error.code(), error.place().map(|p| p.offset)), ("DISK_READ_FAILED", Some(3 * MIB)));
    assert_eq!(disk.extent_at(2 * MIB, 4 * MIB).expect_err("no hole").code(), "DISK_READ_FAILED");
    assert_eq!(extents(&disk, 0, 4 * MIB).expect_err("no hole").code(), "DISK_READ_FAILED");
}

#[test]
fn a_disk_held_exclusively_is_refused_to_the_second_until_the_first_is_closed() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("d");
    drop(image(folder.path(), "d", MIB));
    let first = FileDevice::open(&path, Access::Exclusive).expect("the first");
    assert_eq!(code_of_opening(&path, Access::Exclusive), "DISK_IN_USE");
    assert_eq!(code_of_opening(&path, Access::ReadOnly), "opened", "looking is allowed");
    drop(first);
    assert_eq!(code_of_opening(&path, Access::Exclusive), "opened");
}

#[test]
fn qemu_is_refused_a_disk_we_hold() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("d");
    drop(image(folder.path(), "d", MIB));
    let write = ["-f", "raw", "-c", "write -P 5 0 512", path.to_str().expect("text")];
    if let Err(reason) = run("qemu-io", &["--version"]) {
        return skip("qemu_is_refused_a_disk_we_hold", &reason);
    }
    let held = FileDevice::open(&path, Access::Exclusive).expect("ours");
    let refused = run("qemu-io", &write).expect_err("the lock is held");
    assert!(refused.contains("lock"), "{refused}");
    drop(held);
    run("qemu-io", &write).expect("free again");
    assert_eq!(std::fs::read(path).expect("the image")[..512], [5; 512]);
}

#[test]
fn links_to_one_file_are_one_disk_and_copies_are_two() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    drop((image(folder.path(), "d", MIB), image(folder.path(), "other", MIB)));
    std::fs::hard_link(at("d"), at("hard")).expect("a link");
    symlink(at("d"), at("soft")).expect("a link");
    for name in ["d", "hard", "soft", "../x/d"] {
        let path = if name.contains('/') { folder.path().join(".").join("d") } else { at(name) };
        assert!(is_same_disk(&at("d"), &path).expect("two disks"), "{name}");
    }
    assert!(!is_same_disk(&at("d"), &at("other")).expect("two disks"));
    assert_eq!(is_same_disk(&at("d"), &at("gone")).expect_err("no disk").code(), "DISK_NOT_FOUND");
}

#[test]
fn a_loop_device_is_the_file_below_it_and_behaves_like_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("d");
    drop((image(folder.path(), "d", 8 * MIB), image(folder.path(), "other", MIB)));
    for sector in [512, 4096] {
        let device = match LoopDevice::over(&path, sector) {
            Ok(device) => device,
            Err(reason) => return skip("a_loop_device_is_the_file_below_it_and_behaves_like_it", &reason),
        };
        assert!(is_same_disk(&path, &device.0).expect("two names"));
        assert!(!is_same_disk(&folder.path().join("other"), &device.0).expect("two disks"));
        let disk = FileDevice::open(&device.0, Access::ReadWrite).expect("a device");
        assert_eq!((disk.size_bytes(), disk.sector_size_bytes()), (8 * MIB, sector));
        assert!(disk.info().is_block_device);
        disk.write_at(0, &vec![3; 2 * MIB as usize]).expect("a write");
        disk.discard(4096, 8192).expect("a discard");
        disk.write_zeroes(65536, 65536, false).expect("zeros");
        disk.write_zeroes(MIB + 512, 512, true).expect("zeros of half a 4 KiB sector");
        disk.flush().expect("a flush");
        let mut expected = vec![3; 2 * MIB as usize];
        for range in [4096..12288, 65536..131_072, MIB as usize + 512..MIB as usize + 1024] {
            expected[range].fill(0);
        }
        let mut got = vec![0; 2 * MIB as usize];
        disk.read_at(0, &mut got).expect("a read");
        assert!(got == expected, "sectors of {sector}");
        assert!(std::fs::read(&path).expect("the file")[..2 * MIB as usize] == expected[..]);
    }
}

#[test]
fn a_loop_device_over_a_truncated_file_fails_to_read_what_is_gone() {
    const NAME: &str = "a_loop_device_over_a_truncated_file_fails_to_read_what_is_gone";
    let folder = tempfile::tempdir().expect("a folder");
    let below = image(folder.path(), "d", 8 * MIB);
    below.write_at(0, &vec![3; 8 * MIB as usize]).expect("a write");
    let device = match LoopDevice::over(below.path(), 512) {
        Ok(device) => device,
        Err(reason) => return skip(NAME, &reason),
    };
    below.file().set_len(4 * MIB).expect("a truncation");
    let disk = FileDevice::open(&device.0, Access::ReadWrite).expect("a device");
    disk.read_at(0, &mut vec![0; MIB as usize]).expect("what is left");
    let error = disk.read_at(6 * MIB, &mut vec![0; MIB as usize]).expect_err("gone");
    assert_eq!((error.code(), error.place().map(|p| p.offset)), ("DISK_READ_FAILED", Some(6 * MIB)));
}

#[test]
fn a_full_file_system_is_said_so_and_what_was_there_stays() {
    let small = match SmallFileSystem::new(MIB) {
        Ok(small) => small,
        Err(reason) => return skip("a_full_file_system_is_said_so_and_what_was_there_stays", &reason),
    };
    let disk = image(small.path(), "d", 8 * MIB);
    disk.write_at(0, &vec![4; MIB as usize / 2]).expect("it fits");
    let error = disk.write_at(4 * MIB, &vec![5; 2 * MIB as usize]).expect_err("it does not");
    assert_eq!(error.code(), "DISK_FULL");
    let mut start = vec![0; MIB as usize / 2];
    disk.read_at(0, &mut start).expect("a read");
    assert!(start.iter().all(|byte| *byte == 4));
}

#[test]
fn after_a_failed_sync_no_later_one_succeeds() {
    const NAME: &str = "after_a_failed_sync_no_later_one_succeeds";
    let small = match SmallFileSystem::new(MIB) {
        Ok(small) => small,
        Err(reason) => return skip(NAME, &reason),
    };
    let below = image(small.path(), "d", 8 * MIB);
    let device = match LoopDevice::over(below.path(), 512) {
        Ok(device) => device,
        Err(reason) => return skip(NAME, &reason),
    };
    let disk = FileDevice::open(&device.0, Access::ReadWrite).expect("a device");
    disk.write_at(0, &vec![6; 4 * MIB as usize]).expect("the page cache takes it");
    assert_eq!(disk.flush().expect_err("there is no room").code(), "DISK_SYNC_FAILED");
    disk.discard(0, 8 * MIB).expect("there is room again");
    disk.file().sync_data().expect("the kernel believes all is well");
    assert_eq!(disk.flush().expect_err("we do not").code(), "DISK_SYNC_FAILED");
}

#[test]
fn what_a_guest_writes_in_one_piece_arrives_whole_however_it_is_cut() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("d.raw");
    drop(FileDevice::create(&path, 4 << 20).unwrap());
    let device = FileDevice::open(&path, Access::Exclusive).unwrap().for_guests();
    let bytes: Vec<u8> = (0..3 << 20).map(|n: u32| (n / 512 * 7 + n) as u8).collect();
    let mut found = vec![0; bytes.len()];
    device.write_at(512, &bytes).unwrap();
    device.read_at(512, &mut found).unwrap();
    assert!(found == bytes, "one slice");
    // Around the 64 KiB of a call: slices that fill it, pass it, and lie inside of one another's call.
    let lengths = [512, 65_536, 65_024, 512, 512, 66_048, 300_032, 4096];
    let (mut slices, mut at) = (Vec::new(), 1024);
    for length in lengths {
        slices.push(std::io::IoSlice::new(&bytes[at..at + length]));
        at += length;
    }
    device.write_zeroes(0, 4 << 20, true).unwrap();
    device.write_vectored_at(4096, &slices).unwrap();
    let written = &mut found[..at - 1024];
    device.read_at(4096, written).unwrap();
    assert!(*written == bytes[1024..at], "many slices");
    let mut beside = [1; 1024];
    device.read_at(4096 + (at as u64 - 1024), &mut beside).unwrap();
    assert_eq!(beside, [0; 1024], "nothing behind the last slice");
}
