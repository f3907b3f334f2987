//! Loading without privileges, and attaching to real interfaces. Each test has a network namespace
//! of its own. They need root.

mod support;

use std::io::{self, BufRead, BufReader};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use libbpf_rs::query::ProgInfoIter;
use libbpf_rs::{Xdp, XdpFlags, libbpf_sys};
use podway_xdp_redirect::{
    AttachError, ModeChoice, PassCause, PortEntry, PortStats, Redirect, RefuseCause, Role, XdpMode,
};
use support::node::{POD, REMOTE};
use support::packets::{ETHERTYPE, PEER_MAC, PORT_MAC, Tcp, packet};
use support::{ifindex, in_netns, ip, send_frame, veth};

/// How ip(8) shows the program on an interface: `None`, `xdp` (native) or `xdpgeneric`.
fn shown(interface: &str) -> Option<String> {
    let text = ip(&format!("-o link show dev {interface}"));
    text.split(' ')
        .find(|word| word.starts_with("xdp"))
        .map(str::to_owned)
}

/// The names of the programs at the tcx ingress of an interface, in the order in which they run.
#[allow(
    unsafe_code,
    reason = "libbpf-rs does not ask an interface for its programs"
)]
fn at_tcx(interface: &str) -> Vec<String> {
    let mut ids = [0; 8];
    let mut answer = libbpf_sys::bpf_prog_query_opts {
        sz: size_of::<libbpf_sys::bpf_prog_query_opts>() as libbpf_sys::size_t,
        prog_ids: ids.as_mut_ptr(),
        ..Default::default()
    };
    answer.__bindgen_anon_1.count = u32::try_from(ids.len()).unwrap();
    let index = i32::try_from(ifindex(interface)).unwrap();
    // SAFETY: `answer` is valid for writes and its size field bounds them; it says how many ids
    // there is room for.
    let result = unsafe {
        libbpf_sys::bpf_prog_query_opts(index, libbpf_sys::BPF_TCX_INGRESS, &raw mut answer)
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    // SAFETY: the kernel has filled this member; any bits are an integer.
    let count = unsafe { answer.__bindgen_anon_1.count };
    let name = |id: &u32| {
        let program = ProgInfoIter::default().find(|program| program.id == *id);
        program.map_or_else(String::new, |program| {
            program.name.to_string_lossy().into_owned()
        })
    };
    ids[..count as usize].iter().map(name).collect()
}

fn patiently(mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !done() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

#[test]
fn each_mode_is_got_reported_and_dropped() {
    in_netns(|| {
        veth("pod0", "eth0", 1);
        let redirect = Redirect::load().unwrap();
        let index = ifindex("pod0");
        for (choice, mode, word) in [
            (ModeChoice::Native, XdpMode::Native, "xdp"),
            (ModeChoice::Generic, XdpMode::Generic, "xdpgeneric"),
            (ModeChoice::Auto(XdpMode::Native), XdpMode::Native, "xdp"),
            (
                ModeChoice::Auto(XdpMode::Generic),
                XdpMode::Generic,
                "xdpgeneric",
            ),
        ] {
            assert_eq!(shown("pod0"), None);
            let attachment = redirect.attach(index, choice).unwrap();
            assert_eq!(attachment.mode(), mode);
            assert_eq!(attachment.ifindex(), index);
            assert_eq!(attachment.reason(), None);
            assert_eq!(shown("pod0").as_deref(), Some(word));
        }
        assert_eq!(shown("pod0"), None);
    });
}

#[test]
fn the_program_counts_frames_that_arrive() {
    in_netns(|| {
        veth("pod0", "eth0", 1);
        let redirect = Redirect::load().unwrap();
        let index = ifindex("pod0");
        let port = PortEntry {
            role: Role::Pod,
            mac: PORT_MAC,
            slot: 1,
            xsk_base: 0,
            queues: 1,
            mtu: 1500,
            any_source: false,
        };
        redirect.set_port(index, &port).unwrap();
        redirect.open_gate();
        let frame = [&[0xff; 6][..], &PEER_MAC, &[8, 6], &[0; 46]].concat();
        for choice in [ModeChoice::Native, ModeChoice::Generic] {
            let _attachment = redirect.attach(index, choice).unwrap();
            redirect.clear_slot(1).unwrap();
            send_frame(ifindex("eth0"), &frame);
            let mut expected = PortStats::default();
            expected.passed[PassCause::NotForUs as usize] = 1;
            patiently(|| redirect.counters(1).unwrap() == expected);
            assert_eq!(redirect.counters(1).unwrap(), expected, "{choice:?}");
        }
    });
}

/// The kernel takes the tag off the frame before the program sees it.
#[test]
fn a_vlan_tag_beside_the_frame_is_seen_at_tcx() {
    in_netns(|| {
        veth("pod0", "eth0", 1);
        let redirect = Redirect::load().unwrap();
        let index = ifindex("pod0");
        let port = PortEntry {
            role: Role::Pod,
            mac: PORT_MAC,
            slot: 1,
            xsk_base: 0,
            queues: 1,
            mtu: 1500,
            any_source: false,
        };
        redirect.set_port(index, &port).unwrap();
        redirect.open_gate();
        let _attachment = redirect.attach_classifier(index).unwrap();
        let good = packet(POD, REMOTE, 64, Tcp, b"x");
        let tagged = [&good[..ETHERTYPE], &[0x81, 0, 0, 7], &good[ETHERTYPE..]].concat();
        let mut expected = PortStats::default();
        let mut send = |frame: &[u8], counted: fn(&mut PortStats) -> &mut u64| {
            send_frame(ifindex("eth0"), frame);
            *counted(&mut expected) += 1;
            patiently(|| redirect.counters(1).unwrap() == expected);
            assert_eq!(redirect.counters(1).unwrap(), expected);
        };
        // The pod is not attached.
        send(&good, |stats| {
            &mut stats.refused[RefuseCause::SpoofedSource as usize]
        });
        send(&tagged, |stats| {
            &mut stats.passed[PassCause::NotIp as usize]
        });
    });
}

#[test]
fn the_tcx_programs_come_and_go_with_their_attachments() {
    in_netns(|| {
        veth("pod0", "eth0", 1);
        let redirect = Redirect::load().unwrap();
        let (pod, eth) = (ifindex("pod0"), ifindex("eth0"));
        assert_eq!(at_tcx("pod0"), [""; 0]);
        let classifier = redirect.attach_classifier(pod).unwrap();
        let transmitter = redirect.attach_transmitter(eth).unwrap();
        assert_eq!(at_tcx("pod0"), ["podway_classify"]);
        assert_eq!(at_tcx("eth0"), ["podway_transmit"]);
        // They live as long as their attachments, whatever happens to the loader, and go although
        // a child has a copy of the descriptors.
        drop(redirect);
        let copies = copies_of_links();
        assert!(copies.len() >= 2);
        drop(classifier);
        assert_eq!(at_tcx("pod0"), [""; 0]);
        assert_eq!(at_tcx("eth0"), ["podway_transmit"]);
        drop(transmitter);
        assert_eq!(at_tcx("eth0"), [""; 0]);
        drop(copies);
    });
}

/// Unlike XDP, tcx has room for the programs of others.
#[test]
fn the_classifier_stands_beside_other_programs() {
    in_netns(|| {
        veth("pod0", "eth0", 1);
        let (one, other) = (Redirect::load().unwrap(), Redirect::load().unwrap());
        let index = ifindex("pod0");
        let first = one.attach_classifier(index).unwrap();
        let _second = other.attach_classifier(index).unwrap();
        assert_eq!(at_tcx("pod0"), ["podway_classify"; 2]);
        // The same program a second time is a mistake.
        let error = one.attach_classifier(index).unwrap_err();
        assert!(matches!(error, AttachError::Refused { .. }), "{error:?}");
        drop(first);
        assert_eq!(at_tcx("pod0"), ["podway_classify"]);
    });
}

#[test]
fn a_killed_process_leaves_no_program_behind() {
    const NAME: &str = "a_killed_process_leaves_no_program_behind";
    const CHILD: &str = "PODWAY_TEST_ATTACH_AND_WAIT";
    if std::env::var_os(CHILD).is_some() {
        let redirect = Redirect::load().unwrap();
        let _xdp = redirect
            .attach(ifindex("eth0"), ModeChoice::Generic)
            .unwrap();
        let _classifier = redirect.attach_classifier(ifindex("pod0")).unwrap();
        let _transmitter = redirect.attach_transmitter(ifindex("eth0")).unwrap();
        println!("\nattached");
        // Until it is killed; should its parent die first, this ends.
        let _ = io::stdin().read_line(&mut String::new());
        return;
    }
    in_netns(|| {
        veth("pod0", "eth0", 1);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME, "--nocapture", "--test-threads=1"])
            .env(CHILD, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let attached = lines.map_while(Result::ok).any(|line| line == "attached");
        let shown_then = (attached, shown("eth0"), at_tcx("pod0"), at_tcx("eth0"));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(
            shown_then,
            (
                true,
                Some("xdpgeneric".into()),
                vec!["podway_classify".into()],
                vec!["podway_transmit".into()]
            )
        );
        let gone =
            || (shown("eth0"), at_tcx("pod0"), at_tcx("eth0")) == (None, Vec::new(), Vec::new());
        assert!(patiently(gone));
    });
}

/// The loopback driver has no XDP of its own.
#[test]
fn a_driver_without_native_xdp_falls_back_with_the_reason() {
    in_netns(|| {
        let redirect = Redirect::load().unwrap();
        let lo = ifindex("lo");
        let attachment = redirect
            .attach(lo, ModeChoice::Auto(XdpMode::Native))
            .unwrap();
        assert_eq!(attachment.mode(), XdpMode::Generic);
        let reason = attachment.reason().unwrap();
        assert!(
            reason.starts_with("native XDP: its driver has no native XDP ("),
            "{reason}"
        );
        drop(attachment);
        let attachment = redirect
            .attach(lo, ModeChoice::Auto(XdpMode::Generic))
            .unwrap();
        assert_eq!(
            (attachment.mode(), attachment.reason()),
            (XdpMode::Generic, None)
        );
        drop(attachment);
        let error = redirect.attach(lo, ModeChoice::Native).unwrap_err();
        assert!(matches!(error, AttachError::Refused { .. }), "{error:?}");
        let text = error.to_string();
        assert!(
            text.starts_with("cannot attach to lo: native XDP: its driver"),
            "{text}"
        );
        assert_eq!(shown("lo"), None);
    });
}

#[test]
fn a_taken_interface_names_the_program_that_has_it() {
    in_netns(|| {
        veth("pod0", "eth0", 1);
        let (one, other) = (Redirect::load().unwrap(), Redirect::load().unwrap());
        let index = ifindex("pod0");
        let held = one.attach(index, ModeChoice::Generic).unwrap();
        for choice in [
            ModeChoice::Generic,
            ModeChoice::Native,
            ModeChoice::Auto(XdpMode::Native),
        ] {
            let error = other.attach(index, choice).unwrap_err();
            assert!(matches!(error, AttachError::Busy { .. }), "{error:?}");
            let text = error.to_string();
            let start = "pod0 already has the XDP program 'podway_redirect' (id ";
            assert!(text.starts_with(start), "{text}");
        }
        // The program lives as long as its attachment, whatever happens to the loader.
        drop(one);
        assert_eq!(shown("pod0").as_deref(), Some("xdpgeneric"));
        drop(held);
        assert_eq!(
            other.attach(index, ModeChoice::Native).unwrap().mode(),
            XdpMode::Native
        );
    });
}

/// Copies of all BPF link descriptors of this process, as a child has them between fork and exec.
#[allow(
    unsafe_code,
    reason = "dup(2) of a descriptor by number has no safe interface"
)]
fn copies_of_links() -> Vec<OwnedFd> {
    let entries = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(Result::unwrap);
    let links = entries.filter(|entry| {
        let target = std::fs::read_link(entry.path()).unwrap_or_default();
        target.to_string_lossy().contains("bpf") && target.to_string_lossy().contains("link")
    });
    links
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            // SAFETY: the descriptor may have been closed meanwhile, and then this fails.
            let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 0) };
            // SAFETY: a new descriptor that nobody else has.
            (copy >= 0).then(|| unsafe { OwnedFd::from_raw_fd(copy) })
        })
        .collect()
}

#[test]
fn dropping_detaches_while_a_copy_of_the_descriptor_is_open() {
    in_netns(|| {
        veth("pod0", "eth0", 1);
        let redirect = Redirect::load().unwrap();
        let index = ifindex("pod0");
        let attachment = redirect.attach(index, ModeChoice::Generic).unwrap();
        let copies = copies_of_links();
        assert!(!copies.is_empty());
        drop(attachment);
        assert_eq!(shown("pod0"), None);
        drop(redirect.attach(index, ModeChoice::Native).unwrap());
        drop(copies);
    });
}

#[test]
fn the_remedy_for_a_taken_interface_works() {
    in_netns(|| {
        veth("pod0", "eth0", 1);
        let redirect = Redirect::load().unwrap();
        let index = ifindex("pod0");
        // What other programs leave behind: attached by netlink, without an owner.
        let left_behind = Xdp::new(redirect.as_fd());
        left_behind
            .attach(i32::try_from(index).unwrap(), XdpFlags::DRV_MODE)
            .unwrap();
        let error = redirect
            .attach(index, ModeChoice::Native)
            .unwrap_err()
            .to_string();
        assert!(error.contains("(ip link set dev pod0 xdp off)"), "{error}");
        ip("link set dev pod0 xdp off");
        assert_eq!(
            redirect.attach(index, ModeChoice::Native).unwrap().mode(),
            XdpMode::Native
        );
    });
}

#[test]
fn an_interface_that_is_not_there_is_named() {
    in_netns(|| {
        let redirect = Redirect::load().unwrap();
        for index in [0, 4242, u32::MAX] {
            let error = redirect
                .attach(index, ModeChoice::Generic)
                .unwrap_err()
                .to_string();
            let wanted = format!("there is no interface with index {index} in");
            assert!(error.starts_with(&wanted), "{error}");
            for error in [
                redirect.attach_classifier(index).unwrap_err(),
                redirect.attach_transmitter(index).unwrap_err(),
            ] {
                assert!(error.to_string().starts_with(&wanted), "{error}");
            }
        }
        // A link outlives its interface without harm.
        veth("pod0", "eth0", 1);
        let attachment = redirect
            .attach(ifindex("pod0"), ModeChoice::Generic)
            .unwrap();
        let classifier = redirect.attach_classifier(ifindex("pod0")).unwrap();
        ip("link del pod0");
        drop((attachment, classifier));
    });
}

/// Leaves the calling thread these effective capabilities, by number, and no others.
#[allow(unsafe_code, reason = "capset(2) has no safe interface")]
fn keep_capabilities(keep: &[u32]) {
    // _LINUX_CAPABILITY_VERSION_3, pid 0: the calling thread.
    let header: [u32; 2] = [0x2008_0522, 0];
    let mut sets = [0u32; 2];
    for capability in keep {
        sets[*capability as usize / 32] |= 1 << (capability % 32);
    }
    // Effective, permitted, inheritable; first those below 32.
    let data = [sets[0], sets[0], 0, sets[1], sets[1], 0];
    // SAFETY: header and data have the layout that capset(2) reads.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

const CAP_NET_ADMIN: u32 = 12;
const CAP_BPF: u32 = 39;

#[test]
fn two_capabilities_are_enough_and_without_them_the_error_says_so() {
    in_netns(|| {
        veth("pod0", "eth0", 1);
        let index = ifindex("pod0");
        keep_capabilities(&[CAP_NET_ADMIN, CAP_BPF]);
        let redirect = Redirect::load().unwrap();
        drop(redirect.attach(index, ModeChoice::Generic).unwrap());
        drop(redirect.attach(index, ModeChoice::Native).unwrap());
        drop(redirect.attach_classifier(index).unwrap());
        redirect
            .add_prefix("10.0.0.0/8".parse().unwrap(), 1500)
            .unwrap();
        assert_eq!(redirect.counters(0).unwrap(), PortStats::default());
        keep_capabilities(&[]);
        let error = Redirect::load().unwrap_err().to_string();
        assert!(
            error.contains("run as root, or with the capabilities CAP_BPF and"),
            "{error}"
        );
        assert!(error.contains("libbpf says: "), "{error}");
    });
}
