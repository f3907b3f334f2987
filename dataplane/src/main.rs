//! `podway-dataplane`: moves the pod packets of one node.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use mio::net::UnixStream;
use podway_dataplane::api;
use podway_dataplane::config::Config;
use podway_dataplane::supervisor::Supervisor;
use podway_proto::log::{self, LogFormat};

/// Moves the pod packets of one node between its pods and other nodes, natively or through VXLAN.
///
/// Ports are received by a TAP and a ring in memory per worker; by AF_XDP sockets where the driver
/// needs no copy for them, or where the configuration says so.
///
/// It starts with nothing attached; podway-control tells it what to do over the socket
/// dataplane.sock in the run directory. When it ends, the kernel has the packets.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Directory of the socket; one per node
    #[arg(long, value_name = "DIR", default_value = podway_proto::DEFAULT_RUN_DIR)]
    run_dir: PathBuf,
    /// Configuration file, whose [dataplane] section counts here; /etc/podway/podway.toml by default,
    /// if it is there
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What is logged: a level, or directives such as warn,podway_dataplane=debug; `podway log`
    /// changes it. By default what the variable PODWAY_LOG or RUST_LOG says, or info
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,
    /// The form of a line of the log: human or json
    #[arg(long, value_name = "FORMAT", default_value = "human")]
    log_format: LogFormat,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let directives = log::directives(arguments.log.as_deref());
    if let Err(error) = log::start(&directives, arguments.log_format) {
        eprintln!("podway-dataplane: {error}");
        return ExitCode::FAILURE;
    }
    let done = run(arguments.config.as_deref(), &arguments.run_dir);
    log::finish();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("podway-dataplane: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: Option<&Path>, run_dir: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let config = Config::load(config, run_dir)?;
    let (signal, sender) = std::os::unix::net::UnixStream::pair()?;
    for number in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::low_level::pipe::register(number, sender.try_clone()?)?;
    }
    signal.set_nonblocking(true)?;
    let signal = UnixStream::from_std(signal);
    let mut supervisor = Supervisor::start(config)?;
    let served = api::serve(&mut supervisor, run_dir, signal);
    supervisor.stop();
    Ok(served?)
}
