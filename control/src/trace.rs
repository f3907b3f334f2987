//! What would happen to a packet: what control adds to what the dataplane says. Pure.

use std::net::IpAddr;

use podway_proto::control::{RouteAnswer, RouteTarget};
use podway_proto::reasons::PassCause;
use podway_proto::trace::{KernelPart, KernelWay, Trace, TraceAnswer, TracePacket, Verdict};

use crate::index::Index;
use crate::kernel::device_name;
use crate::netlink::Lookup;
use crate::report;
use crate::world::World;

/// The packet with the address that tunnels to this node have, if it was not told.
pub fn whole(asked: &TracePacket, world: &World<'_>) -> TracePacket {
    let mut asked = asked.clone();
    if let Some(tunnel) = &mut asked.tunnel
        && tunnel.destination.is_none()
    {
        let same = |address: &IpAddr| address.is_ipv4() == tunnel.source.is_ipv4();
        let uplink = world.uplink().map(|link| link.index);
        let on_uplink = world.observed.addresses();
        let mut on_uplink = on_uplink.filter(|a| Some(a.index) == uplink && same(&a.address));
        let first = || on_uplink.next().map(|address| address.address);
        tunnel.destination = world.underlay().filter(same).or_else(first);
    }
    asked
}

/// The address that the kernel would look up, if it has the packet and it is not for nobody.
pub fn asks_kernel(packet: &TracePacket, trace: &Trace) -> Option<IpAddr> {
    let Verdict::Kernel(why) = &trace.verdict else {
        return None;
    };
    // No device takes these out of their tunnel.
    let is_shut = [PassCause::UnknownVni, PassCause::NotVxlan].map(PassCause::name);
    (!is_shut.contains(&why.reason.as_str())).then_some(packet.destination)
}

/// The whole answer; `way` is what the kernel says of an address.
pub fn answer(
    world: &World<'_>,
    index: &Index,
    packet: TracePacket,
    trace: Trace,
    way: Option<(IpAddr, Option<Lookup>)>,
) -> TraceAnswer {
    let from_node = packet.tunnel.as_ref().and_then(|tunnel| {
        let mut nodes = world.remote_nodes();
        let node = nodes.find(|node| node.underlays().any(|a| a == tunnel.source))?;
        Some(node.name.clone())
    });
    let kernel = way.map(|(address, way)| {
        let local = world.observed.addresses().any(|a| a.address == address);
        let way = way.and_then(|way| {
            let link = world.observed.link(way.link)?;
            Some(KernelWay {
                interface: link.name.clone(),
                gateway: way.gateway,
                mtu: way.mtu,
            })
        });
        let ours = report::route_get(world, index, address).ok();
        KernelPart {
            address,
            local,
            agrees: ours.map(|ours| agrees(world, &ours, way.as_ref())),
            way,
        }
    });
    TraceAnswer {
        packet,
        trace,
        from_node,
        kernel,
    }
}

/// Whether the kernel's way is that of Podway's route, or of one of its next hops.
fn agrees(world: &World<'_>, ours: &RouteAnswer, way: Option<&KernelWay>) -> bool {
    let Some(way) = way else {
        return false;
    };
    if !ours.members.is_empty() {
        return ours
            .members
            .iter()
            .any(|member| agrees(world, member, Some(way)));
    }
    match &ours.route.via {
        RouteTarget::Pod { interface } => *interface == way.interface,
        RouteTarget::Node { vni, .. } if ours.tunnel_to.is_some() => {
            way.interface == device_name(world, vni.unwrap_or(world.settings.vni))
        }
        _ => {
            let router = way.gateway.unwrap_or(ours.address);
            ours.interface.as_ref() == Some(&way.interface) && ours.next_hop == Some(router)
        }
    }
}

#[cfg(test)]
mod tests {
    use podway_proto::trace::{InTunnel, Why};
    use podway_proto::types::Mode;

    use super::*;
    use crate::kernel::DEVICE;
    use crate::netlink::Event;
    use crate::observed::tests::{address, link};
    use crate::world::tests::Fixture;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn packet(tunnel: Option<&str>) -> TracePacket {
        TracePacket {
            from_port: "veth-a".into(),
            source: ip("10.0.0.2"),
            destination: ip("10.0.1.2"),
            protocol: 6,
            source_port: 1,
            destination_port: 2,
            size: 100,
            hop_limit: 64,
            dont_fragment: false,
            tunnel: tunnel.map(|source| InTunnel {
                vni: 1.try_into().unwrap(),
                source: ip(source),
                destination: None,
            }),
        }
    }

    fn passed(cause: PassCause) -> Trace {
        Trace {
            role: "pod".into(),
            program: "tcx".into(),
            steps: Vec::new(),
            route: None,
            sending: None,
            verdict: Verdict::Kernel(Why::from(cause.explain())),
        }
    }

    fn kernel(fixture: &Fixture, to: &str, way: Option<Lookup>) -> KernelPart {
        let asked = (ip(to), way);
        let trace = passed(PassCause::Options);
        let world = fixture.world();
        let answer = answer(&world, &fixture.index(), packet(None), trace, Some(asked));
        answer.kernel.unwrap()
    }

    fn by(link: u32, gateway: Option<&str>) -> Option<Lookup> {
        Some(Lookup {
            link,
            gateway: gateway.map(ip),
            source: None,
            mtu: None,
            expires: None,
        })
    }

    #[test]
    fn a_tunnel_ends_at_the_address_of_its_own_version() {
        let mut fixture = Fixture::new();
        let ends = |fixture: &Fixture, from| {
            let asked = whole(&packet(Some(from)), &fixture.world());
            asked.tunnel.unwrap().destination
        };
        assert_eq!(ends(&fixture, "192.168.1.2"), Some(ip("192.168.1.1")));
        assert_eq!(ends(&fixture, "fd77::2"), None);
        fixture
            .observed
            .apply(Event::Address(address(2, "fd77::1/64")));
        assert_eq!(ends(&fixture, "fd77::2"), Some(ip("fd77::1")));
        let world = fixture.world();
        let index = fixture.index();
        let from = |source| {
            let trace = passed(PassCause::Options);
            answer(&world, &index, packet(Some(source)), trace, None).from_node
        };
        assert_eq!(from("192.168.1.2").as_deref(), Some("b"));
        assert_eq!(from("192.168.1.77"), None);
    }

    #[test]
    fn the_kernel_is_asked_for_what_it_forwards() {
        let asked = |trace: &Trace| asks_kernel(&packet(None), trace);
        assert_eq!(asked(&passed(PassCause::Options)), Some(ip("10.0.1.2")));
        assert_eq!(asked(&passed(PassCause::UnknownVni)), None);
        let sent = Trace {
            verdict: Verdict::Sent,
            ..passed(PassCause::Options)
        };
        assert_eq!(asked(&sent), None);
    }

    #[test]
    fn two_ways_agree_or_they_do_not() {
        let mut fixture = Fixture::new();
        fixture.observed.apply(Event::Link(link(9, DEVICE)));
        for (to, way, agrees) in [
            // In a tunnel to b.
            ("10.0.1.2", by(9, None), Some(true)),
            ("10.0.1.2", by(2, Some("192.168.1.2")), Some(false)),
            ("10.0.1.2", None, Some(false)),
            // A pod.
            ("10.0.0.2", by(3, None), Some(true)),
            ("10.0.0.2", by(2, None), Some(false)),
            // Podway has no route.
            ("198.51.100.1", by(2, Some("192.168.1.254")), None),
        ] {
            let part = kernel(&fixture, to, way.clone());
            assert_eq!(part.agrees, agrees, "{to} {way:?}");
            assert!(!part.local);
        }
        assert!(kernel(&fixture, "192.168.1.1", None).local);
        let node = fixture.desired.nodes.get_mut("b").unwrap();
        node.mode = Some(Mode::Native);
        fixture.settings.auto_direct_node_routes = true;
        let part = kernel(&fixture, "10.0.1.2", by(2, Some("192.168.1.2")));
        assert_eq!(part.agrees, Some(true));
        let part = kernel(&fixture, "10.0.1.2", by(2, Some("192.168.1.3")));
        assert_eq!(part.agrees, Some(false));
        let gateway = part.way.unwrap().gateway;
        assert_eq!(gateway, Some(ip("192.168.1.3")));
    }
}
