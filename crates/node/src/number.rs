//! Numbers across the border: JavaScript has doubles, exact to 2^53, and no other care is taken on its side.

use secondsite_hrl::LogId;

use crate::error::{Result, bad_argument};

/// 2^53 - 1, Number.MAX_SAFE_INTEGER.
const SAFE_INTEGER_MAX: f64 = 9_007_199_254_740_991.0;

/// A byte offset or length from JavaScript.
pub fn offset(name: &str, value: f64) -> Result<u64> {
    if value.fract() == 0.0 && (0.0..=SAFE_INTEGER_MAX).contains(&value) {
        return Ok(value as u64);
    }
    Err(bad_argument(name, &format!("{value} is not a whole number from 0 to 2^53 - 1")))
}

/// A size or count for JavaScript; exact, as no disk here has 8 PiB.
pub fn size(value: u64) -> f64 {
    value as f64
}

/// Unix nanoseconds as milliseconds.
pub fn ms(time_ns: u64) -> f64 {
    (time_ns / 1_000_000) as f64
}

/// 16 bytes as GUID text in the byte order of [MS-HRL].
pub fn guid_text(bytes: [u8; 16]) -> String {
    LogId(bytes).to_string()
}

/// GUID text to the 16 bytes of [MS-HRL].
pub fn guid_bytes(name: &str, text: &str) -> Result<[u8; 16]> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let parsed: Option<Vec<u8>> = (0..16)
        .map(|i| digits.get(2 * i..2 * i + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok()))
        .collect();
    match parsed.map(<[u8; 16]>::try_from) {
        Some(Ok(b)) if digits.len() == 32 => Ok([
            b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13], b[14],
            b[15],
        ]),
        _ => Err(bad_argument(name, &format!("{text:?} is not a GUID"))),
    }
}

/// Flat pairs offset, length as ranges.
pub fn ranges_of(pairs: &[f64]) -> Result<Vec<(u64, u64)>> {
    pairs
        .chunks_exact(2)
        .map(|pair| Ok((offset("offset", pair[0])?, offset("lengthBytes", pair[1])?)))
        .collect()
}

/// Ranges as flat pairs.
pub fn pairs_of(ranges: &[(u64, u64)]) -> Vec<f64> {
    ranges.iter().flat_map(|(offset, length)| [size(*offset), size(*length)]).collect()
}
