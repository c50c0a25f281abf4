//! Disks and images by path.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use napi::bindgen_prelude::Uint8Array;
use napi_derive::napi;
use secondsite_disk::{
    Access, BlockDevice, DigestAlgorithm, DigestChoice, FileDevice, SyncOptions, SyncReport,
    compare_range as compare, digest_ranges, is_same_disk as same_disk, probe, sync_range as sync_disks,
};

use crate::error::{Result, bad_argument, from_disk};
use crate::number::{offset, ranges_of, size};

/// A disk as found at a path.
#[napi(object)]
pub struct NativeDiskInfo {
    pub size_bytes: f64,
    /// 512 or 4096.
    pub sector_size_bytes: u32,
    /// Bytes that are not holes; the size of a block device.
    pub allocated_bytes: f64,
    pub is_block_device: bool,
}

/// How to compare and copy.
#[napi(object)]
pub struct NativeSyncOptions {
    pub chunk_bytes: f64,
    /// Compare only.
    pub dry_run: bool,
    /// 1, or more for a thread a side.
    pub threads: u32,
}

/// Result of a pass over a range of two disks.
#[napi(object)]
pub struct NativeSyncReport {
    pub compared_bytes: f64,
    pub equal_bytes: f64,
    pub different_bytes: f64,
    pub written_bytes: f64,
    pub punched_bytes: f64,
    /// Offset of the first differing chunk; -1 when there is none.
    pub first_difference: f64,
}

/// Says what is at a path, without changing it.
#[napi(catch_unwind)]
pub fn probe_disk(path: String) -> Result<NativeDiskInfo> {
    let info = probe(Path::new(&path)).map_err(from_disk)?;
    Ok(NativeDiskInfo {
        size_bytes: size(info.size_bytes),
        sector_size_bytes: info.sector_size_bytes,
        allocated_bytes: size(info.allocated_bytes),
        is_block_device: info.is_block_device,
    })
}

/// Whether two paths name one disk: by links, or a loop device over the same file.
#[napi(catch_unwind)]
pub fn is_same_disk(a: String, b: String) -> Result<bool> {
    same_disk(Path::new(&a), Path::new(&b)).map_err(from_disk)
}

/// Creates a sparse image that must not exist yet.
#[napi(catch_unwind)]
pub fn create_image(path: String, size_bytes: f64) -> Result<()> {
    let image = FileDevice::create(Path::new(&path), offset("sizeBytes", size_bytes)?).map_err(from_disk)?;
    image.flush().map_err(from_disk)
}

/// Compares a range of two disks by digests of chunks and copies what differs, unless `dryRun`.
#[napi(catch_unwind)]
pub fn sync_range(
    source: String,
    replica: String,
    from: f64,
    length_bytes: f64,
    options: NativeSyncOptions,
) -> Result<NativeSyncReport> {
    let access = if options.dry_run { Access::ReadOnly } else { Access::Exclusive };
    let source = FileDevice::open(Path::new(&source), Access::ReadOnly).map_err(from_disk)?.for_scans();
    let replica = FileDevice::open(Path::new(&replica), access).map_err(from_disk)?.for_scans();
    let options = sync_options(&options)?;
    let (from, length_bytes) = (offset("from", from)?, offset("lengthBytes", length_bytes)?);
    let report = sync_disks(&source, &replica, from, length_bytes, &options, &AtomicBool::new(false))
        .map_err(from_disk)?;
    Ok(report_of(&report))
}

/// What a comparison found, and the digests of both sides: 16 bytes a chunk.
#[napi(object)]
pub struct NativeComparison {
    pub report: NativeSyncReport,
    pub source_digests: Uint8Array,
    pub replica_digests: Uint8Array,
}

/// Compares a range of two disks and digests both in the same pass; writes nothing.
#[napi(catch_unwind)]
pub fn compare_range(
    source: String,
    replica: String,
    from: f64,
    length_bytes: f64,
    options: NativeSyncOptions,
    digest: String,
    seed: String,
) -> Result<NativeComparison> {
    let open = |path: &str| FileDevice::open(Path::new(path), Access::ReadOnly).map_err(from_disk);
    let (source, replica) = (open(&source)?.for_scans(), open(&replica)?.for_scans());
    let (from, length_bytes) = (offset("from", from)?, offset("lengthBytes", length_bytes)?);
    let choice = DigestChoice { algorithm: algorithm_of(&digest)?, seed: seed_of(&seed)? };
    let (options, stop) = (sync_options(&options)?, AtomicBool::new(false));
    let compared = compare(&source, &replica, from, length_bytes, &options, choice, &stop);
    let (report, digests) = compared.map_err(from_disk)?;
    Ok(NativeComparison {
        report: report_of(&report),
        source_digests: digests.source.into(),
        replica_digests: digests.replica.into(),
    })
}

/// Makes all writes to a disk durable.
#[napi(catch_unwind)]
pub fn flush_disk(path: String) -> Result<()> {
    FileDevice::open(Path::new(&path), Access::ReadWrite).and_then(|disk| disk.flush()).map_err(from_disk)
}

/// 16 bytes a chunk of `ranges` (flat pairs offset, length) of an image; `digestBytes` is the length of the answer.
#[napi(catch_unwind)]
pub fn digest_image(
    path: String,
    ranges: Vec<f64>,
    chunk_bytes: f64,
    digest: String,
    seed: String,
    digest_bytes: f64,
) -> Result<Uint8Array> {
    let image = FileDevice::open(Path::new(&path), Access::ReadOnly).map_err(from_disk)?.for_scans();
    digest_device(&image, &ranges, chunk_bytes, &digest, &seed, digest_bytes)
}

pub fn digest_device(
    device: &dyn BlockDevice,
    ranges: &[f64],
    chunk_bytes: f64,
    digest: &str,
    seed: &str,
    digest_bytes: f64,
) -> Result<Uint8Array> {
    let mut digests = vec![0; offset("digestBytes", digest_bytes)? as usize];
    let chunk_bytes = offset("chunkBytes", chunk_bytes)?;
    let (algorithm, seed) = (algorithm_of(digest)?, seed_of(seed)?);
    let stop = AtomicBool::new(false);
    digest_ranges(device, &ranges_of(ranges)?, chunk_bytes, algorithm, seed, &mut digests, &stop)
        .map_err(from_disk)?;
    Ok(digests.into())
}

fn sync_options(options: &NativeSyncOptions) -> Result<SyncOptions> {
    Ok(SyncOptions {
        chunk_bytes: offset("chunkBytes", options.chunk_bytes)?,
        dry_run: options.dry_run,
        threads: options.threads as usize,
    })
}

fn report_of(report: &SyncReport) -> NativeSyncReport {
    NativeSyncReport {
        compared_bytes: size(report.compared_bytes),
        equal_bytes: size(report.equal_bytes),
        different_bytes: size(report.different_bytes),
        written_bytes: size(report.written_bytes),
        punched_bytes: size(report.punched_bytes),
        first_difference: report.first_difference.map_or(-1.0, size),
    }
}

fn algorithm_of(name: &str) -> Result<DigestAlgorithm> {
    match name {
        "xxh3-128" => Ok(DigestAlgorithm::Xxh3_128),
        "blake3" => Ok(DigestAlgorithm::Blake3),
        _ => Err(bad_argument("digest", &format!("{name:?} is neither xxh3-128 nor blake3"))),
    }
}

fn seed_of(hex: &str) -> Result<u64> {
    u64::from_str_radix(hex, 16).map_err(|_| bad_argument("seed", &format!("{hex:?} is not 16 hex digits")))
}
