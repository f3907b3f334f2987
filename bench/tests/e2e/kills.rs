//! Both daemons are killed at random moments while routes change: afterwards what was acknowledged is
//! what control holds, what the workers route by, and what the kernel underneath has.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use fastrand::Rng;
use ipnet::IpNet;
use podway_bench::netns::wait_until;
use podway_bench::podway::Agent;
use podway_bench::topology::ClusterSpec;
use podway_proto::CONTROL_SOCKET;
use podway_proto::client::{Client, ClientError};
use podway_proto::control::{Request, RouteOrigin, RouteSpec, RouteTarget, ViaSpec};
use podway_proto::types::Mode;

use crate::support::{Network, options, ping_all, redirected, spec, wait_for_answer};

/// The longest that a daemon lives under load.
const LIFE: u64 = 400;
/// Routes that come and go are among so many.
const ROUTES: u8 = 200;
const PATIENCE: Duration = Duration::from_secs(20);

/// What is killed in a round.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Killed {
    Control,
    /// At once.
    Both,
    /// Control goes on, and so do the changes, until it is killed some time later.
    DataplaneFirst,
}

type Routes = BTreeMap<IpNet, String>;

/// How often something is killed: 2,000 times was done by hand.
fn kills() -> u64 {
    let kills = std::env::var("PODWAY_TEST_BOTH_KILLS").ok();
    kills.map_or(50, |kills| {
        kills.parse().expect("PODWAY_TEST_BOTH_KILLS is a number")
    })
}

fn prefix(number: u8) -> IpNet {
    IpNet::new([100, 64, number, 0].into(), 24).unwrap()
}

/// Changes routes until control is gone or there were enough of them. Gives what was acknowledged, and
/// what the last change would have made of it.
fn change(
    socket: PathBuf,
    mut routes: Routes,
    nodes: &[String],
    mut random: Rng,
) -> (Routes, Routes) {
    let Ok(mut client) = Client::connect(&socket, PATIENCE) else {
        return (routes.clone(), routes);
    };
    for _ in 0..10_000 {
        let prefix = prefix(random.u8(..ROUTES));
        let mut after = routes.clone();
        let result = if routes.contains_key(&prefix) && random.bool() {
            after.remove(&prefix);
            client.call(&Request::RouteDel { prefix })
        } else {
            let node = nodes[random.usize(..nodes.len())].clone();
            after.insert(prefix, node.clone());
            let via = ViaSpec::Node { node, vni: None };
            client.call(&Request::RouteReplace(RouteSpec { prefix, via }))
        };
        match result {
            Ok(_) => routes = after,
            Err(ClientError::Lost { .. }) => return (routes, after),
            Err(error) => panic!("{error}"),
        }
    }
    (routes.clone(), routes)
}

/// What control holds of what was added.
fn held(agent: &Agent) -> Routes {
    let routes = agent.routes().unwrap().into_iter();
    let added = routes.filter(|route| route.origin == RouteOrigin::Added);
    added
        .map(|route| match route.via {
            RouteTarget::Node { node, .. } => (route.prefix, node),
            other => panic!("{other:?}"),
        })
        .collect()
}

/// Routes in the workers' tables.
fn in_tables(agent: &Agent) -> u64 {
    let link = agent.status().unwrap().dataplane;
    let status = link.status().unwrap_or_else(|| panic!("{link:?}"));
    status.tables.routes
}

/// Whether a prefix is one of those that come and go.
fn is_added(prefix: &str) -> bool {
    prefix.starts_with("100.64.")
}

/// What the kernel has of what was added: `gateway dev link` by prefix.
fn in_kernel(network: &Network) -> BTreeMap<String, String> {
    let node = &network.node(0).netns;
    let text = node.run("ip", &["-j", "route", "show"]).unwrap();
    let routes: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let routes = routes.iter().map(|route| {
        let field = |name: &str| route[name].as_str().unwrap_or_default().to_owned();
        let way = format!("{} dev {}", field("gateway"), field("dev"));
        (field("dst"), way)
    });
    routes.filter(|(prefix, _)| is_added(prefix)).collect()
}

/// The same as it should be: by the tunnel, to what each node has of it.
fn of_kernel(network: &Network, held: &Routes) -> BTreeMap<String, String> {
    let nodes = network.cluster.nodes();
    let way = |name: &String| {
        let node = nodes.iter().find(|node| node.name == *name).unwrap();
        format!("{} dev podway.vx", node.pod_network())
    };
    held.iter()
        .map(|(prefix, node)| (prefix.to_string(), way(node)))
        .collect()
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn whatever_is_killed_what_was_acknowledged_is_in_force() {
    let spec = ClusterSpec {
        nodes: 3,
        pods_per_node: 1,
        ..spec()
    };
    let mut network = Network::up(spec, &options(Mode::Vxlan));
    let own_routes = in_tables(network.agent(0));
    let socket = network.node(0).directory.join("run").join(CONTROL_SOCKET);
    let nodes = [1, 2].map(|number| network.node(number).name.clone());
    let mut random = Rng::with_seed(7);
    let mut acknowledged = Routes::new();
    for round in 0..kills() {
        let what = [Killed::Control, Killed::Both, Killed::DataplaneFirst][random.usize(..3)];
        let life = Duration::from_millis(random.u64(..LIFE));
        let client = {
            let (socket, routes) = (socket.clone(), acknowledged.clone());
            let (nodes, random) = (nodes.clone(), random.fork());
            thread::spawn(move || change(socket, routes, &nodes, random))
        };
        thread::sleep(life);
        let agent = network.podway.agent_mut(0);
        // The client ends with control, so that this is killed last.
        if what != Killed::Control {
            agent.kill_dataplane().unwrap();
        }
        if what == Killed::DataplaneFirst {
            agent.start_dataplane().unwrap();
            thread::sleep(Duration::from_millis(random.u64(..LIFE)));
        }
        agent.kill_control().unwrap();
        agent.start_control().unwrap();
        if what == Killed::Both {
            agent.start_dataplane().unwrap();
        }
        let (sure, possible) = client.join().unwrap();
        wait_until("control answers", PATIENCE, || {
            let status = network.agent(0).status();
            status.map(drop).map_err(|error| error.to_string())
        })
        .unwrap();
        network.podway.wait_ready().unwrap();
        let held = held(network.agent(0));
        assert!(
            held == sure || held == possible,
            "round {round}: {held:?} is neither {sure:?} nor {possible:?}"
        );
        assert_eq!(
            in_tables(network.agent(0)),
            own_routes + held.len() as u64,
            "round {round}"
        );
        let kernel = of_kernel(&network, &held);
        // They follow when the workers have the tables.
        wait_until("the programs redirect what is routed", PATIENCE, || {
            let mut found = redirected(network.agent(0));
            found.retain(|prefix| is_added(prefix));
            if found.iter().eq(kernel.keys()) {
                Ok(())
            } else {
                Err(format!("round {round}: {found:?}"))
            }
        })
        .unwrap();
        assert_eq!(in_kernel(&network), kernel, "round {round}");
        acknowledged = held;
    }
    let (pod, peer) = (network.pod(0, 0), network.pod(1, 0));
    wait_for_answer(&pod.netns, peer.ipv4.into(), PATIENCE);
    ping_all(&pod.netns, peer.ipv4.into(), 56, 10);
    network.finish();
}
