//! BPF programs on links. XDP programs are told with the links; those of tcx, and names, `bpftool`
//! tells.

use std::collections::{BTreeMap, BTreeSet};

use podway_proto::control::Status;

use super::super::facts::{Named, Programs, Tcx};
use super::{PATIENCE, link_named, proc};
use crate::netlink::LinkDetails;
use crate::program;

/// Names are asked for one by one.
const MOST_NAMES: usize = 16;

pub(super) fn look(status: Option<&Status>, links: &[LinkDetails], named: &[Named]) -> Programs {
    let dataplane = status.and_then(|status| status.dataplane.status());
    let pids: BTreeSet<u32> = dataplane
        .map(|status| status.pid)
        .into_iter()
        .chain(proc::called("podway-dataplane"))
        .collect();
    let held: Option<Vec<BTreeSet<u32>>> = pids.into_iter().map(proc::programs).collect();
    let ours: Option<BTreeSet<u32>> = held.map(|held| held.into_iter().flatten().collect());
    let attached = named.iter().filter_map(|named| {
        let number = link_named(links, &named.interface)?.xdp?.program;
        let is_ours = ours.as_ref().is_some_and(|ours| ours.contains(&number));
        (!is_ours).then_some(number)
    });
    let names: BTreeMap<u32, String> = attached
        .take(MOST_NAMES)
        .filter_map(|number| {
            let words = ["-j", "prog", "show", "id", &number.to_string()];
            let text = program::run("bpftool", &words, "", PATIENCE).ok()?;
            let shown: serde_json::Value = serde_json::from_str(&text).ok()?;
            Some((number, shown["name"].as_str()?.to_owned()))
        })
        .collect();
    let shown = program::run("bpftool", &["-j", "net", "show"], "", PATIENCE).ok();
    Programs {
        ours,
        names,
        tcx: shown.and_then(|text| tcx(&text)),
    }
}

/// The tcx programs of what `bpftool -j net show` says.
fn tcx(text: &str) -> Option<Vec<Tcx>> {
    let shown: serde_json::Value = serde_json::from_str(text).ok()?;
    let lists = shown
        .as_array()?
        .iter()
        .filter_map(|part| part["tc"].as_array());
    let programs = lists.flatten().filter_map(|program| {
        let text = |key: &str| program[key].as_str();
        text("kind")?.starts_with("tcx").then_some(())?;
        Some(Tcx {
            interface: text("devname")?.to_owned(),
            program: program["prog_id"].as_u64()?.try_into().ok()?,
            name: text("name").unwrap_or_default().to_owned(),
        })
    });
    Some(programs.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_tells_interface_number_and_name() {
        let text = r#"[{"xdp": [], "tc": [
            {"devname": "eth1", "ifindex": 5, "kind": "tcx/ingress", "name": "podway_classify",
             "prog_id": 12, "link_id": 3},
            {"devname": "eth1", "ifindex": 5, "kind": "clsact/ingress", "name": "other", "prog_id": 13}],
            "flow_dissector": [], "netfilter": []}]"#;
        let expected = Tcx {
            interface: "eth1".to_owned(),
            program: 12,
            name: "podway_classify".to_owned(),
        };
        assert_eq!(tcx(text), Some(vec![expected]));
        assert_eq!(tcx("no"), None);
    }
}
