//! The daemon `podway-control`: arguments to configuration to loop to orderly stop.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use mio::net::UnixStream;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token};
use podway_proto::log::{self, LogFormat};
use podway_proto::{CONTROL_SOCKET, DATAPLANE_SOCKET, DEFAULT_RUN_DIR};
use rustix::thread::CapabilitySet;

use crate::clients::Clients;
use crate::kernel;
use crate::metrics;
use crate::netfilter::Watch;
use crate::netlink::{Monitor, NOT_WHOLE, Requests};
use crate::nftables::{Rules, nft};
use crate::node::{Listeners, Node};
use crate::observed::Observed;
use crate::path_mtu;
use crate::session::Session;
use crate::settings::Settings;
use crate::store::Store;

const SIGNAL: Token = Token(0);
const MONITOR: Token = Token(1);
const DATAPLANE: Token = Token(2);
const ERRORS: Token = Token(3);
const TABLE: Token = Token(4);
const NETFILTER: Token = Token(5);
const HEALTH: Token = Token(6);
/// The listener's token; the clients' follow.
const CLIENTS: usize = 7;

type Failure = Box<dyn std::error::Error>;

/// Holds the desired state of a node and keeps dataplane and kernel in line with it.
#[derive(Debug, Parser)]
#[command(name = "podway-control", version, long_version = crate::LONG_VERSION)]
pub struct Args {
    /// Directory of the sockets; one per node.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_RUN_DIR)]
    run_dir: PathBuf,
    /// The configuration file; /etc/podway/podway.toml by default, if it is there.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of the state file.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/podway")]
    state_dir: PathBuf,
    /// What is logged: a level, or directives such as warn,podway_control::health=debug; `podway log`
    /// changes it. By default what the variable PODWAY_LOG or RUST_LOG says, or info.
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,
    /// The form of a line of the log: human or json.
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    log_format: LogFormat,
    /// Remove Podway's VXLAN device, routes, neighbours and nftables table from the kernel, and stop.
    #[arg(long)]
    cleanup: bool,
    /// Take up the last good state where the state file is damaged, say which that is, and stop. The
    /// damaged file is kept.
    #[arg(long, conflicts_with = "cleanup")]
    restore_state: bool,
}

impl Args {
    /// Runs the daemon until SIGTERM or SIGINT. Prints why not to standard error.
    pub fn main(self) -> ExitCode {
        let directives = log::directives(self.log.as_deref());
        if let Err(error) = log::start(&directives, self.log_format) {
            eprintln!("podway-control: {error}");
            return ExitCode::FAILURE;
        }
        let done = if self.cleanup {
            cleanup(&self.run_dir)
        } else if self.restore_state {
            restore(&self.state_dir)
        } else {
            run(&self)
        };
        log::finish();
        match done {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("podway-control: {error}");
                ExitCode::FAILURE
            }
        }
    }
}

/// Removes what is ours from the kernel.
fn cleanup(run_dir: &Path) -> Result<(), Failure> {
    require_net_admin()?;
    if std::os::unix::net::UnixStream::connect(run_dir.join(CONTROL_SOCKET)).is_ok() {
        let message = "podway-control is running and would put back what is removed; stop it first";
        return Err(message.into());
    }
    let mut requests = Requests::open()?;
    let (events, whole) = requests.dump_all()?;
    let observed = Observed::from_dump(events);
    let mut errors = kernel::cleanup(&mut requests, &observed);
    if !whole {
        errors.push(format!("{NOT_WHOLE}, so some may be left: try again"));
    }
    errors.extend(nft::remove().err());
    if errors.is_empty() {
        Ok(())
    } else {
        Err(errors.join("\n").into())
    }
}

/// Takes up the last good state.
fn restore(state_dir: &Path) -> Result<(), Failure> {
    let said = Store::restore(state_dir)?;
    writeln!(std::io::stdout(), "{said}")?;
    Ok(())
}

/// Runs the daemon until it is told to stop. What it did to the kernel stays: the kernel is to
/// carry on.
fn run(args: &Args) -> Result<(), Failure> {
    let settings = Settings::load(args.config.as_deref())?;
    require_net_admin()?;
    let mut poll = Poll::new()?;
    // The socket first: its lock keeps a second daemon away from kernel and state file.
    let mut clients = Clients::listen(&args.run_dir, poll.registry(), CLIENTS)?;
    if let Some(address) = settings.metrics {
        metrics::serve(address, args.run_dir.join(CONTROL_SOCKET), clients.tally())?;
    }
    let (store, desired) = Store::open(&args.state_dir)?;
    let monitor = Monitor::open()?;
    let registry = poll.registry();
    registry.register(
        &mut SourceFd(&monitor.as_raw_fd()),
        MONITOR,
        Interest::READABLE,
    )?;
    let errors = listen_for_errors(registry)?;
    let table = nft::Keeper::start(Rules::wanted(&settings))?;
    if let Some(fd) = table.fd() {
        registry.register(&mut SourceFd(&fd), TABLE, Interest::READABLE)?;
    }
    let netfilter = Watch::start(Instant::now());
    if let Some(fd) = netfilter.fd() {
        registry.register(&mut SourceFd(&fd), NETFILTER, Interest::READABLE)?;
    }
    let session = Session::new(args.run_dir.join(DATAPLANE_SOCKET), DATAPLANE);
    let mut signal = stop_signal()?;
    registry.register(&mut signal, SIGNAL, Interest::READABLE)?;
    let listeners = Listeners {
        monitor,
        errors,
        table,
        netfilter,
    };
    let mut node = Node::start(settings, desired, store, listeners, session)?;
    node.probe_others(HEALTH);
    tracing::info!(run_dir = %args.run_dir.display(), node = node.name(), "ready");

    let mut events = Events::with_capacity(128);
    let mut more_requests = false;
    loop {
        let untold = log::tell_suppressed(Instant::now());
        let timeout = if more_requests {
            Some(Duration::ZERO)
        } else {
            timeout(node.deadline().into_iter().chain(untold).min())
        };
        let idle = Instant::now();
        match poll.poll(&mut events, timeout) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            result => result?,
        }
        for event in &events {
            match event.token() {
                SIGNAL => {
                    tracing::info!("stopping; the kernel carries on");
                    return Ok(());
                }
                MONITOR | DATAPLANE | ERRORS | TABLE | NETFILTER | HEALTH => {}
                client => clients.ready(client, poll.registry()),
            }
        }
        // One round: what the kernel tells, what clients ask, what follows from both. Other nodes
        // measure how soon they are answered.
        node.follow_health(idle);
        node.follow_kernel();
        node.follow_errors();
        let tasks = clients.take_tasks();
        for (client, response) in node.handle(tasks, poll.registry(), Instant::now()) {
            clients.respond(client, &response);
        }
        more_requests = clients.flush(poll.registry());
        node.tidy();
    }
}

/// Begins to listen to routers that say that packets are too large. Without it tunnels still work
/// where every link carries what the uplink does.
fn listen_for_errors(registry: &Registry) -> std::io::Result<Option<path_mtu::Errors>> {
    let errors = match path_mtu::Errors::listen() {
        Ok(errors) => errors,
        Err(error) => {
            tracing::warn!(
                "cannot listen to ICMP errors: {error}; a link between nodes with a smaller MTU is \
                 not noticed; give podway-control CAP_NET_RAW"
            );
            return Ok(None);
        }
    };
    for fd in errors.fds() {
        registry.register(&mut SourceFd(&fd), ERRORS, Interest::READABLE)?;
    }
    Ok(Some(errors))
}

/// Refuses to go on where no change of links, routes and neighbours would be let through.
fn require_net_admin() -> Result<(), Failure> {
    let effective = rustix::thread::capabilities(None)?.effective;
    if effective.contains(CapabilitySet::NET_ADMIN) {
        return Ok(());
    }
    let message = "the capability CAP_NET_ADMIN is missing, and without it the kernel's routes, \
                   neighbours and VXLAN device cannot be changed; run as root, or give the unit \
                   AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW";
    Err(message.into())
}

fn timeout(deadline: Option<Instant>) -> Option<Duration> {
    // A millisecond more: the system call rounds down, and waking early means waking twice.
    let left = |at: Instant| at.saturating_duration_since(Instant::now());
    deadline.map(|at| left(at) + Duration::from_millis(1))
}

/// Becomes readable when the process is told to stop.
fn stop_signal() -> std::io::Result<UnixStream> {
    let (reader, writer) = std::os::unix::net::UnixStream::pair()?;
    for signal in [libc::SIGTERM, libc::SIGINT] {
        signal_hook::low_level::pipe::register(signal, writer.try_clone()?)?;
    }
    reader.set_nonblocking(true)?;
    Ok(UnixStream::from_std(reader))
}
