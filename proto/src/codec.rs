//! Lines of JSON, in and out, with a length limit.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{ErrorBody, ErrorCode};

/// Longest line in bytes, its newline included. Longer ones close the connection: whoever sends
/// more than this at once splits it into several requests.
pub const MAX_LINE: usize = 1 << 20;

/// Gathers bytes as they come from a non-blocking socket and gives whole lines.
#[derive(Debug, Default)]
pub struct LineBuffer {
    bytes: Vec<u8>,
    /// Bytes at the front that were given out already.
    taken: usize,
    /// Bytes that are known to hold no newline.
    searched: usize,
}

/// A line grew over [`MAX_LINE`]; the connection cannot be brought back into step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("line longer than {MAX_LINE} bytes; split the request")]
pub struct LineTooLong;

impl LineBuffer {
    /// Adds what was read.
    pub fn extend(&mut self, bytes: &[u8]) {
        if self.taken > 0 {
            self.bytes.drain(..self.taken);
            self.searched -= self.taken;
            self.taken = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole line without its newline, if there is one.
    ///
    /// # Errors
    /// [`LineTooLong`] when the line, whole or not, is over the limit.
    pub fn next_line(&mut self) -> Result<Option<&[u8]>, LineTooLong> {
        let newline = self.bytes[self.searched..].iter().position(|&b| b == b'\n');
        let end = newline.map(|at| self.searched + at);
        let length = end.map_or(self.bytes.len(), |at| at + 1) - self.taken;
        if length > MAX_LINE {
            return Err(LineTooLong);
        }
        let Some(end) = end else {
            self.searched = self.bytes.len();
            return Ok(None);
        };
        let line = self.taken..end;
        self.taken = end + 1;
        self.searched = self.taken;
        Ok(Some(&self.bytes[line]))
    }
}

/// Reads one document from a line.
///
/// # Errors
/// [`ErrorCode::BadRequest`] with the parser's own words.
pub fn decode<T: DeserializeOwned>(line: &[u8]) -> Result<T, ErrorBody> {
    serde_json::from_slice(line).map_err(|error| {
        ErrorBody::new(
            ErrorCode::BadRequest,
            format!("not a request of this protocol: {error}"),
        )
    })
}

/// One document as a line with its newline.
///
/// # Panics
/// Never for the types of this crate: their maps have string keys.
pub fn encode<T: Serialize>(document: &T) -> Vec<u8> {
    let mut line = serde_json::to_vec(document)
        .unwrap_or_else(|error| unreachable!("a protocol type failed to serialise: {error}"));
    line.push(b'\n');
    line
}

/// Longest response that a client reads, in bytes: a listing of everything may be long.
pub const MAX_RESPONSE: usize = 256 << 20;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_come_out_whole_however_they_came_in() {
        let mut buffer = LineBuffer::default();
        buffer.extend(b"{\"a\"");
        assert_eq!(buffer.next_line(), Ok(None));
        buffer.extend(b":1}\nsecond\nthi");
        assert_eq!(buffer.next_line(), Ok(Some(&b"{\"a\":1}"[..])));
        assert_eq!(buffer.next_line(), Ok(Some(&b"second"[..])));
        assert_eq!(buffer.next_line(), Ok(None));
        buffer.extend(b"rd\n");
        assert_eq!(buffer.next_line(), Ok(Some(&b"third"[..])));
        assert_eq!(buffer.next_line(), Ok(None));
    }

    #[test]
    fn a_line_at_the_limit_passes_and_one_over_it_does_not() {
        let mut buffer = LineBuffer::default();
        buffer.extend(&vec![b'x'; MAX_LINE - 1]);
        assert_eq!(buffer.next_line(), Ok(None));
        buffer.extend(b"\n");
        assert_eq!(buffer.next_line().unwrap().unwrap().len(), MAX_LINE - 1);
        buffer.extend(&vec![b'x'; MAX_LINE]);
        assert_eq!(buffer.next_line(), Ok(None));
        buffer.extend(b"\n");
        assert_eq!(buffer.next_line(), Err(LineTooLong));
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_lines(
            lines in proptest::collection::vec("[a-z]{0,20}", 0..10),
            cuts in proptest::collection::vec(1_usize..7, 1..80),
        ) {
            let all: Vec<u8> = lines.iter().flat_map(|l| l.bytes().chain([b'\n'])).collect();
            let mut buffer = LineBuffer::default();
            let (mut rest, mut got) = (&all[..], Vec::new());
            for cut in cuts.iter().cycle() {
                while let Some(line) = buffer.next_line().unwrap() {
                    got.push(String::from_utf8(line.to_vec()).unwrap());
                }
                if rest.is_empty() { break; }
                let (now, later) = rest.split_at(rest.len().min(*cut));
                buffer.extend(now);
                rest = later;
            }
            prop_assert_eq!(got, lines);
        }
    }
}
