//! Serves raw files over NBD, tracked or not: the server as benches measure it.
//!
//! `serve unix:PATH|tcp:HOST:PORT IMAGE… [track=FOLDER] [log-flush] [spin=US] [read-only]`; ends with standard input.
//! Exports are named after the files. With `track` each image gets its logs in a folder of its own below; a line on
//! standard input cuts all logs and releases them, as a cycle does, and is answered by a line.

use std::error::Error;
use std::io::{BufRead, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use secondsite_disk::{Access, BlockDevice, FileDevice, FlushMode, TrackOptions, TrackedDisk, cut};
use secondsite_nbd::{DeviceExport, Export, Listen, NbdServer, ServerOptions, TrackedExport};

type Anyhow<T> = Result<T, Box<dyn Error>>;

struct Words {
    track: Option<PathBuf>,
    flush_mode: FlushMode,
    spin_us: u32,
    is_read_only: bool,
}

fn main() -> Anyhow<()> {
    let (words, names): (Vec<String>, Vec<String>) =
        std::env::args().skip(1).partition(|word| is_option(word));
    let [listen, images @ ..] = &names[..] else {
        return Err("where to listen, and images, are needed".into());
    };
    let words = parse(&words)?;
    let mut options = ServerOptions::new(parse_listen(listen)?);
    options.spin_us = words.spin_us;
    let mut tracked = Vec::new();
    for image in images {
        let export = open(Path::new(image), &words, &mut tracked)?;
        let name = Path::new(image).file_name().ok_or("an image has a name")?;
        options = options.with_export(&name.to_string_lossy(), export);
    }
    let server = NbdServer::start(options)?;
    writeln!(std::io::stdout(), "{}", server.address())?;
    for line in std::io::stdin().lock().lines() {
        line?;
        cycle(&tracked)?;
        writeln!(std::io::stdout(), "released")?;
    }
    server.stop();
    writeln!(std::io::stdout(), "{:?}", server.counters())?;
    tracked.iter().try_for_each(|disk: &Arc<TrackedDisk>| disk.close())?;
    Ok(())
}

fn cycle(tracked: &[Arc<TrackedDisk>]) -> Anyhow<()> {
    cut(tracked)?;
    for disk in tracked {
        let ids: Vec<_> = disk.unreleased_logs().iter().map(|log| log.sealed.id).collect();
        disk.release_logs(&ids)?;
    }
    Ok(())
}

fn is_option(word: &str) -> bool {
    ["track=", "spin=", "log-flush", "read-only"].iter().any(|known| word.starts_with(known))
}

fn parse(words: &[String]) -> Anyhow<Words> {
    let value = |name: &str| words.iter().find_map(|word| word.strip_prefix(name));
    let is_log = value("log-flush").is_some();
    Ok(Words {
        track: value("track=").map(PathBuf::from),
        flush_mode: if is_log { FlushMode::Log } else { FlushMode::Disk },
        spin_us: value("spin=").map_or(Ok(0), str::parse)?,
        is_read_only: value("read-only").is_some(),
    })
}

fn parse_listen(word: &str) -> Anyhow<Listen> {
    if let Some(path) = word.strip_prefix("unix:") {
        return Ok(Listen::Unix(path.into()));
    }
    let address = word.strip_prefix("tcp:").ok_or("unix:PATH or tcp:HOST:PORT")?;
    Ok(Listen::Tcp(address.parse()?))
}

fn open(image: &Path, words: &Words, tracked: &mut Vec<Arc<TrackedDisk>>) -> Anyhow<Arc<dyn Export>> {
    let access = if words.is_read_only { Access::ReadOnly } else { Access::Exclusive };
    let device: Arc<dyn BlockDevice> = Arc::new(FileDevice::open(image, access)?.for_guests());
    let Some(folder) = &words.track else {
        let export = DeviceExport::new(device).with_fast_zeroing();
        return Ok(Arc::new(if words.is_read_only { export.read_only() } else { export }));
    };
    let folder = folder.join(image.file_name().ok_or("an image has a name")?);
    std::fs::create_dir_all(&folder)?;
    let disk_id = [tracked.len() as u8 + 1; 16];
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let mut options = TrackOptions::new(folder, disk_id, boot_id, Arc::new(now), Arc::new(random));
    options.flush_mode = words.flush_mode;
    let (disk, _) = TrackedDisk::open(device, options)?;
    tracked.push(disk.clone());
    Ok(Arc::new(TrackedExport::new(disk)))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

fn random(buffer: &mut [u8]) {
    // An example for benches: where there is no source of randomness it may as well be predictable.
    let source = std::fs::File::open("/dev/urandom");
    let _ = source.and_then(|mut file| file.read_exact(buffer));
}
