//! Joining against the kernel's own GRO: streams of segments and datagrams go through both, and the
//! super-frames are compared. Each test has a network namespace of its own; they need root.
//!
//! ```text
//!   the stream as it is -->  far  =====  near, GRO on  -->  what the kernel has joined
//!   what we have joined <--  far  =====  near  <--  our egress <-- the stream as it is
//! ```
//!
//! What ours joins, the kernel joins to the same bytes. Where ours joins less, the reason is one of
//! [`Less`].
#![allow(missing_docs, reason = "tests are described by their names")]

mod support;

use std::cell::RefCell;
use std::collections::HashMap;
use std::process::Command;
use std::time::{Duration, Instant};

use podway_dataplane::egress::VnetHeader;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

use support::gathered::Gathered;
use support::namespace::run;
use support::packets::{CWR, Offsets, get16, icmp};
use support::raw::Captured;
use support::streams::{Odd, Sent, Step, Stream, stream};
use support::{Capture, Pair, Sender, in_namespace};

/// How long the kernel leaves frames in the ring before it looks at them all at once.
const GATHERING: Duration = Duration::from_millis(10);

/// Most bytes of a super-frame of ours, Ethernet header included.
const MAX_BYTES: usize = 65535;

/// A message that came out, and which packets of the stream are in it.
#[derive(Debug, PartialEq, Eq)]
struct Group {
    packets: Vec<usize>,
    vnet: VnetHeader,
    frame: Vec<u8>,
}

/// A veth pair whose `near` end joins what `far` sends, and our egress.
struct Wires {
    pair: Pair,
    sender: Sender,
    ours: Gathered,
    joined_here: Capture,
    joined_by_kernel: Capture,
}

impl Wires {
    fn new() -> Self {
        let pair = Pair::new(1);
        // GRO works on what comes as frames, not on what could have come as a super-frame.
        run("ethtool", "-K far tso off tx-udp-segmentation off");
        run("ethtool", "-K near gro on rx-udp-gro-forwarding on");
        // The first frame makes the kernel poll; then it looks again after this time, and takes all
        // that has come meanwhile in one poll. `/sys` must be that of the namespace.
        let set = format!(
            "mount -t sysfs sysfs /sys && cd /sys/class/net/near && \
             echo 1 >napi_defer_hard_irqs && echo {} >gro_flush_timeout",
            GATHERING.as_nanos()
        );
        let unshare = Command::new("unshare")
            .args(["-m", "sh", "-ec", &set])
            .output();
        let unshare = unshare.unwrap();
        assert!(unshare.status.success(), "{unshare:?}");
        Self {
            sender: Sender::new(),
            ours: Gathered::to_pod(pair.near),
            joined_here: Capture::new(pair.far),
            joined_by_kernel: Capture::new(pair.near),
            pair,
        }
    }

    /// What the kernel makes of a burst.
    fn kernel(&mut self, sent: &[Sent]) -> Vec<Group> {
        // Of a protocol that nobody joins. Not of a protocol that nobody takes: the kernel shows
        // those to a capture later than what came behind them.
        let first = icmp([10, 0, 0, 3].into(), [10, 0, 0, 4].into(), b"first");
        let mut burst = vec![(first.clone(), VnetHeader::default())];
        burst.extend(sent.iter().map(|s| (s.padded.clone(), s.vnet)));
        for _ in 0..100 {
            let begin = Instant::now();
            let (results, calls) = self.sender.send_all(self.pair.far, &burst);
            let in_time = begin.elapsed() < GATHERING / 2;
            assert!(results.iter().all(Result::is_ok), "{results:?}");
            assert_eq!(calls, 1);
            assert_eq!(self.joined_by_kernel.next().unwrap().bytes, first);
            let groups = groups(&self.joined_by_kernel, sent);
            if in_time {
                return groups;
            }
        }
        panic!(
            "this machine is too busy to send {} frames at once",
            burst.len()
        );
    }

    /// What we make of it.
    fn ours(&mut self, sent: &[Sent], chunk: usize) -> Vec<Group> {
        let burst: Vec<_> = sent.iter().map(|s| (s.padded.clone(), s.vnet)).collect();
        self.ours.send(&burst, 1500, chunk);
        groups(&self.joined_here, sent)
    }
}

/// Reads messages until all of `sent` have come in them, each once.
fn groups(capture: &Capture, sent: &[Sent]) -> Vec<Group> {
    let mut missing: Vec<usize> = (0..sent.len()).collect();
    let mut groups = Vec::new();
    while !missing.is_empty() {
        let captured = capture.next();
        let captured = captured.unwrap_or_else(|| panic!("{missing:?} do not come"));
        groups.push(group(captured, sent, &mut missing));
    }
    groups
}

fn group(captured: Captured, sent: &[Sent], missing: &mut Vec<usize>) -> Group {
    let Captured {
        mut vnet,
        bytes: mut frame,
    } = captured;
    let at = Offsets::of(&frame);
    let len = if at.v6 {
        54 + usize::from(get16(&frame, 18))
    } else {
        14 + usize::from(get16(&frame, 16))
    };
    frame.truncate(len);
    // How much is in one buffer, and that somebody has verified the checksum: for the receiver.
    vnet.hdr_len = 0;
    vnet.flags &= VnetHeader::NEEDS_CSUM;
    let mut take = |what: &str, is: &dyn Fn(&Sent) -> bool| {
        let place = missing.iter().position(|&packet| is(&sent[packet]));
        missing.remove(place.unwrap_or_else(|| panic!("{what} was not sent")))
    };
    let packets = if vnet.gso_type == VnetHeader::GSO_NONE {
        vec![take("a packet", &|sent| {
            sent.frame == frame && sent.vnet == vnet
        })]
    } else {
        let segments = frame[at.payload..].chunks(vnet.gso_size.into());
        let ports = &frame[at.l4..at.l4 + 4];
        segments
            .map(|segment| {
                take("a segment", &|sent| {
                    sent.payload() == segment && sent.frame[at.l4..at.l4 + 4] == *ports
                })
            })
            .collect()
    };
    Group {
        packets,
        vnet,
        frame,
    }
}

/// Why ours does not join what the kernel does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Less {
    /// Without ACK, or with AE or reserved bits: not what bulk data has.
    Flags,
    /// A packet of the flow that is not joined was between them: it would be overtaken.
    Order,
    /// Their IPv4 ids are equal, and they may be fragmented: Linux 6.18 joins them, and would cut
    /// them with ids that differ (RFC 6864, 4.1).
    Ids,
    /// The super-frame would have more than 65535 bytes with its Ethernet header.
    Full,
    /// Ours began the run at another packet, for one of the other reasons or since it trims, and by
    /// that one's size, or with ids that go on where the kernel's stand still, this one does not fit.
    Leader,
}

/// The reason why ours has not joined packet `b` to packet `a`, as the kernel has in the super-frame
/// that begins with packet `leader`.
fn why(sent: &[Sent], ours: &[Group], leader: usize, (a, b): (usize, usize)) -> Option<Less> {
    let between = sent.get(a + 1..b).unwrap_or_default();
    let group = ours.iter().find(|group| group.packets.contains(&a))?;
    if [leader, a, b].iter().any(|n| sent[*n].has_odd_flags()) {
        Some(Less::Flags)
    } else if between.iter().any(|s| s.flow == sent[a].flow) {
        Some(Less::Order)
    } else if sent[a].id().is_some() && sent[a].id() == sent[b].id() {
        Some(Less::Ids)
    } else if group.frame.len() + sent[b].payload().len() > MAX_BYTES {
        Some(Less::Full)
    } else if group.packets[0] != leader {
        Some(Less::Leader)
    } else {
        None
    }
}

/// What happened in all cases.
#[derive(Debug, Default)]
struct Seen {
    /// Super-frames of ours that the kernel made of the same stream, or of their packets alone.
    same: usize,
    alone: usize,
    less: HashMap<Less, usize>,
}

fn check(wires: &mut Wires, stream: &Stream, seen: &mut Seen) {
    let sent = stream.packets();
    let ours = wires.ours(&sent, stream.chunk);
    let kernel = wires.kernel(&sent);

    // No flow is reordered here. The kernel does it to what it passes on at once.
    let order = |groups: &[Group], flow: &dyn Fn(&Sent) -> Option<(u8, u16)>| {
        let mut last = HashMap::new();
        for &packet in groups.iter().flat_map(|group| &group.packets) {
            if let Some(flow) = flow(&sent[packet]) {
                let before = last.insert(flow, packet);
                assert!(before < Some(packet), "{packet} comes after {before:?}");
            }
        }
    };
    order(&ours, &|s| Some((s.flow, 0)));
    // To the kernel, IPv6 packets of two flow labels are of two flows.
    order(&kernel, &|s| (!s.overtakes()).then_some((s.flow, s.label)));

    let joined = |group: &Group, a, b| group.packets.windows(2).any(|pair| pair == [a, b]);
    for group in &kernel {
        for pair in group.packets.windows(2) {
            let (a, b) = (pair[0], pair[1]);
            if ours.iter().any(|group| joined(group, a, b)) {
                continue;
            }
            let why = why(&sent, &ours, group.packets[0], (a, b));
            let why = why.unwrap_or_else(|| panic!("the kernel joins {a} and {b}"));
            *seen.less.entry(why).or_default() += 1;
        }
    }
    for group in ours.iter().filter(|group| group.packets.len() > 1) {
        if kernel.contains(group) {
            seen.same += 1;
            continue;
        }
        // What came between, or before, has made the difference; and we trim, the kernel does not.
        let alone = group.packets.iter().map(|packet| Sent {
            padded: sent[*packet].frame.clone(),
            ..sent[*packet].clone()
        });
        let alone = wires.kernel(&alone.collect::<Vec<_>>());
        let [kernel] = &alone[..] else {
            panic!("the kernel does not join {:?}", group.packets);
        };
        assert_eq!((&kernel.frame, kernel.vnet), (&group.frame, group.vnet));
        seen.alone += 1;
    }
}

/// A quarter of the cases that proptest runs by itself, or that `PROPTEST_CASES` says.
fn cases() -> usize {
    ProptestConfig::default().cases as usize / 4
}

/// Checks streams, the same in each run.
fn check_streams(udp: bool) -> Seen {
    let mut all = Seen::default();
    in_namespace(|| {
        let seen = RefCell::new(Seen::default());
        let wires = RefCell::new(Wires::new());
        let config = ProptestConfig {
            cases: u32::try_from(cases()).unwrap(),
            failure_persistence: None,
            ..ProptestConfig::default()
        };
        let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        let result = TestRunner::new_with_rng(config, rng).run(&stream(udp), |stream| {
            check(&mut wires.borrow_mut(), &stream, &mut seen.borrow_mut());
            Ok(())
        });
        result.unwrap_or_else(|error| panic!("{error}"));
        all = seen.into_inner();
    });
    all
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn segments_are_joined_as_by_the_kernel() {
    let seen = check_streams(false);
    assert!(seen.same >= cases() && seen.alone > 0, "{seen:?}");
    for why in [Less::Flags, Less::Order, Less::Ids] {
        assert!(seen.less.contains_key(&why), "{seen:?}");
    }
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn datagrams_are_joined_as_by_the_kernel() {
    let seen = check_streams(true);
    assert!(seen.same >= cases() && seen.alone > 0, "{seen:?}");
    for why in [Less::Order, Less::Ids] {
        assert!(seen.less.contains_key(&why), "{seen:?}");
    }
}

/// Two segments each; the odd one is the first, the second, or both are. CWR nobody joins (Linux
/// 6.18).
#[test]
#[ignore = "needs root; scripts/test runs it"]
fn flags_that_the_kernel_joins_and_ours_does_not() {
    in_namespace(|| {
        let mut wires = Wires::new();
        for (odd, expected) in [
            (Odd::Flags(CWR), [false, false, false]),
            (Odd::NoAck, [false, false, true]),
            (Odd::ReservedFlags(1), [false, false, true]),
            (Odd::ReservedFlags(8), [false, false, true]),
        ] {
            let joined = [[true, false], [false, true], [true, true]].map(|is_odd| {
                let step = |is_odd| Step {
                    odd: if is_odd { odd } else { Odd::Nothing },
                    ..Step::plain(0)
                };
                let sent = Stream::of(is_odd.map(step).to_vec()).packets();
                assert_eq!(wires.ours(&sent, 3500).len(), 2);
                wires.kernel(&sent).len() == 1
            });
            assert_eq!(joined, expected, "{odd:?}");
        }
    });
}

/// The kernel counts 65535 bytes from the IP header on, ours from the Ethernet header on.
#[test]
#[ignore = "needs root; scripts/test runs it"]
fn the_last_bytes_of_64_kib_are_the_kernels() {
    in_namespace(|| {
        let mut wires = Wires::new();
        for (last, less) in [(701, 0), (702, 1), (715, 1)] {
            // 46 segments of 1408 bytes and one of `last`, with 66 bytes of headers.
            let mut steps = vec![Step::plain(0); 46];
            steps.push(Step::plain(1408 - last));
            let stream = Stream::of(steps);
            let mut seen = Seen::default();
            check(&mut wires, &stream, &mut seen);
            let full = seen.less.get(&Less::Full).copied().unwrap_or_default();
            assert_eq!((full, seen.same + seen.alone), (less, 1), "{last}");
        }
    });
}
