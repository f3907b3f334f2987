//! What a node without sockets overhears, and how long the packets are that leave it then.

use proptest::prelude::*;

use super::*;
use crate::fib::PortId;
use crate::packet::Offload;
use crate::testing::kernel::wire as cut_by_kernel;
use crate::testing::node::Node;
use crate::testing::packets::{
    ACK, Offsets, SYN, Spec, finish, fold, fragment, icmp, payload, pseudo, put16, verify,
};
use crate::testing::plan::{
    BIG_POD, Mtus, NARROW, NATIVE, POD, UPLINK, VXLAN_V4, VXLAN_V6, facts, multipath, pod, tables,
    tunnelled, underlay,
};

const ME: u8 = 1;
const EVERYWHERE: [u8; 4] = [VXLAN_V4, VXLAN_V6, NATIVE, NARROW];

/// A node and where its first pod sends to.
struct Rig {
    node: Node,
    other: u8,
    v6: bool,
}

impl Rig {
    fn new(other: u8, v6: bool) -> Self {
        Self::with(other, v6, Mtus::default())
    }

    fn with(other: u8, v6: bool, mtus: Mtus) -> Self {
        let mut node = Node::new(tables(ME, mtus));
        node.limits = Some(Limits::default());
        Self { node, other, v6 }
    }

    /// What the tables let through, in bytes of IP packet.
    fn known(&self) -> u16 {
        match self.other {
            VXLAN_V4 => 1450,
            VXLAN_V6 => 1430,
            NARROW => 1400,
            _ => 1500,
        }
    }

    fn out(&self, spec: Spec) -> Spec {
        spec.between(pod(self.v6, ME, 1), pod(self.v6, self.other, 1))
    }

    /// The other pod's SYN-ACK, with these options.
    fn syn(&self, options: &[u8]) -> Spec {
        let spec = Spec {
            flags: SYN | ACK,
            options: options.to_vec(),
            sport: 5201,
            dport: 40000,
            ..Spec::tcp(1, 0, b"")
        };
        spec.between(pod(self.v6, self.other, 1), pod(self.v6, ME, 1))
    }

    /// A frame from the other node.
    fn hear(&mut self, frame: &[u8]) {
        let arrived = match self.other {
            VXLAN_V4 | VXLAN_V6 => tunnelled(self.other, 0, frame),
            _ => frame.to_vec(),
        };
        self.node.receive(UPLINK, &arrived).unwrap();
        assert_eq!(self.node.flush().len(), 1);
    }

    fn hear_mss(&mut self, mss: u16) {
        let syn = self.syn(&announce(mss)).build();
        self.hear(&syn);
    }

    /// What the pod's frames are on the wire, without outer headers.
    fn wire(&mut self, from: PortId, spec: &Spec) -> Vec<Vec<u8>> {
        self.node.receive(from, &spec.build()).unwrap();
        let outer = match self.other {
            VXLAN_V4 => 50,
            VXLAN_V6 => 70,
            _ => 0,
        };
        let sent = self.node.flush();
        let wire = sent.iter().flat_map(cut_by_kernel);
        wire.map(|frame| frame[outer..].to_vec()).collect()
    }

    /// The IP length of the longest packet that a super-frame of the first pod is cut to.
    fn longest(&mut self, spec: Spec) -> u16 {
        let wire = self.wire(POD, &self.out(spec));
        let longest = wire.iter().map(Vec::len).max().unwrap();
        u16::try_from(longest - 14).unwrap()
    }

    fn cut_to(&mut self) -> u16 {
        self.longest(bulk())
    }

    /// An ICMP error that tells the first pod the MTU of the way to the other one.
    fn error(&self, mtu: u32) -> Vec<u8> {
        let sent = self.out(Spec::tcp(1, 0, &payload(100))).build();
        let router = match self.other {
            VXLAN_V4 | VXLAN_V6 => pod(self.v6, self.other, 9),
            _ => underlay(self.v6, 254),
        };
        error(router, pod(self.v6, ME, 1), mtu, &sent[14..])
    }
}

/// A super-frame as the pod's kernel hands it over.
fn bulk() -> Spec {
    Spec {
        partial: true,
        ..Spec::tcp(1, 0, &payload(20_000))
    }
}

fn announce(mss: u16) -> Vec<u8> {
    [&[2, 4], &mss.to_be_bytes()[..]].concat()
}

fn error(router: IpAddr, to: IpAddr, mtu: u32, quoted: &[u8]) -> Vec<u8> {
    let mut frame = icmp(router, to, quoted);
    let at = Offsets::of(&frame);
    let (kind, code) = if at.v6 { (2, 0) } else { (3, 4) };
    frame[at.l4..at.l4 + 4].copy_from_slice(&[kind, code, 0, 0]);
    frame[at.l4 + 4..at.l4 + 8].copy_from_slice(&mtu.to_be_bytes());
    finish_icmp(&mut frame);
    frame
}

fn finish_icmp(frame: &mut [u8]) {
    let at = Offsets::of(frame);
    let seed = match at.v6 {
        true => fold(pseudo(frame, frame.len() - at.l4)),
        false => 0,
    };
    put16(frame, at.l4 + 2, seed);
    finish(frame, at.l4, at.l4 + 2);
}

/// The flow may go by the wider one of the members.
#[test]
fn what_is_announced_over_a_multipath_route_counts() {
    for v6 in [false, true] {
        let mut fib = facts(ME, Mtus::default()).fib();
        fib.set_route(multipath(v6, &[NATIVE, NARROW])).unwrap();
        let mut rig = Rig {
            node: Node::new(fib.build().tables),
            other: 9,
            v6,
        };
        rig.node.limits = Some(Limits::default());
        let in_front = if v6 { 60 } else { 40 };
        for mss in [1420 - in_front, 1300] {
            for port in 40000..40032 {
                let syn = Spec {
                    dport: port,
                    ..rig.syn(&announce(mss))
                };
                rig.hear(&syn.build());
                let sent = Spec {
                    sport: port,
                    ..bulk()
                };
                let cut_to = rig.longest(sent);
                let narrow = (mss + in_front).min(1400);
                assert!([mss + in_front, narrow].contains(&cut_to), "{cut_to}");
            }
        }
    }
}

#[test]
fn the_peers_announcement_counts_for_its_flow() {
    for (other, v6) in EVERYWHERE
        .map(|other| [(other, false), (other, true)])
        .concat()
    {
        let mut rig = Rig::new(other, v6);
        assert_eq!(rig.cut_to(), rig.known());
        rig.hear_mss(1000);
        let in_front = if v6 { 60 } else { 40 };
        assert_eq!(rig.cut_to(), 1000 + in_front);
        let another = Spec {
            sport: 40001,
            ..bulk()
        };
        assert_eq!(rig.longest(another), rig.known());
        // Without timestamps the packets are as long.
        let plain = Spec {
            options: Vec::new(),
            ..bulk()
        };
        assert_eq!(rig.longest(plain), 1000 + in_front);
        // The next flow between the same ports begins anew, and may have more again.
        rig.hear_mss(900);
        assert_eq!(rig.cut_to(), 900 + in_front);
        rig.hear_mss(8960);
        assert_eq!(rig.cut_to(), rig.known());
    }
}

#[test]
fn a_syn_without_the_option_announces_the_default() {
    for options in [vec![], vec![1, 1, 4, 2], announce(0)] {
        for (v6, packet) in [(false, 576), (true, 1280)] {
            let mut rig = Rig::new(NATIVE, v6);
            let syn = rig.syn(&options).build();
            rig.hear(&syn);
            assert_eq!(rig.cut_to(), packet, "{options:?}");
        }
    }
}

#[test]
fn sizes_out_of_reason_are_raised() {
    let mut rig = Rig::new(VXLAN_V4, false);
    rig.hear_mss(1);
    assert_eq!(rig.cut_to(), 256);
    // The longest super-frame with all that may be before each segment still leaves whole.
    let most = Spec {
        options: vec![1; 40],
        payload: payload(65_535 - 80),
        ..bulk()
    };
    assert_eq!(rig.longest(most), 256);
    let mut rig = Rig::new(VXLAN_V6, true);
    rig.hear_mss(1);
    let most = Spec {
        options: vec![1; 40],
        payload: payload(65_535 - 60),
        ..bulk()
    };
    assert_eq!(rig.longest(most), 256);
}

#[test]
fn what_a_pod_itself_announces_limits_its_peer_only() {
    let mut rig = Rig::new(NATIVE, false);
    let syn = Spec {
        flags: SYN,
        options: announce(500),
        ..Spec::tcp(1, 0, b"")
    };
    rig.wire(POD, &rig.out(syn));
    assert_eq!(rig.cut_to(), 1500);
}

#[test]
fn pods_of_one_node_hear_each_other() {
    let mut rig = Rig::new(NATIVE, false);
    let ends = (pod(false, ME, 1), pod(false, ME, 2));
    let syn = rig.syn(&announce(700)).between(ends.1, ends.0);
    rig.wire(BIG_POD, &syn);
    let segments = rig.wire(POD, &bulk().between(ends.0, ends.1));
    assert_eq!(segments[0].len(), 14 + 740);
    // The pod with the larger MTU was told nothing, and sends what the other one's link takes.
    let back = Spec {
        sport: 5201,
        dport: 40000,
        ..bulk()
    };
    let segments = rig.wire(BIG_POD, &back.between(ends.1, ends.0));
    assert_eq!(segments[0].len(), 14 + 1500);
}

#[test]
fn an_icmp_error_counts_for_all_flows_of_the_pair() {
    for (other, v6) in EVERYWHERE
        .map(|other| [(other, false), (other, true)])
        .concat()
    {
        let mut rig = Rig::new(other, v6);
        let error = rig.error(1333);
        rig.hear(&error);
        assert_eq!(rig.cut_to(), 1333);
        let another = Spec {
            sport: 7,
            dport: 8,
            ..bulk()
        };
        assert_eq!(rig.longest(another), 1333);
        // What is announced for a flow counts beside it.
        rig.hear_mss(800);
        assert_eq!(rig.cut_to(), if v6 { 860 } else { 840 });
        // It does not raise what is known.
        let error = rig.error(1499);
        rig.hear(&error);
        rig.hear_mss(8960);
        let told = 1499.min(rig.known());
        assert_eq!(rig.cut_to(), if told < rig.known() { told } else { 1333 });
        // Neither another destination nor another pod was meant.
        let elsewhere = bulk().between(pod(v6, ME, 1), pod(v6, other, 2));
        let segments = rig.wire(POD, &elsewhere);
        assert_eq!(segments[0].len(), 14 + usize::from(rig.known()));
        let from_another = bulk().between(pod(v6, ME, 2), pod(v6, other, 1));
        let segments = rig.wire(BIG_POD, &from_another);
        assert_eq!(segments[0].len(), 14 + usize::from(rig.known()));
    }
}

#[test]
fn the_least_mtus_of_the_two_ips_hold() {
    let mut rig = Rig::new(NATIVE, false);
    let error = rig.error(0);
    rig.hear(&error);
    assert_eq!(rig.cut_to(), 552);
    let mut rig = Rig::new(NATIVE, true);
    for mtu in [0, 1279, 70_000] {
        let error = rig.error(mtu);
        rig.hear(&error);
        assert_eq!(rig.cut_to(), 1500, "{mtu}");
    }
    let error = rig.error(1280);
    rig.hear(&error);
    assert_eq!(rig.cut_to(), 1280);
}

#[test]
fn errors_that_do_not_hold_water_teach_nothing() {
    for v6 in [false, true] {
        let mut rig = Rig::new(NATIVE, v6);
        let good = rig.error(1300);
        let at = Offsets::of(&good);
        let router = underlay(v6, 254);
        let to = pod(v6, ME, 1);

        let mut damaged = good.clone();
        *damaged.last_mut().unwrap() ^= 1;
        // Of another pod's packet, sent to this one.
        let foreign = bulk().between(pod(v6, ME, 2), pod(v6, NATIVE, 1)).build();
        let foreign = error(router, to, 1300, &foreign[14..114]);
        let cut_short = error(router, to, 1300, &good[at.l4 + 8..at.l4 + 20]);
        let mut other_error = good.clone();
        other_error[at.l4] = if v6 { 1 } else { 11 };
        finish_icmp(&mut other_error);
        // To no destination that there is a route to.
        let nowhere = bulk().between(to, pod(v6, 200, 1)).build();
        let nowhere = error(router, to, 1300, &nowhere[14..114]);

        let mut all = vec![damaged, foreign, cut_short, other_error, nowhere];
        if !v6 {
            all.push(fragment(good.clone(), 0, true));
        }
        for (number, frame) in all.iter().enumerate() {
            rig.hear(frame);
            assert_eq!(rig.cut_to(), 1500, "number {number}");
            let limits = rig.node.limits.as_ref().unwrap();
            assert!(!limits.paths.concerns(65_535), "number {number}");
        }
        rig.hear(&good);
        assert_eq!(rig.cut_to(), 1300);
    }
}

#[test]
fn what_its_sender_has_cut_itself_stays_as_it_is() {
    let mut rig = Rig::new(NATIVE, false);
    rig.hear_mss(500);
    // A finished checksum: no offload had a part in it.
    let whole = rig.out(Spec::tcp(1, 0, &payload(1448)));
    assert_eq!(rig.wire(POD, &whole).len(), 1);
    // UDP has no segments, fragments no ports.
    let datagram = Spec {
        partial: true,
        ..Spec::udp(&payload(1400))
    };
    let datagram = rig.out(datagram);
    assert_eq!(rig.wire(POD, &datagram).len(), 1);
    // The kernel tells the size.
    rig.node.offload = Some(Offload {
        segment: 1000,
        unfinished: Some(34),
        checksum: 16,
    });
    assert_eq!(rig.cut_to(), 1052);
}

#[test]
fn nothing_is_overheard_by_default() {
    let mut rig = Rig::new(NATIVE, false);
    rig.node.limits = None;
    rig.hear_mss(500);
    let error = rig.error(1300);
    rig.hear(&error);
    assert_eq!(rig.cut_to(), 1500);
}

#[derive(Debug, Clone)]
struct Case {
    other: u8,
    v6: bool,
    mtus: Mtus,
    /// What the peer announces, if its SYN is heard.
    mss: Option<u16>,
    /// What an ICMP error tells.
    told: Option<u16>,
    len: usize,
    options: usize,
}

fn case() -> impl Strategy<Value = Case> {
    let mss = prop::option::of(prop_oneof![3 => 100..2000_u16, 1 => 1..=u16::MAX]);
    let told = prop::option::of(prop_oneof![3 => 500..2000_u16, 1 => 0..=u16::MAX]);
    let other = prop::sample::select(&EVERYWHERE[..]);
    let way = (other, any::<bool>(), 1280..9001_u16, 1350..9001_u16);
    (way, mss, told, 1..60_000_usize, 0..=10_usize).prop_map(
        |((other, v6, pod, uplink), mss, told, len, options)| Case {
            other,
            v6,
            mtus: Mtus { pod, uplink },
            mss,
            told,
            len,
            options,
        },
    )
}

/// The least of all sizes, by the books.
fn least(case: &Case) -> u16 {
    let in_front = if case.v6 { 60 } else { 40 };
    let path = match case.other {
        VXLAN_V4 => case.mtus.uplink - 50,
        VXLAN_V6 => case.mtus.uplink - 70,
        NARROW => case.mtus.uplink.min(1400),
        _ => case.mtus.uplink,
    };
    let announced = case.mss.map(|mss| mss.saturating_add(in_front).max(256));
    let told = match case.told {
        Some(told) if case.v6 => (told >= 1280).then_some(told),
        told => told.map(|told| told.max(552)),
    };
    let all = [Some(case.mtus.pod), Some(path), announced, told];
    all.into_iter().flatten().min().unwrap()
}

proptest! {
    /// Whatever an error quotes: it is taken for nothing else, and read within its bounds.
    #[test]
    fn errors_quote_anything(
        quoted in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..80),
            (0..120_usize).prop_map(|len| {
                let sent = bulk().between(pod(false, ME, 1), pod(false, NATIVE, 1)).build();
                sent[14..14 + len].to_vec()
            }),
        ],
        v6 in any::<bool>(),
        mtu in prop_oneof![0..2000_u32, any::<u32>()],
    ) {
        let mut rig = Rig::new(NATIVE, v6);
        let frame = error(underlay(v6, 254), pod(v6, ME, 1), mtu, &quoted);
        rig.hear(&frame);
        let told = quoted.len() >= 20 && !v6 && quoted[..20] == rig.out(bulk()).build()[14..34];
        let mtu = u16::try_from(mtu & 0xffff).unwrap().clamp(552, 1500);
        prop_assert_eq!(rig.cut_to(), if told { mtu } else { 1500 });
    }

    /// Every segment but the last has the least of the four sizes, and no byte is changed.
    #[test]
    fn super_frames_are_cut_to_the_least(case in case()) {
        let mut rig = Rig::with(case.other, case.v6, case.mtus);
        if let Some(mss) = case.mss {
            rig.hear_mss(mss);
        }
        if let Some(told) = case.told {
            let error = rig.error(told.into());
            rig.hear(&error);
        }
        let data = payload(case.len);
        let spec = rig.out(Spec {
            options: vec![1; case.options * 4],
            payload: data.clone(),
            ..bulk()
        });
        let segments = rig.wire(POD, &spec);
        let room = usize::from(least(&case)) - spec.header_len();
        prop_assert_eq!(segments.len(), case.len.div_ceil(room));
        let mut got = Vec::new();
        for segment in &segments {
            verify(segment);
            let bytes = &segment[Offsets::of(segment).payload..];
            got.extend_from_slice(bytes);
            prop_assert!(bytes.len() == room || got.len() == case.len);
        }
        prop_assert!(got == data);
    }
}
