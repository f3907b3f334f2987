//! Fills the facts from the machine. Whatever cannot be had is left out: checks say so.

mod path;
mod pods;
mod proc;
mod programs;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use podway_proto::client::{Client, ClientError};
use podway_proto::config::{Config, DEFAULT_PATH};
use podway_proto::control::{NodeEntry, PortEntry, PortRoleSpec, Request, Response, Status};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::facts::{Configuration, Control, Cpu, Facts, Forwarding, Kernel, Named, Process, Role};
use crate::kernel::is_our_device;
use crate::netlink::{Ethtool, LinkDetails, Requests};
use crate::program;
use crate::settings::{Settings, SettingsError};

/// How long a program of somebody else may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// Time over which stolen time is looked at, at least.
const SAMPLE: Duration = Duration::from_millis(200);

/// Where to look.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// Control's socket.
    pub socket: &'a Path,
    /// How long control may take for each answer.
    pub timeout: Duration,
    /// The configuration file, if it is named.
    pub config: Option<&'a Path>,
}

/// Looks at everything.
pub fn collect(sources: Sources<'_>) -> Facts {
    let begin = Instant::now();
    let times = proc::cpu_times();
    let told = ask(sources);
    let configuration = configuration(sources.config);
    let named = named(&configuration.config, &told);
    let status = match &told.control {
        Control::Running(status) => Some(status.as_ref()),
        _ => None,
    };
    let links = Requests::open().and_then(|mut requests| requests.link_details());
    let links = links.unwrap_or_default();
    let (features, queues) = offloads(&named, &links);
    let pods = pods::look(&links, &named, &told.nodes);
    let mut facts = Facts {
        kernel: kernel(),
        processes: processes(status),
        pods: pods.seen,
        unseen: pods.unseen,
        programs: programs::look(status, &links, &named),
        forwarding: forwarding(&named),
        paths: path::probe(&told.nodes, &links),
        cpu: cpu(),
        configuration,
        control: told.control,
        nodes: told.nodes,
        named,
        links,
        features,
        queues,
    };
    std::thread::sleep(SAMPLE.saturating_sub(begin.elapsed()));
    facts.cpu.steal_percent = proc::stolen(times, proc::cpu_times());
    facts
}

/// What control says.
#[derive(Debug, Default)]
struct Told {
    control: Control,
    nodes: Vec<NodeEntry>,
    ports: Vec<PortEntry>,
}

fn ask(sources: Sources<'_>) -> Told {
    let answers = || -> Result<Told, ClientError> {
        let mut client = Client::connect(sources.socket, sources.timeout)?;
        let mut told = Told::default();
        for request in [Request::Status, Request::NodeList, Request::PortShow] {
            match client.call(&request)? {
                Response::Status(status) => told.control = Control::Running(status),
                Response::Nodes { nodes } => told.nodes = nodes,
                Response::Ports { ports } => told.ports = ports,
                _ => {}
            }
        }
        Ok(told)
    };
    answers().unwrap_or_else(|error| Told {
        control: without_answer(&error),
        ..Told::default()
    })
}

fn without_answer(error: &ClientError) -> Control {
    let failed = |for_want_of_rights| Control::Failed {
        reason: error.to_string(),
        for_want_of_rights,
    };
    match error {
        ClientError::Unreachable { source, .. } => match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Control::Away,
            io::ErrorKind::PermissionDenied => failed(true),
            _ => failed(false),
        },
        _ => failed(false),
    }
}

fn configuration(file: Option<&Path>) -> Configuration {
    let path = file.unwrap_or(Path::new(DEFAULT_PATH));
    let mut found = Configuration {
        path: Some(path.display().to_string()),
        ..Configuration::default()
    };
    match Settings::read(path) {
        Ok(config) => {
            let section = config.dataplane.check().map_err(|error| error.to_string());
            let checked = Settings::from_config(config.clone()).map_err(|error| error.to_string());
            found.error = checked.err().or(section.err());
            found.config = config;
        }
        Err(SettingsError::Read { source, .. })
            if file.is_none() && source.kind() == io::ErrorKind::NotFound =>
        {
            found.path = None;
        }
        Err(error) => found.error = Some(error.to_string()),
    }
    found
}

fn named(config: &Config, told: &Told) -> Vec<Named> {
    let mut named: Vec<Named> = Vec::new();
    for port in &told.ports {
        named.push(Named {
            interface: port.spec.interface.clone(),
            uplink: matches!(port.spec.role, PortRoleSpec::Uplink { .. }),
            waiting: port.waiting.clone(),
        });
    }
    if let Some(uplink) = &config.uplink
        && !named.iter().any(|named| named.interface == *uplink)
    {
        named.push(Named {
            interface: uplink.clone(),
            uplink: true,
            waiting: None,
        });
    }
    named
}

type Offloads = (
    BTreeMap<String, std::collections::BTreeSet<String>>,
    BTreeMap<String, u32>,
);

fn offloads(named: &[Named], links: &[LinkDetails]) -> Offloads {
    let mut found = Offloads::default();
    let Ok(ethtool) = Ethtool::open() else {
        return found;
    };
    for Named { interface, .. } in named.iter().filter(|named| named.uplink) {
        if let Ok(features) = ethtool.features(interface) {
            found.0.insert(interface.clone(), features);
        }
        if let Ok(Some(queues)) = ethtool.rx_queues(interface) {
            found.1.insert(interface.clone(), queues);
        }
    }
    for device in links.iter().filter(|link| is_our_device(&link.link)) {
        let name = &device.link.name;
        if let Ok(features) = ethtool.features(name) {
            found.0.insert(name.clone(), features);
        }
    }
    found
}

fn kernel() -> Kernel {
    let socket = socket_with(
        AddressFamily::XDP,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None,
    );
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Kernel {
        release: proc::word("/proc/sys/kernel/osrelease").unwrap_or_default(),
        af_xdp: match socket {
            // The kernel looks at the rights after it has found the family (`xsk_create`).
            Ok(_) | Err(Errno::PERM) => Some(true),
            Err(Errno::AFNOSUPPORT) => Some(false),
            Err(_) => None,
        },
        btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        jit: proc::number("/proc/sys/net/core/bpf_jit_enable"),
        unprivileged_bpf_disabled: proc::number("/proc/sys/kernel/unprivileged_bpf_disabled"),
        bpf_filesystem: std::fs::read_to_string("/proc/self/mounts").is_ok_and(|mounts| {
            mounts
                .lines()
                .any(|line| line.split(' ').nth(2) == Some("bpf"))
        }),
        clock_source: proc::word(
            "/sys/devices/system/clocksource/clocksource0/current_clocksource",
        ),
        seconds: now.map_or(0, |now| now.as_secs()),
    }
}

/// Those that control tells of, and others in this network namespace that bear the daemons' names; this
/// process where there are none.
fn processes(status: Option<&Status>) -> Vec<Process> {
    let mut pids = BTreeMap::new();
    if let Some(status) = status {
        pids.insert(status.pid, Role::Control);
        if let Some(dataplane) = status.dataplane.status() {
            pids.insert(dataplane.pid, Role::Dataplane);
        }
    }
    for (name, role) in [
        ("podway-control", Role::Control),
        ("podway-dataplane", Role::Dataplane),
    ] {
        for pid in proc::called(name).filter(|pid| proc::is_here(*pid) == Some(true)) {
            pids.entry(pid).or_insert(role);
        }
    }
    if pids.is_empty() {
        pids.insert(std::process::id(), Role::This);
    }
    let process = |(pid, role): (u32, Role)| Process {
        name: match role {
            Role::Control => "podway-control".to_owned(),
            Role::Dataplane => "podway-dataplane".to_owned(),
            Role::This => "this process".to_owned(),
        },
        pid,
        role,
        capabilities: proc::capabilities(pid),
        memlock: proc::memlock(pid),
        here: proc::is_here(pid),
    };
    pids.into_iter().map(process).collect()
}

fn forwarding(named: &[Named]) -> Forwarding {
    let uplinks = named.iter().filter(|named| named.uplink);
    let uplinks = uplinks.map(|named| named.interface.as_str());
    let switches = uplinks.chain(["all"]).filter_map(|name| {
        let path = format!("/proc/sys/net/ipv4/conf/{name}/rp_filter");
        Some((name.to_owned(), proc::number(&path)?))
    });
    let on = |path| proc::number(path).map(|value| value != 0);
    let conntrack = |name: &str| {
        let path = format!("/proc/sys/net/netfilter/nf_conntrack_{name}");
        proc::number(&path).map(u64::from)
    };
    Forwarding {
        ipv4: on("/proc/sys/net/ipv4/ip_forward"),
        ipv6: on("/proc/sys/net/ipv6/conf/all/forwarding"),
        rp_filter: switches.collect(),
        dropping: program::run("nft", &["-j", "list", "chains"], "", PATIENCE)
            .ok()
            .map(|text| dropping(&text)),
        dropping_legacy: dropping_legacy(),
        conntrack: conntrack("count").zip(conntrack("max")),
    }
}

/// The chains at the hook of what is forwarded that drop by default, of what `nft -j` lists.
fn dropping(text: &str) -> Vec<String> {
    let listed: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
    let chains = listed["nftables"].as_array().into_iter().flatten();
    let chains = chains
        .map(|item| &item["chain"])
        .filter(|chain| chain["hook"] == "forward" && chain["policy"] == "drop");
    let word =
        |chain: &serde_json::Value, key: &str| chain[key].as_str().unwrap_or_default().to_owned();
    let name = |chain| {
        ["family", "table", "name"]
            .map(|key| word(chain, key))
            .join(" ")
    };
    chains.map(name).collect()
}

fn dropping_legacy() -> Vec<String> {
    let files = [
        ("/proc/net/ip_tables_names", "iptables-legacy"),
        ("/proc/net/ip6_tables_names", "ip6tables-legacy"),
    ];
    let drops = |(file, name): &(&str, &str)| {
        let tables = std::fs::read_to_string(file).unwrap_or_default();
        tables.lines().any(|table| table == "filter")
            && program::run(name, &["-S", "FORWARD"], "", PATIENCE)
                .is_ok_and(|rules| rules.lines().any(|rule| rule == "-P FORWARD DROP"))
    };
    let dropping = files.iter().filter(|file| drops(file));
    dropping.map(|(_, name)| (*name).to_owned()).collect()
}

fn cpu() -> Cpu {
    let count = std::thread::available_parallelism().map_or(0, usize::from);
    let of =
        |cpu: usize, file: &str| proc::word(&format!("/sys/devices/system/cpu/cpu{cpu}/{file}"));
    // Numbers may have gaps; nobody has more than the kernel can have.
    let present = (0..8192)
        .take_while(|cpu| Path::new(&format!("/sys/devices/system/cpu/cpu{cpu}")).exists());
    let mut found = Cpu {
        count,
        ..Cpu::default()
    };
    for cpu in present {
        if let Some(governor) = of(cpu, "cpufreq/scaling_governor") {
            found.governors.insert(cpu, governor);
        }
        let siblings = of(cpu, "topology/thread_siblings_list").unwrap_or_default();
        let first = siblings
            .split([',', '-'])
            .next()
            .and_then(|first| first.parse().ok());
        found.cores.insert(cpu, first.unwrap_or(cpu));
    }
    found
}

/// The link of that name.
fn link_named<'a>(links: &'a [LinkDetails], name: &str) -> Option<&'a LinkDetails> {
    links.iter().find(|link| link.link.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_looked_at_without_daemons() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("control.sock");
        let config = directory.path().join("podway.toml");
        std::fs::write(&config, "uplink = \"lo\"\n").unwrap();
        let facts = collect(Sources {
            socket: &socket,
            timeout: Duration::from_secs(1),
            config: Some(&config),
        });
        assert!(matches!(facts.control, Control::Away));
        assert_eq!(facts.configuration.error, None);
        assert!(facts.kernel.release.contains('.'), "{:?}", facts.kernel);
        assert!(facts.cpu.count > 0 && facts.cpu.cores.contains_key(&0));
        assert!(facts.forwarding.ipv4.is_some());
        assert!(facts.forwarding.rp_filter.contains_key("lo"));
        assert!(facts.features["lo"].contains("loopback"));
        assert!(link_named(&facts.links, "lo").unwrap().link.up);
        assert!(
            facts
                .processes
                .iter()
                .all(|process| process.capabilities.is_some())
        );
        assert!(facts.kernel.seconds > 1_700_000_000);
    }

    #[test]
    fn a_file_that_is_none_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("podway.toml");
        for (text, complaint) in [
            ("vni = \n", "line 1"),
            ("vxlan-port = 0\n", "vxlan-port"),
            ("[dataplane]\nring-size = 300\n", "ring-size"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = configuration(Some(&path)).error.unwrap();
            assert!(error.contains(complaint), "{error}");
        }
        assert!(
            configuration(Some(Path::new("/nonexistent")))
                .error
                .is_some()
        );
    }

    #[test]
    fn chains_that_drop_are_found_in_a_listing() {
        let text = r#"{"nftables": [{"metainfo": {"version": "1"}},
            {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "handle": 1,
                       "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}},
            {"chain": {"family": "ip", "table": "filter", "name": "INPUT", "hook": "input",
                       "policy": "drop"}},
            {"chain": {"family": "inet", "table": "fw", "name": "f", "hook": "forward",
                       "policy": "accept"}},
            {"chain": {"family": "inet", "table": "fw", "name": "called"}}]}"#;
        assert_eq!(dropping(text), ["ip filter FORWARD"]);
        assert_eq!(dropping("no"), Vec::<String>::new());
    }

    #[test]
    fn who_does_not_run_is_told_from_who_does_not_answer() {
        let unreachable = |kind: io::ErrorKind| ClientError::Unreachable {
            daemon: "podway-control",
            socket: "s".into(),
            source: kind.into(),
        };
        let of = |kind| without_answer(&unreachable(kind));
        assert!(matches!(of(io::ErrorKind::NotFound), Control::Away));
        assert!(matches!(
            of(io::ErrorKind::ConnectionRefused),
            Control::Away
        ));
        let rights = of(io::ErrorKind::PermissionDenied);
        assert!(matches!(
            rights,
            Control::Failed {
                for_want_of_rights: true,
                ..
            }
        ));
        let late = ClientError::TimedOut {
            daemon: "podway-control",
            socket: "s".into(),
            timeout: Duration::ZERO,
        };
        assert!(matches!(
            without_answer(&late),
            Control::Failed {
                for_want_of_rights: false,
                ..
            }
        ));
    }
}
