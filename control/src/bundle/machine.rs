//! What the machine shows: programs of others, sysctls, files of `/proc`.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::time::Duration;

use super::Gathered;
use crate::doctor::Facts;
use crate::program;

/// How long each program may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Programs with what they are to show, by the name of the entry.
const PROGRAMS: &[(&str, &str)] = &[
    ("ip/link.json", "ip -j -d -s link show"),
    ("ip/addr.json", "ip -j addr show"),
    ("ip/route4.json", "ip -j -4 route show table main"),
    ("ip/route6.json", "ip -j -6 route show table main"),
    ("ip/rule4.json", "ip -j -4 rule show"),
    ("ip/rule6.json", "ip -j -6 rule show"),
    ("ip/neigh.json", "ip -j neigh show"),
    ("ip/fdb.json", "bridge -j fdb show"),
    ("nft/ruleset.txt", "nft list ruleset"),
    ("bpf/net.json", "bpftool -j net show"),
    ("bpf/prog.json", "bpftool -j prog show"),
    ("bpf/link.json", "bpftool -j link show"),
];

/// Files of the kernel, by the name of the entry.
const FILES: &[(&str, &str)] = &[
    ("kernel/version.txt", "/proc/version"),
    ("kernel/interrupts.txt", "/proc/interrupts"),
    ("kernel/softnet_stat.txt", "/proc/net/softnet_stat"),
    ("kernel/snmp.txt", "/proc/net/snmp"),
    ("kernel/netstat.txt", "/proc/net/netstat"),
    ("kernel/meminfo.txt", "/proc/meminfo"),
    ("kernel/loadavg.txt", "/proc/loadavg"),
];

/// Switches that forwarding rests on.
const SYSCTLS: &[&str] = &[
    "kernel/unprivileged_bpf_disabled",
    "net/core/bpf_jit_enable",
    "net/core/default_qdisc",
    "net/core/netdev_budget",
    "net/core/netdev_budget_usecs",
    "net/core/netdev_max_backlog",
    "net/core/rmem_max",
    "net/core/wmem_max",
    "net/ipv4/conf/all/arp_announce",
    "net/ipv4/conf/all/arp_ignore",
    "net/ipv4/conf/all/forwarding",
    "net/ipv4/conf/all/rp_filter",
    "net/ipv4/conf/default/rp_filter",
    "net/ipv4/fib_multipath_hash_policy",
    "net/ipv4/ip_forward",
    "net/ipv4/ip_forward_use_pmtu",
    "net/ipv4/ip_no_pmtu_disc",
    "net/ipv4/neigh/default/gc_thresh3",
    "net/ipv4/tcp_congestion_control",
    "net/ipv6/conf/all/disable_ipv6",
    "net/ipv6/conf/all/forwarding",
    "net/ipv6/fib_multipath_hash_policy",
    "net/ipv6/neigh/default/gc_thresh3",
    "net/netfilter/nf_conntrack_count",
    "net/netfilter/nf_conntrack_max",
    "net/netfilter/nf_conntrack_tcp_be_liberal",
    "net/netfilter/nf_conntrack_tcp_loose",
];

const SYSCTL: &str = "kernel/sysctl.txt";
const CPUINFO: &str = "kernel/cpuinfo.txt";

/// The entries of this module, those of `ethtool` aside.
#[cfg(test)]
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    let named = PROGRAMS.iter().chain(FILES);
    named.map(|(name, _)| *name).chain([SYSCTL, CPUINFO])
}

pub(super) fn gather(gathered: &mut Gathered, facts: &Facts) {
    for (name, line) in PROGRAMS {
        gathered.add(name, shown(line));
    }
    // Of pods' ports the features of one tell those of all; the uplinks are few.
    let uplinks: BTreeSet<&str> = facts.uplinks().collect();
    for uplink in uplinks.into_iter().filter(|name| is_name(name)) {
        let texts = ["-k", "-i", "-l", "-g", "-S"].map(|option| {
            let title = format!("# ethtool {option} {uplink}\n");
            let text = program::run("ethtool", &[option, uplink], "", PATIENCE);
            // Not every driver has an answer to each.
            title + &text.unwrap_or_else(|error| format!("{error}\n"))
        });
        let text = Ok::<_, io::Error>(texts.concat().into_bytes());
        gathered.add(&format!("ethtool/{uplink}.txt"), text);
    }
    for (name, path) in FILES {
        gathered.add(name, fs::read(path));
    }
    let sysctls = SYSCTLS.iter().filter_map(|name| {
        let value = fs::read_to_string(format!("/proc/sys/{name}")).ok()?;
        Some(format!("{} = {}\n", name.replace('/', "."), value.trim()))
    });
    let sysctls: String = sysctls.collect();
    gathered.add(SYSCTL, Ok::<_, io::Error>(sysctls.into_bytes()));
    gathered.add(
        CPUINFO,
        fs::read_to_string("/proc/cpuinfo").map(|text| cpus(&text)),
    );
}

/// Whether a name can be that of a file.
fn is_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains('/')
}

fn shown(line: &str) -> io::Result<Vec<u8>> {
    let mut words = line.split(' ');
    let program = words.next().unwrap_or_default();
    let words: Vec<&str> = words.collect();
    let text = program::run(program, &words, "", PATIENCE);
    text.map(String::into_bytes)
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => io::Error::other(format!("there is no program {program}")),
            _ => error,
        })
}

/// How many processors there are of which model, and what the first can do.
fn cpus(text: &str) -> Vec<u8> {
    let first = text.split("\n\n").next().unwrap_or_default();
    let wanted = [
        "model name",
        "flags",
        "Features",
        "CPU implementer",
        "CPU part",
        "cpu MHz",
    ];
    let lines = first
        .lines()
        .filter(|line| wanted.iter().any(|wanted| line.starts_with(wanted)));
    let count = text
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let mut summary = format!("processors\t: {count}\n");
    summary.extend(lines.map(|line| format!("{line}\n")));
    summary.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_counted_and_described_once() {
        let one = "processor\t: 0\nmodel name\t: X\nbogomips\t: 1\nflags\t\t: a b\n";
        let text = format!("{one}\n{}", one.replace('0', "1"));
        assert_eq!(
            cpus(&text),
            b"processors\t: 2\nmodel name\t: X\nflags\t\t: a b\n"
        );
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = shown("podway-no-such-program -j").unwrap_err();
        assert_eq!(
            error.to_string(),
            "there is no program podway-no-such-program"
        );
        assert!(!is_name("../x") && !is_name("..") && is_name("eth0"));
    }
}
