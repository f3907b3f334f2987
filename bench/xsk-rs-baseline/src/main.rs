//! The plainest VXLAN forwarder on the crate `xsk-rs`: what Podway's own ring layer is measured
//! against. README.md says what it is and what it is not.

mod port;
mod vxlan;

use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{error, io};

use clap::Parser;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};

use crate::port::Port;
use crate::vxlan::{Mac, Tunnel};

/// A signal that comes just before the wait begins is seen after this long at the latest.
const WAIT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// Carries the Ethernet frames of one pod interface through VXLAN to one other node.
///
/// Takes every frame of queue 0 of both interfaces, until SIGTERM or SIGINT. SIGUSR1 prints the
/// counters as one line of "name=value" words.
#[derive(Debug, Parser)]
struct Args {
    /// The node's end of the pod's veth.
    #[arg(long)]
    pod_interface: String,
    /// Interface towards the other node.
    #[arg(long)]
    uplink: String,
    /// Own VTEP address.
    #[arg(long)]
    local_ip: Ipv4Addr,
    /// MAC of the own uplink.
    #[arg(long)]
    local_mac: Mac,
    /// The other node's VTEP address.
    #[arg(long)]
    peer_ip: Ipv4Addr,
    /// MAC of the other node's uplink.
    #[arg(long)]
    peer_mac: Mac,
    /// VXLAN network identifier, 24 bits.
    #[arg(long, value_parser = clap::value_parser!(u32).range(..1 << 24))]
    vni: u32,
    /// UDP port of the tunnel.
    #[arg(long, default_value_t = 4789)]
    udp_port: u16,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xsk-rs-baseline: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Box<dyn error::Error>> {
    let (stop, report) = (Arc::new(AtomicBool::new(false)), Arc::default());
    for signal in [SIGTERM, SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    signal_hook::flag::register(SIGUSR1, Arc::clone(&report))?;

    let tunnel = Tunnel::new(
        (args.local_mac, args.local_ip),
        (args.peer_mac, args.peer_ip),
        args.udp_port,
        args.vni,
    );
    let mut pod = Port::open(&args.pod_interface)?;
    let mut uplink = Port::open(&args.uplink)?;
    println!("ready");
    while !stop.load(Ordering::Relaxed) {
        if report.swap(false, Ordering::Relaxed) {
            println!("{} {}", pod.counters("pod")?, uplink.counters("uplink")?);
        }
        let encapsulated = pod.forward(&mut uplink, |frame| tunnel.encap(frame))?;
        let decapsulated = uplink.forward(&mut pod, |frame| tunnel.decap(frame))?;
        if encapsulated + decapsulated == 0 {
            wait(&pod, &uplink)?;
        }
    }
    Ok(())
}

/// Sleeps until a frame arrives on either port, or a signal.
fn wait(pod: &Port, uplink: &Port) -> io::Result<()> {
    let mut fds = [pod, uplink].map(|port| PollFd::from_borrowed_fd(port.fd(), PollFlags::IN));
    match poll(&mut fds, Some(&WAIT)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
