//! The pods' ends of ports, looked at from inside their network namespaces.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use podway_proto::control::NodeEntry;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::super::facts::{Named, PodEnd, UnseenPod};
use super::{link_named, proc};
use crate::netlink::{Ethtool, LinkDetails, Peer, Requests};

/// Each port of a pod is in one of them.
#[derive(Debug, Default)]
pub(super) struct Pods {
    pub(super) seen: Vec<PodEnd>,
    pub(super) unseen: Vec<UnseenPod>,
}

/// A pod's end that is to be looked at.
#[derive(Debug, Clone, Copy)]
struct Wanted<'a> {
    port: &'a str,
    /// Of the link in the pod.
    index: u32,
}

/// The ends by the number that this network namespace has given to theirs.
type ByNamespace<'a> = BTreeMap<i32, Vec<Wanted<'a>>>;

/// Looks at those of the ports of `named`.
pub(super) fn look(links: &[LinkDetails], named: &[Named], nodes: &[NodeEntry]) -> Pods {
    let mut pods = Pods::default();
    let wanted = pods.wanted(links, named);
    let others = nodes.iter().filter(|node| !node.local);
    let cidrs = others.flat_map(|node| node.pod_cidrs.iter());
    let beyond = cidrs.map(|cidr| cidr.addr()).next();
    // A thread that has gone to another network namespace ends there.
    std::thread::scope(|scope| {
        let walk = scope.spawn(|| pods.walk(wanted, beyond));
        if let Err(panic) = walk.join() {
            std::panic::resume_unwind(panic);
        }
    });
    pods.seen.sort_by(|a, b| a.port.cmp(&b.port));
    pods.unseen.sort_by(|a, b| a.port.cmp(&b.port));
    pods
}

impl Pods {
    fn not(&mut self, port: &str, reason: impl Into<String>) {
        self.unseen.push(UnseenPod {
            port: port.to_owned(),
            reason: reason.into(),
        });
    }

    fn wanted<'a>(&mut self, links: &[LinkDetails], named: &'a [Named]) -> ByNamespace<'a> {
        let mut wanted = ByNamespace::new();
        for Named { interface, .. } in named.iter().filter(|named| !named.uplink) {
            // That its link is missing is told by the check of interfaces.
            let Some(link) = link_named(links, interface) else {
                continue;
            };
            match link.peer {
                Some(Peer {
                    index,
                    namespace: Some(number),
                }) => wanted.entry(number).or_default().push(Wanted {
                    port: interface,
                    index,
                }),
                Some(_) => self.not(interface, "both its ends are in this network namespace"),
                None => self.not(interface, "it is no veth, whose other end could be found"),
            }
        }
        wanted
    }

    /// Goes through all network namespaces that anybody is in or that have a name, and looks around in
    /// those where somebody is wanted.
    fn walk(&mut self, mut wanted: ByNamespace<'_>, beyond: Option<IpAddr>) {
        let named = fs::read_dir("/run/netns").into_iter().flatten().flatten();
        let named = named.map(|entry| entry.path());
        let processes = proc::processes().map(|pid| PathBuf::from(format!("/proc/{pid}/ns/net")));
        let mut reason =
            "no name and no process that can be seen leads to its network namespace".to_owned();
        // It stays where it was opened, and so do the numbers that it tells.
        let mut here = Requests::open()
            .inspect_err(|error| reason = format!("netlink: {error}"))
            .ok();
        let mut passed = BTreeSet::new();
        for path in named.chain(processes) {
            if wanted.is_empty() {
                break;
            }
            // Of a process that is gone, or that not even root may look at.
            let Ok(file) = File::open(&path) else {
                continue;
            };
            // Device and inode tell it from others.
            let which = file.metadata().map(|of| (of.dev(), of.ino()));
            if !which.is_ok_and(|which| passed.insert(which)) {
                continue;
            }
            let number = here.as_mut().and_then(|requests| {
                let number = requests.namespace_number(file.as_fd());
                number.ok().flatten()
            });
            if let Some(ends) = number.and_then(|number| wanted.remove(&number)) {
                self.enter(&file, &path, &ends, beyond);
            }
        }
        for Wanted { port, .. } in wanted.into_values().flatten() {
            self.not(port, reason.as_str());
        }
    }

    /// Looks at `ends` in the network namespace that they are in.
    fn enter(&mut self, file: &File, path: &Path, ends: &[Wanted<'_>], beyond: Option<IpAddr>) {
        let inside = || -> Result<_, String> {
            let network = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(file.as_fd(), network).map_err(|error| error.to_string())?;
            let mut requests = Requests::open().map_err(|error| error.to_string())?;
            let links = requests.link_details().map_err(|error| error.to_string())?;
            let way = beyond.and_then(|address| requests.lookup(address).ok().flatten());
            Ok((links, way, Ethtool::open().ok()))
        };
        let (links, way, ethtool) = match inside() {
            Ok(seen) => seen,
            Err(reason) => {
                for Wanted { port, .. } in ends {
                    self.not(port, &reason);
                }
                return;
            }
        };
        for Wanted { port, index } in ends {
            let Some(LinkDetails { link, .. }) = links.iter().find(|of| of.link.index == *index)
            else {
                self.not(port, "it has just left its network namespace");
                continue;
            };
            let way = way.as_ref().filter(|way| way.link == *index);
            let features = ethtool.as_ref().map(|ethtool| ethtool.features(&link.name));
            self.seen.push(PodEnd {
                port: (*port).to_owned(),
                interface: link.name.clone(),
                namespace: path.display().to_string(),
                mtu: link.mtu,
                route_mtu: way.and_then(|way| way.mtu),
                features: features.and_then(Result::ok),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{healthy, link};
    use super::*;

    #[test]
    fn no_pod_is_left_out_in_silence() {
        let mut facts = healthy();
        let reasons = |facts: &crate::doctor::Facts| {
            let pods = look(&facts.links, &facts.named, &facts.nodes);
            assert_eq!(pods.seen, []);
            let unseen = pods.unseen.into_iter();
            unseen.map(|pod| (pod.port, pod.reason)).collect::<Vec<_>>()
        };
        let of = |reason: &str| vec![("veth-a".to_owned(), reason.to_owned())];
        let not = "it is no veth, whose other end could be found";
        assert_eq!(reasons(&facts), of(not));
        let mut peer = Peer {
            index: 7,
            namespace: None,
        };
        link(&mut facts, "veth-a").peer = Some(peer);
        let here = "both its ends are in this network namespace";
        assert_eq!(reasons(&facts), of(here));
        // The kernel gives numbers from 0 on.
        peer.namespace = Some(i32::MAX);
        link(&mut facts, "veth-a").peer = Some(peer);
        let nowhere = "no name and no process that can be seen leads to its network namespace";
        assert_eq!(reasons(&facts), of(nowhere));
        facts.links.clear();
        assert_eq!(reasons(&facts), []);
    }
}
