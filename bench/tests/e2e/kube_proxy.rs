//! Services: rules as kube-proxy writes them in its nftables mode (Kubernetes 1.33), pods that answer
//! behind them, and clients.

use std::fmt::Write as _;
use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use podway_bench::netns::{Netns, join};
use podway_bench::topology::{Node, Pod};

/// Where services listen.
pub(crate) const PORT: u16 = 80;
/// Where the pods behind them do.
pub(crate) const TARGET_PORT: u16 = 8080;
/// Longer than an exchange takes on a machine that others load.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of each answer by TCP: some segments.
const ANSWER: usize = 100_000;

/// A service for TCP and UDP.
pub(crate) struct Service<'a> {
    pub(crate) name: &'static str,
    /// Last part of its addresses.
    pub(crate) number: u8,
    /// The pods behind it.
    pub(crate) endpoints: Vec<&'a Pod>,
    /// Its port on the nodes' own addresses.
    pub(crate) node_port: Option<u16>,
}

impl Service<'_> {
    /// Its address: nobody's.
    pub(crate) fn address(&self, v6: bool) -> SocketAddr {
        let number = self.number;
        let address: IpAddr = if v6 {
            Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, number.into()).into()
        } else {
            Ipv4Addr::new(10, 96, 0, number).into()
        };
        SocketAddr::new(address, PORT)
    }
}

/// The networks that the addresses of services are taken from.
pub(crate) const NETWORKS: [&str; 2] = ["10.96.0.0/16", "fd00:96::/112"];

/// A pod's address.
pub(crate) fn address_of(pod: &Pod, v6: bool) -> IpAddr {
    if v6 { pod.ipv6.into() } else { pod.ipv4.into() }
}

/// Gives a node the tables of both families.
pub(crate) fn write_rules(node: &Node, services: &[Service<'_>]) {
    let text: String = [false, true].map(|v6| table(node, v6, services)).concat();
    let file = node.directory.join("kube-proxy.nft");
    fs::write(&file, text).unwrap();
    let file = file.to_string_lossy();
    node.netns.run("nft", &["-f", &file]).unwrap();
}

/// Takes both tables away.
pub(crate) fn delete_rules(node: &Netns) {
    let delete = "delete table ip kube-proxy; delete table ip6 kube-proxy";
    node.run("nft", &[delete]).unwrap();
}

/// One table: what is there without services, and then a chain for each service and endpoint.
fn table(node: &Node, v6: bool, services: &[Service<'_>]) -> String {
    let (ip, kind, pods, own): (_, _, _, IpAddr) = match v6 {
        false => ("ip", "ipv4_addr", "10.0.0.0/16", node.underlay.into()),
        true => ("ip6", "ipv6_addr", "fd00:10::/48", node.underlay6.into()),
    };
    let network = NETWORKS[usize::from(v6)];
    let mut text = format!(
        "add table {ip} kube-proxy {{ comment \"rules for kube-proxy\"; }}\n\
         add set {ip} kube-proxy cluster-ips {{ type {kind}; }}\n\
         add set {ip} kube-proxy nodeport-ips {{ type {kind}; }}\n"
    );
    for map in ["firewall-ips", "no-endpoint-services", "service-ips"] {
        let key = format!("{kind} . inet_proto . inet_service");
        writeln!(
            text,
            "add map {ip} kube-proxy {map} {{ type {key} : verdict; }}"
        )
        .unwrap();
    }
    for map in ["no-endpoint-nodeports", "service-nodeports"] {
        let key = "inet_proto . inet_service";
        writeln!(
            text,
            "add map {ip} kube-proxy {map} {{ type {key} : verdict; }}"
        )
        .unwrap();
    }
    for (chain, hook) in [
        (
            "filter-prerouting-pre-dnat",
            "filter hook prerouting priority -110",
        ),
        ("filter-output-pre-dnat", "filter hook output priority -110"),
        ("filter-forward", "filter hook forward priority 0"),
        ("filter-input", "filter hook input priority 0"),
        ("filter-output", "filter hook output priority 0"),
        ("nat-output", "nat hook output priority -100"),
        ("nat-postrouting", "nat hook postrouting priority 100"),
        ("nat-prerouting", "nat hook prerouting priority -100"),
    ] {
        writeln!(text, "add chain {ip} kube-proxy {chain} {{ type {hook}; }}").unwrap();
    }
    for chain in [
        "cluster-ips-check",
        "firewall-check",
        "mark-for-masquerade",
        "masquerading",
        "nodeport-endpoints-check",
        "reject-chain",
        "services",
        "service-endpoints-check",
    ] {
        writeln!(text, "add chain {ip} kube-proxy {chain}").unwrap();
    }
    let of_service = format!("{ip} daddr . meta l4proto . th dport vmap");
    let of_node_port = format!("{ip} daddr @nodeport-ips meta l4proto . th dport vmap");
    for (chain, rule) in [
        (
            "cluster-ips-check",
            format!("{ip} daddr @cluster-ips reject"),
        ),
        (
            "cluster-ips-check",
            format!("{ip} daddr {{ {network} }} drop"),
        ),
        (
            "filter-prerouting-pre-dnat",
            "ct state new jump firewall-check".into(),
        ),
        (
            "filter-output-pre-dnat",
            "ct state new jump firewall-check".into(),
        ),
        (
            "filter-forward",
            "ct state new jump service-endpoints-check".into(),
        ),
        (
            "filter-forward",
            "ct state new jump cluster-ips-check".into(),
        ),
        (
            "filter-input",
            "ct state new jump nodeport-endpoints-check".into(),
        ),
        (
            "filter-input",
            "ct state new jump service-endpoints-check".into(),
        ),
        (
            "filter-output",
            "ct state new jump service-endpoints-check".into(),
        ),
        (
            "filter-output",
            "ct state new jump cluster-ips-check".into(),
        ),
        ("firewall-check", format!("{of_service} @firewall-ips")),
        ("mark-for-masquerade", "mark set mark or 0x4000".into()),
        ("masquerading", "mark and 0x4000 == 0 return".into()),
        ("masquerading", "mark set mark xor 0x4000".into()),
        ("masquerading", "masquerade fully-random".into()),
        ("nat-output", "jump services".into()),
        ("nat-postrouting", "jump masquerading".into()),
        ("nat-prerouting", "jump services".into()),
        (
            "nodeport-endpoints-check",
            format!("{of_node_port} @no-endpoint-nodeports"),
        ),
        ("reject-chain", "reject".into()),
        ("services", format!("{of_service} @service-ips")),
        ("services", format!("{of_node_port} @service-nodeports")),
        (
            "service-endpoints-check",
            format!("{of_service} @no-endpoint-services"),
        ),
    ] {
        writeln!(text, "add rule {ip} kube-proxy {chain} {rule}").unwrap();
    }
    writeln!(text, "add element {ip} kube-proxy nodeport-ips {{ {own} }}").unwrap();
    for service in services {
        for protocol in ["tcp", "udp"] {
            text += &of(service, protocol, ip, v6, pods);
        }
    }
    text
}

/// What a service adds to the table for one protocol.
fn of(service: &Service<'_>, protocol: &str, ip: &str, v6: bool, pods: &str) -> String {
    let Service {
        name, node_port, ..
    } = service;
    let address = service.address(v6).ip();
    let add = |what: &str| format!("add element {ip} kube-proxy {what}\n");
    let key = format!("{address} . {protocol} . {PORT}");
    let mut text = String::new();
    if protocol == "tcp" {
        text += &add(&format!("cluster-ips {{ {address} }}"));
    }
    if service.endpoints.is_empty() {
        let verdict = format!("{key} comment \"default/{name}:p\" : goto reject-chain");
        return text + &add(&format!("no-endpoint-services {{ {verdict} }}"));
    }
    let chain = format!("service-ABCDEFGH-default/{name}/{protocol}/p");
    let mut rules = vec![(
        chain.clone(),
        format!("{ip} daddr {address} {ip} saddr != {pods} jump mark-for-masquerade"),
    )];
    let mut chains = vec![chain.clone()];
    let mut choices = Vec::new();
    for (number, pod) in service.endpoints.iter().enumerate() {
        let pod = address_of(pod, v6);
        let to = SocketAddr::new(pod, TARGET_PORT);
        // A name has no colons.
        let spelled = pod.to_string().replace(':', ".");
        let endpoint =
            format!("endpoint-ABCDEFGH-default/{name}/{protocol}/p__{spelled}/{TARGET_PORT}");
        choices.push(format!("{number} : goto {endpoint}"));
        rules.push((
            endpoint.clone(),
            format!("{ip} saddr {pod} jump mark-for-masquerade"),
        ));
        rules.push((
            endpoint.clone(),
            format!("meta l4proto {protocol} dnat to {to}"),
        ));
        chains.push(endpoint);
    }
    let (count, choices) = (choices.len(), choices.join(", "));
    rules.push((
        chain.clone(),
        format!("numgen random mod {count} vmap {{ {choices} }}"),
    ));
    let mut elements = vec![format!("service-ips {{ {key} : goto {chain} }}")];
    if let Some(port) = node_port {
        let external = format!("external-ABCDEFGH-default/{name}/{protocol}/p");
        rules.push((external.clone(), "jump mark-for-masquerade".into()));
        rules.push((external.clone(), format!("goto {chain}")));
        elements.push(format!(
            "service-nodeports {{ {protocol} . {port} : goto {external} }}"
        ));
        chains.push(external);
    }
    for chain in chains {
        writeln!(text, "add chain {ip} kube-proxy {chain}").unwrap();
    }
    for (chain, rule) in rules {
        writeln!(text, "add rule {ip} kube-proxy {chain} {rule}").unwrap();
    }
    elements.iter().for_each(|element| text += &add(element));
    text
}

fn io(error: std::io::Error) -> podway_bench::Error {
    podway_bench::Error::Unexpected(error.to_string())
}

/// Answers by TCP and UDP at a pod's addresses, until it is dropped.
pub(crate) struct Server {
    /// Who has asked: protocol and source.
    asked: Arc<Mutex<Vec<(&'static str, IpAddr)>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<podway_bench::Result<()>>>,
}

impl Server {
    pub(crate) fn start(pod: &Pod) -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let threads = [false, true].map(|v6| {
            let at = SocketAddr::new(address_of(pod, v6), TARGET_PORT);
            let (asked, stop) = (Arc::clone(&asked), Arc::clone(&stop));
            let (ready, wait) = std::sync::mpsc::channel();
            let thread = pod.netns.thread(move || {
                let listener = TcpListener::bind(at).map_err(io)?;
                let socket = UdpSocket::bind(at).map_err(io)?;
                listener.set_nonblocking(true).map_err(io)?;
                socket.set_nonblocking(true).map_err(io)?;
                ready.send(()).unwrap();
                serve(&listener, &socket, &asked, &stop).map_err(io)
            });
            wait.recv().unwrap();
            thread
        });
        Self {
            asked,
            stop,
            threads: threads.into(),
        }
    }

    /// Who has asked since the last call.
    pub(crate) fn take_asked(&self) -> Vec<(&'static str, IpAddr)> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let ended = join(thread);
            if !std::thread::panicking() {
                ended.unwrap();
            }
        }
    }
}

fn serve(
    listener: &TcpListener,
    socket: &UdpSocket,
    asked: &Mutex<Vec<(&'static str, IpAddr)>>,
    stop: &AtomicBool,
) -> std::io::Result<()> {
    let is_idle = |error: &std::io::Error| error.kind() == ErrorKind::WouldBlock;
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((mut stream, from)) => {
                asked.lock().unwrap().push(("tcp", from.ip()));
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.read_exact(&mut [0; 4])?;
                stream.write_all(&[0x5a; ANSWER])?;
            }
            Err(error) if is_idle(&error) => {}
            Err(error) => return Err(error),
        }
        match socket.recv_from(&mut [0; 16]) {
            Ok((_, from)) => {
                asked.lock().unwrap().push(("udp", from.ip()));
                socket.send_to(b"here", from)?;
            }
            Err(error) if is_idle(&error) => std::thread::sleep(Duration::from_millis(1)),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A request by TCP, and the whole of the answer; or why there is no connection.
pub(crate) fn by_tcp(client: &Netns, to: SocketAddr) -> Result<(), ErrorKind> {
    let asking = client.thread(move || {
        let mut stream = match TcpStream::connect_timeout(&to, PATIENCE) {
            Ok(stream) => stream,
            Err(error) => return Ok(Err(error.kind())),
        };
        stream.set_read_timeout(Some(PATIENCE)).map_err(io)?;
        stream.write_all(b"give").map_err(io)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).map_err(io)?;
        assert!(answer == [0x5a; ANSWER], "{} bytes from {to}", answer.len());
        Ok(Ok(()))
    });
    join(asking).unwrap()
}

/// A datagram and its answer, which comes from that address; or why there is none.
pub(crate) fn by_udp(client: &Netns, to: SocketAddr) -> Result<(), ErrorKind> {
    let asking = client.thread(move || {
        let any: IpAddr = match to {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0)).map_err(io)?;
        socket.set_read_timeout(Some(PATIENCE)).map_err(io)?;
        // Answers from any other address are not given to the socket.
        socket.connect(to).map_err(io)?;
        // Where a rule refuses it on its way out of this node, it is not even sent.
        if let Err(error) = socket.send(b"who") {
            return Ok(Err(error.kind()));
        }
        let mut answer = [0; 16];
        match socket.recv(&mut answer) {
            Ok(length) => {
                assert_eq!(&answer[..length], b"here", "from {to}");
                Ok(Ok(()))
            }
            Err(error) => Ok(Err(error.kind())),
        }
    });
    join(asking).unwrap()
}
