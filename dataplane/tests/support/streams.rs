//! Generated streams of TCP segments or UDP datagrams, most of them as bulk data is, some odd.

use podway_dataplane::egress::VnetHeader;
use proptest::collection::vec;
use proptest::prelude::*;

use super::packets::{
    ACK, CWR, ECE, FIN, Offsets, PSH, RST, SYN, Spec, URG, finish, fix_ip, fold, get16, payload,
    pseudo, put16,
};

/// Frames of a burst. One NAPI poll takes 64.
pub(crate) const MAX_BURST: usize = 56;

/// Largest IP packet of a super-frame's segment.
const MTU: usize = 1500;

/// What is odd about a packet. The number tells how much, where that can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Odd {
    Nothing,
    Flags(u8),
    NoAck,
    /// The bits of the TCP header between data offset and CWR: reserved, and AE.
    ReservedFlags(u8),
    /// Urgent pointer.
    Urgent,
    Tos(u8),
    Ttl,
    Df,
    /// The bit before DF.
    ReservedBit,
    /// IPv4 id.
    Id(u16),
    Label,
    /// A hole in the stream.
    Hole,
    /// Acknowledgement number.
    Ack,
    Window,
    Timestamp,
    NoOptions,
    /// One byte of the payload is wrong.
    Payload,
    /// UDP without a checksum.
    NoChecksum,
    /// The checksum is left to be finished.
    Partial,
    /// Bytes behind the IP packet.
    Padding,
}

/// One packet of a stream.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) flow: u8,
    /// Payload bytes less than the stream's usual; more if negative. `None`: no payload.
    pub(crate) less: Option<i16>,
    pub(crate) odd: Odd,
    /// Whether all that follow of its flow are odd in that way too.
    pub(crate) stays: bool,
    /// It overtakes so many packets of the stream.
    pub(crate) early: u8,
}

/// What is sent in one burst.
#[derive(Debug, Clone)]
pub(crate) struct Stream {
    pub(crate) udp: bool,
    pub(crate) v6: [bool; 2],
    /// Whether the ids of the flows stand still.
    pub(crate) standing: [bool; 2],
    pub(crate) usual: i16,
    pub(crate) chunk: usize,
    pub(crate) steps: Vec<Step>,
}

impl Step {
    pub(crate) fn plain(less: i16) -> Self {
        Self {
            flow: 0,
            less: Some(less),
            odd: Odd::Nothing,
            stays: false,
            early: 0,
        }
    }
}

fn odd() -> impl Strategy<Value = Odd> {
    prop_oneof![
        40 => Just(Odd::Nothing),
        4 => prop::sample::select(vec![PSH, FIN, PSH | FIN, CWR, ECE, ECE | CWR, SYN, RST, URG])
            .prop_map(Odd::Flags),
        1 => Just(Odd::NoAck),
        1 => (1..16_u8).prop_map(Odd::ReservedFlags),
        1 => Just(Odd::Urgent),
        1 => (1..=255_u8).prop_map(Odd::Tos),
        1 => Just(Odd::Ttl),
        3 => Just(Odd::Df),
        1 => Just(Odd::ReservedBit),
        2 => prop_oneof![1..3_u16, any::<u16>()].prop_map(Odd::Id),
        1 => Just(Odd::Label),
        1 => Just(Odd::Hole),
        1 => Just(Odd::Ack),
        1 => Just(Odd::Window),
        1 => Just(Odd::Timestamp),
        1 => Just(Odd::NoOptions),
        2 => Just(Odd::Payload),
        1 => Just(Odd::NoChecksum),
        2 => Just(Odd::Partial),
        1 => Just(Odd::Padding),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let less = prop_oneof![
        30 => Just(Some(0)),
        1 => Just(Some(1)),
        1 => (-40..1400_i16).prop_map(Some),
        1 => Just(None),
    ];
    let early = prop_oneof![20 => Just(0), 1 => 1..4_u8];
    (0..2_u8, less, odd(), prop::bool::weighted(0.2), early).prop_map(
        |(flow, less, odd, stays, early)| Step {
            flow,
            less,
            odd,
            stays,
            early,
        },
    )
}

pub(crate) fn stream(udp: bool) -> impl Strategy<Value = Stream> {
    let usual = prop_oneof![3 => Just(1408_i16), 1 => 2..1408_i16, 1 => Just(1000)];
    let steps = vec(step(), 2..MAX_BURST);
    let standing = prop::array::uniform2(prop::bool::weighted(0.4));
    (
        any::<[bool; 2]>(),
        standing,
        usual,
        prop_oneof![Just(3500_usize), 200..1600_usize],
        steps,
    )
        .prop_map(move |(v6, standing, usual, chunk, steps)| Stream {
            udp,
            v6,
            standing,
            usual,
            chunk,
            steps,
        })
}

/// A packet of a stream as it is sent.
#[derive(Clone)]
pub(crate) struct Sent {
    pub(crate) flow: u8,
    pub(crate) udp: bool,
    pub(crate) label: u16,
    pub(crate) odd: Vec<Odd>,
    pub(crate) flags: u8,
    pub(crate) vnet: VnetHeader,
    /// Bytes with padding, and without.
    pub(crate) padded: Vec<u8>,
    pub(crate) frame: Vec<u8>,
}

impl Sent {
    fn is(&self, odd: Odd) -> bool {
        self.odd.contains(&odd)
    }

    pub(crate) fn payload(&self) -> &[u8] {
        &self.frame[Offsets::of(&self.frame).payload..]
    }

    /// The kernel passes it on at once, before what it holds of the flow.
    pub(crate) fn overtakes(&self) -> bool {
        let at = Offsets::of(&self.frame);
        let wrong = self.is(Odd::Payload) && !self.payload().is_empty();
        let no_checksum = get16(&self.frame, at.checksum) == 0;
        let reserved = !at.v6 && self.frame[20] & 0x80 != 0;
        let no_segment =
            self.payload().is_empty() || no_checksum || reserved || self.is(Odd::Padding);
        wrong || self.udp && no_segment
    }

    /// The IPv4 id, of what may be fragmented.
    pub(crate) fn id(&self) -> Option<u16> {
        let may = self.frame[12] == 8 && self.frame[20] & 0x40 == 0;
        may.then(|| get16(&self.frame, 18))
    }

    /// Has TCP flags with which the kernel joins, in its way, and ours never.
    pub(crate) fn has_odd_flags(&self) -> bool {
        let at = Offsets::of(&self.frame);
        !self.udp && (self.frame[at.l4 + 12] & 0x0f != 0 || self.flags & ACK == 0)
    }
}

impl Stream {
    /// Segments of 1408 bytes over IPv4.
    pub(crate) fn of(steps: Vec<Step>) -> Self {
        Self {
            udp: false,
            v6: [false; 2],
            standing: [false; 2],
            usual: 1408,
            chunk: 3500,
            steps,
        }
    }

    /// The packets in the order in which they are sent. Each payload begins with the packet's
    /// number.
    pub(crate) fn packets(&self) -> Vec<Sent> {
        let mut flows: [_; 2] = std::array::from_fn(|flow| {
            let v6 = self.v6[flow];
            let spec = Spec {
                v6,
                udp: self.udp,
                sport: 40_000 + if flow == 1 { 1 } else { 0 },
                ..Spec::tcp(u32::MAX - 9000, 65_530, &[])
            };
            (spec, Vec::new())
        });
        let mut order: Vec<(usize, &Step)> = self.steps.iter().enumerate().collect();
        for at in 0..order.len() {
            let to = at.saturating_sub(order[at].1.early.into());
            order[to..=at].rotate_right(1);
        }
        // Sequence numbers follow the order before that.
        let mut packets: Vec<_> = (0_u16..)
            .zip(&self.steps)
            .map(|(number, step)| {
                let (spec, odd) = &mut flows[usize::from(step.flow)];
                let standing = self.standing[usize::from(step.flow)];
                self.packet(number, step, (spec, odd), standing)
            })
            .map(Some)
            .collect();
        order
            .iter()
            .map(|(number, _)| packets[*number].take().unwrap())
            .collect()
    }

    fn packet(
        &self,
        number: u16,
        step: &Step,
        (flow, flow_odd): (&mut Spec, &mut Vec<Odd>),
        standing: bool,
    ) -> Sent {
        if step.stays && step.odd != Odd::Nothing {
            change(flow, step.odd);
            flow_odd.push(step.odd);
        }
        if step.odd == Odd::Hole {
            flow.seq = flow.seq.wrapping_add(1);
        }
        let mut spec = flow.clone();
        let mut odd = flow_odd.clone();
        if !step.stays {
            change(&mut spec, step.odd);
            odd.push(step.odd);
        }
        let room = i16::try_from(MTU - spec.header_len()).unwrap();
        let len = step
            .less
            .map_or(0, |less| (self.usual - less).clamp(2, room));
        spec.payload = payload(usize::try_from(len).unwrap());
        if let Some(start) = spec.payload.get_mut(..2) {
            start.copy_from_slice(&number.to_be_bytes());
        }
        // What is broken comes again; the others go on behind it.
        if step.odd != Odd::Payload {
            flow.seq = flow.seq.wrapping_add(u32::try_from(len).unwrap());
            flow.id = flow.id.wrapping_add(if standing { 0 } else { 1 });
        }
        if let (Odd::Id(step), false) = (step.odd, step.stays) {
            flow.id = flow.id.wrapping_add(step);
        }
        let frame = build(&spec, &odd);
        let mut padded = frame.clone();
        if odd.contains(&Odd::Padding) {
            padded.extend([0; 4]);
        }
        let at = Offsets::of(&frame);
        let narrow = |n: usize| u16::try_from(n).unwrap();
        let vnet = VnetHeader {
            flags: VnetHeader::NEEDS_CSUM,
            csum_start: narrow(at.l4),
            csum_offset: narrow(at.checksum - at.l4),
            ..VnetHeader::default()
        };
        Sent {
            flow: step.flow,
            udp: self.udp,
            label: if spec.v6 { spec.flow_label } else { 0 },
            odd,
            flags: spec.flags,
            vnet: if spec.partial {
                vnet
            } else {
                VnetHeader::default()
            },
            padded,
            frame,
        }
    }
}

/// Makes a packet odd in a way that its [`Spec`] can say.
fn change(spec: &mut Spec, odd: Odd) {
    match odd {
        Odd::Flags(flags) => spec.flags |= flags,
        Odd::NoAck => spec.flags &= !ACK,
        Odd::Tos(tos) => spec.tos = tos,
        Odd::Ttl => spec.ttl -= 1,
        Odd::Df => spec.df = !spec.df,
        Odd::Id(step) => spec.id = spec.id.wrapping_add(step),
        Odd::Label => spec.flow_label ^= 1,
        Odd::Ack => spec.ack += 1,
        Odd::Window => spec.window += 1,
        Odd::Timestamp => spec
            .options
            .iter_mut()
            .skip(7)
            .take(1)
            .for_each(|b| *b += 1),
        Odd::NoOptions => spec.options.clear(),
        Odd::Partial => spec.partial = true,
        Odd::Nothing
        | Odd::ReservedFlags(_)
        | Odd::Urgent
        | Odd::ReservedBit
        | Odd::Hole
        | Odd::Payload
        | Odd::NoChecksum
        | Odd::Padding => {}
    }
}

/// The frame, odd in the other ways too.
fn build(spec: &Spec, odd: &[Odd]) -> Vec<u8> {
    let mut frame = spec.build();
    let at = Offsets::of(&frame);
    for odd in odd {
        match odd {
            Odd::ReservedFlags(flags) if !spec.udp => frame[at.l4 + 12] |= flags,
            Odd::Urgent if !spec.udp => put16(&mut frame, at.l4 + 18, 7),
            Odd::ReservedBit if !spec.v6 => frame[20] |= 0x80,
            _ => {}
        }
    }
    fix_ip(&mut frame);
    let pseudo = fold(pseudo(&frame, frame.len() - at.l4));
    put16(&mut frame, at.checksum, pseudo);
    if !spec.partial {
        finish(&mut frame, at.l4, at.checksum);
        if odd.contains(&Odd::Payload) && frame.len() > at.payload {
            *frame.last_mut().unwrap() ^= 0x10;
        }
        if odd.contains(&Odd::NoChecksum) && spec.udp {
            put16(&mut frame, at.checksum, 0);
        }
    }
    frame
}
