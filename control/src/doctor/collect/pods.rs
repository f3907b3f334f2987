//! The pods' ends of ports, looked at from inside their network namespaces.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use podway_proto::control::NodeEntry;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::super::facts::{Named, PodEnd};
use super::{link_named, proc};
use crate::netlink::{Ethtool, LinkDetails, Peer, Requests};

/// A full node has 110 pods.
const MOST: usize = 256;

/// Those of the ports of `named`, as far as they can be seen.
pub(super) fn look(links: &[LinkDetails], named: &[Named], nodes: &[NodeEntry]) -> Vec<PodEnd> {
    let pods = named.iter().filter(|named| !named.uplink).take(MOST);
    let peers: Vec<(&str, Peer)> = pods
        .filter_map(|named| {
            let link = link_named(links, &named.interface)?;
            Some((named.interface.as_str(), link.peer?))
        })
        .collect();
    let mut wanted: BTreeSet<i32> = peers
        .iter()
        .filter_map(|(_, peer)| peer.namespace)
        .collect();
    let namespaces = namespaces(&mut wanted);
    let others = nodes.iter().filter(|node| !node.local);
    let cidrs = others.flat_map(|node| node.pod_cidrs.iter());
    let beyond = cidrs.map(|cidr| cidr.addr()).next();
    let end = |(port, peer): (&str, Peer)| {
        let namespace = namespaces.get(&peer.namespace?)?;
        inside(namespace, port, peer.index, beyond)
    };
    peers.into_iter().filter_map(end).collect()
}

/// A network namespace, and the file that leads to it.
struct Namespace {
    file: File,
    path: PathBuf,
}

/// The network namespaces that have these numbers here, of all that anybody is in or that have a name.
fn namespaces(wanted: &mut BTreeSet<i32>) -> BTreeMap<i32, Namespace> {
    let mut found = BTreeMap::new();
    let Ok(mut requests) = Requests::open() else {
        return found;
    };
    let named = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let named = named.map(|entry| entry.path());
    let of_processes = proc::processes().map(|pid| PathBuf::from(format!("/proc/{pid}/ns/net")));
    let mut seen = BTreeSet::new();
    for path in named.chain(of_processes) {
        if wanted.is_empty() {
            break;
        }
        let Some(which) = proc::namespace(&path.to_string_lossy()) else {
            continue;
        };
        if !seen.insert(which) {
            continue;
        }
        let Ok(file) = File::open(&path) else {
            continue;
        };
        if let Ok(Some(number)) = requests.namespace_number(file.as_fd())
            && wanted.remove(&number)
        {
            found.insert(number, Namespace { file, path });
        }
    }
    found
}

/// What is seen of the link `index` in a namespace. A thread goes there, and ends there.
fn inside(namespace: &Namespace, port: &str, index: u32, beyond: Option<IpAddr>) -> Option<PodEnd> {
    let look = || {
        let network = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(namespace.file.as_fd(), network).ok()?;
        let mut requests = Requests::open().ok()?;
        let links = requests.link_details().ok()?;
        let link = links
            .into_iter()
            .find(|link| link.link.index == index)?
            .link;
        let way = beyond.and_then(|address| requests.lookup(address).ok().flatten());
        let way = way.filter(|way| way.link == index);
        let features = Ethtool::open().and_then(|ethtool| ethtool.features(&link.name));
        Some(PodEnd {
            port: port.to_owned(),
            interface: link.name,
            namespace: namespace.path.display().to_string(),
            mtu: link.mtu,
            route_mtu: way.and_then(|way| way.mtu),
            features: features.ok(),
        })
    };
    std::thread::scope(|scope| scope.spawn(look).join().ok().flatten())
}
