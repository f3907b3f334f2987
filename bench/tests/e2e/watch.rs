//! Packets are seen on their way: `podway capture` and `podway trace live`, by tshark and by exact
//! counts, and nothing of it costs a packet.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use etherparse::PacketBuilder;
use podway_bench::frames::send_raw;
use podway_bench::netns::{join, run, spawn, wait_until};
use podway_bench::podway::Agent;
use podway_bench::topology::UPLINK;
use podway_proto::client::{ClientError, DataplaneClient};
use podway_proto::control::derived_vtep_mac;
use podway_proto::dataplane::{Request, Response};
use podway_proto::types::Mode;
use podway_proto::watch::{MAX_SNAP, MAX_WATCHES, WatchPoint, WatchSpec};
use podway_proto::{DATAPLANE_SOCKET, ErrorCode};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::malformed::mac_of;
use crate::sockets::{Datagrams, tcp};
use crate::support::{Delta, Network, options, ping_all, spec};

const PINGS: u16 = 5;
/// More records than the ring of a watch and a worker has, at two for each.
const MANY: u32 = 3000;
/// In so many rounds they come at a moderate rate: less than 4000 a second.
const ROUNDS: u32 = 40;
const PACE: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(10);

/// A program that is killed when it is let go.
pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn podway(agent: &Agent, arguments: &[&str]) -> Self {
        let mut command = agent.cli_command().unwrap();
        command.args(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        Self(spawn(&mut command).unwrap())
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.0.id().try_into().unwrap());
        kill_process(pid.unwrap(), signal).unwrap();
    }

    /// Insists that it ends well, in time; `meanwhile` is done as long as it has not.
    pub(crate) fn ends(&mut self, mut meanwhile: impl FnMut()) {
        let ended = wait_until("it ends", PATIENCE, || {
            meanwhile();
            let ended = self.0.try_wait().map_err(|error| error.to_string())?;
            ended.ok_or_else(|| "it goes on".to_owned())
        });
        assert!(ended.unwrap().success());
    }

    /// What it has yet to say, after it has ended well.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let mut said = Vec::new();
        let mut out = self.0.stdout.take().unwrap();
        out.read_to_end(&mut said).unwrap();
        self.ends(|| ());
        said
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A tshark that reads a capture and gives `fields` of each packet, a line each.
fn tshark(fields: &[&str]) -> Command {
    let mut command = Command::new("tshark");
    command.args(["-n", "-l", "-r", "-", "-T", "fields"]);
    command.args(["-E", "separator=/t", "-E", "occurrence=f"]);
    for field in fields {
        command.args(["-e", field]);
    }
    command
}

/// What [`tshark`] says of a file.
fn dissect(file: &Path, fields: &[&str]) -> Vec<String> {
    let mut command = tshark(fields);
    command.stdin(fs::File::open(file).unwrap());
    let text = run(&mut command).unwrap_or_else(|error| panic!("{error}"));
    text.lines().map(str::to_owned).collect()
}

fn dataplane(agent: &Agent) -> DataplaneClient {
    let socket = agent.node().directory.join("run").join(DATAPLANE_SOCKET);
    DataplaneClient::connect(&socket, PATIENCE).unwrap()
}

fn begin(client: &mut DataplaneClient, filter: &str) -> Result<(), ClientError> {
    let spec = WatchSpec {
        filter: filter.into(),
        points: WatchPoint::ALL.into(),
        snap: MAX_SNAP,
        sample: 1,
        limit: None,
    };
    client.call(&Request::WatchBegin(spec)).map(drop)
}

#[test]
#[ignore = "needs root; scripts/test runs it"]
fn packets_are_seen_on_their_way_and_none_is_lost_for_it() {
    let network = Network::up(spec(), &options(Mode::Vxlan));
    let (pod, peer) = (network.pod(0, 0), network.pod(1, 0));
    ping_all(&pod.netns, peer.ipv4.into(), 56, 1);
    network.counters();

    each_point_has_each_packet(&network);
    a_capture_ends_with_its_reader(&network);
    a_trace_ends_with_its_reader_while_packets_pass(&network);
    a_drop_has_its_reason(&network);
    a_flow_is_traced(&network);
    a_moderate_rate_is_traced_without_loss(&network);
    right_checksums_are_not_called_wrong(&network);
    flows_are_added_up(&network);
    a_flow_is_on_a_terminal(&network);
    a_slow_reader_loses_records_only(&network);
    a_watch_ends_with_its_connection(&network);
    network.finish();
}

/// What a program says, line by line, as it comes.
fn lines(program: &mut Running) -> Receiver<String> {
    let out = BufReader::new(program.0.stdout.take().unwrap());
    let (send, lines) = channel();
    std::thread::spawn(move || {
        let mut told = out.lines().map_while(Result::ok);
        told.try_for_each(|line| send.send(line))
    });
    lines
}

fn parsed(line: &str) -> Value {
    serde_json::from_str(line).unwrap()
}

fn is_a(document: &Value, kind: &str) -> bool {
    document["response"] == kind
}

/// One `podway flows --follow`, and what it tells as it comes.
struct Flows {
    program: Running,
    lines: Receiver<String>,
    is_armed: bool,
}

impl Flows {
    fn of(agent: &Agent, filter: &[&str]) -> Self {
        let arguments = [&["--json", "flows", "--follow"], filter].concat();
        let mut program = Running::podway(agent, &arguments);
        let lines = lines(&mut program);
        Self {
            program,
            lines,
            is_armed: false,
        }
    }

    /// Whether it has told a flow.
    fn is_armed(&mut self) -> bool {
        self.is_armed |= self
            .lines
            .try_iter()
            .any(|line| is_a(&parsed(&line), "flow"));
        self.is_armed
    }

    /// The sums of the flows that it tells until it is stopped, packets and bytes, of those that `ours`
    /// are: by whose they are, ports, node, verdict and reason. Nothing is missing.
    fn sums(mut self, ours: impl Fn(&Value) -> bool) -> BTreeMap<[String; 6], (u64, u64)> {
        self.program.signal(Signal::INT);
        let mut sums: BTreeMap<_, (u64, u64)> = BTreeMap::new();
        for line in self.lines.iter() {
            let flow = parsed(&line);
            if is_a(&flow, "flow-period") {
                assert_eq!((&flow["lost"], &flow["others"]), (&json!(0), &json!(0)));
            }
            if !is_a(&flow, "flow") || !ours(&flow) {
                continue;
            }
            let text = |name: &str| flow[name].as_str().unwrap_or("-").to_owned();
            let number = |name: &str| flow[name].as_u64().unwrap();
            let key = [
                "source",
                "came_by",
                "leaves_by",
                "node",
                "verdict",
                "reason",
            ]
            .map(text);
            let sum = sums.entry(key).or_default();
            *sum = (sum.0 + number("packets"), sum.1 + number("bytes"));
        }
        self.program.ends(|| ());
        sums
    }
}

/// By several `podway flows` at once, of which nothing is seen before they have seen a packet.
fn flows_are_added_up(network: &Network) {
    const DROPPED: u16 = 40_001;
    let (pod, peer) = (network.pod(0, 0), network.pod(1, 0));
    let (node, here) = (&*network.node(1).name, pod.ipv4.to_string());
    let filters: [&[&str]; MAX_WATCHES] = [
        &["--node", node],
        &["--pod", &here, "--verdict", "forwarded"],
        &["--port", "7001", "--sample", "10"],
        &["--verdict", "dropped"],
    ];
    let mut all = filters.map(|filter| Flows::of(network.agent(0), filter));
    let datagrams = Datagrams {
        size: 100,
        count: 100,
        window: 32,
    };
    let send_stranger = |source_port| {
        let frame = of_a_stranger(network, source_port);
        send_raw(&network.node(1).netns, UPLINK, &frame).unwrap();
    };
    let refusing = SocketAddr::from((peer.ipv4, 7002));
    // None of it is looked at.
    wait_until("each tells a flow", PATIENCE, || {
        ping_all(&pod.netns, peer.ipv6.into(), 56, 1);
        let connecting = pod
            .netns
            .thread(move || Ok(TcpStream::connect(refusing).is_err()));
        assert!(join(connecting).unwrap());
        let ten = Datagrams {
            count: 10,
            ..datagrams
        };
        ten.arriving(&pod.netns, &peer.netns, peer.ipv6.into());
        send_stranger(DROPPED - 1);
        let armed = all.each_mut().map(Flows::is_armed);
        match armed.iter().all(|armed| *armed) {
            true => Ok(()),
            false => Err(format!("{armed:?}")),
        }
    })
    .unwrap();

    ping_all(&pod.netns, peer.ipv4.into(), 56, PINGS);
    let arrived = datagrams.arriving(&pod.netns, &peer.netns, peer.ipv4.into());
    assert_eq!(arrived, datagrams.count);
    (0..3).for_each(|_| send_stranger(DROPPED));
    std::thread::sleep(Duration::from_millis(1100));

    let [of_node, of_pod, sampled, dropped] = all;
    let key = |source: &str, came_by: &str, leaves_by: &str, node: &str| {
        [source, came_by, leaves_by, node, "forwarded", "-"].map(str::to_owned)
    };
    let (port, there) = (&*pod.host_interface, peer.ipv4.to_string());
    let pings = u64::from(PINGS);
    // Ethernet, IPv4, ICMP and 56 bytes; and the outer headers.
    let bytes = 14 + 20 + 8 + 56;
    let expected = BTreeMap::from([
        (
            key(&here, port, UPLINK, node),
            (pings, pings * (50 + bytes)),
        ),
        (key(&there, UPLINK, port, "-"), (pings, pings * bytes)),
    ]);
    let is_ping = |flow: &Value| flow["protocol"] == 1;
    assert_eq!(of_node.sums(is_ping), expected);
    assert_eq!(of_pod.sums(is_ping), expected);
    // Each that was looked at counts for ten.
    let bytes = 50 + 14 + 20 + 8 + 100;
    let expected = BTreeMap::from([(key(&here, port, UPLINK, node), (100, 100 * bytes))]);
    let is_v4 = |flow: &Value| flow["source"] == *here && flow["sample"] == 10;
    assert_eq!(sampled.sums(is_v4), expected);
    let key = [&*there, UPLINK, "-", "-", "dropped", "unknown_vtep"].map(str::to_owned);
    let bytes = 50 + 14 + 20 + 8 + 64;
    let expected = BTreeMap::from([(key, (3, 3 * bytes))]);
    let is_last = |flow: &Value| flow["source_port"] != DROPPED - 1;
    assert_eq!(dropped.sums(is_last), expected);
}

/// By `podway top`, on a terminal that `script` makes.
fn a_flow_is_on_a_terminal(network: &Network) {
    let (pod, peer) = (network.pod(0, 0), network.pod(1, 0));
    let podway = network.agent(0).cli_command().unwrap();
    let words = std::iter::once(podway.get_program()).chain(podway.get_args());
    let words: Vec<_> = words.map(|word| word.to_str().unwrap()).collect();
    let line = format!("stty rows 24 cols 80; exec {} top", words.join(" "));
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
    command.env("TERM", "xterm-256color").stderr(Stdio::null());
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut top = Running(spawn(&mut command).unwrap());
    let mut screen = top.0.stdout.take().unwrap();
    let (send, written) = channel();
    let reading = std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = screen.read(&mut bytes) {
            let _ = send.send(bytes[..count].to_vec());
        }
    });
    // Whichever direction is seen first is written where nothing was, so that it is whole.
    let (here, there) = (pod.ipv4, peer.ipv4);
    let either = [
        format!(" {here} {there} icmp {} ", network.node(1).name),
        format!(" {there} {here} icmp {} ", pod.host_interface),
    ];
    let mut seen = Vec::new();
    wait_until("a flow is on the terminal", PATIENCE, || {
        ping_all(&pod.netns, there.into(), 56, 1);
        seen.extend(written.try_iter().flatten());
        let text = words_of(&seen);
        let is_seen = either.iter().any(|row| text.contains(row));
        is_seen.then_some(()).ok_or(text)
    })
    .unwrap();
    top.0.stdin.take().unwrap().write_all(b"q").unwrap();
    top.ends(|| ());
    reading.join().unwrap();
}

/// What was written to a terminal, in order, with one space for wherever the cursor was sent.
fn words_of(written: &[u8]) -> String {
    let text = String::from_utf8_lossy(written);
    let parts = text.split('\x1b').map(|part| {
        let end = part.find(|char: char| char.is_ascii_alphabetic());
        end.map_or(part, |end| &part[end + 1..])
    });
    let text = parts.collect::<Vec<_>>().join(" ");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Live, through a pipe to tshark.
fn each_point_has_each_packet(network: &Network) {
    let (pod, peer) = (network.pod(0, 0), network.pod(1, 0));
    let filter = pod.ipv4.to_string();
    let points = "ingress,decap,egress,dropped";
    let arguments = [
        "capture", "-w", "-", "--point", points, "icmp", "and", "host", &filter,
    ];
    let mut capture = Running::podway(network.agent(0), &arguments);
    let mut packets = capture.0.stdout.take().unwrap();
    // It is armed when the file has begun.
    let mut first = [0; 4];
    packets.read_exact(&mut first).unwrap();
    let mut command = tshark(&[
        "frame.interface_name",
        "frame.interface_description",
        "frame.packet_flags_direction",
        "frame.protocols",
        "frame.len",
    ]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut shark = Running(spawn(&mut command).unwrap());
    let mut input = shark.0.stdin.take().unwrap();
    let copying = std::thread::spawn(move || {
        input.write_all(&first).unwrap();
        std::io::copy(&mut packets, &mut input).unwrap();
    });
    ping_all(&pod.netns, peer.ipv4.into(), 56, PINGS);
    let lines = lines(&mut shark);
    // While it still runs: each ping is at two points, each answer at three.
    let lines: Vec<String> = std::iter::from_fn(|| lines.recv_timeout(PATIENCE).ok())
        .take(5 * usize::from(PINGS))
        .collect();
    capture.signal(Signal::INT);
    capture.ends(|| ());
    copying.join().unwrap();
    shark.ends(|| ());

    let mut seen: BTreeMap<&str, u16> = BTreeMap::new();
    lines
        .iter()
        .for_each(|line| *seen.entry(line).or_default() += 1);
    let (veth, plain, tunnel) = (
        pod.host_interface.as_str(),
        "eth:ethertype:ip:icmp:data",
        "eth:ethertype:ip:udp:vxlan:eth:ethertype:ip:icmp:data",
    );
    // 56 bytes behind ICMP, IPv4 and Ethernet headers; in a tunnel 50 more.
    let expected: BTreeMap<String, u16> = [
        (veth, "ingress", 1, plain, 98),
        (UPLINK, "egress", 2, tunnel, 148),
        (UPLINK, "ingress", 1, tunnel, 148),
        (UPLINK, "decap", 1, plain, 98),
        (veth, "egress", 2, plain, 98),
    ]
    .into_iter()
    .map(|(port, point, direction, protocols, length)| {
        let line = format!("{port}\t{point}\t{direction:#010x}\t{protocols}\t{length}");
        (line, PINGS)
    })
    .collect();
    let expected: BTreeMap<&str, u16> = expected.iter().map(|(k, v)| (k.as_str(), *v)).collect();
    assert_eq!(seen, expected);
}

/// No packet comes any more, so that nothing is written that would find the pipe broken.
fn a_capture_ends_with_its_reader(network: &Network) {
    let arguments = ["capture", "-w", "-", "host", "203.0.113.77"];
    let mut capture = Running::podway(network.agent(0), &arguments);
    let mut out = capture.0.stdout.take().unwrap();
    out.read_exact(&mut [0; 4]).unwrap();
    drop(out);
    capture.ends(|| ());
}

/// What is traced is written line by line, so that a pipe is found broken by the next packet.
fn a_trace_ends_with_its_reader_while_packets_pass(network: &Network) {
    let (pod, peer) = (network.pod(0, 0), network.pod(1, 0));
    let mut trace = Running::podway(network.agent(0), &["trace", "live", "icmp"]);
    drop(trace.0.stdout.take());
    trace.ends(|| ping_all(&pod.netns, peer.ipv4.into(), 56, 1));
}

/// A packet to a pod of node 1 in a tunnel from an address of the underlay that nobody has.
fn of_a_stranger(network: &Network, source_port: u16) -> Vec<u8> {
    let (here, there) = (network.node(0), network.node(1));
    let (pod, peer) = (network.pod(0, 0), network.pod(1, 0));
    let mut stranger = there.underlay.octets();
    stranger[3] = 77;
    let vtep = |node: &podway_bench::topology::Node| derived_vtep_mac(node.underlay.into()).0;
    let (mut frame, mut inner) = (Vec::new(), vec![8, 0, 0, 0, 0, 0, 1, 0]);
    PacketBuilder::ethernet2(vtep(there), vtep(here))
        .ipv4(peer.ipv4.octets(), pod.ipv4.octets(), 64)
        .udp(source_port, 9)
        .write(&mut inner, &[0xa5; 64])
        .unwrap();
    let (from, to) = (mac_of(&there.netns, UPLINK), mac_of(&here.netns, UPLINK));
    PacketBuilder::ethernet2(from.0, to.0)
        .ipv4(stranger, here.underlay.octets(), 64)
        .udp(50_000, 4789)
        .write(&mut frame, &inner)
        .unwrap();
    frame
}

fn a_drop_has_its_reason(network: &Network) {
    const COUNT: usize = 3;
    let (here, there) = (network.node(0), network.node(1));
    let peer = network.pod(1, 0);
    let file = here.directory.join("drops.pcapng");
    let path = file.to_str().unwrap();
    let count = COUNT.to_string();
    let mut arguments = vec![
        "capture", "-w", path, "--point", "dropped", "--count", &count,
    ];
    let filter = format!("src {} and reason unknown_vtep and vni 1", peer.ipv4);
    arguments.extend(filter.split(' '));
    let capture = Running::podway(network.agent(0), &arguments);
    wait_until("the capture is armed", PATIENCE, || {
        let length = fs::metadata(&file).map_or(0, |file| file.len());
        (length > 0)
            .then_some(())
            .ok_or_else(|| "no file".to_owned())
    })
    .unwrap();
    let frame = of_a_stranger(network, 40_000);
    let before = network.counters();
    for _ in 0..COUNT {
        send_raw(&there.netns, UPLINK, &frame).unwrap();
    }
    capture.finish();
    let after = network.counters();
    let delta = Delta {
        before: &before[0],
        after: &after[0],
    };
    assert_eq!(delta.drops(), [("unknown_vtep".to_owned(), 3)].into());
    let seen = dissect(
        &file,
        &["frame.interface_name", "frame.comment", "frame.len"],
    );
    assert_eq!(seen.len(), COUNT);
    // The file has ended with the statistics of its one interface.
    let told = run(Command::new("capinfos").arg("-I").arg(&file)).unwrap();
    for line in [
        "Number of interfaces in file: 1\n",
        "Number of stat entries = 1\n",
        &format!("Number of packets = {COUNT}\n"),
    ] {
        assert!(told.contains(line), "{line}: {told}");
    }
    for line in seen {
        let begin = format!("{UPLINK}\tdropped: unknown_vtep, worker ");
        assert!(line.starts_with(&begin), "{line}");
        assert!(line.ends_with(&format!("\t{}", frame.len())), "{line}");
    }
}

/// On the node that sends it and on the one that receives it.
fn a_flow_is_traced(network: &Network) {
    let (pod, peer) = (network.pod(0, 0), network.pod(1, 0));
    let (here, there) = (network.node(0), network.node(1));
    let filter = format!("udp dst port 4242 and host {}", peer.ipv4);
    let arguments: Vec<&str> = "trace live --count 1"
        .split(' ')
        .chain(filter.split(' '))
        .collect();
    let traces = [0, 1].map(|node| Running::podway(network.agent(node), &arguments));
    let target = SocketAddr::from((peer.ipv4, 4242));
    let [sent, received] = traces.map(|mut trace| {
        // It says nothing before the first packet, so one comes again and again.
        trace.ends(|| {
            let sending = pod.netns.thread(move || {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.send_to(b"hello", target).unwrap();
                Ok(())
            });
            join(sending).unwrap();
        });
        let text = String::from_utf8(trace.finish()).unwrap();
        let steps: Vec<String> = text.lines().map(str::to_owned).collect();
        let begin = format!("{}:4242 udp", peer.ipv4);
        assert!(steps[0].ends_with(&begin), "{text}");
        steps
    });
    let came = |steps: &[String], port: &str, bytes: u16| {
        let (begin, end) = (
            format!("  came     by {port} ("),
            format!(", {bytes} bytes"),
        );
        let step = &steps[1];
        assert!(step.starts_with(&begin) && step.ends_with(&end), "{step}");
    };
    // 5 bytes, UDP 8, IPv4 20, Ethernet 14, and a tunnel's 50.
    came(&sent, &pod.host_interface, 47);
    came(&received, UPLINK, 97);
    let uplink = mac_of(&there.netns, UPLINK);
    assert_eq!(
        sent[2..],
        [
            format!("  route    {} via {}", there.pod_cidr(), there.name),
            format!(
                "  goes to  {} ({}) by VXLAN, VNI 1",
                there.name, there.underlay
            ),
            format!("  sent     by {UPLINK} to {uplink}, 97 bytes"),
        ]
    );
    let port = &peer.host_interface;
    assert_eq!(
        received[2..],
        [
            format!(
                "  decap    VNI 1, from {} ({}), 47 bytes inside",
                here.name, here.underlay
            ),
            format!("  route    {}/32 dev {port}", peer.ipv4),
            format!("  goes to  the pod ({})", peer.mac),
            format!("  sent     by {port} to {}, 47 bytes", peer.mac),
        ]
    );
}

/// More packets than the rings have room for, with time to read them.
fn a_moderate_rate_is_traced_without_loss(network: &Network) {
    let (pod, peer) = (network.pod(0, 0), network.pod(1, 0));
    let datagrams = Datagrams {
        size: 100,
        count: MANY / ROUNDS,
        window: 32,
    };
    let filter = "--json trace live --checksums udp and dst port 7001";
    let filter: Vec<&str> = filter.split(' ').collect();
    let mut trace = Running::podway(network.agent(0), &filter);
    let lines = lines(&mut trace);
    let warm = Datagrams {
        count: 1,
        ..datagrams
    };
    wait_until("a packet is traced", PATIENCE, || {
        warm.arriving(&pod.netns, &peer.netns, peer.ipv6.into());
        lines.try_recv().map_err(|error| error.to_string())
    })
    .unwrap();

    for _ in 0..ROUNDS {
        let arrived = datagrams.arriving(&pod.netns, &peer.netns, peer.ipv4.into());
        assert_eq!(arrived, datagrams.count);
        std::thread::sleep(PACE);
    }
    trace.signal(Signal::INT);
    let mut traced = 0;
    let mut lost = None;
    for packet in lines.iter().map(|line| parsed(&line)) {
        if is_a(&packet, "trace-end") {
            lost = packet["lost"].as_u64();
            continue;
        }
        let records = packet["records"].as_array().unwrap();
        if records[0]["flow"]["destination"] != peer.ipv4.to_string() {
            continue;
        }
        let points: Vec<_> = records.iter().map(|record| &record["point"]).collect();
        assert_eq!(points, ["ingress", "egress"], "{packet}");
        let route = &records[1]["route"]["prefix"];
        assert_eq!(*route, network.node(1).pod_cidr(), "{packet}");
        assert_eq!(packet.get("wrong_checksum"), None, "{packet}");
        traced += 1;
    }
    assert_eq!((traced, lost), (MANY, Some(0)));
    trace.ends(|| ());
}

/// Neither by those that senders leave to their kernels, nor by any that were finished on the way.
fn right_checksums_are_not_called_wrong(network: &Network) {
    let (pod, peer) = (network.pod(0, 0), network.pod(1, 0));
    let arguments = ["capture", "--checksums", "--point", "ingress,decap"];
    for node in [0, 1] {
        let mut capture = Running::podway(network.agent(node), &arguments);
        let lines = lines(&mut capture);
        wait_until("packets are seen", PATIENCE, || {
            ping_all(&pod.netns, peer.ipv4.into(), 57, 1);
            lines.try_recv().map_err(|error| error.to_string())
        })
        .unwrap();
        for address in [peer.ipv4.into(), peer.ipv6.into()] {
            ping_all(&pod.netns, address, 57, 1);
            assert_eq!(tcp(&pod.netns, &peer.netns, address, 5000), (5000, 5000));
            let datagrams = Datagrams {
                size: 99,
                count: 3,
                window: 3,
            };
            assert_eq!(datagrams.arriving(&pod.netns, &peer.netns, address), 3);
        }
        capture.signal(Signal::INT);
        let lines: Vec<String> = lines.iter().collect();
        for protocol in [" icmp, ", " icmpv6, ", " tcp, ", " udp, "] {
            let of = lines.iter().filter(|line| line.contains(protocol));
            assert!(of.count() > 1, "{lines:#?}");
        }
        let wrong = lines.iter().find(|line| line.contains("wrong"));
        assert_eq!(wrong, None);
        capture.ends(|| ());
    }
}

fn a_slow_reader_loses_records_only(network: &Network) {
    let (pod, peer) = (network.pod(0, 0), network.pod(1, 0));
    let mut client = dataplane(network.agent(0));
    let filter = format!("udp and greater 100 and interface {UPLINK}");
    begin(&mut client, &filter).unwrap();
    let datagrams = Datagrams {
        size: 100,
        count: MANY,
        window: 64,
    };
    let before = network.counters();
    let arrived = datagrams.arriving(&pod.netns, &peer.netns, peer.ipv4.into());
    assert_eq!((arrived, network.lost_since(&before)), (MANY, 0));
    client.call(&Request::WatchEnd).unwrap();
    let mut read = 0;
    let lost = loop {
        let Ok(Response::Watched(watched)) = client.call(&Request::WatchRead) else {
            panic!("no records");
        };
        read += watched.records.len() as u64;
        if watched.done {
            break watched.lost;
        }
    };
    assert!(read > 1000 && lost > 1000, "{read} read, {lost} lost");
    assert_eq!(read + lost, 2 * u64::from(MANY));
}

fn a_watch_ends_with_its_connection(network: &Network) {
    let agent = network.agent(0);
    let code = |result: Result<(), ClientError>| match result {
        Err(ClientError::Refused(error)) => Some(error.code),
        Err(error) => panic!("{error}"),
        Ok(()) => None,
    };
    let mut one = dataplane(agent);
    assert_eq!(
        code(one.call(&Request::WatchRead).map(drop)),
        Some(ErrorCode::Invalid)
    );
    assert_eq!(code(begin(&mut one, "host x")), Some(ErrorCode::Invalid));
    let mut clients: Vec<_> = (0..MAX_WATCHES).map(|_| dataplane(agent)).collect();
    for client in &mut clients {
        begin(client, "").unwrap();
    }
    assert_eq!(code(begin(&mut clients[0], "")), Some(ErrorCode::Busy));
    assert_eq!(code(begin(&mut one, "")), Some(ErrorCode::Busy));
    clients.pop();
    wait_until(
        "the watch of a closed connection has ended",
        PATIENCE,
        || {
            let refused = code(begin(&mut one, ""));
            refused.map_or(Ok(()), |code| Err(format!("{code:?}")))
        },
    )
    .unwrap();
    // Traffic goes on, watched four times or not at all.
    ping_all(
        &network.pod(0, 0).netns,
        network.pod(1, 0).ipv4.into(),
        56,
        PINGS,
    );
    drop(clients);
}
