//! Options of the handshake: what a client sends, and the replies.

use super::bytes::Fields;
use super::constants::{OPTION_MAGIC, OPTION_REPLY_MAGIC, STRING_BYTES_MAX};

/// Bytes before the data of an option.
pub(crate) const OPTION_HEADER_BYTES: usize = 16;

/// The head of an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OptionHeader {
    pub(crate) option: u32,
    pub(crate) data_bytes: u32,
}

impl OptionHeader {
    /// `None` when the magic is wrong: the client is out of step, and nothing it sends can be understood.
    pub(crate) fn decode(bytes: &[u8; OPTION_HEADER_BYTES]) -> Option<Self> {
        let mut fields = Fields::new(bytes);
        let magic = fields.u64()?;
        let header = Self { option: fields.u32()?, data_bytes: fields.u32()? };
        (magic == OPTION_MAGIC).then_some(header)
    }
}

/// Data of INFO and GO.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct InfoRequest<'a> {
    pub(crate) name: &'a str,
    /// The kinds asked for, two bytes each.
    kinds: &'a [u8],
}

impl<'a> InfoRequest<'a> {
    pub(crate) fn decode(data: &'a [u8]) -> Option<Self> {
        let mut fields = Fields::new(data);
        let name = text(fields.string()?)?;
        let count = fields.u16()?;
        let kinds = fields.bytes(usize::from(count) * 2)?;
        fields.is_empty().then_some(Self { name, kinds })
    }

    pub(crate) fn wants(&self, kind: u16) -> bool {
        self.kinds.chunks_exact(2).any(|asked| asked == kind.to_be_bytes())
    }
}

/// Data of LIST_META_CONTEXT and SET_META_CONTEXT.
#[derive(Debug)]
pub(crate) struct MetaRequest<'a> {
    pub(crate) name: &'a str,
    pub(crate) query_count: u32,
    queries: Fields<'a>,
}

impl<'a> MetaRequest<'a> {
    /// Checks the whole of it, so that [`queries`](Self::queries) cannot fail.
    pub(crate) fn decode(data: &'a [u8]) -> Option<Self> {
        let mut fields = Fields::new(data);
        let name = text(fields.string()?)?;
        let query_count = fields.u32()?;
        let queries = fields;
        // A query takes four bytes at least, so a count that is a lie ends with the data.
        for _ in 0..query_count {
            text(fields.string()?)?;
        }
        fields.is_empty().then_some(Self { name, query_count, queries })
    }

    pub(crate) fn queries(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let mut fields = self.queries;
        std::iter::from_fn(move || text(fields.string()?))
    }
}

/// A string of the protocol: UTF-8, at most 4096 bytes, no zero byte.
pub(crate) fn text(bytes: &[u8]) -> Option<&str> {
    if bytes.len() > STRING_BYTES_MAX || bytes.contains(&0) {
        return None;
    }
    std::str::from_utf8(bytes).ok()
}

/// Appends one reply to an option, its data in parts.
pub(crate) fn put_reply(out: &mut Vec<u8>, option: u32, kind: u32, parts: &[&[u8]]) {
    let data_bytes: usize = parts.iter().map(|part| part.len()).sum();
    out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    // The parts are ours: names and descriptions of at most 4096 bytes.
    out.extend_from_slice(&(data_bytes as u32).to_be_bytes());
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(name: &[u8], length: u32, kinds: &[u16]) -> Vec<u8> {
        let mut data = length.to_be_bytes().to_vec();
        data.extend_from_slice(name);
        data.extend_from_slice(&(kinds.len() as u16).to_be_bytes());
        kinds.iter().for_each(|kind| data.extend_from_slice(&kind.to_be_bytes()));
        data
    }

    #[test]
    fn an_info_request_gives_name_and_kinds() {
        let data = info(b"disk", 4, &[3, 1]);
        let request = InfoRequest::decode(&data).unwrap();
        assert_eq!(request.name, "disk");
        assert!(request.wants(1) && request.wants(3) && !request.wants(0));
    }

    #[test]
    fn an_info_request_that_lies_about_a_length_is_refused() {
        let bad: [Vec<u8>; 6] = [
            vec![],
            info(b"disk", 5, &[]),
            info(b"disk", u32::MAX, &[]),
            info(&[0xff, 0xfe], 2, &[]),
            info(b"d\0sk", 4, &[]),
            [info(b"disk", 4, &[]), vec![0]].concat(),
        ];
        for data in bad {
            assert_eq!(InfoRequest::decode(&data), None, "{data:?}");
        }
    }

    #[test]
    fn a_name_of_4096_bytes_is_the_longest() {
        let (fits, long) = (vec![b'a'; 4096], vec![b'a'; 4097]);
        assert!(InfoRequest::decode(&info(&fits, 4096, &[])).is_some());
        assert!(InfoRequest::decode(&info(&long, 4097, &[])).is_none());
    }

    #[test]
    fn a_meta_request_with_four_milliard_queries_ends_with_its_data() {
        let mut data = 0u32.to_be_bytes().to_vec();
        data.extend_from_slice(&u32::MAX.to_be_bytes());
        data.extend_from_slice(&[0, 0, 0, 1, b'x']);
        assert!(MetaRequest::decode(&data).is_none());
    }

    #[test]
    fn a_meta_request_gives_its_queries_in_order() {
        let mut data = vec![0, 0, 0, 1, b'd', 0, 0, 0, 2];
        data.extend_from_slice(&[0, 0, 0, 2, b'a', b':', 0, 0, 0, 3, b'b', b':', b'c']);
        let request = MetaRequest::decode(&data).unwrap();
        assert_eq!(request.queries().collect::<Vec<_>>(), ["a:", "b:c"]);
        assert_eq!((request.name, request.query_count), ("d", 2));
    }

    #[test]
    fn an_option_with_another_magic_is_none() {
        let mut bytes = [0; OPTION_HEADER_BYTES];
        bytes[..8].copy_from_slice(b"IHAVEOPT");
        bytes[11] = 7;
        bytes[15] = 9;
        assert_eq!(OptionHeader::decode(&bytes), Some(OptionHeader { option: 7, data_bytes: 9 }));
        bytes[0] = b'i';
        assert_eq!(OptionHeader::decode(&bytes), None);
    }

    #[test]
    fn a_reply_has_magic_option_kind_length_data() {
        let mut out = Vec::new();
        put_reply(&mut out, 3, 2, &[&[0, 0, 0, 1], b"x"]);
        let expected = [0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0, 5];
        assert_eq!(out[..20], expected);
        assert_eq!(out[20..], [0, 0, 0, 1, b'x']);
    }
}
