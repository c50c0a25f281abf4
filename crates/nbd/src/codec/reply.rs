//! Replies: simple ones, and the chunks of structured ones.
//!
//! A reply that carries data is written as its head, then the data directly behind it in the same buffer, so that a
//! batch of replies leaves in one send and read data is copied once, by the kernel.

use super::constants::{Errno, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk};

/// Bytes of a simple reply without data.
pub(crate) const SIMPLE_HEADER_BYTES: usize = 16;
/// Bytes of a chunk without payload.
pub(crate) const CHUNK_HEADER_BYTES: usize = 20;
/// Bytes before the data of a data chunk.
pub(crate) const DATA_HEADER_BYTES: usize = CHUNK_HEADER_BYTES + 8;

/// A simple reply; the data of a read follows.
pub(crate) fn simple(cookie: u64, error: Option<Errno>) -> [u8; SIMPLE_HEADER_BYTES] {
    let mut bytes = [0; SIMPLE_HEADER_BYTES];
    bytes[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&error.map_or(0, |errno| errno as u32).to_be_bytes());
    bytes[8..].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

/// The head of a chunk.
pub(crate) fn chunk_header(
    cookie: u64,
    kind: u16,
    is_last: bool,
    payload_bytes: u32,
) -> [u8; CHUNK_HEADER_BYTES] {
    let mut bytes = [0; CHUNK_HEADER_BYTES];
    bytes[..4].copy_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&(if is_last { chunk::FLAG_DONE } else { 0 }).to_be_bytes());
    bytes[6..8].copy_from_slice(&kind.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..].copy_from_slice(&payload_bytes.to_be_bytes());
    bytes
}

/// The head of a chunk that carries all data of a read and ends its reply.
pub(crate) fn data_header(cookie: u64, offset: u64, length_bytes: u32) -> [u8; DATA_HEADER_BYTES] {
    let mut bytes = [0; DATA_HEADER_BYTES];
    // At most the advertised maximum of 32 MiB, so eight more fit.
    let head = chunk_header(cookie, chunk::OFFSET_DATA, true, length_bytes + 8);
    bytes[..CHUNK_HEADER_BYTES].copy_from_slice(&head);
    bytes[CHUNK_HEADER_BYTES..].copy_from_slice(&offset.to_be_bytes());
    bytes
}

/// Appends the chunk that says that a request failed, and why; it ends the reply.
pub(crate) fn put_error(out: &mut Vec<u8>, cookie: u64, errno: Errno, message: &str) {
    // Codes of ours: a few dozen bytes.
    let message_bytes = message.len() as u16;
    out.extend_from_slice(&chunk_header(cookie, chunk::ERROR, true, 6 + u32::from(message_bytes)));
    out.extend_from_slice(&(errno as u32).to_be_bytes());
    out.extend_from_slice(&message_bytes.to_be_bytes());
    out.extend_from_slice(message.as_bytes());
}

/// Appends the chunk that says what a range is in one context; extents are lengths and flags.
pub(crate) fn put_status(
    out: &mut Vec<u8>,
    cookie: u64,
    context_id: u32,
    extents: &[(u32, u32)],
    is_last: bool,
) {
    let payload_bytes = 4 + 8 * extents.len() as u32;
    out.extend_from_slice(&chunk_header(cookie, chunk::BLOCK_STATUS, is_last, payload_bytes));
    out.extend_from_slice(&context_id.to_be_bytes());
    for (length_bytes, flags) in extents {
        out.extend_from_slice(&length_bytes.to_be_bytes());
        out.extend_from_slice(&flags.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_simple_reply_has_magic_error_cookie() {
        let expected = [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(simple(0x0102_0304_0506_0708, Some(Errno::NoSpace)), expected);
        assert_eq!(simple(0, None)[4..8], [0; 4]);
    }

    #[test]
    fn a_data_chunk_counts_its_offset_into_its_length() {
        let head = data_header(9, 0x200, 4096);
        assert_eq!(head[..8], [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1]);
        assert_eq!(head[8..16], [0, 0, 0, 0, 0, 0, 0, 9]);
        assert_eq!(head[16..20], [0, 0, 0x10, 8]);
        assert_eq!(head[20..], [0, 0, 0, 0, 0, 0, 2, 0]);
    }

    #[test]
    fn an_error_chunk_carries_errno_and_text() {
        let mut out = Vec::new();
        put_error(&mut out, 1, Errno::Io, "BAD");
        assert_eq!(out[4..8], [0, 1, 0x80, 1]);
        assert_eq!(out[16..], [0, 0, 0, 9, 0, 0, 0, 5, 0, 3, b'B', b'A', b'D']);
    }

    #[test]
    fn a_status_chunk_lists_lengths_and_flags() {
        let mut out = Vec::new();
        put_status(&mut out, 1, 2, &[(512, 0), (1024, 3)], false);
        assert_eq!(out[4..8], [0, 0, 0, 5]);
        assert_eq!(out[16..], [0, 0, 0, 20, 0, 0, 0, 2, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 3]);
    }
}
