//! Synchronisation: what was not named goes.

use podway_proto::types::Mode;

use super::super::*;
use super::support::*;

fn cluster() -> Fib {
    let mut fib = two_nodes();
    fib.attach_port(pod("veth1", 1, &["10.0.1.5"])).unwrap();
    fib.attach_port(pod("veth2", 2, &["10.0.1.6"])).unwrap();
    fib.set_node(node("n3", "192.0.2.3", Mode::Vxlan)).unwrap();
    fib.set_neighbor(neighbor("eth0", "192.0.2.3", 0x33))
        .unwrap();
    fib.set_route(by_node("10.0.2.0/24", "n2")).unwrap();
    fib.set_route(by_node("10.0.3.0/24", "n3")).unwrap();
    let _ = fib.build();
    fib
}

#[test]
fn the_same_facts_again_change_nothing() {
    let mut fib = cluster();
    fib.mark_all();
    fib.set_local(local()).unwrap();
    fib.attach_port(uplink("eth0", 0)).unwrap();
    fib.attach_port(pod("veth1", 1, &["10.0.1.5"])).unwrap();
    fib.attach_port(pod("veth2", 2, &["10.0.1.6"])).unwrap();
    for (name, address, last) in [("n2", "192.0.2.2", 0x22), ("n3", "192.0.2.3", 0x33)] {
        fib.set_node(node(name, address, Mode::Vxlan)).unwrap();
        fib.set_neighbor(neighbor("eth0", address, last)).unwrap();
    }
    fib.set_route(by_node("10.0.2.0/24", "n2")).unwrap();
    fib.set_route(by_node("10.0.3.0/24", "n3")).unwrap();
    assert_eq!(fib.sweep(), Vec::<String>::new());
    assert!(!fib.changed());
}

#[test]
fn what_was_not_named_goes() {
    let mut fib = cluster();
    fib.mark_all();
    fib.set_local(local()).unwrap();
    fib.attach_port(uplink("eth0", 0)).unwrap();
    fib.attach_port(pod("veth1", 1, &["10.0.1.5"])).unwrap();
    fib.set_node(node("n2", "192.0.2.2", Mode::Vxlan)).unwrap();
    fib.set_neighbor(neighbor("eth0", "192.0.2.2", 0x22))
        .unwrap();
    fib.set_route(by_node("10.0.2.0/24", "n2")).unwrap();
    assert_eq!(fib.sweep(), ["veth2"]);
    let Build { tables, xdp } = fib.build();
    assert_eq!(xdp.before.remove, [net("10.0.3.0/24")]);
    assert!(!tables.is_vtep(ip("192.0.2.3")));
    assert!(
        tables.lookup(ip("10.0.1.6")).is_some(),
        "a port is the caller's"
    );
    assert_eq!(
        fib.counts(),
        Counts {
            routes: 3,
            unresolved: 0,
            nodes: 1,
            neighbors: 1
        }
    );
}

#[test]
fn an_empty_synchronisation_removes_everything() {
    let mut fib = cluster();
    fib.mark_all();
    let ports = fib.sweep();
    assert_eq!(ports, ["eth0", "veth1", "veth2"]);
    for port in ports {
        fib.detach_port(&port).unwrap();
    }
    let Build { tables, xdp } = fib.build();
    assert_eq!(fib.counts(), Counts::default());
    assert_eq!(tables.local(), None);
    assert_eq!(xdp.before.remove.len(), 4);
    assert!(xdp.after.is_empty() && xdp.before.set.is_empty());
}
