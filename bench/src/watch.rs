//! What network and machine did while something was measured, and whether it was true.
//!
//! Every measurement happens between [`Watch::begin`] and [`Watch::end`]. What it cost and what
//! was lost comes with it, and the reasons why its figure would be a lie, if there are any:
//! such a figure is refused.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::contender::InCharge;
use crate::link::{self, LinkCounters, longest_frame};
use crate::topology::{Cluster, UPLINK};
use crate::wiretap::{SAMPLE, Seen, Wiretap};
use crate::{Error, Result, cpu};

/// A measurement that is under way. One at a time on each cluster.
#[derive(Debug)]
pub struct Watch<'c> {
    cluster: &'c Cluster,
    in_charge: &'c InCharge,
    tap: Wiretap,
    uplinks: Vec<LinkCounters>,
    link_drops: u64,
    lost: BTreeMap<String, u64>,
    cpu: Duration,
}

/// What was observed meanwhile.
#[derive(Debug, Clone, PartialEq)]
pub struct Observed {
    /// CPU time of the whole machine: sender, receiver, everything between.
    pub cpu: Duration,
    /// Average size in bytes of the frames that the busiest uplink sent.
    pub average_frame: u64,
    /// Frames that interfaces of nodes and pods have dropped.
    pub link_drops: u64,
    /// Packets that the contender has lost, by cause, without zeros.
    pub lost: BTreeMap<String, u64>,
    /// Why the figure would be a lie; empty when it is true.
    pub faults: Vec<String>,
}

impl Observed {
    /// CPU-seconds per gigabyte (10^9 bytes); `None` without a byte.
    pub fn cpu_seconds_per_gigabyte(&self, bytes: u64) -> Option<f64> {
        // Exact up to 2^53 bytes, 9 petabytes.
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        let gigabytes = bytes as f64 / 1e9;
        (bytes > 0).then(|| self.cpu.as_secs_f64() / gigabytes)
    }
}

impl<'c> Watch<'c> {
    /// Begins to watch.
    ///
    /// # Errors
    /// When a counter cannot be read.
    pub fn begin(cluster: &'c Cluster, in_charge: &'c InCharge) -> Result<Self> {
        Ok(Self {
            cluster,
            in_charge,
            lost: in_charge.carrier().lost()?,
            link_drops: link_drops(cluster)?,
            uplinks: uplinks(cluster)?,
            tap: Wiretap::on(cluster),
            // The last, so that watching itself is left out.
            cpu: cpu::machine_busy()?,
        })
    }

    /// Ends the watch, with everything at rest again.
    ///
    /// # Errors
    /// When a counter cannot be read. What makes a figure a lie is no error: it is in
    /// [`Observed::faults`].
    pub fn end(self) -> Result<Observed> {
        let cpu = cpu::machine_busy()?.saturating_sub(self.cpu);
        let seen = self.tap.finish()?;
        let now = uplinks(self.cluster)?;
        let carried: Vec<_> = now
            .iter()
            .zip(&self.uplinks)
            .map(|(now, before)| now.since(*before))
            .collect();
        let mut faults = wire_faults(self.cluster, &carried)?;
        faults.extend(frame_faults(self.cluster, self.in_charge, &carried, &seen));
        match self.in_charge.carrier().settle() {
            Err(Error::Interrupted) => return Err(Error::Interrupted),
            Err(error) => faults.push(error.to_string()),
            Ok(()) => {}
        }
        let busiest = carried.iter().max_by_key(|link| link.tx_bytes);
        Ok(Observed {
            cpu,
            average_frame: busiest.map_or(0, |link| link.average_tx_frame()),
            link_drops: link_drops(self.cluster)? - self.link_drops,
            lost: since(&self.in_charge.carrier().lost()?, &self.lost),
            faults,
        })
    }
}

/// What the frames that were seen say of the wire.
fn frame_faults(
    cluster: &Cluster,
    in_charge: &InCharge,
    carried: &[LinkCounters],
    seen: &Seen,
) -> Vec<String> {
    let spec = cluster.spec();
    let mut faults = Vec::new();
    if spec.wire_true {
        faults.extend(length_fault(
            spec.uplink_mtu,
            seen.longest,
            "the longest seen",
        ));
    }
    if !spec.uplink_tx_checksum {
        let pods_finish = in_charge.contender().is_switch();
        faults.extend(checksum_fault(carried, seen, pods_finish));
    }
    faults
}

/// What the features and counters of the uplinks say of a wire that is meant to be true.
fn wire_faults(cluster: &Cluster, carried: &[LinkCounters]) -> Result<Vec<String>> {
    let spec = cluster.spec();
    let mut faults = Vec::new();
    if !spec.wire_true {
        return Ok(faults);
    }
    for (node, link) in cluster.nodes().iter().zip(carried) {
        let average = link.average_tx_frame();
        faults.extend(length_fault(spec.uplink_mtu, average, "on average"));
        match link::check_wire_true(&node.netns, UPLINK) {
            Err(Error::Unexpected(reason)) => faults.push(reason),
            other => other?,
        }
    }
    Ok(faults)
}

fn length_fault(mtu: u16, length: u64, which: &str) -> Option<String> {
    (length > longest_frame(mtu)).then(|| {
        format!(
            "an uplink carried frames of {length} bytes ({which}), over an MTU of {mtu}: the \
             figure would be a lie"
        )
    })
}

/// What is wrong with checksums on a wire that cannot finish them.
fn checksum_fault(carried: &[LinkCounters], seen: &Seen, pods_finish: bool) -> Option<String> {
    let sent: u64 = carried.iter().map(|link| link.tx_packets).sum();
    if seen.bad_checksums > 0 {
        Some(format!(
            "{} of {} frames seen on the uplinks have a checksum that was never finished, or is \
             wrong: a real wire would not carry them",
            seen.bad_checksums, seen.frames
        ))
    } else if seen.frames == 0 && sent > SAMPLE && !pods_finish {
        Some(format!(
            "none of {sent} frames on the uplinks could be seen: nothing proves that their \
             checksums are finished"
        ))
    } else {
        None
    }
}

fn uplinks(cluster: &Cluster) -> Result<Vec<LinkCounters>> {
    let nodes = cluster.nodes().iter();
    nodes
        .map(|node| LinkCounters::read(&node.netns, UPLINK))
        .collect()
}

fn link_drops(cluster: &Cluster) -> Result<u64> {
    let nodes = cluster.nodes().iter();
    let namespaces = nodes.flat_map(|node| {
        let pods = node.pods.iter().map(|pod| &pod.netns);
        pods.chain([&node.netns])
    });
    namespaces.map(link::dropped).sum()
}

fn since(now: &BTreeMap<String, u64>, before: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let each = now.iter().map(|(name, count)| {
        let earlier = before.get(name).copied().unwrap_or(0);
        (name.clone(), count.saturating_sub(earlier))
    });
    each.filter(|(_, count)| *count > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(tx_packets: u64) -> [LinkCounters; 1] {
        [LinkCounters {
            tx_packets,
            ..LinkCounters::default()
        }]
    }

    #[test]
    fn super_frames_on_a_true_wire_are_a_fault() {
        assert_eq!(length_fault(1500, 1518, "on average"), None);
        let fault = length_fault(1500, 1519, "on average").unwrap();
        assert!(fault.contains("1519 bytes (on average), over an MTU of 1500"));
    }

    #[test]
    fn checksums_must_be_seen_to_be_right() {
        let seen = |frames, bad_checksums| Seen {
            frames,
            longest: 1500,
            bad_checksums,
        };
        assert_eq!(checksum_fault(&sent(9000), &seen(200, 0), false), None);
        let bad = checksum_fault(&sent(9000), &seen(200, 3), false).unwrap();
        assert!(bad.starts_with("3 of 200 frames"), "{bad}");
        let unseen = checksum_fault(&sent(9000), &seen(0, 0), false).unwrap();
        assert!(unseen.starts_with("none of 9000 frames"), "{unseen}");
        // The receiving pod verifies what the sending pod has finished.
        assert_eq!(checksum_fault(&sent(9000), &seen(0, 0), true), None);
        // An idle network sends hardly anything.
        assert_eq!(checksum_fault(&sent(10), &seen(0, 0), false), None);
    }

    #[test]
    fn cost_is_per_gigabyte_that_arrived() {
        let observed = Observed {
            cpu: Duration::from_secs(3),
            average_frame: 1514,
            link_drops: 0,
            lost: BTreeMap::new(),
            faults: Vec::new(),
        };
        assert_eq!(observed.cpu_seconds_per_gigabyte(2_000_000_000), Some(1.5));
        assert_eq!(observed.cpu_seconds_per_gigabyte(0), None);
    }

    #[test]
    fn losses_are_those_of_the_time_between() {
        let map = |pairs: &[(&str, u64)]| -> BTreeMap<String, u64> {
            pairs.iter().map(|(name, n)| ((*name).into(), *n)).collect()
        };
        let before = map(&[("rx_dropped", 5), ("no_route", 2)]);
        let now = map(&[("rx_dropped", 8), ("no_route", 2), ("rx_ring_full", 1)]);
        let expected = map(&[("rx_dropped", 3), ("rx_ring_full", 1)]);
        assert_eq!(since(&now, &before), expected);
    }
}
