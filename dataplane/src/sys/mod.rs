//! The few system calls that no safe library offers.
#![allow(unsafe_code, reason = "ioctls; each block states its invariant")]

mod ethtool;
pub(crate) mod interface;
pub(crate) mod tun;
