//! The sockets: requests with their answers, and the stream of changes.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, RawFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::neighbour::NeighbourMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use podway_proto::types::MacAddr;
use rustix::net::sockopt::set_socket_recv_buffer_size_force;

use super::parse::{self, Event};
use super::{Error, ForeignRoute, Lookup, Order, Vxlan, build};

/// Room for one datagram: the kernel makes dumps of up to 32 KiB a piece (`netlink_dump`), and a
/// link of many virtual functions can be larger than that.
const DATAGRAM: usize = 1 << 18;
/// Receive buffer of the monitor in bytes: some ten thousand changes between two rounds.
const MONITOR_BUFFER: usize = 8 << 20;
/// Orders in one system call. The answers, were they all failures, fit in the default receive
/// buffer: each is charged with less than a KiB of 208.
const BATCH: usize = 128;
/// How often a dump that changed under way is taken again before it is used as it is.
const DUMP_ATTEMPTS: u32 = 5;

const GROUPS: [u32; 7] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_NEIGH,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_NEXTHOP,
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
            // Failures come without the request that failed: those of a batch have to fit.
            socket.set_cap_ack(true)?;
            Ok(socket)
        };
        Ok(Self {
            socket: open().map_err(|source| error("open a netlink socket", source))?,
            sequence: 0,
            buffer: Vec::with_capacity(DATAGRAM),
        })
    }

    /// All links, addresses, neighbours, forwarding entries of VXLAN devices and routes of ours,
    /// as the events that would tell of them, and whether that is all: what changes all the time
    /// cannot be read in one piece.
    ///
    /// # Errors
    /// What the kernel says to one of the requests.
    pub fn dump_all(&mut self) -> Result<(Vec<Event>, bool), Error> {
        let links = Message::GetLink(LinkMessage::default());
        let addresses = Message::GetAddress(AddressMessage::default());
        let neighbors = Message::GetNeighbour(NeighbourMessage::default());
        let (mut events, mut whole) = (Vec::new(), true);
        whole &= self.dump("list the links", links, &mut events)?;
        whole &= self.dump("list the addresses", addresses, &mut events)?;
        whole &= self.dump("list the neighbours", neighbors, &mut events)?;
        let vxlan_devices: Vec<u32> = events.iter().filter_map(vxlan_index).collect();
        for index in vxlan_devices {
            whole &= self.dump_fdb(index, &mut events)?;
        }
        whole &= self.dump_our_routes(&mut events)?;
        Ok((events, whole))
    }

    /// The forwarding database of one VXLAN device.
    fn dump_fdb(&mut self, index: u32, events: &mut Vec<Event>) -> Result<bool, Error> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = index;
        let request = Message::GetNeighbour(message);
        self.dump("list the forwarding database", request, events)
    }

    /// The routes of ours.
    fn dump_our_routes(&mut self, events: &mut Vec<Event>) -> Result<bool, Error> {
        let (mut routes, mut whole) = (Vec::new(), true);
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let request = Message::GetRoute(build::our_routes(family));
            whole &= self.dump("list the routes", request, &mut routes)?;
        }
        routes.retain(|event| matches!(event, Event::OurRoute(_) | Event::Unreachable(_)));
        events.append(&mut routes);
        Ok(whole)
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
        let ways = self.lookup_all(&[address])?;
        Ok(ways.into_iter().next().flatten())
    }

    /// The route of somebody else that packets to `address` take, with all its routers; `None` when it
    /// is not one.
    ///
    /// # Errors
    /// What the kernel says, also that there is none.
    pub fn foreign_route(&mut self, address: IpAddr) -> Result<Option<ForeignRoute>, Error> {
        let request = Message::GetRoute(build::whole_lookup(address));
        let what = format!("look up the route to {address}");
        let (messages, _) = self.exchange(&what, request, 0)?;
        let route = |message| match parse::event(message, 0) {
            Some(Event::ForeignRoute { route, .. }) => Some(route),
            _ => None,
        };
        Ok(messages.into_iter().find_map(route))
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

    /// Carries out orders in their sequence, many in one system call; one that fails does not stop
    /// those after it. Gives what the kernel said to those that failed, each with its position.
    pub fn carry_out(&mut self, orders: &[Order]) -> Vec<(usize, Error)> {
        let mut failures = Vec::new();
        for (batch, first) in orders.chunks(BATCH).zip((0..).step_by(BATCH)) {
            let earlier = failures.len();
            if let Err(source) = self.carry_out_batch(batch, first, &mut failures) {
                // Of all that nothing was heard of.
                let heard = failures.get(earlier..).unwrap_or_default().iter();
                let heard: BTreeSet<usize> = heard.map(|(position, _)| *position).collect();
                let orders = (first..).zip(batch);
                let unheard = orders.filter(|(position, _)| !heard.contains(position));
                failures.extend(
                    unheard.map(|(position, order)| {
                        (position, error(&order.to_string(), same(&source)))
                    }),
                );
            }
        }
        failures
    }

    /// Only the last order of a batch asks for an acknowledgement: the kernel has then dealt with
    /// those before it, and it tells of a failure unasked.
    fn carry_out_batch(
        &mut self,
        batch: &[Order],
        first: usize,
        failures: &mut Vec<(usize, Error)>,
    ) -> io::Result<()> {
        let before = self.sequence;
        let mut bytes = Vec::new();
        for (left, order) in (0..batch.len()).rev().zip(batch) {
            self.sequence = self.sequence.wrapping_add(1);
            let (message, flags) = order.message();
            let ack = if left == 0 { NLM_F_ACK } else { 0 };
            append(&mut bytes, message, flags | ack, self.sequence);
        }
        self.socket.send(&bytes, 0)?;
        loop {
            self.buffer.clear();
            self.socket.recv(&mut self.buffer, 0)?;
            for packet in packets(&self.buffer) {
                let position = packet.header.sequence_number.wrapping_sub(before) as usize;
                let Some(order) = position.checked_sub(1).and_then(|at| batch.get(at)) else {
                    continue;
                };
                let NetlinkPayload::Error(answer) = packet.payload else {
                    continue;
                };
                if answer.code.is_some() {
                    let failure = error(&order.to_string(), answer.to_io());
                    failures.push((first + position - 1, failure));
                }
                if position == batch.len() {
                    return Ok(());
                }
            }
        }
    }

    /// The ways to `addresses`, in their order, as [`Requests::lookup`] gives them one by one. One
    /// that the kernel refuses to look for is `None`, too.
    ///
    /// # Errors
    /// What the socket says, or that the kernel has no room for an answer; nothing is known of any
    /// of them then.
    pub fn lookup_all(&mut self, addresses: &[IpAddr]) -> Result<Vec<Option<Lookup>>, Error> {
        let mut ways = vec![None; addresses.len()];
        for (batch, ways) in addresses.chunks(BATCH).zip(ways.chunks_mut(BATCH)) {
            self.lookup_batch(batch, ways)
                .map_err(|source| error("look up routes", source))?;
        }
        Ok(ways)
    }

    fn lookup_batch(&mut self, batch: &[IpAddr], ways: &mut [Option<Lookup>]) -> io::Result<()> {
        let before = self.sequence;
        let mut bytes = Vec::new();
        for address in batch {
            self.sequence = self.sequence.wrapping_add(1);
            let message = Message::GetRoute(build::lookup(*address));
            append(&mut bytes, message, 0, self.sequence);
        }
        self.socket.send(&bytes, 0)?;
        // Each gets one answer: a route, or that there is none.
        let mut left = batch.len();
        while left > 0 {
            self.buffer.clear();
            self.socket.recv(&mut self.buffer, 0)?;
            left = left.saturating_sub(take_ways(&self.buffer, before, ways)?);
        }
        Ok(())
    }

    /// Adds what a dump says to `events`; whether that is all.
    fn dump(
        &mut self,
        what: &str,
        request: Message,
        events: &mut Vec<Event>,
    ) -> Result<bool, Error> {
        let (messages, interrupted) = self.exchange(what, request, NLM_F_DUMP)?;
        let event = |message| parse::event(message, 0);
        events.extend(messages.into_iter().filter_map(event));
        Ok(!interrupted)
    }

    /// Sends `message` and gathers what comes back until its end. The second value says whether
    /// something was changed in between, each time, so that parts may be missing.
    pub(super) fn exchange(
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
        let ack = if is_dump { 0 } else { NLM_F_ACK };
        let mut bytes = Vec::new();
        append(&mut bytes, message, flags | ack, self.sequence);
        self.socket.send(&bytes, 0)?;
        let mut found = Vec::new();
        let mut interrupted = false;
        loop {
            self.buffer.clear();
            self.socket.recv(&mut self.buffer, 0)?;
            for packet in packets(&self.buffer) {
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

/// Takes the answers in a datagram to questions for ways, the first of which had the sequence
/// number after `before`; how many there are.
fn take_ways(datagram: &[u8], before: u32, ways: &mut [Option<Lookup>]) -> io::Result<usize> {
    let mut count = 0;
    for message in messages(datagram) {
        // By the header: an answer that cannot be read is one that will not come again.
        let position = sequence_number(message).wrapping_sub(before) as usize;
        let Some(way) = position.checked_sub(1).and_then(|at| ways.get_mut(at)) else {
            continue;
        };
        count += 1;
        match packet(message).map(|packet| packet.payload) {
            Some(NetlinkPayload::InnerMessage(Message::NewRoute(route))) => {
                *way = parse::lookup(&route);
            }
            Some(NetlinkPayload::Error(answer)) if says_nothing(&answer.to_io()) => {
                return Err(answer.to_io());
            }
            // Whatever else is wrong with this address: no packets go there.
            _ => {}
        }
    }
    Ok(count)
}

/// Whether an error is about the kernel's memory and not about what was asked for.
fn says_nothing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::ENOBUFS))
}

/// Appends a request to those of a datagram.
fn append(bytes: &mut Vec<u8>, message: Message, flags: u16, sequence: u32) {
    let mut packet = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(message));
    packet.header.flags = NLM_F_REQUEST | flags;
    packet.header.sequence_number = sequence;
    packet.finalize();
    let begin = bytes.len();
    // The next one starts at a multiple of four bytes (NLMSG_ALIGN).
    bytes.resize(begin + packet.buffer_len().next_multiple_of(4), 0);
    packet.serialize(&mut bytes[begin..]);
}

fn vxlan_index(event: &Event) -> Option<u32> {
    match event {
        Event::Link(link) => matches!(link.kind, super::LinkKind::Vxlan(_)).then_some(link.index),
        _ => None,
    }
}

/// The same error once more.
fn same(error: &io::Error) -> io::Error {
    let errno = error.raw_os_error();
    errno.map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}

fn error(what: &str, source: io::Error) -> Error {
    Error {
        what: what.to_owned(),
        source,
    }
}

/// The messages of a datagram, as bytes.
fn messages(datagram: &[u8]) -> impl Iterator<Item = &[u8]> {
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
        Some(message)
    })
}

/// The sequence number in the header of one of [`messages`].
fn sequence_number(message: &[u8]) -> u32 {
    let bytes = message.get(8..).and_then(|rest| rest.first_chunk::<4>());
    bytes.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

/// A message; `None` for one that cannot be read.
fn packet(message: &[u8]) -> Option<NetlinkMessage<Message>> {
    match NetlinkMessage::deserialize(message) {
        Ok(message) => Some(message),
        Err(error) => {
            tracing::debug!(%error, "skipped a netlink message that cannot be read");
            None
        }
    }
}

/// The messages of a datagram that can be read.
fn packets(datagram: &[u8]) -> impl Iterator<Item = NetlinkMessage<Message>> {
    messages(datagram).filter_map(packet)
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
                    events.extend(messages(&self.buffer).filter_map(|message| {
                        parse::next_hop(message).or_else(|| event(packet(message)?))
                    }));
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

fn event(packet: NetlinkMessage<Message>) -> Option<Event> {
    match packet.payload {
        NetlinkPayload::InnerMessage(message) => parse::event(message, packet.header.flags),
        _ => None,
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::ErrorMessage;
    use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};

    use rustix::net::sockopt::set_socket_send_buffer_size;

    use super::super::Route;
    use super::*;

    #[test]
    fn a_batch_that_cannot_be_sent_fails_as_a_whole() {
        let mut requests = Requests::open().unwrap();
        // The least that the kernel gives: less than a batch, so that nothing of it gets there.
        set_socket_send_buffer_size(&requests.socket, 1).unwrap();
        let route = |number: u32| Route {
            prefix: ipnet::Ipv4Net::new_assert((0x0a00_0000 + number).into(), 32).into(),
            gateway: Some("192.0.2.1".parse().unwrap()),
            link: 1,
            onlink: true,
            also: Vec::new(),
            mtu: None,
        };
        let count = 2 * BATCH;
        let orders: Vec<Order> = (1..)
            .map(route)
            .map(Order::DeleteRoute)
            .take(count)
            .collect();
        let failures = requests.carry_out(&orders);
        let positions: Vec<usize> = failures.iter().map(|(position, _)| *position).collect();
        assert_eq!(positions, (0..count).collect::<Vec<_>>());
        assert!(failures.iter().all(|(_, error)| error.is(libc::EMSGSIZE)));
        let (_, last) = failures.last().unwrap();
        assert_eq!(last.what, "delete route 10.0.1.0/32");
    }

    /// A message of the kernel, as bytes.
    fn answer(sequence: u32, payload: NetlinkPayload<Message>) -> Vec<u8> {
        let mut packet = NetlinkMessage::new(NetlinkHeader::default(), payload);
        packet.header.sequence_number = sequence;
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len().next_multiple_of(4)];
        packet.serialize(&mut bytes);
        bytes
    }

    fn refusal(sequence: u32, errno: i32) -> Vec<u8> {
        let mut error = ErrorMessage::default();
        error.code = std::num::NonZeroI32::new(-errno);
        error.header = vec![0; 16];
        answer(sequence, NetlinkPayload::Error(error))
    }

    fn way(sequence: u32, link: u32) -> Vec<u8> {
        let mut route = RouteMessage::default();
        route.header.kind = RouteType::Unicast;
        route.attributes = vec![RouteAttribute::Oif(link)];
        answer(
            sequence,
            NetlinkPayload::InnerMessage(Message::NewRoute(route)),
        )
    }

    #[test]
    fn an_address_that_cannot_be_asked_for_is_alone_without_a_way() {
        // The attribute of the last is longer than the message.
        let mut unreadable = way(14, 5);
        let attribute = unreadable.len() - 8;
        unreadable[attribute..attribute + 2].copy_from_slice(&200_u16.to_ne_bytes());
        let datagram = [
            way(10, 1),
            way(11, 3),
            refusal(12, libc::EOPNOTSUPP),
            refusal(13, libc::ENETUNREACH),
            unreadable,
            way(15, 4),
            way(16, 6),
        ]
        .concat();
        let mut ways = vec![None; 5];
        assert_eq!(take_ways(&datagram, 10, &mut ways).unwrap(), 5);
        let links: Vec<Option<u32>> = ways
            .iter()
            .map(|way| way.as_ref().map(|way| way.link))
            .collect();
        assert_eq!(links, [Some(3), None, None, None, Some(4)]);
        let error = take_ways(&refusal(11, libc::ENOBUFS), 10, &mut ways).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOBUFS));
    }
}
