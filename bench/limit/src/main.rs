//! What resynchronizing a nearly equal pair costs at least: both files read once, every byte hashed once, nothing compared.
//!
//! `limit SOURCE REPLICA [drop]` reads the data extents of both files in pieces of 1 MiB, one thread a file, and prints the
//! seconds as JSON. With `drop` the page cache is emptied of both files first.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::time::Instant;

use rustix::fs::{Advice, SeekFrom, fadvise, seek};
use rustix::io::Errno;
use xxhash_rust::xxh3::xxh3_128;

const PIECE_BYTES: u64 = 1 << 20;

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = || io::Error::other("usage: limit SOURCE REPLICA [drop]");
    let paths = [arguments.next().ok_or_else(usage)?, arguments.next().ok_or_else(usage)?];
    let files = [File::open(&paths[0])?, File::open(&paths[1])?];
    if arguments.next().as_deref() == Some("drop") {
        for file in &files {
            fadvise(file, 0, None, Advice::DontNeed)?;
        }
    }
    let start = Instant::now();
    let sums = std::thread::scope(|scope| {
        let threads = [scope.spawn(|| hash_data(&files[0])), scope.spawn(|| hash_data(&files[1]))];
        threads.map(|thread| thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked"))))
    });
    let seconds = start.elapsed().as_secs_f64();
    let [(source_bytes, a), (replica_bytes, b)] = {
        let [a, b] = sums;
        [a?, b?]
    };
    let sums = format!("{:016x}", (a ^ b) as u64);
    writeln!(
        io::stdout(),
        r#"{{"seconds":{seconds:.4},"source_bytes":{source_bytes},"replica_bytes":{replica_bytes},"sum":"{sums}"}}"#
    )
}

/// Bytes hashed and the sum of the hashes, which keeps the compiler from leaving them out.
fn hash_data(file: &File) -> io::Result<(u64, u128)> {
    let size_bytes = file.metadata()?.len();
    let mut buffer = vec![0; PIECE_BYTES as usize];
    let (mut at, mut bytes, mut sum) = (0, 0, 0);
    while let Some((start, end)) = next_data(file, at, size_bytes)? {
        for offset in (start..end).step_by(PIECE_BYTES as usize) {
            let piece = &mut buffer[..PIECE_BYTES.min(end - offset) as usize];
            file.read_exact_at(piece, offset)?;
            sum ^= xxh3_128(piece);
        }
        bytes += end - start;
        at = end;
    }
    Ok((bytes, sum))
}

fn next_data(file: &File, at: u64, size_bytes: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= size_bytes {
        return Ok(None);
    }
    match seek(file, SeekFrom::Data(at)) {
        Ok(start) => Ok(Some((start, seek(file, SeekFrom::Hole(start))?))),
        Err(Errno::NXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}
