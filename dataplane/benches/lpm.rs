//! Longest-prefix match: lookups of random destinations, and one changed route, at growing sizes.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use criterion::{Bencher, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use podway_dataplane::fib::{Fib, PortFacts, PortId, Tables};
use podway_proto::types::{
    LocalNode, MacAddr, Mode, Neighbor, Node, Path, PortRole, Route, Via, Vni,
};

const SIZES: [u32; 3] = [1_000, 100_000, 1_000_000];
/// Remote nodes that share the routes.
const NODES: u32 = 1_000;
/// Destinations per iteration: enough that at a million routes most of them are not cached.
const DESTINATIONS: u32 = 1 << 16;

fn cluster() -> Fib {
    let mut fib = Fib::new();
    let uplink = PortFacts {
        id: PortId(0),
        interface: "eth0".to_owned(),
        ifindex: 2,
        mtu: 1500,
        mac: MacAddr([2, 0, 0, 0, 0, 1]),
        carries_runs: false,
        role: PortRole::Uplink {
            accept_partial_checksums: false,
        },
    };
    fib.attach_port(uplink).unwrap();
    let local = LocalNode {
        vni: Vni::try_from(1).unwrap(),
        also_vnis: Vec::new(),
        vxlan_port: 4789,
        vtep_mac: MacAddr([2, 0, 0, 0, 1, 1]),
        addresses: vec![IpAddr::from([192, 168, 0, 1])],
        translates: false,
        defragments: false,
        allow_unknown_vteps: false,
    };
    fib.set_local(local).unwrap();
    for number in 0..NODES {
        let underlay = IpAddr::V4(Ipv4Addr::from_bits(0xc0a8_0100 + number));
        let [_, _, a, b] = number.to_be_bytes();
        let node = Node {
            name: node_name(number),
            underlay,
            vtep_mac: MacAddr([2, 0, 0, 1, a, b]),
            mode: Mode::Vxlan,
            path: Some(Path {
                interface: "eth0".to_owned(),
                next_hop: underlay,
                source: IpAddr::from([192, 168, 0, 1]),
                mtu: 1500,
            }),
        };
        fib.set_node(node).unwrap();
        let neighbor = Neighbor {
            interface: "eth0".to_owned(),
            address: underlay,
            mac: MacAddr([2, 0, 0, 2, a, b]),
        };
        fib.set_neighbor(neighbor).unwrap();
    }
    fib
}

fn node_name(number: u32) -> String {
    format!("node-{number}")
}

/// Numbers that look random and are the same in every run (Weyl sequence, murmur3's finisher).
fn random(number: u32) -> u32 {
    let mut x = number.wrapping_mul(0x9e37_79b9).wrapping_add(0x7f4a_7c15);
    x = (x ^ x >> 16).wrapping_mul(0x85eb_ca6b);
    x = (x ^ x >> 13).wrapping_mul(0xc2b2_ae35);
    x ^ x >> 16
}

/// The `number`th prefix of a table of `size`. A thousand are PodCIDRs of one cluster; more are
/// spread over the address space, with lengths as in the Internet's table: mostly /24, some
/// shorter, a few longer.
fn v4_prefix(size: u32, number: u32) -> Ipv4Net {
    if size <= 1_000 {
        return Ipv4Net::new(Ipv4Addr::from_bits(0x0a00_0000 + (number << 8)), 24).unwrap();
    }
    let bits = random(number);
    let len = match bits & 0x3f {
        0 => 32,
        1..=5 => 18,
        6..=24 => 22,
        _ => 24,
    };
    // 16.0.0.0 to 111.255.255.255: none of it has a special meaning.
    let address = 0x1000_0000 + bits % 0x6000_0000;
    Ipv4Net::new(Ipv4Addr::from_bits(address), len)
        .unwrap()
        .trunc()
}

/// The same in IPv6: /64 of one cluster, then /48, some shorter, a few /64 under 2000::/8.
fn v6_prefix(size: u32, number: u32) -> Ipv6Net {
    let (bits, len) = if size <= 1_000 {
        (0xfd00_0010 << 96 | u128::from(number) << 64, 64)
    } else {
        let bits = random(number);
        let len = match bits & 0x3f {
            0 => 64,
            1..=20 => 32,
            21..=40 => 40,
            _ => 48,
        };
        let low = u128::from(random(bits));
        (0x20 << 120 | u128::from(bits) << 88 | low << 56, len)
    };
    Ipv6Net::new(Ipv6Addr::from_bits(bits), len)
        .unwrap()
        .trunc()
}

/// Makes the prefix of a number in a table of a size.
type V6Prefix = fn(u32, u32) -> Ipv6Net;

/// IPv6 PodCIDRs at every size: the /64 of one cluster, in a row.
fn pod_cidr(_: u32, number: u32) -> Ipv6Net {
    let bits = 0xfd00_0010_0240 << 80 | u128::from(number) << 64;
    Ipv6Net::new(Ipv6Addr::from_bits(bits), 64).unwrap()
}

fn fill(fib: &mut Fib, size: u32, prefix: impl Fn(u32) -> IpNet) {
    for number in 0..size {
        fib.set_route(Route {
            prefix: prefix(number),
            via: Via::Node {
                node: node_name(number % NODES),
                vni: None,
            },
        })
        .unwrap();
    }
}

fn lookups(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("lookup");
    group.throughput(Throughput::Elements(u64::from(DESTINATIONS)));
    for size in SIZES {
        let mut fib = cluster();
        fill(&mut fib, size, |number| v4_prefix(size, number).into());
        let tables = fib.build().tables;
        let destinations: Vec<_> = (0..DESTINATIONS)
            .map(|n| {
                let net = v4_prefix(size, random(n) % size);
                net.network().to_bits() | random(!n) & net.hostmask().to_bits()
            })
            .collect();
        assert!(destinations.iter().all(|d| tables.lookup_v4(*d).is_some()));
        group.bench_function(BenchmarkId::new("v4", size), |bencher| {
            bencher.iter(|| sum_v4(&tables, &destinations));
        });

        for (name, prefix) in [("v6", v6_prefix as V6Prefix), ("v6 PodCIDRs", pod_cidr)] {
            let mut fib = cluster();
            fill(&mut fib, size, |number| prefix(size, number).into());
            let tables = fib.build().tables;
            let destinations: Vec<_> = (0..DESTINATIONS)
                .map(|n| {
                    let net = prefix(size, random(n) % size);
                    net.network().to_bits() | u128::from(random(!n))
                })
                .collect();
            assert!(destinations.iter().all(|d| tables.lookup_v6(*d).is_some()));
            group.bench_function(BenchmarkId::new(name, size), |bencher| {
                bencher.iter(|| sum_v6(&tables, &destinations));
            });
        }
    }
    group.finish();
}

/// Reads a field of each next hop, as forwarding does.
fn sum_v4(tables: &Tables, destinations: &[u32]) -> u64 {
    let hops = destinations.iter().map(|d| tables.lookup_v4(black_box(*d)));
    hops.flatten().map(|hop| u64::from(hop.mtu)).sum()
}

fn sum_v6(tables: &Tables, destinations: &[u128]) -> u64 {
    let hops = destinations.iter().map(|d| tables.lookup_v6(black_box(*d)));
    hops.flatten().map(|hop| u64::from(hop.mtu)).sum()
}

/// One route changes its node, and the next snapshot is made, the one before still being read.
fn one_change(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("change one route and build");
    for size in SIZES {
        let v4 = |number| v4_prefix(size, number).into();
        group.bench_function(BenchmarkId::new("v4", size), |b| change_routes(b, size, v4));
        let v6 = |number| v6_prefix(size, number).into();
        group.bench_function(BenchmarkId::new("v6", size), |b| change_routes(b, size, v6));
    }
    group.finish();
}

fn change_routes(bencher: &mut Bencher, size: u32, prefix: impl Fn(u32) -> IpNet) {
    let mut fib = cluster();
    fill(&mut fib, size, &prefix);
    let mut read = fib.build().tables;
    let mut round = 0_u32;
    bencher.iter(|| {
        round = round.wrapping_add(1);
        let node = node_name(round % NODES);
        let route = Route {
            prefix: prefix(random(round) % size),
            via: Via::Node { node, vni: None },
        };
        fib.set_route(route).unwrap();
        read = fib.build().tables;
        read.generation()
    });
}

criterion_group!(benches, lookups, one_change);
criterion_main!(benches);
