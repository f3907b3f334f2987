//! What others' rules of nftables mean for Podway: whether they translate addresses of what is
//! forwarded (services), whether they may track its connections, and whether they drop it, where the
//! kernel is to carry on.
//!
//! Chains are asked for, by the program nft (decision 0014), and the rules of few of them
//! (`forward`): kube-proxy's may be many thousands. Of iptables without nftables only the names of
//! tables are known (`legacy`).

mod forward;
mod legacy;

use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd as _, RawFd};
use std::time::{Duration, Instant};

use serde::Deserialize;

pub use self::forward::Hooked;

use self::forward::Forward;
use self::legacy::Legacy;
use crate::nftables::changes::Changes;
use crate::nftables::{TABLE, nft};
use crate::world::World;

/// Messages that tell of a table or a chain that came or went (linux/netfilter/nf_tables.h).
const OF_CHAINS: [u8; 4] = [0, 2, 3, 5];
/// Messages that tell of a rule that came or went.
const OF_RULES: [u8; 2] = [6, 8];
/// Who changes chains all the time is followed at most this often.
const PERIOD: Duration = Duration::from_secs(2);
/// When chains that could not be asked for are asked for again.
const RETRY: Duration = Duration::from_secs(60);

/// What the rules mean.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chains {
    /// Whether the addresses of what arrives are translated, as for a service.
    pub translates: bool,
    /// Chains that what is forwarded passes.
    pub forwarding: Vec<Hooked>,
    /// Whether connections over IPv4 may be tracked. With the first rule that asks for that (`ct`,
    /// any translation) the kernel puts together the fragments of all packets; which rules a chain
    /// has is not asked.
    pub may_track: bool,
}

/// Follows the chains.
#[derive(Debug)]
pub struct Watch {
    /// Tells of changes.
    changes: Option<Changes>,
    legacy: Legacy,
    /// What the chains of nftables mean.
    found: Chains,
    /// The rules of some of them.
    forward: Forward,
    /// What all rules mean.
    chains: Chains,
    /// Why they are not known.
    error: Option<String>,
    /// Whether they may have changed.
    doubtful: bool,
    /// Not before this is anybody asked.
    next: Instant,
}

impl Watch {
    /// Begins to listen to changes.
    pub fn start(now: Instant) -> Self {
        let changes = Changes::listen().map_err(|error| {
            tracing::info!("the kernel has no nftables to listen to: {error}");
        });
        Self {
            changes: changes.ok(),
            legacy: Legacy::new(now),
            found: Chains::default(),
            forward: Forward::default(),
            chains: Chains::default(),
            error: None,
            doubtful: true,
            next: now,
        }
    }

    /// What is readable when something has changed.
    pub fn fd(&self) -> Option<RawFd> {
        self.changes.as_ref().map(Changes::as_raw_fd)
    }

    /// When [`Self::look`] has something to do though nothing came.
    pub fn deadline(&self) -> Option<Instant> {
        let chains = self.doubtful.then_some(self.next);
        chains.into_iter().chain(self.legacy.deadline()).min()
    }

    /// Takes in what the kernel tells.
    pub fn follow(&mut self) {
        if let Some(changes) = &self.changes {
            self.doubtful |= changes.any(|message| matters(message, &self.forward));
        }
    }

    /// Asks again where something may have changed; says whether something has.
    pub fn look(&mut self, now: Instant) -> bool {
        let legacy = self.legacy.look(now);
        if !legacy && (!self.doubtful || now < self.next) {
            return false;
        }
        if self.doubtful && now >= self.next {
            self.ask(now);
        }
        let mut chains = self.found.clone();
        chains.translates |= self.legacy.translates();
        chains.may_track |= self.legacy.may_track();
        let changed = chains != self.chains;
        self.chains = chains;
        changed
    }

    /// Asks for the chains of nftables.
    fn ask(&mut self, now: Instant) {
        self.doubtful = false;
        self.next = now + PERIOD;
        self.error = None;
        (self.found, self.forward) = listing().unwrap_or_else(|error| {
            self.error = Some(error);
            if self.changes.is_some() {
                self.doubtful = true;
                self.next = now + RETRY;
            }
            // Who asks conntrack in vain loses some speed, who does not ask it breaks services, and
            // loses fragments.
            let chains = Chains {
                translates: self.changes.is_some(),
                may_track: self.changes.is_some(),
                ..Chains::default()
            };
            (chains, Forward::default())
        });
    }

    /// What the rules mean, as of the last look.
    pub fn chains(&self) -> &Chains {
        &self.chains
    }

    /// What is missing for the kernel to carry on, with the remedy.
    pub fn hints(&self, world: &World<'_>) -> Vec<String> {
        let mut hints = self.forward.hints(world);
        let unknown = self.error.iter().filter(|_| self.changes.is_some());
        hints.extend(unknown.map(|error| {
            format!(
                "whether rules of nftables translate or drop pods' packets is not known: {error}"
            )
        }));
        hints.extend(self.legacy.hints());
        hints
    }
}

/// What `nft` says of chains and rules.
fn listing() -> Result<(Chains, Forward), String> {
    let words = |error: io::Error| match error.kind() {
        ErrorKind::NotFound => "there is no program nft; install the package nftables".to_owned(),
        _ => error.to_string(),
    };
    let text = nft::run(&["-j", "list", "chains"], "").map_err(words)?;
    let chains = Chains::parse(&text)?;
    let forward = Forward::read(&chains.forwarding).map_err(words)?;
    Ok((chains, forward))
}

#[derive(Deserialize)]
struct Listing {
    nftables: Vec<Item>,
}

/// One object of a listing; those that are no chains have no `chain`.
#[derive(Deserialize)]
struct Item {
    chain: Option<Chain>,
}

#[derive(Deserialize)]
struct Chain {
    family: String,
    table: String,
    name: String,
    /// Where the kernel calls it; others are called by rules only.
    hook: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    policy: Option<String>,
}

impl Chains {
    /// Reads what `nft -j list chains` writes.
    fn parse(text: &str) -> Result<Self, String> {
        let listing: Listing = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let mut chains = Self::default();
        for chain in listing.nftables.into_iter().filter_map(|item| item.chain) {
            if chain.table == TABLE {
                continue;
            }
            // In the other families the kernel knows no `ct`, or tracks IPv6 alone.
            let may_track = matches!(&*chain.family, "ip" | "inet" | "bridge");
            chains.may_track |= may_track && chain.hook.is_some();
            if matches!(&*chain.family, "bridge" | "arp" | "netdev") {
                continue;
            }
            let is = |field: &Option<String>, value| field.as_deref() == Some(value);
            chains.translates |= is(&chain.kind, "nat") && is(&chain.hook, "prerouting");
            if is(&chain.hook, "forward") {
                chains.forwarding.push(Hooked {
                    drops: is(&chain.policy, "drop"),
                    name: format!("{} {} {}", chain.family, chain.table, chain.name),
                });
            }
        }
        Ok(chains)
    }
}

/// Whether one of a datagram's messages tells of a table, of a chain, or of a rule that was read.
fn matters(mut datagram: &[u8], forward: &Forward) -> bool {
    // struct nlmsghdr: length, type, flags, and more; the type's lower byte is nftables' own.
    const HEADER: usize = 16;
    while let Some(header) = datagram.first_chunk::<HEADER>() {
        let [a, b, c, d, kind, ..] = *header;
        if OF_CHAINS.contains(&kind) {
            return true;
        }
        if OF_RULES.contains(&kind)
            && let Some((family, table, chain)) = chain_of_rule(datagram)
            && forward.has(family, table, chain)
        {
            return true;
        }
        let length = usize::try_from(u32::from_ne_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        let next = length.max(HEADER).next_multiple_of(4);
        datagram = datagram.get(next..).unwrap_or_default();
    }
    false
}

/// Family, table and chain of the rule that a message is about. Behind the header and `struct
/// nfgenmsg`, which begins with the family, table and chain are the first attributes, in this order
/// (`nf_tables_fill_rule_info` of net/netfilter/nf_tables_api.c).
fn chain_of_rule(message: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    fn text(attributes: &[u8], number: u16) -> Option<(&[u8], &[u8])> {
        let (&[a, b, c, d], _) = attributes.split_first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = attributes.get(4..length)?;
        let rest = attributes.get(length.next_multiple_of(4)..)?;
        let is_it = u16::from_ne_bytes([c, d]) == number;
        is_it.then(|| (value.strip_suffix(&[0]).unwrap_or(value), rest))
    }
    let family = *message.get(16)?;
    let (table, rest) = text(message.get(20..)?, 1)?;
    let (chain, _) = text(rest, 2)?;
    Some((family, table, chain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_tell_what_their_rules_may_do() {
        let parse = |chains: &str| {
            let head = r#"{"metainfo": {"version": "1.0.6", "json_schema_version": 1}}"#;
            Chains::parse(&format!(r#"{{"nftables": [{head}{chains}]}}"#)).unwrap()
        };
        assert_eq!(parse(""), Chains::default());
        let chain = |family: &str, table: &str, rest: &str| {
            format!(
                r#", {{"chain": {{"family": "{family}", "table": "{table}", "name": "y",
                    "handle": 1{rest}}}}}"#
            )
        };
        let hook = |kind: &str, at: &str, policy: &str| {
            format!(r#", "type": "{kind}", "hook": "{at}", "prio": 0, "policy": "{policy}""#)
        };
        let of = |kind, at, policy| chain("ip", "x", &hook(kind, at, policy));
        assert!(parse(&of("nat", "prerouting", "accept")).translates);
        for harmless in [
            // One that others call, as those of each service are.
            chain("ip", "x", ""),
            chain("inet", "podway", &hook("nat", "prerouting", "accept")),
            chain("ip6", "x", &hook("filter", "output", "accept")),
            chain("arp", "x", &hook("filter", "input", "drop")),
            chain("netdev", "x", &hook("filter", "ingress", "accept")),
        ] {
            assert_eq!(parse(&harmless), Chains::default(), "{harmless}");
        }
        let may_track = Chains {
            may_track: true,
            ..Chains::default()
        };
        for tracking in [
            of("nat", "postrouting", "accept"),
            of("nat", "output", "accept"),
            of("filter", "prerouting", "accept"),
            of("filter", "input", "drop"),
            chain("inet", "x", &hook("route", "output", "accept")),
            chain("bridge", "x", &hook("filter", "forward", "drop")),
        ] {
            assert_eq!(parse(&tracking), may_track, "{tracking}");
        }
        for (policy, drops) in [("drop", true), ("accept", false)] {
            let name = "ip x y".to_owned();
            let found = parse(&of("filter", "forward", policy));
            assert_eq!(found.forwarding, [Hooked { name, drops }]);
            assert!(!found.translates);
        }
        assert!(Chains::parse("nft: no").is_err());
    }

    /// A message of a kind with attributes that are texts.
    fn message(kind: u8, texts: &[&str]) -> Vec<u8> {
        let mut bytes = vec![0; 16];
        bytes[4] = kind;
        bytes[5] = 10;
        bytes.extend([2, 0, 0, 0]);
        for (number, text) in (1_u16..).zip(texts) {
            let length = u16::try_from(text.len() + 5).unwrap();
            bytes.extend(length.to_ne_bytes());
            bytes.extend(number.to_ne_bytes());
            bytes.extend(text.as_bytes());
            bytes.push(0);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        let length = u32::try_from(bytes.len()).unwrap();
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes
    }

    #[test]
    fn chains_and_the_rules_that_were_read_are_a_reason_to_ask_again() {
        let mut forward = Forward::default();
        let matter = |datagram: &[u8], forward: &Forward| matters(datagram, forward);
        let (chain, rule) = (message(3, &[]), message(6, &["filter", "FORWARD"]));
        assert!(matter(&chain, &forward));
        assert!(!matter(&rule, &forward));
        assert!(matter(&[rule.clone(), message(2, &[])].concat(), &forward));
        assert!(!matter(
            &[rule.clone(), message(15, &[])].concat(),
            &forward
        ));
        for length in 0..16 {
            assert!(!matter(&chain[..length], &forward), "{length}");
        }

        forward = Forward::of_empty_chain("ip filter FORWARD");
        assert!(matter(&rule, &forward));
        let gone = message(8, &["filter", "FORWARD"]);
        assert!(matter(
            &[message(6, &["nat", "x"]), gone].concat(),
            &forward
        ));
        for other in [["filter", "INPUT"], ["nat", "FORWARD"]] {
            assert!(!matter(&message(6, &other), &forward));
        }
        for length in 0..rule.len() {
            // The name is whole without the bytes that fill it up, which the kernel always sends.
            assert!(!matter(&rule[..length], &forward), "{length}");
        }
    }
}
