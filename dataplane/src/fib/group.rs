//! Which member of a group takes which flows.
//!
//! The hash of a flow chooses one of [`BUCKETS`], and each bucket belongs to the member that has
//! the highest score for it among those that are resolved (rendezvous hashing). A score is made of
//! the member and the bucket alone. So whatever comes, goes or is lost, and in whatever order:
//!
//! - the flows of a member that goes are dealt out to the others, and no other flow moves;
//! - a member that comes, for the first time or again, takes what it is the best for, and nothing
//!   moves between the others;
//! - two runs give a flow to the same member, and two nodes, if interfaces of routers are called alike.
//!
//! The price is that shares are not quite equal: see decision 0024.

use std::fmt;
use std::net::IpAddr;

use podway_proto::fnv::Fnv1a;

use super::lpm::NextHopIndex;
use super::resolve::Target;

/// How many buckets a group has, a power of two. More make shares more equal, and cost a byte each.
pub(super) const BUCKETS: usize = 4096;

/// The members of a group that are resolved, and the buckets of each.
#[derive(Clone, PartialEq, Eq)]
pub struct Group {
    members: Vec<NextHopIndex>,
    /// Positions in `members`.
    buckets: [u8; BUCKETS],
    widest: u16,
}

/// A member, as the dealing sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member {
    /// Where it is in the table.
    pub(super) index: NextHopIndex,
    /// What its scores are made of: see [`seed`].
    pub(super) seed: u64,
    /// Its MTU.
    pub(super) mtu: u16,
}

impl Group {
    /// The group of these members, up to 256; `None` when there are none.
    pub(super) fn of(members: &[Member]) -> Option<Self> {
        let widest = members.iter().map(|member| member.mtu).max()?;
        let mut buckets = [0; BUCKETS];
        for (number, bucket) in (0_u64..).zip(&mut buckets) {
            let scores = members
                .iter()
                .map(|member| (score(member.seed, number), member.seed));
            let best = (0_u8..).zip(scores).max_by_key(|(_, score)| *score);
            *bucket = best.map_or(0, |(position, _)| position);
        }
        Some(Self {
            members: members.iter().map(|member| member.index).collect(),
            buckets,
            widest,
        })
    }

    /// The member that takes the flows of that hash.
    ///
    /// By its lower bits: the upper ones choose the source port of a tunnel, and both together
    /// would leave each member few ports.
    #[inline]
    pub(super) fn member(&self, hash: u32) -> Option<NextHopIndex> {
        let position = self.buckets[hash as usize % BUCKETS];
        self.members.get(usize::from(position)).copied()
    }

    /// The largest MTU that a member has.
    pub(super) fn widest(&self) -> u16 {
        self.widest
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group")
            .field("members", &self.members)
            .finish_non_exhaustive()
    }
}

/// Odd constants without structure: the fractions of the golden ratio and of two square roots.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
const ROOT_2: u64 = 0x6a09_e667_f3bc_c909;
const ROOT_3: u64 = 0xbb67_ae85_84ca_a73b;

/// What the scores of a member are made of: the hash of its name. Nodes of different versions must
/// agree with themselves over a restart, so it stays as it is.
pub(super) fn seed(target: &Target) -> u64 {
    let hash = Fnv1a::new();
    let named = match target {
        Target::Pod(name) | Target::Node { name, vni: None } => hash.with(name.as_bytes()),
        Target::Node {
            name,
            vni: Some(vni),
        } => hash.with(name.as_bytes()).with(&vni.get().to_be_bytes()),
        Target::Gateway { address, interface } => {
            let hash = match address {
                IpAddr::V4(address) => hash.with(&address.octets()),
                IpAddr::V6(address) => hash.with(&address.octets()),
            };
            hash.with(interface.as_bytes())
        }
        // No group is in a group.
        Target::Group(_) => hash,
    };
    named.finish()
}

fn score(seed: u64, bucket: u64) -> u64 {
    let state = seed ^ bucket.wrapping_mul(GOLDEN);
    let state = (state ^ state >> 29).wrapping_mul(ROOT_2);
    (state ^ state >> 32).wrapping_mul(ROOT_3)
}

#[cfg(test)]
mod tests {
    use proptest::collection::btree_set;
    use proptest::prelude::*;

    use super::*;

    fn members(names: impl IntoIterator<Item = String>) -> Vec<Member> {
        let member = |(number, name)| Member {
            index: NextHopIndex::new(number).unwrap(),
            seed: seed(&Target::Node { name, vni: None }),
            mtu: 1450,
        };
        names.into_iter().enumerate().map(member).collect()
    }

    /// Who has each bucket.
    fn deal(members: &[Member]) -> Vec<NextHopIndex> {
        let group = Group::of(members).unwrap();
        let hashes = 0..u32::try_from(BUCKETS).unwrap();
        hashes.map(|hash| group.member(hash).unwrap()).collect()
    }

    fn shares(members: &[Member]) -> Vec<usize> {
        let deal = deal(members);
        let share = |member: &Member| deal.iter().filter(|index| **index == member.index).count();
        members.iter().map(share).collect()
    }

    /// These deals stay as they are: a flow must keep its way over an upgrade.
    #[test]
    fn golden_shares() {
        let nodes = |count| members((0..count).map(|n| format!("node-{n}")));
        assert_eq!(shares(&nodes(1)), [4096]);
        assert_eq!(shares(&nodes(2)), [2046, 2050]);
        assert_eq!(shares(&nodes(4)), [1014, 1059, 1000, 1023]);
    }

    #[test]
    fn nobody_is_no_group_and_the_upper_bits_do_not_choose() {
        assert!(Group::of(&[]).is_none());
        let mut two = members(["a".to_owned(), "b".to_owned()]);
        two[1].mtu = 1500;
        let group = Group::of(&two).unwrap();
        assert_eq!(group.widest(), 1500);
        for hash in [0, 1, 77, 4095] {
            assert_eq!(group.member(hash), group.member(hash | 0xffff_f000));
        }
    }

    #[test]
    fn routers_on_two_links_differ() {
        let gateway = |address: &str, interface: &str| Target::Gateway {
            address: address.parse().unwrap(),
            interface: interface.to_owned(),
        };
        let seeds = [
            gateway("fe80::1", "eth0"),
            gateway("fe80::1", "eth1"),
            gateway("fe80::2", "eth0"),
            gateway("192.0.2.1", "eth0"),
        ];
        let seeds: std::collections::BTreeSet<u64> = seeds.iter().map(seed).collect();
        assert_eq!(seeds.len(), 4);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn only_flows_of_the_lost_member_move(
            names in btree_set("[a-z0-9.-]{1,12}", 2..=16),
            lost in any::<prop::sample::Index>(),
        ) {
            let all = members(names);
            let lost = lost.index(all.len());
            let before = deal(&all);
            let mut others = all.clone();
            others.remove(lost);
            let after = deal(&others);
            for (before, after) in before.into_iter().zip(after) {
                if before == all[lost].index {
                    prop_assert_ne!(after, before);
                } else {
                    // And read backwards: who comes takes from others and moves nothing else.
                    prop_assert_eq!(after, before);
                }
            }
        }

        #[test]
        fn the_order_of_the_members_does_not_count(
            names in btree_set("[a-z0-9.-]{1,12}", 2..=16),
        ) {
            let all = members(names);
            let mut turned = all.clone();
            turned.reverse();
            prop_assert_eq!(deal(&all), deal(&turned));
        }

        /// Each bucket goes to a member with the chance 1/n: five standard deviations of that.
        #[test]
        #[allow(clippy::cast_precision_loss, reason = "small numbers")]
        fn shares_stay_within_five_deviations(
            names in btree_set("[a-z0-9.-]{1,12}", 2..=16),
        ) {
            let all = members(names);
            let count = all.len() as f64;
            let fair = BUCKETS as f64 / count;
            let deviation = (fair * (1.0 - 1.0 / count)).sqrt();
            for share in shares(&all) {
                prop_assert!((share as f64 - fair).abs() < 5.0 * deviation, "{share} of {fair}");
            }
        }
    }
}
