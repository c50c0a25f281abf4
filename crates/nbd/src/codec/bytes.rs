//! Big-endian fields of a buffer whose end is checked.

/// What is left of a buffer; every `take` is `None` behind its end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string behind its 32-bit length.
    pub(crate) fn string(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()?;
        self.bytes(length as usize)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_end_where_the_buffer_ends() {
        let mut fields = Fields::new(&[0, 1, 0, 0, 0, 2, 7, 8, 9]);
        assert_eq!(fields.u16(), Some(1));
        assert_eq!(fields.string(), Some(&[7u8, 8][..]));
        assert_eq!(fields.u16(), None);
        assert_eq!(fields.bytes(1), Some(&[9u8][..]));
        assert!(fields.is_empty());
        assert_eq!(fields.u64(), None);
    }

    #[test]
    fn a_string_longer_than_the_buffer_is_none() {
        assert_eq!(Fields::new(&[0xff, 0xff, 0xff, 0xff, 1, 2]).string(), None);
    }
}
