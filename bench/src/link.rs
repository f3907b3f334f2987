//! Offloads and counters of one interface.

use std::collections::BTreeSet;

use podway_proto::types::MacAddr;
use serde::Deserialize;

use crate::netns::{Netns, join};
use crate::{Error, Result};

/// Segmentation features of a veth that let frames over the MTU through a wire. All of them are
/// off on a wire-true link: `tx-udp-segmentation` alone lets UDP super-frames of 64 KiB pass.
const SEGMENTATION: [&str; 13] = [
    "tx-tcp-segmentation",
    "tx-tcp-ecn-segmentation",
    "tx-tcp-mangleid-segmentation",
    "tx-tcp6-segmentation",
    "tx-udp-segmentation",
    "tx-udp_tnl-segmentation",
    "tx-udp_tnl-csum-segmentation",
    "tx-gre-segmentation",
    "tx-gre-csum-segmentation",
    "tx-ipxip4-segmentation",
    "tx-ipxip6-segmentation",
    "tx-sctp-segmentation",
    "tx-gso-list",
];

/// Length of an Ethernet header in bytes.
const ETHERNET_HEADER: u64 = 14;

/// Makes a link carry frames of at most its MTU, as a real wire does, and verifies it.
///
/// # Errors
/// When a feature is still on afterwards, or ethtool fails.
pub fn set_wire_true(netns: &Netns, interface: &str) -> Result<()> {
    let mut args = vec!["-K", interface, "gso", "off"];
    args.extend(SEGMENTATION.iter().flat_map(|feature| [*feature, "off"]));
    netns.run("ethtool", &args)?;
    check_wire_true(netns, interface)
}

/// Verifies that a link carries frames of at most its MTU.
///
/// # Errors
/// With the features that let longer ones through.
pub fn check_wire_true(netns: &Netns, interface: &str) -> Result<()> {
    let text = netns.run("ethtool", &["-k", interface])?;
    let on: Vec<_> = ["generic-segmentation-offload"]
        .into_iter()
        .chain(SEGMENTATION)
        .filter(|feature| parse_feature(&text, feature) != Some(false))
        .collect();
    if on.is_empty() {
        Ok(())
    } else {
        Err(Error::Unexpected(format!(
            "{interface} in {} is not wire-true: {} is on",
            netns.name(),
            on.join(", ")
        )))
    }
}

/// Switches GRO, the joining of received segments.
///
/// # Errors
/// When ethtool fails.
pub fn set_gro(netns: &Netns, interface: &str, on: bool) -> Result<()> {
    let state = if on { "on" } else { "off" };
    netns
        .run("ethtool", &["-K", interface, "gro", state])
        .map(drop)
}

/// Lets a sender leave L4 checksums unfinished, or not.
///
/// # Errors
/// When ethtool fails.
pub fn set_tx_checksum(netns: &Netns, interface: &str, on: bool) -> Result<()> {
    let state = if on { "on" } else { "off" };
    netns
        .run("ethtool", &["-K", interface, "tx", state])
        .map(drop)
}

/// Whether an offload is on, by its name in `ethtool -k`.
///
/// # Errors
/// When ethtool does not know the interface or the feature.
pub fn feature_is_on(netns: &Netns, interface: &str, feature: &str) -> Result<bool> {
    let text = netns.run("ethtool", &["-k", interface])?;
    parse_feature(&text, feature).ok_or_else(|| {
        Error::Unexpected(format!("ethtool tells nothing of {feature} on {interface}"))
    })
}

fn parse_feature(text: &str, feature: &str) -> Option<bool> {
    let state = text.lines().find_map(|line| {
        let (name, state) = line.split_once(':')?;
        (name.trim() == feature).then(|| state.trim())
    })?;
    // The state may be followed by "[fixed]" or "[requested on]".
    Some(state.split(' ').next() == Some("on"))
}

/// Packets and bytes that an interface has carried, Ethernet headers included. A super-frame
/// counts one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// Frames received.
    pub rx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Frames sent.
    pub tx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Frames dropped on receipt and on sending.
    pub dropped: u64,
}

impl LinkCounters {
    /// Reads the counters of an interface.
    ///
    /// # Errors
    /// When there is no such interface.
    pub fn read(netns: &Netns, interface: &str) -> Result<Self> {
        let shown = show(netns, &["-s", "-j", "link", "show", "dev", interface])?;
        let stats = shown.into_iter().find_map(|link| link.stats64);
        let stats = stats.ok_or_else(|| {
            Error::Unexpected(format!("no counters of {interface} in {}", netns.name()))
        })?;
        Ok(Self {
            rx_packets: stats.rx.packets,
            rx_bytes: stats.rx.bytes,
            tx_packets: stats.tx.packets,
            tx_bytes: stats.tx.bytes,
            dropped: stats.rx.dropped + stats.tx.dropped,
        })
    }

    /// What was counted since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            rx_packets: self.rx_packets - earlier.rx_packets,
            rx_bytes: self.rx_bytes - earlier.rx_bytes,
            tx_packets: self.tx_packets - earlier.tx_packets,
            tx_bytes: self.tx_bytes - earlier.tx_bytes,
            dropped: self.dropped - earlier.dropped,
        }
    }

    /// Average size of the frames sent in bytes, 0 when there were none. More than the MTU and
    /// an Ethernet header proves that super-frames crossed a wire.
    pub fn average_tx_frame(self) -> u64 {
        self.tx_bytes.checked_div(self.tx_packets).unwrap_or(0)
    }
}

/// Frames dropped so far by all interfaces of a namespace, on receipt and on sending.
///
/// # Errors
/// When `ip` fails.
pub fn dropped(netns: &Netns) -> Result<u64> {
    let links = show(netns, &["-s", "-j", "link", "show"])?;
    let stats = links.into_iter().filter_map(|link| link.stats64);
    Ok(stats.map(|stats| stats.rx.dropped + stats.tx.dropped).sum())
}

/// The MAC of an interface.
///
/// # Errors
/// When there is no such interface, or it has none.
pub fn mac(netns: &Netns, interface: &str) -> Result<MacAddr> {
    let shown = show(netns, &["-j", "link", "show", "dev", interface])?;
    let address = shown.into_iter().find_map(|link| link.address);
    address
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| Error::Unexpected(format!("{interface} in {} has no MAC", netns.name())))
}

/// The longest frame that a wire of this MTU carries, with a VLAN tag, in bytes.
pub fn longest_frame(mtu: u16) -> u64 {
    u64::from(mtu) + ETHERNET_HEADER + 4
}

/// The ids of the programs on the interfaces of a namespace, of XDP and of tcx ingress, with the
/// interface.
///
/// # Errors
/// When `ip` fails or the kernel does not answer.
pub fn programs(netns: &Netns) -> Result<BTreeSet<(String, u32)>> {
    let links = show(netns, &["-d", "-j", "link", "show"])?;
    let names: Vec<_> = links
        .iter()
        .map(|link| (link.ifname.clone(), link.ifindex))
        .collect();
    let tcx = netns.thread(move || {
        let each = names.into_iter().map(|(name, ifindex)| {
            let ids = tcx::programs(ifindex)?;
            Ok(ids.into_iter().map(move |id| (name.clone(), id)))
        });
        let all: Vec<_> = each.collect::<Result<_>>()?;
        Ok(all.into_iter().flatten().collect::<Vec<_>>())
    });
    let xdp = links.into_iter().flat_map(Shown::programs);
    Ok(xdp.chain(join(tcx)?).collect())
}

#[allow(unsafe_code, reason = "libbpf-rs has no query for tcx")]
mod tcx {
    use libbpf_rs::libbpf_sys;

    use crate::{Error, Result};

    /// Programs that are asked for at once; nobody has more on one interface.
    const MOST: usize = 16;

    /// The ids of the programs at the tcx ingress of an interface of the calling thread's
    /// namespace.
    pub(super) fn programs(ifindex: i32) -> Result<Vec<u32>> {
        let mut ids = [0_u32; MOST];
        let mut count = 16_u32;
        let mut flags = 0_u32;
        // SAFETY: the kernel writes at most `count` ids, for which there is room, the count and
        // the flags.
        let answer = unsafe {
            libbpf_sys::bpf_prog_query(
                ifindex,
                libbpf_sys::BPF_TCX_INGRESS,
                0,
                &raw mut flags,
                ids.as_mut_ptr(),
                &raw mut count,
            )
        };
        match -answer {
            0 => Ok(ids.into_iter().take(count as usize).collect()),
            // The interface has gone since it was listed.
            libc::ENODEV => Ok(Vec::new()),
            errno => Err(Error::io("query tcx")(std::io::Error::from_raw_os_error(
                errno,
            ))),
        }
    }
}

fn show(netns: &Netns, args: &[&str]) -> Result<Vec<Shown>> {
    let mut command = std::process::Command::new("ip");
    command.args(["-n", netns.name()]).args(args);
    let text = crate::netns::run(&mut command)?;
    serde_json::from_str(&text)
        .map_err(|error| Error::Unexpected(format!("ip {}: {error}: {text}", args.join(" "))))
}

#[derive(Deserialize)]
struct Shown {
    #[serde(default)]
    ifname: String,
    #[serde(default)]
    ifindex: i32,
    address: Option<String>,
    stats64: Option<Stats>,
    xdp: Option<Xdp>,
}

impl Shown {
    /// `prog` repeats the only member of `attached`.
    fn programs(self) -> Vec<(String, u32)> {
        let Some(xdp) = self.xdp else {
            return Vec::new();
        };
        let attached = xdp.attached.into_iter().filter_map(|a| a.prog);
        let all = xdp.prog.into_iter().chain(attached);
        all.map(|program| (self.ifname.clone(), program.id))
            .collect()
    }
}

#[derive(Deserialize)]
struct Stats {
    rx: Direction,
    tx: Direction,
}

#[derive(Deserialize)]
struct Direction {
    bytes: u64,
    packets: u64,
    dropped: u64,
}

#[derive(Deserialize)]
struct Xdp {
    prog: Option<Program>,
    /// Several programs at once: one in the driver and one behind it.
    #[serde(default)]
    attached: Vec<Attached>,
}

#[derive(Deserialize)]
struct Attached {
    prog: Option<Program>,
}

#[derive(Deserialize)]
struct Program {
    id: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_read_with_and_without_remarks() {
        let text = "Features for eth1:\ntx-checksumming: on\n\ttx-tcp-segmentation: off\n\
                    \ttx-gso-partial: off [fixed]\nhighdma: on [fixed]\n\ttx-gso-list: off [requested on]\n";
        assert_eq!(parse_feature(text, "tx-checksumming"), Some(true));
        assert_eq!(parse_feature(text, "tx-tcp-segmentation"), Some(false));
        assert_eq!(parse_feature(text, "tx-gso-partial"), Some(false));
        assert_eq!(parse_feature(text, "tx-gso-list"), Some(false));
        assert_eq!(parse_feature(text, "highdma"), Some(true));
        assert_eq!(parse_feature(text, "tx-udp-segmentation"), None);
    }

    #[test]
    fn the_average_frame_is_of_what_was_sent_between() {
        let before = LinkCounters {
            rx_packets: 1,
            rx_bytes: 60,
            tx_packets: 2,
            tx_bytes: 200,
            dropped: 0,
        };
        let after = LinkCounters {
            rx_packets: 9,
            rx_bytes: 900,
            tx_packets: 6,
            tx_bytes: 6256,
            dropped: 3,
        };
        assert_eq!(after.since(before).average_tx_frame(), 1514);
        assert_eq!(after.since(after).average_tx_frame(), 0);
        assert_eq!(after.since(before).dropped, 3);
        assert_eq!(longest_frame(1500), 1518);
    }

    #[test]
    fn xdp_programs_are_found_in_either_form() {
        let text = r#"[{"ifname":"lo"},{},
            {"ifname":"lx0","xdp":{"mode":2,"prog":{"id":7},"attached":[{"mode":2,"prog":{"id":7}}]}},
            {"ifname":"eth1","xdp":{"mode":4,"attached":[{"mode":1,"prog":{"id":8}},{"mode":2}]}}]"#;
        let links: Vec<Shown> = serde_json::from_str(text).unwrap();
        let found: BTreeSet<_> = links.into_iter().flat_map(Shown::programs).collect();
        assert_eq!(
            found,
            BTreeSet::from([("lx0".to_owned(), 7), ("eth1".to_owned(), 8)])
        );
    }
}
