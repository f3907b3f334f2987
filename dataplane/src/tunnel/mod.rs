//! VXLAN tunnels (RFC 7348): the outer header made in advance, encap and decap.

mod decap;
pub mod encap;
mod outer;

pub(crate) use decap::is_vxlan_for_us;
pub use decap::{Congestion, Decapped, decap};
pub use outer::{OUTER_V4_LEN, OUTER_V6_LEN, OuterHeader};
pub use podway_proto::types::{VXLAN_OVERHEAD_V4, VXLAN_OVERHEAD_V6};
