//! Identity of a log: a GUID in the byte order of [MS-HRL].

use std::fmt;

/// UniqueId of a log, the 16 bytes as they stand in the file ([MS-HRL] 2.2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct LogId(pub [u8; 16]);

impl LogId {
    /// The zero GUID: "no log", PreviousUniqueId of the first log of a disk.
    pub const NONE: Self = Self([0; 16]);

    /// Whether this is the zero GUID.
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }
}

/// GUID text: the first three groups are little-endian numbers, the rest bytes in order.
impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let b = &self.0;
        write!(
            f,
            "{:02x}{:02x}{:02x}{:02x}-{:02x}{:02x}-{:02x}{:02x}-",
            b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6]
        )?;
        write!(f, "{:02x}{:02x}-", b[8], b[9])?;
        b[10..].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogId({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guid_text_swaps_the_first_three_groups_only() {
        let id = LogId([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        assert_eq!(id.to_string(), "03020100-0504-0706-0809-0a0b0c0d0e0f");
    }
}
