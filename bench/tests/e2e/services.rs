//! Pods reach services: addresses that are nobody's, which rules like kube-proxy's translate to a
//! pod's. What is between pods by their own addresses stays on the fast path.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use podway_bench::netns::{Netns, join, wait_until};
use podway_bench::topology::{ClusterSpec, Pod, UPLINK};
use podway_proto::types::Mode;

use crate::support::{Delta, Network, options, spec};

/// The services' addresses, of which no route but the default one tells, and their port.
const SERVICE: &str = "10.96.0.10";
const SERVICE_PORT: u16 = 80;
/// Where the pods behind them listen.
const PORT: u16 = 8080;
/// Longer than an exchange takes on a machine that others load.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of each answer: some segments.
const ANSWER: usize = 100_000;

fn io(error: std::io::Error) -> podway_bench::Error {
    podway_bench::Error::Unexpected(error.to_string())
}

/// Rules as kube-proxy writes them: what is for the service is for one of its pods.
fn translate(node: &Netns, backend: &Pod) {
    let rules = format!(
        "add table ip kube-proxy; \
         add chain ip kube-proxy prerouting {{ type nat hook prerouting priority dstnat; }}; \
         flush chain ip kube-proxy prerouting; \
         add rule ip kube-proxy prerouting ip daddr {SERVICE} meta l4proto {{ tcp, udp }} \
         th dport {SERVICE_PORT} dnat to {}:{PORT}",
        backend.ipv4
    );
    node.run("nft", &[&rules]).unwrap();
}

/// A request by TCP to an address, and the whole of the answer.
fn by_tcp(client: &Netns, server: &Pod, to: SocketAddr) {
    let own = SocketAddr::new(server.ipv4.into(), PORT);
    let (ready, wait) = std::sync::mpsc::channel();
    let answering = server.netns.thread(move || {
        let listener = TcpListener::bind(own).map_err(io)?;
        ready.send(()).unwrap();
        let (mut stream, _) = listener.accept().map_err(io)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(io)?;
        let mut request = [0; 4];
        stream.read_exact(&mut request).map_err(io)?;
        stream.write_all(&[0x5a; ANSWER]).map_err(io)
    });
    wait.recv().unwrap();
    let asking = client.thread(move || {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE).map_err(io)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(io)?;
        stream.write_all(b"give").map_err(io)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).map_err(io)?;
        Ok(answer)
    });
    let answer = join(asking).unwrap();
    join(answering).unwrap();
    assert!(answer == [0x5a; ANSWER], "{} bytes from {to}", answer.len());
}

/// A datagram to an address and its answer, which comes from that address.
fn by_udp(client: &Netns, server: &Pod, to: SocketAddr) {
    let own = SocketAddr::new(server.ipv4.into(), PORT);
    let (ready, wait) = std::sync::mpsc::channel();
    let answering = server.netns.thread(move || {
        let socket = UdpSocket::bind(own).map_err(io)?;
        socket.set_read_timeout(Some(PATIENCE)).map_err(io)?;
        ready.send(()).unwrap();
        let (length, from) = socket.recv_from(&mut [0; 16]).map_err(io)?;
        socket.send_to(b"here", from).map_err(io)?;
        Ok(length)
    });
    wait.recv().unwrap();
    let asking = client.thread(move || {
        let socket = UdpSocket::bind("0.0.0.0:0").map_err(io)?;
        socket.set_read_timeout(Some(PATIENCE)).map_err(io)?;
        // Answers from any other address are not given to the socket.
        socket.connect(to).map_err(io)?;
        socket.send(b"who").map_err(io)?;
        let mut answer = [0; 16];
        let length = socket.recv(&mut answer).map_err(io)?;
        Ok(answer[..length].to_vec())
    });
    assert_eq!(join(asking).unwrap(), b"here", "from {to}");
    assert_eq!(join(answering).unwrap(), 3);
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn pods_reach_services_by_vxlan() {
    reaches_services(Mode::Vxlan);
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn pods_reach_services_natively() {
    reaches_services(Mode::Native);
}

fn reaches_services(mode: Mode) {
    let spec = ClusterSpec {
        pods_per_node: 2,
        ..spec()
    };
    let network = Network::up(spec, &options(mode));
    let node = &network.node(0).netns;
    let client = &network.pod(0, 0).netns;
    let service = SocketAddr::new(SERVICE.parse().unwrap(), SERVICE_PORT);
    for (what, backend) in [
        ("a pod of another node", network.pod(1, 0)),
        ("a pod of this node", network.pod(0, 1)),
    ] {
        translate(node, backend);
        // Control sees the rules on its own time.
        wait_until("the programs ask conntrack", PATIENCE, || {
            let status = network.agent(0).status().map_err(|e| e.to_string())?;
            match status.translates {
                true => Ok(()),
                false => Err("control has not seen the rules".to_owned()),
            }
        })
        .unwrap();
        let before = network.counters();
        by_tcp(client, backend, service);
        by_udp(client, backend, service);
        let after = network.counters();
        let delta = Delta {
            before: &before[0],
            after: &after[0],
        };
        // The answers are the kernel's on the client's node, wherever they come by.
        let port = match backend.netns.name() == network.pod(0, 1).netns.name() {
            true => backend.host_interface.clone(),
            false => UPLINK.to_owned(),
        };
        let passed = delta.passed(&port);
        assert!(passed.contains_key("translated"), "{what}: {passed:?}");
        assert_eq!(delta.packets(&port), (0, 0), "{what}");
        assert_eq!(delta.drops().len(), 0, "{what}");
    }

    // Pod to pod by their own addresses: not a packet of it is the kernel's.
    let other = network.pod(1, 0);
    let before = network.counters();
    by_tcp(client, other, SocketAddr::new(other.ipv4.into(), PORT));
    by_udp(client, other, SocketAddr::new(other.ipv4.into(), PORT));
    let after = network.counters();
    for (before, after) in before.iter().zip(&after) {
        let delta = Delta { before, after };
        assert_eq!(delta.passed(UPLINK).get("translated"), None);
        let (received, sent) = delta.packets(UPLINK);
        assert!(received > 0 && sent > 0, "{received}, {sent}");
    }

    // Without the rules nothing is asked any more.
    node.run("nft", &["delete table ip kube-proxy"]).unwrap();
    wait_until("conntrack is let alone", PATIENCE, || {
        let status = network.agent(0).status().map_err(|e| e.to_string())?;
        match status.translates {
            false => Ok(()),
            true => Err("control has not seen that the rules are gone".to_owned()),
        }
    })
    .unwrap();
    let address: IpAddr = other.ipv4.into();
    crate::support::ping_all(client, address, 56, 10);
    network.finish();
}
