//! What a single value must be, whatever else was told.

use std::net::IpAddr;

use ipnet::IpNet;
use podway_proto::types::MacAddr;

use super::{Check, invalid};

/// Longest node name in bytes; a DNS name fits (RFC 1035).
const MAX_NAME: usize = 253;
/// Longest interface name in bytes (`IFNAMSIZ` of linux/if.h without its NUL).
const MAX_INTERFACE: usize = 15;

/// Whether `name` may name a node.
///
/// # Errors
/// A sentence on what is allowed.
pub fn check_node_name(name: &str) -> Check {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(allowed) {
        return Err(invalid(format!(
            "'{}' is no node name; use up to {MAX_NAME} letters, digits, '-', '_' and '.'",
            name.escape_debug().take(MAX_NAME).collect::<String>()
        )));
    }
    if name.parse::<IpAddr>().is_ok() {
        return Err(invalid(format!(
            "'{name}' is an address; a node is named by a word"
        )));
    }
    Ok(())
}

/// Whether `name` may name an interface (`dev_valid_name` of net/core/dev.c).
pub(super) fn check_interface_name(name: &str) -> Check {
    let forbidden = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    let bad = name.is_empty()
        || name.len() > MAX_INTERFACE
        || name == "."
        || name == ".."
        || name.contains(forbidden);
    if bad {
        return Err(invalid(format!(
            "'{}' is no interface name; see ip link",
            name.escape_debug().take(MAX_NAME).collect::<String>()
        )));
    }
    Ok(())
}

pub(super) fn check_unicast(address: IpAddr, what: &str) -> Check {
    let bad = address.is_unspecified()
        || address.is_multicast()
        || address.is_loopback()
        || match address {
            IpAddr::V4(v4) => v4.is_broadcast() || v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
        };
    if bad {
        return Err(invalid(format!(
            "{address} cannot be {what}; use a routed unicast address"
        )));
    }
    Ok(())
}

pub(super) fn check_mac(mac: MacAddr, whose: &str) -> Check {
    if mac.is_multicast() || mac == MacAddr::default() {
        return Err(invalid(format!(
            "{mac} cannot be the MAC of a {whose}; use a unicast one"
        )));
    }
    Ok(())
}

/// Whether packets to `prefix` may be Podway's.
pub(crate) fn check_prefix(prefix: IpNet) -> Check {
    if prefix != prefix.trunc() {
        return Err(invalid(format!(
            "{prefix} has host bits set; write {}",
            prefix.trunc()
        )));
    }
    if prefix.prefix_len() == 0 {
        return Err(invalid(format!(
            "{prefix} is the whole world, which stays the kernel's; write what the pods need"
        )));
    }
    let multicast: [IpNet; 2] = [
        IpNet::new_assert(IpAddr::from([224, 0, 0, 0]), 4),
        IpNet::new_assert(IpAddr::from([0xff00, 0, 0, 0, 0, 0, 0, 0]), 8),
    ];
    let loopback = IpNet::new_assert(IpAddr::from([127, 0, 0, 0]), 8);
    if multicast
        .iter()
        .chain([&loopback])
        .any(|special| overlap(special, &prefix))
    {
        return Err(invalid(format!(
            "{prefix} holds addresses that are no unicast ones"
        )));
    }
    Ok(())
}

pub(super) fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}
