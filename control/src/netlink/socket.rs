//! The sockets: requests with their answers, and the stream of changes.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, RawFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use podway_proto::types::MacAddr;
use rustix::net::sockopt::set_socket_recv_buffer_size_force;

use super::parse::{self, Event};
use super::{Address, Error, FdbEntry, ForeignRoute, Lookup, Route, Vxlan, build};

/// Room for one datagram: the kernel makes dumps of up to 32 KiB a piece (`netlink_dump`), and a
/// link of many virtual functions can be larger than that.
const DATAGRAM: usize = 1 << 18;
/// Receive buffer of the monitor in bytes: some ten thousand changes between two rounds.
const MONITOR_BUFFER: usize = 8 << 20;
/// How often a dump that changed under way is taken again before it is used as it is.
const DUMP_ATTEMPTS: u32 = 5;

const GROUPS: [u32; 6] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_NEIGH,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV6_ROUTE,
];

type Message = RouteNetlinkMessage;

/// Asks and changes the kernel, one request at a time.
#[derive(Debug)]
pub struct Requests {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Requests {
    /// A connection to the kernel of this thread's network namespace.
    ///
    /// # Errors
    /// What the kernel says to opening the socket.
    pub fn open() -> Result<Self, Error> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            // Dumps are then filtered by what the request's header says.
            socket.set_netlink_get_strict_chk(true)?;
            Ok(socket)
        };
        Ok(Self {
            socket: open().map_err(|source| error("open a netlink socket", source))?,
            sequence: 0,
            buffer: Vec::with_capacity(DATAGRAM),
        })
    }

    /// All links, addresses, neighbours, forwarding entries of VXLAN devices and routes of ours,
    /// as the events that would tell of them.
    ///
    /// # Errors
    /// What the kernel says to one of the requests.
    pub fn dump_all(&mut self) -> Result<Vec<Event>, Error> {
        let links = Message::GetLink(LinkMessage::default());
        let addresses = Message::GetAddress(AddressMessage::default());
        let neighbors = Message::GetNeighbour(NeighbourMessage::default());
        let mut events = self.dump("list the links", links)?;
        events.extend(self.dump("list the addresses", addresses)?);
        events.extend(self.dump("list the neighbours", neighbors)?);
        let vxlan_devices: Vec<u32> = events.iter().filter_map(vxlan_index).collect();
        for index in vxlan_devices {
            events.extend(self.dump_fdb(index)?);
        }
        events.extend(self.dump_our_routes()?);
        Ok(events)
    }

    /// The forwarding database of one VXLAN device.
    fn dump_fdb(&mut self, index: u32) -> Result<Vec<Event>, Error> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = index;
        self.dump(
            "list the forwarding database",
            Message::GetNeighbour(message),
        )
    }

    /// The routes of ours, as the events that would tell of them.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn dump_our_routes(&mut self) -> Result<Vec<Event>, Error> {
        let mut events = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let request = Message::GetRoute(build::our_routes(family));
            events.extend(self.dump("list the routes", request)?);
        }
        events.retain(|event| matches!(event, Event::OurRoute(_)));
        Ok(events)
    }

    /// The routes of others in one table, and whether that is all: a table that changes all the
    /// time cannot be read in one piece.
    ///
    /// # Errors
    /// What the kernel says, other than that there is no such table yet.
    pub fn dump_table(&mut self, table: u32) -> Result<(Vec<ForeignRoute>, bool), Error> {
        let what = format!("list the routes of table {table}");
        let (mut routes, mut whole) = (Vec::new(), true);
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let request = Message::GetRoute(build::table(family, table));
            let (messages, interrupted) = match self.exchange(&what, request, NLM_F_DUMP) {
                Err(error) if error.is(libc::ENOENT) => continue,
                result => result?,
            };
            whole &= !interrupted;
            routes.extend(messages.into_iter().filter_map(|message| {
                match parse::event(message, 0) {
                    Some(Event::ForeignRoute { route, .. }) => Some(route),
                    _ => None,
                }
            }));
        }
        // The kernel filters by table; this is for the ones that do not.
        routes.retain(|route| route.table == table);
        Ok((routes, whole))
    }

    /// The way to `address`; `None` when there is none, or when it is this host's own.
    ///
    /// # Errors
    /// What the kernel says, other than that there is no way.
    pub fn lookup(&mut self, address: IpAddr) -> Result<Option<Lookup>, Error> {
        let what = format!("look up the route to {address}");
        let request = Message::GetRoute(build::lookup(address));
        match self.exchange(&what, request, 0) {
            Ok((answer, _)) => Ok(answer.iter().find_map(|message| match message {
                Message::NewRoute(route) => parse::lookup(route),
                _ => None,
            })),
            Err(error)
                if [
                    libc::ENETUNREACH,
                    libc::EHOSTUNREACH,
                    libc::EACCES,
                    libc::EINVAL,
                ]
                .iter()
                .any(|errno| error.is(*errno)) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Makes a VXLAN device, up and without an address.
    ///
    /// # Errors
    /// What the kernel says: `EEXIST` when the name or the pair of VNI and port is taken.
    pub fn create_vxlan(
        &mut self,
        name: &str,
        mac: MacAddr,
        mtu: u32,
        vxlan: &Vxlan,
    ) -> Result<(), Error> {
        let what = format!(
            "create the VXLAN device {name} (vni {}, port {})",
            vxlan.vni, vxlan.port
        );
        let message = Message::NewLink(build::vxlan_device(name, mac, mtu, vxlan));
        self.exchange(&what, message, NLM_F_CREATE | NLM_F_EXCL)?;
        match self.exchange(&what, Message::SetLink(build::no_own_address(name)), 0) {
            // IPv6 is switched off, and with it link-local addresses.
            Err(error) if error.is(libc::EAFNOSUPPORT) => {}
            result => drop(result?),
        }
        self.exchange(&what, Message::SetLink(build::link_up(name)), 0)
            .map(drop)
    }

    /// Gives a link its MAC and MTU in bytes and brings it up.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_link(&mut self, index: u32, mac: MacAddr, mtu: u32) -> Result<(), Error> {
        let what = format!("set up link {index} with mac {mac} and mtu {mtu}");
        let message = Message::SetLink(build::link_settings(index, mac, mtu));
        self.exchange(&what, message, 0).map(drop)
    }

    /// Removes a link.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn delete_link(&mut self, index: u32) -> Result<(), Error> {
        let what = format!("delete link {index}");
        self.exchange(&what, Message::DelLink(build::link(index)), 0)
            .map(drop)
    }

    /// Adds an address to a link.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn add_address(&mut self, address: &Address) -> Result<(), Error> {
        let what = format!("add address {}", address.address);
        let message = Message::NewAddress(build::address(address));
        self.exchange(&what, message, NLM_F_CREATE | NLM_F_REPLACE)
            .map(drop)
    }

    /// Removes an address from a link.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn delete_address(&mut self, address: &Address) -> Result<(), Error> {
        let what = format!("delete address {}", address.address);
        self.exchange(&what, Message::DelAddress(build::address(address)), 0)
            .map(drop)
    }

    /// Makes the kernel resolve a neighbour and keep it resolved.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn manage_neighbor(&mut self, index: u32, address: IpAddr) -> Result<(), Error> {
        let what = format!("have neighbour {address} resolved");
        let message = Message::NewNeighbour(build::managed_neighbor(index, address));
        self.exchange(&what, message, NLM_F_CREATE | NLM_F_REPLACE)
            .map(drop)
    }

    /// Writes a neighbour that needs no resolving.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_neighbor(&mut self, index: u32, address: IpAddr, mac: MacAddr) -> Result<(), Error> {
        let what = format!("set neighbour {address} to {mac}");
        let message = Message::NewNeighbour(build::permanent_neighbor(index, address, mac));
        self.exchange(&what, message, NLM_F_CREATE | NLM_F_REPLACE)
            .map(drop)
    }

    /// Removes a neighbour.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn delete_neighbor(&mut self, index: u32, address: IpAddr) -> Result<(), Error> {
        let what = format!("delete neighbour {address}");
        let message = Message::DelNeighbour(build::any_neighbor(index, address));
        self.exchange(&what, message, 0).map(drop)
    }

    /// Writes the one remote of a MAC into a VXLAN device's forwarding database.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_fdb(&mut self, entry: &FdbEntry) -> Result<(), Error> {
        let what = format!("set forwarding entry {} to {}", entry.mac, entry.remote);
        let message = Message::NewNeighbour(build::fdb_entry(entry));
        self.exchange(&what, message, NLM_F_CREATE | NLM_F_REPLACE)
            .map(drop)
    }

    /// Removes an entry of a VXLAN device's forwarding database.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn delete_fdb(&mut self, entry: &FdbEntry) -> Result<(), Error> {
        let what = format!("delete forwarding entry {}", entry.mac);
        self.exchange(&what, Message::DelNeighbour(build::fdb_entry(entry)), 0)
            .map(drop)
    }

    /// Adds a route of ours; `replace` when one of ours to the same prefix is there.
    ///
    /// # Errors
    /// What the kernel says: `EEXIST` when somebody else has a route to the same prefix.
    pub fn set_route(&mut self, route: &Route, replace: bool) -> Result<(), Error> {
        let what = format!("add route {}", route.prefix);
        let how = if replace { NLM_F_REPLACE } else { NLM_F_EXCL };
        let message = Message::NewRoute(build::route(route));
        self.exchange(&what, message, NLM_F_CREATE | how).map(drop)
    }

    /// Removes a route of ours.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn delete_route(&mut self, route: &Route) -> Result<(), Error> {
        let what = format!("delete route {}", route.prefix);
        self.exchange(&what, Message::DelRoute(build::route(route)), 0)
            .map(drop)
    }

    fn dump(&mut self, what: &str, request: Message) -> Result<Vec<Event>, Error> {
        let (messages, _) = self.exchange(what, request, NLM_F_DUMP)?;
        let event = |message| parse::event(message, 0);
        Ok(messages.into_iter().filter_map(event).collect())
    }

    /// Sends `message` and gathers what comes back until its end. The second value says whether
    /// something was changed in between, each time, so that parts may be missing.
    fn exchange(
        &mut self,
        what: &str,
        message: Message,
        flags: u16,
    ) -> Result<(Vec<Message>, bool), Error> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let (messages, interrupted) = self
                .exchange_once(message.clone(), flags)
                .map_err(|source| error(what, source))?;
            if !interrupted || attempt == DUMP_ATTEMPTS {
                return Ok((messages, interrupted));
            }
        }
    }

    fn exchange_once(&mut self, message: Message, flags: u16) -> io::Result<(Vec<Message>, bool)> {
        self.sequence = self.sequence.wrapping_add(1);
        let is_dump = flags & NLM_F_DUMP == NLM_F_DUMP;
        let mut packet =
            NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(message));
        packet.header.flags = NLM_F_REQUEST | flags | if is_dump { 0 } else { NLM_F_ACK };
        packet.header.sequence_number = self.sequence;
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut found = Vec::new();
        let mut interrupted = false;
        loop {
            self.buffer.clear();
            self.socket.recv(&mut self.buffer, 0)?;
            for packet in packets(&self.buffer) {
                let Some(packet) = packet else { continue };
                if packet.header.sequence_number != self.sequence {
                    continue;
                }
                interrupted |= packet.header.flags & NLM_F_DUMP_INTR != 0;
                match packet.payload {
                    NetlinkPayload::InnerMessage(message) => found.push(message),
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        return Err(error.to_io());
                    }
                    NetlinkPayload::Done(done) if done.code != 0 => {
                        return Err(io::Error::from_raw_os_error(-done.code));
                    }
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => {
                        return Ok((found, interrupted));
                    }
                    _ => {}
                }
            }
        }
    }
}

fn vxlan_index(event: &Event) -> Option<u32> {
    match event {
        Event::Link(link) => matches!(link.kind, super::LinkKind::Vxlan(_)).then_some(link.index),
        _ => None,
    }
}

fn error(what: &str, source: io::Error) -> Error {
    Error {
        what: what.to_owned(),
        source,
    }
}

/// The messages of a datagram; `None` for one that cannot be read.
fn packets(datagram: &[u8]) -> impl Iterator<Item = Option<NetlinkMessage<Message>>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = rest
            .first_chunk::<4>()
            .map(|bytes| u32::from_ne_bytes(*bytes))?;
        let length = usize::try_from(length)
            .ok()
            .filter(|length| *length >= 16)?;
        let message = rest.get(..length)?;
        // Messages start at multiples of four bytes (NLMSG_ALIGN).
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(match NetlinkMessage::deserialize(message) {
            Ok(message) => Some(message),
            Err(error) => {
                tracing::debug!(%error, "skipped a netlink message that cannot be read");
                None
            }
        })
    })
}

/// Tells of changes, without blocking.
#[derive(Debug)]
pub struct Monitor {
    socket: Socket,
    buffer: Vec<u8>,
}

/// Changes were lost: more came than the socket's buffer holds. Take everything anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overrun;

impl Monitor {
    /// Listens from now on; take a dump after this, or changes between the two are lost.
    ///
    /// # Errors
    /// What the kernel says to opening the socket.
    pub fn open() -> Result<Self, Error> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            // Beyond the limit of net.core.rmem_max, as CAP_NET_ADMIN allows.
            set_socket_recv_buffer_size_force(&socket, MONITOR_BUFFER)?;
            for group in GROUPS {
                socket.add_membership(group)?;
            }
            socket.set_non_blocking(true)?;
            Ok(socket)
        };
        Ok(Self {
            socket: open().map_err(|source| error("listen to the kernel's changes", source))?,
            buffer: Vec::with_capacity(DATAGRAM),
        })
    }

    /// Everything that has changed since the last call.
    ///
    /// # Errors
    /// [`Overrun`], after which everything has to be taken anew.
    pub fn drain(&mut self) -> Result<Vec<Event>, Overrun> {
        let mut events = Vec::new();
        let mut overrun = false;
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => {
                    for packet in packets(&self.buffer).flatten() {
                        let flags = packet.header.flags;
                        if let NetlinkPayload::InnerMessage(message) = packet.payload {
                            events.extend(parse::event(message, flags));
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return if overrun { Err(Overrun) } else { Ok(events) };
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // ENOBUFS, once per overrun: reading goes on after it.
                Err(_) if !overrun => overrun = true,
                Err(_) => return Err(Overrun),
            }
        }
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
