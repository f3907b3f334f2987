//! ICMP echo of a given size that nobody may cut, and what comes back of it. The IP header is made here,
//! so that the kernel minds the link alone and not what it has learned of the way.

mod v4;
mod v6;

use std::io;
use std::net::IpAddr;

use super::super::super::facts::echo_headers;

/// Bytes that a small one has behind its headers.
const SMALL: usize = 56;

/// What a packet says of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reply {
    /// A small one was answered.
    Small,
    /// A large one was answered.
    Large,
    /// A router cannot forward one that is larger than this.
    TooBig(u32),
}

/// A small request.
///
/// # Errors
/// When source and destination are not of one IP version.
pub(super) fn small(source: IpAddr, destination: IpAddr, id: u16) -> io::Result<Vec<u8>> {
    with_payload(source, destination, id, &[0x50; SMALL])
}

/// A request of `size` bytes in all.
///
/// # Errors
/// When source and destination are not of one IP version, or no packet is as large.
pub(super) fn large(
    source: IpAddr,
    destination: IpAddr,
    id: u16,
    size: u32,
) -> io::Result<Vec<u8>> {
    let payload = vec![0x50; size.saturating_sub(echo_headers(destination)) as usize];
    with_payload(source, destination, id, &payload)
}

fn with_payload(
    source: IpAddr,
    destination: IpAddr,
    id: u16,
    payload: &[u8],
) -> io::Result<Vec<u8>> {
    let packet = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(to)) => v4::request(source, to, id, payload),
        (IpAddr::V6(source), IpAddr::V6(to)) => v6::request(source, to, id, payload),
        _ => None,
    };
    packet.ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// What `bytes`, that a raw socket has received from somebody, say of requests with this `id`, and to
/// whom those were: an answer by its length, or that a router cannot forward one.
pub(super) fn reply(from: IpAddr, bytes: &[u8], id: u16) -> Option<(IpAddr, Reply)> {
    match from {
        IpAddr::V4(_) => v4::reply(bytes, id).map(|(to, reply)| (to.into(), reply)),
        IpAddr::V6(from) => v6::reply(from, bytes, id).map(|(to, reply)| (to.into(), reply)),
    }
}

/// Which request it is whose answer has `payload` behind its headers.
fn answered(payload: &[u8]) -> Reply {
    match payload.len() > SMALL {
        true => Reply::Large,
        false => Reply::Small,
    }
}

/// Whether the echo that an error quotes is one with this `id`: somebody else's ping has another. Eight
/// bytes of it are there at least (RFC 792).
fn is_ours(quoted: &[u8], id: u16) -> bool {
    quoted.get(4..6) == Some(&id.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_of_one_ip_version() {
        let [four, six]: [IpAddr; 2] = ["192.168.1.1", "fd77::1"].map(|text| text.parse().unwrap());
        for (source, destination) in [(four, six), (six, four)] {
            let error = large(source, destination, 7, 1500).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
        for address in [four, six] {
            assert_eq!(large(address, address, 7, 1500).unwrap().len(), 1500);
            let length = small(address, address, 7).unwrap().len();
            assert_eq!(length, SMALL + echo_headers(address) as usize);
            assert!(large(address, address, 7, 70_000).is_err());
        }
    }
}
