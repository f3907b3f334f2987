//! What tests and fuzzing of the packet path share. Compiled for them alone.
#![cfg_attr(
    fuzzing,
    allow(dead_code, reason = "the fuzz targets use the harness alone")
)]

pub mod harness;
pub(crate) mod kernel;
pub(crate) mod node;
pub(crate) mod packets;
#[cfg(test)]
mod path;
pub(crate) mod plan;
#[cfg(test)]
pub(crate) mod router;
#[cfg(test)]
mod seeds;
#[cfg(test)]
pub(crate) mod tcp_options;
#[cfg(test)]
pub(crate) mod worlds;
