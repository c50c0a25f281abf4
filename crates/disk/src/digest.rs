//! Digests of the chunks of a disk: 16 bytes tell whether two sides hold the same bytes.
//!
//! A range is cut into chunks from its own start; its last chunk may be shorter. A chunk inside a hole is not read: its
//! digest is that of zeros, computed once, so a hole and zeros stored as data are equal. Everything else streams through
//! one buffer, in reads of whole chunks that end where the data ends.

use std::sync::atomic::{AtomicBool, Ordering};

use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::device::{BlockDevice, Extent, ExtentKind, check_range};
use crate::error::{DiskError, Place, Result};

/// Bytes of one digest, of either algorithm.
pub const DIGEST_BYTES: usize = 16;
/// Largest chunk.
pub const CHUNK_BYTES_MAX: u64 = 4 << 20;
/// The buffer holds this, or one chunk when that is more: what is read stays in the core's cache until it is digested.
pub(crate) const READ_BYTES: u64 = 1 << 18;
const BLAKE3_CONTEXT: &str = "secondsite 2026-11-21 chunk digest key";

/// How chunks are digested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DigestAlgorithm {
    /// XXH3 of 128 bits, seeded: fast, for sides that trust each other's data.
    Xxh3_128,
    /// BLAKE3 keyed by the seed, cut to 16 bytes: nobody can make two chunks collide on purpose.
    Blake3,
}

/// The digests of all chunks of `ranges`, in order, into the front of `out`; says how many chunks there were.
///
/// # Errors
/// OPTION_OUT_OF_RANGE for a chunk size or an `out` that cannot be, DISK_OUT_OF_RANGE, DISK_READ_FAILED, ABORTED once
/// `stop` is set.
pub fn digest_ranges(
    device: &dyn BlockDevice,
    ranges: &[(u64, u64)],
    chunk_bytes: u64,
    algorithm: DigestAlgorithm,
    seed: u64,
    out: &mut [u8],
    stop: &AtomicBool,
) -> Result<u64> {
    Digester::new(device, chunk_bytes, algorithm, seed)?.digest(ranges, out, stop)
}

/// Chunks of a list of ranges.
pub fn chunk_count(ranges: &[(u64, u64)], chunk_bytes: u64) -> u64 {
    ranges.iter().map(|(_, length)| length.div_ceil(chunk_bytes)).sum()
}

/// Digests ranges of one disk, again and again, through one buffer.
pub(crate) struct Digester<'a> {
    device: &'a dyn BlockDevice,
    hasher: Hasher,
    chunk_bytes: u64,
    buffer: Vec<u8>,
}

impl<'a> Digester<'a> {
    pub(crate) fn new(
        device: &'a dyn BlockDevice,
        chunk_bytes: u64,
        algorithm: DigestAlgorithm,
        seed: u64,
    ) -> Result<Self> {
        check_chunk_bytes(device, chunk_bytes)?;
        let buffer_bytes = (READ_BYTES / chunk_bytes * chunk_bytes).max(chunk_bytes);
        let hasher = Hasher::new(algorithm, seed);
        Ok(Self { device, hasher, chunk_bytes, buffer: vec![0; buffer_bytes as usize] })
    }

    /// As [`digest_ranges`].
    pub(crate) fn digest(&mut self, ranges: &[(u64, u64)], out: &mut [u8], stop: &AtomicBool) -> Result<u64> {
        let count = chunk_count(ranges, self.chunk_bytes);
        let room = (out.len() / DIGEST_BYTES) as u64;
        if room < count {
            let reason = format!("{count} digests do not fit into {room}");
            return Err(DiskError::InvalidRequest(Place::whole(self.device.path()), reason));
        }
        let mut digests = out.chunks_exact_mut(DIGEST_BYTES);
        for &(offset, length_bytes) in ranges {
            check_range(self.device, offset, length_bytes)?;
            self.digest_range(offset, offset + length_bytes, &mut digests, stop)?;
        }
        Ok(count)
    }

    fn digest_range<'o>(
        &mut self,
        offset: u64,
        end: u64,
        digests: &mut impl Iterator<Item = &'o mut [u8]>,
        stop: &AtomicBool,
    ) -> Result<()> {
        let mut map = ExtentCursor::new(self.device, end);
        let mut at = offset;
        while at < end {
            refuse_stopped(stop, self.device, at, end)?;
            let extent = map.at(at)?;
            let inside = self.whole_chunks(at, extent.end(), end);
            if extent.kind == ExtentKind::Hole && inside > 0 {
                self.put_zeros(inside, digests);
                at += inside;
                continue;
            }
            let window_bytes = extent.length_bytes.next_multiple_of(self.chunk_bytes);
            let window_bytes = window_bytes.min(self.buffer.len() as u64).min(end - at);
            map.read(at, &mut self.buffer[..window_bytes as usize])?;
            self.put_digests(window_bytes, digests);
            at += window_bytes;
        }
        Ok(())
    }

    /// Bytes from `at` to `stretch_end` in whole chunks; the last chunk of the range is whole however short it is.
    fn whole_chunks(&self, at: u64, stretch_end: u64, end: u64) -> u64 {
        if stretch_end == end { end - at } else { (stretch_end - at) / self.chunk_bytes * self.chunk_bytes }
    }

    fn put_digests<'o>(&self, window_bytes: u64, digests: &mut impl Iterator<Item = &'o mut [u8]>) {
        let window = &self.buffer[..window_bytes as usize];
        for (chunk, digest) in window.chunks(self.chunk_bytes as usize).zip(digests) {
            digest.copy_from_slice(&self.hasher.digest(chunk));
        }
    }

    fn put_zeros<'o>(&mut self, length_bytes: u64, digests: &mut impl Iterator<Item = &'o mut [u8]>) {
        let mut left = length_bytes;
        while let Some(digest) = (left > 0).then(|| digests.next()).flatten() {
            let chunk = left.min(self.chunk_bytes);
            digest.copy_from_slice(&self.hasher.digest_of_zeros(chunk as usize));
            left -= chunk;
        }
    }
}

/// Where the data and holes of a range are, asked of the device once an extent.
pub(crate) struct ExtentCursor<'a> {
    device: &'a dyn BlockDevice,
    end: u64,
    current: Option<Extent>,
}

impl<'a> ExtentCursor<'a> {
    pub(crate) fn new(device: &'a dyn BlockDevice, end: u64) -> Self {
        Self { device, end, current: None }
    }

    /// The extent at `offset`, from `offset` on.
    pub(crate) fn at(&mut self, offset: u64) -> Result<Extent> {
        let known = self.current.filter(|extent| extent.offset <= offset && offset < extent.end());
        let extent = match known {
            Some(extent) => extent,
            None => self.device.extent_at(offset, self.end)?,
        };
        assert!(extent.end() > offset, "an extent without bytes at {offset}: a scan would never end");
        self.current = Some(extent);
        Ok(Extent { offset, length_bytes: extent.end() - offset, kind: extent.kind })
    }

    /// Fills `buffer` from `offset`, the holes with zeros without asking the device.
    pub(crate) fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let end = offset + buffer.len() as u64;
        let mut at = offset;
        while at < end {
            let extent = self.at(at)?;
            let next = extent.end().min(end);
            let piece = &mut buffer[(at - offset) as usize..(next - offset) as usize];
            match extent.kind {
                ExtentKind::Data => self.device.read_at(at, piece)?,
                ExtentKind::Hole => piece.fill(0),
            }
            at = next;
        }
        Ok(())
    }
}

/// Fails once `stop` is set.
pub(crate) fn refuse_stopped(stop: &AtomicBool, device: &dyn BlockDevice, at: u64, end: u64) -> Result<()> {
    if stop.load(Ordering::Relaxed) {
        return Err(DiskError::Stopped(Place::new(device.path(), at, end - at)));
    }
    Ok(())
}

pub(crate) fn check_chunk_bytes(device: &dyn BlockDevice, chunk_bytes: u64) -> Result<()> {
    if (512..=CHUNK_BYTES_MAX).contains(&chunk_bytes) && chunk_bytes.is_multiple_of(512) {
        return Ok(());
    }
    let reason =
        format!("chunks of {chunk_bytes} bytes; 512 to {CHUNK_BYTES_MAX} in steps of 512 are possible");
    Err(DiskError::InvalidRequest(Place::whole(device.path()), reason))
}

pub(crate) struct Hasher {
    algorithm: DigestAlgorithm,
    seed: u64,
    key: [u8; 32],
    zeros: Option<(usize, [u8; DIGEST_BYTES])>,
}

impl Hasher {
    pub(crate) fn new(algorithm: DigestAlgorithm, seed: u64) -> Self {
        let key = blake3::derive_key(BLAKE3_CONTEXT, &seed.to_le_bytes());
        Self { algorithm, seed, key, zeros: None }
    }

    pub(crate) fn digest(&self, chunk: &[u8]) -> [u8; DIGEST_BYTES] {
        match self.algorithm {
            DigestAlgorithm::Xxh3_128 => xxh3_128_with_seed(chunk, self.seed).to_be_bytes(),
            DigestAlgorithm::Blake3 => {
                let mut digest = [0; DIGEST_BYTES];
                digest.copy_from_slice(&blake3::keyed_hash(&self.key, chunk).as_bytes()[..DIGEST_BYTES]);
                digest
            }
        }
    }

    /// One length is remembered: all chunks of a disk but the last of a range have it.
    pub(crate) fn digest_of_zeros(&mut self, length_bytes: usize) -> [u8; DIGEST_BYTES] {
        if let Some((_, digest)) = self.zeros.filter(|(length, _)| *length == length_bytes) {
            return digest;
        }
        let digest = self.digest(&vec![0; length_bytes]);
        self.zeros = Some((length_bytes, digest));
        digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::FileDevice;

    static RUNNING: AtomicBool = AtomicBool::new(false);
    const CHUNK: u64 = 64 << 10;

    fn image(size_bytes: u64) -> (tempfile::TempDir, FileDevice) {
        let dir = tempfile::tempdir().expect("a folder");
        let device = FileDevice::create(&dir.path().join("d.img"), size_bytes).expect("an image");
        (dir, device)
    }

    fn digests(device: &FileDevice, ranges: &[(u64, u64)], algorithm: DigestAlgorithm, seed: u64) -> Vec<u8> {
        let mut out = vec![0xEE; chunk_count(ranges, CHUNK) as usize * DIGEST_BYTES];
        let count =
            digest_ranges(device, ranges, CHUNK, algorithm, seed, &mut out, &RUNNING).expect("digests");
        assert_eq!(count as usize * DIGEST_BYTES, out.len());
        out
    }

    #[test]
    fn zeros_stored_as_data_and_holes_are_equal() {
        let size = 20 * CHUNK + 512;
        let ((_a, sparse), (_b, stored)) = (image(size), image(size));
        stored.write_zeroes(0, size, false).expect("zeros");
        stored.write_at(3 * CHUNK, &vec![0; CHUNK as usize]).expect("stored zeros");
        for algorithm in [DigestAlgorithm::Xxh3_128, DigestAlgorithm::Blake3] {
            let (a, b) =
                (digests(&sparse, &[(0, size)], algorithm, 7), digests(&stored, &[(0, size)], algorithm, 7));
            assert_eq!(a, b);
            assert_ne!(a[..16], a[20 * 16..], "the short last chunk has a digest of its own");
        }
    }

    #[test]
    fn a_digest_is_that_of_the_bytes_of_its_chunk() {
        let (_dir, device) = image(40 * CHUNK);
        let bytes: Vec<u8> = (0..CHUNK as u32 + 1024).map(|i| (i % 251) as u8).collect();
        device.write_at(17 * CHUNK + 512, &bytes).expect("a write");
        let got =
            digests(&device, &[(17 * CHUNK + 512, CHUNK + 1024), (0, 512)], DigestAlgorithm::Xxh3_128, 5);
        let (first, rest) = bytes.split_at(CHUNK as usize);
        assert_eq!(got[..16], xxh3_128_with_seed(first, 5).to_be_bytes());
        assert_eq!(got[16..32], xxh3_128_with_seed(rest, 5).to_be_bytes());
        assert_eq!(got[32..], xxh3_128_with_seed(&[0; 512], 5).to_be_bytes());
    }

    #[test]
    fn another_seed_gives_other_digests() {
        let (_dir, device) = image(CHUNK);
        for algorithm in [DigestAlgorithm::Xxh3_128, DigestAlgorithm::Blake3] {
            let range = [(0, CHUNK)];
            assert_ne!(digests(&device, &range, algorithm, 1), digests(&device, &range, algorithm, 2));
        }
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let (_dir, device) = image(CHUNK);
        let mut out = [0; DIGEST_BYTES];
        let mut code = |ranges: &[(u64, u64)], chunk_bytes, stop: bool| {
            let stop = AtomicBool::new(stop);
            let algorithm = DigestAlgorithm::Xxh3_128;
            let answer = digest_ranges(&device, ranges, chunk_bytes, algorithm, 0, &mut out, &stop);
            answer.expect_err("refused").code()
        };
        assert_eq!(code(&[(0, CHUNK)], 0, false), "OPTION_OUT_OF_RANGE");
        assert_eq!(code(&[(0, CHUNK)], 1000, false), "OPTION_OUT_OF_RANGE");
        assert_eq!(code(&[(0, CHUNK)], CHUNK_BYTES_MAX * 2, false), "OPTION_OUT_OF_RANGE");
        assert_eq!(code(&[(0, CHUNK)], 512, false), "OPTION_OUT_OF_RANGE", "128 digests do not fit");
        assert_eq!(code(&[(512, CHUNK)], CHUNK, false), "DISK_OUT_OF_RANGE");
        assert_eq!(code(&[(0, CHUNK)], CHUNK, true), "ABORTED");
    }
}
