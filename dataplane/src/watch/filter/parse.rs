//! Reads a filter.
//!
//! Addresses and ports are those of the pods' packets, inside the tunnel. As in pcap-filter(7), `and` and
//! `or` bind alike, from left to right, `not` binds closer, and a value without a keyword takes the
//! keywords of the one before it: `port 80 or 443`.

use std::net::IpAddr;

use ipnet::IpNet;
use podway_proto::reasons::{self, Fate};

use crate::fib::PortId;
use crate::verdict::DropReason;
use crate::wire::{IpVersion, protocol};

use super::{End, Test};

/// Parentheses and `not` within each other; the parser calls itself for each.
const MAX_DEPTH: usize = 64;

/// What is said where something else was expected.
const UNDERSTOOD: &str = "understood are host, net, port and portrange, each with src or dst before \
    it; tcp, udp, icmp, icmp6, ip, ip6, proto N; greater N, less N, vni N, reason NAME, interface \
    NAME; and, or, not and parentheses";

/// A filter that is none: where, and what is wrong there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// A word that is not understood there.
    #[error("the filter at '{word}' (character {at}): {what}")]
    Word {
        /// The word.
        word: String,
        /// Where it begins, from 1.
        at: usize,
        /// What is wrong with it.
        what: String,
    },
    /// It ends too early.
    #[error("the filter ends where {0} is missing; {UNDERSTOOD}")]
    End(&'static str),
}

/// What a filter says.
pub(super) enum Tree {
    One(Test),
    Not(Box<Tree>),
    All(Vec<Tree>),
    Any(Vec<Tree>),
}

/// Reads a filter; an empty one is a test of nothing. `port` knows the attached interfaces.
pub(super) fn parse(
    text: &str,
    port: &dyn Fn(&str) -> Option<PortId>,
) -> Result<Tree, FilterError> {
    let mut parser = Parser {
        words: words(text),
        next: 0,
        depth: 0,
        last: None,
        port,
    };
    let tree = match parser.peek() {
        None => Tree::All(Vec::new()),
        Some(_) => parser.expression()?,
    };
    match parser.take() {
        Some(word) => Err(word.wrong("'and' or 'or' is missing before it")),
        None => Ok(tree),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Word<'t> {
    text: &'t str,
    /// Where it begins, in characters from 1.
    at: usize,
}

impl Word<'_> {
    fn wrong(self, what: impl Into<String>) -> FilterError {
        FilterError::Word {
            word: self.text.to_owned(),
            at: self.at,
            what: what.into(),
        }
    }
}

/// Words are set apart by spaces; parentheses and `!` are words of their own.
fn words(text: &str) -> Vec<Word<'_>> {
    let mut words = Vec::new();
    let mut begin = None;
    for (position, (offset, letter)) in (1..).zip(text.char_indices()) {
        let alone = matches!(letter, '(' | ')' | '!');
        if alone || letter.is_whitespace() {
            if let Some((at, from)) = begin.take() {
                words.extend(text.get(from..offset).map(|text| Word { text, at }));
            }
        } else if begin.is_none() {
            begin = Some((position, offset));
        }
        if alone {
            let text = text.get(offset..offset + letter.len_utf8());
            words.extend(text.map(|text| Word { text, at: position }));
        }
    }
    if let Some((at, from)) = begin {
        words.extend(text.get(from..).map(|text| Word { text, at }));
    }
    words
}

/// The keywords before a value.
#[derive(Debug, Clone, Copy)]
struct Qualifiers {
    /// `tcp`, `udp`, `ip` or one of the others before it.
    of: Option<ProtocolName>,
    end: End,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Host,
    Net,
    Port,
    PortRange,
}

#[derive(Debug, Clone, Copy)]
enum ProtocolName {
    Version(IpVersion),
    Number(u8),
}

impl ProtocolName {
    fn of(word: &str) -> Option<Self> {
        Some(match word {
            "ip" => Self::Version(IpVersion::V4),
            "ip6" => Self::Version(IpVersion::V6),
            "tcp" => Self::Number(protocol::TCP),
            "udp" => Self::Number(protocol::UDP),
            "icmp" => Self::Number(protocol::ICMP),
            "icmp6" => Self::Number(protocol::ICMPV6),
            _ => return None,
        })
    }

    fn tree(self) -> Tree {
        Tree::One(match self {
            Self::Version(version) => Test::Version(version),
            Self::Number(number) => Test::Protocol(number),
        })
    }
}

impl Kind {
    fn of(word: &str) -> Option<Self> {
        Some(match word {
            "host" => Self::Host,
            "net" => Self::Net,
            "port" => Self::Port,
            "portrange" => Self::PortRange,
            _ => return None,
        })
    }
}

struct Parser<'t> {
    words: Vec<Word<'t>>,
    next: usize,
    depth: usize,
    /// Of the value before, for one that has none of its own.
    last: Option<Qualifiers>,
    port: &'t dyn Fn(&str) -> Option<PortId>,
}

impl<'t> Parser<'t> {
    fn peek(&self) -> Option<Word<'t>> {
        self.words.get(self.next).copied()
    }

    fn take(&mut self) -> Option<Word<'t>> {
        let word = self.peek()?;
        self.next += 1;
        Some(word)
    }

    /// Takes the next word if `is` knows it.
    fn take_if<T>(&mut self, is: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let known = is(self.peek()?.text)?;
        self.next += 1;
        Some(known)
    }

    fn value(&mut self, missing: &'static str) -> Result<Word<'t>, FilterError> {
        self.take().ok_or(FilterError::End(missing))
    }

    fn expression(&mut self) -> Result<Tree, FilterError> {
        let mut all = self.factor()?;
        while let Some(is_and) = self.take_if(|word| match word {
            "and" | "&&" => Some(true),
            "or" | "||" => Some(false),
            _ => None,
        }) {
            let next = self.factor()?;
            // A row of one kind is one test, so that it is not deep.
            match (&mut all, is_and) {
                (Tree::All(row), true) | (Tree::Any(row), false) => row.push(next),
                (_, true) => all = Tree::All(vec![all, next]),
                (_, false) => all = Tree::Any(vec![all, next]),
            }
        }
        Ok(all)
    }

    fn factor(&mut self) -> Result<Tree, FilterError> {
        let word = self.value("a test")?;
        if !matches!(word.text, "not" | "!" | "(") {
            return self.test(word);
        }
        if self.depth >= MAX_DEPTH {
            return Err(word.wrong(format!("more than {MAX_DEPTH} within each other")));
        }
        self.depth += 1;
        let test = if word.text == "(" {
            let inside = self.expression()?;
            self.take_if(|word| (word == ")").then_some(()))
                .ok_or_else(|| match self.peek() {
                    Some(word) => word.wrong("'and', 'or' or ')' is missing before it"),
                    None => FilterError::End("')'"),
                })?;
            inside
        } else {
            Tree::Not(Box::new(self.factor()?))
        };
        self.depth -= 1;
        Ok(test)
    }

    /// A test that begins with `word`.
    fn test(&mut self, word: Word<'t>) -> Result<Tree, FilterError> {
        match word.text {
            "proto" => return Ok(Tree::One(Test::Protocol(self.protocol()?))),
            "greater" => return Ok(Tree::One(Test::Greater(number(self.value("a size")?)?))),
            "less" => return Ok(Tree::One(Test::Less(number(self.value("a size")?)?))),
            "vni" => return Ok(Tree::One(Test::Vni(number(self.value("a VNI")?)?))),
            "reason" => {
                let name = self.value("the name of a reason")?;
                return Ok(Tree::One(Test::Reason(reason(name)?)));
            }
            "interface" => {
                let name = self.value("the name of an interface")?;
                let wrong = || name.wrong("no attached port; see `podway port show`");
                let port = (self.port)(name.text);
                return port.map(Test::Interface).map(Tree::One).ok_or_else(wrong);
            }
            _ => {}
        }
        // The words before a value.
        self.next -= 1;
        let of = self.take_if(ProtocolName::of);
        if let Some(of) = of
            && self
                .take_if(|word| (word == "proto").then_some(()))
                .is_some()
        {
            let number = Tree::One(Test::Protocol(self.protocol()?));
            return Ok(Tree::All(vec![of.tree(), number]));
        }
        let end = self.take_if(|word| match word {
            "src" => Some(End::Source),
            "dst" => Some(End::Destination),
            _ => None,
        });
        let kind = self.take_if(Kind::of);
        let qualifiers = match (of, end, kind) {
            (Some(of), None, None) => return Ok(of.tree()),
            (None, None, None) => match self.last {
                Some(last) => last,
                // As in pcap, an address alone is a host.
                None if word.text.parse::<IpAddr>().is_ok() => Qualifiers {
                    of,
                    end: End::Either,
                    kind: Kind::Host,
                },
                None => return Err(word.wrong(UNDERSTOOD)),
            },
            (of, end, kind) => Qualifiers {
                of,
                end: end.unwrap_or(End::Either),
                kind: kind.unwrap_or(Kind::Host),
            },
        };
        self.last = Some(qualifiers);
        let value = self.value("a value")?;
        let test = Tree::One(qualified(qualifiers, value)?);
        Ok(match qualifiers.of {
            Some(of) => Tree::All(vec![of.tree(), test]),
            None => test,
        })
    }

    fn protocol(&mut self) -> Result<u8, FilterError> {
        let word = self.value("a protocol")?;
        match ProtocolName::of(word.text) {
            Some(ProtocolName::Number(number)) => Ok(number),
            _ => number(word),
        }
    }
}

fn number<T: std::str::FromStr>(word: Word<'_>) -> Result<T, FilterError> {
    let parsed = word.text.parse();
    parsed.map_err(|_| word.wrong(format!("no number that fits; {UNDERSTOOD}")))
}

/// Only what a worker drops it has had before.
fn reason(name: Word<'_>) -> Result<DropReason, FilterError> {
    let wanted = name.text.to_ascii_lowercase().replace('-', "_");
    let mut all = DropReason::ALL.iter();
    if let Some(found) = all.find(|reason| reason.name() == wanted) {
        return Ok(*found);
    }
    let other = reasons::all().find(|reason| reason.name == wanted);
    let what = match other.map(|reason| reason.fate) {
        Some(Fate::Refuse) => "the program on the port refuses these packets",
        Some(Fate::Pass) => "the program on the port leaves these packets to the kernel",
        Some(Fate::Lose) => "these packets are lost",
        Some(Fate::Drop) | None => {
            return Err(name.wrong("no reason to drop; see `podway explain`"));
        }
    };
    Err(name.wrong(format!(
        "{what} before a worker sees them, so that nobody can watch them; see `podway drops`"
    )))
}

fn qualified(
    Qualifiers { end, kind, .. }: Qualifiers,
    value: Word<'_>,
) -> Result<Test, FilterError> {
    match kind {
        Kind::Host => {
            let address = value.text.parse::<IpAddr>();
            let address = address.map_err(|_| value.wrong(format!("no address; {UNDERSTOOD}")))?;
            Ok(Test::address(end, address.into()))
        }
        Kind::Net => {
            let whole = || value.text.parse::<IpAddr>().map(IpNet::from);
            let net = value.text.parse::<IpNet>().or_else(|_| whole());
            let net = net.map_err(|_| value.wrong("no network; write it like 10.0.1.0/24"))?;
            if net.trunc() != net {
                let network = net.trunc();
                return Err(value.wrong(format!("it has host bits; write {network}")));
            }
            Ok(Test::address(end, net))
        }
        Kind::Port => {
            let port = number(value)?;
            Ok(Test::Port(end, port, port))
        }
        Kind::PortRange => {
            let range = value.text.split_once('-').and_then(|(low, high)| {
                let (low, high) = (low.parse().ok()?, high.parse().ok()?);
                (low <= high).then_some(Test::Port(end, low, high))
            });
            range.ok_or_else(|| value.wrong("no range of ports; write it like 8000-8080"))
        }
    }
}
