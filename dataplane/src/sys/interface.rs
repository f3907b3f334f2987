//! What the kernel tells of an interface by ioctl, in the process's own network namespace. (sysfs
//! would show the namespace that it was mounted in.)

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use podway_proto::types::MacAddr;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::ethtool;

/// An interface as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interface {
    /// Its index.
    pub(crate) ifindex: u32,
    /// Largest L3 packet in bytes.
    pub(crate) mtu: u16,
    /// Its own MAC.
    pub(crate) mac: MacAddr,
    /// Receive queues in use.
    pub(crate) rx_queues: u32,
    /// Whether a run of datagrams (UDP GSO) gets uncut to whoever is at the other end.
    pub(crate) carries_runs: bool,
}

impl Interface {
    /// Looks `name` up.
    ///
    /// # Errors
    /// `NotFound` when there is no such interface, `InvalidInput` when it is no Ethernet one or
    /// its MTU is over 65535, or what the ioctl says.
    pub(crate) fn by_name(name: &str) -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::INET,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let ifindex =
            rustix::net::netdevice::name_to_index(&socket, name).map_err(|error| match error {
                rustix::io::Errno::NODEV => io::Error::from(io::ErrorKind::NotFound),
                other => other.into(),
            })?;
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());

        let mut request = Request::new(name)?;
        request.ask(socket.as_fd(), libc::SIOCGIFMTU)?;
        // SAFETY: SIOCGIFMTU has filled this member; any bits are an integer.
        let mtu = unsafe { request.0.ifr_ifru.ifru_mtu };
        let mtu = u16::try_from(mtu).map_err(|_| invalid("its MTU is over 65535"))?;

        let mut request = Request::new(name)?;
        request.ask(socket.as_fd(), libc::SIOCGIFHWADDR)?;
        // SAFETY: SIOCGIFHWADDR has filled this member; any bits are integers.
        let address = unsafe { request.0.ifr_ifru.ifru_hwaddr };
        if address.sa_family != libc::ARPHRD_ETHER {
            return Err(invalid("it is not an Ethernet interface"));
        }
        let mut mac = [0; 6];
        for (to, from) in mac.iter_mut().zip(address.sa_data) {
            *to = from.to_ne_bytes()[0];
        }
        Ok(Self {
            ifindex,
            mtu,
            mac: MacAddr(mac),
            rx_queues: ethtool::rx_queues(socket.as_fd(), name)?,
            carries_runs: ethtool::carries_runs(socket.as_fd(), name)?,
        })
    }
}

pub(super) struct Request(pub(super) libc::ifreq);

impl Request {
    pub(super) fn new(name: &str) -> io::Result<Self> {
        // SAFETY: an ifreq is plain integers and pointers, for which zero is valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        if name.len() >= request.ifr_name.len() {
            return Err(io::ErrorKind::NotFound.into());
        }
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = libc::c_char::from_ne_bytes([from]);
        }
        Ok(Self(request))
    }

    pub(super) fn ask(&mut self, socket: BorrowedFd<'_>, request: libc::Ioctl) -> io::Result<()> {
        // SAFETY: all requests of this module take an ifreq; SIOCETHTOOL follows `ifru_data` to a
        // struct that its caller keeps alive.
        let result = unsafe { libc::ioctl(socket.as_raw_fd(), request, &raw mut self.0) };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_interface_is_not_found() {
        for name in ["podway-none", "a-name-longer-than-any-interface"] {
            assert_eq!(
                Interface::by_name(name).unwrap_err().kind(),
                io::ErrorKind::NotFound
            );
        }
    }

    #[test]
    fn loopback_is_no_ethernet_interface() {
        let error = Interface::by_name("lo").unwrap_err();
        assert_eq!(error.to_string(), "its MTU is over 65535");
    }
}
