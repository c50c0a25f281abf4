//! How much logs bring, how well it compresses, and how much of it puts noise in the place of data.
//!
//! Writes are looked at in pieces of 64 KiB, of each of which the first 4 KiB are read: one piece in so many that a log
//! costs at most [`SAMPLES_MAX`] reads, whatever its size. What a sample says is said of its piece, and of those passed over.
//!
//! The measure is the entropy of single bytes: 8 bits for noise, which is what encrypted and compressed data look like, 4 to
//! 6 for text and programs, 0 for one byte repeated. It does not see repetitions, so a compressor does better than it
//! says, never worse. A piece whose new bytes are noise is compared with what the image holds there: only noise in the
//! place of data that was none counts as *turned*. Space that was empty, and disks whose data is noise from the start (encrypted by
//! the guest, compressed media), turn nothing.
//!
//! Measure before the logs are applied: afterwards the image holds the new bytes.

use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

use secondsite_hrl::{Entry, LogReader, Operation};

use crate::device::BlockDevice;
use crate::error::{DiskError, Place, Result};

/// What one sample stands for.
const PIECE_BYTES: u64 = 64 << 10;
/// What is read of a piece.
const SAMPLE_BYTES: usize = 4096;
/// Samples of one log: 4096 of 4 KiB are 16 MiB, which are in the page cache, as the log has just been verified. A share is
/// right within 2 % then, and the time is bounded, whatever the size of the log.
const SAMPLES_MAX: u64 = 4 << 10;
/// Fewer bytes say nothing.
const SAMPLE_BYTES_MIN: usize = 512;
/// Noise is what lies within so many bits of what random bytes have on average; those of 512 bytes and more scatter by
/// less than 0.06.
const NOISE_MARGIN_BITS: f64 = 0.25;

/// What logs bring. Bytes that were sampled are counted up to all of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Churn {
    /// Writes with data.
    pub write_count: u64,
    /// Bytes of them.
    pub write_bytes: u64,
    /// Bytes that were zeroed or given back: not data.
    pub zero_bytes: u64,
    /// What `write_bytes` would take at the entropy of their bytes.
    pub entropy_bytes: u64,
    /// Bytes of `write_bytes` that are noise.
    pub noise_bytes: u64,
    /// Bytes of them that replace data that was none.
    pub turned_bytes: u64,
}

/// Measures what `logs`, which were verified, will bring to `image`.
///
/// # Errors
/// The codes of a damaged log, LOG_READ_FAILED, DISK_READ_FAILED, ABORTED.
pub fn measure_churn(image: &dyn BlockDevice, logs: &[&Path], stop: &AtomicBool) -> Result<Churn> {
    let mut total = Churn::default();
    for path in logs {
        let log = LogReader::open(path)?;
        // Every entry has one piece that is shorter, at most.
        let pieces = log.entry_count() + log.header().end_of_log / PIECE_BYTES;
        // Odd, so that writes that alternate are not all of one kind.
        let stride = pieces.div_ceil(SAMPLES_MAX) | 1;
        let meter = Meter::new(image, &log, stride);
        total.add(&meter.measure(stop)?);
    }
    Ok(total)
}

impl Churn {
    fn add(&mut self, other: &Self) {
        self.write_count += other.write_count;
        self.write_bytes += other.write_bytes;
        self.zero_bytes += other.zero_bytes;
        self.entropy_bytes += other.entropy_bytes;
        self.noise_bytes += other.noise_bytes;
        self.turned_bytes += other.turned_bytes;
    }
}

/// Bytes that samples stand for.
#[derive(Default)]
struct Weights {
    sampled: f64,
    entropy: f64,
    noise: f64,
    turned: f64,
}

struct Meter<'a> {
    image: &'a dyn BlockDevice,
    log: &'a LogReader,
    /// One piece in so many is sampled.
    stride: u64,
    /// Pieces met.
    piece_count: u64,
    churn: Churn,
    weights: Weights,
    fresh: Vec<u8>,
    old: Vec<u8>,
}

impl<'a> Meter<'a> {
    fn new(image: &'a dyn BlockDevice, log: &'a LogReader, stride: u64) -> Self {
        let (fresh, old) = (vec![0; SAMPLE_BYTES], vec![0; SAMPLE_BYTES]);
        let (churn, weights) = (Churn::default(), Weights::default());
        Self { image, log, stride, piece_count: 0, churn, weights, fresh, old }
    }

    fn measure(mut self, stop: &AtomicBool) -> Result<Churn> {
        let mut entries = self.log.entries()?;
        let mut batch = Vec::new();
        while entries.next_batch(&mut batch)? {
            if stop.load(Ordering::Relaxed) {
                return Err(DiskError::Stopped(Place::whole(self.image.path())));
            }
            batch.iter().try_for_each(|entry| self.take(entry))?;
        }
        Ok(self.finish())
    }

    fn take(&mut self, entry: &Entry) -> Result<()> {
        let length_bytes = u64::from(entry.length_bytes);
        if entry.operation != Operation::Write {
            self.churn.zero_bytes += length_bytes;
            return Ok(());
        }
        self.churn.write_count += 1;
        self.churn.write_bytes += length_bytes;
        for at in (0..length_bytes).step_by(PIECE_BYTES as usize) {
            if self.piece_count.is_multiple_of(self.stride) {
                self.sample(entry, at, PIECE_BYTES.min(length_bytes - at))?;
            }
            self.piece_count += 1;
        }
        Ok(())
    }

    fn sample(&mut self, entry: &Entry, at: u64, piece_bytes: u64) -> Result<()> {
        let length = SAMPLE_BYTES.min(piece_bytes as usize);
        self.log.read_data_part(entry, at, &mut self.fresh[..length])?;
        let weight = piece_bytes as f64;
        let bits = entropy_bits(&self.fresh[..length]);
        self.weights.sampled += weight;
        self.weights.entropy += weight * bits / 8.0;
        if !is_noise(bits, length) {
            return Ok(());
        }
        self.weights.noise += weight;
        if self.was_data(entry.offset + at, length)? {
            self.weights.turned += weight;
        }
        Ok(())
    }

    /// Whether the image holds something there that is neither empty nor noise.
    fn was_data(&mut self, offset: u64, length: usize) -> Result<bool> {
        let old = &mut self.old[..length];
        self.image.read_at(offset, old)?;
        let is_empty = old.iter().all(|byte| *byte == 0);
        Ok(!is_empty && !is_noise(entropy_bits(old), length))
    }

    fn finish(mut self) -> Churn {
        let scale = self.churn.write_bytes as f64 / self.weights.sampled.max(1.0);
        let scaled = |weight: f64| (weight * scale).round() as u64;
        self.churn.entropy_bytes = scaled(self.weights.entropy);
        self.churn.noise_bytes = scaled(self.weights.noise);
        self.churn.turned_bytes = scaled(self.weights.turned);
        self.churn
    }
}

fn is_noise(bits: f64, length: usize) -> bool {
    // What so many random bytes have on average falls short of 8 bits by 255 / (2 n ln 2) (Miller and Madow).
    let missing = 255.0 / (2.0 * length as f64 * std::f64::consts::LN_2);
    length >= SAMPLE_BYTES_MIN && bits >= 8.0 - missing - NOISE_MARGIN_BITS
}

/// n log2 n of every count that a sample can have.
static N_LOG_N: LazyLock<Vec<f64>> = LazyLock::new(|| {
    let of = |n: usize| if n == 0 { 0.0 } else { n as f64 * (n as f64).log2() };
    (0..=SAMPLE_BYTES).map(of).collect()
});

/// Entropy of single bytes, 0 to 8 bits.
fn entropy_bits(sample: &[u8]) -> f64 {
    let mut counts = [0usize; 256];
    for byte in sample {
        counts[usize::from(*byte)] += 1;
    }
    let spread: f64 = counts.iter().map(|count| N_LOG_N[*count]).sum();
    let length = sample.len().max(1) as f64;
    (length.log2() - spread / length).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FileDevice;
    use secondsite_hrl::{Append, FsLogFile, LogId, LogOptions, LogWriter, index_path};
    use std::path::PathBuf;

    /// Bytes that no compressor shrinks.
    fn noise(length: usize, mut seed: u64) -> Vec<u8> {
        let mut next = || {
            seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = (seed ^ (seed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            (z ^ (z >> 31)) as u8
        };
        (0..length).map(|_| next()).collect()
    }

    fn text(length: usize) -> Vec<u8> {
        b"In the place of data that was none. ".iter().copied().cycle().take(length).collect()
    }

    fn log(folder: &Path, appends: &[Append<'_>]) -> PathBuf {
        let path = folder.join("a.hrl");
        let files =
            (FsLogFile::create_new(&path).unwrap(), FsLogFile::create_new(&index_path(&path)).unwrap());
        let options = LogOptions {
            id: LogId([1; 16]),
            previous_id: LogId::NONE,
            disk_id: [9; 16],
            created_ns: 0,
            first_sequence: 0,
            key: [3; 32],
            keep_space: false,
        };
        let mut writer = LogWriter::create(files.0, files.1, options).unwrap();
        appends.chunks(100).for_each(|some| writer.append(some).unwrap());
        writer.seal(2).unwrap();
        path
    }

    /// Measures writes to an image that holds `old` from its beginning.
    fn measured(old: &[u8], appends: &[Append<'_>]) -> Churn {
        let folder = tempfile::tempdir().unwrap();
        let image = FileDevice::create(&folder.path().join("image.raw"), 32 << 20).unwrap();
        image.write_at(0, old).unwrap();
        let path = log(folder.path(), appends);
        measure_churn(&image, &[&path], &AtomicBool::new(false)).unwrap()
    }

    #[test]
    fn noise_is_told_from_text_at_any_length_of_a_write() {
        for length in [512, 1024, 2048, 4096] {
            for seed in 0..50 {
                assert!(
                    is_noise(entropy_bits(&noise(length, seed)), length),
                    "{length} bytes of seed {seed}"
                );
            }
            assert!(!is_noise(entropy_bits(&text(length)), length));
        }
        assert_eq!((entropy_bits(&[0; 4096]), entropy_bits(&[0, 255].repeat(2048))), (0.0, 1.0));
    }

    #[test]
    fn only_noise_in_the_place_of_data_is_turned() {
        let (old, fresh) = (text(1 << 20), noise(1 << 20, 1));
        let overwritten = measured(&old, &[Append::write(0, &fresh, 1)]);
        assert_eq!((overwritten.noise_bytes, overwritten.turned_bytes), (1 << 20, 1 << 20));
        let into_new_space = measured(&old, &[Append::write(8 << 20, &fresh, 1)]);
        assert_eq!((into_new_space.noise_bytes, into_new_space.turned_bytes), (1 << 20, 0));
        let noise_over_noise = measured(&noise(1 << 20, 2), &[Append::write(0, &fresh, 1)]);
        assert_eq!((noise_over_noise.noise_bytes, noise_over_noise.turned_bytes), (1 << 20, 0));
        let text_over_text = measured(&old, &[Append::write(512, &old, 1)]);
        assert_eq!((text_over_text.noise_bytes, text_over_text.turned_bytes), (0, 0));
        assert!(text_over_text.entropy_bytes < (1 << 20) * 5 / 8);
    }

    #[test]
    fn zeros_and_discards_are_not_data() {
        let churn = measured(
            &text(1 << 20),
            &[Append::discard(0, 1 << 19, 1), Append::write_zeroes(1 << 19, 1 << 19, 1)],
        );
        assert_eq!(churn, Churn { zero_bytes: 1 << 20, ..Churn::default() });
    }

    #[test]
    fn what_is_passed_over_is_counted_by_what_was_sampled() {
        // 40 000 writes are more than are sampled of one log: one in eleven is. Half of them are noise.
        let (fresh, old) = (noise(512, 3), text(512));
        let appends: Vec<_> = (0..40_000u64)
            .map(|n| Append::write(n * 512, if n.is_multiple_of(2) { &fresh } else { &old }, 1))
            .collect();
        let churn = measured(&text(20_480_000), &appends);
        assert_eq!((churn.write_count, churn.write_bytes), (40_000, 20_480_000));
        let share = churn.turned_bytes as f64 / churn.write_bytes as f64;
        assert!((0.45..0.55).contains(&share), "{share} of it was turned");
        assert_eq!(churn.turned_bytes, churn.noise_bytes);
    }
}
