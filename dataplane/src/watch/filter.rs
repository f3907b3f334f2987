//! Which packets a watch is of: the language of pcap-filter(7), as far as it speaks of what the packet
//! path has parsed.
//!
//! Addresses and ports are those of the pods' packets, inside the tunnel. As there, `and` and `or` bind
//! alike, from left to right, `not` binds closer, and a value without a keyword takes the keywords of
//! the one before it: `port 80 or 443`.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::fib::PortId;
use crate::tunnel::OuterHeader;
use crate::verdict::DropReason;
use crate::wire::{Headers, IpVersion, ethernet, protocol};

/// Parentheses and `not` within each other; the parser calls itself for each.
const MAX_DEPTH: usize = 64;

/// What is said where something else was expected.
const UNDERSTOOD: &str = "understood are host, net, port and portrange, each with src or dst before \
    it; tcp, udp, icmp, icmp6, ip, ip6, proto N; greater N, less N, vni N, reason NAME, interface \
    NAME; and, or, not and parentheses";

/// What a filter looks at.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'p> {
    /// What was read of the pods' packet; `None` when nothing can be.
    pub headers: Option<&'p Headers>,
    /// The port that it came by.
    pub came_by: PortId,
    /// The VNI of the tunnel that it came by; looked for only if [`Filter::looks_at_vni`].
    pub came_through: Option<u32>,
    /// The port that it leaves by.
    pub leaves_by: PortId,
    /// The tunnel that it leaves through.
    pub leaves_through: Option<&'p OuterHeader>,
    /// Why it is dropped.
    pub reason: Option<DropReason>,
}

/// A filter that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    root: Test,
    looks_at_vni: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    And(Box<[Test]>),
    Or(Box<[Test]>),
    Not(Box<Test>),
    Version(IpVersion),
    Protocol(u8),
    Address(End, Net),
    /// A port in the range, both ends included.
    Port(End, u16, u16),
    /// At least so many bytes, Ethernet header included.
    Greater(u32),
    /// At most so many.
    Less(u32),
    Vni(u32),
    Reason(DropReason),
    Interface(PortId),
}

/// Which end of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Source,
    Destination,
    Either,
}

/// The bits that an address has where the mask has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Net {
    V4 { bits: u32, mask: u32 },
    V6 { bits: u128, mask: u128 },
}

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

impl Filter {
    /// Reads a filter; an empty one matches everything. `port` knows the attached interfaces.
    ///
    /// # Errors
    /// [`FilterError`] says where and what is understood.
    pub fn parse(text: &str, port: &dyn Fn(&str) -> Option<PortId>) -> Result<Self, FilterError> {
        let mut parser = Parser {
            words: words(text),
            next: 0,
            depth: 0,
            last: None,
            port,
        };
        let root = match parser.peek() {
            None => Test::And(Box::default()),
            Some(_) => parser.expression()?,
        };
        if let Some(word) = parser.take() {
            return Err(word.wrong("'and' or 'or' is missing before it"));
        }
        let looks_at_vni = root.looks_at_vni();
        Ok(Self { root, looks_at_vni })
    }

    /// Whether the packet is one of those.
    #[inline]
    pub fn matches(&self, seen: &Seen<'_>) -> bool {
        self.root.matches(seen)
    }

    /// Whether it asks for a VNI.
    pub fn looks_at_vni(&self) -> bool {
        self.looks_at_vni
    }
}

impl Test {
    fn matches(&self, seen: &Seen<'_>) -> bool {
        let Seen { headers, .. } = *seen;
        match self {
            Self::And(tests) => tests.iter().all(|test| test.matches(seen)),
            Self::Or(tests) => tests.iter().any(|test| test.matches(seen)),
            Self::Not(test) => !test.matches(seen),
            Self::Version(version) => headers.is_some_and(|h| h.version == *version),
            Self::Protocol(number) => headers.is_some_and(|h| h.protocol == *number),
            Self::Address(end, net) => {
                headers.is_some_and(|h| end.of((h.src, h.dst), |address| net.contains(address)))
            }
            Self::Port(end, low, high) => headers
                .and_then(Headers::ports)
                .is_some_and(|ports| end.of(ports, |port| (*low..=*high).contains(&port))),
            Self::Greater(least) => headers.is_some_and(|h| length(h) >= *least),
            Self::Less(most) => headers.is_some_and(|h| length(h) <= *most),
            Self::Vni(vni) => {
                let leaves = seen.leaves_through.map(|outer| outer.vni().get());
                seen.came_through == Some(*vni) || leaves == Some(*vni)
            }
            Self::Reason(reason) => seen.reason == Some(*reason),
            Self::Interface(port) => seen.came_by == *port || seen.leaves_by == *port,
        }
    }

    fn looks_at_vni(&self) -> bool {
        match self {
            Self::And(tests) | Self::Or(tests) => tests.iter().any(Self::looks_at_vni),
            Self::Not(test) => test.looks_at_vni(),
            Self::Vni(_) => true,
            _ => false,
        }
    }
}

/// Of the pod's packet, its Ethernet header included.
#[inline]
fn length(headers: &Headers) -> u32 {
    const ETHERNET: u32 = 14;
    const _: () = assert!(ETHERNET as usize == ethernet::HEADER_LEN);
    headers.l3_len.saturating_add(ETHERNET)
}

impl End {
    #[inline]
    fn of<T: Copy>(self, (source, destination): (T, T), is: impl Fn(T) -> bool) -> bool {
        match self {
            Self::Source => is(source),
            Self::Destination => is(destination),
            Self::Either => is(source) || is(destination),
        }
    }
}

impl Net {
    fn new(net: IpNet) -> Self {
        match net {
            IpNet::V4(net) => Self::V4 {
                bits: net.network().to_bits(),
                mask: net.netmask().to_bits(),
            },
            IpNet::V6(net) => Self::V6 {
                bits: net.network().to_bits(),
                mask: net.netmask().to_bits(),
            },
        }
    }

    #[inline]
    fn contains(self, address: IpAddr) -> bool {
        match (self, address) {
            (Self::V4 { bits, mask }, IpAddr::V4(address)) => address.to_bits() & mask == bits,
            (Self::V6 { bits, mask }, IpAddr::V6(address)) => address.to_bits() & mask == bits,
            _ => false,
        }
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

    fn test(self) -> Test {
        match self {
            Self::Version(version) => Test::Version(version),
            Self::Number(number) => Test::Protocol(number),
        }
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

    fn expression(&mut self) -> Result<Test, FilterError> {
        let mut all = self.factor()?;
        while let Some(is_and) = self.take_if(|word| match word {
            "and" | "&&" => Some(true),
            "or" | "||" => Some(false),
            _ => None,
        }) {
            let next = self.factor()?;
            // A row of one kind is one test, so that it is not deep.
            all = match (all, is_and) {
                (Test::And(tests), true) => Test::And(with(tests, next)),
                (Test::Or(tests), false) => Test::Or(with(tests, next)),
                (test, true) => Test::And([test, next].into()),
                (test, false) => Test::Or([test, next].into()),
            };
        }
        Ok(all)
    }

    fn factor(&mut self) -> Result<Test, FilterError> {
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
            Test::Not(Box::new(self.factor()?))
        };
        self.depth -= 1;
        Ok(test)
    }

    /// A test that begins with `word`.
    fn test(&mut self, word: Word<'t>) -> Result<Test, FilterError> {
        match word.text {
            "proto" => return Ok(Test::Protocol(self.protocol()?)),
            "greater" => return Ok(Test::Greater(number(self.value("a size")?)?)),
            "less" => return Ok(Test::Less(number(self.value("a size")?)?)),
            "vni" => return Ok(Test::Vni(number(self.value("a VNI")?)?)),
            "reason" => {
                let name = self.value("the name of a reason")?;
                let wanted = name.text.to_ascii_lowercase().replace('-', "_");
                let mut all = DropReason::ALL.iter();
                let found = all.find(|reason| reason.name() == wanted);
                let wrong = || name.wrong("no reason to drop; see `podway explain`");
                return found.map(|&reason| Test::Reason(reason)).ok_or_else(wrong);
            }
            "interface" => {
                let name = self.value("the name of an interface")?;
                let wrong = || name.wrong("no attached port; see `podway port show`");
                let port = (self.port)(name.text);
                return port.map(Test::Interface).ok_or_else(wrong);
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
            let number = Test::Protocol(self.protocol()?);
            return Ok(Test::And([of.test(), number].into()));
        }
        let end = self.take_if(|word| match word {
            "src" => Some(End::Source),
            "dst" => Some(End::Destination),
            _ => None,
        });
        let kind = self.take_if(Kind::of);
        let qualifiers = match (of, end, kind) {
            (Some(of), None, None) => return Ok(of.test()),
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
        let test = qualified(qualifiers, value)?;
        Ok(match qualifiers.of {
            Some(of) => Test::And([of.test(), test].into()),
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

fn with(tests: Box<[Test]>, next: Test) -> Box<[Test]> {
    tests.into_iter().chain([next]).collect()
}

fn number<T: std::str::FromStr>(word: Word<'_>) -> Result<T, FilterError> {
    let parsed = word.text.parse();
    parsed.map_err(|_| word.wrong(format!("no number that fits; {UNDERSTOOD}")))
}

fn qualified(
    Qualifiers { end, kind, .. }: Qualifiers,
    value: Word<'_>,
) -> Result<Test, FilterError> {
    match kind {
        Kind::Host => {
            let address = value.text.parse::<IpAddr>();
            let address = address.map_err(|_| value.wrong(format!("no address; {UNDERSTOOD}")))?;
            Ok(Test::Address(end, Net::new(address.into())))
        }
        Kind::Net => {
            let whole = || value.text.parse::<IpAddr>().map(IpNet::from);
            let net = value.text.parse::<IpNet>().or_else(|_| whole());
            let net = net.map_err(|_| value.wrong("no network; write it like 10.0.1.0/24"))?;
            if net.trunc() != net {
                let network = net.trunc();
                return Err(value.wrong(format!("it has host bits; write {network}")));
            }
            Ok(Test::Address(end, Net::new(net)))
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

#[cfg(test)]
mod tests;
