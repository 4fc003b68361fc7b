// SPDX-License-Identifier: GPL-2.0

//! Reads little-endian fields of an instruction, and knows where it must end.

use super::types::{
    DecodeError,
    MAX_LEN, //
};

/// A position in the bytes of an instruction.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    pos: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Cursor { bytes, pos: 0 }
    }

    /// Bytes taken, at most [`MAX_LEN`].
    pub(super) fn len(&self) -> u8 {
        self.pos.to_le_bytes()[0]
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let end = self.pos + N;
        match self.bytes.get(self.pos..end) {
            _ if end > MAX_LEN && self.bytes.len() >= MAX_LEN => Err(DecodeError::TooLong),
            Some(s) => {
                let mut out = [0; N];
                out.copy_from_slice(s);
                self.pos = end;
                Ok(out)
            }
            None => Err(DecodeError::NeedMore),
        }
    }

    /// The next byte, without taking it.
    pub(super) fn peek(&self) -> Result<u8, DecodeError> {
        if self.pos >= MAX_LEN {
            return Err(DecodeError::TooLong);
        }
        self.bytes
            .get(self.pos)
            .copied()
            .ok_or(DecodeError::NeedMore)
    }

    pub(super) fn u8(&mut self) -> Result<u8, DecodeError> {
        let b = self.peek()?;
        self.pos += 1;
        Ok(b)
    }

    pub(super) fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_le_bytes(self.take()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    pub(super) fn i8(&mut self) -> Result<i64, DecodeError> {
        Ok(i64::from(i8::from_le_bytes(self.take()?)))
    }

    pub(super) fn i16(&mut self) -> Result<i64, DecodeError> {
        Ok(i64::from(i16::from_le_bytes(self.take()?)))
    }

    pub(super) fn i32(&mut self) -> Result<i64, DecodeError> {
        Ok(i64::from(i32::from_le_bytes(self.take()?)))
    }

    pub(super) fn i64(&mut self) -> Result<i64, DecodeError> {
        Ok(i64::from_le_bytes(self.take()?))
    }

    /// Takes `n` bytes that mean nothing here.
    pub(super) fn skip(&mut self, n: usize) -> Result<(), DecodeError> {
        for _ in 0..n {
            self.u8()?;
        }
        Ok(())
    }
}
