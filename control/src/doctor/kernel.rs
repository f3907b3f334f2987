//! What the kernel has. Versions are those in which a feature came; ARCHITECTURE.md says what each is
//! used for.

use podway_proto::config::IngressChoice;

use super::{Facts, Findings};

/// Frames of several buffers by AF_XDP, and tcx.
const LEAST: (u32, u32) = (6, 6);
/// TAPs with offloads inside UDP tunnels.
const TAP: (u32, u32) = (6, 17);
/// No clock that says this year or less is right: 2025 in seconds since 1970.
const BUILT: u64 = 1_735_689_600;

pub(super) fn version(facts: &Facts, findings: &mut Findings) {
    let release = facts.kernel.release.as_str();
    let ingress = facts.configuration.config.dataplane.ingress;
    match number(release) {
        None => findings.warn(
            "",
            format!("Linux '{release}' has no version that can be read"),
            "see uname -r",
        ),
        Some(version) if version < LEAST => findings.fault(
            "",
            format!("Linux {release} lacks tcx and AF_XDP for super-frames"),
            "use Linux 6.17, or at least 6.6",
        ),
        Some(version) if version < TAP => {
            let message = format!("Linux {release} has no TAP with offloads inside tunnels");
            match ingress {
                IngressChoice::Tap => findings.fault(
                    "",
                    message + ", which dataplane.ingress = \"tap\" needs",
                    "use Linux 6.17, or write ingress = \"auto\"",
                ),
                _ => findings.warn(
                    "",
                    message + ": ports are received by AF_XDP, and TCP is slower",
                    "use Linux 6.17",
                ),
            }
        }
        Some(_) => findings.ok(
            "",
            format!("Linux {release} has tcx and TAPs with tunnel offloads"),
        ),
    }
}

pub(super) fn af_xdp(facts: &Facts, findings: &mut Findings) {
    let needed = facts.configuration.config.dataplane.ingress == IngressChoice::AfXdp
        || number(&facts.kernel.release).is_some_and(|version| version < TAP);
    match facts.kernel.af_xdp {
        Some(true) => findings.ok("", "the kernel has AF_XDP sockets"),
        Some(false) if needed => findings.fault(
            "",
            "the kernel has no AF_XDP sockets, by which ports are to be received",
            "use a kernel with CONFIG_XDP_SOCKETS",
        ),
        Some(false) => findings.warn(
            "",
            "the kernel has no AF_XDP sockets: all ports are received by TAP",
            "use a kernel with CONFIG_XDP_SOCKETS",
        ),
        None => findings.warn(
            "",
            "whether the kernel has AF_XDP sockets is not known",
            "run it as root",
        ),
    }
}

/// libbpf loads a program that calls functions of the kernel by the kernel's types only.
pub(super) fn btf(facts: &Facts, findings: &mut Findings) {
    match facts.kernel.btf {
        true => findings.ok("", "the kernel tells its types"),
        false => findings.fault(
            "",
            "there is no /sys/kernel/btf/vmlinux, without which the programs cannot be loaded",
            "use a kernel with CONFIG_DEBUG_INFO_BTF",
        ),
    }
}

/// Functions of the kernel can be called by compiled programs only.
pub(super) fn jit(facts: &Facts, findings: &mut Findings) {
    match facts.kernel.jit {
        Some(0) => findings.fault(
            "",
            "the kernel interprets BPF programs in place of compiling them",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        Some(_) => findings.ok("", "BPF programs are compiled"),
        None => findings.ok("", "not shown in this network namespace"),
    }
}

pub(super) fn unprivileged_bpf(facts: &Facts, findings: &mut Findings) {
    match facts.kernel.unprivileged_bpf_disabled {
        Some(0) => findings.warn(
            "",
            "any user may load BPF programs",
            "sysctl -w kernel.unprivileged_bpf_disabled=2",
        ),
        _ => findings.ok("", "only privileged users may load BPF programs"),
    }
}

pub(super) fn bpf_filesystem(facts: &Facts, findings: &mut Findings) {
    findings.ok(
        "",
        match facts.kernel.bpf_filesystem {
            true => "mounted",
            false => "not mounted, nor needed: Podway pins nothing",
        },
    );
}

/// Workers read the clock at each burst: one that takes a system call or a slow device costs more than
/// the packets.
pub(super) fn clock(facts: &Facts, findings: &mut Findings) {
    const SLOW: [&str; 4] = ["acpi_pm", "hpet", "jiffies", "refined-jiffies"];
    let source = facts.kernel.clock_source.as_deref();
    match source {
        _ if facts.kernel.seconds < BUILT => findings.warn(
            "",
            "the clock is wrong by years, and with it the times in logs",
            "set up time synchronisation (chrony, systemd-timesyncd)",
        ),
        Some(slow) if SLOW.contains(&slow) => findings.warn(
            "",
            format!("the clock source {slow} is slow to read, and workers read it at each burst"),
            "see /sys/devices/system/clocksource/clocksource0 and the kernel's log on why tsc is out",
        ),
        Some(source) => findings.ok("", format!("clock source {source}")),
        None => findings.ok("", "the clock source is not shown"),
    }
}

/// Major and minor number of a release.
fn number(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::super::Verdict::{Fault, Ok, Warning};
    use super::super::testing::{healthy, verdict};
    use super::*;

    #[test]
    fn releases_are_compared_as_numbers() {
        for (release, expected) in [
            ("6.18.44-fc", Some((6, 18))),
            ("6.6", Some((6, 6))),
            ("6.6.0-rc1", Some((6, 6))),
            ("", None),
            ("six", None),
        ] {
            assert_eq!(number(release), expected, "{release}");
        }
    }

    #[test]
    fn each_version_has_its_verdict() {
        for (release, ingress, expected) in [
            ("6.18.1", IngressChoice::Auto, Ok),
            ("6.17.0", IngressChoice::Tap, Ok),
            ("6.16.9", IngressChoice::Auto, Warning),
            ("6.12.0", IngressChoice::Tap, Fault),
            ("6.5.0", IngressChoice::Auto, Fault),
            ("5.15.0", IngressChoice::AfXdp, Fault),
            ("?", IngressChoice::Auto, Warning),
        ] {
            let mut facts = healthy();
            facts.kernel.release = release.to_owned();
            facts.configuration.config.dataplane.ingress = ingress;
            assert_eq!(verdict("kernel", &facts), expected, "{release} {ingress}");
        }
    }

    #[test]
    fn a_kernel_without_features_is_named() {
        let with = |change: fn(&mut Facts)| {
            let mut facts = healthy();
            change(&mut facts);
            facts
        };
        let no_sockets = with(|f| f.kernel.af_xdp = Some(false));
        assert_eq!(verdict("af-xdp", &no_sockets), Warning);
        let mut needed = no_sockets.clone();
        needed.configuration.config.dataplane.ingress = IngressChoice::AfXdp;
        assert_eq!(verdict("af-xdp", &needed), Fault);
        assert_eq!(
            verdict("af-xdp", &with(|f| f.kernel.af_xdp = None)),
            Warning
        );
        assert_eq!(verdict("btf", &with(|f| f.kernel.btf = false)), Fault);
        assert_eq!(verdict("bpf-jit", &with(|f| f.kernel.jit = Some(0))), Fault);
        assert_eq!(verdict("bpf-jit", &with(|f| f.kernel.jit = None)), Ok);
        let anybody = with(|f| f.kernel.unprivileged_bpf_disabled = Some(0));
        assert_eq!(verdict("unprivileged-bpf", &anybody), Warning);
        assert_eq!(
            verdict("bpf-filesystem", &with(|f| f.kernel.bpf_filesystem = false)),
            Ok
        );
        let slow = with(|f| f.kernel.clock_source = Some("hpet".to_owned()));
        assert_eq!(verdict("clock", &slow), Warning);
        assert_eq!(verdict("clock", &with(|f| f.kernel.seconds = 0)), Warning);
    }
}
