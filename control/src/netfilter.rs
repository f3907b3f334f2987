//! What others' rules of nftables mean for Podway: whether they translate addresses of what is
//! forwarded (services), and whether they drop it, where the kernel is to carry on.
//!
//! Only chains are asked for, by the program nft (decision 0014): kube-proxy's rules may be many
//! thousands. Of iptables without nftables only the names of tables are known ([`legacy`]).

mod legacy;

use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd as _, RawFd};
use std::time::{Duration, Instant};

use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use serde::Deserialize;

use self::legacy::Legacy;
use crate::kernel::DEVICE;
use crate::masquerade::{TABLE, nft};

/// Multicast group of all changes of nftables (`NFNLGRP_NFTABLES`, linux/netfilter/nfnetlink.h).
const GROUP: u32 = 7;
/// Messages that tell of a table or a chain that came or went (linux/netfilter/nf_tables.h).
const OF_CHAINS: [u8; 4] = [0, 2, 3, 5];
/// Room for a message of the kernel; of a longer one the beginning is enough.
const MESSAGE: usize = 8192;
/// Who changes chains all the time is followed at most this often.
const PERIOD: Duration = Duration::from_secs(2);
/// When chains that could not be asked for are asked for again.
const RETRY: Duration = Duration::from_secs(60);

/// What the rules mean.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chains {
    /// Whether the addresses of what arrives are translated, as for a service.
    pub translates: bool,
    /// Chains that drop what is forwarded unless one of their rules accepts it, by family, table and
    /// name.
    pub dropping: Vec<String>,
}

/// Follows the chains.
#[derive(Debug)]
pub struct Watch {
    /// Tells of changes.
    changes: Option<Socket>,
    legacy: Legacy,
    /// What the chains of nftables mean.
    found: Chains,
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
        let listen = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.bind_auto()?;
            socket.add_membership(GROUP)?;
            socket.set_non_blocking(true)?;
            Ok(socket)
        };
        let changes = listen().map_err(|error| {
            tracing::info!("the kernel has no nftables to listen to: {error}");
        });
        Self {
            changes: changes.ok(),
            legacy: Legacy::new(now),
            found: Chains::default(),
            chains: Chains::default(),
            error: None,
            doubtful: true,
            next: now,
        }
    }

    /// What is readable when something has changed.
    pub fn fd(&self) -> Option<RawFd> {
        self.changes.as_ref().map(Socket::as_raw_fd)
    }

    /// When [`Self::look`] has something to do though nothing came.
    pub fn deadline(&self) -> Option<Instant> {
        let chains = self.doubtful.then_some(self.next);
        chains.into_iter().chain(self.legacy.deadline()).min()
    }

    /// Takes in what the kernel tells.
    pub fn follow(&mut self) {
        let Some(socket) = &self.changes else { return };
        let mut buffer = Vec::with_capacity(MESSAGE);
        loop {
            buffer.clear();
            match socket.recv(&mut buffer, 0) {
                Ok(_) => self.doubtful |= tells_of_chains(&buffer),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // ENOBUFS, once per overrun: reading goes on after it.
                Err(_) => self.doubtful = true,
            }
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
        let changed = chains != self.chains;
        self.chains = chains;
        changed
    }

    /// Asks for the chains of nftables.
    fn ask(&mut self, now: Instant) {
        self.doubtful = false;
        self.next = now + PERIOD;
        let found = nft::run(&["-j", "list", "chains"], "")
            .map_err(|error| match error.kind() {
                ErrorKind::NotFound => {
                    "there is no program nft; install the package nftables".to_owned()
                }
                _ => error.to_string(),
            })
            .and_then(|text| Chains::parse(&text))
            .map(Chains::without_prepared);
        self.error = None;
        self.found = found.unwrap_or_else(|error| {
            self.error = Some(error);
            if self.changes.is_some() {
                self.doubtful = true;
                self.next = now + RETRY;
            }
            // Who asks conntrack in vain loses some speed, who does not ask it breaks services.
            Chains {
                translates: self.changes.is_some(),
                ..Chains::default()
            }
        });
    }

    /// What the rules mean, as of the last look.
    pub fn chains(&self) -> &Chains {
        &self.chains
    }

    /// What is missing for the kernel to carry on, with the remedy.
    pub fn hints(&self) -> impl Iterator<Item = String> + '_ {
        let dropping = self.chains.dropping.iter().map(|chain| {
            format!(
                "the nftables chain {chain} drops what is forwarded unless a rule accepts it: \
                 without one for pods' packets, the kernel cannot carry them when the dataplane is \
                 away (for example: nft insert rule {chain} oifname \"{0}\" accept; nft insert rule \
                 {chain} iifname \"{0}\" accept)",
                DEVICE
            )
        });
        let unknown = self.error.iter().filter(|_| self.changes.is_some());
        let unknown = unknown.map(|error| {
            format!(
                "whether rules of nftables translate or drop pods' packets is not known: {error}"
            )
        });
        dropping.chain(unknown).chain(self.legacy.hints())
    }
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
            if chain.table == TABLE || matches!(&*chain.family, "bridge" | "arp" | "netdev") {
                continue;
            }
            let is = |field: &Option<String>, value| field.as_deref() == Some(value);
            chains.translates |= is(&chain.kind, "nat") && is(&chain.hook, "prerouting");
            if is(&chain.hook, "forward") && is(&chain.policy, "drop") {
                let Chain {
                    family,
                    table,
                    name,
                    ..
                } = chain;
                chains.dropping.push(format!("{family} {table} {name}"));
            }
        }
        Ok(chains)
    }

    /// Leaves out chains with a rule about our device: somebody has thought of us.
    fn without_prepared(mut self) -> Self {
        self.dropping.retain(|chain| {
            let args: Vec<_> = ["list", "chain"]
                .into_iter()
                .chain(chain.split(' '))
                .collect();
            !nft::run(&args, "").is_ok_and(|rules| rules.contains(DEVICE))
        });
        self
    }
}

/// Whether one of a datagram's messages tells of a table or a chain.
fn tells_of_chains(mut datagram: &[u8]) -> bool {
    // struct nlmsghdr: length, type, flags, and more; the type's lower byte is nftables' own.
    const HEADER: usize = 16;
    while let Some(header) = datagram.first_chunk::<HEADER>() {
        let [a, b, c, d, kind, ..] = *header;
        if OF_CHAINS.contains(&kind) {
            return true;
        }
        let length = usize::try_from(u32::from_ne_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        let next = length.max(HEADER).next_multiple_of(4);
        datagram = datagram.get(next..).unwrap_or_default();
    }
    false
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
            of("nat", "postrouting", "accept"),
            of("nat", "output", "accept"),
            of("filter", "prerouting", "accept"),
            of("filter", "forward", "accept"),
            of("filter", "input", "drop"),
            // One that others call, as those of each service are.
            chain("ip", "x", ""),
            chain("inet", "podway", &hook("nat", "prerouting", "accept")),
            chain("bridge", "x", &hook("filter", "forward", "drop")),
        ] {
            assert_eq!(parse(&harmless), Chains::default(), "{harmless}");
        }
        let dropping = of("filter", "forward", "drop");
        assert_eq!(parse(&dropping).dropping, ["ip x y"]);
        assert!(!parse(&dropping).translates);
        assert!(Chains::parse("nft: no").is_err());
    }

    #[test]
    fn rules_alone_are_no_reason_to_ask_again() {
        let message = |kind: u8| {
            let mut bytes = 20_u32.to_ne_bytes().to_vec();
            bytes.extend([kind, 10]);
            bytes.resize(20, 0);
            bytes
        };
        let (chain, rule) = (message(3), message(6));
        assert!(tells_of_chains(&chain));
        assert!(!tells_of_chains(&rule));
        assert!(tells_of_chains(&[rule.clone(), message(2)].concat()));
        assert!(!tells_of_chains(&[rule.clone(), message(15)].concat()));
        for length in 0..16 {
            assert!(!tells_of_chains(&chain[..length]), "{length}");
        }
    }
}
