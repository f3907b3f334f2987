//! Hash of a flow, and the VXLAN source port made from it.
//!
//! The hash has no seed: each node and each restart gives a flow the same port, so that it keeps
//! its path through the underlay and its order. It is not symmetric: the two directions of a flow
//! have nothing in common on the underlay.

use std::net::IpAddr;

use super::headers::Headers;

/// Odd constants without structure: the fractions of the golden ratio and of two square roots,
/// 64 bits each.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
const ROOT_2: u64 = 0x6a09_e667_f3bc_c909;
const ROOT_3: u64 = 0xbb67_ae85_84ca_a73b;

/// The hash of a packet's flow: addresses, protocol and ports. Fragments and ICMP have no ports
/// and hash by addresses and protocol.
#[inline]
pub fn hash(headers: &Headers) -> u32 {
    let rest = u64::from(headers.protocol) << 32
        | u64::from(headers.sport) << 16
        | u64::from(headers.dport);
    match (headers.src, headers.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let addresses = u64::from(src.to_bits()) << 32 | u64::from(dst.to_bits());
            finish(absorb(absorb(0, addresses), rest))
        }
        (src, dst) => finish(absorb(absorb_v6(absorb_v6(0, src), dst), rest)),
    }
}

/// The outer source ports that flows are spread over: a number of them from 49152 on, in the dynamic
/// range that RFC 7348, section 5, recommends.
///
/// With fewer ports, packets of more flows leave in one message; but then networks and nodes that
/// spread tunnels by their source port have fewer flows to spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourcePorts {
    /// How far the hash is shifted: its upper bits remain.
    shift: u32,
}

impl SourcePorts {
    /// The whole range: 16384 ports.
    pub const ALL: Self = Self { shift: 18 };

    /// So many ports; `None` if that is no power of two from 2 to 16384.
    pub fn new(count: u16) -> Option<Self> {
        let known = count.is_power_of_two() && (2..=1 << 14).contains(&count);
        known.then(|| Self {
            shift: u32::BITS - count.ilog2(),
        })
    }

    /// The port of a flow of that hash.
    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "14 bits are left at most")]
    pub fn of(self, hash: u32) -> u16 {
        0xc000 | (hash >> self.shift) as u16
    }
}

/// Takes 64 bits in. One to one for a given state, so that flows which differ in one word only
/// never meet here.
#[inline]
fn absorb(state: u64, word: u64) -> u64 {
    let state = (state ^ word).wrapping_mul(GOLDEN);
    state ^ state >> 32
}

#[inline]
#[allow(
    clippy::cast_possible_truncation,
    reason = "takes the halves of a number"
)]
fn absorb_v6(state: u64, addr: IpAddr) -> u64 {
    let bits = match addr {
        IpAddr::V4(addr) => u128::from(addr.to_bits()),
        IpAddr::V6(addr) => addr.to_bits(),
    };
    absorb(absorb(state, (bits >> 64) as u64), bits as u64)
}

/// Lets each bit of the state reach each bit of the result.
#[inline]
#[allow(clippy::cast_possible_truncation, reason = "takes the upper half")]
fn finish(state: u64) -> u32 {
    let state = (state ^ state >> 29).wrapping_mul(ROOT_2);
    let state = (state ^ state >> 32).wrapping_mul(ROOT_3);
    (state >> 32) as u32
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::super::headers::IpVersion;
    use super::*;

    fn flow(src: IpAddr, dst: IpAddr, protocol: u8, sport: u16, dport: u16) -> Headers {
        Headers {
            version: if src.is_ipv4() {
                IpVersion::V4
            } else {
                IpVersion::V6
            },
            protocol,
            fragment: false,
            tos: 0,
            hop_limit: 64,
            l3: 14,
            l4: 34,
            payload: 54,
            sport,
            dport,
            l3_len: 1000,
            src,
            dst,
        }
    }

    fn flow_of(src: &str, dst: &str, protocol: u8, sport: u16, dport: u16) -> Headers {
        flow(
            src.parse().unwrap(),
            dst.parse().unwrap(),
            protocol,
            sport,
            dport,
        )
    }

    /// Nodes of different versions must agree with themselves over a restart: these values stay.
    #[test]
    fn golden_values() {
        let cases = [
            (
                ("10.0.0.10", "10.0.1.10", 6, 40000, 5201),
                0x9a1a_75f8,
                59014,
            ),
            (
                ("10.0.1.10", "10.0.0.10", 6, 5201, 40000),
                0x0a96_eaaf,
                49829,
            ),
            (
                ("10.0.0.10", "10.0.1.10", 17, 40000, 5201),
                0xf8ab_484e,
                65066,
            ),
            (("10.0.0.10", "10.0.1.10", 1, 0, 0), 0x1312_ba14, 50372),
            (
                ("fd00::a", "fd00:0:0:1::a", 6, 40000, 5201),
                0xee1d_4736,
                64391,
            ),
            (("fd00::a", "fd00:0:0:1::a", 58, 0, 0), 0xc2b9_6dac, 61614),
        ];
        for ((src, dst, protocol, sport, dport), value, port) in cases {
            let result = hash(&flow_of(src, dst, protocol, sport, dport));
            assert_eq!(
                (result, SourcePorts::ALL.of(result)),
                (value, port),
                "{src} {dst} {protocol}"
            );
        }
    }

    #[test]
    fn only_the_flow_counts() {
        let base = flow_of("10.0.0.10", "10.0.1.10", 6, 40000, 5201);
        let moved = Headers {
            tos: 1,
            hop_limit: 2,
            l3: 64,
            l4: 84,
            payload: 104,
            l3_len: 3,
            ..base
        };
        assert_eq!(hash(&base), hash(&moved));
    }

    #[test]
    fn ports_lie_in_the_dynamic_range() {
        let all = SourcePorts::ALL;
        assert_eq!(all.of(0), 49152);
        assert_eq!(all.of(0x0003_ffff), 49152);
        assert_eq!(all.of(0x0004_0000), 49153);
        assert_eq!(all.of(u32::MAX), 65535);
    }

    #[test]
    fn ports_may_be_fewer() {
        assert_eq!(SourcePorts::new(16384), Some(SourcePorts::ALL));
        for count in [0, 1, 3, 100, 32768, 65535] {
            assert_eq!(SourcePorts::new(count), None, "{count}");
        }
        let two = SourcePorts::new(2).unwrap();
        assert_eq!((two.of(0), two.of(u32::MAX >> 1)), (49152, 49152));
        assert_eq!((two.of(1 << 31), two.of(u32::MAX)), (49153, 49153));
        let some = SourcePorts::new(64).unwrap();
        assert_eq!(some.of(u32::MAX), 49152 + 63);
    }

    /// Largest distance of a bucket from the mean, in standard deviations.
    fn spread(buckets: &[u32; 64]) -> f64 {
        let mean = f64::from(buckets.iter().sum::<u32>()) / 64.0;
        let distance = |count: &u32| (f64::from(*count) - mean).abs() / mean.sqrt();
        buckets.iter().map(distance).fold(0.0, f64::max)
    }

    fn check_spread(flows: impl Iterator<Item = Headers>) {
        let mut low = [0; 64];
        let mut high = [0; 64];
        for flow in flows {
            let port = usize::from(SourcePorts::ALL.of(hash(&flow)));
            low[port & 63] += 1;
            high[port >> 8 & 63] += 1;
        }
        assert!(spread(&low) < 4.5, "{low:?}");
        assert!(spread(&high) < 4.5, "{high:?}");
    }

    #[test]
    fn neighbouring_flows_spread_over_the_ports() {
        let pod = |last: u32| IpAddr::from((0x0a00_0000 + last).to_be_bytes());
        // One pod, one service, client ports in a row.
        check_spread((32768..60999).map(|port| flow(pod(2), pod(258), 6, port, 80)));
        // Pods in a row, the same ports.
        check_spread((0..65536).map(|last| flow(pod(last), pod(70000), 17, 53, 53)));
        check_spread((0..65536).map(|last| flow(pod(70000), pod(last), 1, 0, 0)));
        // Pairs of pods, and IPv6 pods that differ in one half of their address.
        let pairs = (0..256).flat_map(|a| (0..256).map(move |b| (a, b)));
        check_spread(pairs.map(|(a, b)| flow(pod(a), pod(256 + b), 6, 0, 0)));
        let pod6 = |high: u128, low: u128| IpAddr::V6((0xfd << 120 | high << 64 | low).into());
        check_spread((0..65536).map(|i| flow(pod6(i, 1), pod6(0, 2), 6, 1, 2)));
        check_spread((0..65536).map(|i| flow(pod6(0, 1), pod6(0, i), 6, 1, 2)));
    }

    #[test]
    fn each_input_bit_reaches_each_output_bit() {
        let flip = |flow: &Headers, bit: u32| {
            let mut flow = *flow;
            let turn = |addr: &mut IpAddr, bit: u32| match addr {
                IpAddr::V4(v4) => *addr = IpAddr::V4((v4.to_bits() ^ 1 << bit).into()),
                IpAddr::V6(v6) => *addr = IpAddr::V6((v6.to_bits() ^ 1 << bit).into()),
            };
            let bits = if flow.src.is_ipv4() { 32 } else { 128 };
            match bit {
                0..8 => flow.protocol ^= 1 << bit,
                8..24 => flow.sport ^= 1 << (bit - 8),
                24..40 => flow.dport ^= 1 << (bit - 24),
                _ if bit < 40 + bits => turn(&mut flow.src, bit - 40),
                _ => turn(&mut flow.dst, bit - 40 - bits),
            }
            flow
        };
        const SAMPLES: u16 = 2000;
        for (inputs, base) in [
            (104, flow_of("10.1.0.0", "10.2.0.0", 6, 0, 443)),
            (296, flow_of("fd00::1", "fd00::2", 17, 0, 443)),
        ] {
            for input in 0..inputs {
                let mut flips = [0_u32; 32];
                for sample in 0..SAMPLES {
                    let flow = Headers {
                        sport: 32768 + sample,
                        ..base
                    };
                    let changed = hash(&flow) ^ hash(&flip(&flow, input));
                    for (output, count) in flips.iter_mut().enumerate() {
                        *count += changed >> output & 1;
                    }
                }
                for (output, count) in flips.iter().enumerate() {
                    let share = f64::from(*count) / f64::from(SAMPLES);
                    assert!((0.4..0.6).contains(&share), "{input} to {output}: {share}");
                }
            }
        }
    }
}
