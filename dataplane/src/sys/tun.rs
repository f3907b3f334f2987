//! Making a TAP device, in the process's own network namespace.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::interface::Request;

/// Ioctls of linux/if_tun.h.
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0;
const TUNSETVNETHDRSZ: libc::Ioctl = 0x4004_54d8;

/// What the reader of the device copes with (linux/if_tun.h): unfinished checksums and super-frames
/// of TCP and UDP, also inside a UDP tunnel.
const OFFLOADS: libc::c_ulong = F_CSUM
    | F_TSO4
    | F_TSO6
    | F_TSO_ECN
    | F_USO4
    | F_USO6
    | F_UDP_TUNNEL_GSO
    | F_UDP_TUNNEL_GSO_CSUM;
const F_CSUM: libc::c_ulong = 0x01;
const F_TSO4: libc::c_ulong = 0x02;
const F_TSO6: libc::c_ulong = 0x04;
const F_TSO_ECN: libc::c_ulong = 0x08;
const F_USO4: libc::c_ulong = 0x20;
const F_USO6: libc::c_ulong = 0x40;
const F_UDP_TUNNEL_GSO: libc::c_ulong = 0x80;
const F_UDP_TUNNEL_GSO_CSUM: libc::c_ulong = 0x100;

/// Makes the TAP device `name`, whose frames begin with `header` bytes of virtio-net header.
/// Reading and writing never block. The device goes with its descriptor.
///
/// # Errors
/// The step and what the system says.
pub(crate) fn open(name: &str, header: u8) -> Result<OwnedFd, (&'static str, io::Error)> {
    let step = |step| move |error: io::Error| (step, error);
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::open("/dev/net/tun", flags, Mode::empty())
        .map_err(|error| ("open /dev/net/tun", error.into()))?;
    let mut request = Request::new(name).map_err(step("name it"))?;
    request.0.ifr_ifru.ifru_flags =
        i16::try_from(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR).unwrap_or(0);
    request
        .ask(fd.as_fd(), TUNSETIFF)
        .map_err(step("make it"))?;
    let length = libc::c_int::from(header);
    // SAFETY: the kernel reads one int, which lives on our stack.
    ok(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETVNETHDRSZ, &raw const length) })
        .map_err(step("set the length of its virtio-net header"))?;
    // SAFETY: this ioctl takes its argument by value.
    ok(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETOFFLOAD, OFFLOADS) }).map_err(step(
        "turn on offloads inside UDP tunnels (Linux 6.17 or newer is needed)",
    ))?;
    Ok(fd)
}

/// Brings an interface up.
///
/// # Errors
/// What the ioctl says.
pub(crate) fn bring_up(name: &str) -> io::Result<()> {
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let mut request = Request::new(name)?;
    request.ask(socket.as_fd(), libc::SIOCGIFFLAGS)?;
    // SAFETY: SIOCGIFFLAGS has filled this member; any bits are an integer.
    let flags = unsafe { request.0.ifr_ifru.ifru_flags };
    request.0.ifr_ifru.ifru_flags = flags | i16::try_from(libc::IFF_UP).unwrap_or(0);
    request.ask(socket.as_fd(), libc::SIOCSIFFLAGS)
}

fn ok(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
