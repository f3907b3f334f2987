//! Podway's dataplane: moves the pod packets of one node.
//!
//! # The path of a packet
//!
//! A [`worker`] goes round its loop. It takes a burst ([`ingress`]) of what the programs on the ports
//! have redirected (crate `podway-xdp-redirect`): from its [`tap`] and its packet ring, or from an
//! AF_XDP socket ([`xsk`]) where the driver needs no copy.
//! Each [`packet`] goes to [`forward`](forward::forward), which reads its headers ([`wire`]), pulls
//! the outer ones ([`tunnel`]), looks its destination up ([`fib`]) and gives a [`verdict`]: the next
//! hop, or a reason to drop it, of which [`answer`] tells the sender where an RFC wants it told. Where
//! the kernel does not tell the size of segments, [`limits`] knows
//! what the peer and the path take. [`Send::rewrite`](verdict::Send::rewrite) gives it the next hop's
//! MACs and one hop less. [`egress`] makes messages of the packets that leave: it joins or cuts
//! TCP segments, finishes checksums, adds the outer headers of tunnels, and hands the messages to
//! the kernel. Then the frames go back to the worker's pool.
//!
//! Who wants to see packets on this path arms a [`watch`].
//!
//! # The path of a change
//!
//! A request comes in over the socket ([`api`]) and changes the facts of the [`supervisor`]. It
//! attaches ports, builds tables from the facts ([`fib`]), and publishes them to the workers, who
//! adopt them with their next burst. Whoever asks what would happen to a packet is told by `trace`,
//! which calls the functions of the first path on a packet that it makes.
//!
//! Dependencies point one way: `worker -> ingress, forward, answer, limits, egress`; `answer -> forward`; `forward -> tunnel, fib ->
//! wire`; [`xsk`] and the sockets know nothing of IP, `forward` knows nothing of sockets.

pub mod answer;
pub mod api;
mod clock;
pub mod config;
pub mod counters;
pub mod cpu_latency;
pub mod egress;
pub mod fib;
pub mod forward;
pub mod ingress;
pub mod last_drop;
pub mod limits;
pub mod packet;
pub mod stages;
pub mod supervisor;
mod sync;
mod sys;
pub mod tap;
#[cfg(any(test, fuzzing))]
pub mod testing;
mod trace;
pub mod tunnel;
pub mod verdict;
pub mod wait;
pub mod watch;
pub mod wire;
pub mod worker;
pub mod xsk;
