//! Replies on their way out: encoded one after the other, written as many as the socket takes in one call. Data is passed on, not
//! copied. Pure.

use std::{collections::VecDeque, io::IoSlice};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::proto::{BASE_ALLOCATION_ID, CHUNK_MAGIC, NbdError, SIMPLE_REPLY_MAGIC, STATE_HOLE_AND_ZERO, chunk};
use crate::disk::{Extent, Piece};

/// Parts written in one call.
pub(crate) const SLICES_MAX: usize = 64;
/// Zeros that are not there as data.
static ZEROES: [u8; ZEROES_BYTES] = [0; ZEROES_BYTES];
const ZEROES_BYTES: usize = 64 << 10;
/// Memory for headers is taken in pieces of so many bytes.
const HEADERS_BYTES: usize = 4096;

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    ready: VecDeque<Bytes>,
    /// Headers that nothing but headers has followed yet.
    headers: BytesMut,
    bytes: usize,
}

impl Outbox {
    /// Bytes waiting.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What the talk before the requests has to say.
    pub(crate) fn say(&mut self, words: &[u8]) {
        self.header(words.len()).put_slice(words);
    }

    /// The reply without data.
    pub(crate) fn done(&mut self, cookie: u64) {
        self.simple(cookie, 0);
    }

    /// The reply of a request that failed, in words where there are any.
    pub(crate) fn failed(&mut self, structured: bool, cookie: u64, error: NbdError, why: &str) {
        if !structured {
            return self.simple(cookie, error.code());
        }
        let why = &why.as_bytes()[..why.len().min(256)];
        self.chunk(chunk::FLAG_DONE, chunk::ERROR, cookie, 6 + why.len());
        let payload = self.header(6 + why.len());
        payload.put_u32(error.code());
        payload.put_u16(u16::try_from(why.len()).expect("cut to 256"));
        payload.put_slice(why);
    }

    /// What was read, as one simple reply.
    pub(crate) fn read_simple(&mut self, cookie: u64, pieces: Vec<Piece>) {
        self.simple(cookie, 0);
        pieces.into_iter().for_each(|piece| self.piece(piece));
    }

    /// What was read at `offset`, as chunks; as one of them if `whole`.
    pub(crate) fn read_chunks(&mut self, cookie: u64, mut offset: u64, whole: bool, pieces: Vec<Piece>) {
        if whole {
            let bytes: usize = pieces.iter().map(|piece| piece.bytes() as usize).sum();
            self.chunk(chunk::FLAG_DONE, chunk::OFFSET_DATA, cookie, 8 + bytes);
            self.header(8).put_u64(offset);
            return pieces.into_iter().for_each(|piece| self.piece(piece));
        }
        let last = pieces.len() - 1;
        for (index, piece) in pieces.into_iter().enumerate() {
            let flags = if index == last { chunk::FLAG_DONE } else { 0 };
            let bytes = piece.bytes();
            match piece {
                Piece::Data(_) => {
                    self.chunk(flags, chunk::OFFSET_DATA, cookie, 8 + bytes as usize);
                    self.header(8).put_u64(offset);
                    self.piece(piece);
                }
                Piece::Zeroes(_) => {
                    self.chunk(flags, chunk::OFFSET_HOLE, cookie, 12);
                    let payload = self.header(12);
                    payload.put_u64(offset);
                    payload.put_u32(bytes);
                }
            }
            offset += u64::from(bytes);
        }
    }

    /// What is a hole and what is not.
    pub(crate) fn extents(&mut self, cookie: u64, extents: &[Extent]) {
        let bytes = 4 + 8 * extents.len();
        self.chunk(chunk::FLAG_DONE, chunk::BLOCK_STATUS, cookie, bytes);
        let payload = self.header(bytes);
        payload.put_u32(BASE_ALLOCATION_ID);
        for extent in extents {
            payload.put_u32(u32::try_from(extent.bytes).expect("no longer than what was asked about"));
            payload.put_u32(if extent.data { 0 } else { STATE_HOLE_AND_ZERO });
        }
    }

    /// The front of what is to be written; how many of `slices` are filled.
    pub(crate) fn front<'a>(&'a self, slices: &mut [IoSlice<'a>; SLICES_MAX]) -> usize {
        let headers = Some(&self.headers[..]).filter(|headers| !headers.is_empty());
        let parts = self.ready.iter().map(|part| &part[..]).chain(headers);
        slices.iter_mut().zip(parts).map(|(slice, part)| *slice = IoSlice::new(part)).count()
    }

    /// `count` bytes of it have been written.
    pub(crate) fn written(&mut self, mut count: usize) {
        self.bytes -= count;
        while let Some(part) = self.ready.front_mut() {
            if count < part.len() {
                return part.advance(count);
            }
            count -= part.len();
            self.ready.pop_front();
        }
        self.headers.advance(count);
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    fn simple(&mut self, cookie: u64, code: u32) {
        let header = self.header(16);
        header.put_u32(SIMPLE_REPLY_MAGIC);
        header.put_u32(code);
        header.put_u64(cookie);
    }

    fn chunk(&mut self, flags: u16, kind: u16, cookie: u64, payload: usize) {
        let header = self.header(20);
        header.put_u32(CHUNK_MAGIC);
        header.put_u16(flags);
        header.put_u16(kind);
        header.put_u64(cookie);
        header.put_u32(u32::try_from(payload).expect("no longer than a transfer and its offset"));
    }

    /// Where `bytes` bytes of headers are put, all of which must be.
    fn header(&mut self, bytes: usize) -> &mut BytesMut {
        if self.headers.capacity() - self.headers.len() < bytes {
            self.headers.reserve(bytes.max(HEADERS_BYTES));
        }
        self.bytes += bytes;
        &mut self.headers
    }

    fn piece(&mut self, piece: Piece) {
        if !self.headers.is_empty() {
            self.ready.push_back(self.headers.split().freeze());
        }
        self.bytes += piece.bytes() as usize;
        match piece {
            Piece::Data(data) => self.ready.push_back(data),
            Piece::Zeroes(bytes) => {
                let mut left = bytes as usize;
                while left > 0 {
                    let part = left.min(ZEROES_BYTES);
                    self.ready.push_back(Bytes::from_static(&ZEROES[..part]));
                    left -= part;
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "outbox_tests.rs"]
mod tests;
