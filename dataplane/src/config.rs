//! From the configuration file and the command line to validated values. Behind this point no
//! value is out of range.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use podway_proto::config::{
    Config as File, DEFAULT_PATH, IngressChoice, OutOfRange, WaitMode, XdpModeChoice,
};

use crate::wire::flow_hash::SourcePorts;

/// What `podway-dataplane` runs with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Directory of the socket.
    pub run_dir: PathBuf,
    /// The CPU of each worker; `None`: not pinned.
    pub workers: Vec<Option<usize>>,
    /// What a worker does when there is nothing to do.
    pub wait: WaitMode,
    /// How long adaptive mode spins.
    pub spin: Duration,
    /// How long adaptive mode dozes at high rates; zero: never.
    pub doze: Duration,
    /// How long CPUs may take to wake up.
    pub cpu_latency: Option<Duration>,
    /// Frames per worker.
    pub frames: u32,
    /// Entries of each ring.
    pub ring_size: u32,
    /// How workers receive from ports.
    pub ingress: IngressChoice,
    /// Outer source ports of tunnels.
    pub source_ports: SourcePorts,
    /// Where the XDP program runs on pod ports.
    pub pod_xdp_mode: XdpModeChoice,
    /// Where the XDP program runs on uplinks.
    pub uplink_xdp_mode: XdpModeChoice,
}

/// A value of the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}; pass an existing file with --config", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is not TOML of the right shape. The parser names line and column.
    #[error("{} is not a valid configuration: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        source: Box<toml::de::Error>,
    },
    /// A field has a value out of its range.
    #[error(transparent)]
    Range(#[from] OutOfRange),
}

impl Config {
    /// Reads and validates `file`, or the default file if it is there and `file` is `None`.
    ///
    /// # Errors
    /// A [`ConfigError`] that names the file, the field and what to write instead.
    pub fn load(file: Option<&Path>, run_dir: &Path) -> Result<Self, ConfigError> {
        Self::load_or(file, Path::new(DEFAULT_PATH), run_dir)
    }

    fn load_or(file: Option<&Path>, default: &Path, run_dir: &Path) -> Result<Self, ConfigError> {
        let read = match read(file.unwrap_or(default)) {
            Err(ConfigError::Read { source, .. })
                if file.is_none() && source.kind() == ErrorKind::NotFound =>
            {
                File::default()
            }
            read => read?,
        };
        Self::validate(&read, run_dir)
    }

    fn validate(file: &File, run_dir: &Path) -> Result<Self, ConfigError> {
        let section = &file.dataplane;
        section.check()?;
        let (workers, cores) = (section.workers, &section.cores);
        let available: Vec<usize> = core_affinity::get_core_ids()
            .unwrap_or_default()
            .iter()
            .map(|core| core.id)
            .collect();
        if let Some(core) = cores.iter().find(|core| !available.contains(core)) {
            let remedy = format!("this process may run on {available:?}");
            return Err(OutOfRange::new("cores", core, remedy).into());
        }
        let source_ports = SourcePorts::new(section.source_ports)
            .unwrap_or_else(|| unreachable!("it was checked to be a power of two in range"));
        Ok(Self {
            run_dir: run_dir.to_owned(),
            workers: (0..usize::from(workers))
                .map(|n| cores.get(n).copied())
                .collect(),
            wait: section.wait,
            spin: Duration::from_micros(section.spin_microseconds.into()),
            doze: Duration::from_micros(section.doze_microseconds.into()),
            cpu_latency: section
                .cpu_latency_microseconds
                .map(|latency| Duration::from_micros(latency.into())),
            frames: section.frames,
            ring_size: section.ring_size,
            ingress: section.ingress,
            source_ports,
            pod_xdp_mode: section.pod_xdp_mode,
            uplink_xdp_mode: section.uplink_xdp_mode,
        })
    }
}

fn read(path: &Path) -> Result<File, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    toml::from_str(&text).map_err(|source| ConfigError::Parse {
        path: path.to_owned(),
        source: Box::new(source),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("podway.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(Some(&path), Path::new("/run/podway"))
    }

    #[test]
    fn nothing_gives_the_defaults() {
        let config = load("").unwrap();
        assert_eq!(config.workers, [None]);
        assert_eq!(config.wait, WaitMode::Adaptive);
        assert_eq!(config.cpu_latency, None);
    }

    #[test]
    fn the_default_file_counts_where_none_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let default = directory.path().join("podway.toml");
        let run_dir = Path::new("/run/podway");
        let load_default = || Config::load_or(None, &default, run_dir);
        assert_eq!(load_default().unwrap(), load("").unwrap(), "there is none");
        std::fs::write(&default, "[dataplane]\nworkers = 2\n").unwrap();
        assert_eq!(load_default().unwrap().workers, [None, None]);
        let other = directory.path().join("other.toml");
        std::fs::write(&other, "").unwrap();
        let named = Config::load_or(Some(&other), &default, run_dir);
        assert_eq!(named.unwrap(), load("").unwrap());
        std::fs::write(&default, "workers = 2\n").unwrap();
        let error = load_default().unwrap_err().to_string();
        assert!(error.contains("podway.toml is not a valid"), "{error}");
    }

    #[test]
    fn values_arrive() {
        let config = load(
            "vni = 7\n[dataplane]\nworkers = 2\ncores = [0, 0]\nwait = \"sleep\"\nring-size = 256\n\
             cpu-latency-microseconds = 0",
        )
        .unwrap();
        assert_eq!(config.cpu_latency, Some(Duration::ZERO));
        assert_eq!(config.workers, [Some(0), Some(0)]);
        assert_eq!((config.wait, config.ring_size), (WaitMode::Sleep, 256));
    }

    #[test]
    fn a_bad_value_is_named_with_its_remedy() {
        for (text, expected) in [
            ("workers = 0", "dataplane.workers = 0: use 1 to 64"),
            (
                "cores = [0, 1]",
                "dataplane.cores = [0, 1]: name one core for each of 1 workers",
            ),
            (
                "cores = [4095]",
                "dataplane.cores = 4095: this process may run on ",
            ),
            ("frames = 10", "dataplane.frames = 10: use 1024 to 1048575"),
            (
                "ring-size = 300",
                "dataplane.ring-size = 300: use a power of two from 64 to 16384",
            ),
            (
                "spin-microseconds = 100001",
                "dataplane.spin-microseconds = 100001: use up to",
            ),
            (
                "cpu-latency-microseconds = 1000001",
                "dataplane.cpu-latency-microseconds = 1000001: use up to 1000000",
            ),
            (
                "source-ports = 100",
                "dataplane.source-ports = 100: use a power of two from 2 to 16384",
            ),
            ("wait = \"often\"", "unknown variant `often`"),
            ("colour = 1", "unknown field `colour`"),
        ] {
            let error = load(&format!("[dataplane]\n{text}"))
                .unwrap_err()
                .to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Config::load(Some(Path::new("/nonexistent.toml")), Path::new("/run"));
        assert!(
            error
                .unwrap_err()
                .to_string()
                .starts_with("cannot read /nonexistent.toml: ")
        );
    }
}
