//! Features of interfaces and their queues in use, over ethtool's netlink family (generic netlink,
//! Linux 5.6; numbers of linux/ethtool_netlink.h and linux/genetlink.h). The ioctl that dataplanes use
//! for the same needs unsafe code.

use std::collections::BTreeSet;
use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};

const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

const MSG_FEATURES_GET: u8 = 11;
const MSG_CHANNELS_GET: u8 = 17;
const HEADER_DEV_NAME: u16 = 2;
/// First attribute of every request.
const HEADER: u16 = 1;
const FEATURES_ACTIVE: u16 = 4;
const BITSET_BITS: u16 = 3;
const BITSET_BIT_NAME: u16 = 2;
const CHANNELS_RX_COUNT: u16 = 6;
const CHANNELS_COMBINED_COUNT: u16 = 9;

const NESTED: u16 = 0x8000;
const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
/// `struct nlmsghdr` and `struct genlmsghdr`.
const HEADERS: usize = 20;

/// Asks about interfaces of this thread's network namespace.
#[derive(Debug)]
pub struct Ethtool {
    socket: Socket,
    family: u16,
}

impl Ethtool {
    /// Finds the family.
    ///
    /// # Errors
    /// `NotFound` when the kernel has no such family, or what the socket says.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let mut ethtool = Self {
            socket,
            family: GENL_ID_CTRL,
        };
        let name = attribute(CTRL_ATTR_FAMILY_NAME, b"ethtool\0");
        let answer = ethtool.ask(CTRL_CMD_GETFAMILY, &name)?;
        let id = attributes(&answer).find(|(kind, _)| *kind == CTRL_ATTR_FAMILY_ID);
        let id = id.and_then(|(_, value)| value.first_chunk::<2>());
        ethtool.family = u16::from_ne_bytes(*id.ok_or(io::ErrorKind::InvalidData)?);
        Ok(ethtool)
    }

    /// The features in use, by the names that `ethtool -k` shows.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn features(&self, interface: &str) -> io::Result<BTreeSet<String>> {
        let answer = self.ask(MSG_FEATURES_GET, &device(interface))?;
        let active = attributes(&answer).find(|(kind, _)| *kind == FEATURES_ACTIVE);
        Ok(active.map_or_else(BTreeSet::new, |(_, bits)| names(bits)))
    }

    /// Queues that receive; `None` where the driver does not tell.
    ///
    /// # Errors
    /// What the kernel says else.
    pub fn rx_queues(&self, interface: &str) -> io::Result<Option<u32>> {
        let answer = match self.ask(MSG_CHANNELS_GET, &device(interface)) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(None),
            answer => answer?,
        };
        let counts = attributes(&answer)
            .filter(|(kind, _)| [CHANNELS_RX_COUNT, CHANNELS_COMBINED_COUNT].contains(kind))
            .filter_map(|(_, value)| value.first_chunk::<4>());
        let sum = counts.map(|count| u32::from_ne_bytes(*count)).sum();
        Ok(Some(sum).filter(|sum| *sum > 0))
    }

    /// Sends a request and gives the attributes of the answer.
    fn ask(&self, command: u8, attributes: &[u8]) -> io::Result<Vec<u8>> {
        let length = u32::try_from(HEADERS + attributes.len()).unwrap_or(u32::MAX);
        let mut request = length.to_ne_bytes().to_vec();
        request.extend(self.family.to_ne_bytes());
        request.extend(NLM_F_REQUEST.to_ne_bytes());
        // Sequence number and sender, then command, version and two bytes that say nothing.
        request.extend([0; 8]);
        request.extend([command, 1, 0, 0]);
        request.extend(attributes);
        self.socket.send(&request, 0)?;
        let mut answer = Vec::with_capacity(1 << 16);
        self.socket.recv(&mut answer, 0)?;
        let kind = answer.get(4..).and_then(|rest| rest.first_chunk::<2>());
        if kind.map(|kind| u16::from_ne_bytes(*kind)) == Some(NLMSG_ERROR) {
            let code = answer.get(16..).and_then(|rest| rest.first_chunk::<4>());
            let code = code.map_or(0, |code| i32::from_ne_bytes(*code));
            return Err(io::Error::from_raw_os_error(-code));
        }
        Ok(answer.get(HEADERS..).unwrap_or_default().to_vec())
    }
}

/// An attribute with its padding.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The header of a request: which interface is meant.
fn device(interface: &str) -> Vec<u8> {
    let name = [interface.as_bytes(), &[0]].concat();
    attribute(HEADER | NESTED, &attribute(HEADER_DEV_NAME, &name))
}

/// Kind and value of each attribute.
fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let [a, b, c, d] = *rest.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]) & !NESTED, value))
    })
}

/// The names of the bits in a list of those that are set.
fn names(bitset: &[u8]) -> BTreeSet<String> {
    let bits = attributes(bitset).filter(|(kind, _)| *kind == BITSET_BITS);
    let bits = bits.flat_map(|(_, bits)| attributes(bits));
    let names = bits.filter_map(|(_, bit)| {
        let (_, name) = attributes(bit).find(|(kind, _)| *kind == BITSET_BIT_NAME)?;
        let name = name.split(|byte| *byte == 0).next()?;
        Some(String::from_utf8_lossy(name).into_owned())
    });
    names.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_tells_its_features() {
        let ethtool = Ethtool::open().unwrap();
        let features = ethtool.features("lo").unwrap();
        // No loopback leaves either of them out.
        assert!(
            features.contains("loopback") && features.contains("tx-checksum-ip-generic"),
            "{features:?}"
        );
        assert!(!features.contains("tx-vlan-hw-insert"));
        assert_eq!(ethtool.rx_queues("lo").unwrap(), None);
        let error = ethtool.features("podway-none").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }

    #[test]
    fn names_are_found_in_a_list_of_bits() {
        let bit = |name: &[u8]| {
            let inside = [attribute(1, &7_u32.to_ne_bytes()), attribute(2, name)].concat();
            attribute(1 | NESTED, &inside)
        };
        let bits = [bit(b"rx-gro\0"), bit(b"tx-lockless\0")].concat();
        let bitset = [attribute(1, &[]), attribute(3 | NESTED, &bits)].concat();
        let expected = ["rx-gro", "tx-lockless"].map(str::to_owned);
        assert_eq!(names(&bitset), BTreeSet::from(expected));
        for length in 0..bitset.len() {
            assert!(names(&bitset[..length]).len() <= 2);
        }
    }
}
