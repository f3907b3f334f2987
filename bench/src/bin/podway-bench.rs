//! `podway-bench`: measures Podway beside the kernel on a network of its own.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use podway_bench::contender::Contender;
use podway_bench::demo::Demo;
use podway_bench::{Error, Result};

/// Measures Podway beside the kernel, on nodes and pods in network namespaces of its own.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the article's table: pods on two nodes talk through the kernel and through Podway.
    Demo(DemoArgs),
}

#[derive(Debug, Args)]
struct DemoArgs {
    /// Nodes in the cluster; three are joined by a bridge.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(2..=3))]
    nodes: u8,
    /// Seconds of each iperf3 run.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Interleaved rounds.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Rows to measure; by default all but Open vSwitch's and xsk-rs', which must be installed.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<RowArg>,
    /// Leave the cluster up afterwards, with Podway in charge.
    #[arg(long)]
    keep: bool,
    /// Remove a cluster that was left up, and do nothing else.
    #[arg(long)]
    down: bool,
    /// Also write every measured value to a file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RowArg {
    Hosts,
    KernelVxlan,
    KernelNative,
    PodwayVxlan,
    PodwayNative,
    OvsAfxdp,
    OvsAfxdpNonpmd,
    OvsSystem,
    XskRsBaseline,
}

impl From<RowArg> for Contender {
    fn from(row: RowArg) -> Self {
        match row {
            RowArg::Hosts => Self::Hosts,
            RowArg::KernelVxlan => Self::KernelVxlan,
            RowArg::KernelNative => Self::KernelNative,
            RowArg::PodwayVxlan => Self::PodwayVxlan,
            RowArg::PodwayNative => Self::PodwayNative,
            RowArg::OvsAfxdp => Self::OvsAfxdp,
            RowArg::OvsAfxdpNonpmd => Self::OvsAfxdpNonpmd,
            RowArg::OvsSystem => Self::OvsSystem,
            RowArg::XskRsBaseline => Self::XskRsBaseline,
        }
    }
}

fn main() -> ExitCode {
    let Command::Demo(args) = Cli::parse().command;
    match demo(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "podway-bench: {error}");
            // As shells tell it of a program that SIGINT ended.
            ExitCode::from(if matches!(error, Error::Interrupted) {
                130
            } else {
                1
            })
        }
    }
}

fn demo(args: DemoArgs) -> Result<()> {
    let mut out = io::stdout();
    if args.down {
        return Demo::down(&mut out);
    }
    let rows: Vec<Contender> = args.only.into_iter().map(Into::into).collect();
    Demo {
        nodes: args.nodes,
        seconds: args.seconds,
        rounds: args.rounds,
        contenders: if rows.is_empty() {
            Contender::ALL.to_vec()
        } else {
            rows
        },
        keep: args.keep,
        json: args.json,
    }
    .run(&mut out)
}
