//! The checksum of [MS-HRL] 2.6: the complement of the 32-bit sum of all bytes.
//!
//! Every block header, entry and data range passes through here, so the sum takes eight bytes at a time as a number of
//! four 16-bit lanes, in plain arithmetic that the compiler turns into vector instructions. A lane is low + 256 high.
//! Two sums run along: of the whole numbers (wrapping, carries and all) and of the high bytes of all lanes. What 256
//! times the second leaves of the first is the sum of the low bytes, exact, because no lane of it passes 16 bits.
//! That is four operations for a vector; widening the bytes takes shuffles, which have one port: 1.5 times slower.

use std::ops::Range;

const LANES: usize = 8;
const STEP_BYTES: usize = 8 * LANES;
const HIGH_BYTES: u64 = 0x00FF_00FF_00FF_00FF;
/// The sum of 257 bytes is at most 65 535: no lane overflows into the next.
const STEPS_MAX: usize = 257;
const _: () = assert!(STEPS_MAX * 255 <= u16::MAX as usize);

/// The wrapping 32-bit sum of all bytes.
pub fn byte_sum(bytes: &[u8]) -> u32 {
    let mut sum = 0u32;
    for run in bytes.chunks(STEP_BYTES * STEPS_MAX) {
        let (steps, rest) = run.as_chunks::<STEP_BYTES>();
        if !steps.is_empty() {
            sum = sum.wrapping_add(steps_sum(steps));
        }
        sum = sum.wrapping_add(rest.iter().map(|byte| u32::from(*byte)).sum());
    }
    sum
}

fn steps_sum(steps: &[[u8; STEP_BYTES]]) -> u32 {
    let (mut words, mut highs) = ([0u64; LANES], [0u64; LANES]);
    for step in steps {
        let (eights, _) = step.as_chunks::<8>();
        for lane in 0..LANES {
            let word = u64::from_le_bytes(eights[lane]);
            words[lane] = words[lane].wrapping_add(word);
            highs[lane] += (word >> 8) & HIGH_BYTES;
        }
    }
    let lanes = words.iter().zip(&highs);
    lanes.map(|(word, high)| lane_sum(word.wrapping_sub(high << 8)) + lane_sum(*high)).sum()
}

/// The sum of four 16-bit lanes.
fn lane_sum(lanes: u64) -> u32 {
    (0..4).map(|lane| (lanes >> (16 * lane)) as u32 & 0xFFFF).sum()
}

/// Checksum of bytes with nothing left out.
pub fn byte_sum_checksum(bytes: &[u8]) -> u32 {
    !byte_sum(bytes)
}

/// Checksum of a structure whose own checksum field, at `field`, is left out.
///
/// # Panics
/// When `field` reaches past the end of `bytes`: the layouts are fixed, so that is a mistake of the caller.
pub fn byte_sum_checksum_without(bytes: &[u8], field: Range<usize>) -> u32 {
    !byte_sum(bytes).wrapping_sub(byte_sum(&bytes[field]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slow(bytes: &[u8]) -> u32 {
        let mut sum = 0u64;
        for byte in bytes {
            sum += u64::from(*byte);
        }
        u32::try_from(sum % (1 << 32)).unwrap()
    }

    #[test]
    fn sum_equals_the_slow_sum_at_every_length_around_the_lanes() {
        for length in (0..200).chain(16_440..16_460).chain([65_536, 1 << 20]) {
            let bytes: Vec<u8> = (0..length).map(|i| ((i * 31) ^ (i >> 8)) as u8).collect();
            assert_eq!(byte_sum(&bytes), slow(&bytes), "length {length}");
        }
    }

    #[test]
    fn sum_of_the_largest_bytes_does_not_overflow_a_lane() {
        let bytes = vec![255u8; 20_000_000];
        assert_eq!(byte_sum(&bytes), slow(&bytes));
        // 16 843 010 bytes of 255 pass 2^32 - 1 = 255 * 16 843 009.
        assert_eq!(byte_sum(&bytes[..16_843_010]), 254);
    }

    #[test]
    fn the_field_left_out_does_not_count() {
        let mut bytes = [7u8; 100];
        let before = byte_sum_checksum_without(&bytes, 8..12);
        bytes[8..12].copy_from_slice(&[255; 4]);
        assert_eq!(byte_sum_checksum_without(&bytes, 8..12), before);
        assert_eq!(before, !(96 * 7));
    }
}
