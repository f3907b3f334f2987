//! The command line `podway`: arguments to a request, a response to text or JSON.

mod bundle;
mod capture;
mod counts;
mod doctor;
mod explain;
mod failure;
mod files;
mod flows;
mod generate;
mod load;
mod log;
mod node;
mod overview;
mod perf;
mod port;
mod private;
mod repeat;
mod route;
mod stream;
mod top;
mod trace;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use clap_complete::Shell;
use podway_proto::client::{BulkOptions, Client};
use podway_proto::control::{Request, Response};
use podway_proto::{CONTROL_SOCKET, DEFAULT_RUN_DIR, codec};

use crate::show;
use crate::watch::Reach;
use failure::{Failure, usage};
use files::{ConfigCommand, EXPORT, IMPORT, Import};
use node::NodeCommand;
use port::PortCommand;
use route::RouteCommand;
use trace::TraceCommand;
pub(crate) use trace::explanation;

pub(crate) use doctor::document as doctor_document;

const EXAMPLES: &str = "\
Examples:
  podway node set node-b --underlay 192.168.1.2 --pod-cidr 10.0.1.0/24
  podway port add eth0 --uplink
  podway port add veth-a --pod-ip 10.0.0.2
  podway route add 10.9.0.0/16 via node-b
  podway route get 10.0.1.7
  podway counters --watch

Exit codes:
  0  done
  1  refused, nothing has changed; or the answer could not be written
  2  wrong usage, or a file that cannot be read or is no such file
  3  what was named does not exist
  4  the daemon cannot be reached, or did not answer in time";

/// Tells podway-control what should be, and asks how things are.
#[derive(Debug, Parser)]
#[command(name = "podway", version, long_version = crate::LONG_VERSION, after_help = EXAMPLES)]
pub struct Cli {
    /// Directory of the daemon's socket; one per node.
    #[arg(long, value_name = "DIR", global = true, default_value = DEFAULT_RUN_DIR)]
    run_dir: PathBuf,
    /// The daemon's socket itself, in place of the run directory.
    #[arg(long, value_name = "PATH", global = true)]
    socket: Option<PathBuf>,
    /// Seconds to wait for each answer of the daemon.
    #[arg(long, value_name = "S", global = true, default_value_t = 10,
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    /// Print the daemon's own document, and refusals as one; docs/json.md has their fields.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// How this node is, and what is missing.
    Status(overview::StatusArgs),
    /// A node on a terminal: ports, workers, flows and drops, once a second.
    #[command(after_help = top::HELP)]
    Top,
    /// The nodes of the cluster.
    #[command(subcommand)]
    Node(NodeCommand),
    /// Routes of the overlay.
    #[command(subcommand)]
    Route(RouteCommand),
    /// Interfaces that Podway serves.
    #[command(subcommand)]
    Port(PortCommand),
    /// What was counted: by port, by worker, drops by reason, and the two books.
    #[command(after_help = "\
Examples:
  podway counters
  podway counters --watch")]
    Counters {
        /// Once a second until interrupted, with the rates.
        #[arg(long)]
        watch: bool,
    },
    /// What was dropped, lost or refused: reason, place, count, the last packet's header, and what to do
    /// about it; and likewise what was left to the kernel.
    #[command(after_help = "\
The rate is that of the last ten seconds; with --watch that between two looks. With --json all
reasons are listed, also at 0.

Examples:
  podway drops
  podway drops --all
  podway drops --watch")]
    Drops {
        /// Once a second until interrupted.
        #[arg(long)]
        watch: bool,
        /// Also the reasons that have dropped nothing.
        #[arg(long)]
        all: bool,
    },
    /// Packets as they pass through the dataplane, as lines or as a pcapng file.
    #[command(after_help = capture::EXAMPLES)]
    Capture(capture::Capture),
    /// Who talks to whom through the dataplane, how much, and what becomes of it.
    #[command(after_help = flows::EXAMPLES)]
    Flows(flows::FlowArgs),
    /// What becomes of packets, and why.
    #[command(subcommand)]
    Trace(trace::TraceCommand),
    /// What workers spend their time on, stage by stage, and how full their rings are.
    Perf(perf::Perf),
    /// What a reason to drop, to refuse or to pass means and what to do about it; no daemon is asked.
    #[command(after_help = "\
Examples:
  podway explain
  podway explain no_route")]
    Explain {
        /// Its name; all are listed without it.
        reason: Option<String>,
    },
    /// Check this machine, the daemons where they run and the other nodes that they know.
    #[command(after_help = doctor::EXAMPLES)]
    Doctor(doctor::Doctor),
    /// Write what a report of a bug needs into one archive, without secrets and packets.
    #[command(after_help = bundle::EXAMPLES)]
    Bundle(bundle::Bundle),
    /// Change what the daemons log while they run.
    #[command(after_help = log::EXAMPLES)]
    Log(log::Log),
    /// Write all that was told: nodes, added routes and ports, as a file for `podway import`.
    #[command(after_help = EXPORT)]
    Export,
    /// Bring what `podway export` has written into force, all of it or nothing, and show what
    /// changes.
    #[command(after_help = IMPORT)]
    Import(Import),
    /// The configuration file of a node.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Write completions for a shell to standard output.
    #[command(after_help = "\
Example:
  podway completions bash > /etc/bash_completion.d/podway")]
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write the manual pages into a directory.
    #[command(after_help = "\
Example:
  podway man /usr/local/share/man/man1")]
    Man {
        /// The directory.
        directory: PathBuf,
    },
}

/// Does what the arguments of this process say.
pub fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => cli.run(&mut io::stdout().lock()),
        Err(error) if error.use_stderr() && std::env::args_os().any(|word| word == "--json") => {
            usage(&error).complain(true)
        }
        Err(error) => error.exit(),
    }
}

impl Cli {
    /// Prints the answer to `out`, and why there is none to standard error.
    fn run(self, out: &mut impl Write) -> ExitCode {
        let json = self.json;
        match self.try_run(out) {
            Ok(code) => code,
            Err(failure) => failure.complain(json),
        }
    }

    fn try_run(self, out: &mut impl Write) -> Result<ExitCode, Failure> {
        let socket = self
            .socket
            .clone()
            .unwrap_or_else(|| self.run_dir.join(CONTROL_SOCKET));
        let json = self.json;
        let timeout = Duration::from_secs(self.timeout);
        if let Command::Doctor(doctor) = &self.command {
            let (answer, code) = doctor.run(&socket, timeout, json);
            return print(out, &answer).map(|()| code);
        }
        if let Command::Bundle(bundle) = &self.command {
            let answer = bundle.run(&socket, timeout, json)?;
            return print(out, &answer).map(|()| ExitCode::SUCCESS);
        }
        self.answer(&socket, timeout, out)
            .map(|()| ExitCode::SUCCESS)
    }

    /// Everything whose exit code is that of its failure.
    fn answer(self, socket: &Path, timeout: Duration, out: &mut impl Write) -> Result<(), Failure> {
        let json = self.json;
        let connect = || Client::connect(socket, timeout);
        let dataplane = Reach::new(self.socket.as_deref(), &self.run_dir, timeout);
        let mut client;
        let response = match self.command.by_its_name() {
            Command::Config(ConfigCommand::Check { file }) => {
                return print(out, files::check(&file)?.as_bytes());
            }
            Command::Completions { shell } => return print(out, &generate::completions(shell)),
            Command::Man { directory } => return generate::man(&directory),
            Command::Explain { reason } => {
                return print(out, &explain::explain(reason.as_deref(), json)?);
            }
            Command::Capture(capture) => return capture.run(&dataplane, json, out),
            Command::Flows(flows) => {
                return flows.run(&dataplane, &self.run_dir.join(CONTROL_SOCKET), json, out);
            }
            Command::Trace(TraceCommand::Live(live)) => return live.run(&dataplane, json, out),
            Command::Status(args) if args.verbose => {
                return overview::run(&args, &mut connect()?, json, out);
            }
            Command::Top => return top::run(socket, timeout, json),
            Command::Perf(perf) => return perf.run(&mut connect()?, json, out),
            Command::Counters { watch: true } => {
                return counts::watch_counters(&mut connect()?, json, out);
            }
            Command::Drops { watch: true, all } => {
                return counts::watch_drops(&mut connect()?, all, json, out);
            }
            Command::Drops { watch: false, all } => {
                return counts::drops(&mut connect()?, all, json, out);
            }
            Command::Route(RouteCommand::Load { file, dry_run }) => {
                client = connect()?;
                load::load(&mut client, &file, dry_run)?
            }
            Command::Import(Import {
                file,
                dry_run,
                replace,
            }) => {
                client = connect()?;
                let done = files::import(&mut client, &file, BulkOptions { replace, dry_run })?;
                if let Response::BulkDone(difference) = &done
                    && !json
                {
                    print(out, show::change::lines(difference).as_bytes())?;
                }
                done
            }
            command => {
                let request = command.into_request()?;
                client = connect()?;
                client.call(&request)?
            }
        };
        let text = match &response {
            _ if json => return print(out, &codec::encode(&response)),
            // What the dataplane got for a port is in the status, once for all readers.
            Response::Ports { ports } => show::ports(ports, &client.call(&Request::Status)?),
            _ => show::text(&response),
        };
        print(out, text.as_bytes())
    }
}

/// Writes an answer.
fn print(out: &mut impl Write, answer: &[u8]) -> Result<(), Failure> {
    goes_on(out.write_all(answer).and_then(|()| out.flush())).map(drop)
}

/// Whether somebody still reads. Nobody listens to a broken pipe: `podway counters | head` is no failure.
fn goes_on(written: io::Result<()>) -> Result<bool, Failure> {
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error.into()),
    }
}

impl Command {
    /// The command itself where it was called by another name.
    fn by_its_name(self) -> Self {
        match self {
            Self::Config(ConfigCommand::Export) => Self::Export,
            Self::Config(ConfigCommand::Import(import)) => Self::Import(import),
            other => other,
        }
    }

    fn into_request(self) -> Result<Request, Failure> {
        Ok(match self {
            Self::Status(_) => Request::Status,
            Self::Export => Request::Export,
            Self::Import(_)
            | Self::Capture(_)
            | Self::Flows(_)
            | Self::Trace(TraceCommand::Live(_))
            | Self::Config(_)
            | Self::Completions { .. }
            | Self::Bundle(_)
            | Self::Doctor(_)
            | Self::Explain { .. }
            | Self::Top
            | Self::Perf(_)
            | Self::Man { .. }
            | Self::Route(RouteCommand::Load { .. }) => unreachable!("it is no single request"),
            Self::Counters { .. } => Request::Counters,
            Self::Drops { .. } => Request::Drops,
            Self::Trace(TraceCommand::Packet(packet)) => Request::TracePacket(packet.into()),
            Self::Log(log) => log.into_request(),
            Self::Node(command) => command.into_request(),
            Self::Port(command) => command.into_request(),
            Self::Route(RouteCommand::Add(route)) => Request::RouteAdd(route.into_spec()?),
            Self::Route(RouteCommand::Replace(route)) => Request::RouteReplace(route.into_spec()?),
            Self::Route(RouteCommand::Del { prefix }) => Request::RouteDel { prefix },
            Self::Route(RouteCommand::Show) => Request::RouteShow,
            Self::Route(RouteCommand::Get { address }) => Request::RouteGet { address },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn request(line: &str) -> Request {
        let cli = Cli::try_parse_from(line.split_whitespace()).expect(line);
        cli.command.into_request().expect(line)
    }

    #[test]
    fn arguments_are_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    /// The help of every command that has no commands of its own.
    fn helps(command: &clap::Command, name: &str, found: &mut Vec<(String, String)>) {
        let name = format!("{name}{}", command.get_name());
        let own: Vec<_> = command.get_subcommands().collect();
        if own.is_empty() {
            let help = command.clone().render_long_help().to_string();
            found.push((name, help));
            return;
        }
        for command in own {
            helps(command, &format!("{name} "), found);
        }
    }

    #[test]
    fn every_command_has_an_example_that_is_understood() {
        use clap::CommandFactory;
        let mut found = Vec::new();
        helps(&Cli::command(), "", &mut found);
        assert!(found.len() > 15, "{}", found.len());
        found.push((String::new(), EXAMPLES.to_owned()));
        for (name, help) in found {
            let lines = help
                .lines()
                .filter_map(|line| line.strip_prefix("  podway "));
            let examples: Vec<&str> = lines
                .map(|line| line.split(['>', '|']).next().unwrap())
                .collect();
            let name = match name.as_str() {
                "podway config export" => "podway export",
                "podway config import" => "podway import",
                name => name,
            };
            let is_its_own = |line: &&str| format!("podway {line}").contains(name);
            assert!(examples.iter().any(is_its_own), "{name}: {help}");
            for line in examples {
                let words = std::iter::once("podway").chain(line.split_whitespace());
                assert!(Cli::try_parse_from(words).is_ok(), "{name}: {line}");
            }
        }
    }

    #[test]
    fn export_and_import_have_a_second_name() {
        let command = |line: &str| {
            let cli = Cli::try_parse_from(line.split_whitespace()).expect(line);
            format!("{:?}", cli.command.by_its_name())
        };
        for (name, second) in [
            ("export", "config export"),
            ("import -", "config import -"),
            (
                "import --dry-run --replace a.json",
                "config import --dry-run --replace a.json",
            ),
        ] {
            assert_eq!(
                command(&format!("podway {name}")),
                command(&format!("podway {second}"))
            );
        }
    }
}
