//! The kernel's network facts, over rtnetlink.
//!
//! [`Requests`] asks and changes: the kernel answers requests within the system call that sends
//! them, so there is nothing to wait for. Changes are ordered many at a time. [`Monitor`] tells of
//! changes; it never blocks. The types here are what the rest of the crate sees; messages stay
//! inside.

mod build;
mod details;
mod ethtool;
mod order;
mod parse;
mod socket;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use podway_proto::config::KernelTable;
use podway_proto::types::MacAddr;

pub use self::details::{LinkDetails, Peer, Xdp};
pub use self::ethtool::Ethtool;
pub use self::order::Order;
pub use self::parse::Event;
pub use self::socket::{Monitor, Overrun, Requests};

/// Number of the routing protocol (`rtm_protocol`) and neighbour protocol (`NDA_PROTOCOL`) that
/// marks kernel objects as Podway's. Free in `/etc/iproute2/rt_protos` of iproute2 6.x; shown by
/// `ip route show proto 80`.
pub const PROTOCOL: u8 = 80;

/// What is wrong with a dump that was interrupted by changes each time.
pub const NOT_WHOLE: &str =
    "links, addresses or routes of the kernel change faster than they can be read";
/// Metric of unreachable routes: every other route to the same prefix comes before. The same that FRR's
/// manual gives them.
pub const UNREACHABLE_METRIC: u32 = 4_278_198_272;

/// A link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// Whether it is administratively up.
    pub up: bool,
    /// MTU in bytes.
    pub mtu: u32,
    /// Its MAC, on Ethernet links.
    pub mac: Option<MacAddr>,
    /// What it is, as far as it matters here.
    pub kind: LinkKind,
}

/// What a link is, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkKind {
    /// One end of a virtual Ethernet pair.
    Veth,
    /// A VXLAN device.
    Vxlan(Vxlan),
    /// Anything else.
    Other,
}

/// Parameters of a VXLAN device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vxlan {
    /// The network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// Source of outer headers.
    pub local: Option<IpAddr>,
    /// Index of the link that tunnels leave by; 0 for any.
    pub link: u32,
    /// Whether it learns MACs from what it receives.
    pub learning: bool,
    /// Whether it takes datagrams over IPv6 that have no UDP checksum.
    pub zero_checksum_v6: bool,
}

/// An address of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// Interface index.
    pub index: u32,
    /// The address.
    pub address: IpAddr,
    /// Length of its on-link prefix in bits.
    pub prefix_len: u8,
    /// Whether its scope is global.
    pub global: bool,
}

/// An entry of the neighbour table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbor {
    /// Interface index.
    pub index: u32,
    /// The neighbour's address.
    pub address: IpAddr,
    /// Its MAC while the kernel would send to it; `None` while it is being resolved or has failed.
    pub mac: Option<MacAddr>,
    /// Whether somebody wrote it and the kernel will not change it.
    pub permanent: bool,
    /// Whether the kernel keeps it resolved on its own (`NTF_EXT_MANAGED`, since 5.16).
    pub managed: bool,
    /// Whether it is marked with [`PROTOCOL`].
    pub ours: bool,
}

/// An entry of a VXLAN device's forwarding database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FdbEntry {
    /// Index of the VXLAN device.
    pub index: u32,
    /// MAC of a remote VTEP.
    pub mac: MacAddr,
    /// Underlay address of its node.
    pub remote: IpAddr,
}

/// A unicast route of the main table. One with several routers has them in the order that
/// [`Route::by`] gives them: the kernel gives IPv6 ones in another than it was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The destination.
    pub prefix: IpNet,
    /// The router; `None` for a destination on the link itself.
    pub gateway: Option<IpAddr>,
    /// Index of the link that packets leave by.
    pub link: u32,
    /// Whether the router counts as on the link although no prefix of the link holds it.
    pub onlink: bool,
    /// The other routers of a multipath route.
    pub also: Vec<Hop>,
    /// Size in bytes that packets are made to fit which are forwarded by it; what the links carry by
    /// default.
    pub mtu: Option<u32>,
}

impl Route {
    /// A route by these routers, each named once; `None` when there are none.
    pub fn by(prefix: IpNet, mut hops: Vec<Hop>) -> Option<Self> {
        hops.sort_unstable();
        hops.dedup();
        let also = hops.split_off(hops.len().min(1));
        let first = hops.pop()?;
        Some(Self {
            prefix,
            gateway: Some(first.gateway),
            link: first.link,
            onlink: first.onlink,
            also,
            mtu: None,
        })
    }

    /// Its routers; none when the destination is on the link itself.
    pub fn hops(&self) -> impl Iterator<Item = Hop> + '_ {
        let first = self.gateway.map(|gateway| Hop {
            gateway,
            link: self.link,
            onlink: self.onlink,
        });
        first.into_iter().chain(self.also.iter().copied())
    }

    /// The links that packets leave by; one may come twice.
    pub fn links(&self) -> impl Iterator<Item = u32> + '_ {
        [self.link]
            .into_iter()
            .chain(self.also.iter().map(|hop| hop.link))
    }
}

/// A route of somebody else, in any table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignRoute {
    /// Number of the table.
    pub table: u32,
    /// The destination.
    pub prefix: IpNet,
    /// Of the routes to a prefix the kernel takes the one with the lowest metric.
    pub metric: u32,
    /// The routers, in the kernel's order, each on its link: those that are not dead. There are
    /// none where packets are thrown away, are for the host itself or stay on the link.
    pub hops: Vec<Hop>,
    /// The next-hop object that stands for the routers, by number, if one does.
    pub object: Option<u32>,
}

impl ForeignRoute {
    /// Whether it stands where a route of ours to the same prefix would: the kernel adds one beside
    /// another only if their metrics differ. IPv6 routes that name none get `IP6_RT_PRIO_USER`
    /// (linux/ipv6_route.h).
    pub fn is_in_our_place(&self) -> bool {
        let metric = if self.prefix.addr().is_ipv4() {
            0
        } else {
            1024
        };
        self.table == KernelTable::MAIN.number() && self.metric == metric
    }
}

/// A router of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hop {
    /// The router.
    pub gateway: IpAddr,
    /// Index of the link that it is on.
    pub link: u32,
    /// Whether it counts as on the link although no prefix of the link holds it.
    pub onlink: bool,
}

/// What the kernel says of the way to an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lookup {
    /// Index of the link that packets leave by.
    pub link: u32,
    /// The router; `None` when the address is on the link itself.
    pub gateway: Option<IpAddr>,
    /// The source that the kernel would choose.
    pub source: Option<IpAddr>,
    /// The MTU in bytes that the route was given or the kernel has learned, if any.
    pub mtu: Option<u32>,
    /// How much longer the kernel keeps what it has learned.
    pub expires: Option<Duration>,
}

impl Lookup {
    /// Whether both say the same, now.
    pub fn agrees(&self, other: &Self) -> bool {
        let Self { expires, .. } = *self;
        *self
            == Self {
                expires,
                ..other.clone()
            }
    }
}

/// A request that the kernel refused, or a failure of the socket.
#[derive(Debug)]
pub struct Error {
    /// What was tried, for people.
    pub what: String,
    /// What the kernel said.
    pub source: io::Error,
}

impl Error {
    /// Whether the kernel said `errno`.
    pub fn is(&self, errno: i32) -> bool {
        self.source.raw_os_error() == Some(errno)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.what, self.source)?;
        match self.source.raw_os_error() {
            Some(libc::EPERM) => f.write_str("; run podway-control with CAP_NET_ADMIN"),
            Some(libc::EOPNOTSUPP) => f.write_str("; the kernel lacks the feature or its module"),
            _ => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}
