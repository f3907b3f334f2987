//! Every mode over every underlay, to every kind of peer, with all that pods send.
//!
//! A [`Lab`] is one network: {VXLAN, native} x {IPv4, IPv6 underlay} x {one node, two nodes, three
//! nodes with a router between} x {Podway, the plain kernel as the peer} x {the best ingress there is,
//! AF_XDP}, 40 in all. In each, pods say everything there is ([`traffic`]), in both directions and by
//! every IP version that the mode carries: by a tunnel both, natively that of the underlay. All of it
//! arrives whole and once, and each dataplane has had exactly the packets that are its own.
//!
//! Uplinks carry finished checksums only, as a real wire does. By default there are the networks of
//! [`COVERING`]; `PODWAY_TEST_MATRIX=all` has them all, and any other value those with this word in
//! their name.

mod traffic;

use std::collections::BTreeSet;
use std::fmt;
use std::io::Write as _;
use std::time::Instant;

use podway_bench::contender::pod_mtu;
use podway_bench::kernel;
use podway_bench::podway::Options;
use podway_bench::topology::{ClusterSpec, Pod};
use podway_proto::config::IngressChoice;
use podway_proto::types::Mode;

use crate::support::{Network, options, spec};
use traffic::{Flow, Row, Traffic};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    const ALL: [Self; 2] = [Self::V4, Self::V6];

    fn address(self, pod: &Pod) -> std::net::IpAddr {
        match self {
            Self::V4 => pod.ipv4.into(),
            Self::V6 => pod.ipv6.into(),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    OneNode,
    TwoNodes,
    ThreeNodes,
}

/// Who has the other nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Peer {
    Nobody,
    Podway,
    Kernel,
}

/// One network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lab {
    mode: Mode,
    underlay: Family,
    shape: Shape,
    peer: Peer,
    ingress: IngressChoice,
}

impl fmt::Display for Lab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes = match self.shape {
            Shape::OneNode => "one node",
            Shape::TwoNodes => "two nodes",
            Shape::ThreeNodes => "three nodes",
        };
        let peer = match self.peer {
            Peer::Nobody => "",
            Peer::Podway => ", Podway",
            Peer::Kernel => ", kernel",
        };
        let Self {
            mode,
            underlay,
            ingress,
            ..
        } = self;
        write!(f, "{mode} over {underlay}, {nodes}{peer}, {ingress}")
    }
}

impl Lab {
    const fn new(
        mode: Mode,
        underlay: Family,
        (shape, peer): (Shape, Peer),
        ingress: IngressChoice,
    ) -> Self {
        Self {
            mode,
            underlay,
            shape,
            peer,
            ingress,
        }
    }

    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for mode in [Mode::Vxlan, Mode::Native] {
            for underlay in Family::ALL {
                for place in [
                    ONE_NODE,
                    (Shape::TwoNodes, Peer::Podway),
                    (Shape::TwoNodes, Peer::Kernel),
                    (Shape::ThreeNodes, Peer::Podway),
                    (Shape::ThreeNodes, Peer::Kernel),
                ] {
                    let ingress = [IngressChoice::Auto, IngressChoice::AfXdp];
                    all.extend(ingress.map(|ingress| Self::new(mode, underlay, place, ingress)));
                }
            }
        }
        all
    }

    /// Every two of its choices.
    fn pairs(self) -> Vec<String> {
        let choices = [
            format!("{}", self.mode),
            format!("over {}", self.underlay),
            format!("{:?}", self.shape),
            format!("{:?}", self.peer),
            format!("{:?}", self.ingress),
        ];
        let pairs = choices.iter().enumerate().flat_map(|(n, one)| {
            let others = choices[n + 1..].iter();
            others.map(move |other| format!("{one}, {other}"))
        });
        pairs.collect()
    }

    fn underlay6(self) -> bool {
        self.underlay == Family::V6
    }

    /// The IP versions of the pods' packets that are Podway's. The kernel has no native routes to
    /// prefixes of one version by a router of the other.
    fn inner(self) -> Vec<Family> {
        match (self.mode, self.shape) {
            (Mode::Vxlan, _) | (_, Shape::OneNode) => Family::ALL.to_vec(),
            (Mode::Native, _) => vec![self.underlay],
        }
    }

    /// The pairs of pods, by node and position, of which at least one is on a node with Podway.
    fn pods(self) -> Vec<[(usize, usize); 2]> {
        match (self.shape, self.peer) {
            (Shape::OneNode, _) => vec![[(0, 0), (0, 1)]],
            (Shape::TwoNodes, _) => vec![[(0, 0), (1, 0)]],
            (Shape::ThreeNodes, Peer::Podway) => {
                vec![[(0, 0), (1, 0)], [(0, 0), (2, 0)], [(1, 0), (2, 0)]]
            }
            (Shape::ThreeNodes, _) => vec![[(0, 0), (1, 0)], [(0, 0), (2, 0)]],
        }
    }

    fn build(self, uplink_mtu: u16) -> Network {
        let spec = ClusterSpec {
            uplink_mtu,
            nodes: if self.shape == Shape::ThreeNodes {
                3
            } else {
                2
            },
            pods_per_node: if self.shape == Shape::OneNode { 2 } else { 1 },
            routed: self.shape == Shape::ThreeNodes,
            uplink_tx_checksum: false,
            ..spec()
        };
        let options = Options {
            underlay6: self.underlay6(),
            ingress: self.ingress,
            ..options(self.mode)
        };
        if self.peer == Peer::Podway {
            return Network::up(spec, &options);
        }
        let network = Network::up_on_first(spec, &options);
        if self.peer == Peer::Kernel {
            for node in &network.cluster.nodes()[1..] {
                match self.mode {
                    Mode::Vxlan => kernel::add_vxlan_over(&network.cluster, node, self.underlay6()),
                    Mode::Native => kernel::add_native(&network.cluster, node),
                }
                .unwrap();
            }
        }
        network
    }

    /// Everything that its pods have to say by uplinks of such an MTU; what arrived of it.
    fn run(self, uplink_mtu: u16) -> Vec<Row> {
        let network = self.build(uplink_mtu);
        let mut rows = Vec::new();
        for pods in self.pods() {
            for family in self.inner() {
                let flow = Flow {
                    network: &network,
                    pods,
                    family,
                    mtu: pod_mtu(uplink_mtu, self.mode, self.underlay6()).into(),
                };
                flow.begin();
                rows.extend(Traffic::ALL.map(|traffic| flow.carries(traffic)));
            }
        }
        network.finish();
        rows
    }
}

const ONE_NODE: (Shape, Peer) = (Shape::OneNode, Peer::Nobody);

/// Every two choices that can meet do so in one of these.
const COVERING: [Lab; 8] = {
    use Family::{V4, V6};
    use IngressChoice::{AfXdp, Auto};
    use Mode::{Native, Vxlan};
    use Peer::{Kernel, Podway};
    use Shape::{ThreeNodes, TwoNodes};
    [
        Lab::new(Vxlan, V4, ONE_NODE, Auto),
        Lab::new(Native, V6, ONE_NODE, AfXdp),
        Lab::new(Vxlan, V6, (TwoNodes, Podway), Auto),
        Lab::new(Native, V4, (TwoNodes, Podway), AfXdp),
        Lab::new(Native, V4, (TwoNodes, Kernel), Auto),
        Lab::new(Vxlan, V4, (ThreeNodes, Kernel), AfXdp),
        Lab::new(Vxlan, V6, (ThreeNodes, Kernel), Auto),
        Lab::new(Native, V6, (ThreeNodes, Podway), Auto),
    ]
};

/// What was asked for by `PODWAY_TEST_MATRIX`.
fn asked() -> String {
    std::env::var("PODWAY_TEST_MATRIX").unwrap_or_default()
}

fn chosen() -> Vec<Lab> {
    let all = Lab::all();
    match asked().as_str() {
        "" => COVERING.to_vec(),
        "all" => all,
        word => {
            let named = all.into_iter().filter(|lab| lab.to_string().contains(word));
            named.collect()
        }
    }
}

/// Builds networks one after another and prints what arrived.
fn run(labs: &[Lab], uplink_mtu: u16) {
    // Written past the harness, which keeps what a test prints to itself.
    let mut log = std::io::stdout();
    let mut say = |line: String| writeln!(log, "{line}").unwrap();
    say(format!("\n{}", Row::HEAD));
    for lab in labs {
        let begin = Instant::now();
        let rows = lab.run(uplink_mtu);
        let seconds = begin.elapsed().as_secs_f32();
        say(format!("{lab}, MTU {uplink_mtu} ({seconds:.1} s)"));
        for row in rows {
            say(row.to_string());
        }
    }
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn every_cell_arrives_whole_and_once() {
    let labs = chosen();
    assert!(!labs.is_empty(), "PODWAY_TEST_MATRIX names no network");
    run(&labs, spec().uplink_mtu);
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn other_mtus_carry_whole_and_once() {
    let mtus = match asked().as_str() {
        "all" => &[2048, 2049, 9000, 9001][..],
        _ => &[9000],
    };
    let two_nodes = |lab: &&Lab| lab.shape == Shape::TwoNodes;
    let labs: Vec<_> = COVERING.iter().filter(two_nodes).copied().collect();
    for mtu in mtus {
        run(&labs, *mtu);
    }
}

#[test]
fn few_networks_cover_every_pair_of_choices() {
    let all = Lab::all();
    assert_eq!(all.len(), 40);
    let cells = all.iter().map(|lab| lab.inner().len());
    assert_eq!(cells.sum::<usize>(), 64);
    let pairs = |labs: &[Lab]| -> BTreeSet<String> {
        let pairs = labs.iter().flat_map(|lab| lab.pairs());
        pairs.collect()
    };
    assert_eq!(pairs(&COVERING), pairs(&all));
}
