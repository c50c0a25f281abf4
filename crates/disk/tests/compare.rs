//! Comparing and digesting in one pass: the digests are those of two separate passes, and nothing is written.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;
use secondsite_disk::{
    BlockDevice, DIGEST_BYTES, DigestAlgorithm, DigestChoice, FileDevice, PairDigests, SyncOptions,
    SyncReport, chunk_count, compare_range, digest_ranges,
};

const CHUNK: u64 = 16 << 10;
/// More than one batch of 4 MiB for several workers, and a short last chunk.
const SIZE: u64 = 700 * CHUNK + 3 * 512;
static RUNNING: AtomicBool = AtomicBool::new(false);

fn image(dir: &Path, name: &str) -> FileDevice {
    FileDevice::create(&dir.join(name), SIZE).expect("an image")
}

fn compare(
    a: &FileDevice,
    b: &FileDevice,
    threads: usize,
    digest: DigestChoice,
    offset: u64,
) -> (SyncReport, PairDigests) {
    let options = SyncOptions { chunk_bytes: CHUNK, dry_run: false, threads };
    compare_range(a, b, offset, SIZE - offset, &options, digest, &RUNNING).expect("a pass")
}

fn digests(device: &FileDevice, choice: DigestChoice, offset: u64) -> Vec<u8> {
    let ranges = [(offset, SIZE - offset)];
    let mut out = vec![0; chunk_count(&ranges, CHUNK) as usize * DIGEST_BYTES];
    digest_ranges(device, &ranges, CHUNK, choice.algorithm, choice.seed, &mut out, &RUNNING)
        .expect("digests");
    out
}

fn bytes_of(device: &FileDevice) -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    device.read_at(0, &mut bytes).expect("the whole disk");
    bytes
}

type Write = (u64, u64, u8);

fn writes() -> impl Strategy<Value = Vec<Write>> {
    let write = (0..SIZE / 512, 1..200u64, 0..3u8);
    proptest::collection::vec(write.prop_map(|(at, n, fill)| (at, n.min(SIZE / 512 - at), fill)), 0..10)
}

fn put(device: &FileDevice, writes: &[Write]) {
    for &(sector, sectors, fill) in writes {
        device.write_at(sector * 512, &vec![fill; sectors as usize * 512]).expect("a write");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn one_pass_says_what_two_passes_say(
        both in writes(), left in writes(), right in writes(), threads in 1usize..4, blake in any::<bool>(),
        skipped in 0..20u64,
    ) {
        let dir = tempfile::tempdir().expect("a folder");
        let (a, b) = (image(dir.path(), "a"), image(dir.path(), "b"));
        put(&a, &both);
        put(&b, &both);
        put(&a, &left);
        put(&b, &right);
        let before = bytes_of(&b);
        let algorithm = if blake { DigestAlgorithm::Blake3 } else { DigestAlgorithm::Xxh3_128 };
        let (choice, offset) = (DigestChoice { algorithm, seed: 9 }, skipped * CHUNK);
        let (report, found) = compare(&a, &b, threads, choice, offset);
        let wanted = PairDigests { source: digests(&a, choice, offset), replica: digests(&b, choice, offset) };
        prop_assert!(found == wanted);
        let (all_a, all_b) = (bytes_of(&a), before);
        let differs = |at: u64| {
            let range = at as usize..(at + CHUNK).min(SIZE) as usize;
            all_a[range.clone()] != all_b[range]
        };
        let different: Vec<u64> = (offset..SIZE).step_by(CHUNK as usize).filter(|at| differs(*at)).collect();
        let different_bytes: u64 = different.iter().map(|at| CHUNK.min(SIZE - at)).sum();
        prop_assert_eq!(report.different_bytes, different_bytes);
        prop_assert_eq!(report.first_difference, different.first().copied());
        prop_assert_eq!((report.written_bytes, report.punched_bytes), (0, 0));
        prop_assert!(bytes_of(&b) == all_b, "nothing was written");
    }
}
