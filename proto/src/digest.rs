//! Digests of facts: whether two processes hold the same, without a list of it.
//!
//! The hash is that of a fact's JSON, as the protocol carries it ([`crate::fnv`]). It finds what got
//! lost, not what somebody hides: who may change facts is checked elsewhere.

use serde::{Deserialize, Serialize};

use crate::fnv::Fnv1a;

/// Any number of facts of one kind, in any order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// How many there are.
    pub count: u64,
    /// The sum of their hashes, modulo 2^64.
    pub sum: u64,
}

impl Digest {
    /// Of `facts`.
    pub fn of<T: Serialize>(facts: impl IntoIterator<Item = T>) -> Self {
        let mut digest = Self::default();
        for fact in facts {
            digest.add(&fact);
        }
        digest
    }

    /// One more.
    pub fn add(&mut self, fact: &impl Serialize) {
        self.count += 1;
        self.sum = self.sum.wrapping_add(hash(fact));
    }

    /// One less, which was there.
    pub fn remove(&mut self, fact: &impl Serialize) {
        self.count -= 1;
        self.sum = self.sum.wrapping_sub(hash(fact));
    }
}

/// Every fact that a dataplane holds, by kind. Of a port the link is that which its end looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digests {
    /// The [`crate::types::LocalNode`], if there is one.
    pub local: Digest,
    /// Each [`crate::types::Port`].
    pub ports: Digest,
    /// Each [`crate::types::Neighbor`].
    pub neighbors: Digest,
    /// Each [`crate::types::Node`].
    pub nodes: Digest,
    /// Each [`crate::types::Route`], sorted ([`crate::types::Via::sorted`]); those to local pods follow
    /// from ports and are none.
    pub routes: Digest,
}

impl Digests {
    /// Where `held` differs from what was told, one sentence for each kind.
    pub fn differences(&self, held: &Self) -> Vec<String> {
        let kinds = [
            ("this node", self.local, held.local),
            ("ports", self.ports, held.ports),
            ("neighbors", self.neighbors, held.neighbors),
            ("nodes", self.nodes, held.nodes),
            ("routes", self.routes, held.routes),
        ];
        let differ = kinds.into_iter().filter(|(_, told, held)| told != held);
        differ
            .map(|(kind, told, held)| {
                let (told, held) = (told.count, held.count);
                if told == held {
                    format!("{kind}: the dataplane holds {held}, not all of them as told")
                } else {
                    format!("{kind}: the dataplane holds {held} and was told {told}")
                }
            })
            .collect()
    }
}

fn hash(fact: &impl Serialize) -> u64 {
    let mut hash = Fnv1a::new();
    // As in `codec::encode`: types of this crate serialise, and the writer takes everything.
    serde_json::to_writer(&mut hash, fact)
        .unwrap_or_else(|error| unreachable!("a protocol type failed to serialise: {error}"));
    // FNV mixes its last bytes little, and sums of such hashes still less: the finaliser of
    // MurmurHash3 lets each bit depend on all.
    let mut mixed = hash.finish();
    mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    mixed ^ (mixed >> 33)
}

#[cfg(test)]
mod tests {

    use proptest::prelude::*;

    use super::*;
    use crate::types::{Route, Via};

    fn route(number: u32, node: &str) -> Route {
        let node = node.to_owned();
        Route {
            prefix: ipnet::Ipv4Net::new_assert(number.into(), 32).into(),
            via: Via::Node { node, vni: None },
        }
    }

    #[test]
    fn the_hash_of_a_fact_is_the_same_in_every_release() {
        // As an older or newer process at the other end computes it.
        let digest = Digest::of([route(0x0a00_0001, "b")]);
        let sum = 13_668_891_882_174_520_096;
        assert_eq!(digest, Digest { count: 1, sum });
    }

    #[test]
    fn differences_are_told_by_kind() {
        let told = Digests {
            routes: Digest::of([route(1, "b"), route(2, "b")]),
            ..Digests::default()
        };
        assert_eq!(told.differences(&told), Vec::<String>::new());
        let lost = Digests {
            routes: Digest::of([route(1, "b")]),
            ..told
        };
        assert_eq!(
            told.differences(&lost),
            ["routes: the dataplane holds 1 and was told 2"]
        );
        let other = Digests {
            routes: Digest::of([route(1, "b"), route(2, "c")]),
            nodes: Digest::of(["b"]),
            ..told
        };
        assert_eq!(
            told.differences(&other),
            [
                "nodes: the dataplane holds 1 and was told 0",
                "routes: the dataplane holds 2, not all of them as told"
            ]
        );
    }

    proptest! {
        #[test]
        fn the_order_does_not_matter_and_every_fact_does(
            numbers in proptest::collection::btree_set(any::<u32>(), 1..40),
            pick in any::<prop::sample::Index>(),
        ) {
            let routes: Vec<Route> = numbers.iter().map(|number| route(*number, "b")).collect();
            let whole = Digest::of(&routes);
            prop_assert_eq!(Digest::of(routes.iter().rev()), whole);
            let at = pick.index(routes.len());
            let mut changed = routes.clone();
            changed[at].via = Via::Node {
                node: "c".into(),
                vni: None,
            };
            prop_assert_ne!(Digest::of(&changed), whole);
            // One twice in the place of another.
            changed[at] = routes[(at + 1) % routes.len()].clone();
            prop_assert_eq!(Digest::of(&changed) == whole, routes.len() == 1);
            changed.remove(at);
            prop_assert_ne!(Digest::of(&changed), whole);
            let mut rest = whole;
            rest.remove(&routes[at]);
            rest.add(&route(numbers.len().try_into().unwrap(), "d"));
            rest.remove(&route(numbers.len().try_into().unwrap(), "d"));
            let others = routes.iter().enumerate().filter(|(index, _)| *index != at);
            prop_assert_eq!(rest, Digest::of(others.map(|(_, route)| route)));
        }
    }
}
