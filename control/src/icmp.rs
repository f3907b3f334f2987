//! Sockets that hear ICMP errors of one kind, whoever they are for.

use std::io::{self, ErrorKind, Read as _};
use std::os::fd::{AsRawFd as _, RawFd};

use libc::{
    BPF_ABS, BPF_B, BPF_H, BPF_IND, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_LDX, BPF_MSH, BPF_RET,
};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

/// An error quotes a few hundred bytes; what is needed comes first.
const LONGEST: usize = 256;
/// Errors that are taken at once, so that a flood of them does not hold up the round.
const MOST_AT_ONCE: usize = 1024;

/// A pair of raw sockets. They never block.
#[derive(Debug)]
pub(crate) struct Listener {
    v4: Socket,
    /// `None` where there is no IPv6.
    v6: Option<Socket>,
}

/// Which errors are let by, so that a node that is pinged does not wake us.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Filter {
    /// Type and code of ICMP (RFC 792).
    pub(crate) v4: (u8, u8),
    /// Type of ICMPv6 (RFC 4443), and its code if the type says not all.
    pub(crate) v6: (u8, Option<u8>),
    /// The UDP port that what is quoted was sent to, if not all matter.
    pub(crate) port: Option<u16>,
}

/// Offset of a UDP header's destination port.
const UDP_PORT: u32 = 2;
/// Lengths of headers: of ICMP, and of what is quoted, which has no options if it is ours.
const ICMP: u32 = 8;
const QUOTED_V4: u32 = 20;
const QUOTED_V6: u32 = 40;

impl Filter {
    fn only_v4(self) -> Vec<SockFilter> {
        let (kind, code) = self.v4;
        let port = self.port.map(|port| {
            let at = ICMP + QUOTED_V4 + UDP_PORT;
            (BPF_H | BPF_IND, at, u32::from(port))
        });
        let checks = [
            Some((BPF_B | BPF_IND, 0, kind.into())),
            Some((BPF_B | BPF_IND, 1, code.into())),
            port,
        ];
        // The length of the IPv4 header is what offsets are counted from.
        program(Some(instruction(BPF_LDX | BPF_B | BPF_MSH, 0, 0)), checks)
    }

    fn only_v6(self) -> Vec<SockFilter> {
        let (kind, code) = self.v6;
        let port = self.port.map(|port| {
            let at = ICMP + QUOTED_V6 + UDP_PORT;
            (BPF_H | BPF_ABS, at, u32::from(port))
        });
        let checks = [
            Some((BPF_B | BPF_ABS, 0, kind.into())),
            code.map(|code| (BPF_B | BPF_ABS, 1, code.into())),
            port,
        ];
        program(None, checks)
    }
}

/// A program that lets by what passes all checks: what is loaded from which offset, and what it
/// must be.
fn program(first: Option<SockFilter>, checks: [Option<(u32, u32, u32)>; 3]) -> Vec<SockFilter> {
    let mut program: Vec<SockFilter> = first.into_iter().collect();
    let mut left = u8::try_from(checks.iter().flatten().count()).unwrap_or(0);
    for (load, offset, value) in checks.into_iter().flatten() {
        left -= 1;
        program.push(instruction(BPF_LD | load, offset, 0));
        // Over the other checks and the acceptance.
        let refusal = 2 * left + 1;
        program.push(instruction(BPF_JMP | BPF_JEQ | BPF_K, value, refusal));
    }
    let (accept, refuse) = (u32::MAX, 0);
    program.push(instruction(BPF_RET | BPF_K, accept, 0));
    program.push(instruction(BPF_RET | BPF_K, refuse, 0));
    program
}

/// One of classic BPF (linux/filter.h); a jump that is not equal skips `otherwise` others.
fn instruction(code: u32, k: u32, otherwise: u8) -> SockFilter {
    SockFilter::new(u16::try_from(code).unwrap_or(0), 0, otherwise, k)
}

impl Listener {
    /// Begins to listen in this thread's network namespace.
    ///
    /// # Errors
    /// What the kernel says: `EPERM` without the capability `CAP_NET_RAW`.
    pub(crate) fn open(filter: Filter) -> io::Result<Self> {
        let v6 = match listen(Domain::IPV6, Protocol::ICMPV6, &filter.only_v6()) {
            Ok(socket) => Some(socket),
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
            Err(error) => return Err(error),
        };
        Ok(Self {
            v4: listen(Domain::IPV4, Protocol::ICMPV4, &filter.only_v4())?,
            v6,
        })
    }

    /// What is readable when an error has come.
    pub(crate) fn fds(&self) -> impl Iterator<Item = RawFd> {
        let v6 = self.v6.as_ref().map(Socket::as_raw_fd);
        std::iter::once(self.v4.as_raw_fd()).chain(v6)
    }

    /// What `read_v4` makes of the IPv4 packets that have come, and `read_v6` of the ICMPv6
    /// messages: such a socket gives no IPv6 header.
    pub(crate) fn drain<T>(
        &mut self,
        read_v4: fn(&[u8]) -> Option<T>,
        read_v6: fn(&[u8]) -> Option<T>,
    ) -> Vec<T> {
        let mut found = Vec::new();
        take(&mut self.v4, read_v4, &mut found);
        if let Some(v6) = &mut self.v6 {
            take(v6, read_v6, &mut found);
        }
        found
    }
}

fn listen(domain: Domain, protocol: Protocol, filter: &[SockFilter]) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    socket.attach_filter(filter)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn take<T>(socket: &mut Socket, read: fn(&[u8]) -> Option<T>, found: &mut Vec<T>) {
    let mut packet = [0; LONGEST];
    for _ in 0..MOST_AT_ONCE {
        match socket.read(&mut packet) {
            Ok(length) => found.extend(packet.get(..length).and_then(read)),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}
