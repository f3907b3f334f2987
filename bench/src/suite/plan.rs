//! How much is measured.

use super::measure::Measure;
use super::packets::{Direction, Load};
use super::rounds::Rounds;
use super::wire::Wire;
use crate::contender::Contender;
use crate::iperf::Congestion;

/// First part of the names of the suite's clusters.
pub(super) const PREFIX: &str = "podway-bench";

/// How long it may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// Ten minutes.
    Quick,
    /// About two hours.
    Medium,
    /// No limit.
    Full,
}

impl Size {
    /// Its name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Quick => "quick",
            Self::Medium => "medium",
            Self::Full => "full",
        }
    }

    /// Interleaved rounds.
    pub fn rounds(self) -> u32 {
        match self {
            // Of three, two runs would differ by chance in one ratio of ten.
            Self::Quick | Self::Medium => 5,
            Self::Full => 11,
        }
    }

    /// Seconds of each transfer.
    pub fn seconds(self) -> u32 {
        match self {
            Self::Quick => 2,
            Self::Medium => 4,
            Self::Full => 10,
        }
    }
}

/// Payloads of datagrams, and lengths of packets, in bytes: the smallest that matter, and nearly an
/// MTU.
const LENGTHS: [u16; 2] = [64, 1400];

/// What a size measures, wire by wire, of the contenders that are there. The first wire has it
/// all; the others tell what a wire changes.
pub fn plan(size: Size, is_there: impl Fn(Contender) -> bool) -> Vec<Rounds> {
    let wires: &[Wire] = match size {
        Size::Quick => &[Wire::True, Wire::TrueTxOff, Wire::Virtual, Wire::Pinned],
        Size::Medium | Size::Full => &[
            Wire::True,
            Wire::TrueTxOff,
            Wire::Jumbo,
            Wire::JumboTxOff,
            Wire::Virtual,
            Wire::NarrowMiddle,
            Wire::SmallSegments,
            Wire::Pinned,
        ],
    };
    let sections = wires.iter().map(|wire| Rounds {
        wire: *wire,
        spec: wire.spec(PREFIX),
        contenders: contenders(*wire, size)
            .into_iter()
            .filter(|contender| is_there(*contender))
            .collect(),
        measures: measures(*wire, size),
        rounds: size.rounds(),
        seconds: size.seconds(),
    });
    sections.collect()
}

fn contenders(wire: Wire, size: Size) -> Vec<Contender> {
    use Contender::{
        Hosts, HostsBesidePodway, KernelNative, KernelVxlan, KernelVxlanNoGro, KernelWorld,
        OvsAfxdp, PodwayNative, PodwayNativeAfXdp, PodwaySpin, PodwayVxlan, PodwayVxlanAfXdp,
        PodwayVxlanFull, PodwayWorld,
    };
    let all = match (wire, size) {
        (Wire::Pinned, _) => vec![KernelVxlan, PodwaySpin],
        (_, Size::Medium | Size::Full) => {
            let ours = [
                KernelNative,
                KernelVxlan,
                KernelVxlanNoGro,
                PodwayNative,
                PodwayNativeAfXdp,
                PodwayVxlan,
                PodwayVxlanAfXdp,
                PodwayVxlanFull,
                Hosts,
                HostsBesidePodway,
                KernelWorld,
                PodwayWorld,
            ];
            [&ours[..], &Contender::PEERS].concat()
        }
        (Wire::True, Size::Quick) => vec![
            KernelNative,
            KernelVxlan,
            PodwayNative,
            PodwayVxlan,
            OvsAfxdp,
        ],
        (_, Size::Quick) => vec![KernelVxlan, PodwayVxlan],
    };
    let suited = all.into_iter();
    suited.filter(|contender| wire.suits(*contender)).collect()
}

fn measures(wire: Wire, size: Size) -> Vec<Measure> {
    let alone = Measure::Latency { beside_bulk: false };
    if size == Size::Quick {
        return match wire {
            Wire::True => {
                let beside = Measure::Latency { beside_bulk: true };
                [vec![Measure::TCP, beside, alone], packets(size)].concat()
            }
            Wire::Pinned => vec![alone],
            _ => vec![Measure::TCP],
        };
    }
    // Both pods announce the same.
    if wire == Wire::SmallSegments {
        return vec![Measure::TCP];
    }
    let mut measures = vec![Measure::TCP, reverse(Measure::TCP)];
    if wire == Wire::True {
        let further = [Measure::tcp(4), Measure::tcp(8)];
        measures.extend(further.into_iter().flat_map(|m| [m, reverse(m)]));
        let by_bbr: &[u8] = if size == Size::Full { &[1, 4, 8] } else { &[1] };
        measures.extend(by_bbr.iter().map(|&streams| Measure::Tcp {
            streams,
            congestion: Congestion::Bbr,
            reverse: false,
        }));
        measures.extend(LENGTHS.map(|length| Measure::Udp { length }));
        measures.extend([Measure::Idle, Measure::Latency { beside_bulk: true }]);
        measures.extend(packets(size));
    }
    if matches!(wire, Wire::True | Wire::Pinned) {
        measures.push(alone);
    }
    measures
}

/// What a size measures with the generator.
fn packets(size: Size) -> Vec<Measure> {
    use Direction::{In, Out};
    let of = |directions: &[Direction], sizes: &[u16], flows: &[u16]| -> Vec<Load> {
        let sized = directions
            .iter()
            .flat_map(|&direction| sizes.iter().map(move |&size| (direction, size)));
        sized
            .flat_map(|(direction, size)| {
                flows.iter().map(move |&flows| Load {
                    direction,
                    size,
                    flows,
                })
            })
            .collect()
    };
    let both = [Out, In];
    let (costs, searches) = match size {
        Size::Quick => (
            [of(&both, &[64], &[16]), of(&[Out], &[1400], &[16])].concat(),
            vec![],
        ),
        Size::Medium => (
            [of(&both, &LENGTHS, &[16]), of(&both, &[64], &[256])].concat(),
            of(&both, &[64], &[16]),
        ),
        Size::Full => (
            of(&both, &[64, 512, 1400], &[1, 16, 256, 10_000]),
            of(&both, &[64, 512, 1400], &[16]),
        ),
    };
    let costs = costs.into_iter().map(Measure::PacketCost);
    costs
        .chain(searches.into_iter().map(Measure::Lossless))
        .collect()
}

fn reverse(measure: Measure) -> Measure {
    match measure {
        Measure::Tcp {
            streams,
            congestion,
            reverse,
        } => Measure::Tcp {
            streams,
            congestion,
            reverse: !reverse,
        },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn estimate(size: Size) -> u64 {
        plan(size, |_| true).iter().map(Rounds::estimate).sum()
    }

    #[test]
    fn quick_is_done_in_ten_minutes() {
        assert!(estimate(Size::Quick) < 600, "{} s", estimate(Size::Quick));
        assert!(estimate(Size::Medium) < estimate(Size::Full));
    }

    #[test]
    fn only_suited_contenders_are_planned() {
        for section in plan(Size::Full, |_| true) {
            let wire = section.wire;
            assert!(section.contenders.iter().all(|c| wire.suits(*c)), "{wire}");
            assert!(section.contenders.contains(&Contender::KernelVxlan));
        }
    }
}
