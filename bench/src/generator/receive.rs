//! How a node spreads what it receives over its CPUs.
//!
//! By itself a veth's receiver works on the CPU of the sender, here the generator's. Flat out that
//! slows the generator to what the node can take; a paced generator is disturbed by it, and its
//! trials are refused long before the node has reached its limit. So CPU time is measured with
//! RPS, and the highest rate with a thread.

use super::rig::Interface;
use crate::Result;

/// Lets the given CPUs work on what an interface receives, flow by flow (RPS): bit `n` stands for
/// CPU `n`, 0 switches it off.
///
/// # Errors
/// When there is no such interface or CPU.
pub fn set_rps(interface: &Interface, cpus: u32) -> Result<()> {
    let queues = format!("/sys/class/net/{}/queues", interface.name);
    let write = format!("for queue in {queues}/rx-*; do echo {cpus:x} >$queue/rps_cpus; done");
    interface.netns.run("sh", &["-ec", &write]).map(drop)
}

/// Gives the receipt of an interface a kernel thread of its own (threaded NAPI), which the
/// scheduler may put on any CPU.
///
/// # Errors
/// When there is no such interface or its driver has no NAPI.
pub fn set_threaded(interface: &Interface, threaded: bool) -> Result<()> {
    let path = format!("/sys/class/net/{}/threaded", interface.name);
    let write = format!("echo {} >{path}", u8::from(threaded));
    interface.netns.run("sh", &["-ec", &write]).map(drop)
}
