//! iperf3: throughput.

use std::fs;
use std::net::IpAddr;
use std::process::{Child, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::netns::{Netns, run, spawn, wait_until};
use crate::{Error, Result};

/// iperf3's own port.
const PORT: u16 = 5201;
/// A server listens within milliseconds; a loaded machine may take longer.
const LISTEN_DEADLINE: Duration = Duration::from_secs(5);

/// TCP's congestion control. Set on the socket, whatever the machine's default is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Congestion {
    /// What most machines use.
    Cubic,
    /// Forgives loss.
    Bbr,
}

impl Congestion {
    /// The kernel's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cubic => "cubic",
            Self::Bbr => "bbr",
        }
    }
}

/// Seconds beyond the time of sending after which a run is given up.
const STALL: u32 = 15;

/// What carries the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp(Congestion),
    /// UDP.
    Udp {
        /// Sending rate in bits per second; 0 is as fast as it goes.
        rate: u64,
        /// Payload of each datagram in bytes.
        length: u16,
    },
}

/// A run of iperf3.
#[derive(Debug, Clone)]
pub struct Iperf {
    /// What carries the bytes.
    pub protocol: Protocol,
    /// Parallel streams.
    pub streams: u8,
    /// Whether the server sends.
    pub reverse: bool,
    /// How long to send.
    pub seconds: u32,
}

impl Iperf {
    /// One TCP stream to the server, with cubic.
    pub fn tcp(seconds: u32) -> Self {
        Self {
            protocol: Protocol::Tcp(Congestion::Cubic),
            streams: 1,
            reverse: false,
            seconds,
        }
    }

    /// One UDP stream to the server.
    pub fn udp(seconds: u32, rate: u64, length: u16) -> Self {
        Self {
            protocol: Protocol::Udp { rate, length },
            ..Self::tcp(seconds)
        }
    }

    /// The same run with the server as sender.
    #[must_use]
    pub fn reversed(self) -> Self {
        Self {
            reverse: true,
            ..self
        }
    }
}

/// What iperf3 says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Throughput {
    /// Payload bits per second that arrived.
    pub bits_per_second: f64,
    /// Payload bytes that arrived.
    pub bytes: u64,
    /// TCP segments that were sent again.
    pub retransmits: u64,
    /// UDP datagrams sent.
    pub datagrams: u64,
    /// UDP datagrams lost.
    pub lost: u64,
}

impl Iperf {
    /// Runs a server on one side and a client on the other.
    ///
    /// # Errors
    /// When iperf3 cannot connect or its connection breaks.
    pub fn run(&self, client: &Netns, server: &Netns, address: IpAddr) -> Result<Throughput> {
        let _server = Server::start(server, address)?;
        // A path that stalls in the middle shall be an error as well.
        let mut command = client.command("timeout");
        command.args(["--kill-after=1", &(self.seconds + STALL).to_string()]);
        command.args(["iperf3", "-c", &address.to_string(), "-J", "-i", "0"]);
        command.args([
            "-t",
            &self.seconds.to_string(),
            "-P",
            &self.streams.to_string(),
        ]);
        // A path that carries nothing shall be an error soon, not after two minutes of SYNs.
        command.args(["--connect-timeout", "5000"]);
        match self.protocol {
            Protocol::Tcp(congestion) => command.args(["-C", congestion.name()]),
            Protocol::Udp { rate, length } => {
                command.args(["-u", "-b", &rate.to_string(), "-l", &length.to_string()])
            }
        };
        if self.reverse {
            command.arg("-R");
        }
        match run(&mut command) {
            Ok(text) => parse(&text),
            // With -J it writes its report, the error in it, to standard output.
            Err(Error::Command { stderr, .. }) if stderr.starts_with('{') => parse(&stderr),
            Err(error) => Err(error),
        }
    }
}

/// A server for one test, ready to be connected to.
struct Server(Child);

impl Server {
    fn start(netns: &Netns, address: IpAddr) -> Result<Self> {
        let mut command = netns.command("iperf3");
        command.args([
            "-s",
            "-1",
            "-p",
            &PORT.to_string(),
            "-B",
            &address.to_string(),
        ]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut server = Self(spawn(&mut command)?);
        wait_until("iperf3 listens", LISTEN_DEADLINE, || {
            if let Ok(Some(status)) = server.0.try_wait() {
                return Err(format!("the iperf3 server ended with {status}"));
            }
            let pid = server.0.id();
            let table = |name| fs::read_to_string(format!("/proc/{pid}/net/{name}"));
            let tables = ["tcp", "tcp6"].map(|name| table(name).unwrap_or_default());
            if tables.iter().any(|table| has_listener(table, PORT)) {
                Ok(())
            } else {
                Err("no listening socket".to_owned())
            }
        })?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It ends by itself after its test; it did not if the client never came.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether `/proc/net/tcp` or `tcp6` shows a socket that listens on a port (state 0A).
fn has_listener(table: &str, port: u16) -> bool {
    let local = format!(":{port:04X}");
    table.lines().any(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        matches!(fields[..], [_, address, _, "0A", ..] if address.ends_with(&local))
    })
}

fn parse(text: &str) -> Result<Throughput> {
    let report: Report = serde_json::from_str(text)
        .map_err(|error| Error::Unexpected(format!("iperf3: {error}: {text}")))?;
    if let Some(error) = report.error {
        return Err(Error::Unexpected(format!("iperf3: {error}")));
    }
    let received = report.end.sum_received;
    let sent = report.end.sum_sent;
    let (Some(received), Some(sent)) = (received, sent) else {
        return Err(Error::Unexpected(format!("iperf3 tells no sum: {text}")));
    };
    Ok(Throughput {
        bits_per_second: received.bits_per_second,
        bytes: received.bytes,
        retransmits: sent.retransmits.unwrap_or(0),
        datagrams: received.packets.unwrap_or(0),
        lost: received.lost_packets.unwrap_or(0),
    })
}

#[derive(Deserialize)]
struct Report {
    error: Option<String>,
    #[serde(default)]
    end: End,
}

#[derive(Deserialize, Default)]
struct End {
    sum_sent: Option<Sum>,
    sum_received: Option<Sum>,
}

#[derive(Deserialize)]
struct Sum {
    bytes: u64,
    bits_per_second: f64,
    retransmits: Option<u64>,
    packets: Option<u64>,
    lost_packets: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_of_tcp_is_read() {
        let text = r#"{"start":{},"end":{"streams":[],
            "sum_sent":{"bytes":2290745344,"bits_per_second":18303029056.5,"retransmits":7,"sender":true},
            "sum_received":{"bytes":2289172480,"bits_per_second":18312885392.0,"sender":true}}}"#;
        let throughput = parse(text).unwrap();
        assert_eq!(throughput.bytes, 2_289_172_480);
        assert_eq!(throughput.retransmits, 7);
        assert!((throughput.bits_per_second - 18_312_885_392.0).abs() < 1.0);
    }

    #[test]
    fn a_report_of_udp_is_read() {
        let text = r#"{"end":{"sum_sent":{"bytes":10,"bits_per_second":1.5,"packets":12},
            "sum_received":{"bytes":9,"bits_per_second":1.25,"packets":12,"lost_packets":1}}}"#;
        let throughput = parse(text).unwrap();
        assert_eq!((throughput.datagrams, throughput.lost), (12, 1));
    }

    #[test]
    fn an_error_is_told() {
        let text = r#"{"start":{},"end":{},"error":"unable to connect to server"}"#;
        assert_eq!(
            parse(text).unwrap_err().to_string(),
            "iperf3: unable to connect to server"
        );
    }

    #[test]
    fn a_listening_socket_is_found() {
        let table = "  sl  local_address rem_address   st\n\
            \x20  0: 0A01000A:1451 00000000:0000 0A 00000000:00000000\n\
            \x20  1: 0A01000A:1452 00000000:0000 01 00000000:00000000\n";
        assert!(has_listener(table, 0x1451));
        assert!(!has_listener(table, 0x1452));
    }
}
