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
            Self::Quick => 3,
            Self::Medium => 5,
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

/// Payloads of datagrams in bytes: the smallest that matter, and nearly an MTU.
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
        KernelNative, KernelVxlan, KernelVxlanNoGro, OvsAfxdp, PodwayNative, PodwaySpin,
        PodwayVxlan, PodwayVxlanAfXdp, XskRsBaseline,
    };
    let all = match (wire, size) {
        (Wire::Pinned, _) => vec![KernelVxlan, PodwaySpin],
        (_, Size::Medium | Size::Full) => {
            let ours = [
                KernelNative,
                KernelVxlan,
                KernelVxlanNoGro,
                PodwayNative,
                PodwayVxlan,
                PodwayVxlanAfXdp,
            ];
            [&ours[..], &Contender::PEERS].concat()
        }
        (Wire::True, Size::Quick) => vec![
            KernelNative,
            KernelVxlan,
            PodwayNative,
            PodwayVxlan,
            OvsAfxdp,
            XskRsBaseline,
        ],
        (_, Size::Quick) => vec![KernelVxlan, PodwayVxlan],
    };
    let suited = all.into_iter();
    suited.filter(|contender| wire.suits(*contender)).collect()
}

fn measures(wire: Wire, size: Size) -> Vec<Measure> {
    let mut measures = vec![Measure::TCP];
    if size != Size::Quick {
        measures.push(reverse(Measure::TCP));
    }
    if wire == Wire::True && size != Size::Quick {
        let further = [Measure::tcp(4), Measure::tcp(8)];
        measures.extend(further.into_iter().flat_map(|m| [m, reverse(m)]));
        measures.extend([1, 4, 8].map(|streams| Measure::Tcp {
            streams,
            congestion: Congestion::Bbr,
            reverse: false,
        }));
    }
    if wire == Wire::True {
        measures.extend(LENGTHS.map(|length| Measure::Udp { length }));
        measures.extend([Measure::Idle, Measure::Latency { beside_bulk: true }]);
        measures.extend(packets(size));
    }
    if matches!(wire, Wire::True | Wire::Pinned) {
        measures.push(Measure::Latency { beside_bulk: false });
    }
    measures
}

/// What a size measures with the generator.
fn packets(size: Size) -> Vec<Measure> {
    let (sizes, flows): (&[u16], &[u16]) = match size {
        Size::Quick => (&[64, 1400], &[16]),
        Size::Medium => (&[64, 1400], &[1, 256]),
        Size::Full => (&[64, 512, 1400], &[1, 16, 256, 10_000]),
    };
    let loads: Vec<Load> = [Direction::Out, Direction::In]
        .iter()
        .flat_map(|direction| sizes.iter().map(move |size| (*direction, *size)))
        .flat_map(|(direction, size)| {
            flows.iter().map(move |flows| Load {
                direction,
                size,
                flows: *flows,
            })
        })
        .collect();
    let costs = loads.iter().map(|load| Measure::PacketCost(*load));
    // The search takes ten times as long: of one number of flows, and where there is no limit.
    let searched = loads
        .iter()
        .filter(|load| size == Size::Full && Some(&load.flows) == flows.first());
    let searches = searched.map(|load| Measure::Lossless(*load));
    costs.chain(searches).collect()
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
