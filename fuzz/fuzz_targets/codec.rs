//! Bytes as they come from a socket, through the line buffer and the decoder of both protocols.
//!
//! Input: a byte for the size of the parts that the bytes come in, then the bytes.
//!
//! Rules: no panic; the lines are those that lie between newlines, however they came in; a request
//! that is understood reads the same after it was written; an answer that is understood is still
//! understood then.
#![no_main]

use std::fmt::Debug;

use podway_proto::codec::{LineBuffer, decode, encode};
use podway_proto::{control, dataplane};
use serde::Serialize;
use serde::de::DeserializeOwned;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((size, bytes)) = input.split_first() else {
        return;
    };
    let mut buffer = LineBuffer::default();
    let mut lines = Vec::new();
    for part in bytes.chunks(usize::from(*size).max(1)) {
        buffer.extend(part);
        while let Some(line) = buffer
            .next_line()
            .expect("no input is as long as the limit")
        {
            lines.push(line.to_vec());
        }
    }
    let mut expected: Vec<_> = bytes.split(|byte| *byte == b'\n').collect();
    // What follows the last newline is no line yet.
    expected.pop();
    assert_eq!(lines, expected);
    for line in &lines {
        reads_what_it_writes::<dataplane::Request>(line);
        reads_what_it_writes::<control::Request>(line);
        // Not always the same: serde_json may read a fraction one bit off.
        rewritten::<dataplane::Response>(line);
        rewritten::<control::Response>(line);
    }
});

fn reads_what_it_writes<T: DeserializeOwned + Serialize + PartialEq + Debug>(line: &[u8]) {
    if let Some((request, again)) = rewritten::<T>(line) {
        assert_eq!(request, again);
    }
}

/// What a line says, if it is understood, and what it says after it was written.
fn rewritten<T: DeserializeOwned + Serialize>(line: &[u8]) -> Option<(T, T)> {
    let document = decode::<T>(line).ok()?;
    let written = encode(&document);
    let (newline, text) = written.split_last().expect("a line");
    assert_eq!(*newline, b'\n');
    assert!(!text.contains(&b'\n'), "two lines");
    let again = decode::<T>(text).expect("what was written is understood");
    Some((document, again))
}
