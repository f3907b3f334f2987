//! tshark agrees: what leaves the uplinks is well formed and has right checksums, to somebody who
//! knows nothing of Podway.

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use etherparse::PacketBuilder;
use etherparse::checksum::Sum16BitWords;
use podway_bench::capture::{Capture, Frame, write_pcap};
use podway_bench::frames::Numbered;
use podway_bench::link::LinkCounters;
use podway_bench::netns::run;
use podway_bench::podway::Options;
use podway_bench::topology::{ClusterSpec, Pod, UPLINK};
use podway_proto::types::Mode;

use crate::sockets;
use crate::support::{Network, af_xdp, options, ping_all, spec};

const PINGS: u16 = 5;
const DATAGRAMS: u32 = 60;
/// Bytes of a TCP connection each way.
const TRANSFER: usize = 1 << 20;
/// No TCP segment here has more payload than this.
const MOST_PER_SEGMENT: usize = 1460;

/// Checksums that tshark judges, by the field that tells the judgement.
const STATUS_FIELDS: [&str; 5] = [
    "ip.checksum.status",
    "tcp.checksum.status",
    "udp.checksum.status",
    "icmp.checksum.status",
    "icmpv6.checksum.status",
];
/// Values of those fields (`proto_checksum_vals` in epan/proto.c of Wireshark).
const GOOD: &str = "1";
const NOT_PRESENT: &str = "3";
/// `PI_ERROR` of epan/proto.h: the severity of wrong checksums and lengths, and of malformed packets.
const ERROR: &str = "8388608";

/// What tshark says of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Verdict {
    protocols: String,
    malformed: bool,
    /// Something is wrong with it, in tshark's view.
    error: bool,
    /// Of each of [`STATUS_FIELDS`], from the outermost header to the innermost.
    checksums: [Vec<String>; STATUS_FIELDS.len()],
}

impl Verdict {
    fn is_clean(&self) -> bool {
        let right = |status: &String| status == GOOD || status == NOT_PRESENT;
        !self.malformed && !self.error && self.checksums.iter().flatten().all(right)
    }

    fn good(&self) -> usize {
        let statuses = self.checksums.iter().flatten();
        statuses.filter(|status| *status == GOOD).count()
    }
}

/// Has tshark dissect a file, checking every checksum.
fn dissect(path: &Path) -> Vec<Verdict> {
    let mut command = Command::new("tshark");
    command.arg("-n").arg("-r").arg(path);
    for protocol in ["ip", "tcp", "udp"] {
        command.args(["-o", &format!("{protocol}.check_checksum:TRUE")]);
    }
    command.args(["-T", "fields", "-E", "separator=/t", "-E", "occurrence=a"]);
    let fields = ["frame.protocols", "_ws.malformed", "_ws.expert.severity"];
    for field in fields.into_iter().chain(STATUS_FIELDS) {
        command.args(["-e", field]);
    }
    let text = run(&mut command).unwrap_or_else(|error| panic!("{error}"));
    text.lines().map(verdict).collect()
}

fn verdict(line: &str) -> Verdict {
    let values = |column: &str| -> Vec<String> {
        let values = column.split(',').filter(|value| !value.is_empty());
        values.map(str::to_owned).collect()
    };
    let columns: Vec<_> = line.split('\t').collect();
    let [protocols, malformed, severities, statuses @ ..] = &columns[..] else {
        panic!("{line}");
    };
    assert_eq!(statuses.len(), STATUS_FIELDS.len(), "{line}");
    let mut checksums: [Vec<String>; STATUS_FIELDS.len()] = Default::default();
    for (place, column) in checksums.iter_mut().zip(statuses) {
        *place = values(column);
    }
    Verdict {
        protocols: (*protocols).to_owned(),
        malformed: !malformed.is_empty() || protocols.contains("_ws.malformed"),
        error: values(severities).iter().any(|severity| severity == ERROR),
        checksums,
    }
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn every_mode_is_clean() {
    let underlay6 = |mode| {
        let mut options = options(mode);
        options.underlay6 = true;
        options.config += "ipv6-native-routing-cidr = \"fd00:10::/48\"\n";
        options
    };
    let cases = [
        ("VXLAN over IPv4", options(Mode::Vxlan), &[false, true][..]),
        (
            "VXLAN over IPv4 by AF_XDP",
            af_xdp(Mode::Vxlan),
            &[false, true],
        ),
        ("VXLAN over IPv6", underlay6(Mode::Vxlan), &[false, true]),
        ("native IPv4", options(Mode::Native), &[false]),
        ("native IPv6", underlay6(Mode::Native), &[true]),
    ];
    for (what, options, families) in cases {
        is_clean(what, &options, families);
    }
}

/// Pods send what they can by a path whose wire carries finished checksums only; `families` are the
/// IP versions inside, and whether each is 6.
fn is_clean(what: &str, options: &Options, families: &[bool]) {
    let spec = ClusterSpec {
        pods_per_node: 1,
        uplink_tx_checksum: false,
        ..spec()
    };
    let network = Network::up(spec, options);
    let capture = Capture::on(&network.cluster).unwrap();
    let departed = |node: usize| {
        let counters = LinkCounters::read(&network.node(node).netns, UPLINK);
        counters.unwrap().tx_packets
    };
    let before = departed(0) + departed(1);
    let mut sent = 0;
    for v6 in families {
        for (from, to) in [(0, 1), (1, 0)] {
            sent += exchange(network.pod(from, 0), network.pod(to, 0), *v6);
        }
    }
    let on_the_wire = departed(0) + departed(1) - before;
    let frames = capture.finish().unwrap();
    network.finish();
    // Every frame was captured, and the kernel's own, ARP for example, may have come since.
    let captured = frames.len() as u64;
    assert!(
        captured >= on_the_wire,
        "{what}: {captured} of {on_the_wire}"
    );
    assert!(
        captured > sent,
        "{what}: {captured} frames of {sent} packets"
    );

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("uplinks.pcap");
    write_pcap(&path, &frames).unwrap();
    let verdicts = dissect(&path);
    assert_eq!(verdicts.len(), frames.len(), "{what}");
    let unclean: Vec<_> = verdicts.iter().filter(|v| !v.is_clean()).take(5).collect();
    assert!(unclean.is_empty(), "{what}: {unclean:?}");
    // That tshark has looked: at tunnels, at what is inside, and at checksums.
    let tunnelled = verdicts.iter().filter(|v| v.protocols.contains("vxlan"));
    match options.mode {
        Mode::Vxlan => assert!(tunnelled.count() as u64 > sent, "{what}"),
        Mode::Native => assert_eq!(tunnelled.count(), 0, "{what}"),
    }
    for protocol in ["tcp", "udp", "icmp"] {
        let is_of = |v: &&Verdict| {
            v.protocols
                .split(':')
                .any(|name| name.starts_with(protocol))
        };
        let good = verdicts.iter().filter(is_of).filter(|v| v.good() > 0);
        assert!(good.count() > 0, "{what}: no {protocol}");
    }
}

/// Pings, datagrams and fragments, and a TCP connection. Returns how many packets the pods have sent
/// at least, both together.
fn exchange(from: &Pod, to: &Pod, v6: bool) -> u64 {
    let target: IpAddr = if v6 { to.ipv6.into() } else { to.ipv4.into() };
    let mut sent = 0;
    for size in [0, 56, 1333, 8000] {
        ping_all(&from.netns, target, size, PINGS);
        sent += 2 * u64::from(PINGS);
    }
    let datagrams = Numbered {
        count: DATAGRAMS,
        sizes: vec![4, 5, 100, 999, 1350, 3000],
        batches: Vec::new(),
        burst: 20,
        pause: Duration::from_millis(5),
    };
    let arrived = datagrams.run(&from.netns, &to.netns, target).unwrap();
    assert_eq!(arrived.numbers.len(), DATAGRAMS as usize, "{target}");
    assert_eq!(arrived.damaged, 0, "{target}");
    let arrived = sockets::tcp(&from.netns, &to.netns, target, TRANSFER);
    assert_eq!(arrived, (TRANSFER, TRANSFER), "{target}");
    let segments = 2 * TRANSFER.div_ceil(MOST_PER_SEGMENT);
    sent + u64::from(DATAGRAMS) + segments as u64
}

/// A frame of TCP or UDP, and the same in a tunnel.
fn good_frames() -> [Vec<u8>; 3] {
    let ip = || {
        let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        link.ipv4([10, 0, 0, 10], [10, 0, 1, 10], 64)
    };
    let (mut tcp, mut udp, mut tunnel) = (Vec::new(), Vec::new(), Vec::new());
    ip().tcp(40_000, 9, 1, 500)
        .write(&mut tcp, b"hello")
        .unwrap();
    ip().udp(40_000, 9).write(&mut udp, b"hello").unwrap();
    let inside = [&[8, 0, 0, 0, 0, 0, 1, 0][..], &tcp].concat();
    ip().udp(50_000, 4789).write(&mut tunnel, &inside).unwrap();
    [tcp, udp, tunnel]
}

/// Flips bits of a byte.
fn flip(frame: &[u8], at: usize, bits: u8) -> Vec<u8> {
    let mut frame = frame.to_owned();
    frame[at] ^= bits;
    frame
}

/// What the test above relies on.
#[test]
#[ignore = "needs tshark; scripts/test runs it"]
fn a_broken_packet_is_seen() {
    // Ethernet, IPv4, UDP and VXLAN headers.
    const INNER: usize = 14 + 20 + 8 + 8;
    let [tcp, udp, tunnel] = good_frames();
    let broken = [
        ("IP checksum", flip(&tcp, 24, 1)),
        ("TCP checksum", flip(&tcp, 50, 1)),
        ("UDP checksum", flip(&udp, 40, 1)),
        ("UDP payload", flip(&udp, 44, 1)),
        ("UDP length", flip(&udp, 38, 1)),
        ("TCP data offset", flip(&tcp, 46, 0xa0)),
        ("outer UDP checksum", flip(&tunnel, 40, 1)),
        ("inner IP checksum", with_sum(flip(&tunnel, INNER + 24, 1))),
        ("inner TCP checksum", with_sum(flip(&tunnel, INNER + 50, 1))),
        (
            "inner IP length",
            with_sum(with_ip_sum(flip(&tunnel, INNER + 16, 1), INNER + 14)),
        ),
        ("cut", tcp[..40].to_vec()),
    ];
    let good = [("good", tcp), ("good", udp), ("good", tunnel)];
    let frames: Vec<_> = good
        .iter()
        .chain(&broken)
        .zip(0..)
        .map(|((_, bytes), at)| Frame {
            at,
            bytes: bytes.clone(),
        })
        .collect();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("broken.pcap");
    write_pcap(&path, &frames).unwrap();
    let verdicts = dissect(&path);
    assert_eq!(verdicts.len(), frames.len());
    for ((what, _), verdict) in good.iter().chain(&broken).zip(&verdicts) {
        assert_eq!(verdict.is_clean(), *what == "good", "{what}: {verdict:?}");
    }
}

/// The frame with a right checksum of the IPv4 header at `at`.
fn with_ip_sum(mut frame: Vec<u8>, at: usize) -> Vec<u8> {
    frame[at + 10..at + 12].fill(0);
    let sum = Sum16BitWords::new().add_slice(&frame[at..at + 20]);
    frame[at + 10..at + 12].copy_from_slice(&sum.ones_complement().to_ne_bytes());
    frame
}

/// The frame of a tunnel with a right UDP checksum, so that only what is inside is wrong.
fn with_sum(mut frame: Vec<u8>) -> Vec<u8> {
    frame[40..42].fill(0);
    let length = u16::try_from(frame.len() - 34).unwrap().to_be_bytes();
    let sum = Sum16BitWords::new()
        .add_slice(&frame[26..34])
        .add_2bytes([0, 17])
        .add_2bytes(length)
        .add_slice(&frame[34..])
        .to_ones_complement_with_no_zero();
    frame[40..42].copy_from_slice(&sum.to_ne_bytes());
    frame
}
