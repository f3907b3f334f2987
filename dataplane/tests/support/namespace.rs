//! A network namespace that lives as long as the test's thread.

use std::ffi::CString;
use std::process::Command;
use std::time::{Duration, Instant};

/// Runs `test` in a thread with a network namespace of its own, which the kernel removes with all
/// that is in it when the thread ends, however it ends.
pub(crate) fn in_namespace(test: impl FnOnce() + Send) {
    let result = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                // SAFETY: takes an integer; it changes the namespace of this thread only.
                let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
                let reason = std::io::Error::last_os_error();
                assert_eq!(result, 0, "these tests need root: unshare: {reason}");
                // No router solicitations among the frames that are counted.
                for link in ["all", "default"] {
                    let path = format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6");
                    std::fs::write(path, "1").unwrap();
                }
                test();
            })
            .join()
    });
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `ip` with the words of `arguments`.
pub(crate) fn ip(arguments: &str) {
    run("ip", arguments);
}

/// Runs `program` with the words of `arguments` in the namespace of this thread.
pub(crate) fn run(program: &str, arguments: &str) {
    let output = Command::new(program)
        .args(arguments.split_whitespace())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Makes `link` a wire: nothing longer than the MTU, and no unfinished checksum.
pub(crate) fn make_a_wire_of(link: &str) {
    run(
        "ethtool",
        &format!(
            "-K {link} tso off gso off tx-udp-segmentation off tx-udp_tnl-segmentation off \
             tx-udp_tnl-csum-segmentation off tx off"
        ),
    );
}

/// Waits until `link` sends: the kernel gives a link its queue some time after the
/// carrier came, and until then drops what is sent without an error.
pub(crate) fn wait_for(link: &str) {
    let ready = patiently(|| {
        let show = Command::new("ip")
            .args(["link", "show", "dev", link])
            .output();
        String::from_utf8_lossy(&show.unwrap().stdout).contains("state UP")
    });
    assert!(ready, "{link} does not come up");
}

/// Index of an interface of this namespace.
pub(crate) fn ifindex(name: &str) -> u32 {
    let name = CString::new(name).unwrap();
    // SAFETY: reads a string that ends in a zero.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    assert_ne!(index, 0, "no interface {name:?}");
    index
}

/// Polls until `done` says so, for two seconds at most; whether it did.
pub(crate) fn patiently(mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        if done() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}
