//! `podway-bench`: measures Podway beside the kernel and its peers on networks of its own.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use podway_bench::contender::Contender;
use podway_bench::demo::{Demo, ROWS};
use podway_bench::inspection::Inspection;
use podway_bench::monitoring::Monitoring;
use podway_bench::scale::{MAX_NODES, MAX_ROUTES, Scale};
use podway_bench::suite::{Comparison, Report, Size, Suite, Wire, plan};
use podway_bench::takeover::{Event, Rules, Takeover};
use podway_bench::{Error, Result};

/// Measures Podway beside the kernel and its peers, on nodes and pods in network namespaces of
/// its own.
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
    /// Measure every contender on every wire; write a table, JSON and a picture.
    Run(RunArgs),
    /// Measure full syncs, single changes and memory with many routes and nodes.
    Scale(ScaleArgs),
    /// Measure what ends, hangs and changes of the daemons cost running traffic.
    Takeover(TakeoverArgs),
    /// Measure what it costs a packet that somebody looks inside.
    Inspection(InspectionArgs),
    /// Draw what the dashboard of docs/monitoring shows of a run of its own.
    Monitoring(MonitoringArgs),
    /// Show ratio by ratio whether the intervals of two runs overlap.
    Compare {
        /// JSON of the run before.
        before: PathBuf,
        /// JSON of the run after.
        after: PathBuf,
    },
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
    /// Rows to measure; all by default.
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

/// A row of the demo's table.
#[derive(Debug, Clone, Copy)]
struct RowArg(Contender);

impl ValueEnum for RowArg {
    fn value_variants<'a>() -> &'a [Self] {
        const {
            &[
                RowArg(ROWS[0]),
                RowArg(ROWS[1]),
                RowArg(ROWS[2]),
                RowArg(ROWS[3]),
                RowArg(ROWS[4]),
            ]
        }
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        self.0.to_possible_value()
    }
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Ten minutes: one stream, two packet sizes, five rounds.
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// Everything, without a limit of time.
    #[arg(long)]
    full: bool,
    /// Wires to measure on; all of the size by default.
    #[arg(long, value_enum, value_delimiter = ',')]
    wires: Vec<Wire>,
    /// Contenders to measure; all of the size by default.
    #[arg(long, value_enum, value_delimiter = ',')]
    contenders: Vec<Contender>,
    /// Interleaved rounds; those of the size by default. An interval takes three.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// Seconds of each transfer; those of the size by default.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: Option<u32>,
    /// Where table, JSON and picture are written.
    #[arg(long, value_name = "DIRECTORY", default_value = "target/bench")]
    out: PathBuf,
}

#[derive(Debug, Args)]
struct TakeoverArgs {
    /// Ports of each node, one table each.
    #[arg(
        long,
        value_delimiter = ',',
        default_values_t = [2, 20, 100],
        value_parser = clap::value_parser!(u8).range(2..=110)
    )]
    ports: Vec<u8>,
    /// Rules of the nodes beside Podway's, one table each.
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = [Rules::None])]
    rules: Vec<Rules>,
    /// What happens; everything by default.
    #[arg(long, value_delimiter = ',')]
    events: Vec<Event>,
    /// How often each is measured.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Also write every measured value to a file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct MonitoringArgs {
    /// Seconds of TCP, and then of datagrams.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(5..=3600))]
    seconds: u32,
    /// The dashboard whose panels are drawn.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "docs/monitoring/podway-dashboard.json"
    )]
    dashboard: PathBuf,
    /// Where the picture is written.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "target/bench/dashboard.svg"
    )]
    svg: PathBuf,
}

#[derive(Debug, Args)]
struct InspectionArgs {
    /// Interleaved rounds. An interval takes three.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Seconds of packets in each turn.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Also write every measured value to a file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ScaleArgs {
    /// Numbers of routes, one row each.
    #[arg(
        long,
        value_delimiter = ',',
        default_values_t = [1_000, 100_000, 1_000_000],
        value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_ROUTES))
    )]
    routes: Vec<u32>,
    /// Other nodes.
    #[arg(
        long,
        default_value_t = 5_000,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_NODES))
    )]
    nodes: u32,
    /// Single changes of a route.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(2..))]
    changes: u32,
    /// Also write every measured value to a file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Demo(args) => demo(args),
        Command::Run(args) => suite(args).run(&mut io::stdout()),
        Command::Scale(args) => scale(args),
        Command::Takeover(args) => takeover(args),
        Command::Inspection(args) => inspection(&args),
        Command::Monitoring(args) => monitoring(args),
        Command::Compare { before, after } => compare(&before, &after),
    };
    match result {
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
    let rows: Vec<Contender> = args.only.into_iter().map(|row| row.0).collect();
    Demo {
        nodes: args.nodes,
        seconds: args.seconds,
        rounds: args.rounds,
        contenders: if rows.is_empty() { ROWS.to_vec() } else { rows },
        keep: args.keep,
        json: args.json,
    }
    .run(&mut out)
}

fn suite(args: RunArgs) -> Suite {
    let size = match (args.quick, args.full) {
        (true, _) => Size::Quick,
        (_, true) => Size::Full,
        _ => Size::Medium,
    };
    // Peers that are asked for by name and not there are an error, others are left out.
    let named = |contender| args.contenders.contains(&contender);
    let mut sections = plan(size, |contender| {
        named(contender) || !contender.is_switch() || contender.check_installed().is_ok()
    });
    sections.retain(|section| args.wires.is_empty() || args.wires.contains(&section.wire));
    for section in &mut sections {
        let wanted = &args.contenders;
        section
            .contenders
            .retain(|contender| wanted.is_empty() || wanted.contains(contender));
        section.rounds = args.rounds.unwrap_or(section.rounds);
        section.seconds = args.seconds.unwrap_or(section.seconds);
    }
    sections.retain(|section| !section.contenders.is_empty());
    Suite {
        sections,
        name: size.name().to_owned(),
        directory: args.out,
    }
}

fn takeover(args: TakeoverArgs) -> Result<()> {
    let all = || Event::value_variants().to_vec();
    let takeover = Takeover {
        ports: args.ports,
        rules: args.rules,
        events: if args.events.is_empty() {
            all()
        } else {
            args.events
        },
        rounds: args.rounds,
    };
    write_json(&takeover.run(&mut io::stdout())?, args.json.as_deref())
}

fn scale(args: ScaleArgs) -> Result<()> {
    let scale = Scale {
        routes: args.routes,
        nodes: args.nodes,
        changes: args.changes,
    };
    write_json(&scale.run(&mut io::stdout())?, args.json.as_deref())
}

fn inspection(args: &InspectionArgs) -> Result<()> {
    let inspection = Inspection {
        rounds: args.rounds,
        seconds: args.seconds,
    };
    write_json(&inspection.run(&mut io::stdout())?, args.json.as_deref())
}

fn monitoring(args: MonitoringArgs) -> Result<()> {
    let monitoring = Monitoring {
        seconds: args.seconds,
        dashboard: args.dashboard,
        svg: args.svg,
    };
    monitoring.run(&mut io::stdout())
}

fn write_json(report: &impl serde::Serialize, path: Option<&std::path::Path>) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    let text = serde_json::to_string_pretty(report).map_err(io::Error::from);
    let written = text.and_then(|text| std::fs::write(path, text + "\n"));
    written.map_err(|source| Error::Io {
        what: path.display().to_string(),
        source,
    })
}

fn compare(before: &std::path::Path, after: &std::path::Path) -> Result<()> {
    let comparison = Comparison::new(&Report::read(before)?, &Report::read(after)?);
    let written = write!(io::stdout(), "{comparison}");
    written.map_err(|source| Error::Io {
        what: "print".to_owned(),
        source,
    })
}
