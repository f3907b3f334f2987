//! From the pieces of a message to what a system call takes.

use super::message::{Piece, Source};
use crate::xsk::Region;

/// Address and length in bytes of what pieces lie in.
pub(super) struct Sources {
    region: (*const u8, usize),
    headers: (*const u8, usize),
}

impl Sources {
    pub(super) fn new(region: &Region, headers: &[u8]) -> Self {
        Self {
            region: (region.base(), region.len()),
            headers: (headers.as_ptr(), headers.len()),
        }
    }

    /// The piece as the kernel takes it; `None` when it lies outside its source.
    #[inline]
    pub(super) fn iovec(&self, piece: Piece) -> Option<libc::iovec> {
        let (base, length) = match piece.source() {
            Source::Region => self.region,
            Source::Headers => self.headers,
        };
        let inside = piece
            .offset()
            .checked_add(piece.len())
            .is_some_and(|end| end <= length);
        inside.then(|| libc::iovec {
            iov_base: base.wrapping_add(piece.offset()).cast_mut().cast(),
            iov_len: piece.len(),
        })
    }
}
