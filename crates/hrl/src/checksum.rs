//! The checksum of [MS-HRL] 2.6: the complement of the 32-bit sum of all bytes.
//!
//! Every block header, entry and data range passes through here, so the sum runs over sixteen-bit lanes that the
//! compiler keeps in vector registers, and is widened before a lane can overflow.

use std::ops::Range;

const LANES: usize = 32;
/// A lane grows by at most 255 a step: 257 steps reach 65 535, the most a lane holds.
const STEPS_MAX: usize = 257;
const _: () = assert!(STEPS_MAX * 255 <= u16::MAX as usize);

/// The wrapping 32-bit sum of all bytes.
pub fn byte_sum(bytes: &[u8]) -> u32 {
    let mut sum = 0u32;
    for run in bytes.chunks(LANES * STEPS_MAX) {
        let (steps, rest) = run.as_chunks::<LANES>();
        let mut lanes = [0u16; LANES];
        for step in steps {
            for (lane, byte) in lanes.iter_mut().zip(step) {
                *lane += u16::from(*byte);
            }
        }
        sum = sum.wrapping_add(lanes.iter().map(|lane| u32::from(*lane)).sum());
        sum = sum.wrapping_add(rest.iter().map(|byte| u32::from(*byte)).sum());
    }
    sum
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
        for length in (0..200).chain(8190..8300).chain([65_536, 1 << 20]) {
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
