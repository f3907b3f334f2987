//! What the kernel tells of an interface by `SIOCETHTOOL`. The structures and numbers are those of
//! linux/ethtool.h.

use std::io;
use std::os::fd::BorrowedFd;

use super::interface::Request;

/// Drivers whose interfaces end at another kernel, or in another namespace of this one, and that hand
/// over a super-frame as it is where they take it at all. Every other one with the offload cuts it.
const HAND_OVER: [&str; 3] = ["veth", "virtio_net", "tun"];

/// Most features that are looked at, in blocks of 32. Linux 6.18 has less than two.
const BLOCKS: u32 = 4;
const MAX_FEATURES: usize = BLOCKS as usize * 32;

/// How many queues receive. A driver that does not tell has one.
pub(super) fn rx_queues(socket: BorrowedFd<'_>, name: &str) -> io::Result<u32> {
    const ETHTOOL_GCHANNELS: u32 = 0x3c;
    #[repr(C)]
    #[derive(Default)]
    struct Channels {
        cmd: u32,
        max_rx: u32,
        max_tx: u32,
        max_other: u32,
        max_combined: u32,
        rx_count: u32,
        tx_count: u32,
        other_count: u32,
        combined_count: u32,
    }

    let mut channels = Channels {
        cmd: ETHTOOL_GCHANNELS,
        ..Channels::default()
    };
    if ask(socket, name, &mut channels)? {
        Ok((channels.rx_count + channels.combined_count).max(1))
    } else {
        Ok(1)
    }
}

/// Whether the interface hands a run of datagrams (UDP GSO) over uncut.
pub(super) fn carries_runs(socket: BorrowedFd<'_>, name: &str) -> io::Result<bool> {
    Ok(hands_over(socket, name)? && has_feature(socket, name, "tx-udp-segmentation")?)
}

/// Whether its driver is one of [`HAND_OVER`].
fn hands_over(socket: BorrowedFd<'_>, name: &str) -> io::Result<bool> {
    const ETHTOOL_GDRVINFO: u32 = 3;
    #[repr(C)]
    struct DriverInfo {
        cmd: u32,
        driver: [u8; 32],
        /// Versions, the bus, and numbers of other things.
        rest: [u8; 160],
    }

    let mut info = DriverInfo {
        cmd: ETHTOOL_GDRVINFO,
        driver: [0; 32],
        rest: [0; 160],
    };
    Ok(ask(socket, name, &mut info)? && HAND_OVER.iter().any(|driver| is(&info.driver, driver)))
}

/// Whether a feature is in use, by the name that `ethtool -k` shows.
fn has_feature(socket: BorrowedFd<'_>, name: &str, feature: &str) -> io::Result<bool> {
    const ETHTOOL_GSTRINGS: u32 = 0x1b;
    const ETHTOOL_GSSET_INFO: u32 = 0x37;
    const ETHTOOL_GFEATURES: u32 = 0x3a;
    const ETH_SS_FEATURES: u32 = 4;
    #[repr(C)]
    struct Count {
        cmd: u32,
        reserved: u32,
        sets: u64,
        count: u32,
    }
    #[repr(C)]
    struct Names {
        cmd: u32,
        set: u32,
        count: u32,
        names: [[u8; 32]; MAX_FEATURES],
    }
    #[repr(C)]
    struct Features {
        cmd: u32,
        blocks: u32,
        /// Available, requested, active and never changed, a bit each.
        bits: [[u32; 4]; BLOCKS as usize],
    }

    let mut count = Count {
        cmd: ETHTOOL_GSSET_INFO,
        reserved: 0,
        sets: 1 << ETH_SS_FEATURES,
        count: 0,
    };
    // The names are written without regard to the room that there is.
    if !ask(socket, name, &mut count)? || count.sets == 0 || count.count as usize > MAX_FEATURES {
        return Ok(false);
    }
    let mut names = Names {
        cmd: ETHTOOL_GSTRINGS,
        set: ETH_SS_FEATURES,
        count: count.count,
        names: [[0; 32]; MAX_FEATURES],
    };
    let mut features = Features {
        cmd: ETHTOOL_GFEATURES,
        blocks: BLOCKS,
        bits: [[0; 4]; BLOCKS as usize],
    };
    if !ask(socket, name, &mut names)? || !ask(socket, name, &mut features)? {
        return Ok(false);
    }
    let Some(number) = names.names.iter().position(|name| is(name, feature)) else {
        return Ok(false);
    };
    let block = features.bits.get(number / 32);
    Ok(block.is_some_and(|[_, _, active, _]| active >> (number % 32) & 1 == 1))
}

/// Whether `bytes` are the text, with zeros behind it.
fn is(bytes: &[u8; 32], text: &str) -> bool {
    let end = bytes.iter().position(|byte| *byte == 0);
    bytes.get(..end.unwrap_or(bytes.len())) == Some(text.as_bytes())
}

/// Asks with `request`, which is one of the structures that begin with a command and is answered in
/// place; false where the driver does not tell.
fn ask<T>(socket: BorrowedFd<'_>, name: &str, request: &mut T) -> io::Result<bool> {
    let mut ioctl = Request::new(name)?;
    ioctl.0.ifr_ifru.ifru_data = std::ptr::from_mut(request).cast();
    match ioctl.ask(socket, libc::SIOCETHTOOL) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

    use super::*;

    #[test]
    fn features_are_found_by_name() {
        let kind = SocketType::DGRAM;
        let socket = socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC, None).unwrap();
        let has = |feature| has_feature(socket.as_fd(), "lo", feature).unwrap();
        // No loopback leaves either of them out.
        assert!(has("loopback") && has("tx-checksum-ip-generic"));
        assert!(!has("tx-vlan-hw-insert") && !has("no-such-feature"));
        assert!(!carries_runs(socket.as_fd(), "lo").unwrap());
        assert_eq!(rx_queues(socket.as_fd(), "lo").unwrap(), 1);
    }

    #[test]
    fn a_name_ends_at_the_first_zero() {
        let mut bytes = [0; 32];
        bytes[..5].copy_from_slice(b"veth\0");
        bytes[6] = b'x';
        assert!(is(&bytes, "veth"));
        assert!(!is(&bytes, "vet") && !is(&bytes, "veth1"));
        assert!(is(&[b'a'; 32], &"a".repeat(32)));
    }
}
