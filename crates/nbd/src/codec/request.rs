//! Requests of the transmission phase: the header, and whether it may be carried out.

use super::bytes::Fields;
use super::constants::{Errno, REQUEST_MAGIC, cmd, cmd_flag};

/// Bytes of a request before its payload.
pub(crate) const REQUEST_HEADER_BYTES: usize = 28;
/// Unit of every offset and length.
pub(crate) const BLOCK_BYTES_MIN: u32 = 512;

/// The head of a request, as the client sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RequestHeader {
    pub(crate) flags: u16,
    pub(crate) kind: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) length_bytes: u32,
}

impl RequestHeader {
    /// `None` when the magic is wrong: the client is out of step, and nothing it sends can be understood.
    pub(crate) fn decode(bytes: &[u8; REQUEST_HEADER_BYTES]) -> Option<Self> {
        let mut fields = Fields::new(bytes);
        let magic = fields.u32()?;
        let header = Self {
            flags: fields.u16()?,
            kind: fields.u16()?,
            cookie: fields.u64()?,
            offset: fields.u64()?,
            length_bytes: fields.u32()?,
        };
        (magic == REQUEST_MAGIC).then_some(header)
    }

    /// Bytes that follow the header.
    pub(crate) fn payload_bytes(&self) -> u32 {
        if self.kind == cmd::WRITE { self.length_bytes } else { 0 }
    }

    pub(crate) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// One past the last byte; only after [`check`] said that there is one.
    pub(crate) fn end(&self) -> u64 {
        self.offset.saturating_add(u64::from(self.length_bytes))
    }
}

/// What a connection has agreed on, as far as it decides about requests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) size_bytes: u64,
    pub(crate) request_bytes_max: u32,
    pub(crate) is_read_only: bool,
    pub(crate) is_structured: bool,
    pub(crate) has_contexts: bool,
    pub(crate) is_zeroing_fast: bool,
}

/// A request that may be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    Read,
    Write,
    Flush,
    Trim,
    Cache,
    WriteZeroes { may_unmap: bool },
    BlockStatus { is_one: bool },
}

/// What a request asks for, or the error that answers it.
pub(crate) fn check(header: &RequestHeader, rules: &Rules) -> Result<Command, Errno> {
    let command = command_of(header, rules)?;
    match command {
        Command::Flush if header.offset == 0 && header.length_bytes == 0 => Ok(command),
        Command::Flush => Err(Errno::Invalid),
        _ => {
            check_permission(command, header, rules)?;
            check_range(command, header, rules)?;
            check_size(command, header, rules)?;
            Ok(command)
        }
    }
}

fn command_of(header: &RequestHeader, rules: &Rules) -> Result<Command, Errno> {
    let (command, flags) = match header.kind {
        cmd::READ => (Command::Read, if rules.is_structured { cmd_flag::DF } else { 0 }),
        cmd::WRITE => (Command::Write, 0),
        cmd::FLUSH => (Command::Flush, 0),
        cmd::TRIM => (Command::Trim, 0),
        cmd::CACHE => (Command::Cache, 0),
        cmd::WRITE_ZEROES => {
            let may_unmap = !header.has(cmd_flag::NO_HOLE);
            (Command::WriteZeroes { may_unmap }, cmd_flag::NO_HOLE | cmd_flag::FAST_ZERO)
        }
        cmd::BLOCK_STATUS if rules.has_contexts => {
            (Command::BlockStatus { is_one: header.has(cmd_flag::REQ_ONE) }, cmd_flag::REQ_ONE)
        }
        _ => return Err(Errno::Invalid),
    };
    // FUA is valid with every command: clients are known to set it on reads.
    let is_known = header.flags & !(flags | cmd_flag::FUA) == 0;
    if is_known { Ok(command) } else { Err(Errno::Invalid) }
}

fn check_permission(command: Command, header: &RequestHeader, rules: &Rules) -> Result<(), Errno> {
    let is_write = matches!(command, Command::Write | Command::Trim | Command::WriteZeroes { .. });
    if is_write && rules.is_read_only {
        return Err(Errno::Perm);
    }
    if header.has(cmd_flag::FAST_ZERO) && !rules.is_zeroing_fast {
        return Err(Errno::NotSupported);
    }
    Ok(())
}

fn check_range(command: Command, header: &RequestHeader, rules: &Rules) -> Result<(), Errno> {
    let length = u64::from(header.length_bytes);
    let end = header.offset.checked_add(length);
    if end.is_none_or(|end| end > rules.size_bytes) {
        let is_growing = matches!(command, Command::Write | Command::WriteZeroes { .. });
        return Err(if is_growing { Errno::NoSpace } else { Errno::Invalid });
    }
    let unit = u64::from(BLOCK_BYTES_MIN);
    let is_aligned = header.offset.is_multiple_of(unit) && length.is_multiple_of(unit);
    if length > 0 && is_aligned { Ok(()) } else { Err(Errno::Invalid) }
}

/// Refuses what would take more memory, or more reading without a payload, than was advertised.
fn check_size(command: Command, header: &RequestHeader, rules: &Rules) -> Result<(), Errno> {
    if header.length_bytes <= rules.request_bytes_max {
        return Ok(());
    }
    match command {
        Command::Write => Err(Errno::Invalid),
        Command::Read if !rules.is_structured => Err(Errno::Invalid),
        Command::Read | Command::Cache => Err(Errno::Overflow),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULES: Rules = Rules {
        size_bytes: 1 << 30,
        request_bytes_max: 1 << 25,
        is_read_only: false,
        is_structured: true,
        has_contexts: true,
        is_zeroing_fast: false,
    };

    fn header(kind: u16, flags: u16, offset: u64, length_bytes: u32) -> RequestHeader {
        RequestHeader { flags, kind, cookie: 7, offset, length_bytes }
    }

    fn answer(kind: u16, flags: u16, offset: u64, length_bytes: u32) -> Result<Command, Errno> {
        check(&header(kind, flags, offset, length_bytes), &RULES)
    }

    #[test]
    fn a_header_is_read_field_by_field() {
        let mut bytes = [0u8; REQUEST_HEADER_BYTES];
        bytes[..4].copy_from_slice(&[0x25, 0x60, 0x95, 0x13]);
        (bytes[5], bytes[7], bytes[15], bytes[22], bytes[26]) = (1, 6, 9, 2, 4);
        assert_eq!(
            RequestHeader::decode(&bytes),
            Some(header(6, 1, 512, 1024)).map(|h| RequestHeader { cookie: 9, ..h })
        );
        bytes[3] ^= 1;
        assert_eq!(RequestHeader::decode(&bytes), None);
    }

    #[test]
    fn ranges_outside_of_the_disk_are_errors_of_their_command() {
        for (offset, length) in
            [(1 << 30, 512), ((1 << 30) - 512, 1024), (u64::MAX - 511, 1024), (u64::MAX, u32::MAX)]
        {
            assert_eq!(answer(cmd::READ, 0, offset, length), Err(Errno::Invalid));
            assert_eq!(answer(cmd::TRIM, 0, offset, length), Err(Errno::Invalid));
            assert_eq!(answer(cmd::WRITE, 0, offset, length), Err(Errno::NoSpace));
            assert_eq!(answer(cmd::WRITE_ZEROES, 0, offset, length), Err(Errno::NoSpace));
            assert_eq!(answer(cmd::BLOCK_STATUS, 0, offset, length), Err(Errno::Invalid));
        }
    }

    #[test]
    fn empty_and_unaligned_ranges_are_invalid() {
        for kind in [cmd::READ, cmd::WRITE, cmd::TRIM, cmd::CACHE, cmd::WRITE_ZEROES, cmd::BLOCK_STATUS] {
            for (offset, length) in [(0, 0), (1, 512), (512, 511), (100, 100)] {
                assert_eq!(answer(kind, 0, offset, length), Err(Errno::Invalid), "{kind} {offset} {length}");
            }
        }
    }

    #[test]
    fn a_read_only_export_refuses_what_writes_and_nothing_else() {
        let rules = Rules { is_read_only: true, ..RULES };
        let ask = |kind| check(&header(kind, 0, 0, 512), &rules);
        for kind in [cmd::WRITE, cmd::TRIM, cmd::WRITE_ZEROES] {
            assert_eq!(ask(kind), Err(Errno::Perm));
        }
        assert_eq!(ask(cmd::READ), Ok(Command::Read));
        assert_eq!(check(&header(cmd::FLUSH, 0, 0, 0), &rules), Ok(Command::Flush));
    }

    #[test]
    fn flags_belong_to_their_commands() {
        assert_eq!(answer(cmd::READ, cmd_flag::DF | cmd_flag::FUA, 0, 512), Ok(Command::Read));
        assert_eq!(answer(cmd::WRITE, cmd_flag::FUA, 0, 512), Ok(Command::Write));
        assert_eq!(answer(cmd::WRITE, cmd_flag::DF, 0, 512), Err(Errno::Invalid));
        assert_eq!(answer(cmd::READ, cmd_flag::REQ_ONE, 0, 512), Err(Errno::Invalid));
        assert_eq!(answer(cmd::CACHE, cmd_flag::NO_HOLE, 0, 512), Err(Errno::Invalid));
        assert_eq!(answer(cmd::WRITE, 1 << 5, 0, 512), Err(Errno::Invalid));
        let kept = answer(cmd::WRITE_ZEROES, cmd_flag::NO_HOLE, 0, 512);
        assert_eq!(kept, Ok(Command::WriteZeroes { may_unmap: false }));
        let simple = Rules { is_structured: false, ..RULES };
        assert_eq!(check(&header(cmd::READ, cmd_flag::DF, 0, 512), &simple), Err(Errno::Invalid));
    }

    #[test]
    fn fast_zero_fails_quickly_where_zeroing_is_not_fast() {
        let zero = header(cmd::WRITE_ZEROES, cmd_flag::FAST_ZERO, 0, 1 << 29);
        assert_eq!(check(&zero, &RULES), Err(Errno::NotSupported));
        let fast = Rules { is_zeroing_fast: true, ..RULES };
        assert_eq!(check(&zero, &fast), Ok(Command::WriteZeroes { may_unmap: true }));
    }

    #[test]
    fn sizes_above_the_limit_are_refused_where_they_cost_memory_or_reading() {
        let rules = Rules { size_bytes: 1 << 40, request_bytes_max: 1 << 20, ..RULES };
        let ask = |kind, rules: &Rules| check(&header(kind, 0, 0, (1 << 20) + 512), rules);
        assert_eq!(ask(cmd::READ, &rules), Err(Errno::Overflow));
        assert_eq!(ask(cmd::READ, &Rules { is_structured: false, ..rules }), Err(Errno::Invalid));
        assert_eq!(ask(cmd::WRITE, &rules), Err(Errno::Invalid));
        assert_eq!(ask(cmd::CACHE, &rules), Err(Errno::Overflow));
        assert_eq!(ask(cmd::TRIM, &rules), Ok(Command::Trim));
        assert_eq!(ask(cmd::WRITE_ZEROES, &rules), Ok(Command::WriteZeroes { may_unmap: true }));
    }

    #[test]
    fn commands_unknown_or_not_agreed_on_are_invalid() {
        for kind in [8, 9, 255, u16::MAX] {
            assert_eq!(answer(kind, 0, 0, 512), Err(Errno::Invalid));
        }
        let rules = Rules { has_contexts: false, ..RULES };
        assert_eq!(check(&header(cmd::BLOCK_STATUS, 0, 0, 512), &rules), Err(Errno::Invalid));
        assert_eq!(answer(cmd::FLUSH, 0, 0, 512), Err(Errno::Invalid));
        assert_eq!(answer(cmd::FLUSH, 0, 512, 0), Err(Errno::Invalid));
    }

    proptest! {
        #[test]
        fn what_is_allowed_lies_inside_the_disk(kind: u16, flags: u16, offset: u64, length_bytes: u32, small in 0u64..4096) {
            for offset in [offset, small * 512] {
                let header = header(kind % 9, flags & 31, offset, length_bytes);
                if let Ok(command) = check(&header, &RULES) && command != Command::Flush {
                    prop_assert!(header.offset + u64::from(header.length_bytes) <= RULES.size_bytes);
                    prop_assert!(header.length_bytes > 0);
                    prop_assert_eq!((header.offset | u64::from(header.length_bytes)) % 512, 0);
                }
            }
        }
    }
}
