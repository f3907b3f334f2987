//! The kernel's own check of where packets of pods come from (`rp_filter`, RFC 3704): strict on the
//! ports of pods. The program on a port refuses what a pod sends from an address that it has not; this
//! is for the time when no program is there. IPv6 has no such switch.

use std::collections::BTreeMap;
use std::fs;

use podway_proto::control::PortRoleSpec;

use crate::world::World;

/// A packet's source must be reached by the interface that it came by.
const STRICT: &str = "1";
/// The source must be reached by any interface. The larger of the interface's value and that of `all`
/// is in force (`IN_DEV_MAXCONF` in linux/inetdevice.h).
const LOOSE: &str = "2";

/// What has been set.
#[derive(Debug, Default)]
pub struct ReversePath {
    /// Interfaces of pods, by name, with their indexes.
    strict: BTreeMap<String, u32>,
    errors: Vec<String>,
}

impl ReversePath {
    /// Makes the check strict on links of pods that are new.
    pub fn follow(&mut self, world: &World<'_>) {
        let pods = world.desired.ports.iter().filter_map(|(name, role)| {
            let link = world.observed.link_named(name)?;
            let is_checked = matches!(
                role,
                PortRoleSpec::Pod {
                    any_source: false,
                    ..
                }
            );
            is_checked.then(|| (name.clone(), link.index))
        });
        let pods: BTreeMap<String, u32> = pods.collect();
        self.errors.clear();
        self.strict
            .retain(|name, index| pods.get(name) == Some(index));
        for (name, index) in pods {
            if self.strict.contains_key(&name) {
                continue;
            }
            let path = switch(&name);
            match fs::write(&path, STRICT) {
                Ok(()) => drop(self.strict.insert(name, index)),
                Err(error) => self.errors.push(format!(
                    "cannot make the kernel check the sources of what {name} sends: {path}: {error}"
                )),
            }
        }
    }

    /// What is in the way, one sentence each with the remedy.
    pub fn hints(&self) -> Vec<String> {
        let loose = fs::read_to_string(switch("all")).is_ok_and(|text| text.trim() == LOOSE);
        let hint = "the kernel checks sources loosely on every interface, so that pods can use \
                    others' addresses while the dataplane is stopped: sysctl -w \
                    net.ipv4.conf.all.rp_filter=0";
        let loose = (loose && !self.strict.is_empty()).then(|| hint.to_owned());
        self.errors.iter().cloned().chain(loose).collect()
    }
}

/// Makes the check of one interface loose, whatever that of `all` is. With several VNIs the way back may
/// lead by the device of another one.
///
/// # Errors
/// A sentence with what the kernel says.
pub fn loosen(interface: &str) -> Result<(), String> {
    let path = switch(interface);
    fs::write(&path, LOOSE).map_err(|error| {
        format!("cannot loosen the kernel's check of sources on {interface}: {path}: {error}")
    })
}

/// The switch of an interface. Names have no slash, and dots stay dots here.
fn switch(interface: &str) -> String {
    format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter")
}
