//! The name of a segment: `<point, 12 digits>.<first save, 9 digits>-<last save, 9 digits>.hrl`.
//!
//! Saves are counted per folder, over all points. A segment that was made of others spans their saves, so a missing file
//! shows as a gap, and a file that a crash left behind shows as contained in the one that replaced it.

use std::path::{Path, PathBuf};

/// Largest sequence number of a point.
pub(crate) const POINT_MAX: u64 = 999_999_999_999;
/// Largest number of a save: one a second for thirty years.
pub(crate) const SAVE_MAX: u64 = 999_999_999;

/// What a segment holds, told by its name. Ordered by point, then by age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SegmentName {
    /// The point whose content it holds.
    pub(crate) point: u64,
    /// First save in it.
    pub(crate) first: u64,
    /// Last save in it.
    pub(crate) last: u64,
}

impl SegmentName {
    /// The name of a file that we would have given; `None` for any other.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let (point, saves) = name.strip_suffix(".hrl")?.split_once('.')?;
        let (first, last) = saves.split_once('-')?;
        let (point, first, last) = (number(point, 12)?, number(first, 9)?, number(last, 9)?);
        (first <= last).then_some(Self { point, first, last })
    }

    /// Its path in a folder.
    pub(crate) fn path(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{:012}.{:09}-{:09}.hrl", self.point, self.first, self.last))
    }

    /// Whether `other` holds all that this one does: it was made of it.
    pub(crate) fn is_replaced_by(&self, other: &Self) -> bool {
        let is_inside = other.first <= self.first && self.last <= other.last;
        let is_wider = other.first < self.first || self.last < other.last;
        is_inside && (is_wider && other.point <= self.point || other.point < self.point)
    }
}

fn number(digits: &str, width: usize) -> Option<u64> {
    let all_digits = digits.len() == width && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|_| all_digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_we_would_give_are_ours() {
        let name = SegmentName { point: 42, first: 7, last: 1234 };
        let path = name.path(Path::new("u"));
        assert_eq!(path, Path::new("u/000000000042.000000007-000001234.hrl"));
        assert_eq!(SegmentName::parse("000000000042.000000007-000001234.hrl"), Some(name));
        for foreign in [
            "000000000042.000000007-000001234.hrx",
            "00000000042.000000007-000001234.hrl",
            "000000000042.000000007.hrl",
            "+00000000042.000000007-000001234.hrl",
            "000000000042.000000008-000000007.hrl",
            "unfinished.hrl",
        ] {
            assert_eq!(SegmentName::parse(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_merged_segment_replaces_what_it_was_made_of_and_nothing_else() {
        let name = |point, first, last| SegmentName { point, first, last };
        assert!(name(5, 3, 3).is_replaced_by(&name(5, 1, 4)));
        assert!(name(6, 3, 3).is_replaced_by(&name(5, 3, 3)));
        assert!(!name(5, 3, 3).is_replaced_by(&name(5, 3, 3)));
        assert!(!name(5, 3, 3).is_replaced_by(&name(6, 1, 4)));
        assert!(!name(5, 3, 5).is_replaced_by(&name(5, 1, 4)));
    }
}
