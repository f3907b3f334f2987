#![allow(
    unsafe_code,
    reason = "nothing safe binds a packet socket to an interface"
)]
//! A look at some of the frames that leave the uplinks while something is measured.
//!
//! It is taken where the sending node's kernel hands a frame to the device: after software has
//! segmented it and finished its checksums, if it does. So what is seen is what the wire gets.
//! Frames that an AF_XDP socket sends do not come by there.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use etherparse::checksum::Sum16BitWords;
use etherparse::{LaxNetSlice, LaxSlicedPacket, TransportSlice, ip_number};
use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W};
use podway_proto::config::Config;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socket_with};
use socket2::{SockFilter, SockRef};

use crate::netns::join;
use crate::topology::{Cluster, UPLINK};
use crate::{Error, Result};

/// Frames of each uplink that are looked at. Each costs a copy, so they are few: the look is over
/// in a millisecond or so of a bulk transfer.
pub const SAMPLE: u64 = 200;
/// Looking begins when a transfer has got going.
const DELAY: Duration = Duration::from_millis(300);
/// How often the end of the measurement is noticed.
const TICK: Duration = Duration::from_millis(50);
/// The largest super-frame.
const BUFFER: usize = 1 << 17;
/// Length of a VXLAN header in bytes.
const VXLAN_HEADER: usize = 8;

/// What was seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Frames looked at.
    pub frames: u64,
    /// Length in bytes of the longest of them.
    pub longest: u64,
    /// Those with a TCP or UDP checksum, within a tunnel or without, that is not right: never
    /// finished, or wrong.
    pub bad_checksums: u64,
}

impl Seen {
    fn add(&mut self, frame: &[u8], length: u64, vxlan_port: u16) {
        self.frames += 1;
        self.longest = self.longest.max(length);
        if !checksums_are_right(frame, vxlan_port) {
            self.bad_checksums += 1;
        }
    }

    fn merge(self, other: Self) -> Self {
        Self {
            frames: self.frames + other.frames,
            longest: self.longest.max(other.longest),
            bad_checksums: self.bad_checksums + other.bad_checksums,
        }
    }
}

/// A look that is being taken.
#[derive(Debug)]
pub struct Wiretap {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<Seen>>>,
}

impl Wiretap {
    /// Begins to look at what leaves the uplinks of all nodes.
    pub fn on(cluster: &Cluster) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tap = Self {
            stop: Arc::clone(&stop),
            threads: Vec::new(),
        };
        for node in cluster.nodes() {
            let stop = Arc::clone(&stop);
            tap.threads.push(node.netns.thread(move || look(&stop)));
        }
        tap
    }

    /// Ends the look.
    ///
    /// # Errors
    /// When a packet socket cannot be made or read.
    pub fn finish(mut self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        let threads = std::mem::take(&mut self.threads).into_iter();
        let seen = threads.map(join).collect::<Result<Vec<_>>>()?;
        Ok(seen.into_iter().fold(Seen::default(), Seen::merge))
    }
}

impl Drop for Wiretap {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Looks at frames that leave the uplink until there were enough of them or `stop` is set.
fn look(stop: &AtomicBool) -> Result<Seen> {
    let (begin, mut seen) = (Instant::now(), Seen::default());
    while begin.elapsed() < DELAY && !stop.load(Ordering::Relaxed) {
        std::thread::sleep(TICK);
    }
    let failed = Error::io("look at frames");
    let socket = hear_departures(UPLINK).map_err(failed)?;
    let vxlan_port = Config::default().vxlan_port;
    let mut buffer = vec![0; BUFFER];
    while seen.frames < SAMPLE && !stop.load(Ordering::Relaxed) {
        match recv(&socket, &mut buffer[..], RecvFlags::TRUNC) {
            Ok((held, length)) => seen.add(&buffer[..held], length as u64, vxlan_port),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(Error::io("look at frames")(errno.into())),
        }
    }
    Ok(seen)
}

/// A packet socket that hears what an interface of this thread's network namespace sends. What it
/// receives is kept from the socket by a filter: a node that only receives would otherwise have
/// each packet copied for nobody. A read takes no longer than [`TICK`].
pub(crate) fn hear_departures(interface: &str) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)?;
    set_socket_timeout(&socket, Timeout::Recv, Some(TICK))?;
    let statement = |code: u32, jt, jf, k| {
        let code = u16::try_from(code).unwrap_or(0);
        SockFilter::new(code, jt, jf, k)
    };
    let packet_type = libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE;
    let filter = [
        statement(BPF_LD | BPF_W | BPF_ABS, 0, 0, packet_type.cast_unsigned()),
        statement(
            BPF_JMP | BPF_JEQ | BPF_K,
            0,
            1,
            libc::PACKET_OUTGOING.into(),
        ),
        statement(BPF_RET | BPF_K, 0, 0, u32::MAX),
        statement(BPF_RET | BPF_K, 0, 0, 0),
    ];
    SockRef::from(&socket).attach_filter(&filter)?;
    let index = rustix::net::netdevice::name_to_index(&socket, interface)?;
    // SAFETY: all bytes zero is a valid address of this type.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let narrow = |constant| u16::try_from(constant).unwrap_or(0);
    address.sll_family = narrow(libc::AF_PACKET);
    address.sll_protocol = narrow(libc::ETH_P_ALL).to_be();
    address.sll_ifindex = index.cast_signed();
    // SAFETY: address and length are those of `address`.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            length_of(&address),
        )
    };
    if bound < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

fn length_of<T>(value: &T) -> libc::socklen_t {
    libc::socklen_t::try_from(size_of_val(value)).unwrap_or(0)
}

/// Whether the TCP or UDP checksums of a frame are right, those of a frame in a VXLAN tunnel
/// included. What has none, or is a fragment, is right.
fn checksums_are_right(frame: &[u8], vxlan_port: u16) -> bool {
    let Ok(packet) = LaxSlicedPacket::from_ethernet(frame) else {
        return true;
    };
    let (Some(net), Some(transport)) = (&packet.net, &packet.transport) else {
        return true;
    };
    let (source, destination): (IpAddr, IpAddr) = match net {
        LaxNetSlice::Ipv4(ip) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        LaxNetSlice::Ipv6(ip) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        _ => return true,
    };
    match transport {
        TransportSlice::Tcp(tcp) => {
            sums_to_zero(source, destination, ip_number::TCP.0, tcp.slice())
        }
        TransportSlice::Udp(udp) => {
            let unset = udp.checksum() == 0 && source.is_ipv4();
            let right = unset || sums_to_zero(source, destination, ip_number::UDP.0, udp.slice());
            let inner = udp.payload().get(VXLAN_HEADER..);
            let tunnelled = inner.filter(|_| udp.destination_port() == vxlan_port);
            right && tunnelled.is_none_or(|inner| checksums_are_right(inner, vxlan_port))
        }
        _ => true,
    }
}

/// Whether a segment, its checksum and its pseudo header sum to nothing.
fn sums_to_zero(source: IpAddr, destination: IpAddr, protocol: u8, segment: &[u8]) -> bool {
    let sum = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => Sum16BitWords::new()
            .add_4bytes(source.octets())
            .add_4bytes(destination.octets()),
        (IpAddr::V6(source), IpAddr::V6(destination)) => Sum16BitWords::new()
            .add_16bytes(source.octets())
            .add_16bytes(destination.octets()),
        _ => return false,
    };
    let Ok(length) = u32::try_from(segment.len()) else {
        return false;
    };
    sum.add_2bytes([0, protocol])
        .add_4bytes(length.to_be_bytes())
        .add_slice(segment)
        .ones_complement()
        == 0
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    const PORT: u16 = 4789;

    fn tcp(payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([10, 0, 0, 10], [10, 0, 1, 10], 64)
            .tcp(40_000, 5201, 1, 500)
            .write(&mut frame, payload)
            .unwrap();
        frame
    }

    fn in_tunnel(inner: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([192, 168, 100, 1], [192, 168, 100, 2], 64)
            .udp(50_000, PORT)
            .write(&mut frame, &[&[8, 0, 0, 0, 0, 0, 1, 0], inner].concat())
            .unwrap();
        frame
    }

    #[test]
    fn finished_checksums_are_right() {
        assert!(checksums_are_right(&tcp(b"hello"), PORT));
        assert!(checksums_are_right(&in_tunnel(&tcp(b"hello")), PORT));
        assert!(checksums_are_right(&[0; 20], PORT), "not IP");
    }

    #[test]
    fn an_unfinished_checksum_is_found_without_and_within_a_tunnel() {
        let mut frame = tcp(b"hello");
        // What a sender leaves there for the device: the folded pseudo header.
        let unfinished = Sum16BitWords::new()
            .add_4bytes([10, 0, 0, 10])
            .add_4bytes([10, 0, 1, 10])
            .add_4bytes([0, 6, 0, 25])
            .ones_complement();
        frame[50..52].copy_from_slice(&(!unfinished).to_be_bytes());
        assert!(!checksums_are_right(&frame, PORT));
        assert!(!checksums_are_right(&in_tunnel(&frame), PORT));
    }

    #[test]
    fn a_tunnel_may_leave_its_own_checksum_out_over_ipv4() {
        let mut frame = in_tunnel(&tcp(b"hello"));
        frame[40..42].fill(0);
        assert!(checksums_are_right(&frame, PORT));
        frame[40..42].fill(1);
        assert!(!checksums_are_right(&frame, PORT));
    }

    #[test]
    fn what_was_seen_adds_up() {
        let mut seen = Seen::default();
        seen.add(&tcp(b"hello"), 59, PORT);
        let other = Seen {
            frames: 2,
            longest: 1514,
            bad_checksums: 1,
        };
        assert_eq!(
            seen.merge(other),
            Seen {
                frames: 3,
                longest: 1514,
                bad_checksums: 1
            }
        );
    }
}
