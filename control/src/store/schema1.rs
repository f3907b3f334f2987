//! The state file of schema 1: one JSON object without checksums, written as a whole each time.

use std::collections::BTreeMap;

use podway_proto::control::{NodeSpec, PortRoleSpec, RouteSpec};
use serde::Deserialize;

use super::lines::{Content, Flaw, Head};
use crate::state::Desired;

const SCHEMA: u32 = 1;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(rename = "schema")]
    _schema: u32,
    nodes: BTreeMap<String, NodeSpec>,
    routes: Vec<RouteSpec>,
    ports: BTreeMap<String, PortRoleSpec>,
}

#[derive(Deserialize)]
struct Version {
    schema: u32,
}

/// Reads a file of this form.
pub(super) fn read(bytes: &[u8]) -> Content {
    // The version first: a newer form need not be read as this one.
    let version = serde_json::from_slice::<Version>(bytes);
    let schema = version.map_or(SCHEMA, |version| version.schema);
    let snapshot = serde_json::from_slice::<Document>(bytes)
        .map(|document| {
            let routes = document.routes.into_iter();
            Desired {
                nodes: document.nodes,
                routes: routes.map(|route| (route.prefix, route.via)).collect(),
                ports: document.ports,
            }
        })
        .map_err(|error| Flaw {
            line: error.line(),
            what: format!("it cannot be read: {error}"),
        });
    let entries = snapshot.as_ref().map_or(0, crate::entry::Entry::count);
    Content {
        head: Some(Head {
            schema,
            generation: 0,
            entries,
        }),
        snapshot,
        changes: Vec::new(),
        flaw: None,
        torn: None,
        lines: bytes.iter().filter(|&&byte| byte == b'\n').count(),
        end: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_uplink_of_an_old_file_is_read() {
        let text = br#"{"schema":1,"nodes":{},"routes":[],"ports":{"eth0":{"kind":"uplink"}}}"#;
        let state = read(text).state().unwrap();
        let uplink = PortRoleSpec::Uplink {
            accept_partial_checksums: None,
        };
        assert_eq!(state.ports, BTreeMap::from([("eth0".to_owned(), uplink)]));
    }

    #[test]
    fn what_is_wrong_is_named_by_its_line() {
        let text = b"{\n  \"schema\": 1,\n  \"nodes\": {},\n  \"routes\": 7,\n  \"ports\": {}\n}\n";
        let flaw = read(text).state().unwrap_err();
        assert_eq!(flaw.line, 4);
        assert!(
            flaw.what.contains("invalid type: integer `7`"),
            "{}",
            flaw.what
        );
    }
}
