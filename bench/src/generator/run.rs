#![allow(
    unsafe_code,
    reason = "libbpf-rs runs programs without a choice of batch size, and nothing safe sends a \
              signal to one thread or changes its scheduler"
)]
//! The generator: a BPF program that the kernel runs again and again on frames of its own.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::thread::JoinHandleExt as _;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Once};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{io, thread};

use libbpf_rs::libbpf_sys;
use libbpf_rs::skel::{OpenSkel as _, SkelBuilder as _};
use rustix::process::setpriority_process;
use rustix::thread::{CpuSet, sched_setaffinity};
use serde::Serialize;
use signal_hook::consts::SIGUSR1;

use super::attach::index;
use super::pacing::{BINS, Intervals};
use super::skel::generate::GenerateSkelBuilder;
use super::traffic::{FIRST_PORT, Template, Traffic};
use crate::netns::{Netns, join};
use crate::{Error, Result, cleanup};

/// Runs of the program between two flushes of what it has sent: with few, packets leave soon
/// after they were due; many cost least.
const PACED_BATCH: u32 = 8;
const FLAT_OUT_BATCH: u32 = 64;
/// The kernel takes it as unsigned: four billion runs last for minutes. A plan that is longer
/// ends early, and says so by the time that it took.
const REPEAT: i32 = -1;
/// The kernel takes a real-time thread off its CPU for the rest of a second of which it has used
/// 950 ms (`kernel.sched_rt_runtime_us`): longer runs have the highest priority of the others.
const REAL_TIME_BUDGET: Duration = Duration::from_millis(900);
/// Between two attempts to end the system call.
const NUDGE: Duration = Duration::from_millis(2);
/// How long after the time limit the system call must have ended.
const END_DEADLINE: Duration = Duration::from_secs(10);

/// How fast to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Rate {
    /// As fast as it goes.
    FlatOut,
    /// Packets per second, evenly.
    PerSecond(u64),
}

/// Wrong on purpose, for the tests of the checks: each must be found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Disturbance {
    /// None: what everybody else wants.
    None,
    /// Every n-th packet is counted as sent, and is not.
    Loses(u32),
    /// The rate is right, but n packets leave at once each time.
    Bursts(u32),
}

/// What to send, and how.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// The packets.
    pub traffic: Traffic,
    /// How fast.
    pub rate: Rate,
    /// For how long.
    pub duration: Duration,
    /// The CPU that sends. The kernel also does on it what follows from receipt, unless the
    /// receiver is told otherwise ([`super::receive`]).
    pub cpu: usize,
    /// Wrong on purpose.
    pub disturbance: Disturbance,
}

impl Plan {
    /// Sends on CPU 0, with nothing wrong.
    pub fn new(traffic: Traffic, rate: Rate, duration: Duration) -> Self {
        Self {
            traffic,
            rate,
            duration,
            cpu: 0,
            disturbance: Disturbance::None,
        }
    }
}

/// What the generator says it has done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sent {
    /// Packets.
    pub packets: u64,
    /// From the first to the last, in nanoseconds.
    pub nanoseconds: u64,
    /// Times between them.
    pub intervals: Intervals,
}

/// Sends out of an interface of a namespace, to the end of the plan.
///
/// # Errors
/// When the kernel refuses the program (Linux 5.18 is needed) or the plan makes no sense.
pub fn run(netns: &Netns, interface: &str, plan: &Plan) -> Result<Sent> {
    catch_nudges()?;
    let (plan, name) = (*plan, interface.to_owned());
    let template = plan.traffic.template()?;
    let limit = plan.duration;
    let generator = netns.thread(move || send(&name, &plan, &template));
    // The program sends nothing beyond its limit, but only a signal ends its runs.
    let begin = Instant::now();
    while !generator.is_finished() {
        thread::sleep(NUDGE);
        let interrupted = cleanup::interrupted();
        if begin.elapsed() > limit || interrupted.is_err() {
            nudge(&generator);
        }
        if begin.elapsed() > limit + END_DEADLINE {
            return Err(Error::Timeout {
                what: "the end of the generator".to_owned(),
                after: END_DEADLINE,
                last: String::new(),
            });
        }
    }
    join(generator)
}

fn send(interface: &str, plan: &Plan, template: &Template) -> Result<Sent> {
    let nothing = || Error::Unexpected("the generator has no variables".to_owned());
    let mut object = MaybeUninit::uninit();
    let mut open = GenerateSkelBuilder::default().open(&mut object)?;
    let constants = open.maps.rodata_data.as_deref_mut().ok_or_else(nothing)?;
    let values = &mut constants.plan;
    values.interval_ns = match plan.rate {
        Rate::FlatOut => 0,
        Rate::PerSecond(rate) => interval(rate)?,
    };
    values.limit_ns = u64::try_from(plan.duration.as_nanos()).unwrap_or(u64::MAX);
    values.interface = index(interface)?.unsigned_abs();
    values.flows = plan.traffic.flows.into();
    values.destinations = plan.traffic.destinations.into();
    values.first_port = FIRST_PORT.into();
    values.ip_sum = template.ip_sum.into();
    values.udp_sum = template.udp_sum.into();
    values.outer_udp_sum = template.outer_udp_sum.into();
    values.tunnel = plan.traffic.tunnel.is_some().into();
    (values.burst, values.lose) = match plan.disturbance {
        Disturbance::None => (1, 0),
        Disturbance::Loses(every) => (1, every),
        Disturbance::Bursts(length) => (length, 0),
    };
    let target_ns = values.interval_ns;
    let variables = open.maps.bss_data.as_deref_mut().ok_or_else(nothing)?;
    variables.headers = template.headers();

    let loaded = open.load()?;
    let mut cpus = CpuSet::new();
    cpus.set(plan.cpu);
    sched_setaffinity(None, &cpus)
        .map_err(|errno| Error::io(format!("run on CPU {}", plan.cpu))(errno.into()))?;
    let batch = match plan.rate {
        Rate::FlatOut => FLAT_OUT_BATCH,
        Rate::PerSecond(_) => {
            prefer_this_thread(plan.duration);
            PACED_BATCH
        }
    };
    run_live(loaded.progs.podway_generate.as_fd(), &template.frame, batch)?;

    let variables = loaded.maps.bss_data.as_deref().ok_or_else(nothing)?;
    let bins: [u64; BINS] = variables.intervals;
    Ok(Sent {
        packets: variables.sent,
        nanoseconds: variables.last_ns - variables.first_ns,
        intervals: Intervals {
            target_ns,
            bins: bins.to_vec(),
        },
    })
}

fn interval(rate: u64) -> Result<u64> {
    1_000_000_000_u64
        .checked_div(rate)
        .filter(|interval| *interval > 0)
        .ok_or_else(|| Error::Unexpected(format!("{rate} packets per second cannot be paced")))
}

/// Runs the program until a signal comes.
fn run_live(program: BorrowedFd<'_>, frame: &[u8], batch: u32) -> Result<()> {
    let length = u32::try_from(frame.len())
        .map_err(|_| Error::Unexpected(format!("a frame of {} bytes", frame.len())))?;
    let mut options = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as libbpf_sys::size_t,
        data_in: frame.as_ptr().cast(),
        data_size_in: length,
        repeat: REPEAT,
        flags: libbpf_sys::BPF_F_TEST_XDP_LIVE_FRAMES,
        batch_size: batch,
        ..Default::default()
    };
    // SAFETY: the descriptor is borrowed for the call, the frame is valid for the length given,
    // and `options` says how large it is.
    let result =
        unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_raw_fd(), &raw mut options) };
    let error = io::Error::from_raw_os_error(-result);
    if result == 0 || error.kind() == io::ErrorKind::Interrupted {
        return Ok(());
    }
    Err(Error::io("run the generator (BPF_PROG_RUN)")(error))
}

/// Keeps the CPU from all others. A paced generator stands for another machine: nothing of the
/// node under test shall keep it waiting, and nothing else either. Where this is not allowed, the
/// histogram tells whether it was needed.
fn prefer_this_thread(duration: Duration) {
    if duration > REAL_TIME_BUDGET {
        let _ = setpriority_process(None, -20);
        return;
    }
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: 0 is the calling thread, and the parameter is valid for reads.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const lowest) };
}

/// A signal that is caught ends a system call; what the handler does is of no interest.
fn catch_nudges() -> Result<()> {
    static CATCH: Once = Once::new();
    let mut result = Ok(());
    CATCH.call_once(|| {
        let caught = signal_hook::flag::register(SIGUSR1, Arc::new(AtomicBool::new(false)));
        result = caught.map(drop).map_err(Error::io("catch SIGUSR1"));
    });
    result
}

fn nudge<T>(thread: &JoinHandle<T>) {
    // SAFETY: the thread has not been joined, so its id is valid. If it has ended meanwhile,
    // nothing happens.
    unsafe { libc::pthread_kill(thread.as_pthread_t(), SIGUSR1) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_has_an_interval_of_nanoseconds() {
        assert_eq!(interval(1).unwrap(), 1_000_000_000);
        assert_eq!(interval(3_000_000).unwrap(), 333);
        assert!(interval(0).is_err());
        assert!(interval(1_000_000_001).is_err());
    }
}
