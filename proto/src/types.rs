//! Facts: what the control process knows and the dataplane mirrors.
//!
//! Numbers are in host byte order; addresses and MACs are text in JSON.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Bytes that VXLAN puts before an inner IP packet over IPv4: outer IPv4 20, UDP 8, VXLAN 8, inner
/// Ethernet 14 (RFC 7348 section 5, without the outer Ethernet header).
pub const VXLAN_OVERHEAD_V4: u16 = 50;
/// The same over IPv6, whose header has 40 bytes.
pub const VXLAN_OVERHEAD_V6: u16 = 70;

/// A 48-bit Ethernet address, written `aa:bb:cc:dd:ee:ff`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// Whether the group bit is set (multicast or broadcast).
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is no Ethernet address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a MAC address; write six hexadecimal bytes like 02:00:5e:10:00:01")]
pub struct BadMac(String);

impl FromStr for MacAddr {
    type Err = BadMac;

    fn from_str(text: &str) -> Result<Self, BadMac> {
        let bad = || BadMac(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() {
            Err(bad())
        } else {
            Ok(Self(bytes))
        }
    }
}

impl TryFrom<String> for MacAddr {
    type Error = BadMac;
    fn try_from(text: String) -> Result<Self, BadMac> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> Self {
        mac.to_string()
    }
}

/// A VXLAN network identifier: 24 bits, zero included (RFC 7348 does not reserve it).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vni(u32);

/// The number does not fit in 24 bits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("VNI {0} is out of range; use 0 to 16777215")]
pub struct BadVni(u32);

impl Vni {
    /// The configuration's, if it says nothing.
    pub const DEFAULT: Self = Self(1);

    /// The identifier as a number below 2^24.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for Vni {
    type Error = BadVni;
    fn try_from(value: u32) -> Result<Self, BadVni> {
        if value < 1 << 24 {
            Ok(Self(value))
        } else {
            Err(BadVni(value))
        }
    }
}

impl From<Vni> for u32 {
    fn from(vni: Vni) -> Self {
        vni.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How packets to a remote node are sent. Receipt accepts both forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// In a VXLAN tunnel (RFC 7348) to the node's underlay address.
    Vxlan,
    /// As they are, to the next hop towards the node; the underlay must know the pods.
    Native,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vxlan => "vxlan",
            Self::Native => "native",
        })
    }
}

/// What concerns this node as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalNode {
    /// The VXLAN network identifier of the overlay.
    pub vni: Vni,
    /// Further identifiers that tunnels may have, here and in routes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also_vnis: Vec<Vni>,
    /// UDP port of VXLAN on every node: 4789 (IANA) or 8472 (Linux' and Cilium's old default).
    pub vxlan_port: u16,
    /// MAC of this node's VTEP: the destination of inner frames that other nodes send here.
    pub vtep_mac: MacAddr,
    /// Every unicast address of this node in its own network namespace. Packets to them are the
    /// kernel's; those of the underlay are where tunnels end.
    pub addresses: Vec<IpAddr>,
    /// Whether rules of the node translate addresses (NAT), as for services: what conntrack knows
    /// to be translated is the kernel's then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub translates: bool,
    /// Whether the kernel of the node puts IPv4 fragments together before it forwards them, as it
    /// does for conntrack: all of them are the kernel's then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub defragments: bool,
    /// Whether tunnels are taken from sources that are no known nodes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_unknown_vteps: bool,
}

/// An interface that the dataplane serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// Interface name in the node's network namespace.
    pub interface: String,
    /// What is behind the interface.
    pub role: PortRole,
    /// The link as control sees it. A change makes the dataplane look at the interface again;
    /// what it finds there counts, not this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<Link>,
}

/// A link of the kernel, as far as a port depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Interface index; a link that is made anew under the same name has another.
    pub ifindex: u32,
    /// Largest L3 packet in bytes.
    pub mtu: u32,
    /// Its own MAC.
    pub mac: MacAddr,
}

/// What is behind a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum PortRole {
    /// The node's end of a pod's veth.
    Pod {
        /// The pod's addresses; the only sources that it may send from.
        addresses: Vec<IpAddr>,
        /// MAC of the pod's end.
        mac: MacAddr,
        /// Whether it may send from any other address as well.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        any_source: bool,
    },
    /// An interface towards other nodes.
    Uplink {
        /// Whether packets may arrive with unfinished (partial) inner L4 checksums. Only a
        /// virtual wire such as a veth carries those.
        accept_partial_checksums: bool,
    },
}

/// A remote node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Its name, unique in the cluster.
    pub name: String,
    /// Its address on the underlay: the remote end of tunnels.
    pub underlay: IpAddr,
    /// MAC of its VTEP: the destination of inner frames that are sent there.
    pub vtep_mac: MacAddr,
    /// How packets are sent to it.
    pub mode: Mode,
    /// How this node reaches [`Node::underlay`], as the kernel's routes say; `None` while they
    /// do not say, and then its packets are the kernel's.
    pub path: Option<Path>,
}

/// The first step on the underlay towards a remote node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Path {
    /// The uplink that packets leave by.
    pub interface: String,
    /// The neighbour on that link which takes them: the node itself or a router.
    pub next_hop: IpAddr,
    /// This node's address on that link: the source of outer headers.
    pub source: IpAddr,
    /// Largest L3 packet in bytes that the path carries.
    pub mtu: u16,
}

/// A route of the overlay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// What is reached.
    pub prefix: IpNet,
    /// By whom.
    pub via: Via,
}

/// Who takes the packets of a route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Via {
    /// A remote node, in its mode.
    Node {
        /// The node's name. The node may be told later; until then the kernel has the packets.
        node: String,
        /// The VXLAN network identifier, one of [`LocalNode`]'s; its `vni` if it is not told. It
        /// counts in tunnels only.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        vni: Option<Vni>,
    },
    /// A router on a link of this node, natively.
    Gateway {
        /// The router's address.
        address: IpAddr,
        /// The uplink that it is on.
        interface: String,
    },
    /// Several of these, each for its share of the flows; see [`check_multipath`].
    Multipath {
        /// The next hops, in any order.
        members: Vec<Via>,
    },
}

impl Via {
    /// The next hops: itself, or each that a multipath route has.
    pub fn members(&self) -> &[Self] {
        match self {
            Self::Multipath { members } => members,
            one => std::slice::from_ref(one),
        }
    }

    /// The same with its next hops in their order: two that mean the same are then equal.
    pub fn sorted(mut self) -> Self {
        if let Self::Multipath { members } = &mut self {
            members.sort_unstable();
        }
        self
    }
}

/// How many next hops a multipath route has.
pub const MULTIPATH: RangeInclusive<usize> = 2..=16;

/// Why next hops make no multipath route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadMultipath {
    /// There are too few or too many.
    #[error(
        "a multipath route has {least} to {most} next hops, not {0}",
        least = MULTIPATH.start(),
        most = MULTIPATH.end()
    )]
    Count(usize),
    /// Two are the same.
    #[error("a multipath route names a next hop once; for a greater share there is no word")]
    Twice,
    /// One is a multipath route itself.
    #[error("a next hop of a multipath route is a node or a router")]
    Nested,
}

/// Checks the next hops of a multipath route: as many as there may be, each named once, and none a
/// multipath route itself.
///
/// # Errors
/// Says what is wrong with them.
pub fn check_multipath<T: PartialEq>(
    members: &[T],
    is_multipath: impl Fn(&T) -> bool,
) -> Result<(), BadMultipath> {
    if !MULTIPATH.contains(&members.len()) {
        return Err(BadMultipath::Count(members.len()));
    }
    if members.iter().any(is_multipath) {
        return Err(BadMultipath::Nested);
    }
    let mut others = members.iter().enumerate();
    if others.any(|(at, member)| members[..at].contains(member)) {
        return Err(BadMultipath::Twice);
    }
    Ok(())
}

/// A resolved neighbour on a link. The kernel does ARP and ND; these facts follow it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Neighbor {
    /// The link.
    pub interface: String,
    /// The neighbour's address.
    pub address: IpAddr,
    /// Its MAC.
    pub mac: MacAddr,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_reads_what_it_writes() {
        let mac: MacAddr = "02:00:5e:10:00:fF".parse().unwrap();
        assert_eq!(mac.0, [2, 0, 0x5e, 0x10, 0, 0xff]);
        assert_eq!(mac.to_string(), "02:00:5e:10:00:ff");
    }

    #[test]
    fn a_bad_mac_is_refused() {
        for text in [
            "",
            "02:00:5e:10:00",
            "02:00:5e:10:00:01:02",
            "2:0:5e:10:0:1",
            "zz:00:5e:10:00:01",
        ] {
            assert!(text.parse::<MacAddr>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_multipath_route_has_several_next_hops_each_once() {
        let check = |members: &[u8]| check_multipath(members, |member| *member == 0);
        assert_eq!(check(&[1, 2]), Ok(()));
        assert_eq!(check(&(1..=16).collect::<Vec<_>>()), Ok(()));
        for count in [0, 1, 17] {
            let members: Vec<u8> = (1..).take(count).collect();
            assert_eq!(check(&members), Err(BadMultipath::Count(count)));
        }
        assert_eq!(check(&[1, 2, 1]), Err(BadMultipath::Twice));
        assert_eq!(check(&[1, 0]), Err(BadMultipath::Nested));
        assert_eq!(
            BadMultipath::Count(1).to_string(),
            "a multipath route has 2 to 16 next hops, not 1"
        );
    }

    #[test]
    fn a_vni_has_24_bits() {
        assert_eq!(Vni::try_from(0xff_ffff).unwrap().get(), 0xff_ffff);
        assert!(Vni::try_from(0x100_0000).is_err());
    }
}
