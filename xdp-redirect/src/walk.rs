//! What the programs would do with a packet that nobody gives to them: the rules of `bpf/rules.h` once
//! more, on the maps as they are.
//!
//! To run a program on the packet would count it, and hand it to its worker. Here everything is only
//! read; what no system call reads (conntrack, the map of sockets) the program `podway_ask` tells, which
//! is attached nowhere. That both come to the same end is tested with each packet of the tests of the
//! programs (`tests/support/node.rs`).

mod read;

use std::net::IpAddr;
use std::sync::atomic::Ordering;

use podway_proto::reasons::{PassCause, RefuseCause};

use crate::error::Error;
use crate::layout::{CONFIG_DEFRAGMENTS, CONFIG_TRANSLATES, PortEntry, Role};
use crate::load::Redirect;
use read::{Ip, Scope, scope};

/// `ETH_HLEN`, `ETH_ZLEN` and `MAX_FRAME`.
const ETHERNET: usize = 14;
const SHORTEST: usize = 60;
const MAX_FRAME: usize = ETHERNET + 65535;
/// `HEARTBEAT_LIMIT_NS` and `OVERSIZE_FLOW_NS`.
const HEARTBEAT_LIMIT_NS: u64 = 1_000_000_000;
const OVERSIZE_FLOW_NS: u64 = 1_000_000_000;

/// IP protocol numbers.
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const FRAGMENT: u8 = 44;
const ICMPV6: u8 = 58;
/// `IPPROTO_HOPOPTS`, `IPPROTO_ROUTING`, `IPPROTO_AH`, `IPPROTO_DSTOPTS`, `IPPROTO_MH`, HIP, Shim6.
const EXTENSIONS: [u8; 7] = [0, 43, 51, 60, 135, 139, 140];

/// A frame that might arrive.
#[derive(Debug, Clone, Copy)]
pub struct Arrival<'a> {
    /// Index of the interface that it would come by.
    pub ifindex: u32,
    /// The queue.
    pub queue: u32,
    /// Which program is on the port.
    pub program: Kind,
    /// Its bytes, from the Ethernet header on.
    pub frame: &'a [u8],
    /// Whether it is a super-frame whatever its size.
    pub gso: bool,
}

/// Which program is on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `podway_classify`, which redirects to the worker's TAP and ring.
    Tcx,
    /// `podway_redirect`, which redirects to the socket of the queue.
    Xdp,
}

/// What becomes of a frame at the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// A worker has it.
    Redirect {
        /// Its number.
        worker: u32,
        /// How it gets there.
        by: Way,
    },
    /// The kernel has it.
    Pass(PassCause),
    /// Nobody has it.
    Refuse(RefuseCause),
}

/// How a packet gets to its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By the worker's TAP.
    Tap,
    /// By the worker's packet ring.
    Ring,
    /// By the AF_XDP socket of the queue.
    Socket,
}

/// A rule that was asked, and what was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The rule's name.
    pub rule: &'static str,
    /// What was found, in words.
    pub found: String,
}

/// The way of a frame through the rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Walk {
    /// The rules that were asked, in order. The last one decided.
    pub findings: Vec<Finding>,
    /// What becomes of the frame.
    pub fate: Fate,
}

/// Why the walk does not go on.
enum Stop {
    Pass(PassCause),
    Refuse(RefuseCause),
    Failed(Error),
}

impl From<PassCause> for Stop {
    fn from(cause: PassCause) -> Self {
        Self::Pass(cause)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

type Checked<T = ()> = Result<T, Stop>;

impl Redirect {
    /// What becomes of a frame at its port, if the maps stay as they are. Counts nothing and sends
    /// nothing.
    ///
    /// # Errors
    /// [`Error::Map`] when a map cannot be read.
    pub fn walk(&self, arrival: &Arrival<'_>) -> Result<Walk, Error> {
        let mut walker = Walker {
            redirect: self,
            arrival: *arrival,
            findings: Vec::new(),
        };
        let fate = match walker.decide() {
            Ok(fate) => fate,
            Err(Stop::Pass(cause)) => Fate::Pass(cause),
            Err(Stop::Refuse(cause)) => Fate::Refuse(cause),
            Err(Stop::Failed(error)) => return Err(error),
        };
        Ok(Walk {
            findings: walker.findings,
            fate,
        })
    }
}

struct Walker<'a> {
    redirect: &'a Redirect,
    arrival: Arrival<'a>,
    findings: Vec<Finding>,
}

impl Walker<'_> {
    fn note(&mut self, rule: &'static str, found: impl Into<String>) {
        let found = found.into();
        self.findings.push(Finding { rule, found });
    }

    /// Notes what decides, and why.
    fn stop<T>(
        &mut self,
        rule: &'static str,
        found: impl Into<String>,
        stop: impl Into<Stop>,
    ) -> Checked<T> {
        self.note(rule, found);
        Err(stop.into())
    }

    /// `podway_redirect` and `podway_classify`.
    fn decide(&mut self) -> Checked<Fate> {
        let port = self.enter()?;
        let ip = self.classify(&port)?;
        self.check_connection(&ip)?;
        match self.arrival.program {
            Kind::Xdp => self.by_socket(&port),
            Kind::Tcx => self.by_worker(&port, &ip),
        }
    }

    fn enter(&mut self) -> Checked<PortEntry> {
        let Some(port) = self.redirect.read_port(self.arrival.ifindex)? else {
            return self.stop("port", "not in the programs' map", PassCause::UnknownPort);
        };
        let role = match port.role {
            Role::Pod => "of a pod",
            Role::Uplink => "an uplink",
        };
        self.note("port", format!("{role}, MTU {}", port.mtu));
        if !self.redirect.gate_is_open() {
            return self.stop("gate", "closed", PassCause::GateClosed);
        }
        self.note("gate", "open");
        Ok(port)
    }

    fn classify(&mut self, port: &PortEntry) -> Checked<Ip> {
        let frame = self.arrival.frame;
        let Some(ethernet) = frame.first_chunk::<ETHERNET>() else {
            return self.stop("ethernet", "no whole header", PassCause::Malformed);
        };
        if port.role == Role::Pod {
            if port.any_source {
                self.note("sender", "may send from any address");
            } else {
                self.check_sender()?;
            }
        }
        if ethernet[..6] != port.mac {
            return self.stop("mac", "not the port's own", PassCause::NotForUs);
        }
        self.note("mac", "the port's own");
        if frame.len() > MAX_FRAME {
            let found = format!("{} bytes", frame.len());
            return self.stop("size", found, PassCause::Oversize);
        }
        let mut ip = self.read_ip("ip", 12)?;
        let available = frame.len() - ETHERNET;
        ip.available = available;
        ip.super_frame = self.arrival.gso || available > usize::from(port.mtu);
        match port.role {
            Role::Pod => self.check_pod(&ip)?,
            Role::Uplink => self.check_uplink(&mut ip)?,
        }
        self.check_forward(&ip)?;
        Ok(ip)
    }

    /// The IP header behind the EtherType at `at`.
    fn read_ip(&mut self, rule: &'static str, at: usize) -> Checked<Ip> {
        match Ip::read(self.arrival.frame, at) {
            Ok(ip) => {
                let found = format!(
                    "{} -> {}, protocol {}, {} bytes",
                    ip.source, ip.destination, ip.protocol, ip.length
                );
                self.note(rule, found);
                Ok(ip)
            }
            Err(cause) => self.stop(rule, "cannot be read as the rules want it", cause),
        }
    }

    fn is_own(&self, address: IpAddr) -> Checked<bool> {
        Ok(self.redirect.pod_of(address)? == Some(self.arrival.ifindex))
    }

    /// Of an address that a pod sends from, by ARP or IP.
    fn check_sender(&mut self) -> Checked {
        let Some(sender) = read::sender(self.arrival.frame) else {
            return Ok(());
        };
        if sender.is_free {
            self.note("sender", format!("{} on its own link", sender.address));
            return Ok(());
        }
        if self.is_own(sender.address)? {
            self.note("sender", format!("{} is the pod's own", sender.address));
            return Ok(());
        }
        let found = format!("{} is not an address of this pod", sender.address);
        self.stop("sender", found, Stop::Refuse(RefuseCause::SpoofedSource))
    }

    /// Whether routers forward what is to `address`.
    fn check_scope(&mut self, address: IpAddr) -> Checked {
        match scope(address) {
            Scope::Routed => Ok(()),
            Scope::Multicast => {
                let found = format!("{address} is multicast, broadcast or reserved");
                self.stop("destination", found, PassCause::Multicast)
            }
            Scope::Link => {
                let found = format!("{address} is of one link or host");
                self.stop("destination", found, PassCause::LinkLocal)
            }
        }
    }

    fn check_pod(&mut self, ip: &Ip) -> Checked {
        self.check_scope(ip.destination)?;
        if self.redirect.is_local(ip.destination)? {
            let found = format!("{} is this node's own", ip.destination);
            return self.stop("destination", found, PassCause::LocalAddress);
        }
        self.note("destination", "not this node's own");
        Ok(())
    }

    fn check_uplink(&mut self, ip: &mut Ip) -> Checked {
        let tunnel = self.redirect.is_local(ip.destination)?;
        if tunnel {
            self.open_tunnel(ip)?;
        } else {
            self.note("tunnel", "none: not for an address of this node");
        }
        let own_source = Stop::Refuse(RefuseCause::OwnSource);
        if self.redirect.is_local(ip.source)? {
            let found = format!("{} is this node's own", ip.source);
            return self.stop("source", found, own_source);
        }
        if self.redirect.pod_of(ip.source)?.is_some() {
            let found = format!("{} is a pod's of this node", ip.source);
            let stop = if tunnel {
                own_source
            } else {
                PassCause::ForeignSource.into()
            };
            return self.stop("source", found, stop);
        }
        self.check_scope(ip.destination)?;
        if scope(ip.source) != Scope::Routed {
            let found = format!("no router forwards what is from {}", ip.source);
            return self.stop("source", found, PassCause::ForeignSource);
        }
        self.note("source", "not this node's own, nor one of its pods");
        if self.redirect.pod_of(ip.destination)?.is_none() {
            let found = format!("{} is no attached pod", ip.destination);
            return self.stop("destination", found, PassCause::NoSuchPod);
        }
        self.note("destination", "an attached pod");
        let icmp = if ip.source.is_ipv6() { ICMPV6 } else { ICMP };
        if !tunnel && ip.protocol != icmp {
            if self.redirect.route_to(ip.source)?.is_none() {
                let found = format!("{} is in no fast-path prefix", ip.source);
                return self.stop("way back", found, PassCause::NoRoute);
            }
            self.note("way back", "the source is in a fast-path prefix");
        }
        Ok(())
    }

    /// Goes on with the packet inside of the tunnel.
    fn open_tunnel(&mut self, ip: &mut Ip) -> Checked {
        let frame = self.arrival.frame;
        if ip.protocol != UDP || ip.fragment {
            return self.stop("tunnel", "for this node, and no VXLAN", PassCause::NotVxlan);
        }
        let Some(udp) = read::udp_header(frame, ip.payload) else {
            return self.stop("tunnel", "no whole UDP header", PassCause::Malformed);
        };
        let ours = self.redirect.config.entries()[0]
            .vxlan_port
            .load(Ordering::SeqCst);
        let port = read::number(&udp, 2);
        if port == 0 || port != ours {
            let found = format!("to UDP port {port}; VXLAN has {ours}");
            return self.stop("tunnel", found, PassCause::NotVxlan);
        }
        let vxlan = ip.payload + 8;
        let Some(header) = frame.get(vxlan..vxlan + 8) else {
            return self.stop("tunnel", "no whole VXLAN header", PassCause::Malformed);
        };
        if header[0] & 0x08 == 0 {
            return self.stop("tunnel", "the I flag is clear", PassCause::NotVxlan);
        }
        self.note("tunnel", format!("VXLAN from {}", ip.source));
        let vni = u32::from_be_bytes([0, header[4], header[5], header[6]]);
        if !self.redirect.has_vni(vni)? {
            let found = format!("{vni} is not served here");
            return self.stop("vni", found, PassCause::UnknownVni);
        }
        self.note("vni", format!("{vni} is served here"));
        let inner = vxlan + 8;
        let Some(ethernet) = frame.get(inner..inner + ETHERNET) else {
            return self.stop("inner", "no whole Ethernet header", PassCause::Malformed);
        };
        if ethernet[0] & 1 != 0 {
            return self.stop("inner", "to a group of MACs", PassCause::NotForUs);
        }
        let (available, super_frame) = (ip.available.saturating_sub(inner), ip.super_frame);
        *ip = Ip {
            available,
            super_frame,
            ..self.read_ip("inner", inner + 12)?
        };
        if available > ip.length && available > SHORTEST - ETHERNET {
            let found = format!("{} bytes behind the packet", available - ip.length);
            return self.stop("batch", found, PassCause::Batch);
        }
        Ok(())
    }

    fn check_forward(&mut self, ip: &Ip) -> Checked {
        let flags = self.redirect.config.entries()[0]
            .flags
            .load(Ordering::SeqCst);
        if ip.fragment && flags & CONFIG_DEFRAGMENTS != 0 {
            let found = "the kernel puts fragments together";
            return self.stop("fragment", found, PassCause::Fragment);
        }
        self.check_protocol(ip)?;
        if ip.hops <= 1 {
            let found = format!("{} is used up", ip.hops);
            return self.stop("hop limit", found, PassCause::HopLimit);
        }
        self.note("hop limit", ip.hops.to_string());
        let mtu = match self.redirect.route_to(ip.destination)? {
            None => {
                let found = format!("{} is in no fast-path prefix", ip.destination);
                return self.stop("route", found, PassCause::NoRoute);
            }
            Some(0) => {
                let found = "the longest fast-path prefix has no resolved next hop";
                return self.stop("route", found, PassCause::Unresolved);
            }
            Some(mtu) => mtu,
        };
        self.note(
            "route",
            format!("a fast-path prefix that carries {mtu} bytes"),
        );
        if ip.length > ip.available {
            self.note("size", "a length beyond the packet, for the worker to drop");
            return Ok(());
        }
        let fits = ip.length <= usize::from(mtu) && !ip.super_frame;
        if ip.protocol == UDP && !ip.fragment {
            return self.check_udp(ip, fits);
        }
        if fits {
            self.note("size", format!("{} bytes fit", ip.length));
            return Ok(());
        }
        if ip.protocol == TCP && !ip.fragment {
            self.note("size", format!("{} bytes of TCP, to be cut", ip.length));
            return Ok(());
        }
        self.stop("size", too_large(ip), PassCause::Oversize)
    }

    fn check_protocol(&mut self, ip: &Ip) -> Checked {
        let v6 = ip.destination.is_ipv6();
        let found = format!("{}", ip.protocol);
        let cause = match ip.protocol {
            TCP | UDP => None,
            ICMP if !v6 => None,
            ICMPV6 if v6 => match self.arrival.frame.get(ip.payload) {
                None => Some(PassCause::Malformed),
                Some(130..=137 | 141..=143 | 148..=153) => Some(PassCause::NeighborDiscovery),
                Some(_) => None,
            },
            FRAGMENT if v6 => Some(PassCause::Fragment),
            other if v6 && EXTENSIONS.contains(&other) => Some(PassCause::ExtensionHeader),
            _ => Some(PassCause::Protocol),
        };
        match cause {
            Some(cause) => self.stop("protocol", found, cause),
            None => {
                self.note("protocol", format!("{found}: TCP, UDP or ICMP"));
                Ok(())
            }
        }
    }

    /// What the program notes of a flow that it leaves to the kernel is not noted here.
    fn check_udp(&mut self, ip: &Ip, fits: bool) -> Checked {
        let ports = read::udp_header(self.arrival.frame, ip.payload);
        if !fits {
            return self.stop("size", too_large(ip), PassCause::Oversize);
        }
        let stays = match ports {
            None => false,
            Some(udp) => {
                let source = (ip.source, read::number(&udp, 0));
                let destination = (ip.destination, read::number(&udp, 2));
                let seen = self.redirect.oversize_flow(source, destination)?;
                seen.is_some_and(|at| at + OVERSIZE_FLOW_NS >= read::coarse_now())
            }
        };
        if stays {
            let found = "the flow has sent what only the kernel can cut, less than a second ago";
            return self.stop("flow", found, PassCause::Oversize);
        }
        self.note("size", format!("{} bytes fit", ip.length));
        Ok(())
    }

    fn check_connection(&mut self, ip: &Ip) -> Checked {
        let flags = self.redirect.config.entries()[0]
            .flags
            .load(Ordering::SeqCst);
        if flags & CONFIG_TRANSLATES == 0 {
            self.note("conntrack", "not asked: no rule translates addresses");
            return Ok(());
        }
        let inner = self.arrival.frame.get(ip.ethernet..).unwrap_or_default();
        match self.redirect.ask(inner, 0)?.cause {
            None => {
                self.note("conntrack", "does not translate the connection");
                Ok(())
            }
            Some(cause) => self.stop("conntrack", cause.meaning(), cause),
        }
    }

    /// The worker of a queue, if it is alive.
    fn living(&mut self, index: u32) -> Checked<u32> {
        let Some(worker) = self.redirect.queue_worker(index)? else {
            return self.stop("worker", "none", PassCause::WorkerStalled);
        };
        let now = read::coarse_now();
        let beaten_at = self.redirect.beaten_at(worker);
        match beaten_at {
            Some(at) if at + HEARTBEAT_LIMIT_NS >= now => {
                self.note("worker", format!("{worker} is alive"));
                Ok(worker)
            }
            Some(at) => {
                let age = now.saturating_sub(at) / 1_000_000;
                let found = format!("{worker} has not beaten for {age} ms");
                self.stop("worker", found, PassCause::WorkerStalled)
            }
            None => {
                let found = format!("{worker} does not run");
                self.stop("worker", found, PassCause::WorkerStalled)
            }
        }
    }

    /// `to_socket`.
    fn by_socket(&mut self, port: &PortEntry) -> Checked<Fate> {
        let queue = self.arrival.queue;
        if queue >= port.queues {
            let found = format!("queue {queue} of {}", port.queues);
            return self.stop("queue", found, PassCause::NoSocket);
        }
        let index = port.xsk_base + queue;
        let worker = self.living(index)?;
        if !self.redirect.ask(self.arrival.frame, index)?.socket {
            let found = format!("none for queue {queue}");
            return self.stop("socket", found, PassCause::NoSocket);
        }
        self.note("socket", format!("that of queue {queue}"));
        Ok(Fate::Redirect {
            worker,
            by: Way::Socket,
        })
    }

    /// `to_worker`.
    fn by_worker(&mut self, port: &PortEntry, ip: &Ip) -> Checked<Fate> {
        let queue = match self.arrival.queue {
            queue if queue < port.queues => queue,
            _ => 0,
        };
        let worker = self.living(port.xsk_base + queue)?;
        if !self.redirect.has_tap(worker)? {
            let found = format!("worker {worker} has no TAP");
            return self.stop("tap", found, PassCause::NoSocket);
        }
        // Of a packet that is not on its way nobody has left the checksum to a device.
        let by = match ip.protocol == TCP || !self.redirect.has_ring(worker)? {
            true => Way::Tap,
            false => Way::Ring,
        };
        let found = match by {
            Way::Tap => "the worker's TAP",
            _ => "the worker's packet ring",
        };
        self.note("by", found);
        Ok(Fate::Redirect { worker, by })
    }
}

fn too_large(ip: &Ip) -> String {
    match ip.super_frame {
        true => format!("a super-frame of {} bytes that is no TCP", ip.length),
        false => format!("{} bytes do not fit", ip.length),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// That the numbers here are those of the programs.
    #[test]
    fn numbers_are_those_of_the_header() {
        let header = include_str!("bpf/shared.h");
        for line in [
            format!("#define HEARTBEAT_LIMIT_NS {HEARTBEAT_LIMIT_NS}ULL\n"),
            format!("#define OVERSIZE_FLOW_NS {OVERSIZE_FLOW_NS}ULL\n"),
            format!("#define OWNER_DIED {:#x}\n", crate::memory::OWNER_DIED),
        ] {
            assert!(header.contains(&line), "{line}");
        }
    }
}
