//! Which packets a watch is of: the language of pcap-filter(7), as far as it speaks of what the packet
//! path has parsed.
//!
//! A filter is read once, by [`parse`], and becomes a row of tests of which each names the next one, as
//! in a BPF program: most packets are done with the first.

mod parse;

use std::net::IpAddr;

use ipnet::IpNet;

use crate::fib::{NextHop, PortId};
use crate::verdict::DropReason;
use crate::wire::{Headers, IpVersion, ethernet};

pub use parse::FilterError;
use parse::Tree;

/// What a filter looks at.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'p> {
    /// What was read of the pods' packet; `None` when nothing can be.
    pub headers: Option<&'p Headers>,
    /// The port that it came by.
    pub came_by: PortId,
    /// The VNI of the tunnel that it came by; looked for only if [`Filter::looks_at_vni`].
    pub came_through: Option<u32>,
    /// Where it leaves to.
    pub leaves: Leaves<'p>,
    /// Why it is dropped.
    pub reason: Option<DropReason>,
}

/// What is known of where a packet leaves to.
#[derive(Debug, Clone, Copy)]
pub enum Leaves<'p> {
    /// Nothing.
    Unknown,
    /// The port, and the VNI of the tunnel, where it is in one of ours.
    By(PortId, Option<u32>),
    /// All of it.
    To(&'p NextHop),
}

impl Leaves<'_> {
    fn port(self) -> PortId {
        match self {
            Self::Unknown => PortId::NONE,
            Self::By(port, _) => port,
            Self::To(next_hop) => next_hop.port,
        }
    }

    #[cold]
    fn vni(self) -> Option<u32> {
        match self {
            Self::Unknown => None,
            Self::By(_, vni) => vni,
            Self::To(next_hop) => next_hop.tunnel().map(|outer| outer.vni().get()),
        }
    }
}

/// A filter that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    steps: Box<[Step]>,
    first: Next,
    looks_at_vni: bool,
}

/// One test, and how to go on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Step {
    test: Test,
    yes: Next,
    no: Next,
}

/// Number of a step, [`MATCH`] or [`NO_MATCH`].
type Next = u32;

/// The packet is one of those.
const MATCH: Next = Next::MAX;
/// The packet is none of those.
const NO_MATCH: Next = Next::MAX - 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Test {
    Version(IpVersion),
    Protocol(u8),
    V4(End, Net<u32>),
    V6(End, Net<u128>),
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
struct Net<T> {
    bits: T,
    mask: T,
}

impl Filter {
    /// Reads a filter; an empty one matches everything. `port` knows the attached interfaces.
    ///
    /// # Errors
    /// [`FilterError`] says where and what is understood.
    pub fn parse(text: &str, port: &dyn Fn(&str) -> Option<PortId>) -> Result<Self, FilterError> {
        let tree = parse::parse(text, port)?;
        let mut steps = Vec::new();
        let first = lay_out(tree, MATCH, NO_MATCH, &mut steps);
        Ok(Self {
            first,
            looks_at_vni: steps.iter().any(|step| matches!(step.test, Test::Vni(_))),
            steps: steps.into(),
        })
    }

    /// A filter that matches what any of these does.
    pub fn any_of<'f>(filters: impl IntoIterator<Item = &'f Self>) -> Self {
        let mut any = Self {
            steps: Box::default(),
            first: NO_MATCH,
            looks_at_vni: false,
        };
        let mut steps = Vec::new();
        for filter in filters {
            // What does not match it goes on with those before.
            let (before, shift) = (any.first, steps.len());
            let shifted = |next| match next {
                MATCH => MATCH,
                NO_MATCH => before,
                step => Next::try_from(shift).map_or(NO_MATCH, |shift| step + shift),
            };
            steps.extend(filter.steps.iter().map(|step| Step {
                test: step.test,
                yes: shifted(step.yes),
                no: shifted(step.no),
            }));
            any.first = shifted(filter.first);
            any.looks_at_vni |= filter.looks_at_vni;
        }
        any.steps = steps.into();
        any
    }

    /// Whether the packet is one of those.
    #[inline]
    pub fn matches(&self, seen: &Seen<'_>) -> bool {
        let mut next = self.first;
        // This ends: a step leads to those that were laid out before it.
        while let Some(step) = self.steps.get(next as usize) {
            next = match step.test.holds(seen) {
                true => step.yes,
                false => step.no,
            };
        }
        next == MATCH
    }

    /// Whether it asks for a VNI.
    pub fn looks_at_vni(&self) -> bool {
        self.looks_at_vni
    }

    /// Whether it asks why a packet is dropped.
    pub fn looks_at_reason(&self) -> bool {
        let mut tests = self.steps.iter().map(|step| step.test);
        tests.any(|test| matches!(test, Test::Reason(_)))
    }
}

/// Lays out the steps of `tree`, from its end to its beginning, which is returned.
fn lay_out(tree: Tree, yes: Next, no: Next, steps: &mut Vec<Step>) -> Next {
    match tree {
        Tree::One(test) => {
            steps.push(Step { test, yes, no });
            Next::try_from(steps.len() - 1).unwrap_or(NO_MATCH)
        }
        Tree::Not(tree) => lay_out(*tree, no, yes, steps),
        Tree::All(row) => {
            let row = row.into_iter().rev();
            row.fold(yes, |next, tree| lay_out(tree, next, no, steps))
        }
        Tree::Any(row) => {
            let row = row.into_iter().rev();
            row.fold(no, |next, tree| lay_out(tree, yes, next, steps))
        }
    }
}

impl Test {
    /// Whether an address at that end is in the network.
    fn address(end: End, net: IpNet) -> Self {
        match net {
            IpNet::V4(net) => Self::V4(
                end,
                Net {
                    bits: net.network().to_bits(),
                    mask: net.netmask().to_bits(),
                },
            ),
            IpNet::V6(net) => Self::V6(
                end,
                Net {
                    bits: net.network().to_bits(),
                    mask: net.netmask().to_bits(),
                },
            ),
        }
    }

    // Inlined, every field of the packet would be read before the first test; among them the bytes of an
    // IPv4 address as half of an IPv6 one, which waits until they have reached the cache: 5 ns in all.
    #[inline(never)]
    fn holds(&self, seen: &Seen<'_>) -> bool {
        let Seen { headers, .. } = *seen;
        match self {
            Self::Version(version) => headers.is_some_and(|h| h.version == *version),
            Self::Protocol(number) => headers.is_some_and(|h| h.protocol == *number),
            Self::V4(end, net) => headers.is_some_and(|h| {
                end.of(&h.src, &h.dst, |address| match address {
                    IpAddr::V4(address) => address.to_bits() & net.mask == net.bits,
                    IpAddr::V6(_) => false,
                })
            }),
            Self::V6(end, net) => headers.is_some_and(|h| {
                end.of(&h.src, &h.dst, |address| match address {
                    IpAddr::V4(_) => false,
                    IpAddr::V6(address) => address.to_bits() & net.mask == net.bits,
                })
            }),
            Self::Port(end, low, high) => headers
                .and_then(Headers::ports)
                .is_some_and(|(from, to)| end.of(&from, &to, |port| (*low..=*high).contains(port))),
            Self::Greater(least) => headers.is_some_and(|h| length(h) >= *least),
            Self::Less(most) => headers.is_some_and(|h| length(h) <= *most),
            Self::Vni(vni) => seen.came_through == Some(*vni) || seen.leaves.vni() == Some(*vni),
            Self::Reason(reason) => seen.reason == Some(*reason),
            Self::Interface(port) => seen.came_by == *port || seen.leaves.port() == *port,
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
    fn of<T>(self, source: &T, destination: &T, is: impl Fn(&T) -> bool) -> bool {
        match self {
            Self::Source => is(source),
            Self::Destination => is(destination),
            Self::Either => is(source) || is(destination),
        }
    }
}

#[cfg(test)]
mod tests;
