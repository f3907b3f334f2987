//! How the kernel carries what the fast path leaves to it, and all when the fast path is away.

use super::{Facts, Findings};

/// Beyond this the conntrack table is nearly full, in hundredths.
const NEARLY_FULL: u64 = 80;
/// Beyond this new connections are lost at the next peak.
const FULL: u64 = 95;
/// `rp_filter`: a packet's source must be reached by the interface that it came by.
const STRICT: u32 = 1;
/// Any interface will do.
const LOOSE: u32 = 2;

pub(super) fn ip_forward(facts: &Facts, findings: &mut Findings) {
    match facts.forwarding.ipv4 {
        Some(true) => findings.ok("IPv4", "the kernel forwards"),
        Some(false) => findings.fault(
            "IPv4",
            "the kernel does not forward",
            "sysctl -w net.ipv4.ip_forward=1",
        ),
        None => findings.warn(
            "IPv4",
            "whether the kernel forwards is not known",
            "see sysctl net.ipv4.ip_forward",
        ),
    }
    let cidrs = facts
        .status()
        .into_iter()
        .flat_map(|status| &status.pod_cidrs);
    let needed = cidrs.into_iter().any(|cidr| cidr.addr().is_ipv6());
    match facts.forwarding.ipv6 {
        Some(true) => findings.ok("IPv6", "the kernel forwards"),
        Some(false) | None if !needed => {
            findings.ok("IPv6", "the kernel does not forward, and no pod has IPv6")
        }
        _ => findings.fault(
            "IPv6",
            "the kernel does not forward",
            "sysctl -w net.ipv6.conf.all.forwarding=1",
        ),
    }
}

pub(super) fn rp_filter(facts: &Facts, findings: &mut Findings) {
    let switches = &facts.forwarding.rp_filter;
    let all = switches.get("all").copied().unwrap_or(0);
    if all == LOOSE {
        findings.warn(
            "all",
            "sources are checked loosely on every interface, so that pods can use others' addresses \
             while the dataplane is stopped",
            "sysctl -w net.ipv4.conf.all.rp_filter=0",
        );
    }
    let several = facts.uplinks().count() > 1;
    for name in facts.uplinks().filter(|name| facts.link(name).is_some()) {
        let own = switches.get(name).copied().unwrap_or(0).max(all);
        match own {
            STRICT if several => findings.warn(
                name,
                "sources are checked strictly, and there are several uplinks: what comes by another \
                 one than answers leave by is lost",
                format!("sysctl -w net.ipv4.conf.{name}.rp_filter=2"),
            ),
            _ => findings.ok(name, format!("rp_filter is {own}")),
        }
    }
}

/// How control begins to tell of a chain that drops what is forwarded (`netfilter/forward.rs`).
pub(super) const DROPS_FORWARDED: &str = "drops what is forwarded";

/// How it begins to tell that it cannot read rules (`netfilter.rs`).
const UNREAD: &str = "whether rules of nftables ";

/// Control reads the rules of such chains, and tells in its hints whether they let pods' packets pass.
pub(super) fn rules(facts: &Facts, findings: &mut Findings) {
    let forwarding = &facts.forwarding;
    let Some(dropping) = &forwarding.dropping else {
        findings.warn(
            "",
            "rules of nftables cannot be listed",
            "install nftables and run it as root",
        );
        return;
    };
    let hints = facts.status().map(|status| status.hints.as_slice());
    for chain in dropping {
        let named =
            |hint: &&String| hint.contains(&format!("nftables chain {chain} {DROPS_FORWARDED}"));
        match hints {
            Some(hints) => match hints.iter().find(named) {
                Some(hint) => {
                    let remedy = hint
                        .split("(for example: ")
                        .nth(1)
                        .unwrap_or("see podway status");
                    findings.fault(
                        chain,
                        "drops what is forwarded, and no rule lets pods' packets pass: the kernel \
                         cannot carry them when the dataplane is away",
                        remedy.trim_end_matches(')'),
                    );
                }
                // That hint is told by itself; here it only keeps a chain from being found sound.
                None if hints.iter().any(|hint| hint.starts_with(UNREAD)) => findings.warn(
                    chain,
                    "drops by default, and control cannot read its rules",
                    "see podway status",
                ),
                None => findings.ok(
                    chain,
                    "drops by default, and has rules that let pods' packets pass",
                ),
            },
            None => findings.warn(
                chain,
                "drops what is forwarded unless a rule accepts it",
                "see that its rules accept what comes from and goes to pods",
            ),
        }
    }
    for program in &forwarding.dropping_legacy {
        findings.warn(
            program,
            "its chain FORWARD drops by default",
            format!("see that {program} -S FORWARD accepts what comes from and goes to pods"),
        );
    }
    if dropping.is_empty() && forwarding.dropping_legacy.is_empty() {
        findings.ok("", "no chain drops what is forwarded by default");
    }
}

pub(super) fn conntrack(facts: &Facts, findings: &mut Findings) {
    let Some((entries, room)) = facts.forwarding.conntrack else {
        return findings.ok("", "the kernel tracks no connections");
    };
    let hundredths = (entries * 100).checked_div(room).unwrap_or(0);
    let message = format!("{entries} of {room} entries");
    let remedy = format!(
        "sysctl -w net.netfilter.nf_conntrack_max={}",
        room.saturating_mul(2)
    );
    match hundredths {
        FULL.. => findings.fault("", message + ": new connections are lost", remedy),
        NEARLY_FULL.. => findings.warn("", message + ": nearly full", remedy),
        _ => findings.ok("", message),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict::{Fault, Ok, Warning};
    use super::super::facts::{Control, Named};
    use super::super::testing::{found, healthy, status, verdict};

    #[test]
    fn what_is_not_forwarded_is_named() {
        let mut facts = healthy();
        facts.forwarding.ipv4 = Some(false);
        assert_eq!(
            found("ip-forward", &facts)[0],
            (
                Fault,
                "IPv4".to_owned(),
                "sysctl -w net.ipv4.ip_forward=1".to_owned()
            )
        );
        let mut facts = healthy();
        facts.forwarding.ipv6 = Some(false);
        assert_eq!(verdict("ip-forward", &facts), Ok, "no pod has it");
        status(&mut facts)
            .pod_cidrs
            .push("fd00::/64".parse().unwrap());
        assert_eq!(verdict("ip-forward", &facts), Fault);
    }

    #[test]
    fn checks_of_sources_fit_the_uplinks() {
        let mut facts = healthy();
        facts.forwarding.rp_filter.insert("eth0".to_owned(), 1);
        assert_eq!(verdict("rp-filter", &facts), Ok);
        facts.named.push(Named {
            interface: "eth1".to_owned(),
            uplink: true,
            waiting: None,
        });
        assert_eq!(verdict("rp-filter", &facts), Warning);
        let mut facts = healthy();
        facts.forwarding.rp_filter.insert("all".to_owned(), 2);
        assert_eq!(verdict("rp-filter", &facts), Warning);
    }

    #[test]
    fn rules_that_drop_are_named_with_what_lets_pods_pass() {
        let mut facts = healthy();
        facts.forwarding.dropping = Some(vec!["ip filter FORWARD".to_owned()]);
        assert_eq!(verdict("forward-rules", &facts), Ok, "control finds a way");
        status(&mut facts).hints = vec![
            "the nftables chain ip filter FORWARD drops what is forwarded unless (for example: nft x)"
                .to_owned(),
        ];
        let expected = (Fault, "ip filter FORWARD".to_owned(), "nft x".to_owned());
        assert_eq!(found("forward-rules", &facts), [expected]);
        // Another hint about the same chain, which is one of its own.
        status(&mut facts).hints = vec![
            "the nftables chain ip filter FORWARD drops what conntrack finds invalid".to_owned(),
        ];
        assert_eq!(verdict("forward-rules", &facts), Ok);
        assert_eq!(verdict("hint", &facts), Warning);
        status(&mut facts).hints =
            vec!["whether rules of nftables drop is not known: no".to_owned()];
        assert_eq!(verdict("forward-rules", &facts), Warning);
        facts.control = Control::Away;
        assert_eq!(verdict("forward-rules", &facts), Warning);
        facts.forwarding.dropping = None;
        assert_eq!(verdict("forward-rules", &facts), Warning);
        let mut facts = healthy();
        facts
            .forwarding
            .dropping_legacy
            .push("iptables-legacy".to_owned());
        assert_eq!(verdict("forward-rules", &facts), Warning);
    }

    #[test]
    fn a_full_table_is_a_fault() {
        for (entries, expected) in [(0, Ok), (79, Ok), (80, Warning), (95, Fault), (200, Fault)] {
            let mut facts = healthy();
            facts.forwarding.conntrack = Some((entries, 100));
            assert_eq!(verdict("conntrack", &facts), expected, "{entries}");
        }
        let mut facts = healthy();
        facts.forwarding.conntrack = None;
        assert_eq!(verdict("conntrack", &facts), Ok);
    }
}
