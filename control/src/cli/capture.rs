//! `podway capture`: packets as they pass through the dataplane, to a pcapng file or as lines.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use podway_proto::codec;
use podway_proto::dataplane::Response;
use podway_proto::watch::{MAX_SNAP, WatchPoint, WatchSpec, Watched};

use super::stream::Stream;
use super::{Failure, goes_on, private};
use crate::checksum;
use crate::pcapng::PcapngWriter;
use crate::show;
use crate::watch::Reach;

pub(super) const EXAMPLES: &str = "\
The filter is pcap's: host, net, port and portrange, each with src or dst before it; tcp, udp, icmp,
icmp6, ip, ip6, proto N; greater N, less N; and beside it vni N, reason NAME and interface NAME; and,
or, not and parentheses. Addresses and ports are those of the pods' packets, inside the tunnel.

What the programs on the ports leave to the kernel never gets here: see it with tcpdump on the port.
docs/watching.md says more.

Examples:
  podway capture host 10.0.1.7
  podway capture --point dropped
  podway capture -w out.pcapng --count 1000 tcp port 5201 or 5202
  podway capture -w - udp | tshark -r -";

/// Which packets, where, and for how long.
#[derive(Debug, Args)]
pub(super) struct Capture {
    /// Write pcapng to this file; `-` is standard output. Without it a line is printed for each packet
    /// at each point. A file that is there is replaced by one that its owner alone may read.
    #[arg(short = 'w', long = "write", value_name = "FILE")]
    write: Option<PathBuf>,
    /// Where packets are recorded: ingress (as they came), decap (inside the tunnel that they came by),
    /// egress (as they leave), dropped.
    #[arg(long = "point", value_name = "POINT", value_delimiter = ',',
          default_values_t = [WatchPoint::Ingress, WatchPoint::Egress, WatchPoint::Dropped])]
    points: Vec<WatchPoint>,
    /// Bytes of each packet that are kept; lines have none.
    #[arg(long, value_name = "BYTES", default_value_t = MAX_SNAP)]
    snap: u32,
    /// Lines tell a wrong checksum of TCP, UDP or ICMP at ingress and decap, but for super-frames, which
    /// have none yet, and what is longer than 2048 bytes.
    #[arg(long, conflicts_with = "write")]
    checksums: bool,
    /// End after so many packets, each with all of its records.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after so many seconds.
    #[arg(long, value_name = "S")]
    seconds: Option<u64>,
    /// Record one of so many packets.
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..))]
    sample: u32,
    /// Which packets; all without it.
    #[arg(value_name = "FILTER", trailing_var_arg = true)]
    filter: Vec<String>,
}

/// Where records go.
enum Sink<'o> {
    File(Box<PcapngWriter<Box<dyn Write + 'o>>>),
    Lines(&'o mut dyn Write),
    Documents(&'o mut dyn Write),
}

impl Capture {
    /// Captures until it is over, and tells on standard error how much that was.
    pub(super) fn run(
        self,
        reach: &Reach,
        json: bool,
        out: &mut impl Write,
    ) -> Result<(), Failure> {
        let spec = WatchSpec {
            filter: self.filter.join(" "),
            points: self.points.iter().copied().collect(),
            // Lines have no bytes.
            snap: if self.write.is_some() || json {
                self.snap
            } else {
                checksum::snap(self.checksums)
            },
            sample: self.sample,
            limit: self.count,
        };
        let snap = spec.snap;
        let mut stream = Stream::begin(reach, spec, self.seconds)?;
        let mut sink = match &self.write {
            None if json => Sink::Documents(out),
            None => Sink::Lines(out),
            Some(path) => {
                let file = open(path, out)?;
                match PcapngWriter::new(file, snap) {
                    Ok(mut file) => {
                        goes_on(file.flush())?;
                        Sink::File(Box::new(file))
                    }
                    Err(error) => return goes_on(Err(error)).map(|_| ()),
                }
            }
        };
        let mut records = 0;
        let result = loop {
            match stream.next() {
                Ok(Some(watched)) => {
                    records += watched.records.len();
                    if !goes_on(sink.write(watched))? {
                        break Ok(());
                    }
                }
                Ok(None) => break Ok(()),
                // What has come until now is a whole file yet.
                Err(error) => break Err(error),
            }
        };
        goes_on(sink.finish(stream.lost(), result.is_ok()))?;
        if !json {
            let lost = stream.lost();
            eprintln!("podway: {records} records, {lost} more found no room and are lost");
        }
        result
    }
}

fn open<'o>(path: &Path, out: &'o mut impl Write) -> Result<Box<dyn Write + 'o>, Failure> {
    if path == Path::new("-") {
        return Ok(Box::new(BufWriter::new(out)));
    }
    let file = private::create(path).map_err(|error| {
        let path = path.display();
        Failure::Usage(format!(
            "cannot write {path}: {error}; name a file that may be written"
        ))
    })?;
    Ok(Box::new(BufWriter::new(file)))
}

impl Sink<'_> {
    fn write(&mut self, watched: Watched) -> io::Result<()> {
        match self {
            Self::File(file) => {
                for record in &watched.records {
                    file.add(record)?;
                }
                file.flush()
            }
            Self::Lines(out) => {
                let lines: String = watched.records.iter().map(show::watch::line).collect();
                out.write_all(lines.as_bytes())?;
                out.flush()
            }
            Self::Documents(out) => {
                out.write_all(&codec::encode(&Response::Watched(watched)))?;
                out.flush()
            }
        }
    }

    /// Ends what was written; `whole` says whether it has all that was to be captured.
    fn finish(mut self, lost: u64, whole: bool) -> io::Result<()> {
        match self {
            Self::File(file) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH);
                let now = now.unwrap_or_default().as_nanos();
                file.finish(u64::try_from(now).unwrap_or(u64::MAX), lost)
            }
            Self::Lines(_) => Ok(()),
            Self::Documents(_) if !whole => Ok(()),
            Self::Documents(_) => self.write(Watched {
                records: Vec::new(),
                lost,
                done: true,
            }),
        }
    }
}
