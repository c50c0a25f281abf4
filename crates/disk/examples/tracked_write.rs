//! What tracking costs a write: the tracked disk beside plain pwrite on the same kind of file, in turns.
//!
//! `cargo run --release -p secondsite-disk --example tracked_write -- FOLDER [ROUNDS] [FILTER]`
//!
//! Each round runs every case for 0.4 s, plain and tracked one after the other, and the median of the rounds counts.
//! Offsets are random in an image of 1 GiB that was written through before, so no block is allocated while it runs. Logs
//! are cut and released before each run, as a cycle does. Only the ratio of one line means something.
#![allow(clippy::print_stdout, reason = "a table is what it is for")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use secondsite_disk::{
    Access, BatchAction, BatchRequest, BlockDevice, DiskError, FileDevice, FlushMode, TrackOptions,
    TrackedDisk, cut,
};
use secondsite_hrl::faults::SplitMix;

const DISK_BYTES: u64 = 1 << 30;
const RUN: Duration = Duration::from_millis(400);

struct Case {
    name: &'static str,
    bytes: usize,
    threads: u64,
    /// Requests handed over at once.
    batch: usize,
    /// A flush after so many batches.
    flush_every: Option<u64>,
    mode: FlushMode,
    is_sequential: bool,
}

fn cases() -> Vec<Case> {
    let case = |name, bytes, threads, batch, flush_every, mode| Case {
        name,
        bytes,
        threads,
        batch,
        flush_every,
        mode,
        is_sequential: false,
    };
    use FlushMode::{Disk, Log};
    vec![
        case("4k", 4 << 10, 1, 1, None, Disk),
        case("4k x16", 4 << 10, 1, 16, None, Disk),
        Case { is_sequential: true, ..case("4k x16 seq", 4 << 10, 1, 16, None, Disk) },
        case("64k", 64 << 10, 1, 1, None, Disk),
        case("1M", 1 << 20, 1, 1, None, Disk),
        case("4k 4 threads", 4 << 10, 4, 1, None, Disk),
        case("4k x16 4 threads", 4 << 10, 4, 16, None, Disk),
        case("64k 4 threads", 64 << 10, 4, 1, None, Disk),
        case("4k flush disk", 4 << 10, 1, 1, Some(1), Disk),
        case("4k flush log", 4 << 10, 1, 1, Some(1), Log),
        case("4k x32 flush disk", 4 << 10, 1, 32, Some(1), Disk),
        case("4k x32 flush log", 4 << 10, 1, 32, Some(1), Log),
    ]
}

enum Target {
    Plain(FileDevice),
    Tracked(Arc<TrackedDisk>),
}

impl Target {
    fn write(&self, batch: &[BatchRequest<'_>]) -> Result<(), DiskError> {
        match self {
            Self::Tracked(disk) => disk.write_batch(batch).into_iter().collect(),
            Self::Plain(disk) => batch.iter().try_for_each(|request| match request.action {
                BatchAction::Write(data) => disk.write_at(request.offset, data),
                _ => Ok(()),
            }),
        }
    }

    fn flush(&self) -> Result<(), DiskError> {
        match self {
            Self::Tracked(disk) => disk.flush(),
            Self::Plain(disk) => disk.flush(),
        }
    }

    /// As after a cycle: nothing waits to be written.
    fn settle(&self) -> Result<(), DiskError> {
        self.flush()?;
        if let Self::Tracked(disk) = self {
            cut(std::slice::from_ref(disk))?;
            let ids: Vec<_> = disk.unreleased_logs().iter().map(|log| log.sealed.id).collect();
            disk.release_logs(&ids)?;
        }
        Ok(())
    }
}

/// Requests in a second.
fn run(target: &Target, case: &Case, seed: u64) -> Result<f64, DiskError> {
    target.settle()?;
    let done = AtomicU64::new(0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        let work = |thread: u64| {
            let (done, mut random) = (&done, SplitMix(seed * 100 + thread));
            move || -> Result<(), DiskError> {
                let data = vec![thread as u8 + 1; case.bytes];
                let slots = DISK_BYTES / case.bytes as u64;
                let mut count = 0;
                while began.elapsed() < RUN {
                    let first = random.next();
                    let batch: Vec<_> = (0..case.batch as u64)
                        .map(|n| {
                            let slot = if case.is_sequential { first.wrapping_add(n) } else { random.next() };
                            let offset = slot % slots * case.bytes as u64;
                            BatchRequest::new(offset, BatchAction::Write(&data))
                        })
                        .collect();
                    target.write(&batch)?;
                    done.fetch_add(case.batch as u64, Ordering::Relaxed);
                    count += 1;
                    if case.flush_every.is_some_and(|every| count % every == 0) {
                        target.flush()?;
                    }
                }
                Ok(())
            }
        };
        let threads: Vec<_> = (0..case.threads).map(|thread| scope.spawn(work(thread))).collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    Ok(done.into_inner() as f64 / began.elapsed().as_secs_f64())
}

fn image(path: &Path) -> Result<FileDevice, DiskError> {
    let _ = std::fs::remove_file(path); // Of an earlier run; creating it anew reports what matters.
    drop(FileDevice::create(path, DISK_BYTES)?);
    let disk = FileDevice::open(path, Access::ReadWrite)?.for_scans();
    let (data, mut random) = (vec![0xa5; 64 << 10], SplitMix(5));
    for chunk in 0..DISK_BYTES / data.len() as u64 {
        // Small pieces in any order: large folios would make every later write slow, tracked or not.
        let at = (chunk ^ (random.next() % 4)) * data.len() as u64 % DISK_BYTES;
        data.chunks(4096).enumerate().try_for_each(|(n, page)| disk.write_at(at + n as u64 * 4096, page))?;
    }
    disk.flush()?;
    Ok(disk)
}

fn open(folder: &Path, mode: FlushMode) -> Result<Target, DiskError> {
    let path = folder.join(if mode == FlushMode::Disk { "tracked-disk.raw" } else { "tracked-log.raw" });
    let disk = image(&path)?;
    let clock =
        Arc::new(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64));
    let seed = std::sync::Mutex::new(SplitMix(std::process::id().into()));
    let random = Arc::new(move |bytes: &mut [u8]| {
        if let Ok(mut seed) = seed.lock() {
            bytes.iter_mut().for_each(|byte| *byte = seed.next() as u8);
        }
    });
    let mut options = TrackOptions::new(folder.to_path_buf(), [7; 16], "bench".into(), clock, random);
    options.flush_mode = mode;
    let _ = std::fs::remove_file(path.with_extension("raw.hrt"));
    Ok(Target::Tracked(TrackedDisk::open(Arc::new(disk), options)?.0))
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let base = arguments.get(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let rounds: u64 = arguments.get(2).map_or(Ok(5), |text| text.parse())?;
    let filter = arguments.get(3).cloned().unwrap_or_default();
    let folder = base.join(format!("tracked-write-{}", std::process::id()));
    std::fs::create_dir(&folder)?;
    let plain = Target::Plain(image(&folder.join("plain.raw"))?);
    let (disk, log) = (open(&folder, FlushMode::Disk)?, open(&folder, FlushMode::Log)?);
    println!("{:20} {:>12} {:>12} {:>7}", "case", "plain /s", "tracked /s", "ratio");
    for case in cases().iter().filter(|case| case.name.contains(&filter)) {
        let tracked = if case.mode == FlushMode::Disk { &disk } else { &log };
        let (mut plain_rates, mut tracked_rates) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            plain_rates.push(run(&plain, case, round)?);
            tracked_rates.push(run(tracked, case, round)?);
        }
        let (plain, tracked) = (median(plain_rates), median(tracked_rates));
        println!("{:20} {plain:12.0} {tracked:12.0} {:7.2}", case.name, tracked / plain);
    }
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}
