//! What the dataplane holds is compared with what it was told, and mended.

use std::time::{Duration, Instant};

use podway_bench::netns::wait_until;
use podway_bench::topology::UPLINK;
use podway_proto::client::Lines;
use podway_proto::control::DataplaneLink;
use podway_proto::dataplane::{Change, Request, Response};
use podway_proto::types::{MacAddr, Mode, Neighbor, Route, Via};
use podway_proto::{DATAPLANE_SOCKET, VERSION};

use crate::support::{Delta, Network, options, ping_all, spec, wait_for_answer};

/// How long control may take to notice and to mend, on a machine that others load.
const PATIENCE: Duration = Duration::from_secs(10);

/// A client of the dataplane beside control.
fn tell(network: &Network, changes: Vec<Change>) {
    let socket = network.node(0).directory.join("run").join(DATAPLANE_SOCKET);
    let mut lines = Lines::connect(&socket, PATIENCE).unwrap();
    let mut ask =
        |request| -> Response { lines.exchange(&request, Instant::now() + PATIENCE).unwrap() };
    let hello = ask(Request::Hello { version: VERSION });
    assert!(matches!(hello, Response::Hello { .. }), "{hello:?}");
    let refused = Vec::new();
    assert_eq!(
        ask(Request::Apply { changes }),
        Response::Applied { refused }
    );
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn what_somebody_else_told_the_dataplane_is_mended() {
    let mut network = Network::up(spec(), &options(Mode::Vxlan));
    let (pod, peer) = (network.pod(0, 0).clone(), network.pod(1, 0).clone());
    let drift = |network: &Network| network.agent(0).status().unwrap().drift;
    let compared = |network: &Network| {
        wait_until("a comparison", PATIENCE, || match drift(network) {
            drift if drift.compared_seconds_ago == Some(0) => Ok(drift),
            other => Err(format!("{other:?}")),
        })
        .unwrap()
    };
    let whole = compared(&network);
    assert_eq!((whole.found, whole.mended), (Vec::new(), 0));

    let peer_node = network.node(1).clone();
    let route = Route {
        prefix: "10.77.0.0/16".parse().unwrap(),
        via: Via::Node {
            node: peer_node.name.clone(),
            vni: None,
        },
    };
    let neighbor = Neighbor {
        interface: UPLINK.to_owned(),
        address: peer_node.underlay.into(),
        mac: MacAddr([2, 0, 0, 0, 0, 0x66]),
    };
    let changes = vec![
        Change::SetRoute(route),
        Change::SetNeighbor(neighbor),
        Change::DelNode {
            name: peer_node.name.clone(),
        },
        Change::DelPort {
            interface: pod.host_interface.clone(),
        },
    ];
    tell(&network, changes);
    // The comparison before is fresh for a second, and then the next status compares.
    let mended = wait_until("it is mended", PATIENCE, || {
        let status = network.agent(0).status().map_err(|e| e.to_string())?;
        match status.dataplane {
            DataplaneLink::Synced { .. } if status.drift.mended == 1 => Ok(status.drift),
            other => Err(format!("{other:?}, {:?}", status.drift)),
        }
    })
    .unwrap();
    assert_eq!(mended.found, Vec::<String>::new());
    let kinds = mended.last_mended.iter();
    let kinds = kinds.map(|text| text.split(':').next().unwrap());
    assert_eq!(
        kinds.collect::<Vec<_>>(),
        ["ports", "neighbors", "nodes", "routes"]
    );
    network.mended = 1;

    // All of it is as it was, by the fast path.
    network.podway.wait_ready().unwrap();
    wait_for_answer(&pod.netns, peer.ipv4.into(), PATIENCE);
    let before = network.counters();
    ping_all(&pod.netns, peer.ipv4.into(), 56, 10);
    ping_all(&peer.netns, pod.ipv4.into(), 56, 10);
    let after = network.counters();
    let (before, after) = (&before[0], &after[0]);
    let delta = Delta { before, after };
    assert_eq!(delta.packets(&pod.host_interface), (20, 20));
    assert_eq!(delta.packets(UPLINK), (20, 20));
    network.finish();
}
