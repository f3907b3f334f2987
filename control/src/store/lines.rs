//! The form of the state file: a line of JSON for each step, with a checksum each.
//!
//! ```text
//! {"crc":"0ef1b7d1","schema":2,"generation":5,"entries":2}
//! {"crc":"8c1f0e77","put":[{"node":{"name":"b",...}}]}
//! {"crc":"31b4c6a0","put":[{"route":{"prefix":"10.9.0.0/16",...}}]}
//! {"crc":"d24c9a15","put":[{"no-route":"10.9.0.0/16"}]}
//! ```
//!
//! The first line says how many lines of one entry follow: everything that was desired when the
//! file was written, and none of it is ever missing. Lines after those came later, one for each
//! group of changes that was acknowledged together: each comes into force whole or not at all.
//!
//! A checksum is the CRC-32 of the line before's checksum and of what the line itself says after
//! its own. So a line that is changed, missing or in another's place is found, and by its number.

use podway_proto::control::RouteSpec;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::entry::Entry;
use crate::state::Desired;

/// Version of this form. A newer one is refused and not overwritten.
pub(super) const SCHEMA: u32 = 2;

/// What each line begins with, its checksum as hexadecimal digits behind it.
const BEGIN: &[u8] = b"{\"crc\":\"";
const DIGITS: usize = 8;
/// Where that begins which a line's checksum is of.
const BODY: usize = BEGIN.len() + DIGITS;

/// The first line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Head {
    /// [`SCHEMA`].
    pub schema: u32,
    /// One more than that of the file before.
    pub generation: u64,
    /// Lines of one entry that follow.
    pub entries: usize,
}

#[derive(Serialize)]
struct Put<'a> {
    put: &'a [Entry],
}

// In every later version the first line is of this form and may say more.
#[derive(Deserialize)]
struct HeadLine {
    #[serde(rename = "crc")]
    _crc: IgnoredAny,
    schema: u32,
    generation: u64,
    entries: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PutLine {
    #[serde(rename = "crc")]
    _crc: IgnoredAny,
    put: Vec<Entry>,
}

/// Writes lines one behind the other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Chain {
    /// Checksum of the last line.
    sum: u32,
}

impl Chain {
    /// Adds the first line to `out`.
    pub(super) fn head(&mut self, out: &mut Vec<u8>, head: Head) {
        self.line(out, &head);
    }

    /// Adds the line of these entries to `out`.
    pub(super) fn put(&mut self, out: &mut Vec<u8>, entries: &[Entry]) {
        self.line(out, &Put { put: entries });
    }

    fn line(&mut self, out: &mut Vec<u8>, said: &impl Serialize) {
        out.extend_from_slice(BEGIN);
        let digits = out.len();
        out.extend_from_slice(&[b'0'; DIGITS]);
        let body = out.len();
        out.push(b'"');
        serde_json::to_writer(&mut *out, said)
            .unwrap_or_else(|error| unreachable!("an entry failed to serialise: {error}"));
        // The object has begun before.
        out[body + 1] = b',';
        self.sum = checksum(self.sum, &out[body..]);
        out[digits..body].copy_from_slice(format!("{:08x}", self.sum).as_bytes());
        out.push(b'\n');
    }
}

fn checksum(before: u32, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&before.to_be_bytes());
    hasher.update(body);
    hasher.finalize()
}

/// What is wrong with a file, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Flaw {
    /// The first line that is wrong, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub what: String,
}

/// What a file says, as far as it can be trusted.
#[derive(Debug)]
pub(super) struct Content {
    /// The first line, if it is whole.
    pub head: Option<Head>,
    /// What was desired when the file was written, or the first flaw in it.
    pub snapshot: Result<Desired, Flaw>,
    /// What was changed since, up to the first flaw in that.
    pub changes: Vec<Entry>,
    /// The first flaw behind the snapshot.
    pub flaw: Option<Flaw>,
    /// The last line, if it was not written to its end. It was never acknowledged.
    pub torn: Option<usize>,
    /// How many lines there are.
    pub lines: usize,
    /// What the next line follows; `None` if none can be added to this file.
    pub end: Option<Chain>,
}

impl Content {
    /// The state that the file leaves.
    ///
    /// # Errors
    /// Its first flaw.
    pub(super) fn state(self) -> Result<Desired, Flaw> {
        let mut state = self.snapshot?;
        if let Some(flaw) = self.flaw {
            return Err(flaw);
        }
        self.changes
            .into_iter()
            .for_each(|entry| entry.put(&mut state));
        Ok(state)
    }
}

/// Whether a file is of this form, or of none.
pub(super) fn are_in(bytes: &[u8]) -> bool {
    bytes.starts_with(BEGIN) || !bytes.starts_with(b"{")
}

/// Reads a file of this form.
pub(super) fn read(bytes: &[u8]) -> Content {
    let mut lines = Lines {
        rest: bytes,
        number: 0,
        chain: Chain::default(),
    };
    let mut content = Content {
        head: None,
        snapshot: Ok(Desired::default()),
        changes: Vec::new(),
        flaw: None,
        torn: None,
        lines: 0,
        end: None,
    };
    let head = match lines.next() {
        Some(Line::Whole(text)) => parse::<HeadLine>(text).map(|line| Head {
            schema: line.schema,
            generation: line.generation,
            entries: line.entries,
        }),
        Some(Line::Torn) => Err("it is cut off".to_owned()),
        Some(Line::Damaged(what)) => Err(what.to_owned()),
        None => Err("the file is empty".to_owned()),
    };
    match head {
        Ok(head) => {
            content.head = Some(head);
            content.snapshot = lines.snapshot(head.entries);
            lines.changes(&mut content);
        }
        Err(what) => {
            content.snapshot = Err(Flaw { line: 1, what });
            lines.by_ref().for_each(drop);
        }
    }
    if !bytes.ends_with(b"\n") {
        content.end = None;
    }
    content.lines = lines.number;
    content
}

/// One line as it is found.
enum Line<'a> {
    /// It says what was written.
    Whole(&'a [u8]),
    /// It is the last one and was not written to its end.
    Torn,
    /// It says something else.
    Damaged(&'static str),
}

struct Lines<'a> {
    rest: &'a [u8],
    /// Of the last line.
    number: usize,
    chain: Chain,
}

impl<'a> Iterator for Lines<'a> {
    type Item = Line<'a>;

    fn next(&mut self) -> Option<Line<'a>> {
        if self.rest.is_empty() {
            return None;
        }
        self.number += 1;
        let end = self.rest.iter().position(|&byte| byte == b'\n');
        let (line, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest.get(1..).unwrap_or_default();
        let verified = self.verify(line);
        Some(match verified {
            Ok(()) => Line::Whole(line),
            // Only the last line can be torn, since the next is written when it is on the disk. The
            // kernel has nothing but zeros in place of blocks that did not get there.
            Err(_) if self.rest.is_empty() && (end.is_none() || line.contains(&0)) => Line::Torn,
            Err(what) => Line::Damaged(what),
        })
    }
}

impl Lines<'_> {
    fn verify(&mut self, line: &[u8]) -> Result<(), &'static str> {
        let digits = line.strip_prefix(BEGIN).and_then(|rest| rest.get(..DIGITS));
        let digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let sum = digits
            .filter(|digits| digits.iter().all(digit))
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u32::from_str_radix(digits, 16).ok())
            .ok_or("it does not begin with a checksum")?;
        let expected = checksum(self.chain.sum, &line[BODY..]);
        // Also if it is wrong: the next line follows this one as it is written here.
        self.chain.sum = sum;
        if sum == expected {
            Ok(())
        } else {
            Err("its checksum is another's: it was changed, or a line before it is missing")
        }
    }

    /// Takes so many lines of one entry.
    fn snapshot(&mut self, entries: usize) -> Result<Desired, Flaw> {
        let (mut nodes, mut routes, mut ports) = (Vec::new(), Vec::new(), Vec::new());
        let mut first = Ok(());
        for taken in 0..entries {
            let entry = match self.next() {
                Some(Line::Whole(text)) => parse::<PutLine>(text).map(|line| line.put),
                Some(Line::Damaged(what)) => Err(what.to_owned()),
                Some(Line::Torn) => Err("it is cut off".to_owned()),
                None => {
                    let line = self.number + 1;
                    let what =
                        format!("it is missing: the file has {taken} of its {entries} entries");
                    first = first.and(Err(Flaw { line, what }));
                    break;
                }
            };
            match entry {
                Ok(entries) => {
                    for entry in entries {
                        match entry {
                            Entry::Node(node) => nodes.push((node.name.clone(), node)),
                            Entry::Route(RouteSpec { prefix, via }) => routes.push((prefix, via)),
                            Entry::Port(port) => ports.push((port.interface, port.role)),
                            Entry::NoNode(_) | Entry::NoRoute(_) | Entry::NoPort(_) => {}
                        }
                    }
                }
                Err(what) => {
                    let line = self.number;
                    first = first.and(Err(Flaw { line, what }));
                }
            }
        }
        first.map(|()| Desired {
            // They are in order, and so made into maps at once.
            nodes: nodes.into_iter().collect(),
            routes: routes.into_iter().collect(),
            ports: ports.into_iter().collect(),
        })
    }

    /// Takes the lines that are left.
    fn changes(&mut self, content: &mut Content) {
        content.end = Some(self.chain);
        while let Some(line) = self.next() {
            let entries = match line {
                Line::Whole(text) => parse::<PutLine>(text),
                Line::Torn => {
                    content.torn = Some(self.number);
                    content.end = None;
                    return;
                }
                Line::Damaged(what) => Err(what.to_owned()),
            };
            match entries {
                Ok(line) if content.flaw.is_none() => {
                    content.changes.extend(line.put);
                    content.end = Some(self.chain);
                }
                Ok(_) => {}
                Err(what) => {
                    let line = self.number;
                    content.flaw.get_or_insert(Flaw { line, what });
                }
            }
        }
    }
}

fn parse<'a, T: Deserialize<'a>>(line: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(line).map_err(|error| format!("it cannot be read: {error}"))
}
