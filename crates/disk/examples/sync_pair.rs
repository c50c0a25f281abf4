//! Synchronizes two images and prints what it took as JSON: the other side of the comparison with `bench/limit`.
//!
//! `sync_pair SOURCE REPLICA [dry] [drop] [random] [threads=N] [chunk=BYTES] [window=BYTES]`

use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use rustix::fs::{Advice, fadvise};
use secondsite_disk::{Access, BlockDevice, FileDevice, SyncOptions, sync_range};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [source, replica, words @ ..] = &arguments[..] else { return Err("two images are needed".into()) };
    let has = |word: &str| words.iter().any(|known| known == word);
    let number = |name: &str, default: u64| {
        let value = words.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        value.map_or(Ok(default), str::parse)
    };
    let mut source = FileDevice::open(Path::new(source), Access::ReadOnly)?;
    let mut replica = FileDevice::open(Path::new(replica), Access::ReadWrite)?;
    for device in [&source, &replica] {
        if has("drop") {
            fadvise(device.file(), 0, None, Advice::DontNeed)?;
        }
    }
    if has("random") {
        (source, replica) = (source.for_scans(), replica.for_scans());
    }
    let options = SyncOptions {
        chunk_bytes: number("chunk", 64 << 10)?,
        dry_run: has("dry"),
        threads: number("threads", 2)? as usize,
    };
    let window_bytes = number("window", source.size_bytes())?;
    let (stop, start) = (AtomicBool::new(false), Instant::now());
    let (mut different, mut written, mut punched) = (0, 0, 0);
    for offset in (0..source.size_bytes()).step_by(window_bytes as usize) {
        let length = window_bytes.min(source.size_bytes() - offset);
        let report = sync_range(&source, &replica, offset, length, &options, &stop)?;
        different += report.different_bytes;
        written += report.written_bytes;
        punched += report.punched_bytes;
    }
    let seconds = start.elapsed().as_secs_f64();
    writeln!(
        io::stdout(),
        r#"{{"seconds":{seconds:.4},"different_bytes":{different},"written_bytes":{written},"punched_bytes":{punched}}}"#
    )?;
    Ok(())
}
