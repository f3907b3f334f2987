//! Chains at the hook of what is forwarded: whether their rules leave pods' packets a way when the
//! kernel carries them.
//!
//! Rules are read as `nft` prints them, with those of the chains that they call, one level deep. They
//! are not carried out: one that names pods' ports or addresses and does not drop counts as the way.
//! Enough for a hint.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, ErrorKind};
use std::net::IpAddr;

use ipnet::IpNet;
use podway_proto::control::{PortRoleSpec, ViaSpec};
use podway_proto::types::Mode;

use crate::kernel::device_name;
use crate::nftables::nft;
use crate::world::World;

/// Chains of others are asked for at most this often in a row: each costs some milliseconds.
const MOST_CALLED: usize = 16;

/// A chain that the kernel calls for what is forwarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hooked {
    /// Family, table and name.
    pub name: String,
    /// Whether it drops what none of its rules accepts.
    pub drops: bool,
}

/// The rules of such chains.
#[derive(Debug, Default)]
pub(super) struct Forward {
    chains: Vec<(Hooked, Vec<String>)>,
    /// All chains that they are from.
    read: BTreeSet<String>,
}

impl Forward {
    /// Asks for the rules.
    ///
    /// # Errors
    /// That `nft` takes too long.
    pub(super) fn read(hooked: &[Hooked]) -> io::Result<Self> {
        Self::read_by(hooked, |chain| {
            // Without what they have counted.
            let words = ["-s", "list", "chain"].into_iter().chain(chain.split(' '));
            nft::run(&words.collect::<Vec<_>>(), "")
        })
    }

    fn read_by(
        hooked: &[Hooked],
        mut list: impl FnMut(&str) -> io::Result<String>,
    ) -> io::Result<Self> {
        let mut known: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut rules_of = |chain: String, most: usize| -> io::Result<Vec<String>> {
            if let Some(rules) = known.get(&chain) {
                return Ok(rules.clone());
            }
            if known.len() >= most {
                return Ok(Vec::new());
            }
            let rules = match list(&chain) {
                Ok(text) => rules(&text),
                Err(error) if error.kind() == ErrorKind::TimedOut => return Err(error),
                // It has gone meanwhile; the kernel tells of that.
                Err(_) => Vec::new(),
            };
            known.insert(chain, rules.clone());
            Ok(rules)
        };
        let mut chains = Vec::new();
        for chain in hooked {
            let table = chain.name.rsplit_once(' ').map_or("", |(table, _)| table);
            let mut rules = Vec::new();
            for rule in rules_of(chain.name.clone(), usize::MAX)? {
                let called: Vec<String> = called(&rule)
                    .map(|name| format!("{table} {name}"))
                    .collect();
                rules.push(rule);
                for name in called {
                    rules.extend(rules_of(name, hooked.len() + MOST_CALLED)?);
                }
            }
            chains.push((chain.clone(), rules));
        }
        let read = known.into_keys().collect();
        Ok(Self { chains, read })
    }

    /// Whether the rules of a chain are among those that were read.
    pub(super) fn has(&self, family: u8, table: &[u8], chain: &[u8]) -> bool {
        // NFPROTO_INET, NFPROTO_IPV4 and NFPROTO_IPV6 of linux/netfilter.h.
        let family = match family {
            1 => "inet",
            2 => "ip",
            10 => "ip6",
            _ => return false,
        };
        let name = [family.as_bytes(), table, chain].join(&b' ');
        self.read.iter().any(|read| read.as_bytes() == name)
    }

    #[cfg(test)]
    pub(super) fn of_empty_chain(name: &str) -> Self {
        Self {
            read: BTreeSet::from([name.to_owned()]),
            ..Self::default()
        }
    }

    /// What keeps pods' packets from their way, with the remedy.
    pub(super) fn hints(&self, world: &World<'_>) -> Vec<String> {
        if self.chains.is_empty() {
            return Vec::new();
        }
        self.hints_for(&Pods::of(world), lost_by_conntrack())
    }

    fn hints_for(&self, pods: &Pods, lost: Option<(&str, &str)>) -> Vec<String> {
        let mut hints = Vec::new();
        for (Hooked { name, drops }, rules) in &self.chains {
            let remedy = format!("nft 'insert rule {name} {} accept'", pods.between());
            if *drops && !pods.pass(rules) {
                hints.push(format!(
                    "the nftables chain {name} drops what is forwarded unless a rule accepts it: \
                     without one for pods' packets, the kernel cannot carry them when the \
                     dataplane is away (for example: {remedy})"
                ));
            }
            let invalid = rules.iter().position(|rule| drops_invalid(rule));
            if let Some((which, setting)) = lost
                && invalid.is_some_and(|at| !pods.pass(rules.get(..at).unwrap_or_default()))
            {
                hints.push(format!(
                    "the nftables chain {name} drops what conntrack finds invalid, among which are \
                     {which} when the dataplane goes away (for example: sysctl -w {setting}; or: \
                     {remedy})"
                ));
            }
        }
        hints
    }
}

/// The packets that conntrack finds invalid since the dataplane has carried those before them, and
/// the setting that changes that.
fn lost_by_conntrack() -> Option<(&'static str, &'static str)> {
    let is = |name: &str, value: &str| {
        let path = format!("/proc/sys/net/netfilter/nf_conntrack_tcp_{name}");
        fs::read_to_string(path).is_ok_and(|text| text.trim() == value)
    };
    lost(is("loose", "0"), is("be_liberal", "1"))
}

/// A connection that conntrack has no entry of, since the dataplane has had all of its packets, is
/// taken up in the middle, with any window from then on, unless `strict` (`tcp_new` of
/// net/netfilter/nf_conntrack_proto_tcp.c). The entry of one that the kernel has had packets of says
/// where its window was then, which is what counts unless conntrack is `liberal` (`tcp_in_window`).
fn lost(strict: bool, liberal: bool) -> Option<(&'static str, &'static str)> {
    match (strict, liberal) {
        (true, _) => Some((
            "TCP connections that it has not seen begin",
            "net.netfilter.nf_conntrack_tcp_loose=1 net.netfilter.nf_conntrack_tcp_be_liberal=1",
        )),
        (false, false) => Some((
            "TCP connections that the kernel carried before the dataplane did",
            "net.netfilter.nf_conntrack_tcp_be_liberal=1",
        )),
        (false, true) => None,
    }
}

/// Where pods' packets come from and go to.
#[derive(Debug, Default)]
struct Pods {
    /// Pods' ports.
    ports: BTreeSet<String>,
    /// Interfaces towards other nodes.
    others: BTreeSet<String>,
    /// This node's PodCIDRs.
    cidrs: Vec<IpNet>,
}

impl Pods {
    fn of(world: &World<'_>) -> Self {
        let mut pods = Self::default();
        for (interface, role) in &world.desired.ports {
            if matches!(role, PortRoleSpec::Pod { .. }) {
                pods.ports.insert(interface.clone());
            }
        }
        let own = world.own().into_iter().flat_map(|own| &own.pod_cidrs);
        pods.cidrs.extend(own);
        let modes: Vec<Mode> = world.remote_nodes().map(|node| world.mode(node)).collect();
        let is_used = |mode| match modes.is_empty() {
            true => world.settings.default_mode == mode,
            false => modes.contains(&mode),
        };
        let is_gateway = |via: &ViaSpec| matches!(via, ViaSpec::Gateway { .. });
        if is_used(Mode::Vxlan) {
            let vnis = world.settings.vnis();
            pods.others.extend(vnis.map(|vni| device_name(world, vni)));
        }
        if is_used(Mode::Native)
            || world.desired.routes.values().any(is_gateway)
            || world.import.prefixes().next().is_some()
        {
            let uplinks = world.uplinks().into_iter();
            pods.others.extend(uplinks.map(str::to_owned));
        }
        pods
    }

    /// What is between pods, of this node and of others, for a rule.
    fn between(&self) -> String {
        let names = self.ports.union(&self.others);
        let names: Vec<String> = names.map(|name| format!("\"{name}\"")).collect();
        let names = names.join(", ");
        format!("iifname {{ {names} }} oifname {{ {names} }}")
    }

    /// Whether rules let pods' packets through, as far as can be seen.
    fn pass(&self, rules: &[String]) -> bool {
        let rules: Vec<&str> = rules
            .iter()
            .map(String::as_str)
            .filter(|r| lets(r))
            .collect();
        let named = |name: &String| rules.iter().any(|rule| names(rule, name));
        // All that is a pod's comes or goes by its port.
        let needed = match self.ports.is_empty() {
            true => &self.others,
            false => &self.ports,
        };
        needed.iter().all(named)
            || rules.iter().any(|rule| {
                words(rule).next() == Some("accept")
                    || self.cidrs.iter().any(|cidr| holds(rule, cidr))
            })
    }
}

/// The rules of a listing of one chain, without comments and counters.
fn rules(text: &str) -> Vec<String> {
    let lines = text.lines().map(str::trim);
    let inside = lines.skip_while(|line| !line.starts_with("chain ")).skip(1);
    inside
        .take_while(|line| *line != "}")
        .filter(|line| !(line.starts_with("type ") && line.contains(" hook ")))
        .map(|line| line.split(" comment \"").next().unwrap_or_default())
        .map(|rule| rule.replace("counter ", ""))
        .collect()
}

/// The words of a rule, with what is in sets.
fn words(rule: &str) -> impl Iterator<Item = &str> {
    let parts = rule.split([' ', ',', '{', '}']);
    parts.filter(|word| !word.is_empty())
}

/// The chains that a rule calls.
fn called(rule: &str) -> impl Iterator<Item = &str> {
    let pairs = words(rule).zip(words(rule).skip(1));
    pairs
        .filter(|(word, _)| matches!(*word, "jump" | "goto"))
        .map(|(_, name)| name)
}

/// Whether a rule drops what is invalid to conntrack.
fn drops_invalid(rule: &str) -> bool {
    let Some((_, states)) = rule.split_once("ct state ") else {
        return false;
    };
    if let Some(map) = states.strip_prefix("vmap ") {
        let map: Vec<&str> = words(map).collect();
        return map.windows(3).any(|w| w == ["invalid", ":", "drop"]);
    }
    let (states, rest) = match states.strip_prefix('{') {
        Some(set) => set.split_once('}'),
        None => states.split_once(' '),
    }
    .unwrap_or_default();
    let is_dropped = words(rest).any(|word| matches!(word, "drop" | "reject"));
    is_dropped && words(states).any(|state| state == "invalid")
}

/// Whether a rule may let something through.
fn lets(rule: &str) -> bool {
    !rule.contains("!=") && words(rule).any(|word| matches!(word, "accept" | "jump" | "goto"))
}

/// Whether a rule names an interface.
fn names(rule: &str, interface: &str) -> bool {
    let mut quoted = rule.split('"').skip(1).step_by(2);
    quoted.any(|name| match name.strip_suffix('*') {
        Some(beginning) => interface.starts_with(beginning),
        None => name == interface,
    })
}

/// Whether a rule names addresses among which are all of `inner`.
fn holds(rule: &str, inner: &IpNet) -> bool {
    words(rule).any(|word| {
        let address = || word.parse::<IpAddr>().map(IpNet::from);
        let outer = word.parse::<IpNet>().or_else(|_| address());
        outer.is_ok_and(|outer| outer.contains(inner))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::tests::Fixture;

    fn listing(chain: &str, rules: &[&str]) -> String {
        let rules: String = rules.iter().map(|rule| format!("\t\t{rule}\n")).collect();
        format!(
            "table inet fw {{\n\tchain {chain} {{\n\t\ttype filter hook forward priority filter; \
             policy drop;\n{rules}\t}}\n}}\n"
        )
    }

    fn hooked(drops: bool) -> Hooked {
        Hooked {
            name: "inet fw forward".into(),
            drops,
        }
    }

    /// What is found of a chain with these rules.
    fn forward(drops: bool, rules: &[&str]) -> Forward {
        Forward::read_by(&[hooked(drops)], |_| Ok(listing("forward", rules))).unwrap()
    }

    fn pods() -> Pods {
        Pods {
            ports: ["lx0", "lx1"].map(str::to_owned).into(),
            others: ["podway.vx".to_owned()].into(),
            cidrs: vec!["10.0.0.0/24".parse().unwrap()],
        }
    }

    const BETWEEN: &str =
        r#"iifname { "lx0", "lx1", "podway.vx" } oifname { "lx0", "lx1", "podway.vx" }"#;

    #[test]
    fn a_chain_that_drops_is_named_until_a_rule_lets_pods_through() {
        let hints = |drops, rules: &[&str]| forward(drops, rules).hints_for(&pods(), None);
        assert_eq!(hints(false, &[]), Vec::<String>::new());
        let hint = &hints(true, &[])[0];
        let command = format!("nft 'insert rule inet fw forward {BETWEEN} accept'");
        assert!(
            hint.contains(&format!("(for example: {command})")),
            "{hint}"
        );
        let followed = format!("{BETWEEN} accept");
        for enough in [
            followed.as_str(),
            r#"iifname "lx*" counter accept"#,
            r#"oifname { "lx0", "lx1" } jump pods"#,
            r#"ip saddr 10.0.0.0/16 ip daddr 10.0.0.0/16 accept comment "pods""#,
            "counter accept",
        ] {
            assert_eq!(hints(true, &[enough]), Vec::<String>::new(), "{enough}");
        }
        for not_enough in [
            r#"iifname "lx0" accept"#,
            r#"iifname { "lx0", "lx1" } drop"#,
            r#"iifname != { "lx0", "lx1" } accept"#,
            r#"tcp dport 80 accept comment "iifname lx0 lx1""#,
            "ip saddr 10.0.0.7 accept",
            "ct state established,related accept",
        ] {
            assert_eq!(hints(true, &[not_enough]).len(), 1, "{not_enough}");
        }
    }

    #[test]
    fn invalid_packets_that_are_dropped_on_the_way_are_named() {
        let which = Some(("what is lost", "setting=1"));
        let hints = |rules: &[&str]| forward(false, rules).hints_for(&pods(), which);
        let followed = format!("{BETWEEN} accept");
        for dropping in [
            "ct state invalid drop",
            "ct state invalid counter drop",
            "ct state { invalid, untracked } reject",
            "ct state invalid,new log prefix \"no\" drop",
            "ct state vmap { invalid : drop, established : accept, related : accept }",
        ] {
            let hint = &hints(&["ct state established accept", dropping])[0];
            assert!(hint.contains("among which are what is lost when"), "{hint}");
            assert!(hint.contains("sysctl -w setting=1; or: nft '"), "{hint}");
            assert_eq!(hints(&[&followed, dropping]), Vec::<String>::new());
            assert_eq!(hints(&[dropping, &followed]).len(), 1, "{dropping}");
            let none = forward(false, &[dropping]).hints_for(&pods(), None);
            assert_eq!(none, Vec::<String>::new());
        }
        for harmless in [
            "ct state invalid accept",
            "ct state established,related accept",
            "ct state vmap { established : accept, new : jump invalid }",
            "iifname \"eth0\" drop",
        ] {
            assert_eq!(hints(&[harmless]), Vec::<String>::new(), "{harmless}");
        }
        assert_eq!(lost(false, true), None);
        let (_, setting) = lost(false, false).unwrap();
        assert_eq!(setting, "net.netfilter.nf_conntrack_tcp_be_liberal=1");
        assert!(lost(true, true).unwrap().1.contains("tcp_loose=1"));
    }

    #[test]
    fn rules_of_called_chains_count() {
        let list = |chain: &str| {
            let text = match chain {
                "inet fw forward" => listing(
                    "forward",
                    &[
                        "jump one",
                        "iifname vmap { \"eth0\" : jump two, \"eth1\" : goto gone }",
                    ],
                ),
                "inet fw one" => listing("one", &["jump deeper"]),
                "inet fw two" => listing("two", &["ct state invalid drop"]),
                "inet fw gone" => return Err(ErrorKind::Other.into()),
                other => panic!("{other}"),
            };
            Ok(text)
        };
        let forward = Forward::read_by(&[hooked(false)], list).unwrap();
        assert_eq!(forward.hints_for(&pods(), Some(("", ""))).len(), 1);
        assert!(forward.has(1, b"fw", b"two"));
        assert!(!forward.has(2, b"fw", b"two"));
        assert!(!forward.has(1, b"fw", b"deeper"));

        let mut asked = 0;
        let many: Vec<String> = (0..50).map(|number| format!("jump c{number}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let list = |_: &str| {
            asked += 1;
            Ok(listing("x", if asked == 1 { &many } else { &[] }))
        };
        Forward::read_by(&[hooked(true)], list).unwrap();
        assert_eq!(asked, 1 + MOST_CALLED);

        let late = |_: &str| Err(ErrorKind::TimedOut.into());
        assert!(Forward::read_by(&[hooked(true)], late).is_err());
    }

    #[test]
    fn pods_packets_come_and_go_by_what_modes_and_routes_say() {
        let mut fixture = Fixture::new();
        let others = |fixture: &Fixture| Pods::of(&fixture.world()).others;
        let device = BTreeSet::from(["podway.vx".to_owned()]);
        let uplink = BTreeSet::from(["eth0".to_owned()]);
        assert_eq!(others(&fixture), device);
        fixture.desired.nodes.get_mut("b").unwrap().mode = Some(Mode::Native);
        assert_eq!(others(&fixture), uplink);
        let pods = Pods::of(&fixture.world());
        assert_eq!(pods.ports, BTreeSet::from(["veth-a".to_owned()]));
        assert_eq!(
            pods.between(),
            r#"iifname { "eth0", "veth-a" } oifname { "eth0", "veth-a" }"#
        );
        fixture.desired.nodes.remove("b");
        assert_eq!(others(&fixture), device);
        let gateway = ViaSpec::Gateway {
            address: "192.168.1.9".parse().unwrap(),
            interface: None,
        };
        let prefix = "10.9.0.0/16".parse().unwrap();
        fixture.desired.routes.insert(prefix, gateway);
        assert_eq!(others(&fixture), &device | &uplink);
    }
}
