//! What BLOCK_STATUS says about a range.

use secondsite_disk::{BlockDevice, ExtentKind, Result};

use crate::codec::constants::{DIRTY, allocation};
use crate::export::Export;
use crate::meta::Context;

/// Most extents of a reply: half a megabyte. The client asks again from where the reply ends.
const EXTENT_COUNT_MAX: usize = 1 << 16;

/// Lengths and flags from `offset` on, at least one, together at most `length_bytes`.
pub(crate) fn extents_of(
    context: Context,
    export: &dyn Export,
    offset: u64,
    length_bytes: u32,
    is_one: bool,
) -> Result<Vec<(u32, u32)>> {
    let mut list = List {
        left: length_bytes,
        extents: Vec::new(),
        count_max: if is_one { 1 } else { EXTENT_COUNT_MAX },
    };
    match context {
        Context::Allocation => allocation(export.device(), offset, &mut list)?,
        Context::Dirty => {
            for extent in export.dirty(offset, u64::from(length_bytes))? {
                list.push(extent.length_bytes, if extent.is_dirty { DIRTY } else { 0 });
            }
        }
    }
    if list.extents.is_empty() {
        // Nothing known of the range; zero is always a safe status for allocation, and dirty for what may be.
        list.push(u64::from(length_bytes), if context == Context::Dirty { DIRTY } else { 0 });
    }
    Ok(list.extents)
}

fn allocation(device: &dyn BlockDevice, offset: u64, list: &mut List) -> Result<()> {
    let end = offset + u64::from(list.left);
    while list.wants_more() {
        let extent = device.extent_at(end - u64::from(list.left), end)?;
        let flags = match extent.kind {
            ExtentKind::Data => 0,
            ExtentKind::Hole => allocation::HOLE | allocation::ZERO,
        };
        if !list.push(extent.length_bytes, flags) {
            break;
        }
    }
    Ok(())
}

/// Extents so far, neighbours of one kind joined.
struct List {
    left: u32,
    extents: Vec<(u32, u32)>,
    count_max: usize,
}

impl List {
    fn wants_more(&self) -> bool {
        self.left > 0
    }

    /// `false` when the list is full or nothing was added.
    fn push(&mut self, length_bytes: u64, flags: u32) -> bool {
        let length = u64::from(self.left).min(length_bytes) as u32;
        if length == 0 {
            return false;
        }
        let is_full = self.extents.len() == self.count_max;
        match self.extents.last_mut() {
            Some(last) if last.1 == flags => last.0 += length,
            _ if is_full => return false,
            _ => self.extents.push((length, flags)),
        }
        self.left -= length;
        true
    }
}
