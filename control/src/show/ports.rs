//! Ports as text: what was told of them, and what the dataplane got.

use std::collections::BTreeMap;

use podway_proto::control::{PortEntry, PortRoleSpec};
use podway_proto::dataplane::PortStatus;

use super::table::{Table, list, or_dash};

/// Ports that share a reason are named up to this number.
const NAMED: usize = 3;

/// The ports that were told; `got` are the ones that the dataplane has, if that is known.
pub(super) fn told(ports: &[PortEntry], got: Option<&[PortStatus]>) -> String {
    let mut table = Table::new([
        "PORT",
        "ROLE",
        "ADDRESSES",
        "MAC",
        "MTU",
        "XDP",
        "INGRESS",
        "EGRESS",
        "STATE",
    ]);
    for port in ports {
        let (role, addresses) = match &port.spec.role {
            PortRoleSpec::Pod { addresses, .. } => ("pod", list(addresses)),
            PortRoleSpec::Uplink { .. } => ("uplink", "-".to_owned()),
        };
        let of_this = |got: &&PortStatus| got.interface == port.spec.interface;
        let attached = got.and_then(|all| all.iter().find(of_this));
        table.row([
            port.spec.interface.clone(),
            role.to_owned(),
            addresses,
            or_dash(port.mac),
            or_dash(attached.map(|got| got.mtu)),
            or_dash(attached.map(|got| &got.xdp_mode)),
            or_dash(attached.map(|got| &got.ingress)),
            or_dash(attached.map(|got| &got.egress)),
            match &port.waiting {
                Some(what) => format!("waiting for {what}"),
                None if got.is_some() && attached.is_none() => {
                    "not attached: see podway status".to_owned()
                }
                None => "ready".to_owned(),
            },
        ]);
    }
    let got = got.unwrap_or_default();
    table.render() + &reasons(got) + &oversize(got)
}

/// The ports that the dataplane has; nothing when it has none.
pub(super) fn got(ports: &[PortStatus]) -> String {
    let mut table = Table::new(["PORT", "ROLE", "MTU", "XDP", "INGRESS", "EGRESS"]);
    for port in ports {
        table.row([
            port.interface.clone(),
            port.role.clone(),
            port.mtu.to_string(),
            port.xdp_mode.clone(),
            port.ingress.clone(),
            port.egress.clone(),
        ]);
    }
    if table.is_empty() {
        return String::new();
    }
    table.render() + &reasons(ports) + &oversize(ports)
}

/// Why ports did not get the better mode or engine: a line for each reason, since most ports of a
/// node share one.
fn reasons(ports: &[PortStatus]) -> String {
    let mut by_reason: BTreeMap<(String, &str), Vec<&str>> = BTreeMap::new();
    for port in ports {
        let name = port.interface.as_str();
        let xdp = format!("xdp {}", port.xdp_mode);
        for (what, reason) in [
            (xdp, &port.xdp_mode_reason),
            (port.ingress.clone(), &port.ingress_reason),
        ] {
            if let Some(reason) = reason {
                let key = (what, without_name(reason, name));
                by_reason.entry(key).or_default().push(name);
            }
        }
    }
    let line = |((what, reason), names): (&(String, &str), &Vec<&str>)| {
        let more = match names.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let named: Vec<&str> = names.iter().take(NAMED).copied().collect();
        format!("{what} on {}{more}: {reason}\n", named.join(", "))
    };
    by_reason.iter().map(line).collect()
}

/// What did not fit last, a line for each port that has seen something.
fn oversize(ports: &[PortStatus]) -> String {
    let line = |port: &PortStatus| {
        let packet = port.oversize.as_ref()?;
        Some(format!(
            "too large on {}: {} to {} with {} bytes, of which {} fit; left to the kernel\n",
            port.interface, packet.source, packet.destination, packet.bytes, packet.mtu
        ))
    };
    ports.iter().filter_map(line).collect()
}

/// `reason` without the name of its own interface at the front.
pub(super) fn without_name<'a>(reason: &'a str, interface: &str) -> &'a str {
    match reason.strip_prefix(interface) {
        Some(rest) if rest.starts_with([' ', ':']) => rest.trim_start_matches([' ', ':']),
        _ => reason,
    }
}

#[cfg(test)]
mod tests {
    use podway_proto::control::PortSpec;

    use super::*;

    fn entries() -> Vec<PortEntry> {
        let entry = |interface: &str, role, mac: Option<&str>, waiting: Option<&str>| PortEntry {
            spec: PortSpec {
                interface: interface.into(),
                role,
            },
            mac: mac.map(|mac| mac.parse().unwrap()),
            configured: false,
            waiting: waiting.map(str::to_owned),
        };
        let pod = |addresses: &[&str]| PortRoleSpec::Pod {
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            mac: None,
            any_source: false,
        };
        let mac = Some("02:00:00:00:00:01");
        let waiting = Some("the pod's MAC");
        vec![
            entry(
                "eth0",
                PortRoleSpec::Uplink {
                    accept_partial_checksums: None,
                },
                mac,
                None,
            ),
            entry("veth-a", pod(&["10.0.0.2", "fd00::2"]), None, waiting),
            entry("veth-b", pod(&["10.0.0.3"]), mac, None),
        ]
    }

    fn attached(interface: &str, role: &str, xdp_mode: &str) -> PortStatus {
        PortStatus {
            interface: interface.into(),
            ifindex: 2,
            role: role.into(),
            mtu: 1500,
            xdp_mode: xdp_mode.into(),
            xdp_mode_reason: None,
            ingress: "af-xdp copy".into(),
            ingress_reason: Some(format!("{interface} queue 0: cannot bind: no")),
            egress: "af-packet gso".into(),
            queue_workers: vec![0],
            oversize: None,
        }
    }

    #[test]
    fn what_was_told_stands_beside_what_was_got() {
        assert_eq!(
            told(&entries(), Some(&[attached("eth0", "uplink", "native")])),
            "\
PORT    ROLE    ADDRESSES         MAC                MTU   XDP     INGRESS      EGRESS         STATE
eth0    uplink  -                 02:00:00:00:00:01  1500  native  af-xdp copy  af-packet gso  ready
veth-a  pod     10.0.0.2,fd00::2  -                  -     -       -            -              waiting for the pod's MAC
veth-b  pod     10.0.0.3          02:00:00:00:00:01  -     -       -            -              not attached: see podway status
af-xdp copy on eth0: queue 0: cannot bind: no
"
        );
    }

    #[test]
    fn what_did_not_fit_is_named() {
        let mut ports = [
            attached("eth0", "uplink", "native"),
            attached("a", "pod", "none"),
        ];
        assert_eq!(oversize(&ports), "");
        ports[1].oversize = Some(podway_proto::dataplane::Oversize {
            source: "fd00::2".parse().unwrap(),
            destination: "fd00:1::2".parse().unwrap(),
            bytes: 1480,
            mtu: 1430,
        });
        assert_eq!(
            oversize(&ports),
            "too large on a: fd00::2 to fd00:1::2 with 1480 bytes, of which 1430 fit; left to the \
             kernel\n"
        );
    }

    #[test]
    fn without_a_dataplane_what_was_told_is_shown() {
        assert_eq!(
            told(&entries()[..1], None),
            "\
PORT  ROLE    ADDRESSES  MAC                MTU  XDP  INGRESS  EGRESS  STATE
eth0  uplink  -          02:00:00:00:00:01  -    -    -        -       ready
"
        );
    }

    #[test]
    fn a_reason_that_ports_share_is_one_line() {
        let mut ports = vec![attached("eth0", "uplink", "generic")];
        ports[0].xdp_mode_reason = Some("native: the driver cannot".into());
        for name in ["a", "b", "c", "d"] {
            ports.push(attached(name, "pod", "generic"));
        }
        ports[4].ingress_reason = None;
        ports[4].ingress = "af-xdp zero-copy".into();
        assert_eq!(
            got(&ports),
            "\
PORT  ROLE    MTU   XDP      INGRESS           EGRESS
eth0  uplink  1500  generic  af-xdp copy       af-packet gso
a     pod     1500  generic  af-xdp copy       af-packet gso
b     pod     1500  generic  af-xdp copy       af-packet gso
c     pod     1500  generic  af-xdp copy       af-packet gso
d     pod     1500  generic  af-xdp zero-copy  af-packet gso
af-xdp copy on eth0, a, b and 1 more: queue 0: cannot bind: no
xdp generic on eth0: native: the driver cannot
"
        );
        assert_eq!(got(&[]), "");
    }

    #[test]
    fn a_name_is_taken_off_whole_only() {
        assert_eq!(without_name("eth0 queue 0: no", "eth0"), "queue 0: no");
        assert_eq!(without_name("eth0: no", "eth0"), "no");
        assert_eq!(
            without_name("eth01 queue 0: no", "eth0"),
            "eth01 queue 0: no"
        );
        assert_eq!(without_name("no", "eth0"), "no");
    }
}
