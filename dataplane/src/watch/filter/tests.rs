use std::net::Ipv4Addr;

use podway_proto::types::MacAddr;
use proptest::prelude::*;

use super::*;
use crate::fib::{L2Rewrite, NextHopKind};
use crate::tunnel::OuterHeader;
use crate::wire::protocol;

const PORTS: [(&str, PortId); 2] = [("eth0", PortId(0)), ("veth-a", PortId(7))];

fn parse(text: &str) -> Result<Filter, FilterError> {
    let port = |name: &str| {
        let found = PORTS.iter().find(|(known, _)| *known == name);
        found.map(|(_, id)| *id)
    };
    Filter::parse(text, &port)
}

fn refused(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

/// UDP from 10.0.0.2:40000 to 10.0.1.2:53, of 100 bytes.
fn udp() -> Headers {
    Headers {
        version: IpVersion::V4,
        protocol: protocol::UDP,
        sport: 40_000,
        dport: 53,
        l3_len: 86,
        src: [10, 0, 0, 2].into(),
        dst: [10, 0, 1, 2].into(),
        ..Headers::UNREAD
    }
}

fn seen(headers: &Headers) -> Seen<'_> {
    Seen {
        headers: Some(headers),
        came_by: PortId(7),
        came_through: None,
        leaves: Leaves::By(PortId(0), None),
        reason: None,
    }
}

#[test]
fn a_filter_is_written_as_for_pcap() {
    let headers = udp();
    for (filter, matches) in [
        ("", true),
        ("host 10.0.0.2", true),
        ("10.0.0.2", true),
        ("src host 10.0.0.2", true),
        ("src 10.0.0.2", true),
        ("dst 10.0.0.2", false),
        ("ip host 10.0.1.2", true),
        ("ip6 host 10.0.1.2", false),
        ("host fd00::2", false),
        ("net 10.0.0.0/16", true),
        ("src net 10.0.1.0/24", false),
        ("dst net 10.0.1.0/24", true),
        ("net 10.0.1.2", true),
        ("port 53", true),
        ("src port 53", false),
        ("udp dst port 53", true),
        ("tcp port 53", false),
        ("port 80 or 53", true),
        ("port 80 or not 53", false),
        ("tcp port 80 or 53", false),
        ("portrange 50-60", true),
        ("dst portrange 54-60", false),
        ("udp", true),
        ("ip", true),
        ("ip6 or icmp or icmp6 or tcp", false),
        ("proto 17", true),
        ("proto tcp", false),
        ("ip proto udp", true),
        ("ip6 proto 17", false),
        ("greater 100 and less 100", true),
        ("greater 101", false),
        ("less 99", false),
        ("interface eth0", true),
        ("interface veth-a", true),
        ("vni 42", false),
        ("not vni 42", true),
        ("reason no_route", false),
        ("!tcp&&udp", false),
        ("! tcp && udp", true),
        ("!(tcp)", true),
        // Both bind alike, from left to right: not udp or (tcp and port 9).
        ("udp or tcp and port 9", false),
        ("udp or (tcp and port 9)", true),
        ("not udp or udp", true),
    ] {
        // `!tcp&&udp` is one word behind the `!`.
        match parse(filter) {
            Ok(parsed) => assert_eq!(parsed.matches(&seen(&headers)), matches, "{filter}"),
            Err(error) => assert_eq!(filter, "!tcp&&udp", "{error}"),
        }
    }
}

#[test]
fn tunnels_drops_and_what_cannot_be_read_are_told() {
    let headers = udp();
    let mac = MacAddr([2; 6]);
    let ip = |last| IpAddr::from([192, 168, 1, last]);
    let outer = OuterHeader::new((mac, ip(1)), (mac, ip(2)), 4789, 42.try_into().unwrap());
    let next_hop = NextHop {
        port: PortId(0),
        l2: L2Rewrite::new(mac, mac),
        mtu: 1450,
        kind: NextHopKind::Tunnel(Box::new(outer.unwrap())),
    };
    let matches = |filter: &str, seen: &Seen<'_>| parse(filter).unwrap().matches(seen);
    let (came, leaves) = (
        Seen {
            came_through: Some(7),
            ..seen(&headers)
        },
        Seen {
            leaves: Leaves::To(&next_hop),
            ..seen(&headers)
        },
    );
    assert!(matches("vni 7", &came) && !matches("vni 42", &came));
    assert!(matches("vni 42", &leaves) && !matches("vni 7", &leaves));
    let message = Seen {
        leaves: Leaves::By(PortId(0), Some(42)),
        ..seen(&headers)
    };
    assert!(matches("vni 42 and interface eth0", &message) && !matches("vni 7", &message));
    assert!(parse("udp and not vni 7").unwrap().looks_at_vni());
    assert!(!parse("udp").unwrap().looks_at_vni());
    let any = |texts: [&str; 2]| Filter::any_of(&texts.map(|text| parse(text).unwrap()));
    assert!(any(["vni 7", "udp"]).looks_at_vni() && !any(["tcp", "udp"]).looks_at_vni());
    let dropped = Seen {
        reason: Some(DropReason::NoRoute),
        headers: None,
        ..seen(&headers)
    };
    for filter in [
        "reason no_route",
        "reason NO-ROUTE",
        "",
        "not udp",
        "interface eth0",
    ] {
        assert!(matches(filter, &dropped), "{filter}");
    }
    for filter in [
        "reason too_big",
        "ip",
        "ip6",
        "host 0.0.0.0",
        "less 9000",
        "greater 0",
        "port 0",
    ] {
        assert!(!matches(filter, &dropped), "{filter}");
    }
    let fragment = Headers {
        fragment: true,
        sport: 0,
        dport: 0,
        ..headers
    };
    assert!(!matches("port 0 or port 53", &seen(&fragment)));
    assert!(matches("udp and host 10.0.0.2", &seen(&fragment)));
}

#[test]
fn what_is_not_understood_is_named_with_its_place() {
    for (filter, begin) in [
        (
            "hots 10.0.0.1",
            "the filter at 'hots' (character 1): understood are host, net, ",
        ),
        (
            "host",
            "the filter ends where a value is missing; understood are ",
        ),
        ("udp and", "the filter ends where a test is missing; "),
        ("(udp", "the filter ends where ')' is missing; "),
        (
            "(udp tcp",
            "the filter at 'tcp' (character 6): 'and', 'or' or ')' is missing",
        ),
        (
            "udp)",
            "the filter at ')' (character 4): 'and' or 'or' is missing before it",
        ),
        (
            "udp tcp",
            "the filter at 'tcp' (character 5): 'and' or 'or' is missing before it",
        ),
        (
            "host example.org",
            "the filter at 'example.org' (character 6): no address; ",
        ),
        (
            "net 10.0.0.1/8",
            "the filter at '10.0.0.1/8' (character 5): it has host bits; write 10.0.0.0/8",
        ),
        (
            "net x",
            "the filter at 'x' (character 5): no network; write it like ",
        ),
        (
            "port 65536",
            "the filter at '65536' (character 6): no number that fits; ",
        ),
        (
            "port http",
            "the filter at 'http' (character 6): no number that fits; ",
        ),
        (
            "portrange 9-8",
            "the filter at '9-8' (character 11): no range of ports; ",
        ),
        (
            "proto 256",
            "the filter at '256' (character 7): no number that fits",
        ),
        (
            "proto ip",
            "the filter at 'ip' (character 7): no number that fits",
        ),
        (
            "interface eth9",
            "the filter at 'eth9' (character 11): no attached port; ",
        ),
        (
            "reason spoofed-source",
            "the filter at 'spoofed-source' (character 8): the program on the port refuses these \
             packets before a worker sees them, so that nobody can watch them; see `podway drops`",
        ),
        (
            "reason not_ip",
            "the filter at 'not_ip' (character 8): the program on the port leaves these packets to \
             the kernel before a worker sees them, ",
        ),
        (
            "reason ring_full",
            "the filter at 'ring_full' (character 8): these packets are lost before a worker sees \
             them, ",
        ),
        (
            "reason lost",
            "the filter at 'lost' (character 8): no reason to drop; ",
        ),
        ("é and é", "the filter at 'é' (character 1): understood"),
        ("udp and é", "the filter at 'é' (character 9): understood"),
    ] {
        let error = refused(filter);
        assert!(error.starts_with(begin), "{filter}: {error}");
    }
    let deep = format!("{}udp{}", "(".repeat(65), ")".repeat(65));
    assert!(refused(&deep).contains("(character 65): more than 64 within each other"));
    let negated = format!("{} udp", "not ".repeat(65));
    assert!(refused(&negated).contains("more than 64 within each other"));
    let deep = format!("{}udp{}", "(".repeat(64), ")".repeat(64));
    assert!(parse(&deep).is_ok());
    // Long is not deep.
    let row = format!("udp{}", " or port 9 and udp".repeat(200));
    assert!(parse(&row).is_ok());
}

/// A filter as it is meant, with its text.
#[derive(Debug, Clone)]
enum Meant {
    Leaf(String, fn(&Headers, u32) -> bool, u32),
    Not(Box<Meant>),
    Both(Box<Meant>, Box<Meant>),
    Any(Box<Meant>, Box<Meant>),
}

impl Meant {
    fn text(&self) -> String {
        match self {
            Self::Leaf(text, ..) => text.clone(),
            Self::Not(meant) => format!("not ({})", meant.text()),
            Self::Both(a, b) => format!("({}) and ({})", a.text(), b.text()),
            Self::Any(a, b) => format!("({}) || ({})", a.text(), b.text()),
        }
    }

    fn holds(&self, headers: &Headers) -> bool {
        match self {
            Self::Leaf(_, holds, number) => holds(headers, *number),
            Self::Not(meant) => !meant.holds(headers),
            Self::Both(a, b) => a.holds(headers) && b.holds(headers),
            Self::Any(a, b) => a.holds(headers) || b.holds(headers),
        }
    }
}

fn v4(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(v4) => v4.to_bits(),
        IpAddr::V6(_) => 0,
    }
}

fn has_ports(headers: &Headers) -> bool {
    [6, 17].contains(&headers.protocol) && !headers.fragment
}

fn leaf() -> impl Strategy<Value = Meant> {
    let leaf = |text: String, number: u32, holds: fn(&Headers, u32) -> bool| {
        Meant::Leaf(text, holds, number)
    };
    let address = (0..4_u32).prop_map(|n| 0x0a00_0000 | n);
    prop_oneof![
        address.clone().prop_map(move |n| {
            leaf(format!("host {}", Ipv4Addr::from(n)), n, |h, n| {
                v4(h.src) == n || v4(h.dst) == n
            })
        }),
        address.clone().prop_map(move |n| {
            leaf(format!("dst {}", Ipv4Addr::from(n)), n, |h, n| {
                v4(h.dst) == n
            })
        }),
        address.prop_map(move |n| {
            let n = n & !1;
            leaf(format!("src net {}/31", Ipv4Addr::from(n)), n, |h, n| {
                v4(h.src) & !1 == n
            })
        }),
        (0..4_u32).prop_map(move |n| {
            leaf(format!("port {n}"), n, |h, n| {
                has_ports(h) && (u32::from(h.sport) == n || u32::from(h.dport) == n)
            })
        }),
        (0..4_u32).prop_map(move |n| {
            leaf(format!("tcp src portrange {n}-65535"), n, |h, n| {
                h.protocol == 6 && has_ports(h) && u32::from(h.sport) >= n
            })
        }),
        (0..20_u32).prop_map(move |n| {
            leaf(format!("ip proto {n}"), n, |h, n| {
                h.version == IpVersion::V4 && u32::from(h.protocol) == n
            })
        }),
        (40..200_u32)
            .prop_map(move |n| { leaf(format!("greater {n}"), n, |h, n| h.l3_len + 14 >= n) }),
    ]
}

fn meant() -> impl Strategy<Value = Meant> {
    leaf().prop_recursive(5, 24, 2, |inner| {
        let two = (inner.clone(), inner.clone());
        prop_oneof![
            inner.prop_map(|meant| Meant::Not(Box::new(meant))),
            two.clone()
                .prop_map(|(a, b)| Meant::Both(Box::new(a), Box::new(b))),
            two.prop_map(|(a, b)| Meant::Any(Box::new(a), Box::new(b))),
        ]
    })
}

fn headers() -> impl Strategy<Value = Headers> {
    let addresses = (0..4_u32, 0..4_u32, any::<bool>());
    let ports = (0..4_u16, 0..4_u16, any::<bool>());
    let kind = prop_oneof![Just(1_u8), Just(6), Just(17)];
    (addresses, ports, kind, 20..200_u32).prop_map(
        |((src, dst, v6), (sport, dport, fragment), protocol, l3_len)| {
            let address = |n: u32| match v6 {
                true => Ipv4Addr::from(0x0a00_0000 | n).to_ipv6_mapped().into(),
                false => IpAddr::from(Ipv4Addr::from(0x0a00_0000 | n)),
            };
            Headers {
                version: if v6 { IpVersion::V6 } else { IpVersion::V4 },
                protocol,
                fragment,
                sport,
                dport,
                l3_len,
                src: address(src),
                dst: address(dst),
                ..Headers::UNREAD
            }
        },
    )
}

proptest! {
    #[test]
    fn any_of_some_filters_is_what_any_of_them_is(
        meant in prop::collection::vec(meant(), 0..4),
        packets in prop::collection::vec(headers(), 20),
    ) {
        let filters: Vec<_> = meant.iter().map(|meant| parse(&meant.text()).unwrap()).collect();
        let any = Filter::any_of(&filters);
        for headers in packets {
            let expected = meant.iter().any(|meant| meant.holds(&headers));
            prop_assert_eq!(any.matches(&seen(&headers)), expected);
        }
    }

    #[test]
    fn a_filter_means_what_it_says(meant in meant(), packets in prop::collection::vec(headers(), 20)) {
        let text = meant.text();
        let filter = parse(&text).map_err(|error| TestCaseError::fail(format!("{text}: {error}")))?;
        for headers in packets {
            prop_assert_eq!(filter.matches(&seen(&headers)), meant.holds(&headers), "{}", text);
        }
    }

    #[test]
    fn no_text_is_a_panic(words in prop::collection::vec(
        prop_oneof![
            "[a-z0-9.:/()!é -]{0,12}",
            prop::sample::select(vec![
                "(", ")", "not", "and", "or", "host", "net", "src", "dst", "port", "tcp", "ip",
                "proto", "10.0.0.1", "vni", "reason", "interface", "80",
            ]).prop_map(str::to_owned),
        ],
        0..40,
    )) {
        let _ = parse(&words.join(" "));
    }
}
