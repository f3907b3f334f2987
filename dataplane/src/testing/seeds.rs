//! Inputs of the fuzz targets: where fuzzing begins, and what the unit tests run.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::harness::{self, OVERHEARS};
use super::packets::{
    Offsets, PSH, SYN, Spec, finish, fold, fragment, icmp, payload, pseudo, put16,
};
use super::plan::tunnelled;
use super::plan::{GATEWAY, LOST, NARROW, NATIVE, NOWHERE, VXLAN_V4, VXLAN_V6, pod};

/// As [`harness`] chooses ports.
const PORTS: [&str; 5] = ["pod", "big_pod", "uplink", "real_wire", "gone"];

/// A router's word to pod 1 of this node that what it sends to this address is too big.
fn too_big(to: IpAddr, mtu: u16) -> Vec<u8> {
    let me = pod(to.is_ipv6(), 1, 1);
    let quoted = Spec::udp(b"").between(me, to).build();
    let mut frame = icmp(to, me, &quoted[14..]);
    let at = Offsets::of(&frame);
    let (kind, code) = if at.v6 { (2, 0) } else { (3, 4) };
    frame[at.l4..at.l4 + 8].copy_from_slice(&[kind, code, 0, 0, 0, 0, 0, 0]);
    put16(&mut frame, at.l4 + 6, mtu);
    if at.v6 {
        let pseudo = fold(pseudo(&frame, frame.len() - at.l4));
        put16(&mut frame, at.l4 + 2, pseudo);
    }
    finish(&mut frame, at.l4, at.l4 + 2);
    frame
}

/// A frame as the harness reads it.
fn encode(modes: u8, frame: &[u8], len: usize) -> Vec<u8> {
    let number = |n: usize| u16::try_from(n).unwrap().to_be_bytes();
    let mut input = vec![modes];
    input.extend(number(frame.len()));
    input.extend(number(len));
    input.extend(frame);
    input
}

fn tcp(v6: bool, from: (u8, u8), to: (u8, u8)) -> Spec {
    let spec = Spec {
        v6,
        ttl: 64,
        flow_label: 0,
        ..Spec::tcp(1, 1, &payload(100))
    };
    spec.between(pod(v6, from.0, from.1), pod(v6, to.0, to.1))
}

/// Good frames: name, position of the port in [`PORTS`], bytes.
fn frames() -> Vec<(String, usize, Vec<u8>)> {
    let mut frames = Vec::new();
    for v6 in [false, true] {
        let ip = if v6 { "v6" } else { "v4" };
        let mut add = |name: &str, port, frame| frames.push((format!("{name}_{ip}"), port, frame));
        for (to, name) in [
            (VXLAN_V4, "to_vxlan_v4"),
            (VXLAN_V6, "to_vxlan_v6"),
            (NATIVE, "to_native"),
            (NARROW, "to_narrow"),
            (LOST, "to_lost"),
            (GATEWAY, "to_gateway"),
            (NOWHERE, "to_nowhere"),
        ] {
            add(
                name,
                0,
                Spec {
                    partial: true,
                    ..tcp(v6, (1, 1), (to, 1))
                }
                .build(),
            );
        }
        let udp = Spec {
            udp: true,
            ..tcp(v6, (1, 1), (VXLAN_V4, 1))
        };
        add("udp_to_vxlan", 0, udp.build());
        add("local", 0, tcp(v6, (1, 1), (1, 2)).build());
        add(
            "icmp",
            0,
            icmp(pod(v6, 1, 1), pod(v6, NATIVE, 1), &payload(56)),
        );
        let inward = |from| tcp(v6, (from, 1), (1, 1));
        add("from_native", 2, inward(NATIVE).build());
        add("from_real_wire", 3, inward(NATIVE).build());
        add(
            "syn_from_native",
            2,
            Spec {
                flags: SYN,
                ..inward(NATIVE)
            }
            .build(),
        );
        for from in [VXLAN_V4, VXLAN_V6] {
            let name = format!("from_vxlan_{}", if from == VXLAN_V6 { "v6" } else { "v4" });
            add(&name, 3, tunnelled(from, 0, &inward(from).build()));
            let marked = Spec {
                tos: 2,
                ..inward(from)
            };
            add(
                &format!("{name}_marked"),
                3,
                tunnelled(from, 3, &marked.build()),
            );
        }
        if !v6 {
            add(
                "fragment",
                0,
                fragment(tcp(v6, (1, 1), (NATIVE, 1)).build(), 1480, true),
            );
        }
    }
    frames
}

/// All seeds: target, name, bytes.
fn seeds() -> Vec<(&'static str, String, Vec<u8>)> {
    let mut seeds = Vec::new();
    for (name, port, frame) in frames() {
        let one = [&[0, 0, u8::try_from(port).unwrap()], &*encode(0, &frame, 0)].concat();
        seeds.push(("forward", format!("{}_{name}", PORTS[port]), one));
        if name.contains("from_vxlan") {
            seeds.push(("decap", name, [&[0, 0], &*encode(0, &frame, 0)].concat()));
        }
    }
    // Of 1600 bytes in chunks of 66, for the three reasons that have an answer by turns.
    let reasons = [(0, "expired"), (1, "no_route"), (2, "too_big")];
    let bare = frames().into_iter();
    let bare = bare.filter(|(name, ..)| !name.contains("from_vxlan"));
    for ((name, port, frame), (reason, why)) in bare.zip(reasons.into_iter().cycle()) {
        let port = u8::try_from(port).unwrap();
        let input = [&[4, 0, port, reason], &*encode(7, &frame, 1600)].concat();
        seeds.push(("icmp", format!("{why}_{name}"), input));
    }
    for to in [VXLAN_V4, VXLAN_V6, NATIVE] {
        // Modes: IP lengths and an unfinished checksum, for 20000 bytes in chunks of 700.
        let spec = Spec {
            flags: 16 | PSH,
            ..tcp(to == VXLAN_V6, (1, 1), (to, 1))
        };
        let super_frame = [&[2, 0, 0], &*encode(7, &spec.build(), 20_000)].concat();
        seeds.push(("forward", format!("super_frame_to_{to}"), super_frame));
        // The kernel tells segments of 1000 bytes, and super-frames go into tunnels whole.
        let frame = encode(23, &spec.build(), 20_000);
        let told = [&[2, 0x80, 0], &*frame, &[3, 232]].concat();
        seeds.push(("forward", format!("told_to_{to}"), told));
    }
    for v6 in [false, true] {
        // A peer that announces 536 bytes, a router that complains, and a super-frame.
        let syn = Spec {
            flags: SYN,
            options: vec![2, 4, 2, 24],
            ..tcp(v6, (NATIVE, 1), (1, 1))
        };
        let error = too_big(pod(v6, NATIVE, 1), 1300);
        let reply = Spec {
            sport: syn.dport,
            dport: syn.sport,
            ..tcp(v6, (1, 1), (NATIVE, 1))
        };
        let input = [
            &[2, OVERHEARS, 2][..],
            &encode(0, &syn.build(), 0),
            &[2],
            &encode(0, &error, 0),
            &[0],
            &encode(7, &reply.build(), 20_000),
        ];
        let name = format!("overheard_{}", if v6 { "v6" } else { "v4" });
        seeds.push(("forward", name, input.concat()));
    }
    let joined = (0..8_u16).flat_map(|n| {
        let data = payload(1000);
        let spec = Spec {
            id: n,
            seq: u32::from(n) * 1000,
            payload: data,
            ..tcp(false, (NATIVE, 1), (1, 1))
        };
        [&[3][..], &encode(0, &spec.build(), 0)].concat()
    });
    seeds.push((
        "forward",
        "eight_joined".into(),
        [0, 0].into_iter().chain(joined).collect(),
    ));

    for to in 0..5_u8 {
        let bulk = (0..12_u8).flat_map(|n| [n % 2, 140, 0, 0]);
        let mut input = vec![0, 0, to];
        input.extend(bulk);
        // A super-frame, a short end with PSH, a datagram, another TOS, a wrong checksum.
        input.extend([
            0, 220, 0, 0, 0, 20, 7, 0, 7, 30, 0, 32, 0, 140, 0, 4, 0, 140, 0, 128,
        ]);
        seeds.push(("gather", format!("bulk_to_{to}"), input));

        // Segments and super-frames with what the kernel says: segments of 1000 bytes, or of 300,
        // or none; and one flow of which it says nothing.
        let mut input = vec![0, 0x80, to];
        for flow in [0xc0, 0xc1, 0xc2, 0xc7, 0x80, 0x01] {
            for len in [140, 230, 140, 140] {
                input.extend([flow, len, 0, 0]);
                match flow {
                    0xc2 => input.extend([1, 44]),
                    0xc0.. => input.extend([3, 232]),
                    _ => {}
                }
            }
        }
        seeds.push(("gather", format!("told_to_{to}"), input));
    }
    seeds
}

fn run(target: &str, input: &[u8]) {
    match target {
        "forward" => harness::forward(input),
        "decap" => harness::decap(input),
        "gather" => harness::gather(input),
        "icmp" => harness::icmp(input),
        _ => panic!("{target}"),
    }
}

fn fuzz_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz")
}

#[test]
fn every_seed_keeps_the_rules() {
    for (target, name, input) in seeds() {
        eprintln!("{target}/{name}");
        run(target, &input);
    }
}

/// Each file in `fuzz/regressions/TARGET/` broke a rule once; its name says which.
#[test]
fn what_broke_a_rule_once_breaks_it_no_more() {
    for target in ["forward", "decap", "gather", "icmp"] {
        let folder = fuzz_folder().join("regressions").join(target);
        for file in fs::read_dir(folder).into_iter().flatten() {
            let path = file.unwrap().path();
            eprintln!("{}", path.display());
            run(target, &fs::read(path).unwrap());
        }
    }
}

/// Fuzzing begins with what these tests know. With `PODWAY_WRITE_SEEDS` set, the files are written
/// anew, for the commit that changes them.
#[test]
fn the_seeds_are_in_their_folder() {
    for (target, name, input) in seeds() {
        let folder = fuzz_folder().join("seeds").join(target);
        let path = folder.join(name);
        if std::env::var_os("PODWAY_WRITE_SEEDS").is_some() {
            fs::create_dir_all(&folder).unwrap();
            fs::write(&path, &input).unwrap();
        }
        let file = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(
            file == input,
            "{} is old; set PODWAY_WRITE_SEEDS",
            path.display()
        );
    }
}

/// Changes some bytes of an input and its length.
fn mutate(mut input: Vec<u8>, changes: &[(Index, u8)], len: Option<Index>) -> Vec<u8> {
    for (at, value) in changes {
        let at = at.index(input.len());
        input[at] = *value;
    }
    if let Some(len) = len {
        input.truncate(len.index(input.len() + 1));
    }
    input
}

proptest! {
    // Four times what proptest runs by itself, or what `PROPTEST_CASES` says.
    #![proptest_config(ProptestConfig::with_cases(4 * ProptestConfig::default().cases))]

    #[test]
    fn noise_keeps_the_rules(input in vec(any::<u8>(), 0..400)) {
        for target in ["forward", "decap", "gather", "icmp"] {
            run(target, &input);
        }
    }

    #[test]
    fn seeds_with_changes_keep_the_rules(
        seed: Index,
        changes in vec(any::<(Index, u8)>(), 1..6),
        len in prop::option::weighted(0.2, any::<Index>()),
    ) {
        let seeds = seeds();
        let (target, _, input) = &seeds[seed.index(seeds.len())];
        run(target, &mutate(input.clone(), &changes, len));
    }

    /// Frames with any bytes changed and repaired, several in a burst.
    #[test]
    fn repaired_frames_keep_the_rules(
        layout: (u8, u8),
        burst in vec(
            (any::<Index>(), any::<u8>(), any::<u8>(), vec(any::<(Index, u8)>(), 0..4), 0..4000_usize),
            1..12,
        ),
    ) {
        let frames = frames();
        let mut input = vec![layout.0, layout.1];
        for (frame, port, modes, changes, len) in burst {
            let (_, usual, frame) = &frames[frame.index(frames.len())];
            // Mostly by the port that it is made for.
            input.push(if port < 200 { u8::try_from(*usual).unwrap() } else { port });
            let frame = mutate(frame.clone(), &changes, None);
            input.extend(encode(modes, &frame, if len < 3000 { 0 } else { len }));
        }
        harness::forward(&input);
    }
}
