//! Packets are seen on their way: `podway capture` and `podway trace live`, by tshark and by exact
//! counts, and nothing of it costs a packet.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use etherparse::PacketBuilder;
use podway_bench::frames::send_raw;
use podway_bench::netns::{run, spawn, wait_until};
use podway_bench::podway::Agent;
use podway_bench::topology::UPLINK;
use podway_proto::client::{ClientError, DataplaneClient};
use podway_proto::control::derived_vtep_mac;
use podway_proto::dataplane::{Request, Response};
use podway_proto::types::Mode;
use podway_proto::watch::{MAX_SNAP, MAX_WATCHES, WatchPoint, WatchSpec};
use podway_proto::{DATAPLANE_SOCKET, ErrorCode};
use rustix::process::{Pid, Signal, kill_process};

use crate::malformed::mac_of;
use crate::sockets::Datagrams;
use crate::support::{Delta, Network, options, ping_all, spec};

const PINGS: u16 = 5;
/// More records than the ring of a watch and a worker has, at two for each.
const MANY: u32 = 3000;
const PATIENCE: Duration = Duration::from_secs(10);

/// A program that is killed when it is let go.
struct Running(Child);

impl Running {
    fn podway(agent: &Agent, arguments: &[&str]) -> Self {
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
    fn ends(&mut self, mut meanwhile: impl FnMut()) {
        let ended = wait_until("it ends", PATIENCE, || {
            meanwhile();
            let ended = self.0.try_wait().map_err(|error| error.to_string())?;
            ended.ok_or_else(|| "it goes on".to_owned())
        });
        assert!(ended.unwrap().success());
    }

    /// What it has yet to say, after it has ended well.
    fn finish(mut self) -> Vec<u8> {
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

/// By `podway flows`, of which nothing is seen before it has seen a packet.
fn flows_are_added_up(network: &Network) {
    let (pod, peer) = (network.pod(0, 0), network.pod(1, 0));
    let node = &*network.node(1).name;
    let arguments = ["--json", "flows", "--follow", "--node", node];
    let mut flows = Running::podway(network.agent(0), &arguments);
    let lines = lines(&mut flows);
    let parsed = |line: String| serde_json::from_str::<serde_json::Value>(&line).unwrap();
    let armed = wait_until("a flow is told", PATIENCE, || {
        ping_all(&pod.netns, peer.ipv6.into(), 56, 1);
        let line = lines.try_recv().map_err(|error| error.to_string())?;
        Ok(parsed(line))
    });
    assert_eq!(armed.unwrap()["verdict"], "forwarded");

    ping_all(&pod.netns, peer.ipv4.into(), 56, PINGS);
    std::thread::sleep(Duration::from_millis(1100));
    flows.signal(Signal::INT);
    let mut seen: BTreeMap<_, (u64, u64)> = BTreeMap::new();
    for flow in lines.iter().map(parsed) {
        let text = |name: &str| flow[name].as_str().unwrap_or("-").to_owned();
        if text("source").contains(':') {
            continue;
        }
        let number = |name: &str| flow[name].as_u64().unwrap();
        let key = ["source", "came_by", "leaves_by", "node", "verdict"].map(text);
        let sum = seen.entry(key).or_default();
        *sum = (sum.0 + number("packets"), sum.1 + number("bytes"));
    }
    let pings = u64::from(PINGS);
    let key = |source: &str, came_by: &str, leaves_by: &str, node: &str| {
        [source, came_by, leaves_by, node, "forwarded"].map(str::to_owned)
    };
    let (here, there) = (pod.ipv4.to_string(), peer.ipv4.to_string());
    let port = &*pod.host_interface;
    // Ethernet, IPv4, ICMP and 56 bytes; and the outer headers.
    let bytes = 14 + 20 + 8 + 56;
    let expected = BTreeMap::from([
        (
            key(&here, port, UPLINK, node),
            (pings, pings * (50 + bytes)),
        ),
        (key(&there, UPLINK, port, "-"), (pings, pings * bytes)),
    ]);
    assert_eq!(seen, expected);
    flows.ends(|| ());
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

fn a_drop_has_its_reason(network: &Network) {
    const COUNT: usize = 3;
    let (here, there) = (network.node(0), network.node(1));
    let (pod, peer) = (network.pod(0, 0), network.pod(1, 0));
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
    // From an address of the underlay that nobody has.
    let mut stranger = there.underlay.octets();
    stranger[3] = 77;
    let vtep = |node: &podway_bench::topology::Node| derived_vtep_mac(node.underlay.into()).0;
    let (mut frame, mut inner) = (Vec::new(), vec![8, 0, 0, 0, 0, 0, 1, 0]);
    PacketBuilder::ethernet2(vtep(there), vtep(here))
        .ipv4(peer.ipv4.octets(), pod.ipv4.octets(), 64)
        .udp(40_000, 9)
        .write(&mut inner, &[0xa5; 64])
        .unwrap();
    let (from, to) = (mac_of(&there.netns, UPLINK), mac_of(&here.netns, UPLINK));
    PacketBuilder::ethernet2(from.0, to.0)
        .ipv4(stranger, here.underlay.octets(), 64)
        .udp(50_000, 4789)
        .write(&mut frame, &inner)
        .unwrap();
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

fn a_flow_is_traced(network: &Network) {
    let (pod, peer) = (network.pod(0, 0), network.pod(1, 0));
    let filter = format!("udp dst port 4242 and host {}", peer.ipv4);
    let arguments: Vec<&str> = "trace live --count 1"
        .split(' ')
        .chain(filter.split(' '))
        .collect();
    let mut trace = Running::podway(network.agent(0), &arguments);
    let target = SocketAddr::from((peer.ipv4, 4242));
    // It says nothing before the first packet, so one comes again and again.
    trace.ends(|| {
        let sending = pod.netns.thread(move || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.send_to(b"hello", target).unwrap();
            Ok(())
        });
        podway_bench::netns::join(sending).unwrap();
    });
    let text = String::from_utf8(trace.finish()).unwrap();
    let other = network.node(1);
    let [first, came, goes, sent] = text.lines().collect::<Vec<_>>()[..] else {
        panic!("{text}");
    };
    assert!(
        first.ends_with(&format!("{}:4242 udp", peer.ipv4)),
        "{text}"
    );
    assert!(
        came.starts_with(&format!("  came     by {} (", pod.host_interface)),
        "{text}"
    );
    let node = format!(
        "  goes to  {} ({}) by VXLAN, VNI 1",
        other.name, other.underlay
    );
    assert_eq!(goes, node);
    // 5 bytes, UDP 8, IPv4 20, Ethernet 14, and a tunnel's 50.
    assert_eq!(sent, format!("  sent     by {UPLINK}, 97 bytes"));
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
